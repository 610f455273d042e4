"""Solvers by name: every one runs wherever it is called from, and takes its own settings alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exact_posterior import Exact
from torch import Tensor

from flowinv import PointEstimate
from flowinv.randomness import keyed_generator
from flowinv.solvers import SOLVERS, catalogue, settings_for, solve

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
