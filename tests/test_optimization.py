"""Latent optimisation against closed forms, finite differences, torch's own optimisers and linear programs."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from exact_posterior import Exact
from scipy.optimize import linprog, minimize_scalar
from torch import Tensor

from flowinv import (
    Affine,
    CustomLikelihood,
    Flow,
    Gaussian,
    Identity,
    InverseProblem,
    Laplace,
    Mask,
    MatrixOperator,
    Poisson,
    Quantile,
)
from flowinv.flows import Chain, Elementwise, GlowConfig, build
from flowinv.flows.layers.transforms import Logit
from flowinv.point_estimate import PointEstimate
from flowinv.solvers import OptimizationSettings, PointSolver
from flowinv.solvers import optimization as module
from flowinv.solvers.minimizers import Adam
from flowinv.solvers.progress import Diverged

NEWTON = OptimizationSettings(optimizer="lbfgs", learning_rate=1.0, steps=60)
SHORT = OptimizationSettings(penalty="latent-norm", weight=0.1, learning_rate=0.05, steps=30, restarts=2)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def solve(problem: InverseProblem, settings: OptimizationSettings, **changes) -> PointEstimate:
    return PointSolver(replace(settings, **changes)).solve(problem)


def glow_prior(dtype: torch.dtype = torch.float64, transform=None) -> Flow:
    """A small Glow with weights away from their start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        flow = Flow(build(GlowConfig((1, 4, 4), steps=(2,), hidden=8)), (1, 4, 4), transform).eval()
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=g))
    return flow.to(dtype)


def upper(shape: tuple[int, ...] = (1, 4, 4)) -> Tensor:
    mask = torch.zeros(shape)
    mask[:, : shape[1] // 2] = 1
    return mask


def glow_problem(observations: int = 2, dtype: torch.dtype = torch.float64, transform=None) -> InverseProblem:
    y = normal(observations, 1, 4, 4, seed=2).to(dtype)
    return InverseProblem(glow_prior(dtype, transform), Mask(upper()), Gaussian(0.3), y)


# -- closed forms ----------------------------------------------------------------------------------------------------


def ridge(exact: Exact, weight: float) -> Tensor:
    """argmin ||A (m + L z) - y||^2 + weight ||z||^2, (B, D)."""
    affine = exact.prior.bijection
    root = exact.matrix @ affine.cholesky
    y = exact.problem.operator(exact.prior.decode(torch.zeros(1, *exact.shape, dtype=torch.float64))[0])
    residual = exact.y.flatten(1) - y.flatten(1)
    if residual.shape[1] != len(exact.matrix):  # a mask
        residual = residual @ exact.matrix.T
    size = root.shape[1]
    return residual @ root @ torch.linalg.inv(root.T @ root + weight * torch.eye(size, dtype=torch.float64))


MATRIX = normal(7, 12, seed=5) / 12**0.5


@pytest.mark.parametrize("matrix", [None, MATRIX])
@pytest.mark.parametrize("weight", [0.01, 0.1, 1.0])
def test_squared_error_and_latent_norm_give_the_ridge_solution(matrix, weight: float) -> None:
    exact = Exact((12,), batch=3, matrix=matrix, sigma=0.1)
    estimate = solve(exact.problem, NEWTON, penalty="latent-norm", weight=weight, restarts=2)
    expected = ridge(exact, weight)
    torch.testing.assert_close(estimate.z, expected, atol=1e-6, rtol=0)
    assert (ridge(exact, 2 * weight) - expected).abs().max() > 1e-2
    torch.testing.assert_close(estimate.restarts[0], estimate.restarts[1], atol=1e-9, rtol=0)
    if weight == 0.01:  # sigma^2: the posterior's mode, which is its mean
        torch.testing.assert_close(estimate.z, exact.latent_mean, atol=1e-6, rtol=0)
        torch.testing.assert_close(estimate.x, exact.mean, atol=1e-6, rtol=0)


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_likelihood_misfit_and_penalty_give_the_mode_in_x(weight: float) -> None:
    exact = Exact((12,), batch=2, matrix=MATRIX, sigma=0.1)
    settings = replace(NEWTON, misfit="likelihood", penalty="likelihood", weight=weight, steps=150)
    estimate = PointSolver(settings).solve(exact.problem)
    torch.testing.assert_close(estimate.z, ridge(exact, weight * 0.01), atol=1e-6, rtol=0)
    if weight == 1:
        torch.testing.assert_close(estimate.x, exact.mean, atol=1e-6, rtol=0)
        torch.testing.assert_close(estimate.objective, -exact.problem.log_joint(estimate.x), atol=1e-8, rtol=0)


def test_adam_comes_to_the_same_place() -> None:
    exact = Exact((12,), batch=2, matrix=MATRIX, sigma=0.1)
    settings = OptimizationSettings(penalty="latent-norm", weight=0.01, learning_rate=0.05, steps=600)
    torch.testing.assert_close(PointSolver(settings).solve(exact.problem).z, exact.latent_mean, atol=1e-3, rtol=0)


def log_normal_problem() -> tuple[InverseProblem, list[float]]:
    """x_i log-normal, y = x + noise, and the mode of each p(x_i | y_i), by golden section on the exact density."""
    zero = torch.zeros((), dtype=torch.float64)
    distribution = torch.distributions.LogNormal(zero, zero + 0.5)
    y = torch.tensor([[0.4, 1.0, 2.5]], dtype=torch.float64)
    problem = InverseProblem(Flow(Quantile(distribution), (3,)), Identity(), Gaussian(0.6), y)

    def mode(value: float) -> float:
        def negative(x: float) -> float:
            log_prior = float(distribution.log_prob(torch.tensor(x, dtype=torch.float64)))
            return 0.5 * ((x - value) / 0.6) ** 2 - log_prior

        return float(minimize_scalar(negative, bounds=(1e-3, 5), method="bounded", options={"xatol": 1e-10}).x)

    return problem, [mode(float(v)) for v in y[0]]


def test_the_mode_in_x_of_a_prior_with_a_jacobian_that_varies() -> None:
    problem, modes = log_normal_problem()
    settings = replace(NEWTON, misfit="likelihood", penalty="likelihood", weight=1.0, init_scale=0.1)
    expected = torch.tensor([modes], dtype=torch.float64)
    torch.testing.assert_close(PointSolver(settings).solve(problem).x, expected, atol=1e-6, rtol=0)
    in_z = solve(problem, settings, penalty="latent-norm", weight=0.5)
    assert (in_z.x - expected).abs().min() > 0.02, "the mode in z is another one"


def turned(self, z, inner, outer, original=module._Objective.penalty) -> Tensor:
    return original(self, z, -inner, -outer)


def test_a_log_determinant_of_the_wrong_sign_fails_the_same_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module._Objective, "penalty", turned)
    with pytest.raises(AssertionError, match="not close"):
        test_the_mode_in_x_of_a_prior_with_a_jacobian_that_varies()


def test_absolute_error_with_a_ridge_against_its_closed_form() -> None:
    """min sum |m_i + s_i z_i - y_i| + w z_i^2: the residual's zero, or where the slopes s_i and 2 w z_i balance."""
    scale, mean, weight = torch.tensor([0.5, 1.0, 2.0, 0.1]).double(), normal(4, seed=1), 0.3
    prior = Flow(Affine(mean, torch.diag(scale)), (4,))
    y = 2 * normal(3, 4, seed=2)
    problem = InverseProblem(prior, Identity(), Laplace(1.0), y)
    zero, most = (y - mean) / scale, scale / (2 * weight)
    expected = torch.where(zero.abs() <= most, zero, zero.sign() * most)
    assert 3 <= (expected == zero).sum() <= 9, "both cases occur"
    settings = OptimizationSettings("l1", "latent-norm", weight, learning_rate=6e-3, steps=900)
    estimate = PointSolver(settings).solve(problem)
    torch.testing.assert_close(estimate.z, expected, atol=0.02, rtol=0)
    assert (solve(problem, NEWTON, penalty="latent-norm", weight=weight).z - expected).abs().max() > 0.2


def test_absolute_error_against_a_linear_program() -> None:
    """More measurements than unknowns and no penalty: the program's optimum, which some residuals of 0 mark."""
    affine = Affine(normal(5, seed=2), torch.eye(5, dtype=torch.float64))
    prior, matrix, y = Flow(affine, (5,)), normal(9, 5, seed=3), normal(1, 9, seed=4)
    problem = InverseProblem(prior, MatrixOperator(matrix), Gaussian(1.0), y)
    b, eye = (y[0] - matrix @ affine.mean).numpy(), torch.eye(9, dtype=torch.float64)
    constraints = torch.cat([torch.cat([matrix, -eye], 1), torch.cat([-matrix, -eye], 1)]).numpy()
    bounds = [(None, None)] * 5 + [(0, None)] * 9
    program = linprog([0] * 5 + [1] * 9, constraints, [*b, *(-b)], bounds=bounds)
    settings = OptimizationSettings("l1", learning_rate=6e-3, steps=1200, keep="best")
    estimate = PointSolver(settings).solve(problem)
    assert program.fun <= float(estimate.objective) < 1.002 * program.fun
    squared = solve(problem, replace(NEWTON, steps=200))
    assert float((problem.operator(squared.x) - y).abs().sum()) > 1.01 * program.fun


# -- the objective and its gradient ----------------------------------------------------------------------------------


def written_out(problem: InverseProblem, z: Tensor, settings: OptimizationSettings) -> Tensor:
    """The objective from the problem's own public densities: log p(x) comes by the flow's other direction."""
    x = problem.decode(z)
    squares = (problem.operator(x) - problem.y)[..., problem.observed.expand(problem.y.shape)[0]]
    misfit = {
        "l2": lambda: squares.square().sum(-1),
        "l1": lambda: squares.abs().sum(-1),
        "likelihood": lambda: -problem.log_likelihood(x),
    }[settings.misfit]()
    u = problem.prior.transform.encode(x.flatten(0, 1))[0]
    penalty = {
        "none": lambda: 0 * misfit,
        "latent-norm": lambda: z.square().flatten(2).sum(2),
        "likelihood": lambda: -problem.log_prior(x),
        "likelihood-u": lambda: -problem.prior.log_prob_u(u).view(misfit.shape),
    }[settings.penalty]()
    return misfit + settings.weight * penalty


def check_gradient(settings: OptimizationSettings) -> None:
    problem = glow_problem(2, transform=Logit())
    run = module._Run(problem, settings)
    z = run.z.clone().requires_grad_()
    value = sum(run.objective.terms(z).values())
    torch.testing.assert_close(value, written_out(problem, z, settings), atol=1e-8, rtol=1e-8)
    (gradient,) = torch.autograd.grad(value.sum(), z)
    step = 1e-6
    for r, b, place in ((0, 0, (0, 1, 2)), (1, 1, (0, 3, 3)), (0, 1, (0, 0, 0))):
        move = torch.zeros_like(run.z)
        move[(r, b, *place)] = step
        high, low = (written_out(problem, run.z + s * move, settings) for s in (1, -1))
        numeric = (high - low) / (2 * step)
        assert float(gradient[(r, b, *place)]) == pytest.approx(float(numeric[r, b]), rel=1e-5, abs=1e-6)
        others = numeric.clone()
        others[r, b] = 0
        assert not others.any(), "an observation's objective is its own"


OBJECTIVES = [
    OptimizationSettings(misfit, penalty, weight=0.0 if penalty == "none" else 0.7, restarts=2)
    for misfit in ("l2", "l1", "likelihood")
    for penalty in ("none", "latent-norm", "likelihood", "likelihood-u")
]


@pytest.mark.parametrize("settings", OBJECTIVES, ids=lambda s: f"{s.misfit} {s.penalty}")
def test_objective_and_gradient_through_a_nonlinear_flow(settings) -> None:
    check_gradient(settings)


def test_a_log_determinant_of_the_wrong_sign_fails_the_gradient_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module._Objective, "penalty", turned)
    for penalty in ("likelihood", "likelihood-u"):
        with pytest.raises(AssertionError):
            check_gradient(OptimizationSettings("l2", penalty, weight=0.7, restarts=2))


def test_what_is_not_observed_does_not_count() -> None:
    problem = glow_problem(1)
    changed = InverseProblem(problem.given_prior, problem.operator, problem.likelihood, problem.y + 5 * (1 - upper()))
    for misfit in ("l2", "l1", "likelihood"):
        assert torch.equal(solve(problem, SHORT, misfit=misfit).z, solve(changed, SHORT, misfit=misfit).z)


# -- observations and restarts ---------------------------------------------------------------------------------------


def elementwise_problem(observations: int = 4) -> InverseProblem:
    """A nonlinear prior whose arithmetic knows no batch (an image fills whole vector registers), a mask for each."""
    layer = Elementwise((1, 8, 8)).double()
    with torch.no_grad():
        layer.raw_scale.copy_(0.5 * normal(1, 8, 8, seed=6))
        layer.shift.copy_(normal(1, 8, 8, seed=7))
    prior = Flow(Chain([Logit(), layer]), (1, 8, 8), support=(0.0, 1.0))
    masks = torch.rand(observations, 1, 8, 8, generator=torch.Generator().manual_seed(8)) < 0.5
    y = torch.rand(observations, 1, 8, 8, generator=torch.Generator().manual_seed(9)).double()
    return InverseProblem(prior, Mask(masks, (1, 8, 8)), Gaussian(0.1), y * masks)


def one_of(problem: InverseProblem, b: int) -> InverseProblem:
    mask = Mask(problem.operator.mask[b : b + 1], problem.shape)
    return InverseProblem(problem.given_prior, mask, problem.likelihood, problem.y[b : b + 1])


BATCHED = {
    "adam": replace(SHORT, steps=80),
    "adam-cosine": replace(SHORT, optimizer="adam-cosine", steps=40),
    "adam-likelihood": replace(SHORT, penalty="likelihood", misfit="l1", steps=50),
    "adam-early": replace(SHORT, steps=600, early_stop=True, window=20, tolerance=1e-3),
    "lbfgs": replace(SHORT, optimizer="lbfgs", learning_rate=1.0, steps=25, keep="best"),
    "lbfgs-early": replace(SHORT, optimizer="lbfgs", learning_rate=0.5, steps=90, early_stop=True, window=4),
}


def agree_exactly(settings: OptimizationSettings) -> PointEstimate:
    problem = elementwise_problem()
    together = PointSolver(settings).solve(problem)
    for b in range(problem.batch):
        alone = solve(one_of(problem, b), settings, first=b)
        assert torch.equal(alone.z[0], together.z[b])
        assert torch.equal(alone.x[0], together.x[b])
        assert torch.equal(alone.restarts[:, 0], together.restarts[:, b])
        assert torch.equal(alone.objective[0], together.objective[b])
        assert alone.provenance["steps_of_each"][0] == together.provenance["steps_of_each"][b]
        steps = alone.provenance["steps_of_each"][0]
        ours, theirs = (t.trace["objective"][:steps] for t in (alone, together))
        assert [row[0] for row in ours] == [row[b] for row in theirs]
    return together


@pytest.mark.parametrize("name", BATCHED)
def test_observations_solved_together_are_exactly_those_solved_alone(name: str) -> None:
    agree_exactly(BATCHED[name])


def test_early_stopping_ends_observations_one_by_one_near_the_optimum() -> None:
    settings = BATCHED["adam-early"]
    estimate = PointSolver(settings).solve(elementwise_problem())
    ended = estimate.provenance["steps_of_each"]
    assert len(set(ended)) > 1 and max(ended) < settings.steps and estimate.provenance["steps"] < settings.steps
    full = solve(elementwise_problem(), settings, early_stop=False)
    assert ((estimate.objective - full.objective) < 2e-2 * full.objective.abs()).all()
    eager = solve(elementwise_problem(), settings, tolerance=0.5)
    assert not ((eager.objective - full.objective) < 2e-2 * full.objective.abs()).all()


def test_a_scale_shared_between_observations_fails_the_same_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def shared(self, z: Tensor, grad: Tensor, value: Tensor, original=Adam.step) -> Tensor:
        return original(self, z, grad / grad.norm(), value)

    monkeypatch.setattr(Adam, "step", shared)
    with pytest.raises(AssertionError):
        agree_exactly(replace(BATCHED["adam"], steps=5))


def test_observations_of_a_coupling_flow_are_those_solved_alone_up_to_rounding() -> None:
    both = glow_problem(2)
    alone = InverseProblem(both.given_prior, both.operator, both.likelihood, both.y[1:])
    torch.testing.assert_close(solve(alone, SHORT, first=1).z[0], PointSolver(SHORT).solve(both).z[1])


def test_starts_are_scaled_and_their_own_for_each_observation_restart_and_seed() -> None:
    problem = glow_problem(3)
    z = module._Run(problem, replace(SHORT, init_scale=0.1)).z
    assert z.shape == (2, 3, 1, 4, 4)
    flat = z.flatten(0, 1).flatten(1)
    assert torch.cdist(flat, flat).add(torch.eye(6)).min() > 0.1
    assert 0.07 < float(flat.std()) < 0.13
    other = module._Run(problem, replace(SHORT, init_scale=0.1, seed=1)).z
    assert not torch.equal(other, z)
    assert not module._Run(problem, replace(SHORT, init_scale=0.0, restarts=1)).z.any()


def two_valleys() -> InverseProblem:
    """|x| is observed, x ~ N(.4, 1): two minima of the penalised error, the one at x > 0 the lower."""
    prior = Flow(Affine(torch.full((1,), 0.4).double(), torch.ones(1, 1).double()), (1,))
    return InverseProblem(prior, torch.abs, Gaussian(0.1), torch.full((4, 1), 1.0).double())


def test_the_restart_with_the_lowest_objective_is_kept() -> None:
    settings = OptimizationSettings(
        penalty="latent-norm", weight=0.01, restarts=8, learning_rate=0.03, steps=400, init_scale=2.0
    )
    problem = two_valleys()
    estimate = PointSolver(settings).solve(problem)
    assert (estimate.x > 0).all() and estimate.restarts.shape == (8, 4)
    assert torch.equal(estimate.objective, estimate.restarts.amin(0))
    assert (estimate.restarts.amax(0) > 1.5 * estimate.objective).all(), "some restarts end in the other valley"
    single = solve(problem, settings, restarts=1)
    assert (single.x < 0).any()


def test_the_best_iterate_is_kept_where_that_is_asked_for() -> None:
    problem = glow_problem(2)
    wild = replace(SHORT, learning_rate=1.5, steps=25)
    last, best = (solve(problem, wild, keep=keep) for keep in ("last", "best"))
    assert (best.objective <= last.objective).all() and (best.objective < 0.9 * last.objective).any()
    lowest = torch.tensor(best.trace["objective"], dtype=torch.float64).amin(0)
    torch.testing.assert_close(best.objective, torch.minimum(lowest, last.objective))
    torch.testing.assert_close(
        module._Objective(problem, wild, problem.prior).terms(best.z[None])["the misfit"][0], best.misfit
    )


# -- behaviour -------------------------------------------------------------------------------------------------------


def test_solving_changes_nothing_it_was_given() -> None:
    problem = glow_problem()
    before = {k: v.clone() for k, v in problem.given_prior.state_dict().items()}
    y, state = problem.y.clone(), torch.get_rng_state()
    trainable = [p.requires_grad for p in problem.given_prior.parameters()]
    PointSolver(SHORT).solve(problem)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(problem.y, y)
    assert [p.requires_grad for p in problem.given_prior.parameters()] == trainable
    assert all(torch.equal(v, before[k]) for k, v in problem.given_prior.state_dict().items())
    assert all(p.grad is None for p in problem.prior.parameters())


def test_a_caller_that_turned_gradients_off_gets_the_same() -> None:
    problem = glow_problem()
    expected = PointSolver(SHORT).solve(problem)
    with torch.no_grad():
        assert torch.equal(PointSolver(SHORT).solve(problem).z, expected.z)


def test_an_operator_with_weights_gets_no_gradients_and_one_without_a_gradient_is_refused() -> None:
    problem = glow_problem(dtype=torch.float32)
    net = torch.nn.Conv2d(1, 1, 3, padding=1)
    PointSolver(SHORT).solve(InverseProblem(problem.given_prior, net, Gaussian(0.3), problem.y))
    assert all(p.grad is None for p in net.parameters())
    cut = InverseProblem(problem.given_prior, lambda x: x.detach(), Gaussian(0.3), problem.y)
    with pytest.raises(ValueError, match="no gradient"):
        PointSolver(SHORT).solve(cut)


@pytest.mark.parametrize("name", ["adam", "adam-cosine", "adam-early", "lbfgs", "lbfgs-early"])
def test_a_resumed_run_is_the_unbroken_one(name: str, tmp_path) -> None:
    problem, settings = elementwise_problem(), BATCHED[name]
    whole = PointSolver(settings).solve(problem)

    def interrupt(p) -> None:
        if p.step == 17:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        PointSolver(settings).solve(problem, tmp_path / "run", interrupt)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["step"] == 17
    resumed = PointSolver(settings).solve(problem, tmp_path / "run")
    assert torch.equal(resumed.z, whole.z) and torch.equal(resumed.restarts, whole.restarts)
    assert resumed.trace == whole.trace
    again = PointSolver(settings).solve(problem, tmp_path / "run")
    assert torch.equal(again.z, whole.z)


def test_a_checkpoint_of_another_problem_or_of_other_settings_is_refused(tmp_path) -> None:
    PointSolver(SHORT).solve(glow_problem(), tmp_path / "run")
    other = glow_problem()
    other.y[0, 0, 0, 0] += 1
    with pytest.raises(ValueError, match="another problem"):
        PointSolver(SHORT).solve(other, tmp_path / "run")
    with pytest.raises(ValueError, match="other settings"):
        solve_into = replace(SHORT, weight=0.2)
        PointSolver(solve_into).solve(glow_problem(), tmp_path / "run")


def test_a_term_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state() -> None:
    problem = glow_problem()
    calls: list[int] = []

    def log_prob(y: Tensor, prediction: Tensor) -> Tensor:
        calls.append(1)
        value = -0.5 * ((y - prediction) / 0.3).square().flatten(-3).sum(-1)
        bad = torch.zeros_like(value)
        bad[..., 1] = float("nan")
        return value + bad if len(calls) == 12 else value

    settings = replace(SHORT, misfit="likelihood")
    bad = InverseProblem(problem.given_prior, problem.operator, CustomLikelihood(log_prob), problem.y)
    calls.clear()
    with pytest.raises(Diverged, match="step 11: the misfit of observation 1 is not finite") as caught:
        PointSolver(settings).solve(bad)
    calls.clear()
    stopped = solve(bad, settings, steps=10)
    assert caught.value.step == 11
    assert torch.equal(caught.value.result.z, stopped.z), (
        "the point after 10 steps, the last that was seen to be finite"
    )
    assert torch.isfinite(caught.value.result.objective).all()


def test_a_restart_that_is_lost_leaves_the_others_alone() -> None:
    problem = glow_problem()
    calls: list[int] = []
    lose: list[int] = []

    def log_prob(y: Tensor, prediction: Tensor) -> Tensor:
        calls.append(1)
        value = -0.5 * ((y - prediction) / 0.3).square().flatten(-3).sum(-1)
        bad = torch.zeros_like(value)
        if len(calls) == 12 and lose:
            bad[lose[0], 1] = float("nan")  # (restarts, observations)
        return value + bad

    settings = replace(SHORT, misfit="likelihood", restarts=2, steps=20)
    given = InverseProblem(problem.given_prior, problem.operator, CustomLikelihood(log_prob), problem.y)
    whole = PointSolver(settings).solve(given)
    kept = int(whole.restarts[:, 1].argmin())
    for loser in (1 - kept, kept):
        calls.clear()
        lose[:] = [loser]
        found = PointSolver(settings).solve(given)
        assert torch.equal(found.z[0], whole.z[0]) and torch.isfinite(found.objective).all()
        assert torch.equal(found.z[1], whole.z[1]) == (loser != kept)
        assert torch.equal(found.restarts[1 - loser, 1], whole.restarts[1 - loser, 1])
        assert torch.isfinite(torch.tensor(found.trace["objective"])).all()


def test_counts_are_not_compared_with_intensities() -> None:
    prior = Flow(Affine(torch.full((3,), 5.0).double(), torch.eye(3).double()), (3,))
    y = torch.tensor([[2.0, 0.0, 9.0]]).double()
    for gain, counts in ((0.5, True), (1.0, True), (1.0, False)):
        problem = InverseProblem(prior, Identity(), Poisson(gain, counts=counts, background=0.1), y)
        assert torch.isfinite(solve(problem, SHORT, misfit="likelihood").objective).all()
        if gain == 1:
            assert torch.isfinite(PointSolver(SHORT).solve(problem).objective).all()
            continue
        with pytest.raises(ValueError, match="y holds counts and A"):
            PointSolver(SHORT).solve(problem)
    mixed = Poisson(torch.tensor([[1.0, 0.5, 1.0]]).double(), counts=True, background=0.1)
    with pytest.raises(ValueError, match="y holds counts and A"):
        PointSolver(SHORT).solve(InverseProblem(prior, Identity(), mixed, y))


def test_steps_that_grow_without_bound_are_reported() -> None:
    exact = Exact((12,), batch=2, matrix=MATRIX, sigma=0.1)
    with pytest.raises(Diverged, match="is not finite") as caught:
        solve(exact.problem, OptimizationSettings(learning_rate=1e200, steps=50))
    assert isinstance(caught.value.result, PointEstimate) and torch.isfinite(caught.value.result.z).all()


def test_bf16_steps_but_reports_in_full_precision() -> None:
    problem = glow_problem(dtype=torch.float32)
    settings = replace(SHORT, steps=60, keep="best")
    full, half = (solve(problem, settings, bf16=b) for b in (False, True))
    assert half.z.dtype == torch.float32 and not torch.equal(half.z, full.z)
    exact = module._Objective(problem, settings, problem.prior).terms(half.z[None])
    torch.testing.assert_close(half.objective, sum(exact.values())[0])
    rough = module._Objective(problem, settings, problem.prior.frozen(bf16=True)).terms(half.z[None])
    assert not torch.equal(half.objective, sum(rough.values())[0])
    assert ((half.objective - full.objective).abs() < 0.1 * full.objective).all()


def test_progress_tells_the_objective() -> None:
    seen: list = []
    estimate = PointSolver(SHORT).solve(glow_problem(), report=seen.append)
    assert [p.step for p in seen] == list(range(1, SHORT.steps + 1)) and seen[0].total == SHORT.steps
    assert {p.label for p in seen} == {"objective"} and seen[-1].value < seen[0].value
    assert len(estimate.trace["objective"]) == len(estimate.trace["step"]) == SHORT.steps
    assert len(estimate.trace["objective"][0]) == 2


# -- what leaves the finite numbers, and where runs end ---------------------------------------------------------------


def steep(start: float = 0.1) -> InverseProblem:
    """exp(20 x) = 1e4 in float32: whole quasi-Newton steps from near 0 overflow."""
    prior = Flow(Affine(torch.zeros(2), torch.eye(2)), (2,))
    return InverseProblem(prior, lambda x: torch.exp(20 * x), Gaussian(1.0), torch.full((1, 2), 1e4))


def test_a_step_of_lbfgs_beyond_the_finite_numbers_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = OptimizationSettings(optimizer="lbfgs", learning_rate=1.0, steps=200, keep="best", init_scale=0.1)
    found = PointSolver(settings).solve(steep())
    torch.testing.assert_close(found.x, torch.full((1, 2), math.log(1e4) / 20), atol=1e-4, rtol=0)
    assert torch.isfinite(torch.tensor(found.trace["objective"])).all()
    monkeypatch.setattr(module, "_HALVINGS", 0)
    with pytest.raises(Diverged, match="the misfit of observation 0 is not finite"):
        PointSolver(settings).solve(steep())


def test_a_start_that_is_not_finite_leaves_nothing_to_keep() -> None:
    prior = Flow(Affine(torch.zeros(6).double(), torch.eye(6).double()), (6,))
    problem = InverseProblem(prior, lambda x: (x - 9).log(), Gaussian(1.0), torch.ones(1, 6).double())
    for optimizer in ("adam", "lbfgs"):
        with pytest.raises(Diverged, match="is not finite at the start: check y and the operator") as caught:
            PointSolver(replace(SHORT, optimizer=optimizer, restarts=1)).solve(problem)
        assert caught.value.result is None


def test_lbfgs_never_hands_over_a_trial_that_it_would_take_back() -> None:
    problem = glow_problem(2)
    for steps in (10, 17, 25):
        settings = replace(SHORT, optimizer="lbfgs", learning_rate=1.0, steps=steps)
        last, best = (PointSolver(replace(settings, keep=keep)).solve(problem) for keep in ("last", "best"))
        assert torch.equal(last.objective, best.objective)


def test_a_constant_in_the_objective_does_not_change_where_a_run_ends() -> None:
    def problem(constant: float) -> InverseProblem:
        def log_prob(y: Tensor, prediction: Tensor) -> Tensor:
            return -(y - prediction).square().sum(-1) - constant

        prior = Flow(Affine(torch.zeros(6).double(), torch.eye(6).double()), (6,))
        return InverseProblem(prior, Identity(), CustomLikelihood(log_prob), 2 + normal(1, 6))

    settings = OptimizationSettings("likelihood", learning_rate=0.01, steps=3000, early_stop=True, window=20)
    found = [PointSolver(settings).solve(problem(constant)) for constant in (0.0, 1e4, -1e4)]
    start = float(torch.tensor(found[0].trace["objective"])[:20].mean())
    assert len({tuple(f.provenance["steps_of_each"]) for f in found}) == 1
    assert found[0].provenance["steps"] < 3000 and float(found[0].objective) < 0.01 * start
