"""A few images' work, from their observations to their rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from torch import Tensor

import flowinv
from benchmarks.composing.cases import Case
from benchmarks.composing.engines import Outcome, solve
from benchmarks.composing.measure import rows_of
from benchmarks.composing.methods import Settings
from benchmarks.composing.perception import Reference, perception
from benchmarks.composing.picture import as_bytes, measurement
from benchmarks.composing.store import SHOWN, Row
from flowinv.solvers import Amortizer, Diverged, VariationalSettings


@dataclass(frozen=True)
class Job:
    """One method on images that follow one another in the list from place ``index``, solved in one batch.

    ``truth`` (B, *shape), ``test_indices`` where they come from. ``reference`` is the path of the features' projection, None
    where none are kept.
    """

    case: Case
    method: str
    settings: Settings | None
    first: VariationalSettings | None
    index: int
    test_indices: tuple[int, ...]
    truth: Tensor
    prior: str
    data: str
    reference: str | None
    amortizer: str | None = None
    device: str = "cpu"

    def alone(self) -> list[Job]:
        """The same, image by image."""
        return [
            replace(self, index=self.index + b, test_indices=(place,), truth=self.truth[b : b + 1])
            for b, place in enumerate(self.test_indices)
        ]


@dataclass(frozen=True)
class Result:
    """A method's row, features (S, K) and pictures, the last two None where there are none."""

    method: str
    row: Row
    features: np.ndarray | None = None
    sheet: dict[str, np.ndarray] | None = None


@lru_cache(maxsize=2)
def _prior(name: str, device: str) -> flowinv.Flow:
    return flowinv.load_prior(name).to(device)


@lru_cache(maxsize=2)
def _amortizer(folder: str | None) -> Amortizer | None:
    return Amortizer.load(folder) if folder is not None else None


@lru_cache(maxsize=2)
def _basis(path: str) -> Tensor:
    return Reference.load(Path(path)).basis


def solve_job(job: Job) -> list[Result]:
    """Solve and measure. A batch that diverged is solved image by image; one that diverges alone makes a row that says so."""
    truth = job.truth.to(job.device)
    problem = job.case.problem(_prior(job.prior, job.device), truth, job.index)
    try:
        amortizer = _amortizer(job.amortizer)
        outcome = solve(job.method, problem, job.settings, job.case.draws, job.index, amortizer, job.first)
    except Diverged as error:
        if len(truth) > 1:
            return [result for one in job.alone() for result in solve_job(one)]
        return [Result(job.method, {**_place(job, 0), "failed": str(error).splitlines()[0]})]
    eyes = perception(truth.shape[1] == 1, job.data)
    results = []
    for b, row in enumerate(rows_of(problem, truth, _on_cpu(outcome), eyes)):
        features = None
        if job.reference is not None:
            low, high = problem.prior.support
            found = eyes.features(outcome.draws[:, b].clamp(low, high)) @ _basis(job.reference)
            features = found.half().numpy()
        sheet = _sheet(outcome, truth, measurement(problem, b), b) if job.index + b < SHOWN else None
        results.append(Result(job.method, {**_place(job, b), "together": len(truth), **row}, features, sheet))
    return results


def _place(job: Job, b: int) -> Row:
    return {"image": job.index + b, "test_index": job.test_indices[b]}


def _on_cpu(outcome: Outcome) -> Outcome:
    outcome.draws, outcome.mean, outcome.std = (t.cpu() for t in (outcome.draws, outcome.mean, outcome.std))
    return outcome


def _sheet(outcome: Outcome, truth: Tensor, observed: np.ndarray, b: int) -> dict[str, np.ndarray]:
    """Truth, measurement, draws and mean as bytes, standard deviation averaged over the channels."""
    return {
        "truth": as_bytes(truth[b]),
        "observed": observed,
        "draws": as_bytes(outcome.draws[:, b]),
        "mean": as_bytes(outcome.mean[b]),
        "std": outcome.std[b].mean(0).half().numpy(),
    }
