"""Stored draws of chains: what is asked of them, what they are worth, and what comes back from a file."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from exact_posterior import Exact
from torch import Tensor

from flowinv import BundleError, FunctionOperator, InverseProblem, Posterior
from flowinv.diagnostics import ess, rhat, standard_error
from flowinv.sampled_posterior import SampledPosterior
from flowinv.solvers.sampling import Sampler, SamplingSettings
from flowinv.store import read_bundle, write_bundle

CHAINS, DRAWS, RHO = 4, 400, 0.8


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def exact() -> Exact:
    return Exact(shape=(1, 3, 4), batch=2, dtype=torch.float32)


def autoregressive(exact: Exact, seed: int = 0) -> SampledPosterior:
    """Chains in equilibrium at the exact posterior, each draw correlated by RHO with the one before."""
    noise = torch.randn(CHAINS, DRAWS, 2, 12, generator=seeded(seed)).double()
    w = noise.clone()
    for t in range(1, DRAWS):
        w[:, t] = RHO * w[:, t - 1] + math.sqrt(1 - RHO**2) * noise[:, t]
    x = (exact.mean + w @ torch.linalg.cholesky(exact.covariance).T).float().view(CHAINS, DRAWS, 2, 1, 3, 4)
    stats = {"lp": exact.problem.log_joint(x), "acceptance": torch.rand(CHAINS, DRAWS, 2, generator=seeded(1))}
    provenance = {"settings": {"kernel": "hmc"}, "steps": 400, "seconds": 1.5, "exact": True, "target": "latent"}
    return SampledPosterior(exact.problem, x, stats, {"step": [1], "potential": [[1.0, 2.0]]}, provenance)


@pytest.fixture(scope="module")
def posterior(exact: Exact) -> SampledPosterior:
    return autoregressive(exact)


# -- draws -------------------------------------------------------------------------------------------


def test_all_draws_come_step_by_step_the_chains_in_turn(posterior: SampledPosterior) -> None:
    total = CHAINS * DRAWS
    expected = posterior.chains.transpose(0, 1).flatten(0, 1)
    assert posterior.count == total
    assert torch.equal(posterior.sample(total, seeded()), expected)
    pieces = list(posterior.draws(total, seeded(), chunk=10))
    assert {len(p) for p in pieces[:-1]} == {5} and torch.equal(torch.cat(pieces), expected)


def test_fewer_are_drawn_without_replacement_and_more_are_refused(posterior: SampledPosterior) -> None:
    some = posterior.sample(700, seeded(3))
    assert torch.equal(some, torch.cat(list(posterior.draws(700, seeded(3), chunk=3))))
    assert not torch.equal(some, posterior.sample(700, seeded(4)))
    first = posterior.chains[..., 0, 0, 0, 0].flatten().tolist()
    values = some[:, 0, 0, 0, 0].tolist()
    assert len(set(values)) == 700 and set(values) <= set(first)
    for n in (0, 1601):
        with pytest.raises(ValueError, match=rf"{n} draws asked for, but these chains hold 1600.*4 chains of 400"):
            posterior.sample(n, seeded())


def test_summaries_use_all_there_are_where_fewer_are_stored(exact: Exact, posterior: SampledPosterior) -> None:
    everything = posterior.chains.flatten(0, 1)
    torch.testing.assert_close(posterior.mean(5000), everything.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(posterior.std(5000), everything.std(0), rtol=1e-4, atol=1e-6)
    low, high = posterior.credible_interval(0.9, 5000)
    inside = ((everything >= low) & (everything <= high)).float().mean(0)
    assert (inside - 0.9).abs().max() < 0.01
    short = SampledPosterior(
        exact.problem, posterior.chains[:, :2], {k: v[:, :2] for k, v in posterior.stats.items()}, {}, {}
    )
    assert short.mean().shape == (2, 1, 3, 4)
    assert torch.allclose(short.mean(), short.chains.flatten(0, 1).mean(0), atol=1e-6)


def test_errors_count_how_draws_depend_on_each_other(exact: Exact) -> None:
    """Over many runs the error of the mean has the standard error that each run states; the naive one is 3 times less."""
    truth = float(exact.mean[0].sum())
    scores, naive, shares, share_errors = [], [], [], []
    for seed in range(40):
        posterior = autoregressive(exact, seed)
        total = posterior.expectation(lambda x: x.flatten(2).sum(2))
        scores.append((float(total.mean[0]) - truth) / float(total.standard_error[0]))
        few = posterior.expectation(lambda x: x.flatten(2).sum(2), n=total.count - 1)
        naive.append((float(few.mean[0]) - truth) / float(few.standard_error[0]))
        above = posterior.exceedance(truth, lambda x: x.flatten(2).sum(2))
        shares.append(float(above.probability[0]) - 0.5)
        share_errors.append(float(above.standard_error[0]))
        assert 60 < above.count < 900 and (above.lower < above.probability).all()
    assert 0.7 < float(torch.tensor(scores).square().mean().sqrt()) < 1.4
    assert float(torch.tensor(naive).square().mean().sqrt()) > 2
    assert 0.7 < float((torch.tensor(shares) / torch.tensor(share_errors)).square().mean().sqrt()) < 1.4


def test_a_probability_that_no_draw_tells_of_keeps_its_bounds(posterior: SampledPosterior) -> None:
    never = posterior.exceedance(100.0)
    assert (never.probability == 0).all() and (never.lower == 0).all()
    assert (never.upper > 0).all() and (never.upper < 0.01).all() and never.count == round(float(posterior.ess.min()))


def test_short_chains_far_apart_tell_of_no_more_draws_than_chains(exact: Exact, posterior: SampledPosterior) -> None:
    apart = torch.tensor([-30.0, -10.0, 10.0, 30.0]).view(4, 1, 1, 1, 1, 1)
    for length in (3, 6, 9):
        x = posterior.chains[:, :length] + apart
        stats = {k: v[:, :length] for k, v in posterior.stats.items()} | {"lp": exact.problem.log_joint(x)}
        short = SampledPosterior(exact.problem, x, stats, {}, posterior.provenance)
        above = short.exceedance(0.0)
        assert (above.probability == 0.5).all() and above.count <= 6
        assert (above.standard_error > 0.2).all() and (above.upper - above.lower > 0.5).all()
        error = short.expectation(lambda x: x).standard_error
        known = 25.8 / 2  # of the mean of four values, of that standard deviation
        assert torch.isnan(error).all() if length < 4 else ((error / known - 1).abs() < 0.4).all()


# -- mixing ------------------------------------------------------------------------------------------


def test_rhat_and_ess_of_lp_of_pixels_and_of_functions(posterior: SampledPosterior) -> None:
    assert torch.equal(posterior.rhat, rhat(posterior.stats["lp"])) and posterior.rhat.shape == (2,)
    assert torch.equal(posterior.ess, ess(posterior.stats["lp"]))
    assert torch.equal(posterior.rhat_of(), rhat(posterior.chains)) and posterior.rhat_of().shape == (2, 1, 3, 4)
    expected = 1600 * (1 - RHO) / (1 + RHO)
    assert abs(float(posterior.ess_of().mean()) / expected - 1) < 0.2
    assert posterior.ess_of(lambda x: x.flatten(2).sum(2)).shape == (2,)
    assert torch.equal(posterior.acceptance, posterior.stats["acceptance"].mean(1))
    with pytest.raises(ValueError, match="function of draws must give"):
        posterior.rhat_of(lambda x: x.sum())


def test_says_what_it_is(exact: Exact, posterior: SampledPosterior) -> None:
    text = repr(posterior)
    assert "4 chains by hmc" in text and "(exact kernel)" in text and "1600 of each observation" in text
    assert f"{float(posterior.rhat.max()):.3f}" in text and "acceptance 0." in text and "disagree" not in text
    apart = SampledPosterior(
        exact.problem,
        posterior.chains,
        {**posterior.stats, "lp": posterior.stats["lp"] + 30 * torch.arange(4.0)[:, None, None]},
        {},
        {**posterior.provenance, "exact": False, "target": "projected"},
    )
    text = repr(apart)
    assert "the chains disagree" in text and "bias" in text and "noise-free conditional" in text
    still = {**posterior.stats, "lp": torch.arange(4.0)[:, None, None].expand_as(posterior.stats["lp"])}
    stuck = SampledPosterior(exact.problem, posterior.chains, still, {}, posterior.provenance)
    assert "R-hat inf" in repr(stuck) and "the chains disagree" in repr(stuck)
    single = Sampler(SamplingSettings("lmc", steps=3, warmup=0, keep="last", step_size=1e-3)).solve(exact.problem)
    assert "R-hat unknown" in repr(single) and "4 chains by lmc" in repr(single)


@pytest.mark.parametrize(
    ("chains", "stats", "message"),
    [
        ((4, 5, 3, 1, 3, 4), (4, 5, 3), r"\(C, S, 2, 1, 3, 4\), got \(4, 5, 3, 1, 3, 4\)"),
        ((4, 0, 2, 1, 3, 4), (4, 0, 2), r"got \(4, 0"),
        ((4, 5, 2, 1, 3, 4), (4, 5), r"stats\['lp'\] must have shape \(4, 5, 2\), got \(4, 5\)"),
        ((4, 5, 2, 1, 3, 4), None, "lp and acceptance"),
    ],
)
def test_refuses_draws_of_another_shape(exact: Exact, chains, stats, message) -> None:
    values: dict[str, Tensor] = {} if stats is None else {k: torch.zeros(stats) for k in ("lp", "acceptance")}
    with pytest.raises(ValueError, match=message):
        SampledPosterior(exact.problem, torch.zeros(chains), values, {}, {})


# -- files -------------------------------------------------------------------------------------------


def test_round_trip(posterior: SampledPosterior, tmp_path: Path) -> None:
    posterior.save(tmp_path / "p")
    back = Posterior.load(tmp_path / "p")
    assert isinstance(back, SampledPosterior)
    assert torch.equal(back.chains, posterior.chains) and back.trace == posterior.trace
    assert all(torch.equal(back.stats[k], v) for k, v in posterior.stats.items())
    assert back.provenance == posterior.provenance and repr(back) == repr(posterior)
    assert torch.equal(back.problem.y, posterior.problem.y)
    assert back.problem.fingerprint() == posterior.problem.fingerprint()
    with pytest.raises(FileExistsError):
        posterior.save(tmp_path / "p")


def test_a_real_run_comes_back_whole(exact: Exact, tmp_path: Path) -> None:
    settings = SamplingSettings(steps=5, warmup=3, leapfrogs=2)
    found = Sampler(settings).solve(exact.problem)
    found.save(tmp_path / "p")
    back = Posterior.load(tmp_path / "p")
    assert back.provenance == json.loads(json.dumps(found.provenance)) and back.trace == found.trace
    assert torch.equal(back.sample(20, seeded()), found.sample(20, seeded()))


def test_code_must_be_given_again(exact: Exact, tmp_path: Path) -> None:
    problem = InverseProblem(exact.prior, FunctionOperator(torch.sin), exact.problem.likelihood, exact.y)
    Sampler(SamplingSettings(steps=4, warmup=0, leapfrogs=1)).solve(problem).save(tmp_path / "p")
    with pytest.raises(BundleError, match="operator was Python code"):
        Posterior.load(tmp_path / "p")
    assert Posterior.load(tmp_path / "p", operator=torch.sin).batch == 2


def damage_shape(config: dict, tensors: dict) -> None:
    tensors["chains"] = tensors["chains"][:, :-1]


def damage_values(config: dict, tensors: dict) -> None:
    tensors["stats.lp"][0, 0, 0] = math.nan


def damage_missing(config: dict, tensors: dict) -> None:
    del tensors["stats.acceptance"]


def damage_config(config: dict, tensors: dict) -> None:
    del config["draws"]


def damage_kind(config: dict, tensors: dict) -> None:
    config["kind"] = "drawn"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_shape, "do not fit"),
        (damage_values, "NaN or infinite values in stats.lp"),
        (damage_missing, "do not fit"),
        (damage_config, "misses 'draws'"),
        (damage_kind, "unknown kind 'drawn'"),
    ],
)
def test_a_damaged_bundle_is_refused(posterior: SampledPosterior, tmp_path: Path, damage, message) -> None:
    posterior.save(tmp_path / "p")
    config, tensors = read_bundle(tmp_path / "p", "flowinv-posterior")
    damage(config, tensors)
    write_bundle(tmp_path / "p", config, tensors, overwrite=True)
    with pytest.raises(BundleError, match=message):
        Posterior.load(tmp_path / "p")


# -- xarray ------------------------------------------------------------------------------------------


def test_chains_stay_chains_in_the_datatree(exact: Exact, posterior: SampledPosterior) -> None:
    tree = posterior.to_datatree()
    lead = ("chain", "draw", "observation")
    assert tree["posterior/image"].dims == (*lead, "channel", "row", "col")
    assert np.array_equal(tree["posterior/image"].values, posterior.chains.numpy())
    assert set(tree["sample_stats"].data_vars) == {"lp", "acceptance_rate", "log_likelihood"}
    assert all(v.dims == lead and v.shape == (4, 400, 2) for v in tree["sample_stats"].data_vars.values())
    assert np.array_equal(tree["sample_stats/acceptance_rate"].values, posterior.stats["acceptance"].numpy())
    likelihood = exact.problem.log_likelihood(posterior.chains)
    assert np.allclose(tree["sample_stats/log_likelihood"].values, likelihood.numpy(), atol=1e-4)
    assert np.allclose(tree["sample_stats/lp"].values, posterior.stats["lp"].numpy())
    measured = exact.problem.operator(posterior.chains)
    assert np.array_equal(tree["posterior_predictive/measurement"].values, measured.numpy())
    assert np.array_equal(tree["observed_data/measurement"].values, exact.y.numpy())
    assert tree["constant_data/observed"].dtype == bool
    thinned = posterior.to_datatree(42)["posterior/image"].values
    assert thinned.shape[:2] == (4, 10)
    assert np.array_equal(thinned[:, [0, -1]], posterior.chains[:, [0, -1]].numpy())
    assert posterior.to_datatree(10**6)["posterior/image"].shape[:2] == (4, 400)
    with pytest.raises(ValueError, match="each of 4 chains, got 3"):
        posterior.to_datatree(3)


def test_arviz_reads_it_and_agrees(posterior: SampledPosterior, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arviz = pytest.importorskip("arviz")
    import xarray as xr

    posterior.to_datatree().to_netcdf(tmp_path / "p.nc", engine="h5netcdf")
    with xr.open_datatree(tmp_path / "p.nc", engine="h5netcdf") as tree:
        image = tree["posterior"].to_dataset().astype("float64")  # else ties arise in float32
        found = arviz.rhat(image)["image"].values, arviz.ess(image)["image"].values
    torch.testing.assert_close(torch.from_numpy(found[0]), posterior.rhat_of(), rtol=1e-10, atol=0)
    share = posterior.ess_of() / torch.from_numpy(found[1])  # the last lags count here too
    assert ((share > 0.99) & (share < 1.01)).all() and float(share.median()) == pytest.approx(1, abs=1e-10)


def test_standard_error_is_that_of_the_diagnostics(posterior: SampledPosterior) -> None:
    found = posterior.expectation(lambda x: x)
    torch.testing.assert_close(found.standard_error, standard_error(posterior.chains).float())
