"""A batch of faces, from their measurements to their rows."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

import flowinv
from benchmarks.composing.measure import number
from benchmarks.composing.picture import as_bytes, measurement
from benchmarks.restoration.cases import Case
from benchmarks.restoration.methods import MEAN_OF, PACE, mean_settings, mean_start, point_settings
from flowinv.adapters.bm3d import denoise
from flowinv.metrics import psnr, ssim
from flowinv.metrics.errors import quantised
from flowinv.randomness import keyed_generator
from flowinv.solvers import Diverged, PointSolver, VariationalSolver

BITS = 5


@dataclass(frozen=True)
class Job:
    """One method with one weight on images that follow one another in the list from ``place``."""

    case: Case
    method: str
    weight: float
    place: int
    truth: Tensor
    prior: str
    pace: str = PACE
    steps: int | None = None

    def only(self, b: int) -> Job:
        """The same, of one image."""
        return replace(self, place=self.place + b, truth=self.truth[b : b + 1])


Found = tuple[dict[str, Any], dict[str, np.ndarray]]


@lru_cache(maxsize=2)
def _prior(name: str) -> flowinv.Flow:
    return flowinv.load_prior(name)


def solve_job(job: Job) -> list[Found]:
    """A row and pictures for each image. A batch that diverged is solved image by image."""
    prior = _prior(job.prior)
    wall, processor = time.perf_counter(), time.process_time()
    problem = job.case.problem(prior, job.truth, job.place, job.weight if job.method == "mean" else None)
    try:
        x, about = _restored(job, problem)
    except Diverged as error:
        if len(job.truth) > 1:
            return [pair for b in range(len(job.truth)) for pair in solve_job(job.only(b))]
        return [({"image": job.place, "weight": job.weight, "failed": str(error).splitlines()[0]}, {})]
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    x = x.clamp(0, 1)
    levels = [quantised(v, BITS) for v in (x, job.truth)]
    columns = {
        "psnr": psnr(x, job.truth),
        "ssim": ssim(x, job.truth),
        # of 8-bit values floored to 5 bits, from which the paper's pooled PSNR is computed
        "squared_error_5bit": (levels[0] - levels[1]).square().flatten(1).mean(1),
        **about,
    }
    found = []
    for b in range(len(x)):
        row = {"image": job.place + b, "weight": job.weight, **{k: number(float(v[b])) for k, v in columns.items()}}
        row |= {"seconds": number(wall / len(x)), "cpu_seconds": number(processor / len(x)), "together": len(x)}
        found.append(
            (row, {"truth": as_bytes(job.truth[b]), "observed": measurement(problem, b), "restored": as_bytes(x[b])})
        )
    return found


def _restored(job: Job, problem: flowinv.InverseProblem) -> tuple[Tensor, dict[str, Tensor]]:
    """The estimates (B, *shape), and what the method says of them."""
    if job.method == "bm3d":
        return denoise(problem.y, job.case.noise), {}
    if job.method == "mean":
        return _mean(job, problem)
    settings = point_settings(job.method, job.case, job.weight, job.pace, job.steps)
    assert settings is not None
    estimate = PointSolver(replace(settings, first=job.place)).solve(problem)
    taken = torch.tensor(estimate.provenance["steps_of_each"], dtype=torch.float64)
    about = {"misfit": estimate.misfit, "log_prior": estimate.log_prior, "norm": estimate.z.flatten(1).norm(dim=1)}
    return estimate.x, {**about, "steps": taken}


def _mean(job: Job, problem: flowinv.InverseProblem) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean of draws from the composed flow's posterior."""
    estimate = PointSolver(replace(mean_start(job.case), first=job.place)).solve(problem)
    posterior = VariationalSolver(replace(mean_settings(), seed=job.place)).solve(problem, start=estimate)
    return posterior.sample(MEAN_OF, keyed_generator(95, job.place)).mean(0), {
        "elbo": posterior.elbo,
        "steps": torch.full((problem.batch,), posterior.provenance["steps"]),
    }
