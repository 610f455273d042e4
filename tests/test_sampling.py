"""The sampler against closed forms, and what it must leave alone, keep, repeat or refuse."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from exact_posterior import Exact
from test_solver import images as smooth_images
from torch import Tensor

from flowinv import Affine, CustomLikelihood, Flow, Gaussian, InverseProblem, Mask, MatrixOperator
from flowinv.diagnostics import standard_error
from flowinv.families import PreGeneratorConfig
from flowinv.families.family import composed
from flowinv.flow_posterior import FlowPosterior
from flowinv.flows import GlowConfig, build
from flowinv.sampled_posterior import SampledPosterior
from flowinv.solvers import sampling as module
from flowinv.solvers.kernels import MALA, Langevin
from flowinv.solvers.progress import Diverged, SolverProgress
from flowinv.solvers.sampling import SAMPLING_PRESETS, Sampler, SamplingSettings

HMC = SamplingSettings("hmc", steps=120, warmup=100, leapfrogs=5, chains=32)
SHORT = SamplingSettings("hmc", steps=6, warmup=4, leapfrogs=2, chains=3, step_size=0.02)
OTHER = SamplingSettings("mala", steps=6, warmup=4, chains=3, step_size=0.02)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def exact() -> Exact:
    return Exact(shape=(6,), batch=2, sigma=0.05)


def deviation(posterior: SampledPosterior, exact: Exact) -> tuple[float, float]:
    """Errors of means and of variances in units of their Monte-Carlo standard error, the root mean square of each."""
    x = posterior.chains.flatten(3).double()
    mean = (x.mean((0, 1)) - exact.mean) / standard_error(x)
    squares = (x - exact.mean).square()
    variance = (squares.mean((0, 1)) - exact.covariance.diagonal()) / standard_error(squares)
    return float(mean.square().mean().sqrt()), float(variance.square().mean().sqrt())


# -- closed forms ------------------------------------------------------------------------------------------------------

CASES = {
    "hmc": HMC,
    "mala": SamplingSettings("mala", steps=800, warmup=300, thin=4, chains=64),
    "hmc from the flow": replace(HMC, initial="pregenerator", metric="pregenerator"),
    "hmc over noise": replace(HMC, space="noise"),
    "mala over noise": SamplingSettings("mala", steps=400, warmup=200, thin=4, chains=64, space="noise"),
}


@pytest.mark.parametrize("name", CASES)
def test_from_the_prior_to_the_exact_posterior(name: str, exact: Exact) -> None:
    settings = CASES[name]
    through = exact.posterior(shift=0.5, scale=0.7) if settings.needs_flow else None
    posterior = Sampler(settings).solve(exact.problem, through)
    assert (posterior.rhat < 1.05).all() and (posterior.ess > 400).all()
    wanted = 0.8 if settings.kernel == "hmc" else 0.574
    assert (posterior.acceptance.mean(0) - wanted).abs().max() < 0.08
    mean, variance = deviation(posterior, exact)
    assert mean < 1.6 and variance < 1.6  # of 12 numbers with root mean square 1
    if "noise" not in name:  # lp is log N(z) + log p(y|x)
        z = exact.prior.encode(posterior.chains.flatten(0, 2))[0].view(posterior.chains.shape)
        torch.testing.assert_close(posterior.stats["lp"], -exact.problem.potential(z), rtol=1e-9, atol=1e-9)


def test_unadjusted_chains_fail_the_same_check(exact: Exact, monkeypatch: pytest.MonkeyPatch) -> None:
    """MALA whose proposals are all accepted, at the step that MALA settles on."""
    monkeypatch.setattr(
        MALA, "step", lambda self, target, state, size, noise: Langevin().step(target, state, size, noise)
    )
    settings = replace(CASES["mala"], adapt=False, step_size=0.03)
    assert max(deviation(Sampler(settings).solve(exact.problem), exact)) > 3


def test_pl_mcmc_finds_the_noise_free_conditional() -> None:
    exact = Exact(shape=(6,), batch=2, sigma=1e-5)  # the posterior without noise, for all its likelihood matters
    assert exact.problem.observed is not None
    settings = SamplingSettings("pl-mcmc", steps=1200, warmup=400, thin=4, chains=100, sigma_a=0.1, refresh=0.1)
    posterior = Sampler(settings).solve(exact.problem)
    assert (posterior.rhat < 1.05).all() and posterior.provenance["target"] == "projected"
    x = posterior.chains.flatten(3).double()
    assert torch.equal(x[..., :3], exact.problem.y[:, :3].expand(*x.shape[:3], 3))
    hidden = x[..., 3:]
    mean = (hidden.mean((0, 1)) - exact.mean[:, 3:]) / standard_error(hidden)
    squares = (hidden - exact.mean[:, 3:]).square()
    variance = (squares.mean((0, 1)) - exact.covariance.diagonal()[3:]) / standard_error(squares)
    assert float(mean.abs().max()) < 3.5 and float(variance.abs().max()) < 3.5
    other = replace(settings, sigma_a=0.1, seed=1)  # the likelihood plays no part
    loose = InverseProblem(exact.prior, exact.problem.operator, Gaussian(0.7), exact.problem.y)
    assert torch.equal(
        Sampler(replace(other, steps=20)).solve(exact.problem).chains,
        Sampler(replace(other, steps=20)).solve(loose).chains,
    )


def test_lmc_gives_one_draw_per_chain_with_the_bias_of_its_step(exact: Exact) -> None:
    precision, axes = torch.linalg.eigh(torch.linalg.inv(exact.latent_covariance))
    eta = 0.8 / float(precision.max())
    settings = replace(SAMPLING_PRESETS["lmc"], steps=200, chains=1500, step_size=eta)
    posterior = Sampler(settings).solve(exact.problem)
    assert posterior.chains.shape == (1500, 1, 2, 6) and not posterior.provenance["exact"]
    z = exact.prior.encode(posterior.chains.flatten(0, 2))[0].view(1500, 2, 6)
    along = (z - exact.latent_mean) @ axes
    biased = 1 / (precision * (1 - eta * precision / 2))
    error = math.sqrt(2 / 3000)
    ratio = along.flatten(0, 1).square().mean(0)
    assert ((ratio / biased - 1).abs() < 4.5 * error).all()
    assert ((ratio * precision - 1).abs() > 6 * error).any()
    assert torch.isnan(posterior.rhat).all()


def test_the_true_observation_index_decides_nothing_but_the_noise(exact: Exact) -> None:
    """Observations together are sampled as each alone, for every kernel."""
    y, given = exact.problem.y, exact.problem
    for settings in (SHORT, OTHER, replace(OTHER, kernel="pl-mcmc", refresh=0.3, sigma_a=0.1)):
        for order in ([0, 1], [1, 0]):
            both = InverseProblem(exact.prior, given.operator, given.likelihood, y[order])
            alone = InverseProblem(exact.prior, given.operator, given.likelihood, y[order[:1]])
            together, single = Sampler(settings).solve(both), Sampler(settings).solve(alone)
            torch.testing.assert_close(together.chains[:, :, :1], single.chains, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(together.stats["lp"][..., :1], single.stats["lp"], rtol=1e-9, atol=1e-9)
            assert together.provenance["step_size"][0] == pytest.approx(single.provenance["step_size"][0], rel=1e-6)


# -- 784 pixels --------------------------------------------------------------------------------------------------------


def smooth() -> tuple[InverseProblem, FlowPosterior, Tensor, Tensor, Tensor]:
    """28x28 images with the upper half observed; the posterior as a flow, and the latent's mean and precision's spectrum."""
    problem, _ = smooth_images()
    affine = problem.given_prior.bijection
    assert isinstance(affine, Affine)
    rows = affine.cholesky.double()[: 14 * 28]
    residual = problem.y.flatten().double()[: 14 * 28] - 0.5
    precision = torch.eye(784).double() + rows.T @ rows / 0.1**2
    mean = torch.linalg.solve(precision, rows.T @ residual / 0.1**2)
    factor = torch.linalg.cholesky(torch.linalg.inv(precision))
    family = composed((1, 28, 28), 1, PreGeneratorConfig("gaussian"))
    layer = family.map.bijections[0]
    with torch.no_grad():
        layer.log_diagonal.copy_(factor.diagonal().log())
        layer.lower.copy_(factor)
        layer.shift.copy_(mean)
    return problem, FlowPosterior(problem, family, {}, {}), mean, *torch.linalg.eigh(precision)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["hmc", "mala"])
def test_exact_kernels_on_smooth_images(kernel: str) -> None:
    """From the prior; MALA, which would take long to get there, from exact draws."""
    problem, exact_flow, mean, precision, axes = smooth()
    settings = SamplingSettings("hmc", steps=200, warmup=150, leapfrogs=16, chains=8)
    if kernel == "mala":
        settings = SamplingSettings(
            "mala", steps=3000, warmup=300, thin=10, chains=16, step_size=5e-3, initial="pregenerator"
        )
    found = Sampler(settings).solve(problem, exact_flow if settings.needs_flow else None)
    wanted = 0.8 if kernel == "hmc" else 0.574
    assert abs(float(found.acceptance.mean()) - wanted) < 0.05
    assert kernel == "mala" or float(found.rhat) < 1.05
    z = problem.given_prior.encode(found.chains.flatten(0, 2))[0].flatten(1).double().view(*found.chains.shape[:2], 784)
    along = (z - mean) @ axes * precision.sqrt()
    score = along.mean((0, 1)) / standard_error(along)
    spread = (along.square().mean((0, 1)) - 1) / standard_error(along.square())
    assert float(score.square().mean().sqrt()) < 1.25 and float(spread.square().mean().sqrt()) < 1.25


@pytest.mark.slow
def test_lmc_on_smooth_images_follows_its_law_and_not_the_posterior() -> None:
    problem, _, mean, precision, axes = smooth()
    eta, steps = 7e-3, 400
    settings = replace(SAMPLING_PRESETS["lmc"], steps=steps, step_size=eta, chains=64)
    found = Sampler(settings).solve(problem)
    z = problem.given_prior.encode(found.chains.flatten(0, 2))[0].flatten(1).double()
    left = (1 - eta * precision) ** steps  # of the start at N(0, I)
    law_mean, law_variance = (
        (1 - left) * (mean @ axes),
        left**2 + (1 - left**2) / (precision * (1 - eta * precision / 2)),
    )
    right = (z @ axes - law_mean) / law_variance.sqrt()
    wrong = (z @ axes - mean @ axes) * precision.sqrt()
    assert abs(float(right.square().sum() - right.numel())) < 4 * math.sqrt(2 * right.numel())
    assert abs(float((right.mean(0) * 8).square().sum() - 784)) < 4 * math.sqrt(2 * 784)
    # the log-likelihood ratio of law and posterior, nats: 64 chains tell them apart beyond doubt
    ratio = 0.5 * (wrong.square() - right.square() - (law_variance * precision).log()).sum()
    assert float(ratio) > 20


@pytest.mark.slow
def test_pl_mcmc_on_smooth_images_accepts_but_hardly_moves() -> None:
    """A random walk in 784 dimensions, still on its way after 1500 steps: R-hat tells, though it accepts."""
    problem, _, _, _, _ = smooth()
    settings = replace(SAMPLING_PRESETS["pl-mcmc"], steps=1000, warmup=500)
    found = Sampler(settings).solve(problem)
    assert 0.1 < float(found.acceptance.mean()) < 0.35
    assert float(found.rhat) > 1.05 and "the chains disagree" in repr(found)
    assert torch.equal(found.chains[..., :14, :], problem.y[..., :14, :].expand(4, 100, 1, 1, 14, 28))


# -- images ------------------------------------------------------------------------------------------------------------


@cache
def glow() -> Flow:
    """A small Glow with weights away from their start, where its networks give zeros."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        flow = Flow(build(GlowConfig((1, 8, 8), steps=(2,), hidden=8)), (1, 8, 8)).eval()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=seeded(parameter.numel())))
    return flow


def image_problem(observations: int = 2) -> InverseProblem:
    mask = torch.zeros(1, 8, 8)
    mask[:, 4:] = 1
    y = torch.randn(observations, 1, 8, 8, generator=seeded(1)) * mask
    return InverseProblem(glow(), Mask(mask), Gaussian(0.3), y)


def flow_posterior(problem: InverseProblem) -> FlowPosterior:
    family = composed(problem.shape, problem.batch, PreGeneratorConfig(steps=2, hidden=4))
    with torch.no_grad():
        for parameter in family.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=seeded(3)))
    return FlowPosterior(problem, family, {}, {})


VARIANTS = {
    "hmc": SHORT,
    "mala": replace(OTHER, step_size=1e-3),
    "lmc": SamplingSettings("lmc", steps=8, warmup=2, thin=2, chains=3, step_size=1e-3),
    "lmc bf16": SamplingSettings("lmc", steps=8, warmup=0, chains=3, step_size=1e-3, bf16=True, keep="last"),
    "pl-mcmc": replace(OTHER, kernel="pl-mcmc", refresh=0.2, sigma_a=0.1, thin=2),
    "noise": replace(SHORT, space="noise"),
    "metric": replace(SHORT, metric="pregenerator", initial="pregenerator"),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_resumed_run_is_the_unbroken_one(name: str, tmp_path) -> None:
    problem, settings = image_problem(), VARIANTS[name]
    through = flow_posterior(problem) if settings.needs_flow else None
    whole = Sampler(settings).solve(problem, through)

    for stop in (3, 7):

        def interrupt(p: SolverProgress, stop: int = stop) -> None:
            if p.step == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            Sampler(settings).solve(problem, through, tmp_path / "run", interrupt)
        assert json.loads((tmp_path / "run" / "config.json").read_text())["state"]["step"] == stop
    resumed = Sampler(settings).solve(problem, through, tmp_path / "run")
    assert torch.equal(resumed.chains, whole.chains) and resumed.trace == whole.trace
    assert all(torch.equal(resumed.stats[k], whole.stats[k]) for k in whole.stats)
    for key in ("step_size", "prior_passes", "steps", "settings"):
        assert resumed.provenance[key] == whole.provenance[key]
    again = Sampler(settings).solve(problem, through, tmp_path / "run")  # a run that has ended
    assert torch.equal(again.chains, whole.chains)


def test_a_checkpoint_of_something_else_is_refused(tmp_path) -> None:
    problem = image_problem()
    Sampler(SHORT).solve(problem, checkpoint=tmp_path / "run")
    with pytest.raises(ValueError, match="other settings"):
        Sampler(replace(SHORT, seed=1)).solve(problem, checkpoint=tmp_path / "run")
    other = image_problem()
    other.y[0, 0, 7, 7] += 1
    with pytest.raises(ValueError, match="another problem"):
        Sampler(SHORT).solve(other, checkpoint=tmp_path / "run")
    noise, flow = VARIANTS["noise"], flow_posterior(problem)
    Sampler(noise).solve(problem, flow, tmp_path / "noise")
    next(flow.family.parameters()).data += 0.1
    with pytest.raises(ValueError, match="another flow"):
        Sampler(noise).solve(problem, flow, tmp_path / "noise")


@pytest.mark.parametrize("name", VARIANTS)
def test_counts_prior_passes_and_decodes_all_chains_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, settings = image_problem(), VARIANTS[name]
    through = flow_posterior(problem) if settings.needs_flow else None
    calls: list[int] = []
    bijection = type(problem.prior.bijection)
    for direction in ("encode", "decode"):
        inner = getattr(bijection, direction)

        def counted(self, value, *rest, inner=inner):
            if value.shape[1:] == problem.shape and self is not None and getattr(self, "_outermost", False):
                calls.append(len(value))
            return inner(self, value, *rest)

        monkeypatch.setattr(bijection, direction, counted)
    problem.prior.bijection._outermost = True
    frozen = Flow.frozen

    def marked(self: Flow, bf16: bool = False) -> Flow:
        twin = frozen(self, bf16)
        twin.bijection._outermost = True
        return twin

    monkeypatch.setattr(Flow, "frozen", marked)
    posterior = Sampler(settings).solve(problem, through)
    assert set(calls) == {settings.chains * problem.batch}
    assert posterior.provenance["prior_passes"] == len(calls)


@pytest.mark.parametrize("name", VARIANTS)
def test_sampling_changes_nothing_it_was_given(name: str) -> None:
    problem, settings = image_problem(), VARIANTS[name]
    through = flow_posterior(problem) if settings.needs_flow else None
    before = {k: v.clone() for k, v in problem.given_prior.state_dict().items()}
    y, state = problem.y.clone(), torch.get_rng_state()
    posterior = Sampler(settings).solve(problem, through)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(problem.y, y)
    assert all(torch.equal(v, before[k]) for k, v in problem.given_prior.state_dict().items())
    assert all(p.grad is None for p in problem.prior.parameters())
    kept = 1 if settings.keep == "last" else settings.steps // settings.thin
    assert posterior.chains.shape == (3, kept, 2, 1, 8, 8) and posterior.chains.dtype == torch.float32
    assert not posterior.chains.requires_grad
    assert torch.equal(posterior.chains, Sampler(settings).solve(problem, through).chains)
    other = Sampler(replace(settings, seed=1)).solve(problem, through).chains
    assert not torch.equal(posterior.chains[..., :4, :], other[..., :4, :])


def test_bf16_moves_the_chain_but_draws_are_in_full_precision() -> None:
    problem, settings = image_problem(), VARIANTS["lmc bf16"]
    half, full = (Sampler(replace(settings, bf16=b)).solve(problem) for b in (True, False))
    assert not torch.equal(half.chains, full.chains)
    torch.testing.assert_close(half.chains, full.chains, atol=0.05, rtol=0)
    z = problem.prior.encode(half.chains.flatten(0, 2))[0].view(3, 2, 1, 8, 8)
    torch.testing.assert_close(half.stats["lp"][:, 0], -problem.potential(z), atol=0.05, rtol=0)


def test_an_operator_with_weights_gets_no_gradients_and_one_without_gradient_is_refused() -> None:
    problem = image_problem()
    net = torch.nn.Conv2d(1, 1, 3, padding=1)
    Sampler(SHORT).solve(InverseProblem(glow(), net, Gaussian(0.3), problem.y))
    assert all(p.grad is None for p in net.parameters())
    cut = InverseProblem(glow(), lambda x: x.detach(), Gaussian(0.3), problem.y)
    with pytest.raises(ValueError, match="no gradient"):
        Sampler(SHORT).solve(cut)


def test_reports_every_step_as_a_potential(exact: Exact, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[SolverProgress] = []
    posterior = Sampler(SHORT).solve(exact.problem, report=seen.append)
    assert [p.step for p in seen] == list(range(1, 11)) and {p.label for p in seen} == {"potential"}
    assert posterior.trace["step"] == list(range(1, 11))
    assert seen[-1].value == pytest.approx(sum(posterior.trace["potential"][-1]) / 2)
    monkeypatch.setattr(module, "_TRACE", 5)  # a long run's trace is thinned
    assert Sampler(SHORT).solve(exact.problem).trace["step"] == [2, 4, 6, 8, 10]


def test_steps_adapt_while_warming_up_and_then_stand_still(exact: Exact) -> None:
    posterior = Sampler(replace(HMC, steps=20, warmup=60)).solve(exact.problem)
    sizes = torch.tensor(posterior.trace["step_size"])
    assert (sizes[1:60] != sizes[:59]).all() and (sizes[60:] == sizes[60]).all()
    assert posterior.provenance["step_size"] == pytest.approx(sizes[-1].tolist())
    still = Sampler(replace(HMC, steps=20, warmup=60, adapt=False)).solve(exact.problem)
    assert (torch.tensor(still.trace["step_size"]) == HMC.step_size).all()


# -- failure -----------------------------------------------------------------------------------------------------------


def test_unadjusted_chains_that_leave_the_finite_numbers_stop_with_the_term() -> None:
    def log_prob(y: Tensor, x: Tensor) -> Tensor:
        squares = -0.5 * ((y - x) / 0.1).square().sum(-1)
        return torch.where(x.abs().amax(-1) < 1e6, squares, torch.full_like(squares, math.nan))

    prior = Flow(Affine(torch.zeros(4), torch.eye(4)), (4,))
    problem = InverseProblem(prior, MatrixOperator(torch.eye(4)), CustomLikelihood(log_prob), torch.zeros(1, 4))
    settings = SamplingSettings("lmc", steps=100, warmup=0, thin=2, chains=2, step_size=0.1)
    with pytest.raises(Diverged, match=r"log p\(y\|x\) is not finite.*Lower the step size") as caught:
        Sampler(settings).solve(problem)
    kept = caught.value.result
    assert isinstance(kept, SampledPosterior) and torch.isfinite(kept.chains).all()
    assert kept.chains.shape[1] == (caught.value.step - 1) // 2 and 2 < caught.value.step < 100
    with pytest.raises(Diverged) as caught:
        Sampler(replace(settings, keep="last", thin=1)).solve(problem)
    assert caught.value.result.chains.shape[1] == 1 and torch.isfinite(caught.value.result.stats["lp"]).all()


def test_chains_that_cannot_start_say_why() -> None:
    def log_prob(y: Tensor, x: Tensor) -> Tensor:
        return (x - 10).log().sum(-1)

    prior = Flow(Affine(torch.zeros(4), torch.eye(4)), (4,))
    problem = InverseProblem(prior, MatrixOperator(torch.eye(4)), CustomLikelihood(log_prob), torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"cannot start: log p\(y\|x\) is not finite \(3 of 3 potentials\)"):
        Sampler(SHORT).solve(problem)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": "gibbs"}, "kernel = 'gibbs' is not valid: expected one of lmc, mala, hmc, pl-mcmc"),
        ({"steps": 0}, "steps"),
        ({"warmup": -1}, "warmup"),
        ({"chains": 2.5}, "chains"),
        ({"step_size": math.nan}, "step_size"),
        ({"sigma_a": 0.0}, "sigma_a"),
        ({"sigma_a": 0.1}, "sigma_a is a setting of pl-mcmc, not of hmc"),
        ({"kernel": "mala"}, "leapfrogs is a setting of hmc, not of mala"),
        ({"thin": 7}, "thin"),
        ({"jitter": 1.0}, "jitter"),
        ({"target_acceptance": 1.0}, "target_acceptance"),
        ({"target_acceptance": 0.7, "warmup": 0}, "target_acceptance: there is no warm-up"),
        ({"target_acceptance": 0.6, "adapt": False}, "nothing is adapted to target_acceptance: adapt is off"),
        ({"target_acceptance": 0.6, "kernel": "lmc", "leapfrogs": 8}, "lmc accepts every proposal"),
        ({"keep": "last", "thin": 2}, "set thin to 1"),
        ({"seed": -1}, r"sampling setting seed must lie in \[0, 2\^63\), got -1"),
        ({"refresh": 0.5}, "refresh is a setting of pl-mcmc"),
        ({"refresh": 1.5}, "refresh must lie"),
        ({"bf16": True}, "bf16 is for lmc alone: the acceptance of hmc"),
        ({"bf16": True, "kernel": "pl-mcmc", "leapfrogs": 8}, "bf16"),
        ({"metric": "pregenerator", "kernel": "mala", "leapfrogs": 8}, "metric"),
        ({"space": "noise", "kernel": "pl-mcmc", "leapfrogs": 8}, "pl-mcmc runs in the latent"),
        ({"space": "noise", "initial": "pregenerator"}, "initial"),
        ({"keep": "some"}, "keep = 'some' is not valid: expected one of all, last"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SHORT, **change)


def test_what_the_flow_posterior_must_be(exact: Exact) -> None:
    problem, noise = exact.problem, replace(SHORT, space="noise")
    with pytest.raises(ValueError, match="need a flow posterior"):
        Sampler(noise).solve(problem)
    with pytest.raises(ValueError, match="no use for a flow posterior"):
        Sampler(SHORT).solve(problem, exact.posterior())
    with pytest.raises(TypeError, match="FlowPosterior, got SampledPosterior"):
        Sampler(noise).solve(problem, Sampler(SHORT).solve(problem))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="another prior"):
        Sampler(noise).solve(problem, Exact(shape=(6,), batch=2, seed=1).posterior())
    with pytest.raises(ValueError, match="of 3 observations, the problem has 2"):
        Sampler(noise).solve(problem, Exact(shape=(6,), batch=3).posterior())
    with pytest.raises(TypeError, match="InverseProblem"):
        Sampler(SHORT).solve(exact.posterior())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="paper-lmc"):
        Sampler("quick")


def test_paper_presets_are_the_papers() -> None:
    """Appendix C.3: Langevin at 5e-4 for 1000 steps on CIFAR-10 and 4000 elsewhere; PL-MCMC 2000, sigma_a 1e-3, sigma_p .05."""
    for name, steps in (("paper-lmc-cifar10", 1000), ("paper-lmc", 4000), ("lmc", 1000)):
        s = SAMPLING_PRESETS[name]
        assert (s.kernel, s.steps, s.step_size, s.initial, s.keep, s.warmup) == ("lmc", steps, 5e-4, "prior", "last", 0)
    for name, steps in (("paper-pl-mcmc", 2000), ("paper-pl-mcmc-long", 20000)):
        s = SAMPLING_PRESETS[name]
        assert (s.kernel, s.steps, s.sigma_a, s.step_size, s.refresh) == ("pl-mcmc", steps, 1e-3, 0.05, 0.0)
        assert not s.adapt
