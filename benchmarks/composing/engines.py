"""Problem in, draws out: every method through one door, with what it cost and what it says of itself."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.composing.cases import Case, OneEach, measured_elements
from benchmarks.composing.methods import Settings, settings_of
from flowinv import FlowPosterior, InverseProblem, Mask, SampledPosterior
from flowinv.randomness import keyed_generator
from flowinv.solvers import (
    Amortizer,
    OptimizationSettings,
    PointSolver,
    Sampler,
    VariationalSettings,
    VariationalSolver,
    find_amortizer,
)

MEAN_OF = 32  # draws of a flow posterior in its estimate of the posterior mean, as in the paper
_FINAL, _ELBO = 64, 512


@dataclass
class Outcome:
    """What a method gave for B observations.

    ``draws`` (S, B, *shape); ``mean`` and ``std`` (B, *shape) over ``mean_of`` draws, which may be more than S. ``seconds`` of
    wall and ``cpu`` time from the problem to S draws; ``passes`` counts images sent through the prior for each observation,
    over all its draws. ``about`` holds one list of B values per name.
    """

    draws: Tensor
    mean: Tensor
    std: Tensor
    mean_of: int
    passes: int
    seconds: float = 0.0
    cpu: float = 0.0
    about: dict[str, list[float]] = field(default_factory=dict)


class _Clock:
    """Wall and processor seconds since it was made."""

    def __init__(self) -> None:
        self.wall, self.processor = time.perf_counter(), time.process_time()

    def stop(self, outcome: Outcome) -> Outcome:
        outcome.seconds = time.perf_counter() - self.wall
        outcome.cpu = time.process_time() - self.processor
        return outcome


def solve(
    method: str,
    problem: InverseProblem,
    settings: Settings | None,
    draws: int,
    seed: int,
    amortizer: Amortizer | None = None,
    first: VariationalSettings | None = None,
) -> Outcome:
    """Draws of every observation of a problem. ``first`` is the fit that hmc-noise goes through."""
    if method in ("svi", "ambient"):
        return _fit(problem, settings, draws, seed)
    if method in ("avi", "semi-amortized"):
        found = amortizer if amortizer is not None else find_amortizer(problem)
        if found is None:
            raise LookupError("no amortizer for this prior, task and noise: give one with --amortizer")
        return (
            _zero_shot(problem, found, draws, seed) if method == "avi" else _fit(problem, settings, draws, seed, found)
        )
    if isinstance(settings, OptimizationSettings):
        return _points(problem, settings, draws, seed)
    return _chains(problem, settings, draws, seed, first)


def fit_passes(settings: VariationalSettings, steps: int, measured: int) -> int:
    """Images that a fit of so many steps sends through the prior, the search for its start included.

    A Laplace start takes a backward pass for each of ``measured`` elements of y; each is counted as a whole one.
    """
    start = {"prior": 0, "point": settings.start_steps, "laplace": settings.start_steps + measured}
    return settings.draws * steps + start[settings.start]


def _fit(problem: InverseProblem, settings: Any, draws: int, seed: int, amortizer: Amortizer | None = None) -> Outcome:
    settings = replace(settings, seed=seed, final_draws=_FINAL)
    clock = _Clock()
    start = amortizer.start(problem, settings.pregenerator) if amortizer is not None else None
    posterior = VariationalSolver(settings).solve(problem, start=start)
    steps = posterior.provenance["steps"]
    passes = fit_passes(settings, steps, measured_elements(problem.y, problem.observed))
    outcome = clock.stop(_of_flow(posterior, draws, seed, passes))
    outcome.about = {"steps": [steps] * problem.batch}
    return _with_elbo(outcome, posterior, seed)


def _zero_shot(problem: InverseProblem, amortizer: Amortizer, draws: int, seed: int) -> Outcome:
    clock = _Clock()
    posterior = amortizer.posterior(problem)
    few = posterior.sample(draws, keyed_generator(seed, 2))
    outcome = clock.stop(Outcome(few, few[0], few[0], draws, draws))
    full = _of_flow(posterior, draws, seed, 0)  # more draws, which are not timed
    outcome.mean, outcome.std, outcome.mean_of = full.mean, full.std, full.mean_of
    return _with_elbo(outcome, posterior, seed)


def _of_flow(posterior: FlowPosterior, draws: int, seed: int, passes: int) -> Outcome:
    count = max(draws, MEAN_OF)
    found = posterior.sample(count, keyed_generator(seed, 2))
    return Outcome(found[:draws], found.mean(0), found.std(0), count, passes + count)


def _with_elbo(outcome: Outcome, posterior: FlowPosterior, seed: int) -> Outcome:
    posterior.measure_elbo(_ELBO, keyed_generator(seed, 3))
    assert posterior.elbo is not None and posterior.elbo_se is not None
    outcome.about |= {"elbo": posterior.elbo.tolist(), "elbo_se": posterior.elbo_se.tolist()}
    return outcome


def _chains(
    problem: InverseProblem, settings: Any, draws: int, seed: int, first: VariationalSettings | None
) -> Outcome:
    settings = replace(settings, chains=draws, seed=seed)
    clock, passes, through = _Clock(), 0, None
    if settings.needs_flow:
        if first is None:
            raise ValueError("chains through a fit need its settings")
        through = VariationalSolver(replace(first, seed=seed, final_draws=_FINAL)).solve(problem)
        passes = fit_passes(first, through.provenance["steps"], measured_elements(problem.y, problem.observed))
    posterior = Sampler(settings).solve(problem, through)
    kept = posterior.chains.flatten(0, 1)
    passes += draws * posterior.provenance["prior_passes"]
    outcome = clock.stop(Outcome(posterior.chains[:, -1], kept.mean(0), kept.std(0), len(kept), passes))
    outcome.about = {"acceptance": posterior.acceptance.mean(0).tolist(), **_mixing(posterior)}
    return outcome


def _mixing(posterior: SampledPosterior) -> dict[str, list[float]]:
    if posterior.chains.shape[1] < 4:
        return {}
    steps = [float(v) for v in posterior.provenance["step_size"]]
    return {"rhat": posterior.rhat.tolist(), "ess": posterior.ess.tolist(), "step_size": steps}


def tiled(problem: InverseProblem, times: int) -> InverseProblem:
    """The same observations so many times over, copy by copy."""
    operator = problem.operator
    if isinstance(operator, Mask) and len(operator.mask) > 1:
        operator = Mask(operator.mask.repeat(times, *[1] * (operator.mask.dim() - 1)), problem.shape)
    elif isinstance(operator, OneEach):
        operator = OneEach(operator.operators, times * operator.times)
    y = problem.y.repeat(times, *[1] * (problem.y.dim() - 1))
    return InverseProblem(problem.given_prior, operator, problem.likelihood, y)


def _points(problem: InverseProblem, settings: Any, draws: int, seed: int) -> Outcome:
    """A point from starts of its own for each draw, all of them in one batch."""
    settings = replace(settings, seed=seed)
    clock = _Clock()
    estimate = PointSolver(settings).solve(tiled(problem, draws))
    points = estimate.x.view(draws, problem.batch, *problem.shape)
    spread = points.std(0) if draws > 1 else torch.zeros_like(points[0])
    passes = draws * settings.restarts * (settings.steps + 1)
    outcome = clock.stop(Outcome(points, points.mean(0), spread, draws, passes))
    outcome.about = {"objective": estimate.objective.view(draws, problem.batch).mean(0).tolist()}
    return outcome


def first_fit(case: Case, precision: str = "bfloat16", shrink: int = 1) -> VariationalSettings:
    """The fit that hmc-noise goes through: svi's, within its budget."""
    found = settings_of("svi", case, "equal", precision, shrink)
    assert isinstance(found, VariationalSettings)
    return found
