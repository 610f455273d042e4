"""The settings of latent optimisation: what is refused, and what the presets state."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from flowinv import Distance, FunctionOperator, Gaussian, InverseProblem, load_prior
from flowinv.likelihoods import Likelihood
from flowinv.solvers import (
    OPTIMIZATION_PRESETS,
    SOLVERS,
    OptimizationSettings,
    PointSolver,
    VariationalSettings,
    catalogue,
    preset_for,
    solve,
)

SHORT = OptimizationSettings(penalty="latent-norm", weight=0.1, learning_rate=0.05, steps=30, restarts=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"misfit": "l3"}, "misfit must be one of l2, l1, likelihood; got 'l3'"),
        ({"penalty": "tv"}, "penalty must be one of"),
        ({"optimizer": "sgd"}, "optimizer must be one of adam, adam-cosine, lbfgs"),
        ({"keep": "first"}, "keep must be one of last, best"),
        ({"steps": 0}, "steps must be positive"),
        ({"restarts": 1.5}, "restarts = 1.5 is not valid: expected int"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"betas": None}, "betas = None is not valid"),
        ({"weight": 0.0}, "does not go with weight 0"),
        ({"penalty": "none"}, "does not go with weight 0.1"),
        ({"init_scale": 0.0}, "restarts from z = 0 are the same"),
        ({"init_scale": -1.0}, "init_scale must be at least 0"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SHORT, **changes)


def test_a_solver_has_a_preset_for_each_task() -> None:
    assert preset_for("solverip", "inpaint-box") == "solverip-inpaint-fast"
    assert preset_for("solverip") == "solverip-deblur-fast"
    assert [preset_for("glowip", t) for t in ("denoise", "superres")] == ["glowip-denoise-fast", "glowip-fast"]
    assert [preset_for("glowip", f"inpaint-{t}") for t in ("box", "bottom")] == ["glowip-inpaint-fast", "glowip-fast"]
    assert all(preset_for(name, "no-such-task") == SOLVERS[name].presets[0] for name in SOLVERS)
    tasks = ("denoise", "deblur", "inpaint-box", "colorize")
    assert all(preset_for(name, task) in SOLVERS[name].presets for name in SOLVERS for task in tasks)
    assert [preset_for("csgm", t) for t in ("denoise", "superres")] == ["solverip-csgm-denoise-fast", "csgm-fast"]


def test_svi_of_large_images_starts_at_the_mode() -> None:
    def preset(prior: str, likelihood: Likelihood, copies: int = 1) -> str:
        flow = load_prior(prior)
        operator = FunctionOperator(lambda x: x.flatten(1).repeat(1, copies))
        y = torch.zeros(1, copies * math.prod(flow.shape))
        return preset_for("svi", problem=InverseProblem(flow, operator, likelihood, y))

    with pytest.warns(UserWarning, match="generalised posterior"):
        squared = Distance(lambda y, prediction: (y - prediction).square().flatten(1).sum(1), 1.0)
    assert preset("mnist", Gaussian(0.1)) == "fast" and preset("faces", Gaussian(0.1)) == "from-laplace"
    assert preset("faces", squared) == "from-point"  # has no standard deviation
    assert preset("faces", Gaussian(0.1), copies=2) == "from-point"  # 6,144 elements of y, a pass of the prior for each


@pytest.mark.parametrize(("prior", "start"), [("mnist", "prior"), ("faces", "laplace")])
def test_chains_go_through_the_fit_that_svi_would_make(prior: str, start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fit(Exception):
        pass

    def fit(settings: VariationalSettings) -> None:
        raise Fit(settings.start)

    monkeypatch.setattr(catalogue, "VariationalSolver", fit)
    flow = load_prior(prior)
    problem = InverseProblem(flow, FunctionOperator(lambda x: x), Gaussian(0.1), torch.zeros(1, *flow.shape))
    with pytest.raises(Fit, match=start):
        solve("hmc-noise", problem)


def test_an_unknown_preset_lists_the_known() -> None:
    with pytest.raises(ValueError, match="csgm-fast"):
        PointSolver("quick")


def test_presets_state_what_the_papers_do() -> None:
    p = OPTIMIZATION_PRESETS
    assert p["csgm"] == OptimizationSettings(
        "l2", "latent-norm", 0.1, init_scale=0.1, restarts=3, learning_rate=0.02, steps=4000
    )
    for name in ("asim", "ivom"):
        assert (p[name].misfit, p[name].penalty, p[name].learning_rate, p[name].steps) == ("l2", "none", 5e-4, 4000)
    assert all(p[name].restarts * p[name].steps <= 1000 for name in ("csgm-fast", "ivom-fast"))
    for name, alpha in (("denoise", 0.05 / 2), ("deblur", 0.02 / 2), ("inpaint", 0.002 / 2), ("colorize", 0.02 / 6)):
        s = p[f"solverip-{name}"]
        assert (s.misfit, s.penalty, s.init_scale, s.learning_rate, s.steps) == ("l1", "likelihood-u", 0.1, 5e-3, 1500)
        assert s.weight == pytest.approx(alpha) and s.betas == (0.9, 0.999) and s.keep == "last"
    for name, gamma, start in (
        ("glowip-denoise", 0.1 / 4, 0.0),
        ("solverip-csgm-denoise", 0.1 / 4, 1.0),
        ("solverip-csgm", 0.01 / 4, 1.0),
        ("solverip-csgm-colorize", 0.01 / 12, 1.0),
        ("glowip", 0.0, 0.0),
    ):
        s = p[name]
        assert (s.misfit, s.penalty) == ("l2", "latent-norm" if gamma else "none") and s.init_scale == start
        assert s.weight == pytest.approx(gamma) and (s.learning_rate, s.steps) == (5e-3, 1500)
    fast = [name for name in p if name.endswith("-fast")]
    assert len(fast) == 15 and all(p[name].restarts * p[name].steps <= 1000 for name in fast)
    for name in set(fast) - {"csgm-fast", "ivom-fast"}:
        own = p[name]
        kind = "solverip-csgm" if "csgm" in name else "glowip" if name.startswith("glowip") else ""
        papers = p[f"{kind}-denoise" if kind and own.weight else name.removesuffix("-fast")]
        same = replace(own, steps=papers.steps, learning_rate=papers.learning_rate, weight=papers.weight)
        assert replace(same, penalty=papers.penalty) == papers and (own.steps, own.learning_rate) == (500, 0.05)
    assert p["glowip-lbfgs"].steps == 20 * 20 and p["glowip-lbfgs-cs"].steps == 30 * 20
    assert (p["map"].weight, p["map"].learning_rate, p["map"].penalty) == (0.5, 0.0015, "likelihood-u")
    assert str(p["csgm"]) == "||A(x) - y||^2 + 0.1 ||z||^2" and str(p["asim"]) == "||A(x) - y||^2"
