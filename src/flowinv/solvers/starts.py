"""Where a fit starts: a family around the mode of p(z | y), or around a point estimate."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..families import Family
from ..families.family import composed_at
from ..point_estimate import PointEstimate
from ..problem import InverseProblem
from ..store import hash_tensors
from .laplace import laplace_factor, no_laplace
from .optimization import PointSolver
from .optimization_settings import OptimizationSettings
from .progress import SolverProgress
from .variational_settings import VariationalSettings

POINT_SCALE, LAPLACE_SCALE = 0.5, 0.7
MODE_FROM = 0.3  # times N(0, I)
SEARCH = "start"  # within the fit's checkpoint: that of the search for the mode


def own_latents(problem: InverseProblem, estimate: PointEstimate, settings: VariationalSettings) -> Tensor:
    """The latents of a point estimate to start at, refused where they are not the problem's."""
    if settings.start == "prior":
        raise ValueError("to start at a point estimate, set start to 'point' or 'laplace'; it is 'prior'")
    if estimate.problem.prior_fingerprint != problem.prior_fingerprint:
        raise ValueError("the point estimate to start at is of another prior, whose latents mean something else")
    if len(estimate.z) != problem.batch:
        raise ValueError(
            f"the point estimate to start at is of {len(estimate.z)} observations, the problem has {problem.batch}"
        )
    if not torch.equal(estimate.problem.y, problem.y):
        raise ValueError("the point estimate to start at is of other observations: its y differs from the problem's")
    theirs, ours = estimate.problem.operator(estimate.x), problem.operator(estimate.x)
    if theirs.shape != ours.shape or not torch.allclose(theirs, ours, rtol=1e-3, atol=1e-4):
        raise ValueError("the point estimate to start at is of another operator: its A(x) differs from the problem's")
    return estimate.z


def origin_of(z: Tensor | None, settings: VariationalSettings) -> str:
    """What tells a start from another: its kind, of given latents their digest; its weights' last bits differ with the threads."""
    if z is None:
        return settings.start
    digest = hashlib.sha256()
    hash_tensors(digest, {"z": z})
    return digest.hexdigest()


def family_at(
    problem: InverseProblem,
    z: Tensor | None,
    settings: VariationalSettings,
    checkpoint: str | Path | None = None,
    report: Callable[[SolverProgress], None] | None = None,
    every: float = 20.0,
) -> tuple[Family, float]:
    """The family to start from, around latents z (B, *shape) or the mode, and the seconds that it took.

    The search for the mode is saved in ``start`` within the checkpoint.
    """
    seconds = 0.0
    if settings.start == "laplace" and (why := no_laplace(problem)) is not None:
        raise ValueError(why)  # before the search, not after
    if z is None:
        place = None if checkpoint is None else Path(checkpoint) / SEARCH
        sought = problem if settings.start_widening == 1 else problem.widened(settings.start_widening)
        mode = PointSolver(_mode(settings)).solve(sought, place, report, every)
        z, seconds = mode.z, mode.provenance["seconds"]
    if settings.start == "point":
        return _around(z, POINT_SCALE, settings), seconds
    began = time.monotonic()
    factor = LAPLACE_SCALE * laplace_factor(problem, z, problem.prior.frozen(bf16=True) if settings.bf16 else None)
    return _around(z, factor, settings), seconds + time.monotonic() - began


def family_to_fill(problem: InverseProblem, settings: VariationalSettings) -> Family:
    """A family as ``family_at`` makes it but for its weights, which a checkpoint holds."""
    z = torch.zeros(problem.batch, *problem.shape)
    eye = torch.eye(z[0].numel()).expand(len(z), -1, -1)
    return _around(z, POINT_SCALE if settings.start == "point" else eye, settings)


def _around(z: Tensor, scale: float | Tensor, settings: VariationalSettings) -> Family:
    config = settings.pregenerator
    if isinstance(scale, Tensor) and config.family != "gaussian":
        config = replace(config, affine=True)
    return composed_at(z, config, scale)


def _mode(settings: VariationalSettings) -> OptimizationSettings:
    """How the mode of p(z | y) is sought: -log p(y | f(z)) + ||z||^2 / 2.

    From nearer to the origin than a draw, which few steps do not shrink to the mode's length; at it gradients may vanish.
    """
    return OptimizationSettings(
        "likelihood",
        "latent-norm",
        0.5,
        init_scale=MODE_FROM,
        learning_rate=0.1,
        steps=settings.start_steps,
        bf16=settings.bf16,
        seed=settings.seed,
    )
