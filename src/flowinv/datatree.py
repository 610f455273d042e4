"""Draws as an xarray.DataTree, for NetCDF, Zarr and ArviZ."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    import numpy as np
    import xarray

    from .posterior import Posterior


def _dims(shape: tuple[int, ...], kind: str) -> list[str]:
    """Names for the dimensions of one sample; never x or y, which are the unknown and the measurement."""
    if len(shape) == 3:
        return ["channel", "row", "col"] if kind == "x" else [f"{kind}_{n}" for n in ("channel", "row", "col")]
    return [f"{kind}_dim_{i}" for i in range(len(shape))] if kind != "x" or len(shape) > 1 else ["element"]


def posterior_to_datatree(posterior: Posterior, n: int, generator: torch.Generator) -> xarray.DataTree:
    """n draws with their log densities, predictions and the data; see ``Posterior.to_datatree``."""
    import xarray as xr

    problem = posterior.problem
    parts = []
    with torch.no_grad():
        for x, log_q in posterior.draws_with_log_prob(n, generator):
            parts.append((x, log_q, problem.operator(x), problem.log_likelihood(x), problem.log_prior(x)))
    x, log_q, prediction, log_likelihood, log_prior = (torch.cat(column) for column in zip(*parts, strict=True))
    log_joint = log_likelihood + log_prior
    lead = ["chain", "draw", "observation"]
    data_dims = _dims(tuple(problem.y.shape[1:]), "measured")

    def array(t: torch.Tensor, dims: list[str]) -> tuple[list[str], np.ndarray]:
        return dims, (t if dims[0] == "observation" else t[None]).detach().float().cpu().numpy()

    groups = {
        "posterior": xr.Dataset(
            {"image" if len(posterior.shape) == 3 else "vector": array(x, lead + _dims(posterior.shape, "x"))}
        ),
        "sample_stats": xr.Dataset(
            {
                "lp": array(log_joint, lead),
                "log_q": array(log_q, lead),
                "log_likelihood": array(log_likelihood, lead),
                "log_weight": array(log_joint - log_q, lead),
            }
        ),
        "posterior_predictive": xr.Dataset({"measurement": array(prediction, lead + data_dims)}),
        "observed_data": xr.Dataset({"measurement": array(problem.y, ["observation", *data_dims])}),
    }
    if problem.operator.observed is not None:
        mask = problem.operator.observed.expand(problem.y.shape)
        groups["constant_data"] = xr.Dataset({"observed": (["observation", *data_dims], mask.cpu().numpy())})
    attributes = {
        "created_with": f"flowinv {posterior.provenance['flowinv']}",
        "prior_sha256": problem.prior_fingerprint,
    }
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=attributes), **groups})
