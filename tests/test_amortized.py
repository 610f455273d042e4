"""Amortised inference against closed forms, and what an amortizer must refuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from exact_posterior import Exact

from flowinv import (
    CustomLikelihood,
    Flow,
    FunctionOperator,
    Gaussian,
    InverseProblem,
    Mask,
    Operator,
    Poisson,
    VariationalSolver,
)
from flowinv.families import Conditional, ConditionalConfig
from flowinv.flows import GlowConfig, build
from flowinv.randomness import keyed_generator
from flowinv.solvers import PRESETS, AmortizedSettings, AmortizedTrainer, Amortizer, Diverged, PreGeneratorConfig
from flowinv.solvers.amortized import _use, shipped_amortizers
from flowinv.store import BundleError, read_bundle, write_bundle
from flowinv.tasks import Task, task

SMALL = AmortizedSettings(
    steps=400,
    observations=32,
    draws=4,
    learning_rate=5e-3,
    warmup=10,
    couplings=4,
    hidden=32,
    features=16,
    blocks=1,
    bf16=False,
)


def gaussian_trainer(settings: AmortizedSettings = SMALL) -> tuple[AmortizedTrainer, Exact]:
    """Four unknowns, two of them observed, so that both the mean's dependence on y and the covariance matter."""
    exact = Exact((4,), batch=8, sigma=0.1, dtype=torch.float32, seed=3)
    problem = exact.problem
    found = Task(problem.operator, problem.likelihood, {**problem.operator.spec, "likelihood": problem.likelihood.spec})
    return AmortizedTrainer(exact.prior, found, settings), exact


@pytest.fixture(scope="module")
def trained() -> tuple[Amortizer, Exact]:
    trainer, exact = gaussian_trainer()
    return trainer.run(), exact


def gap(amortizer: Amortizer, exact: Exact) -> torch.Tensor:
    """log p(y) - ELBO: the KL divergence from the closed-form posterior, one per observation."""
    posterior = amortizer.posterior(exact.problem)
    return exact.log_evidence - posterior.measure_elbo(1000, keyed_generator(5))


def test_zero_shot_posteriors_are_near_the_closed_form(trained: tuple[Amortizer, Exact]) -> None:
    amortizer, exact = trained
    found = gap(amortizer, exact)
    assert (found > -0.05).all() and found.mean() < 0.25
    posterior = amortizer.posterior(exact.problem)
    mean = posterior.mean(4000)
    sd = exact.covariance.diagonal().sqrt()
    assert ((mean - exact.mean) / sd).abs().mean() < 0.25


def test_an_amortizer_told_of_the_wrong_observation_is_far_off(trained: tuple[Amortizer, Exact]) -> None:
    amortizer, exact = trained
    wrong = InverseProblem(exact.prior, exact.problem.operator, exact.problem.likelihood, exact.y.roll(1, 0))
    posterior = amortizer.posterior(exact.problem)
    posterior.family.map.context.copy_(amortizer.posterior(wrong).family.map.context)
    assert (exact.log_evidence - posterior.measure_elbo(1000, keyed_generator(5))).mean() > 1  # as against .25 above


def test_fitting_goes_on_from_it() -> None:
    trainer, exact = gaussian_trainer(replace(SMALL, steps=60))  # too short: something is left to do
    amortizer = trainer.run()
    before = gap(amortizer, exact)
    start = amortizer.start(exact.problem, PreGeneratorConfig(steps=2, hidden=16))
    weights = {k: v.clone() for k, v in start.state_dict().items()}
    settings = replace(PRESETS["semi-amortized"], steps=150, draws=32, learning_rate=5e-3)
    posterior = VariationalSolver(settings).solve(exact.problem, start=start)
    after = exact.log_evidence - posterior.measure_elbo(1000, keyed_generator(5))
    assert before.mean() > 0.1 and after.mean() < 0.5 * before.mean() and (after > -0.05).all()
    assert all(torch.equal(v, weights[k]) for k, v in start.state_dict().items())
    assert torch.equal(gap(amortizer, exact), before)


def image_trainer(settings: AmortizedSettings) -> tuple[AmortizedTrainer, Flow]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        prior = Flow(build(GlowConfig((1, 8, 8), steps=(2,), hidden=8)), (1, 8, 8)).eval()
    return AmortizedTrainer(prior, task("inpaint-bottom", prior.shape, sigma=0.3), settings), prior


TINY = replace(SMALL, steps=6, observations=2, draws=2, hidden=8, features=4, squeezes=1)


def test_a_resumed_training_is_the_unbroken_one(tmp_path: Path) -> None:
    unbroken = image_trainer(TINY)[0].run()
    first, _ = image_trainer(TINY)
    first.run(tmp_path, until=3)
    second, _ = image_trainer(TINY)
    second.load(tmp_path)
    assert second.step == 3
    resumed = second.run(tmp_path)
    for a, b in zip(unbroken.conditional.parameters(), resumed.conditional.parameters(), strict=True):
        assert torch.equal(a, b)
    other, _ = image_trainer(replace(TINY, seed=1))
    with pytest.raises(ValueError, match="another prior, task or settings"):
        other.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "options", "likelihood", "told"),
    [
        ("denoise", {}, Gaussian(0.25), "--task denoise --sigma 0.25 --solver avi --amortizer FOLDER"),
        ("denoise", {}, Poisson(0.1), "--task denoise --likelihood poisson --sigma 0.1 --solver"),
        ("deblur", {"kernel": "box"}, Gaussian(0.1), "--task deblur -o kernel=box -o padding=reflect --sigma"),
        # what no command can say
        ("denoise", {}, Poisson(0.1, background=0.1), None),
        ("denoise", {}, Gaussian(torch.full((1, 8, 8), 0.1)), None),
        ("inpaint-mask", {"mask": torch.eye(8)}, Gaussian(0.1), None),
        ("inpaint-box", {"size": (2, 3)}, Gaussian(0.1), None),
    ],
)
def test_its_card_gives_a_command_where_there_is_one(name, options, likelihood, told) -> None:
    prior = image_trainer(TINY)[1]
    card = (
        AmortizedTrainer(prior, task(name, prior.shape, likelihood=likelihood, **options), TINY).result().card("p", "-")
    )
    if told is None:
        assert "flowinv solve" not in card and "`Amortizer.load(FOLDER).posterior(problem)`" in card
    else:
        assert told in card


def test_the_card_of_a_distance_quotes_its_weights() -> None:
    distance = {"name": "stlpips", "weights": "/a b/w.npz", "size": 64}
    spec = {"task": "denoise", "options": {}, "likelihood": {"kind": "distance", "distance": distance, "beta": 3.0}}
    assert "--task denoise --likelihood stlpips --beta 3.0 --weights '/a b/w.npz' --solver avi" in _use("p", spec)
    spec["likelihood"] = {"kind": "distance", "distance": {**distance, "size": 128}, "beta": 3.0}
    assert "flowinv solve" not in _use("p", spec)


def test_save_load_and_what_it_refuses(tmp_path: Path) -> None:
    trainer, prior = image_trainer(TINY)
    amortizer = trainer.run()
    amortizer.save(tmp_path / "a", amortizer.card("mine", "flowinv amortize x.toml"))
    assert "inpaint-bottom" in (tmp_path / "a" / "README.md").read_text()
    with pytest.raises(FileExistsError):
        amortizer.save(tmp_path / "a")
    found = Amortizer.load(tmp_path / "a")
    chosen = task("inpaint-bottom", prior.shape, sigma=0.3)
    y = chosen.observe(torch.rand(3, 1, 8, 8, generator=keyed_generator(1)), keyed_generator(2))
    problem = InverseProblem.from_task(prior, chosen, y)
    a, b = (m.posterior(problem).sample(2, keyed_generator(3)) for m in (amortizer, found))
    assert torch.equal(a, b) and a.shape == (2, 3, 1, 8, 8)
    cases = {
        "trained for Gaussian": InverseProblem(prior, chosen.operator, Gaussian(0.2), y),
        "it was trained for": InverseProblem(prior, task("inpaint-top", prior.shape).operator, Gaussian(0.3), y),
        "another prior": InverseProblem(image_trainer(TINY)[1], chosen.operator, Gaussian(0.3), y),
    }
    with torch.no_grad():
        next(cases["another prior"].given_prior.parameters()).add_(1)
    cases["another prior"] = InverseProblem(cases["another prior"].given_prior, chosen.operator, Gaussian(0.3), y)
    for message, wrong in cases.items():
        with pytest.raises(ValueError, match=f"does not fit the problem: .*{message}"):
            found.posterior(wrong)
    config, tensors = read_bundle(tmp_path / "a", "flowinv-amortizer")
    for lost in ("settings", "steps"):
        provenance = {k: v for k, v in config["provenance"].items() if k != lost}
        write_bundle(tmp_path / lost, {**config, "provenance": provenance}, tensors)
        with pytest.raises(BundleError, match=f"is not a whole amortizer: it misses '{lost}'"):
            Amortizer.load(tmp_path / lost)


def test_masks_that_look_alike_are_told_apart() -> None:
    _, prior = image_trainer(TINY)
    masks = [Mask((torch.arange(64) % 2 == k).view(1, 8, 8), prior.shape) for k in (0, 1)]
    amortizer = AmortizedTrainer(prior, Task(masks[0], Gaussian(0.1), {}), TINY).result()
    problem = InverseProblem(prior, masks[1], Gaussian(0.1), torch.where(masks[1].mask, 0.5, torch.zeros(1, 1, 8, 8)))
    with pytest.raises(ValueError, match=r"it was trained for another Mask.*, with other values"):
        amortizer.posterior(problem)


def test_operators_without_gradient_and_inference_mode_are_refused() -> None:
    exact = Exact((4,), batch=2, dtype=torch.float32)
    cut = FunctionOperator(lambda x: x.detach().round())
    with pytest.raises(ValueError, match=r"log p\(y\|x\) passes no gradient to x"):
        AmortizedTrainer(exact.prior, Task(cut, Gaussian(0.1), {}), replace(SMALL, steps=2)).run()
    _, prior = image_trainer(TINY)
    with pytest.raises(ValueError, match=r"A\(x\) passes no gradient to x"):
        AmortizedTrainer(prior, Task(cut, Gaussian(0.1), {}), TINY)
    trainer, _ = gaussian_trainer(replace(SMALL, steps=2))
    with torch.inference_mode(), pytest.raises(ValueError, match=r"call it outside of torch\.inference_mode"):
        trainer.run()


def test_one_channel_is_no_pair_for_couplings() -> None:
    with pytest.raises(ValueError, match=r"shape \(1,\) has 1 after 0 squeezes$"):
        Conditional(ConditionalConfig((1,), (2,), squeezes=0))


def test_noise_that_is_a_tensor_or_code_is_told_apart() -> None:
    _, prior = image_trainer(TINY)
    sigma = torch.full((1, 8, 8), 0.3)
    chosen = task("inpaint-bottom", prior.shape, likelihood=Gaussian(sigma))
    amortizer = AmortizedTrainer(prior, chosen, TINY).result()
    y = chosen.observe(torch.rand(1, 1, 8, 8, generator=keyed_generator(1)), keyed_generator(2))
    assert amortizer.refuses(InverseProblem(prior, chosen.operator, Gaussian(sigma.clone()), y)) is None
    assert amortizer.refuses(InverseProblem(prior, chosen.operator, Gaussian(2 * sigma), y)) is not None
    mine, other = (CustomLikelihood(lambda y, p: -(y - p).square().flatten(-3).sum(-1)) for _ in range(2))
    amortizer = AmortizedTrainer(prior, Task(chosen.operator, mine, {}), TINY).result()
    assert amortizer.refuses(InverseProblem(prior, chosen.operator, mine, y)) is None
    assert amortizer.refuses(InverseProblem(prior, chosen.operator, other, y)) is not None
    functions = [lambda x: 2 * x[..., :4, :], lambda x: 3 * x[..., :4, :]]
    amortizer = AmortizedTrainer(prior, Task(FunctionOperator(functions[0]), Gaussian(0.1), {}), TINY).result()
    for function, fits in zip(functions, (True, False), strict=True):
        problem = InverseProblem(prior, function, amortizer.task.likelihood, y[..., :4, :])
        assert (amortizer.refuses(problem) is None) == fits


def test_an_operator_in_code_float64_and_no_leak_into_its_weights() -> None:
    exact = Exact((4,), batch=2, dtype=torch.float64)
    net = torch.nn.Linear(4, 3).double()
    problem = InverseProblem(exact.prior, net, Gaussian(0.1), torch.zeros(2, 3, dtype=torch.float64))
    settings = replace(SMALL, steps=3)
    trainer = AmortizedTrainer(exact.prior, Task(problem.operator, problem.likelihood, {}), settings)
    amortizer = trainer.run()
    assert all(p.grad is None for p in net.parameters())
    with torch.no_grad():
        posterior = amortizer.posterior(problem)
    assert posterior.sample(2, keyed_generator(0)).dtype == torch.float64
    found = VariationalSolver(replace(PRESETS["semi-amortized"], steps=2)).solve(
        problem, start=amortizer.start(problem)
    )
    assert torch.isfinite(found.elbo).all()


def test_learning_rate_and_noise_settings() -> None:
    trainer, _ = image_trainer(replace(TINY, steps=100, warmup=10, learning_rate=1.0))
    rates = []
    for trainer.step in (0, 10, 50, 99):
        rates.append(trainer.learning_rate())
    assert rates == pytest.approx([0.1, 0.9755, 0.5, 0.00025], abs=1e-4)
    noisy, clean = (image_trainer(replace(TINY, noise=noise))[0]._simulated(0).y for noise in (True, False))
    assert 0.2 < float((noisy - clean)[:, :, 4:].std()) < 0.4 and torch.equal(noisy[:, :, :4], clean[:, :, :4])


@pytest.mark.parametrize("name", shipped_amortizers())
def test_the_card_of_a_shipped_amortizer_says_how_to_use_it(name: str) -> None:
    folder = shipped_amortizers()[name]
    amortizer = Amortizer.load(folder)
    use = _use(name.split("-")[0], amortizer.task.spec)
    assert "--amortizer FOLDER" in use and use in (folder / "README.md").read_text(encoding="utf-8")


def test_the_shipped_amortizer_is_found_and_answers_at_once() -> None:
    from importlib.resources import files

    import numpy as np

    from flowinv import load_prior
    from flowinv.solvers import find_amortizer, solve

    prior = load_prior("mnist")
    chosen = task("inpaint-bottom", prior.shape, sigma=0.1)
    with np.load(str(files("flowinv") / "demo" / "digits.npz")) as file:
        truth = (torch.from_numpy(file["test_x"][:3])[:, None].float() + 0.5) / 256
    problem = InverseProblem.from_task(prior, chosen, chosen.observe(truth, keyed_generator(0), noise=False))
    amortizer = find_amortizer(problem)
    assert amortizer is not None and sum(p.numel() for p in amortizer.conditional.parameters()) * 4 < 8e6
    posterior = solve("avi", problem)
    prior_guess = problem.log_likelihood(prior.sample(64, keyed_generator(1))[:, None].expand(64, 3, 1, 28, 28)).mean(0)
    assert (posterior.measure_elbo(64, keyed_generator(2)) > 200).all() and (prior_guess < -1000).all()
    other = InverseProblem(prior, chosen.operator, Gaussian(0.2), problem.y)
    assert find_amortizer(other) is None
    double = InverseProblem.from_task(load_prior("mnist").double(), chosen, problem.y.double())
    assert find_amortizer(double).prior_sha256 == amortizer.prior_sha256 != double.prior_fingerprint
    noise = torch.randn(16, 3, 1, 28, 28, generator=keyed_generator(3))
    exact = solve("avi", double)
    a, b = (p.family.draw(noise.to(p.problem.y), p.problem.prior) for p in (posterior, exact))
    assert b.x.dtype == b.log_q.dtype == torch.float64 and exact.mean(2).dtype == torch.float64
    torch.testing.assert_close(a.x.mean(0).double(), b.x.mean(0), atol=1e-3, rtol=0)
    torch.testing.assert_close(a.inner.double(), b.inner, atol=1e-3, rtol=0)
    start = find_amortizer(double).start(double)
    assert next(start.parameters()).dtype == torch.float64
    with torch.no_grad():
        next(double.given_prior.parameters()).mul_(1 + 1e-6)  # a trace of another prior
    assert find_amortizer(InverseProblem.from_task(double.given_prior, chosen, double.y)) is None


def test_semi_amortized_by_name_starts_from_the_amortizer() -> None:
    from flowinv.solvers import settings_for, solve

    trainer, prior = image_trainer(TINY)
    amortizer = trainer.run()
    with torch.no_grad():
        for p in amortizer.conditional.parameters():
            p += 0.1 * torch.randn(p.shape, generator=keyed_generator(p.numel()))
    chosen = task("inpaint-bottom", prior.shape, sigma=0.3)
    y = chosen.observe(torch.rand(2, 1, 8, 8, generator=keyed_generator(1)), keyed_generator(2))
    problem = InverseProblem.from_task(prior, chosen, y)
    settings = settings_for("semi-amortized", steps=2, final_draws=8)
    by_name = solve("semi-amortized", problem, settings, amortizer=amortizer)
    by_hand = VariationalSolver(settings).solve(problem, start=amortizer.start(problem))
    with pytest.raises(ValueError, match="a family to start from was given, and start = 'laplace' asks for another"):
        VariationalSolver(replace(settings, start="laplace")).solve(problem, start=amortizer.start(problem))
    for a, b in zip(by_name.family.parameters(), by_hand.family.parameters(), strict=True):
        assert torch.equal(a, b)


def test_solvers_by_name_take_their_own_settings_alone() -> None:
    from flowinv.solvers import SAMPLING_PRESETS, settings_for, solve

    problem = Exact((4,), batch=2, dtype=torch.float32).problem
    with pytest.raises(ValueError, match="these settings are not lmc's: kernel is 'hmc'"):
        solve("lmc", problem, SAMPLING_PRESETS["hmc"])
    with pytest.raises(ValueError, match="these settings are not ambient's: space is 'latent'"):
        solve("ambient", problem, PRESETS["fast"])
    with pytest.raises(TypeError, match="csgm takes OptimizationSettings, or a preset's name, got SamplingSettings"):
        solve("csgm", problem, SAMPLING_PRESETS["hmc"])
    with pytest.raises(ValueError, match="csgm has no preset 'fast': expected one of csgm-fast"):
        solve("csgm", problem, "fast")
    by_name = solve("ivom", problem, "ivom-fast")
    torch.testing.assert_close(by_name.x, solve("ivom", problem).x)
    assert settings_for("ambient", "paper-mnist") == replace(PRESETS["paper-mnist"], space="ambient")
    short = settings_for("pl-mcmc", steps=20)
    assert (short.steps, short.warmup, short.thin) == (20, 10, 1)
    assert settings_for("pl-mcmc", steps=20, warmup=3).warmup == 3


def test_settings_and_operators_that_are_refused() -> None:
    for wrong in ({"steps": 0}, {"draws": -1}, {"average": 1.0}, {"learning_rate": 0.0}, {"seed": 1.5}, {"bf16": "no"}):
        with pytest.raises(ValueError, match=f"amortizer setting {next(iter(wrong))}"):
            AmortizedSettings(**wrong)
    _, prior = image_trainer(TINY)
    masks = Mask((torch.rand(2, 1, 8, 8, generator=keyed_generator(0)) < 0.5), prior.shape)
    with pytest.raises(ValueError, match="mask for each of 2 observations"):
        AmortizedTrainer(prior, Task(masks, Gaussian(0.1), {}), TINY)


def test_a_loss_that_is_not_finite_stops_with_the_last_good_state() -> None:
    trainer, _ = image_trainer(TINY)
    trainer.run(until=2)
    with torch.no_grad():
        next(trainer.conditional.parameters()).fill_(float("nan"))
    with pytest.raises(Diverged, match="step 2: the loss is not finite") as caught:
        trainer.run()
    assert all(torch.isfinite(p).all() for p in caught.value.result.conditional.parameters())


def test_an_operator_of_a_users_own_class_is_known_again() -> None:
    class Doubled(Operator):
        def apply(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    _, prior = image_trainer(TINY)
    operator = Doubled(prior.shape)
    amortizer = AmortizedTrainer(prior, Task(operator, Gaussian(0.1), {}), TINY).result()
    y = torch.rand(1, 1, 8, 8, generator=keyed_generator(1))
    assert amortizer.refuses(InverseProblem(prior, operator, amortizer.task.likelihood, y)) is None
    assert amortizer.refuses(InverseProblem(prior, Doubled(prior.shape), amortizer.task.likelihood, y)) is not None
