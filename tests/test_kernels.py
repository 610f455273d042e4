"""Kernels and targets: chains started at exact draws stay exact, those of broken kernels do not."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from exact_posterior import Exact
from scipy import stats
from torch import Tensor

from flowinv import Affine, CustomLikelihood, Flow, Gaussian, Identity, InverseProblem, Mask, Quantile
from flowinv.families import PreGeneratorConfig, build_pregenerator
from flowinv.families.family import composed
from flowinv.flow_posterior import FlowPosterior
from flowinv.flows.bijection import Bijection, Chain
from flowinv.flows.flow import UNIT
from flowinv.flows.layers.transforms import Gaussianize, Logit, Shift
from flowinv.solvers.kernels import HMC, MALA, DualAveraging, Kernel, Langevin, Noise, RandomWalk, start
from flowinv.solvers.kernels import hmc as hmc_module
from flowinv.solvers.kernels import mala as mala_module
from flowinv.solvers.targets import LatentTarget, NoiseTarget, ProjectedTarget, Target

CHAINS = 1500


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def p_value(w: Tensor) -> float:
    """Of w (N, D) being draws of N(0, I): means, variances, correlations and whole distributions, Bonferroni-corrected."""
    assert torch.isfinite(w).all()
    n, d = w.shape
    mean = 2 * stats.norm.sf((w.mean(0).abs() * math.sqrt(n)).numpy())
    squares = w.square().sum(0).numpy()
    variance = 2 * torch.minimum(*(torch.from_numpy(f(squares, n)) for f in (stats.chi2.cdf, stats.chi2.sf)))
    shape = [stats.kstest(w[:, i].numpy(), "norm").pvalue for i in range(d)]
    products = (w.T @ w / math.sqrt(n))[torch.ones(d, d).triu(1).bool()]
    correlation = 2 * stats.norm.sf(products.abs().numpy())
    found = [*mean, *variance.tolist(), *shape, *correlation]
    return min(1.0, len(found) * min(found))


def run(
    target: Target, kernel: Kernel, position: Tensor, step_size: float, steps: int, seed: int = 0
) -> tuple[Tensor, Tensor, float]:
    """Position and image (C, B, ...) after some steps, and the mean acceptance."""
    state = start(target, position, kernel)
    size = torch.full((position.shape[1],), step_size, dtype=position.dtype)
    total = 0.0
    for step in range(1, steps + 1):
        state, acceptance = kernel.step(target, state, size, Noise.keyed(position, seed, step))
        total += float(acceptance.mean()) / steps
    return state.position, state.x, total


# -- the posterior of a Gaussian, over the latent and over a flow's noise ------------------------------------------------


@pytest.fixture(scope="module")
def exact() -> Exact:
    return Exact(shape=(6,), batch=2, sigma=0.05)


def latent_draws(exact: Exact, seed: int = 5) -> Tensor:
    root = torch.linalg.cholesky(exact.latent_covariance)
    w = torch.randn(CHAINS, exact.batch, 6, generator=seeded(seed)).double()
    return exact.latent_mean + w @ root.T


def standardised(z: Tensor, exact: Exact) -> Tensor:
    """Latents (C, B, D) as what is N(0, I) if they are exact, (C, B D)."""
    root = torch.linalg.cholesky(exact.latent_covariance)
    return torch.linalg.solve_triangular(root, (z - exact.latent_mean).mT, upper=False).mT.flatten(1)


KERNELS: dict[str, tuple[Kernel, float, int]] = {
    "mala": (MALA(), 0.1, 40),
    "hmc": (HMC(leapfrogs=4), 0.45, 10),
    "hmc with a metric": (HMC(leapfrogs=4, scale=torch.linspace(0.5, 1.5, 12).double().view(2, 6)), 0.4, 10),
    "hmc without jitter": (HMC(leapfrogs=3, jitter=0.0), 0.45, 10),
    "random walk": (RandomWalk(), 0.3, 80),
    "random walk with fresh draws": (RandomWalk(refresh=0.5), 0.3, 80),
    "fresh draws alone": (RandomWalk(refresh=1.0), 1.0, 80),
}


@pytest.mark.parametrize("name", KERNELS)
def test_exact_kernels_leave_the_posterior_as_it_is(name: str, exact: Exact) -> None:
    kernel, step_size, steps = KERNELS[name]
    begin = latent_draws(exact)
    assert p_value(standardised(begin, exact)) > 1e-2
    z, x, acceptance = run(LatentTarget(exact.problem), kernel, begin, step_size, steps)
    assert kernel.exact and (0.1 < acceptance < 0.95 or "alone" in name)
    assert (z == begin).flatten(2).all(2).double().mean() < 0.5  # they have moved
    assert p_value(standardised(z, exact)) > 1e-3
    torch.testing.assert_close(x, exact.problem.decode(z))


def rejected(target: Target, kernel: Kernel, exact: Exact, step_size: float, steps: int) -> bool:
    z, _, _ = run(target, kernel, latent_draws(exact), step_size, steps)
    return p_value(standardised(z, exact)) < 1e-6


def nothing(t: Tensor) -> Tensor:
    return torch.zeros(t.shape[:2], dtype=t.dtype)


def test_broken_kernels_do_not(exact: Exact, monkeypatch: pytest.MonkeyPatch) -> None:
    target = LatentTarget(exact.problem)
    assert rejected(target, Langevin(), exact, 0.1, 40), "MALA without its correction"
    with monkeypatch.context() as patch:
        patch.setattr(mala_module, "event_sum", nothing)
        assert rejected(target, MALA(), exact, 0.1, 40), "MALA without its proposal's ratio"
    with monkeypatch.context() as patch:
        patch.setattr(hmc_module, "event_sum", nothing)
        assert rejected(target, HMC(leapfrogs=4), exact, 0.45, 10), "HMC without its kinetic energy"
    with monkeypatch.context() as patch:
        right = hmc_module.metropolis
        patch.setattr(hmc_module, "metropolis", lambda old, new, ratio, noise: right(old, new, -ratio, noise))
        assert rejected(target, HMC(leapfrogs=4), exact, 0.45, 10), "HMC with the wrong sign"
    with monkeypatch.context() as patch:
        patch.setattr(RandomWalk, "_log_q", lambda self, to, start, step_size: nothing(to))
        assert rejected(target, RandomWalk(refresh=0.5), exact, 0.3, 80), "a mixture taken for symmetric"


@pytest.fixture(scope="module", params=["latent", "ambient"])
def bent(request: pytest.FixtureRequest, exact: Exact) -> FlowPosterior:
    """A nonlinear flow that is far from the posterior: over its noise a chain is exact all the same."""
    affine, given = exact.prior.bijection, exact.problem
    assert isinstance(affine, Affine)
    # the same density of x, with a u of about unit variance
    prior = Flow(Affine(6 * (affine.mean - 0.5), 6 * affine.cholesky), (6,), Shift(0.5, 6.0))
    problem = InverseProblem(prior, given.operator, given.likelihood, given.y)
    family, g = composed((6,), 2, PreGeneratorConfig(steps=3, hidden=8), request.param).double(), seeded(3)
    with torch.no_grad():
        for parameter in family.parameters():
            parameter.add_(0.4 * torch.randn(parameter.shape, generator=g, dtype=torch.float64))
    return FlowPosterior(problem, family, {}, {})


def noise_of(z: Tensor, flow: FlowPosterior) -> Tensor:
    inner = z if flow.family.space == "latent" else flow.prior.bijection.decode(z.flatten(0, 1))[0].view(z.shape)
    return flow.family.map.pull(inner)[0].detach()


def latent_of(noise: Tensor, flow: FlowPosterior) -> Tensor:
    inner = flow.family.map.push(noise)[0]
    if flow.family.space == "latent":
        return inner
    return flow.prior.bijection.encode(inner.flatten(0, 1))[0].view(noise.shape)


class WithoutJacobian(NoiseTarget):
    def terms(self, position: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        x, terms = super().terms(position)
        return x, {k: v for k, v in terms.items() if "det" not in k}


@pytest.mark.parametrize("kernel", [HMC(leapfrogs=4), MALA()])
def test_exact_over_the_noise_of_any_flow(kernel: Kernel, exact: Exact, bent: FlowPosterior) -> None:
    begin = noise_of(latent_draws(exact), bent)
    assert float(bent.family.map.push(begin)[1].std(0).min()) > 0.2  # else the Jacobian would not matter
    step_size, steps = (0.12, 15) if isinstance(kernel, HMC) else (0.015, 60)
    noise, x, acceptance = run(NoiseTarget(bent.problem, bent), kernel, begin, step_size, steps)
    assert 0.2 < acceptance < 0.9
    z = latent_of(noise, bent)
    assert p_value(standardised(z, exact)) > 1e-3
    torch.testing.assert_close(x, exact.problem.decode(z))
    broken, _, _ = run(WithoutJacobian(bent.problem, bent), kernel, begin, step_size, steps)
    assert p_value(standardised(latent_of(broken, bent), exact)) < 1e-6


def test_unadjusted_langevin_has_the_bias_of_its_step_size(exact: Exact) -> None:
    """Along an eigenvector of precision p the stationary variance is 1 / (p (1 - eta p / 2))."""
    precision, axes = torch.linalg.eigh(torch.linalg.inv(exact.latent_covariance))
    eta = 0.8 / float(precision.max())
    z, _, acceptance = run(LatentTarget(exact.problem), Langevin(), latent_draws(exact), eta, 250)
    assert acceptance == pytest.approx(1) and not Langevin.exact
    assert float((1 - eta * precision.min()) ** 500) < 1e-3  # what is left of where it started
    along = (z - exact.latent_mean) @ axes
    variance = 1 / (precision * (1 - eta * precision / 2))
    assert p_value((along / variance.sqrt()).flatten(1)) > 1e-3
    assert p_value((along * precision.sqrt()).flatten(1)) < 1e-6


# -- PL-MCMC: the noise-free conditional of a nonlinear flow ---------------------------------------------------------------


class Masked:
    """x = T(w), w ~ N(m, L L^T), T elementwise; the last five of eight pixels given the first three, in closed form."""

    def __init__(self, where: str):
        size, g = 8, seeded(2)
        root = torch.randn(size, size, generator=g).double() / math.sqrt(size)
        covariance = root @ root.T + 0.2 * torch.eye(size).double()
        mean = 0.3 * torch.randn(size, generator=g).double()
        affine = Affine.from_covariance(mean, covariance)
        if where == "transform":
            self.outer: Bijection = Logit(0.05)
            self.prior = Flow(affine, (size,), self.outer, UNIT)
        else:
            scale = torch.tensor(0.5, dtype=torch.float64)
            self.outer = Quantile(torch.distributions.LogNormal(torch.zeros_like(scale), scale))
            self.prior = Flow(Chain([self.outer, affine]), (size,), support=(0.0, math.inf))
        self.observed = torch.arange(size) < 3
        y = torch.zeros(2, size, dtype=torch.float64)
        y[:, :3] = torch.tensor([[0.4, 0.5, 0.6], [0.35, 0.55, 0.45]])
        self.problem = InverseProblem(self.prior, Mask(self.observed, (size,)), Gaussian(0.1), y)
        given, hidden = torch.arange(3), torch.arange(3, size)
        gain = covariance[hidden][:, given] @ torch.linalg.inv(covariance[given][:, given])
        w = self.outer.encode(y[:, :3])[0]
        self.mean = mean[hidden] + (w - mean[given]) @ gain.T
        self.root = torch.linalg.cholesky(covariance[hidden][:, hidden] - gain @ covariance[given][:, hidden])

    def begin(self, sigma_a: float) -> Tensor:
        """Latents of exact draws: hidden pixels of the conditional, observed ones of N(y, sigma_a^2)."""
        w = torch.randn(CHAINS, 2, 5, generator=seeded(7)).double()
        hidden = self.outer.decode((self.mean + w @ self.root.T).view(-1, 5))[0].view(CHAINS, 2, 5)
        given = self.problem.y[:, :3] + sigma_a * torch.randn(CHAINS, 2, 3, generator=seeded(8)).double()
        x = torch.cat([given, hidden], 2)
        assert torch.isfinite(x).all()
        return self.prior.encode(x.flatten(0, 1))[0].view(x.shape)

    def standardised(self, x: Tensor) -> Tensor:
        w = self.outer.encode(x[..., 3:].flatten(0, 1))[0].view(*x.shape[:2], 5)
        return torch.linalg.solve_triangular(self.root, (w - self.mean).mT, upper=False).mT.flatten(1)


def jacobian_free(target: ProjectedTarget, position: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The potential of the authors' code: every density in x, no log-determinant."""
    prior = target.problem.prior
    x = prior.decode(position.flatten(0, 1))[0].view(position.shape)
    projected = torch.where(target.observed, target.y, x)
    z, log_det = prior.encode(projected.flatten(0, 1))
    log_prior = (-0.5 * z.square().sum(1) + log_det).view(position.shape[:2])
    misfit = torch.where(target.observed, x - target.y, torch.zeros_like(x)).square().sum(2) / (2 * target.sigma_a**2)
    return projected, {"prior": log_prior, "misfit": -misfit}


@pytest.mark.parametrize("refresh", [0.0, 0.8])
@pytest.mark.parametrize("where", ["transform", "bijection"])
def test_pl_mcmc_samples_the_noise_free_conditional(
    where: str, refresh: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    masked, sigma_a, size, steps = Masked(where), 0.07, 0.2, 80
    target, kernel, begin = ProjectedTarget(masked.problem, sigma_a), RandomWalk(refresh), masked.begin(sigma_a)
    z, x, acceptance = run(target, kernel, begin, size, steps)
    assert 0.1 < acceptance < 0.9 and float((z == begin).double().mean()) < 0.2
    assert torch.equal(x[..., :3], masked.problem.y[:, :3].expand(CHAINS, 2, 3))
    assert p_value(masked.standardised(x)) > 1e-3
    broken, ratio = ProjectedTarget(masked.problem, sigma_a), RandomWalk._log_q
    broken.terms = lambda position: jacobian_free(target, position)  # type: ignore[method-assign]
    _, x, _ = run(broken, kernel, begin, size, steps)
    assert p_value(masked.standardised(x)) < 1e-6, "without the Jacobian"
    if refresh:
        monkeypatch.setattr(RandomWalk, "_log_q", lambda self, to, start, step_size: nothing(to))
        _, x, _ = run(target, kernel, begin, size, steps)
        assert p_value(masked.standardised(x)) < 1e-6, "without the mixture's ratio"
        monkeypatch.setattr(RandomWalk, "_log_q", ratio)


@pytest.mark.parametrize("where", ["transform", "bijection"])
def test_the_projected_potential_is_the_formula(where: str) -> None:
    masked, sigma_a = Masked(where), 0.3
    target, position = ProjectedTarget(masked.problem, sigma_a), Masked(where).begin(0.07)[:5]
    prior, y = masked.problem.prior, masked.problem.y
    x, log_det = prior.decode(position.flatten(0, 1))
    projected = torch.where(masked.observed, y.repeat(5, 1), x)
    expected = -prior.log_prob(projected) + (x - projected).square().sum(1) / (2 * sigma_a**2) - log_det
    torch.testing.assert_close(target.evaluate(position, False).potential, expected.view(5, 2), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(target.evaluate(position, False).x, projected.view(5, 2, 8))


def test_pl_mcmc_on_a_coupling_flow_against_quadrature() -> None:
    bijection = build_pregenerator((2,), PreGeneratorConfig(steps=3, hidden=8)).double()
    with torch.no_grad():
        for parameter in bijection.parameters():
            parameter.add_(0.25 * torch.randn(parameter.shape, generator=seeded(4), dtype=torch.float64))
    prior = Flow(bijection, (2,)).requires_grad_(False)
    y = torch.tensor([[0.6, 0.0]]).double()
    problem = InverseProblem(prior, Mask(torch.tensor([True, False]), (2,)), Gaussian(0.1), y)
    grid = torch.linspace(-40, 40, 40001).double()
    density = prior.log_prob(torch.stack([torch.full_like(grid, 0.6), grid], 1)).exp()
    cdf = torch.cat([torch.zeros(1).double(), torch.cumulative_trapezoid(density, grid)])
    assert float(density[[0, -1]].max() / density.max()) < 1e-9
    cdf = cdf / cdf[-1]

    def level(x: Tensor) -> Tensor:
        return torch.from_numpy(np.interp(x.numpy(), grid.numpy(), cdf.numpy()))

    uniform = torch.rand(CHAINS, generator=seeded(5)).double()
    hidden = torch.from_numpy(np.interp(uniform.numpy(), cdf.numpy(), grid.numpy()))
    begin = prior.encode(torch.stack([0.6 + 0.2 * torch.randn(CHAINS, generator=seeded(6)).double(), hidden], 1))[0][
        :, None
    ]
    target = ProjectedTarget(problem, 0.2)
    _, x, acceptance = run(target, RandomWalk(), begin, 0.2, 150)
    assert 0.1 < acceptance < 0.9
    assert stats.kstest(level(x[:, 0, 1]).numpy(), "uniform").pvalue > 1e-3
    broken = ProjectedTarget(problem, 0.2)
    broken.terms = lambda position: jacobian_free(target, position)  # type: ignore[method-assign]
    _, x, _ = run(broken, RandomWalk(), begin, 0.2, 150)
    assert stats.kstest(level(x[:, 0, 1]).numpy(), "uniform").pvalue < 1e-6


def test_pixels_at_the_edge_of_the_support_are_held_inside() -> None:
    cdf = torch.tensor([0.0, 0.3, 0.4, 1.0])
    prior = Flow(Affine(torch.zeros(4), torch.eye(4)), (4,), Gaussianize(cdf), UNIT)
    y = torch.tensor([[0.0, 1.0, 0.5, 0.0]])
    target = ProjectedTarget(
        InverseProblem(prior, Mask(torch.tensor([1, 1, 1, 0]).bool(), (4,)), Gaussian(0.1), y), 0.1
    )
    extreme = torch.tensor([[[8.0, -8.0, 9.0, -9.0]], [[0.0, 0.0, 0.0, 0.0]]])
    state = target.evaluate(extreme, gradient=False)
    assert torch.isfinite(state.potential).all()
    torch.testing.assert_close(state.x[:, 0, :3], y[:, :3].expand(2, 3), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("operator", "y", "message"),
    [
        (Identity((4,)), [0.5] * 4, "masks only"),
        (Mask(torch.tensor([1, 0, 0, 1]).bool(), (4,)), [0.5, 0.0, 0.0, 1.2], r"support \[0, 1\].*0.5 to 1.2"),
    ],
)
def test_pl_mcmc_refuses_what_it_is_not_for(operator, y: list[float], message: str) -> None:
    prior = Flow(Affine(torch.zeros(4), torch.eye(4)), (4,), Logit(), UNIT)
    with pytest.raises(ValueError, match=message):
        ProjectedTarget(InverseProblem(prior, operator, Gaussian(0.1), torch.tensor([y])), 0.1)


# -- what all kernels share -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [LatentTarget, NoiseTarget, ProjectedTarget])
def test_gradients_are_those_of_finite_differences(make: Callable, exact: Exact) -> None:
    arguments = {
        LatentTarget: (exact.problem,),
        NoiseTarget: (exact.problem, exact.posterior()),
        ProjectedTarget: (Masked("transform").problem, 0.2),
    }[make]
    target = make(*arguments)
    size = 8 if make is ProjectedTarget else 6
    z = torch.randn(3, 2, size, generator=seeded(1)).double()
    state = target.evaluate(z, gradient=True)
    assert state.gradient is not None and not state.potential.requires_grad and not z.requires_grad
    direction = torch.randn(3, 2, size, generator=seeded(2)).double()
    up, down = (target.evaluate(z + s * direction, gradient=False).potential for s in (1e-5, -1e-5))
    torch.testing.assert_close((up - down) / 2e-5, (state.gradient * direction).sum(2), rtol=1e-6, atol=1e-6)


def test_latent_potential_is_the_problems(exact: Exact) -> None:
    z = torch.randn(3, 2, 6, generator=seeded(1)).double()
    torch.testing.assert_close(LatentTarget(exact.problem).evaluate(z, False).potential, exact.problem.potential(z))


def fenced(limit: float, value: float) -> InverseProblem:
    """Beyond a limit log p(y|x) is not a number, or infinite."""

    def fn(y: Tensor, x: Tensor) -> Tensor:
        inside = (x.abs() < limit).all(-1)
        return torch.where(inside, -0.5 * (y - x).square().sum(-1), torch.full_like(x[..., 0].detach(), value))

    prior = Flow(Affine(torch.zeros(2).double(), torch.eye(2).double()), (2,))
    return InverseProblem(prior, Identity((2,)), CustomLikelihood(fn), torch.zeros(1, 2).double())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kernel", [MALA(), HMC(leapfrogs=3), RandomWalk(), RandomWalk(0.5)])
def test_proposals_without_a_finite_potential_are_rejected(kernel: Kernel, value: float) -> None:
    target = LatentTarget(fenced(0.5, value))
    state = start(target, torch.zeros(200, 1, 2).double(), kernel)
    for step in range(20):
        state, acceptance = kernel.step(
            target, state, torch.tensor([0.3]).double(), Noise.keyed(state.position, 0, step)
        )
        assert torch.isfinite(acceptance).all() and (acceptance <= 1).all()
    assert torch.isfinite(state.potential).all() and float(state.x.abs().max()) < 0.5
    assert float(state.x.abs().max()) > 0.2


def test_noise_of_an_observation_does_not_depend_on_the_others() -> None:
    both, alone = (Noise.keyed(torch.empty(3, b, 2, 4), 5, 7) for b in (2, 1))
    a, b = both.normal(), alone.normal()
    assert torch.equal(a[:, :1], b) and not torch.equal(a[:, 0], a[:, 1])
    assert torch.equal(both.uniform()[:, :1], alone.uniform())
    assert not torch.equal(a, Noise.keyed(torch.empty(3, 2, 2, 4), 5, 8).normal())
    with pytest.raises(ValueError, match="2 observations, got 1"):
        Noise([seeded()], torch.empty(3, 2, 4))


def test_dual_averaging_finds_each_observations_step() -> None:
    """Acceptance exp(-step / width): it is .7 at a step of .357 widths."""
    width = torch.tensor([1e-3, 1.0, 50.0]).double()
    adaptation = DualAveraging.at(torch.full((3,), 0.05).double())
    noise = seeded(0)
    for _ in range(500):
        acceptance = (-adaptation.step_size / width).exp() * (0.8 + 0.4 * torch.rand(4, 3, generator=noise).double())
        adaptation.update(acceptance, 0.7)
    torch.testing.assert_close(adaptation.average / width, torch.full((3,), -math.log(0.7)).double(), rtol=0.15, atol=0)
