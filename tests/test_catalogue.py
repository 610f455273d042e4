"""Solvers by name: every one runs wherever it is called from, and takes its own settings alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from exact_posterior import Exact
from torch import Tensor

from flowinv import PointEstimate
from flowinv.randomness import keyed_generator
from flowinv.solvers import (
    OPTIMIZATION_PRESETS,
    SOLVERS,
    AmortizedSettings,
    AmortizedTrainer,
    Sampler,
    catalogue,
    settings_for,
    solve,
)
from flowinv.tasks import Task

TINY: dict[str, dict[str, Any]] = {
    "svi": {"steps": 3, "draws": 2, "final_draws": 8},
    "ambient": {"steps": 3, "draws": 2, "final_draws": 8},
    "semi-amortized": {"steps": 3, "draws": 2, "final_draws": 8},
    "avi": {"steps": 3, "observations": 2, "draws": 2, "couplings": 2, "hidden": 4, "features": 4},
    "lmc": {"steps": 5, "chains": 4},
    "mala": {"steps": 8, "warmup": 4, "thin": 2},
    "hmc": {"steps": 8, "warmup": 4, "leapfrogs": 2},
    "hmc-noise": {"steps": 8, "warmup": 4, "leapfrogs": 2},
    "pl-mcmc": {"steps": 8, "warmup": 4, "thin": 2},
    **{name: {"steps": 4} for name in ("csgm", "ivom", "solverip", "glowip", "map")},
}
CASES = [
    *((name, None) for name in SOLVERS),
    ("svi", "from-point"),
    ("svi", "from-laplace"),
    ("svi", "gaussian"),
    ("glowip", "glowip-lbfgs"),
]


def answer(name: str, preset: str | None) -> Tensor:
    result = solve(name, Exact((6,), batch=2, dtype=torch.float32).problem, settings_for(name, preset, **TINY[name]))
    return result.x if isinstance(result, PointEstimate) else result.sample(4, keyed_generator(0))


@pytest.mark.parametrize(("name", "preset"), CASES)
def test_gradients_that_the_caller_turned_off_are_no_matter(
    name: str, preset: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tiny(solver: str, of: str | None = None, **changes: Any) -> Any:
        return settings_for(solver, of, **{**TINY[solver], **changes})

    monkeypatch.setattr(catalogue, "settings_for", tiny)  # of the fits and trainings that come first
    expected = answer(name, preset)
    with torch.no_grad():
        found = answer(name, preset)
    assert torch.equal(found, expected) and torch.isfinite(found).all()


@pytest.mark.parametrize(
    ("name", "preset", "field"),
    [
        ("csgm", "map-fast", "misfit is 'likelihood'"),
        ("csgm", "ivom-fast", "penalty is 'none'"),
        ("ivom", "csgm-fast", "penalty is 'latent-norm'"),
        ("solverip", "csgm-fast", "misfit is 'l2'"),
        ("glowip", "solverip-denoise", "misfit is 'l1'"),
        ("map", "csgm", "misfit is 'l2'"),
    ],
)
def test_a_point_solver_does_not_run_under_the_name_of_another(name: str, preset: str, field: str) -> None:
    problem = Exact((6,), batch=2, dtype=torch.float32).problem
    with pytest.raises(ValueError, match=f"these settings are not {name}'s: {field}"):
        solve(name, problem, OPTIMIZATION_PRESETS[preset])


@pytest.mark.parametrize("name", SOLVERS)
def test_every_preset_is_taken_as_settings_too(name: str) -> None:
    for preset in SOLVERS[name].presets:
        settings = settings_for(name, preset)
        assert catalogue._checked(name, settings) is settings


def test_settings_of_a_training_that_does_not_take_place_are_refused() -> None:
    problem = Exact((6,), batch=2, dtype=torch.float32).problem
    task = Task(problem.operator, problem.likelihood, {})
    amortizer = AmortizedTrainer(problem.given_prior, task, AmortizedSettings(**TINY["avi"])).run()
    for settings in ("fast", AmortizedSettings(steps=7)):
        with pytest.raises(ValueError, match="settings are for training, and an amortizer that fits needs none"):
            solve("avi", problem, settings, amortizer=amortizer)
    expected = amortizer.posterior(problem).sample(2, keyed_generator(0))
    for settings in (None, AmortizedSettings(seed=3)):  # a seed is for whatever may come
        found = solve("avi", problem, settings, amortizer=amortizer)
        assert torch.equal(found.sample(2, keyed_generator(0)), expected)


def test_what_is_said_of_costs_is_what_the_defaults_cost() -> None:
    fit, large, chain = settings_for("svi"), settings_for("svi", "from-laplace"), settings_for("hmc")
    ambient = settings_for("ambient")
    passes = f"{fit.draws * fit.steps:,} "
    assert SOLVERS["svi"].costs.startswith(passes) and SOLVERS["ambient"].costs.startswith(passes)
    assert large.draws * large.steps == ambient.draws * ambient.steps == fit.draws * fit.steps
    assert f"{large.start_steps} and one per measured element more" in SOLVERS["svi"].costs
    problem = Exact((6,)).problem
    few = Sampler(replace(chain, chains=1)).solve(problem)
    assert few.provenance["prior_passes"] - 1 == (chain.warmup + chain.steps) * chain.leapfrogs == 4000
    assert SOLVERS["hmc"].costs.startswith("4,000 ")
