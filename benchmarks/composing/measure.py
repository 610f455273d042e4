"""What is written down about one image: errors, perceptual distances, calibration and cost of a method's draws."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.composing.engines import Outcome
from benchmarks.composing.perception import Perception
from benchmarks.composing.store import Row
from flowinv import InverseProblem, Mask
from flowinv.metrics import distance_to_truth, pairwise_diversity, psnr, ssim, sum_squared_error


def energy_score(draws: Tensor, truth: Tensor) -> Tensor:
    r"""mean_s ||x_s - x|| - 1/2 mean_{s != t} ||x_s - x_t||, (B,), of draws (S, B, \*shape); lower is better.

    Its expectation is least for draws of the true posterior (a strictly proper score, Gneiting and Raftery, 2007): neither
    too narrow nor too wide pays. The squared error of single draws, by contrast, is least for a point. In units of x; sums
    without s = t, so that the number of draws does not matter.
    """
    flat, x = draws.double().flatten(2), truth.double().flatten(1)
    near = (flat - x).norm(dim=-1).mean(0)
    if len(flat) < 2:
        return near
    apart = torch.cdist(flat.transpose(0, 1), flat.transpose(0, 1)).sum((1, 2)) / (len(flat) * (len(flat) - 1))
    return near - 0.5 * apart


def hidden(problem: InverseProblem) -> Tensor | None:
    """Where a mask shows nothing, (B, *shape); None for other operators."""
    if not isinstance(problem.operator, Mask):
        return None
    return ~problem.operator.mask.expand(problem.batch, *problem.shape)


def rows_of(problem: InverseProblem, truth: Tensor, outcome: Outcome, eyes: Perception) -> list[Row]:
    """One row for each observation. Draws are cut to the prior's support first."""
    low, high = problem.prior.support
    draws, mean = outcome.draws.clamp(low, high), outcome.mean.clamp(low, high)
    few = len(draws) > 1
    errors, chi = sum_squared_error(draws, truth), _chi_squared(problem, draws)
    diversity = pairwise_diversity(draws, eyes.distance) if few else None
    with torch.no_grad():
        near = distance_to_truth(eyes.distance, draws, truth).mean(0)
        near_mean = distance_to_truth(eyes.distance, mean, truth)
    columns: dict[str, Tensor | None] = {
        "squared_error": errors.mean(0),
        "squared_error_mean": sum_squared_error(mean, truth),
        "squared_error_hidden": _over(hidden(problem), draws, truth),
        "squared_error_mean_hidden": _over(hidden(problem), mean[None], truth),
        "psnr": psnr(draws, truth).mean(0),
        "psnr_mean": psnr(mean, truth),
        "ssim": ssim(draws, truth).mean(0),
        "ssim_mean": ssim(mean, truth),
        "perceptual": near,
        "perceptual_mean": near_mean,
        "diversity": diversity.mean if diversity is not None else None,
        "diversity_std": diversity.std if diversity is not None else None,
        "energy_score": energy_score(draws, truth),
        "chi_squared": chi.mean(0),
    }
    rows = []
    for b in range(problem.batch):
        row: Row = {name: number(float(v[b])) for name, v in columns.items() if v is not None}
        row["squared_errors"] = [number(v) for v in errors[:, b].tolist()]
        row |= {name: number(values[b]) for name, values in outcome.about.items()}
        # observations solved together share the time
        shared = {"seconds": outcome.seconds / problem.batch, "cpu_seconds": outcome.cpu / problem.batch}
        row |= {name: number(v) for name, v in shared.items()}
        spent = shared[
            "cpu_seconds" if problem.y.device.type == "cpu" else "seconds"
        ]  # other work on the machine aside
        row["seconds_per_draw"] = number(spent / len(draws))
        row |= {"draws": len(draws), "mean_of": outcome.mean_of, "passes": outcome.passes}
        rows.append(row)
    return rows


def _chi_squared(problem: InverseProblem, draws: Tensor) -> Tensor:
    """Mean squared misfit over observed elements in units of sigma^2, (S, B)."""
    with torch.no_grad():
        return problem.likelihood.chi_squared(problem.y, problem.operator(draws), problem.observed)


def _over(where: Tensor | None, x: Tensor, truth: Tensor) -> Tensor | None:
    """Squared error summed over the elements ``where``, averaged over draws, (B,)."""
    if where is None:
        return None
    return torch.where(where, (x - truth).double().square(), 0.0).flatten(2).sum(2).mean(0)


def number(value: float) -> float | None:
    """Six digits; None for what JSON has no word for."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
