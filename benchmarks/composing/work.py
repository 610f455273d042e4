"""One image's work, from its observation to its row."""

from __future__ import annotations

from dataclasses import dataclass
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
from benchmarks.composing.store import Row
from flowinv.solvers import Amortizer, Diverged, VariationalSettings


@dataclass(frozen=True)
class Job:
    """One method on one image. ``reference`` is the path of the features' projection, None where none are kept."""

    case: Case
    method: str
    settings: Settings | None
    first: VariationalSettings | None
    index: int
    test_index: int
    truth: Tensor
    prior: str
    data: str
    reference: str | None
    amortizer: str | None = None
    device: str = "cpu"


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


def solve_job(job: Job) -> Result:
    """Solve one image and measure what came out; a run that diverged makes a row that says so."""
    truth = job.truth.to(job.device)
    problem = job.case.problem(_prior(job.prior, job.device), truth, job.index)
    where = {"image": job.index, "test_index": job.test_index}
    try:
        amortizer = _amortizer(job.amortizer)
        outcome = solve(job.method, problem, job.settings, job.case.draws, job.index, amortizer, job.first)
    except Diverged as error:
        return Result(job.method, {**where, "failed": str(error).splitlines()[0]})
    eyes = perception(truth.shape[1] == 1, job.data)
    (row,) = rows_of(problem, truth, _on_cpu(outcome), eyes)
    features = None
    if job.reference is not None:
        low, high = problem.prior.support
        found = eyes.features(outcome.draws[:, 0].cpu().clamp(low, high)) @ _basis(job.reference)
        features = found.half().numpy()
    return Result(job.method, {**where, **row}, features, _sheet(outcome, truth, measurement(problem)))


def _on_cpu(outcome: Outcome) -> Outcome:
    outcome.draws, outcome.mean, outcome.std = (t.cpu() for t in (outcome.draws, outcome.mean, outcome.std))
    return outcome


def _sheet(outcome: Outcome, truth: Tensor, observed: np.ndarray) -> dict[str, np.ndarray]:
    """Truth, measurement, draws and mean as bytes, standard deviation averaged over the channels."""
    return {
        "truth": as_bytes(truth[0]),
        "observed": observed,
        "draws": as_bytes(outcome.draws[:, 0]),
        "mean": as_bytes(outcome.mean[0]),
        "std": outcome.std[0].mean(0).half().numpy(),
    }
