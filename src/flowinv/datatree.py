"""Draws as an xarray.DataTree, for NetCDF, Zarr and ArviZ."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np
    import xarray

    from .posterior import Posterior
    from .sampled_posterior import SampledPosterior

_LEAD = ["chain", "draw", "observation"]


def _dims(shape: tuple[int, ...], kind: str) -> list[str]:
    """Names for the dimensions of one sample; never x or y, which are the unknown and the measurement."""
    if len(shape) == 3:
        return ["channel", "row", "col"] if kind == "x" else [f"{kind}_{n}" for n in ("channel", "row", "col")]
    return [f"{kind}_dim_{i}" for i in range(len(shape))] if kind != "x" or len(shape) > 1 else ["element"]


def posterior_to_datatree(posterior: Posterior, n: int, generator: torch.Generator) -> xarray.DataTree:
    """n draws with their log densities, predictions and the data; see ``Posterior.to_datatree``."""
    from .flow_posterior import FlowPosterior

    if not isinstance(posterior, FlowPosterior):
        raise TypeError(f"only a FlowPosterior gives draws with their density, got {type(posterior).__name__}")
    problem = posterior.problem
    parts = []
    with torch.no_grad():
        for x, log_q in posterior.draws_with_log_prob(n, generator):
            parts.append((x, log_q, problem.operator(x), problem.log_likelihood(x), problem.log_prior(x)))
    # independent draws are one chain
    x, log_q, prediction, log_likelihood, log_prior = (torch.cat(column)[None] for column in zip(*parts, strict=True))
    log_joint = log_likelihood + log_prior
    stats = {
        "lp": log_joint,
        "log_q": log_q,
        "log_likelihood": log_likelihood,
        "log_weight": log_joint - log_q,
    }
    return _tree(posterior, x, prediction, stats)


def chains_to_datatree(posterior: SampledPosterior, n: int | None) -> xarray.DataTree:
    """Every chain, or n // C draws evenly spaced along each; see ``SampledPosterior.to_datatree``."""
    number, length = posterior.chains.shape[:2]
    if n is not None and not number <= n:
        raise ValueError(f"n must be at least 1 for each of {number} chains, got {n}")
    wanted = length if n is None else min(length, n // number)
    which = torch.linspace(0, length - 1, wanted).round().long() if wanted > 1 else torch.tensor([length - 1])
    problem = posterior.problem
    x = posterior.chains[:, which.to(posterior.chains.device)]
    with torch.no_grad():
        parts = [(problem.operator(s), problem.log_likelihood(s)) for s in x.flatten(0, 1).split(64)]
    prediction, log_likelihood = (torch.cat(c).unflatten(0, x.shape[:2]) for c in zip(*parts, strict=True))
    stats = {"acceptance_rate" if k == "acceptance" else k: v[:, which] for k, v in posterior.stats.items()}
    return _tree(posterior, x, prediction, {**stats, "log_likelihood": log_likelihood})


def _tree(posterior: Posterior, x: Tensor, prediction: Tensor, stats: dict[str, Tensor]) -> xarray.DataTree:
    """Draws (C, S, B, *shape), predictions (C, S, B, *m) and values per draw (C, S, B) with the data they are of."""
    import xarray as xr

    problem = posterior.problem
    data_dims = _dims(tuple(problem.y.shape[1:]), "measured")

    def array(t: Tensor, dims: list[str]) -> tuple[list[str], np.ndarray]:
        return dims, t.detach().float().cpu().numpy()

    groups = {
        "posterior": xr.Dataset(
            {"image" if len(posterior.shape) == 3 else "vector": array(x, _LEAD + _dims(posterior.shape, "x"))}
        ),
        "sample_stats": xr.Dataset({name: array(value, _LEAD) for name, value in stats.items()}),
        "posterior_predictive": xr.Dataset({"measurement": array(prediction, _LEAD + data_dims)}),
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
