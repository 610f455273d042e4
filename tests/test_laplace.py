"""The Laplace start against closed forms and a Jacobian by automatic differentiation, and what it refuses."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from exact_posterior import Exact
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
    Posterior,
    Quantile,
)
from flowinv.families.family import composed_at
from flowinv.families.pregenerator import LowerTriangular, PreGeneratorConfig
from flowinv.flows import Chain, GlowConfig, build
from flowinv.solvers import PRESETS, OptimizationSettings, PointSolver, VariationalSolver
from flowinv.solvers import starts as module
from flowinv.solvers.laplace import LARGEST, laplace_factor
from flowinv.solvers.starts import LAPLACE_SCALE

QUICK = replace(
    PRESETS["from-laplace"],
    pregenerator=PreGeneratorConfig(steps=2, hidden=8),
    draws=4,
    steps=30,
    final_draws=64,
    early_stop=False,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def glow_problem() -> InverseProblem:
    """Two images of a bent prior, a mask and a noise scale for each."""
    flow = Flow(build(GlowConfig((2, 4, 4), steps=(2,), hidden=8)), (2, 4, 4)).double().eval()
    for i, parameter in enumerate(flow.parameters()):
        parameter.data += 0.15 * normal(*parameter.shape, seed=i)
    mask = (normal(2, 2, 4, 4, seed=50) > 0).double()
    sigma = 0.1 + torch.rand(2, 2, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return InverseProblem(flow, Mask(mask, (2, 4, 4)), Gaussian(sigma), normal(2, 2, 4, 4, seed=3) * mask)


@pytest.mark.parametrize("chunk", [1, 4, 32])
def test_for_a_gaussian_it_is_the_posterior_covariance_wherever_it_is_taken(chunk: int) -> None:
    exact = Exact(batch=2)
    factor = laplace_factor(exact.problem, normal(2, 12), chunk=chunk)
    for b in range(2):
        torch.testing.assert_close(factor[b] @ factor[b].T, exact.latent_covariance, atol=1e-10, rtol=1e-8)
        assert torch.equal(factor[b], factor[b].tril())


def test_through_a_bent_flow_with_masks_and_noise_of_each_observation() -> None:
    problem, z = glow_problem(), 0.7 * normal(2, 2, 4, 4, seed=9)
    factor = laplace_factor(problem, z, chunk=5)
    sigma = problem.likelihood.sigma
    for b in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda v: problem.prior.decode(v[None])[0][0].flatten(), z[b])
        jacobian = (
            jacobian.flatten(1)[problem.observed[b].flatten()]
            / sigma[b].flatten()[problem.observed[b].flatten()][:, None]
        )
        precision = torch.eye(32, dtype=torch.float64) + jacobian.T @ jacobian
        torch.testing.assert_close(factor[b] @ factor[b].T, precision.inverse(), atol=1e-9, rtol=1e-7)
    other = InverseProblem(problem.prior, problem.operator, Gaussian(0.3), problem.y)
    wrong = laplace_factor(other, z)[0]
    assert not torch.allclose(wrong @ wrong.T, factor[0] @ factor[0].T, rtol=0.1), "the noise of each element counts"


def test_masks_of_their_own_cost_no_more_than_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backward passes are as many as one observation has elements, not as many as all of them have together."""
    calls, grad = [], torch.autograd.grad

    def counted(*args, **more):
        calls.append(1)
        return grad(*args, **more)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    shape, y = (1, 4, 4), normal(2, 1, 4, 4)
    masks = torch.zeros(2, *shape)
    masks[0, :, :2], masks[1, :, 2:] = 1, 1
    prior = Flow(Affine(torch.zeros(shape).double(), (torch.eye(16) + 0.1).tril().double()), shape)
    z = torch.zeros(2, *shape).double()
    both = laplace_factor(InverseProblem(prior, Mask(masks), Gaussian(0.3), y), z, chunk=4)
    assert len(calls) == 8 // 4
    for b in range(2):
        alone = laplace_factor(InverseProblem(prior, Mask(masks[b]), Gaussian(0.3), y[b : b + 1]), z[b : b + 1])
        torch.testing.assert_close(both[b], alone[0])


def test_noise_that_grows_with_the_signal_is_taken_at_the_point() -> None:
    """Counts y / g with variance rate / g: the precision of y is g / rate."""
    prior = Flow(
        Quantile(torch.distributions.LogNormal(torch.zeros(3).double(), 0.5)), (3,), support=(0.0, float("inf"))
    )
    problem = InverseProblem(prior, Identity(), Poisson(0.2), torch.ones(1, 3).double())
    z = normal(1, 3)
    rate = prior.decode(z)[0][0]
    slope = 0.5 * rate
    found = laplace_factor(problem, z)[0]
    std = problem.likelihood.std(rate[None])[0]
    torch.testing.assert_close(found, torch.diag((1 + slope.square() / std.square()).rsqrt()))
    counts = InverseProblem(prior, Identity(), Poisson(0.2, counts=True), torch.full((1, 3), 5.0).double())
    torch.testing.assert_close(laplace_factor(counts, z)[0], found)


def test_noise_without_a_count_or_without_width() -> None:
    """At rate 0 the information counts as that of one count; what is not finite is refused in one line."""
    prior = Flow(Affine(torch.zeros(3).double(), torch.eye(3).double()), (3,))
    dark = InverseProblem(prior, Identity(), Poisson(0.2), torch.zeros(1, 3).double())
    z = torch.tensor([[0.0, -1.0, 0.8]], dtype=torch.float64)
    expected = torch.tensor([1 + 1 / 0.2**2, 1.0, 1 + 1 / (0.2 * 0.8)], dtype=torch.float64).rsqrt()
    torch.testing.assert_close(laplace_factor(dark, z)[0], torch.diag(expected))
    sharp = InverseProblem(prior, Identity(), Gaussian(1e-200), torch.zeros(1, 3).double())
    with pytest.raises(ValueError, match=r"needs a finite Fisher information of A\(x\): at the point .*Gaussian"):
        laplace_factor(sharp, z)


def test_a_heavy_tailed_noise_counts_by_its_information_not_by_its_variance() -> None:
    """Laplace(b): the approximate posterior of the mean of n values is N(., b^2 / n), of half the variance-based width squared."""
    prior = Flow(Affine(torch.zeros(1).double(), 100 * torch.eye(1).double()), (1,))
    problem = InverseProblem(
        prior, MatrixOperator(torch.ones(50, 1).double()), Laplace(0.3), torch.zeros(1, 50).double()
    )
    found = 100 * float(laplace_factor(problem, torch.zeros(1, 1).double()))
    assert found == pytest.approx(0.3 / 50**0.5, rel=1e-4)


def test_a_fit_begins_at_the_narrowed_approximation() -> None:
    """For a Gaussian the mode is the posterior mean; before the first step q is N(mean, .7^2 covariance)."""
    exact = Exact()
    still = replace(PRESETS["from-laplace"], start_steps=1500, steps=1, learning_rate=1e-12, final_draws=64)
    posterior = VariationalSolver(still).solve(exact.problem)
    x = posterior.sample(6000, torch.Generator().manual_seed(0))[:, 0].double()
    expected = LAPLACE_SCALE**2 * exact.covariance
    variance = expected.diagonal()
    assert (x.mean(0) - exact.mean[0]).abs().max() < 5 * (variance.max() / 6000) ** 0.5
    deviation = (torch.cov(x.T) - expected).square().sum()
    assert deviation < 2 * (variance.sum().square() + expected.square().sum()) / 6000
    assert (torch.cov(x.T) - exact.covariance).square().sum() > deviation * 20, "the check tells .7 from 1"


def test_a_fit_reaches_the_closed_form_and_is_read_back(tmp_path) -> None:
    exact = Exact(batch=2)
    posterior = VariationalSolver(replace(QUICK, draws=32, steps=400, final_draws=2000, start_steps=500)).solve(
        exact.problem
    )
    gap = exact.log_evidence - posterior.elbo.double()
    assert (gap > -4 * posterior.elbo_se - 1e-3).all() and (gap < 0.1 + 4 * posterior.elbo_se).all()
    found = Posterior.load(posterior.save(tmp_path / "p"))
    x = posterior.sample(5, torch.Generator().manual_seed(4))
    assert torch.equal(found.sample(5, torch.Generator().manual_seed(4)), x)
    torch.testing.assert_close(found.log_prob(x), posterior.log_prob(x))


def test_what_a_short_fit_has_no_use_for_stays() -> None:
    problem = glow_problem()
    posterior = VariationalSolver(QUICK).solve(problem)
    affine = posterior.family.map.bijections[1].layers[0]
    assert isinstance(affine, LowerTriangular)
    mode = (
        VariationalSolver(replace(QUICK, steps=1, learning_rate=1e-12))
        .solve(problem)
        .family.map.bijections[1]
        .layers[0]
    )
    assert torch.equal(affine.lower, mode.lower) and affine.lower.abs().max() > 1e-3
    assert not torch.equal(affine.shift, mode.shift) and not torch.equal(affine.log_diagonal, mode.log_diagonal)


def test_a_fit_goes_on_where_it_was_interrupted(tmp_path) -> None:
    problem, settings = glow_problem(), replace(QUICK, start_steps=20)
    whole = VariationalSolver(settings).solve(problem)

    def stop(p) -> None:
        if (p.step, p.total) == (12, 30):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        VariationalSolver(settings).solve(problem, tmp_path / "fit", stop)
    resumed = VariationalSolver(settings).solve(problem, tmp_path / "fit")
    assert torch.equal(resumed.mean(16), whole.mean(16)) and resumed.trace == whole.trace


@pytest.mark.parametrize("family", ["coupling", "gaussian"])
def test_a_fit_goes_on_from_its_checkpoint_alone(family: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither mode nor factor is computed again: their last bits differ with the threads, and they cost most of the time."""
    problem = glow_problem()
    settings = replace(QUICK, start_steps=20, pregenerator=PreGeneratorConfig(family, steps=2, hidden=8))
    whole = VariationalSolver(settings).solve(problem)

    def stop(p) -> None:
        if (p.step, p.total) == (12, 30):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        VariationalSolver(settings).solve(problem, tmp_path / "fit", stop)
    spent = json.loads((tmp_path / "fit" / "config.json").read_text())["state"]["seconds"]
    estimate = PointSolver(OptimizationSettings("l1", steps=4)).solve(problem)

    def never(*_, **__):
        raise AssertionError("computed again")

    with monkeypatch.context() as patched:
        patched.setattr(module, "laplace_factor", never)
        patched.setattr(PointSolver, "solve", never)
        with pytest.raises(ValueError, match="another problem or of other settings"):
            VariationalSolver(settings).solve(problem, tmp_path / "fit", start=estimate)
        with pytest.raises(ValueError, match="another problem or of other settings"):
            VariationalSolver(replace(settings, start="point")).solve(problem, tmp_path / "fit")
        resumed = VariationalSolver(settings).solve(problem, tmp_path / "fit")
    assert torch.equal(resumed.mean(16), whole.mean(16)) and resumed.trace == whole.trace
    assert resumed.family.fingerprint() == whole.family.fingerprint()
    assert resumed.provenance["started_from"] == whole.provenance["started_from"] == "laplace"
    assert resumed.provenance["seconds"] > spent


def test_a_fit_around_a_given_point_goes_on_with_that_point_alone(tmp_path) -> None:
    problem = glow_problem()
    estimate, other = (
        PointSolver(OptimizationSettings("l1", steps=n, learning_rate=0.05)).solve(problem) for n in (20, 21)
    )
    whole = VariationalSolver(QUICK).solve(problem, tmp_path / "fit", start=estimate)
    again = VariationalSolver(QUICK).solve(problem, tmp_path / "fit", start=estimate)
    assert again.trace == whole.trace and again.family.fingerprint() == whole.family.fingerprint()
    for start in (other, None):
        with pytest.raises(ValueError, match="another problem or of other settings"):
            VariationalSolver(QUICK).solve(problem, tmp_path / "fit", start=start)
    with pytest.raises(ValueError, match="a family to start from was given, and start = 'laplace' asks for another"):
        VariationalSolver(QUICK).solve(problem, tmp_path / "fit", start=copy.deepcopy(whole.family).requires_grad_())


def test_gradients_that_the_caller_turned_off_are_turned_on() -> None:
    problem, z = glow_problem(), normal(2, 2, 4, 4)
    with torch.no_grad():
        found = laplace_factor(problem, z)
    assert torch.equal(found, laplace_factor(problem, z)) and not found.requires_grad


def test_the_mode_can_be_sought_with_wider_noise() -> None:
    exact = Exact()
    still = replace(QUICK, start_steps=1500, steps=1, learning_rate=1e-12, start_widening=10.0)
    posterior = VariationalSolver(still).solve(exact.problem)
    wide = InverseProblem(exact.prior, exact.problem.operator, Gaussian(1.0), exact.y)
    factor = laplace_factor(wide, exact.latent_mean)[0]
    mode = (factor @ factor.T) @ torch.linalg.solve(exact.latent_covariance, exact.latent_mean[0]) / 100
    # the wide problem's information vector is a hundredth of the problem's own
    shift = posterior.family.map.bijections[0].layers[0].shift.double()
    torch.testing.assert_close(shift, mode, atol=2e-3, rtol=0)
    assert (shift - exact.latent_mean[0]).abs().max() > 0.05


def test_a_fit_starts_around_a_point_estimate_that_it_is_given() -> None:
    problem = glow_problem()
    estimate = PointSolver(OptimizationSettings("l1", steps=40, learning_rate=0.05)).solve(problem)
    posterior = VariationalSolver(replace(QUICK, steps=1, learning_rate=1e-12)).solve(problem, start=estimate)
    factor = LAPLACE_SCALE * laplace_factor(problem, estimate.z)
    for b, bijection in enumerate(posterior.family.map.bijections):
        torch.testing.assert_close(bijection.layers[0].shift, estimate.z[b].flatten())
        torch.testing.assert_close(bijection.layers[0].lower, factor[b].tril(-1))
    with pytest.raises(ValueError, match="set start to 'point' or 'laplace'; it is 'prior'"):
        VariationalSolver(replace(QUICK, start="prior")).solve(problem, start=estimate)
    exact = Exact(batch=2)
    with pytest.raises(ValueError, match="of another prior"):
        VariationalSolver(QUICK).solve(exact.problem, start=estimate)
    other = InverseProblem(problem.given_prior, Identity(), Gaussian(0.1), problem.y + 0.1)
    with pytest.raises(ValueError, match="of other observations"):
        VariationalSolver(QUICK).solve(other, start=estimate)
    whole = InverseProblem(problem.given_prior, Identity(), Gaussian(0.1), problem.y)
    with pytest.raises(ValueError, match="of another operator"):
        VariationalSolver(QUICK).solve(whole, start=estimate)
    wider = InverseProblem(problem.given_prior, problem.operator, Gaussian(0.2), problem.y)
    VariationalSolver(replace(QUICK, steps=1)).solve(wider, start=estimate)
    with pytest.raises(TypeError, match="start is a Family or a PointEstimate, got str"):
        VariationalSolver(QUICK).solve(problem, start="laplace")
    one = InverseProblem(problem.given_prior, Identity(), Gaussian(0.1), problem.y[:1])
    with pytest.raises(ValueError, match="of 2 observations, the problem has 1"):
        VariationalSolver(QUICK).solve(one, start=estimate)


def test_what_it_cannot_start_from_is_refused() -> None:
    exact = Exact()
    distance = CustomLikelihood(lambda y, p: -(y - p).square().flatten(-1).sum(-1))
    custom = InverseProblem(exact.prior, exact.problem.operator, distance, exact.y)
    with pytest.raises(ValueError, match="needs the Fisher information of A"):
        laplace_factor(custom, normal(1, 12))
    size = LARGEST + 1
    big = InverseProblem(Flow(Chain([]), (size,)), Identity(), Gaussian(0.1), torch.zeros(1, size))
    with pytest.raises(ValueError, match=f"at most {LARGEST}, here it is {size}"):
        laplace_factor(big, torch.zeros(1, size))
    for problem in (custom, big):
        with pytest.raises(ValueError, match="Laplace start"):  # before the search of the mode, not after it
            VariationalSolver(QUICK).solve(problem, report=lambda p: pytest.fail("the search began"))
    with pytest.raises(ValueError, match="full-rank affine map"):
        composed_at(normal(1, 12), PreGeneratorConfig(), torch.eye(12).double()[None])
    with pytest.raises(ValueError, match="start_widening must be at least 1"):
        replace(QUICK, start_widening=0.5)
