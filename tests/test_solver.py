"""The variational solver against closed forms, and what it must leave alone, keep, or refuse."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from exact_posterior import Exact
from torch import Tensor

from flowinv import Affine, CustomLikelihood, Flow, Gaussian, InverseProblem, Mask, MatrixOperator, Posterior
from flowinv.families.pregenerator import PreGeneratorConfig
from flowinv.flows import GlowConfig, build
from flowinv.randomness import keyed_generator
from flowinv.solvers import PRESETS, Diverged, VariationalSettings, VariationalSolver, build_pregenerator
from flowinv.solvers import variational as module

SHORT = VariationalSettings(PreGeneratorConfig(steps=2, hidden=8), draws=4, steps=30, final_draws=32, early_stop=False)
GAUSSIAN = PRESETS["gaussian"]


class LinearGaussian:
    """p(x) = N(m, C), y = A x + N(0, s^2): posterior and evidence in closed form, in float64."""

    def __init__(self, mean: Tensor, covariance: Tensor, matrix: Tensor, noise_variance: float, y: Tensor):
        evidence = matrix @ covariance @ matrix.T + noise_variance * torch.eye(len(matrix), dtype=torch.float64)
        gain = covariance @ matrix.T @ torch.linalg.inv(evidence)
        self.mean = mean + gain @ (y - matrix @ mean)
        self.covariance = covariance - gain @ matrix @ covariance
        self.log_evidence = float(torch.distributions.MultivariateNormal(matrix @ mean, evidence).log_prob(y))


def check(posterior: Posterior, answer: LinearGaussian, draws: int = 4000, nats: float = 1.0) -> None:
    """Evidence within ``nats`` (and never above it by chance), moments within Monte-Carlo error of ``draws`` draws."""
    assert posterior.elbo is not None and posterior.elbo_se is not None
    gap, error = answer.log_evidence - float(posterior.elbo), float(posterior.elbo_se)
    assert -4 * error - 1e-3 <= gap <= nats + 4 * error, f"log evidence - ELBO = {gap:.3f} +- {error:.3f}"
    x = posterior.sample(draws, torch.Generator().manual_seed(1)).flatten(1).double()
    variance, size = answer.covariance.diagonal(), x.shape[1]
    # squared errors of the mean, in units of their variance: 1 on average, plus what a KL of ``nats`` may add
    score = float(((x.mean(0) - answer.mean).square() * draws / variance).mean())
    assert score < 1 + 4 * (2 / size) ** 0.5 + 0.5, f"mean off: {score:.2f} times its Monte-Carlo variance"
    ratio = x.var(0) / variance
    spread = 5 * (2 / draws) ** 0.5
    assert (ratio - 1).abs().max() < spread + 0.1, f"variances off by factors {ratio.min():.3f} to {ratio.max():.3f}"
    deviation = (torch.cov(x.T) - answer.covariance).square().sum()
    expected = (variance.sum().square() + answer.covariance.square().sum()) / draws
    assert deviation < 2 * expected, f"covariance off: {float(deviation / expected):.2f} times its Monte-Carlo error"


def twelve() -> tuple[InverseProblem, LinearGaussian]:
    """The 12-dimensional problem of the two-step paper: mu 1, Sigma diag(1..12), A_ij ~ N(0, 1/12), noise variance .1."""
    g = torch.Generator().manual_seed(3)
    mean, covariance = torch.ones(12, dtype=torch.float64), torch.diag(torch.arange(1, 13, dtype=torch.float64))
    matrix = torch.randn(6, 12, generator=g, dtype=torch.float64) / 12**0.5
    x = mean + torch.linalg.cholesky(covariance) @ torch.randn(12, generator=g, dtype=torch.float64)
    y = matrix @ x + 0.1**0.5 * torch.randn(6, generator=g, dtype=torch.float64)
    prior = Flow(Affine.from_covariance(mean, covariance), (12,))
    problem = InverseProblem(prior, MatrixOperator(matrix), Gaussian(0.1**0.5), y[None])
    return problem, LinearGaussian(mean, covariance, matrix, 0.1, y)


def images(side: int = 28, length: float = 3.0) -> tuple[InverseProblem, LinearGaussian]:
    """Images with a squared-exponential covariance, the upper half observed with sigma .1."""
    size, sigma = side * side, 0.1
    grid = torch.cartesian_prod(torch.arange(side).double(), torch.arange(side).double())
    covariance = 0.04 * torch.exp(-torch.cdist(grid, grid).square() / (2 * length**2))
    covariance += 1e-4 * torch.eye(size, dtype=torch.float64)
    mean = torch.full((1, side, side), 0.5)
    prior = Flow(Affine.from_covariance(mean, covariance.float()), (1, side, side))
    mask = torch.zeros(1, side, side)
    mask[:, : side // 2] = 1
    g = torch.Generator().manual_seed(0)
    x = prior.sample(1, g)
    problem = InverseProblem(prior, Mask(mask), Gaussian(sigma), (x + sigma * torch.randn(x.shape, generator=g)) * mask)
    matrix = torch.eye(size, dtype=torch.float64)[: size // 2]
    y = problem.y.double().flatten()[: size // 2]
    return problem, LinearGaussian(mean.double().flatten(), covariance, matrix, sigma**2, y)


def twice(self: module._Run, original=module._Run.terms) -> dict[str, Tensor]:
    terms = original(self)
    return {**terms, "log p(y|x)": 2 * terms["log p(y|x)"]}


def no_prior(self: module._Run, original=module._Run.terms) -> dict[str, Tensor]:
    terms = original(self)
    return {**terms, "log p(z)": 0 * terms["log p(z)"]}


def half_entropy(self: module._Run, original=module._Run.terms) -> dict[str, Tensor]:
    terms = original(self)
    return {**terms, "-log q(z)": 0.5 * terms["-log q(z)"]}


def test_known_answer_in_twelve_dimensions() -> None:
    problem, answer = twelve()
    check(VariationalSolver(GAUSSIAN).solve(problem), answer, nats=0.05)


@pytest.mark.parametrize("broken", [twice, no_prior, half_entropy])
def test_a_broken_objective_fails_the_same_check(broken, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, answer = twelve()
    monkeypatch.setattr(module._Run, "terms", broken)
    with pytest.raises(AssertionError, match=r"off|evidence"):
        check(VariationalSolver(replace(GAUSSIAN, steps=800)).solve(problem), answer, nats=0.05)


def test_coupling_family_in_twelve_dimensions() -> None:
    problem, answer = twelve()
    settings = replace(PRESETS["fast"], steps=1000, draws=64, path_gradient=True, early_stop=False)
    check(VariationalSolver(settings).solve(problem), answer, nats=0.2)


def test_known_answer_on_smooth_images() -> None:
    problem, answer = images()
    check(VariationalSolver(GAUSSIAN).solve(problem), answer, nats=1.0)


@pytest.mark.slow
@pytest.mark.parametrize("broken", [twice, half_entropy])
def test_a_broken_objective_fails_on_smooth_images(broken, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, answer = images()
    monkeypatch.setattr(module._Run, "terms", broken)
    with pytest.raises(AssertionError, match=r"off|evidence"):
        check(VariationalSolver(GAUSSIAN).solve(problem), answer, nats=1.0)


# -- the pre-generator ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (1, 7, 7), (12,), (1,)])
@pytest.mark.parametrize(
    "config", [PreGeneratorConfig(), PreGeneratorConfig(affine=True), PreGeneratorConfig("gaussian")]
)
def test_starts_as_the_identity(shape, config) -> None:
    generator = build_pregenerator(shape, config).double()
    noise = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z, log_det = generator.decode(noise)
    torch.testing.assert_close(z, noise, atol=1e-6, rtol=0)  # rotations are stored in float32
    torch.testing.assert_close(log_det, torch.zeros(5, dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 3, 3), (6,)])
@pytest.mark.parametrize(
    "config", [PreGeneratorConfig(hidden=8), PreGeneratorConfig(affine=True, hidden=8), PreGeneratorConfig("gaussian")]
)
def test_is_a_bijection_with_the_right_log_determinant(shape, config) -> None:
    generator = build_pregenerator(shape, config).double()
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=g, dtype=torch.float64))
    noise = torch.randn(3, *shape, generator=g, dtype=torch.float64)
    z, log_det = generator.decode(noise)
    back, inverse = generator.encode(z)
    torch.testing.assert_close(back, noise, atol=1e-9, rtol=0)
    torch.testing.assert_close(inverse, -log_det, atol=1e-9, rtol=0)
    for i in range(3):
        jacobian = torch.autograd.functional.jacobian(lambda e: generator.decode(e[None])[0][0], noise[i])
        size = noise[i].numel()
        torch.testing.assert_close(torch.linalg.slogdet(jacobian.reshape(size, size))[1], log_det[i], atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", ["paper-mnist", "paper-cifar10", "paper-celebahq"])
def test_paper_presets_build_their_table(name: str) -> None:
    """Scales, blocks and channels of Table 4; m, steps and learning rate of the appendix."""
    stated = {
        "paper-mnist": ((3, 3, 32), 64, 1000, 1e-3),
        "paper-cifar10": ((4, 4, 48), 32, 1000, 5e-4),
        "paper-celebahq": ((3, 3, 48), 8, 4000, 5e-4),
    }
    s = PRESETS[name]
    family = s.pregenerator
    assert ((family.scales, family.blocks, family.hidden), s.draws, s.steps, s.learning_rate) == stated[name]
    shape = (1, 8, 8) if name != "paper-cifar10" else (3, 8, 8)
    generator = build_pregenerator(shape, replace(family, hidden=4, blocks=1))
    noise = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(generator.decode(noise)[0], noise, atol=1e-5, rtol=0)


def test_path_gradient_vanishes_at_the_exact_posterior_and_the_full_one_does_not() -> None:
    g = torch.Generator().manual_seed(0)
    mean, covariance = torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    y = torch.randn(1, 3, generator=g, dtype=torch.float64)
    problem = InverseProblem(
        Flow(Affine.from_covariance(mean, covariance), (3,)), MatrixOperator(torch.eye(3).double()), Gaussian(0.5), y
    )
    for path, bound in ((True, 1e-10), (False, None)):
        run = module._Run(problem, replace(GAUSSIAN, path_gradient=path, draws=8))
        exact = run.family.map.bijections[0]
        with torch.no_grad():  # the posterior of x = z: N(y / 1.25, .2)
            exact.log_diagonal.fill_(0.5 * torch.log(torch.tensor(0.2, dtype=torch.float64)))
            exact.shift.copy_(problem.y[0] / 1.25)
        (-torch.stack(list(run.terms().values())).sum(0).mean()).backward()
        largest = max(float(p.grad.abs().max()) for p in exact.parameters())
        assert largest < bound if bound else largest > 1e-2


# -- behaviour -------------------------------------------------------------------------------------------------------


def small_problem(observations: int = 1) -> InverseProblem:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        prior = Flow(build(GlowConfig((1, 8, 8), steps=(2,), hidden=8)), (1, 8, 8)).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # away from the start, where the networks give zeros
        for parameter in prior.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    mask = torch.zeros(1, 8, 8)
    mask[:, 4:] = 1
    y = torch.randn(observations, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * mask
    return InverseProblem(prior, Mask(mask), Gaussian(0.3), y)


def test_solving_changes_nothing_it_was_given() -> None:
    problem = small_problem()
    before = {k: v.clone() for k, v in problem.given_prior.state_dict().items()}
    y, trainable, state = (
        problem.y.clone(),
        [p.requires_grad for p in problem.given_prior.parameters()],
        torch.get_rng_state(),
    )
    VariationalSolver(SHORT).solve(problem)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(problem.y, y)
    assert [p.requires_grad for p in problem.given_prior.parameters()] == trainable
    assert all(torch.equal(v, before[k]) for k, v in problem.given_prior.state_dict().items())
    assert all(p.grad is None for p in problem.prior.parameters())


def test_an_operator_with_weights_gets_no_gradients() -> None:
    problem = small_problem()
    net = torch.nn.Conv2d(1, 1, 3, padding=1)
    VariationalSolver(SHORT).solve(InverseProblem(problem.given_prior, net, Gaussian(0.3), problem.y))
    assert all(p.grad is None for p in net.parameters())


def test_an_operator_that_passes_no_gradient_is_refused() -> None:
    problem = small_problem()
    cut = InverseProblem(problem.given_prior, lambda x: x.detach(), Gaussian(0.3), problem.y)
    with pytest.raises(ValueError, match="no gradient"):
        VariationalSolver(SHORT).solve(cut)


def test_equal_seeds_agree_and_others_do_not() -> None:
    draws = [
        VariationalSolver(replace(SHORT, seed=seed)).solve(small_problem()).sample(3, torch.Generator().manual_seed(0))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_ambient_reaches_the_closed_form() -> None:
    """q over u: the same evidence as in the latent, by way of the prior's density; it starts far away, at N(0, I)."""
    answer = Exact((6,), sigma=0.3)
    settings = replace(GAUSSIAN, steps=1500, learning_rate=0.03, space="ambient")
    posterior = VariationalSolver(settings).solve(answer.problem)
    assert posterior.family.space == "ambient"
    assert float(answer.log_evidence - posterior.elbo) < 0.05
    assert ((posterior.mean(4000) - answer.mean) / answer.covariance.diagonal().sqrt()).abs().max() < 0.1


def test_annealing_widens_the_noise_and_lets_go_halfway() -> None:
    problem = small_problem()
    run = module._Run(problem, replace(SHORT, anneal=10.0, steps=40))
    found = []
    for run.step in (0, 10, 20, 30):
        found.append(run.widening())
        wide = run.terms()["log p(y|x)"]
        plain = module._Run(problem, replace(SHORT, steps=40))
        plain.step = run.step
        assert torch.equal(wide, plain.terms()["log p(y|x)"]) == (run.step >= 20)
    assert found == pytest.approx([10.0, 10**0.5, 1.0, 1.0])


def test_no_early_stop_while_the_noise_is_still_narrowing() -> None:
    settings = replace(SHORT, early_stop=True, anneal=100.0, steps=200, window=20, tolerance=1e9)
    assert VariationalSolver(settings).solve(small_problem()).provenance["steps"] >= 100 + 2 * 20
    assert VariationalSolver(replace(settings, anneal=1.0)).solve(small_problem()).provenance["steps"] < 100


def test_learning_rate_warms_up_and_cools_down() -> None:
    run = module._Run(small_problem(), replace(SHORT, steps=100, warmup=10, cooldown=0.5, learning_rate=1.0))
    rates = []
    for run.step in (0, 4, 9, 49, 75, 99):
        rates.append(run.learning_rate())
    assert rates == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.5, 0.02])


def test_what_a_diverged_fit_hands_over_is_the_state_before() -> None:
    problem = small_problem()
    calls = []

    def watched(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return x * (float("nan") if len(calls) > before + 7 else 1.0)

    before = 10**9
    watching = InverseProblem(problem.given_prior, watched, Gaussian(0.3), problem.y)
    before = len(calls)
    with pytest.raises(Diverged, match="step 7: log p") as caught:
        VariationalSolver(SHORT).solve(watching)
    found = caught.value.result
    assert found.provenance["steps"] == 6 and len(found.trace["elbo"]) == 6
    plain = InverseProblem(problem.given_prior, lambda x: x * 1.0, Gaussian(0.3), problem.y)
    unbroken = module._Run(plain, SHORT)
    for _ in range(6):
        unbroken.one_step()
    for a, b in zip(found.family.parameters(), unbroken.family.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "config", [PreGeneratorConfig(), PreGeneratorConfig("gaussian"), PreGeneratorConfig(affine=True)]
)
def test_a_fit_from_a_point_begins_around_the_mode_of_the_posterior(config: PreGeneratorConfig) -> None:
    """For a Gaussian the mode of p(z | y) is its mean; before the first step q is N(mode, .5^2 I)."""
    problem, answer = twelve()
    still = replace(PRESETS["from-point"], pregenerator=config, start_steps=1500, steps=1, learning_rate=1e-12)
    posterior = VariationalSolver(replace(still, final_draws=64)).solve(problem)
    z = problem.prior.encode(posterior.sample(4000, torch.Generator().manual_seed(0)).flatten(0, 1))[0].double()
    mode = problem.prior.encode(answer.mean[None].to(problem.y))[0][0]
    assert (z.mean(0) - mode).abs().max() < 5 * 0.5 / 4000**0.5
    assert (z.std(0) - 0.5).abs().max() < 5 * 0.5 / 8000**0.5
    assert posterior.provenance["started_from"] is not None


def test_a_fit_from_a_point_reaches_the_closed_form() -> None:
    problem, answer = twelve()
    check(VariationalSolver(replace(GAUSSIAN, start="point", learning_rate=2e-2)).solve(problem), answer, nats=0.1)


def test_a_fit_from_a_point_goes_on_in_either_part(tmp_path) -> None:
    problem, settings = twelve()[0], replace(SHORT, start="point", start_steps=25)
    whole = VariationalSolver(settings).solve(problem)

    def stop_at(at: int, total: int):
        def report(p) -> None:
            if (p.step, p.total) == (at, total):
                raise KeyboardInterrupt

        return report

    for at, total in ((11, 25), (17, 30)):
        with pytest.raises(KeyboardInterrupt):
            VariationalSolver(settings).solve(problem, tmp_path / "fit", stop_at(at, total))
        assert (tmp_path / "fit" / "config.json").exists() == (total == 30)
        assert (tmp_path / "fit" / "start").exists() == (total == 25)
        assert [p.name for p in tmp_path.iterdir()] == ["fit"]
    resumed = VariationalSolver(settings).solve(problem, tmp_path / "fit")
    assert torch.equal(resumed.mean(16), whole.mean(16)) and resumed.trace == whole.trace


def test_a_start_of_another_kind_is_another_fit(tmp_path) -> None:
    from flowinv.families.family import composed

    problem, config = small_problem(), PreGeneratorConfig(steps=2, hidden=8)
    small, other = (composed(problem.shape, 1, replace(config, seed=seed)) for seed in (0, 1))
    VariationalSolver(SHORT).solve(problem, tmp_path, start=small)
    for start in (other, composed(problem.shape, 1, replace(config, hidden=4)), None):
        with pytest.raises(ValueError, match="another problem or of other settings"):
            VariationalSolver(SHORT).solve(problem, tmp_path, start=start)


def test_a_start_in_another_space_is_refused() -> None:
    """What is fitted is the start's family; the settings must not say otherwise."""
    from flowinv.families.family import composed

    problem, config = small_problem(), PreGeneratorConfig(steps=2, hidden=8)
    for space, other in (("latent", "ambient"), ("ambient", "latent")):
        start = composed(problem.shape, 1, config, space)
        with pytest.raises(ValueError, match=f"over space '{space}', the settings' is '{other}'"):
            VariationalSolver(replace(SHORT, space=other)).solve(problem, start=start)
        fitted = VariationalSolver(replace(SHORT, space=space)).solve(problem, start=start)
        assert fitted.family.space == space == fitted.provenance["settings"]["space"]


def test_a_posterior_leaves_the_family_it_was_given_trainable() -> None:
    from flowinv import FlowPosterior
    from flowinv.families.family import composed

    problem = small_problem()
    family = composed(problem.shape, 1, PreGeneratorConfig(steps=2, hidden=8))
    FlowPosterior(problem, family, {}, {})
    assert all(p.requires_grad for p in family.parameters())


def test_several_observations_are_solved_as_each_alone() -> None:
    both = small_problem(2)
    alone = InverseProblem(both.given_prior, both.operator, both.likelihood, both.y[:1])
    first = VariationalSolver(SHORT).solve(both)
    second = VariationalSolver(SHORT).solve(alone)
    assert first.elbo.shape == (2,)
    a, b = (found.family.map.bijections[0].state_dict() for found in (first, second))
    for key in a:
        torch.testing.assert_close(a[key], b[key], atol=1e-4, rtol=1e-3)


def test_a_resumed_fit_is_the_unbroken_one(tmp_path) -> None:
    problem = small_problem()
    whole = VariationalSolver(SHORT).solve(problem)

    def interrupt(p) -> None:
        if p.step == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        VariationalSolver(SHORT).solve(problem, tmp_path / "fit", interrupt)
    assert json.loads((tmp_path / "fit" / "config.json").read_text())["state"]["step"] == 11
    resumed = VariationalSolver(SHORT).solve(problem, tmp_path / "fit")
    assert resumed.trace == whole.trace
    g = torch.Generator
    assert torch.equal(resumed.sample(4, g().manual_seed(0)), whole.sample(4, g().manual_seed(0)))


def test_a_checkpoint_of_another_problem_is_refused(tmp_path) -> None:
    VariationalSolver(SHORT).solve(small_problem(), tmp_path / "fit")
    other = small_problem()
    other.y[0, 0, 7, 7] += 1
    with pytest.raises(ValueError, match="another problem"):
        VariationalSolver(SHORT).solve(other, tmp_path / "fit")
    with pytest.raises(ValueError, match="other settings"):
        VariationalSolver(replace(SHORT, draws=5)).solve(small_problem(), tmp_path / "fit")


def test_stops_early_once_the_elbo_has_settled_and_not_before() -> None:
    problem, answer = twelve()
    settings = replace(GAUSSIAN, steps=4000, early_stop=True, window=50, tolerance=0.05)
    posterior = VariationalSolver(settings).solve(problem)
    assert posterior.provenance["steps"] < 2000
    check(posterior, answer, nats=0.05)
    assert VariationalSolver(replace(SHORT, early_stop=False)).solve(small_problem()).provenance["steps"] == SHORT.steps


def test_a_term_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state() -> None:
    problem = small_problem()
    calls = []

    def log_prob(y: Tensor, prediction: Tensor) -> Tensor:
        calls.append(1)
        value = -0.5 * ((y - prediction) / 0.3).square().flatten(-3).sum(-1)
        return value * float("nan") if len(calls) == 12 else value

    bad = InverseProblem(problem.given_prior, problem.operator, CustomLikelihood(log_prob), problem.y)
    calls.clear()
    with pytest.raises(Diverged, match=r"step 11: log p\(y\|x\) is not finite") as caught:
        VariationalSolver(SHORT).solve(bad)
    assert (caught.value.step, caught.value.term) == (11, "log p(y|x)")
    assert torch.isfinite(caught.value.result.sample(3, torch.Generator().manual_seed(0))).all()


def test_what_is_not_finite_from_the_start_has_no_last_good_state() -> None:
    problem = small_problem()
    bad = InverseProblem(
        problem.given_prior,
        problem.operator,
        CustomLikelihood(lambda y, p: p.flatten(-3).sum(-1) * math.nan),
        problem.y,
    )
    with pytest.raises(
        Diverged, match=r"step 0: log p\(y\|x\) is not finite at the start: check y and the op"
    ) as caught:
        VariationalSolver(SHORT).solve(bad)
    assert caught.value.result is None


def test_bf16_fits_but_reports_in_full_precision() -> None:
    problem = small_problem()
    full, half = (VariationalSolver(replace(SHORT, bf16=b)).solve(problem) for b in (False, True))
    assert half.sample(1, torch.Generator().manual_seed(0)).dtype == torch.float32
    assert half.trace != full.trace
    reported = half.elbo.clone()
    assert torch.equal(reported, half.measure_elbo(SHORT.final_draws, keyed_generator(SHORT.seed, 10**6)))
    assert abs(float(full.elbo - half.elbo)) < 5 * float((full.elbo_se**2 + half.elbo_se**2) ** 0.5) + 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"draws": 0}, "draws"),
        ({"steps": -1}, "steps"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"cooldown": 2}, "cooldown"),
        ({"start": "mode"}, "start = 'mode' is not valid: expected one of prior, point, laplace"),
        ({"start": "point", "space": "ambient"}, "is for a coupling or gaussian pre-generator in the latent space"),
        ({"start": "point", "pregenerator": PreGeneratorConfig("realnvp")}, "is for a coupling or gaussian"),
        ({"start_steps": 0}, "start_steps"),
        ({"warmup": -1}, "solver setting warmup must be at least 0, got -1"),
        ({"tolerance": -0.5}, "solver setting tolerance must be at least 0, got -0.5"),
        ({"seed": -1}, r"solver setting seed must lie in \[0, 2\^63\), got -1"),
        ({"seed": 2**63}, r"solver setting seed must lie in \[0, 2\^63\), got 9223372036854775808"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SHORT, **change)


def test_a_latent_that_is_neither_vector_nor_image_is_refused_by_its_shape() -> None:
    with pytest.raises(ValueError, match=r"\(2, 6\)"):
        build_pregenerator((2, 6), PreGeneratorConfig())
    assert build_pregenerator((2, 6), PreGeneratorConfig("gaussian")).decode(torch.ones(1, 2, 6))[0].shape == (1, 2, 6)


def test_an_unknown_preset_lists_the_known() -> None:
    with pytest.raises(ValueError, match="paper-mnist"):
        VariationalSolver("quick")
