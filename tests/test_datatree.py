"""Draws as an xarray.DataTree: names, values, and the way to NetCDF and Zarr and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from exact_posterior import Exact


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def exact() -> Exact:
    return Exact(shape=(1, 3, 4), batch=2)


@pytest.fixture(scope="module")
def tree(exact: Exact) -> xr.DataTree:
    return exact.posterior().to_datatree(100, seeded())


def test_groups_dimensions_and_sizes(tree: xr.DataTree) -> None:
    assert set(tree.children) == {
        "posterior",
        "sample_stats",
        "posterior_predictive",
        "observed_data",
        "constant_data",
    }
    lead = ("chain", "draw", "observation")
    assert tree["posterior/image"].dims == (*lead, "channel", "row", "col")
    assert tree["posterior/image"].shape == (1, 100, 2, 1, 3, 4) and tree["posterior/image"].dtype == np.float32
    assert all(v.dims == lead for v in tree["sample_stats"].data_vars.values())
    measured = ("measured_channel", "measured_row", "measured_col")
    assert tree["posterior_predictive/measurement"].dims == (*lead, *measured)
    assert tree["observed_data/measurement"].dims == ("observation", *measured)
    assert tree["constant_data/observed"].dtype == bool


def test_values(exact: Exact, tree: xr.DataTree) -> None:
    posterior = exact.posterior()
    x, log_q = posterior.sample_with_log_prob(100, seeded())
    assert np.array_equal(tree["posterior/image"].values[0], x.float().numpy())
    stats = {k: v.values[0] for k, v in tree["sample_stats"].data_vars.items()}
    expected = torch.stack([exact.distribution(b).log_prob(x[:, b].flatten(1)) for b in range(2)], 1)
    assert np.allclose(stats["log_q"], log_q.numpy(), atol=1e-4)
    assert np.allclose(stats["log_q"], expected.numpy(), atol=1e-4)
    likelihood = torch.distributions.Normal(x, 0.1).log_prob(exact.y).flatten(2)[..., :6].sum(-1)
    assert np.allclose(stats["log_likelihood"], likelihood.numpy(), atol=1e-4)
    prior = torch.distributions.MultivariateNormal(
        exact.prior.bijection.mean.flatten(), scale_tril=exact.prior.bijection.cholesky
    ).log_prob(x.flatten(2))
    assert np.allclose(stats["lp"], (likelihood + prior).numpy(), atol=1e-4)
    # of the exact posterior every weight is the evidence
    assert np.allclose(stats["log_weight"], exact.log_evidence.numpy(), atol=1e-4)
    mask = tree["constant_data/observed"].values
    assert mask.shape == (2, 1, 3, 4) and mask.sum() == 12
    seen = tree["posterior_predictive/measurement"].values[0]
    assert np.array_equal(seen, np.where(mask, x.float().numpy(), 0))
    assert np.array_equal(tree["observed_data/measurement"].values, exact.y.float().numpy())
    assert tree.attrs["prior_sha256"] == exact.prior.fingerprint() and "flowinv" in tree.attrs["created_with"]


def test_a_wrong_posterior_has_weights_that_vary(exact: Exact) -> None:
    weights = exact.posterior(shift=0.3).to_datatree(50, seeded())["sample_stats/log_weight"]
    assert float(weights.std()) > 0.1


def test_vectors_with_everything_observed() -> None:
    exact = Exact((6,), matrix=torch.randn(4, 6, generator=seeded(2)).double())
    tree = exact.posterior().to_datatree(8, seeded())
    assert tree["posterior/vector"].dims == ("chain", "draw", "observation", "element")
    assert tree["observed_data/measurement"].dims == ("observation", "measured_dim_0")
    assert "constant_data" not in tree.children


def test_more_draws_than_fit_one_piece(exact: Exact) -> None:
    tree = exact.posterior().to_datatree(150, seeded())
    assert torch.equal(
        torch.from_numpy(tree["posterior/image"].values[0]), exact.posterior().sample(150, seeded()).float()
    )


def test_without_a_generator_it_is_the_same_every_time(exact: Exact) -> None:
    assert exact.posterior().to_datatree(4).equals(exact.posterior().to_datatree(4))


@pytest.mark.parametrize("kind", ["netcdf", "zarr"])
def test_round_trip(tree: xr.DataTree, tmp_path: Path, kind: str) -> None:
    if kind == "netcdf":
        tree.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
        back = xr.open_datatree(tmp_path / "a.nc", engine="h5netcdf")
    else:
        pytest.importorskip("zarr")
        tree.to_zarr(tmp_path / "a.zarr")
        back = xr.open_datatree(tmp_path / "a.zarr", engine="zarr", consolidated=False)
    assert back.equals(tree) and back.attrs == tree.attrs
    back.close()
