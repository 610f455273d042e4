"""The benchmarks' own arithmetic: cases, budgets, scores, intervals, and that interrupted runs go on."""

from __future__ import annotations

import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.command import command_of
from benchmarks.composing import aggregate, ideal, page, run, semi, smoothing, tables, tune
from benchmarks.composing.bootstrap import indices, mean_interval, number
from benchmarks.composing.cases import CASES, RANDOM_OPERATORS, case_named, measured_elements, truth_of
from benchmarks.composing.crew import in_processes
from benchmarks.composing.data import order
from benchmarks.composing.engines import Outcome, fit_passes, solve, tiled
from benchmarks.composing.measure import energy_score, hidden, rows_of
from benchmarks.composing.methods import AMORTIZED, METHODS, PASSES, applies, asked_of, settings_of, tuned, with_changes
from benchmarks.composing.perception import Perception, Reference
from benchmarks.composing.picture import UNSEEN, measurement
from benchmarks.composing.run import RESULTS
from benchmarks.composing.scores import frechet, frechet_difference, inception_type, of_truths
from benchmarks.composing.store import Store, read_draws, read_features
from benchmarks.composing.studies import study_sections
from flowinv import Affine, Flow, Gaussian, InverseProblem, Mask
from flowinv.randomness import keyed_generator
from flowinv.solvers import Diverged, OptimizationSettings, SamplingSettings, VariationalSettings

NAN = float("nan")


def normal_images(shape: tuple[int, ...] = (1, 4, 4)) -> Flow:
    """N(.5, .2^2) pixels."""
    size = math.prod(shape)
    return Flow(Affine.from_covariance(torch.full(shape, 0.5), 0.04 * torch.eye(size)), shape)


# -- cases -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_a_case_measures_without_noise_and_again_the_same(name: str) -> None:
    case = CASES[name]
    shape = case.dataset.shape
    x = truth_of(torch.randint(2**case.dataset.bits, (1, *shape), generator=keyed_generator(1)), case.dataset.bits)
    tasks = [case.task_of(shape, 5), case.task_of(shape, 5), case.task_of(shape, 6)]
    first, again, other = (task.observe(x, torch.Generator(), noise=False) for task in tasks)
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (case.task not in RANDOM_OPERATORS)
    prediction = tasks[0].operator(x)
    seen = tasks[0].operator.observed
    assert torch.equal(first, prediction if seen is None else torch.where(seen, prediction, 0.0))
    assert isinstance(tasks[0].likelihood, Gaussian) and tasks[0].likelihood.sigma == case.sigma
    assert case.tuned_as in CASES


def test_halves_and_numbers_of_measurements_are_the_papers() -> None:
    bottom = case_named("mnist-bottom").task_of((1, 28, 28), 0).operator.observed
    assert bottom is not None and not bottom[..., :14, :].any() and bottom[..., 14:, :].all()
    top = case_named("faces-top").task_of((3, 32, 32), 0).operator.observed
    assert top is not None and top[..., :16, :].all() and not top[..., 16:, :].any()
    subpixels = case_named("faces-subpixels").task_of((3, 32, 32), 3).operator.observed
    assert subpixels is not None and int(subpixels.sum()) == 3 * 32 * 32 // 2 and subpixels.shape[-3] == 3
    sensing = case_named("faces-cs-1250")
    x = torch.full((1, 3, 64, 64), 0.5)
    for shape, count in (((3, 32, 32), 1250), ((3, 64, 64), 5000)):
        assert sensing.task_of(shape, 0).operator(x[..., : shape[1], : shape[2]]).shape == (1, count)


def test_truth_is_the_middle_of_its_grey_level() -> None:
    assert torch.equal(truth_of(torch.tensor([0, 31]), 5), torch.tensor([0.5, 31.5]) / 32)


def test_images_are_a_list_that_grows() -> None:
    assert sorted(order(50, 1)) == list(range(50)) and order(50, 1) != order(50, 2) and order(50, 1) == order(50, 1)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown case 'mnist': expected one of mnist-bottom"):
        case_named("mnist")
    with pytest.raises(ValueError, match="unknown method"):
        tune.method_named("gibbs")
    assert run.method_named("svi-mmse") == "svi" and run.method_named("asim") == "ivom"


# -- budgets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", ["mnist-bottom", "faces-top", "faces-subpixels", "faces-cs-250"])
def test_equal_budgets_are_kept(method: str, case: str) -> None:
    grid = tune.tried(method) if method in tune.GRIDS else []
    for changes in [{}, *grid]:
        settings = settings_of(method, case_named(case), changes=changes)
        if isinstance(settings, VariationalSettings):
            assert fit_passes(settings, settings.steps, case_named(case).measured) <= 5000
        elif isinstance(settings, SamplingSettings):
            passes = {"lmc": 1, "mala": 1, "hmc": settings.leapfrogs, "pl-mcmc": 2}[settings.kernel]
            kept = settings.steps // settings.thin if settings.bf16 else 0
            start = 2 if settings.kernel == "pl-mcmc" else 1
            used = start + (settings.warmup + settings.steps) * passes + kept
            assert 0.9 * PASSES < used <= PASSES, used
        elif isinstance(settings, OptimizationSettings):
            assert 0.9 * PASSES < settings.restarts * (settings.steps + 1) <= PASSES
        else:
            assert method == "avi"


def test_the_papers_settings() -> None:
    expected = {
        "mnist-bottom": (64, 1000, 1e-3, 32, 3, 3),
        "cifar10-subpixels": (32, 1000, 5e-4, 48, 4, 4),
        "faces-top": (8, 4000, 5e-4, 48, 3, 3),
        "faces-colorize": (8, 1000, 5e-4, 48, 3, 3),
        "faces-cs-250": (8, 4000, 5e-4, 48, 3, 3),
        "cifar10-cs-500": (32, 1000, 5e-4, 48, 4, 4),
    }
    for name, values in expected.items():
        fit = settings_of("svi", case_named(name), "paper")
        assert isinstance(fit, VariationalSettings)
        family = fit.pregenerator
        found = (fit.draws, fit.steps, fit.learning_rate, family.hidden, family.scales, family.blocks)
        assert found == values and family.family == "realnvp" and not fit.early_stop
    for name, length in (("mnist-bottom", 4000), ("cifar10-subpixels", 1000), ("faces-top", 4000)):
        chain = settings_of("lmc", case_named(name), "paper")
        assert isinstance(chain, SamplingSettings)
        assert (chain.warmup + chain.steps, chain.step_size, chain.keep) == (length, 5e-4, "last")
    csgm = settings_of("csgm", case_named("faces-cs-250"), "paper")
    assert isinstance(csgm, OptimizationSettings)
    assert (csgm.learning_rate, csgm.weight, csgm.restarts, csgm.init_scale) == (0.02, 0.1, 3, 0.1)


def test_settings_follow_tuning_and_flags(tmp_path: Path) -> None:
    case = case_named("mnist-top")
    known = {"mnist-bottom": {"lmc": {"settings": {"step_size": 0.25}}}}
    (tmp_path / "tuned.json").write_text(json.dumps(known))
    assert tuned(case, "lmc", tmp_path / "tuned.json") == {"step_size": 0.25}
    assert tuned(case, "svi", tmp_path / "tuned.json") == {} and tuned(case, "lmc", tmp_path / "none.json") == {}
    plain = settings_of("lmc", case, precision="float32", changes={"step_size": 0.25})
    assert isinstance(plain, SamplingSettings) and plain.step_size == 0.25 and not plain.bf16
    longer = with_changes(settings_of("hmc", case, changes={}), {"leapfrogs": 20})
    assert isinstance(longer, SamplingSettings) and longer.leapfrogs == 20
    assert 20 * (longer.steps + longer.warmup) < PASSES
    assert not applies("pl-mcmc", case_named("faces-colorize")) and applies("pl-mcmc", case)
    with pytest.raises(ValueError, match="budget is equal or paper"):
        settings_of("svi", case, "endless")


# -- engines -----------------------------------------------------------------------------------------


def test_tiled_observations_keep_their_masks() -> None:
    masks = torch.zeros(2, 1, 4, 4)
    masks[0, :, :2] = 1
    masks[1, :, 2:] = 1
    y = masks * torch.arange(32.0).view(2, 1, 4, 4) / 32
    problem = tiled(InverseProblem(normal_images(), Mask(masks, (1, 4, 4)), Gaussian(0.1), y), 3)
    assert problem.batch == 6 and problem.observed is not None
    for copy in range(3):
        part = slice(2 * copy, 2 * copy + 2)
        assert torch.equal(problem.y[part], y) and torch.equal(problem.observed[part], masks.bool())


@pytest.mark.parametrize("method", [name for name in METHODS if name not in AMORTIZED])
def test_every_method_gives_draws_of_every_observation(method: str) -> None:
    case = case_named("mnist-bottom")
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., 2:, :] = 1
    y = mask * torch.tensor([0.3, 0.6]).view(2, 1, 1, 1)
    problem = InverseProblem(normal_images(), Mask(mask, (1, 4, 4)), Gaussian(0.1), y)
    settings = settings_of(method, case, precision="float32", shrink=100, changes={})
    first = settings_of("svi", case, precision="float32", shrink=100, changes={}) if method == "hmc-noise" else None
    outcome = solve(method, problem, settings, 3, 7, first=first)  # type: ignore[arg-type]
    assert outcome.draws.shape == (3, 2, 1, 4, 4) and outcome.mean.shape == outcome.std.shape == (2, 1, 4, 4)
    assert outcome.mean_of >= 3 and outcome.passes > 0 and all(len(v) == 2 for v in outcome.about.values())
    assert not torch.equal(outcome.draws[0], outcome.draws[1])
    again = solve(method, problem, settings, 3, 7, first=first)  # type: ignore[arg-type]
    assert torch.equal(outcome.draws, again.draws)


def test_a_point_is_one_draw_tuned_by_its_error() -> None:
    case = case_named("faces-top")
    for name in ("csgm", "ivom"):
        point, draws = METHODS[f"{name}-point"], METHODS[name]
        assert (asked_of(f"{name}-point", case).draws, point.criterion) == (1, "squared_error")
        assert (asked_of(name, case), draws.criterion) == (case, "energy_score")
        assert settings_of(f"{name}-point", case, changes={}) == settings_of(name, case, changes={})


# -- what is measured --------------------------------------------------------------------------------


def test_energy_score_by_its_definition() -> None:
    g = keyed_generator(3)
    draws, truth = torch.randn(5, 2, 1, 3, 3, generator=g), torch.randn(2, 1, 3, 3, generator=g)
    for b in range(2):
        near = sum(float((x - truth[b]).norm()) for x in draws[:, b]) / 5
        pairs = [float((s - t).norm()) for i, s in enumerate(draws[:, b]) for j, t in enumerate(draws[:, b]) if i != j]
        assert float(energy_score(draws, truth)[b]) == pytest.approx(near - 0.5 * sum(pairs) / 20, rel=1e-5)


def test_energy_score_sees_through_over_confidence_where_squared_error_does_not() -> None:
    g = keyed_generator(4)
    truth = torch.randn(4000, 1, 2, 2, generator=g)
    noise = torch.randn(8, 4000, 1, 2, 2, generator=g)
    scores = {scale: float(energy_score(scale * noise, truth).mean()) for scale in (0.5, 1.0, 2.0)}
    assert scores[1.0] < min(scores[0.5], scores[2.0]) - 0.02
    errors = {scale: float((scale * noise - truth).square().sum((2, 3, 4)).mean()) for scale in (0.0, 1.0)}
    assert errors[1.0] == pytest.approx(2 * errors[0.0], rel=0.05)  # a calibrated draw: twice the least error


def test_rows_of_two_observations() -> None:
    pytest.importorskip("torchmetrics")
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8:, :] = 1
    truth = torch.full((2, 1, 16, 16), 0.5)
    problem = InverseProblem(normal_images((1, 16, 16)), Mask(mask, (1, 16, 16)), Gaussian(0.1), mask * truth)
    draws = truth.expand(4, *truth.shape).clone()
    draws[:, 1, :, :8] += 0.1
    draws[:, 1, :, 8:] += 0.2
    eyes = Perception(lambda a, b: (a - b).abs().flatten(1).mean(1), None, ("d", "f"))
    outcome = Outcome(draws, draws.mean(0), draws.std(0), 4, 10, 8.0, 6.0, {"elbo": [1.0, NAN]})
    exact, off = rows_of(problem, truth, outcome, eyes)
    assert exact["squared_error"] == 0 and exact["chi_squared"] == 0 and exact["psnr"] is None  # infinite
    assert off["squared_error"] == pytest.approx(128 * (0.01 + 0.04), rel=1e-4)
    assert off["squared_error_hidden"] == pytest.approx(1.28, rel=1e-4)
    assert off["chi_squared"] == pytest.approx(4, rel=1e-4) and off["perceptual"] == pytest.approx(0.15, rel=1e-4)
    assert off["seconds"] == 4 and off["seconds_per_draw"] == 0.75 and off["elbo"] is None and exact["elbo"] == 1
    unseen = hidden(problem)
    assert unseen is not None and int(unseen[0].sum()) == 128


def test_a_hidden_half_is_shown_in_a_colour_of_its_own() -> None:
    case = case_named("mnist-bottom")
    prior = normal_images((1, 28, 28))
    picture = measurement(case.problem(prior, torch.full((1, 1, 28, 28), 0.5), 0))
    assert picture.shape == (28, 28, 3) and (picture[:14] == UNSEEN).all() and (picture[14:] == 128).all()


# -- intervals and scores ----------------------------------------------------------------------------


def test_bootstrap_intervals_cover_as_often_as_they_say() -> None:
    """Of 200 intervals of 95 % over 60 exponential values some 185 hold the mean; narrower ones are found out."""
    g = keyed_generator(5)
    held = narrow = 0
    for trial in range(200):
        values = torch.empty(60).exponential_(generator=g).tolist()
        found = mean_interval(values, seed=trial)
        held += found.low <= 1 <= found.high
        half = (found.high - found.low) / 4
        narrow += abs(found.value - 1) <= half
    assert 176 <= held <= 199
    assert narrow < 170


def test_an_interval_of_one_image_is_open() -> None:
    found = mean_interval([2.0])
    assert found.value == 2 and math.isnan(found.low) and found.text() == "2"
    assert indices(7, 3).shape == (3, 7)
    assert (number(1234.5), number(0.01234), number(NAN)) == ("1230", "0.0123", "–")
    with pytest.raises(ValueError, match="at least one image"):
        mean_interval([])


def test_frechet_score_of_known_gaussians() -> None:
    g = keyed_generator(6)
    real = torch.randn(4000, 8, generator=g)
    reference = Reference.of(real, range(1000))
    same = frechet(torch.randn(500, 4, 8, generator=g), reference)
    moved = frechet(torch.randn(500, 4, 8, generator=g) + 0.5, reference)
    assert same.value < 0.05 and moved.value == pytest.approx(8 * 0.25, rel=0.1)
    assert moved.low < moved.value < moved.high and moved.high - moved.low < 0.5
    assert math.isnan(frechet(torch.zeros(2, 4, 8), reference).value)  # fewer draws than a covariance needs


def test_frechet_score_of_the_truths_falls_with_images_not_with_copies() -> None:
    real = torch.randn(4000, 8, generator=keyed_generator(6))
    reference = Reference.of(real, range(1000, 2000))
    few, many = (of_truths(reference, range(count), 4) for count in (20, 1000))
    assert many < 0.05 < few == pytest.approx(of_truths(reference, range(20), 8), rel=0.02)
    assert many == pytest.approx(frechet(real[1000:2000, None].expand(-1, 4, -1), reference).value, abs=0.01)
    assert math.isnan(of_truths(reference, [0, 1], 4)) and math.isnan(of_truths(reference, [999, 1000], 9))


def test_means_of_few_draws_are_brought_to_as_many() -> None:
    """Draws around a biased mean: what the mean of 32 would have is foretold from the mean of 4."""
    g = keyed_generator(9)
    draws = 0.3 + torch.randn(2000, 32, 5, generator=g)

    def row(k: int) -> dict[str, float]:
        few = draws[:, :k]
        error, of_mean = (float(x.square().sum(-1).mean()) for x in (few, few.mean(1)))
        return {"mean_of": k, "squared_error": error, "squared_error_mean": of_mean, "squared_error_hidden": None}

    wanted = row(32)["squared_error_mean"]
    assert row(4)["squared_error_mean"] > 2 * wanted
    assert aggregate.mean_of_as_many(row(4))["squared_error_mean"] == pytest.approx(wanted, rel=0.05)
    assert aggregate.mean_of_as_many(row(1)) == row(1) and aggregate.mean_of_as_many(row(32)) == row(32)


def test_the_reference_survives_the_disk(tmp_path: Path) -> None:
    g = keyed_generator(7)
    made = Reference.of(torch.randn(400, 80, generator=g), [7, 3])
    made.save(tmp_path / "reference.npz")
    read = Reference.load(tmp_path / "reference.npz")
    assert made.basis.shape == (80, 64) and torch.equal(made.mean, read.mean) and torch.equal(made.basis, read.basis)
    assert torch.allclose(made.basis.T @ made.basis, torch.eye(64), atol=1e-4)
    assert torch.allclose(read.truths, made.truths, rtol=1e-3, atol=1e-3) and len(read.truths) == 2


def test_inception_type_score_of_sure_and_unsure_classifiers() -> None:
    sure = torch.eye(10).repeat(20, 1).view(50, 4, 10)
    assert inception_type(sure).value == pytest.approx(10, rel=1e-3)
    assert inception_type(torch.full((50, 4, 10), 0.1)).value == pytest.approx(1, rel=1e-3)


# -- files -------------------------------------------------------------------------------------------


def _row(image: int, **values: object) -> dict[str, object]:
    return {"image": image, "squared_error": 1.5, **values}


def test_a_store_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "case" / "svi.json"
    store = Store(path, {"steps": (1, 2)})
    sheet = {"draws": np.zeros((2, 1, 4, 4), np.uint8)}
    for image in (3, 0, 9):
        store.add(_row(image), np.full((2, 5), image, np.float16), sheet)
    store.add({"image": 1, "failed": "step 3: not finite"}, None, None)
    store.write({"command": "c", "value": NAN})
    again = Store(path, {"steps": [1, 2]})
    assert again.missing(5) == [2, 4] and again.rows[3] == _row(3)
    again.add(_row(2), np.full((2, 5), 2, np.float16), sheet)
    again.write({"command": "c"})
    found, features, draws = json.loads(path.read_text()), read_features(path), read_draws(path)
    assert [row["image"] for row in found["rows"]] == [0, 1, 2, 3, 9]
    assert (
        features is not None and features[0].tolist() == [0, 2, 3, 9] and features[1][:, 0, 0].tolist() == [0, 2, 3, 9]
    )
    assert draws is not None and draws["image"].tolist() == [0, 2, 3]  # the first eight images alone
    with pytest.raises(ValueError, match="other settings \\(steps\\)"):
        Store(path, {"steps": [1, 3]})
    assert Store(path, {"steps": [1, 3]}, restart=True).rows == {}


def test_a_row_whose_features_were_lost_is_done_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "svi.json", {})
    for image in (0, 1):
        store.add(_row(image), np.zeros((2, 5), np.float16), None)
    store.write({})
    del store.features[1]
    store.write({})
    assert Store(tmp_path / "svi.json", {}).missing(2) == [1]


def random_digits(folder: Path) -> None:
    """A data set in MNIST's form."""
    g = np.random.default_rng(0)
    digits = {"train_x": (2101, 28, 28), "test_x": (80, 28, 28)}
    np.savez(folder / "mnist.npz", **{k: g.integers(0, 256, s, dtype=np.uint8) for k, s in digits.items()})


def test_a_run_goes_on_and_agrees_with_an_unbroken_one(tmp_path: Path) -> None:
    pytest.importorskip("torchmetrics")
    random_digits(tmp_path)
    common = ["mnist-bottom", "--methods", "csgm", "--data", str(tmp_path), "--draws", "2", "--shrink", "100"]
    common += ["--workers", "0", "--precision", "float32", "--together", "1"]
    run.main([*common, "--images", "1", "--out", str(tmp_path / "broken")])
    run.main([*common, "--images", "2", "--out", str(tmp_path / "broken")])
    run.main([*common, "--images", "2", "--out", str(tmp_path / "whole")])
    one, two = (
        json.loads((tmp_path / name / "mnist-bottom" / "csgm-shrunk100.json").read_text())["rows"]
        for name in ("broken", "whole")
    )
    timeless = [{k: v for k, v in row.items() if "seconds" not in k} for row in one]
    assert timeless == [{k: v for k, v in row.items() if "seconds" not in k} for row in two] and len(two) == 2


@pytest.mark.parametrize("name", ["faces-cs-25", "faces-subpixels", "faces-top", "faces-superres"])
def test_a_batch_holds_the_problems_that_its_images_have_alone(name: str) -> None:
    case, prior = case_named(name), normal_images((3, 32, 32))
    x = torch.rand(3, 3, 32, 32, generator=keyed_generator(2))
    batch = case.problem(prior, x, 5)
    for b in range(3):
        alone = case.problem(prior, x[b : b + 1], 5 + b)
        torch.testing.assert_close(alone.y, batch.y[b : b + 1])
        assert np.abs(measurement(alone).astype(int) - measurement(batch, b).astype(int)).max() <= 1
    again = tiled(batch, 2)
    draws = torch.rand(4, 6, 3, 32, 32, generator=keyed_generator(3))
    for k in (0, 3):  # copy by copy
        torch.testing.assert_close(again.operator(draws)[:, k : k + 3], batch.operator(draws[:, k : k + 3]))
    assert torch.equal(again.y, batch.y.repeat(2, *[1] * (batch.y.dim() - 1)))


def test_groups_of_images_follow_one_another() -> None:
    assert run.together([0, 1, 2, 5, 6, 9], 2) == [[0, 1], [2], [5, 6], [9]]
    assert run.together([], 3) == []


def test_images_that_are_solved_together_have_rows_of_their_own(tmp_path: Path) -> None:
    pytest.importorskip("torchmetrics")
    random_digits(tmp_path)
    common = ["mnist-bottom", "--methods", "lmc", "--data", str(tmp_path), "--draws", "2", "--shrink", "200"]
    run.main([*common, "--workers", "0", "--images", "3", "--together", "2", "--out", str(tmp_path)])
    path = tmp_path / "mnist-bottom" / "lmc-shrunk200.json"
    rows = json.loads(path.read_text())["rows"]
    assert [(r["image"], r["test_index"], r["together"]) for r in rows] == list(
        zip(range(3), order(80)[:3], (2, 2, 1), strict=True)
    )
    sheets, features = read_draws(path), read_features(path)
    assert sheets is not None and features is not None and len(features[1]) == 3
    with np.load(tmp_path / "mnist.npz") as file:
        assert all(np.array_equal(sheets["truth"][b, 0], file["test_x"][order(80)[b]]) for b in range(3))
    for b, row in enumerate(rows):
        draws = torch.from_numpy(sheets["draws"][b]).double() / 256 + 1 / 512
        truth = torch.from_numpy(sheets["truth"][b]).double() / 256 + 1 / 512
        assert float((draws - truth).square().sum((1, 2, 3)).mean()) == pytest.approx(row["squared_error"], rel=0.01)


def _half(x: int) -> float:
    if x == 5:
        raise ValueError("five is not even")
    return x / 2


@pytest.mark.slow
def test_processes_do_all_jobs_and_pass_on_what_goes_wrong() -> None:
    assert sorted(in_processes(_half, [2, 4, 6], 2)) == [1, 2, 3]
    with pytest.raises(ValueError, match="five is not even"):
        list(in_processes(_half, [2, 5, 6, 8], 2))


def test_no_processes_do_the_same_here() -> None:
    assert list(in_processes(_half, [2, 4], 0)) == [1, 2]


# -- tuning, studies and the page --------------------------------------------------------------------


def test_tuning_takes_the_least_complete_score() -> None:
    rows = [
        {"changes": {"a": 1}, "image": 0, "energy_score": 3.0},
        {"changes": {"a": 1}, "image": 1, "energy_score": 4.0},
        {"changes": {"a": 2}, "image": 0, "energy_score": 3.4},
        {"changes": {"a": 2}, "image": 1, "energy_score": 3.5},
        {"changes": {"a": 2}, "image": 2, "energy_score": 9.0},  # an image that the others were not run on
        {"changes": {"a": 3}, "image": 0, "energy_score": 0.1},  # one image only
        {"changes": {"a": 4}, "image": 0, "energy_score": 0.1},
        {"changes": {"a": 4}, "image": 1, "failed": "step 3"},
    ]
    assert tune.best(rows, 2) == ({"a": 2}, pytest.approx(3.45))
    assert tune.best(rows[-1:], 2) is None
    errors = [{**row, "squared_error": -row.get("energy_score", 0.0)} for row in rows[:5]]
    assert tune.best(errors, 2, "squared_error") == ({"a": 1}, pytest.approx(-3.5))
    assert tune.settings_in({"a": (1, 2), "b": (3,)}) == [{"a": 1, "b": 3}, {"a": 2, "b": 3}]


def test_the_ideal_draw_has_twice_the_least_error() -> None:
    errors = torch.arange(10, dtype=torch.float64)
    found = ideal.study(errors, (9, 8, 7), 2)
    assert found["all"]["value"] == 4.5 and found["case"]["value"] == 8.5 and found["twice_case"]["value"] == 17
    image = torch.rand(3, 1, 28, 28, generator=keyed_generator(8))
    seen = ideal.bottom(image)
    assert not seen[:, :, :14].any() and torch.equal(seen[:, :, 14:], image[:, :, 14:])
    expected = image[:, :, :14].double().square().flatten(1).sum(1)
    assert torch.allclose(ideal.hidden_error(torch.nn.Identity(), image), expected)
    assert ideal.Regression(8)(seen).shape == image.shape


def test_steps_of_a_start_are_counted_against_the_longest() -> None:
    rows = [
        {"reference": 10.0, "amortized": {"elbo": {"0": 1.0, "50": 9.5}, "steps": 50}},
        {"reference": 10.0, "amortized": {"elbo": {"0": 9.2}, "steps": 0}},
        {"reference": 10.0, "amortized": {"elbo": {"0": 3.0, "50": 5.0}, "steps": None}},
    ]
    found = semi.summarise(rows, 1000)["amortized"]
    assert (found["median"], found["reached"], found["of"]) == (50, 2, 3)
    assert found["gap_at_0"]["value"] == pytest.approx((9 + 0.8 + 7) / 3) and found["gap_at_50"]["count"] == 2


def test_masks_of_their_own_are_counted_one_by_one() -> None:
    """Half of the sub-pixels of each face, though together four masks show nearly all of them."""
    case = case_named("faces-subpixels")
    masks = torch.cat([case.task_of((3, 32, 32), i).operator.mask for i in range(4)])
    assert int(masks.bool().any(0).sum()) > 2800
    assert measured_elements(torch.zeros(4, 3, 32, 32), masks.bool()) == case.measured == 1536


def test_smoothing_is_compared_on_the_images_that_all_have() -> None:
    rows = [
        {"variant": v, "scale": 0.1, "image": i, "squared_error": float(10 * i)}
        for v, n in (("l2", 2), ("annealed", 4))
        for i in range(n)
    ]
    assert [(e["variant"], e["images"], e["squared_error"]["value"]) for e in smoothing.summarise(rows)] == [
        ("l2", 2, 5.0),
        ("annealed", 2, 5.0),
    ]


def test_smoothing_is_summarised_in_order() -> None:
    rows = [
        {"variant": "l2", "scale": 0.1, "image": i, "observed": 0.01 * i, "squared_error": 1.0, "perceptual": 1.0}
        for i in (1, 2)
    ]
    rows.append({"variant": "l2", "scale": 1.0, "image": 0, "failed": "step 3"})
    (entry,) = smoothing.summarise(rows)
    assert entry["images"] == 2 and entry["observed"]["value"] == pytest.approx(0.015) and entry["energy_score"] is None


def test_gains_over_plain_fits_are_taken_image_by_image() -> None:
    scores = {name: 1.0 for name in smoothing.SCORES}
    rows = [
        {"variant": variant, "scale": 0.01, "image": i, **scores, "perceptual": 10.0 * i - (variant == "annealed")}
        for i in range(5)
        for variant in ("l2", "annealed")
        if (variant, i) != ("l2", 4)  # an image that only one of the two was run on
    ]
    rows += [
        {"variant": variant, "scale": scale, "image": 0, **scores, "energy_score": score}
        for variant, scale, score in (("l2", 0.1, 3.0), ("perceptual", 300.0, 5.0))
    ]
    entry, distance = smoothing.gains(rows)
    assert (entry["variant"], entry["scale"], entry["images"]) == ("annealed", 0.01, 4)
    assert entry["squared_error"]["value"] == 0.0
    assert (distance["variant"], distance["images"], distance["energy_score"]["value"]) == ("perceptual", 1, 2.0)
    assert (entry["perceptual"]["low"], entry["perceptual"]["high"]) == (-1.0, -1.0)


def test_the_page_tells_what_is_missing_and_keeps_what_was_written_by_hand() -> None:
    cells = {"squared_error": {"value": 30.0, "low": 28.0, "high": 32.0, "count": 37}}
    entry = {"images": 37, "planned": 100, "failed": 1, "draws": 6, "mean_of": 32, "cells": cells, "judges": ["D", "F"]}
    found = {"mnist-bottom": {"svi": {**entry, "frechet_of_truths": None}}}
    before = f"old\n{page.OPEN}\nSVI is ahead.\n{page.CLOSE}\nold"
    text = "\n".join(page.page(found, {}, before, ["figure-9.png"]))
    assert "SVI is ahead." in text and "37 of 100, 1 diverged" in text and "30 (28 – 32)" in text
    assert "Not run: AVI, zero-shot, " in text and "LMC, MALA" in text
    assert "5.15, 22.13, 0.076" in text and "composing/figure-9.png" in text
    assert "of the truths" in text and "wall seconds" in text
    assert page.OPEN in "".join(page.page({}, {}, None, []))


def test_differences_are_taken_image_by_image(tmp_path: Path) -> None:
    names = ("squared_error", "squared_error_mean", "perceptual", "energy_score", "psnr", "psnr_mean")
    for method, images, shift in (("svi", range(6), 0.0), ("lmc", (1, 2, 4, 7), 3.0)):
        store = Store(tmp_path / f"{method}.json", {})
        for i in images:  # images differ by far more than methods do
            store.add({"image": i, **{name: 100.0 * i + shift for name in names}}, None, None)
        store.write({"reference": "none.npz"})
    found = aggregate.paired(tmp_path / "lmc.json", tmp_path / "svi.json", tmp_path)
    assert {v.count for v in found.values()} == {3} and set(found) == {*names[:4], "psnr_of_mean"}
    assert all((found[name].low, found[name].high) == (3.0, 3.0) for name in names[:4])
    assert found["psnr_of_mean"].value == -3.0
    assert aggregate.paired(tmp_path / "hmc.json", tmp_path / "svi.json", tmp_path) == {}


def test_the_difference_of_frechet_distances_is_paired() -> None:
    """Two methods with the same draws do not differ, however much images do; a shift of one is seen."""
    generator = keyed_generator(31)
    draws = torch.randn(40, 4, 3, generator=generator) + 3 * torch.randn(40, 1, 3, generator=generator)
    flat = draws.flatten(0, 1).double()
    reference = Reference(torch.eye(3), flat.mean(0), flat.T.cov(), flat[:8].float())
    same = frechet_difference(draws, draws, reference)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    shifted = frechet_difference(draws + 2.0, draws, reference)
    assert shifted.value == pytest.approx(12.0, rel=1e-3) and shifted.low > 0


def test_sensing_tells_of_means_and_images() -> None:
    psnr = {
        name: {"value": v, "low": v - 1, "high": v + 1, "count": 8} for name, v in (("psnr", 22.0), ("psnr_mean", 24.0))
    }
    entry = {"images": 8, "mean_of": 32, "cells": psnr, "judges": ["D", "F"]}
    text = page.sensing_section(
        {"faces-cs-25": {"svi": entry}, "faces-cs-250": {"csgm-point": {**entry, "mean_of": 1, "images": 16}}}
    )
    assert (
        "| measurements of 3072 | images | SVI | SVI, mean | CSGM, one point | SVI's mean over CSGM, one point |"
        in text
    )
    assert "| 25 | 8 | 22 (21 – 23) | 24 (23 – 25) | – | – |" in text and "| 250 | 16 | – | – | 22" in text
    assert "the mean is over 32 (SVI)." in text and page.sensing_section({}) == ""


def test_what_was_tuned_is_told_with_the_grids_ends() -> None:
    entry = {"settings": {"learning_rate": 0.1, "weight": 0.001}, "squared_error": 17.25, "validation_images": 8}
    grid = [(0.1, 1e-4), (0.1, 1e-3), (0.02, 1e-2)]
    rows = [{"method": "csgm-point", "solver": {"learning_rate": rate, "weight": weight}} for rate, weight in grid]
    rows.append({"method": "csgm", "solver": {"learning_rate": 1.0, "weight": 1e-3}})  # another method's
    studies = {"tuned": {"faces-top": {"csgm-point": entry}}, "tried": {"faces-top": rows}}
    text = "\n".join(study_sections(studies, {}))
    assert "| faces-top | CSGM, one point | learning_rate 0.1*, weight 0.001 | squared error 17.2 | 8 |" in text


def test_the_page_is_that_of_the_rows(tmp_path: Path) -> None:
    """What stands in docs/benchmarks is what the rows in the repository give."""
    there = Path("docs/benchmarks/composing.md")
    shutil.copy(there, tmp_path / "composing.md")
    shutil.copytree(there.with_suffix(""), tmp_path / "composing")
    found = tables.tables(RESULTS)
    tables.write(tmp_path / "composing.md", found, RESULTS)
    assert (tmp_path / "composing.md").read_text() == there.read_text()


@pytest.mark.parametrize("option", ["--images", "--draws", "--together", "--shrink"])
def test_nothing_is_no_number_of_images(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run.main(["mnist-bottom", "--data", "nowhere", option, "0"])
    assert stop.value.code == 2 and f"{option} must be at least 1, got 0" in capsys.readouterr().err


def test_exceptions_of_workers_come_back() -> None:
    with pytest.raises(Diverged, match=r"step 3: the loss is not finite\. Lower the learning rate") as caught:
        list(in_processes(_diverges, [3], 1))
    assert (caught.value.step, caught.value.result) == (3, "so far")
    with pytest.raises(RuntimeError, match="_Odd: no way to pickle 4"):
        list(in_processes(_diverges, [4], 1))


class _Odd(Exception):
    """Like many of libraries: made of one thing, pickled as another."""

    def __init__(self, number: int, other: int):
        super().__init__(f"no way to pickle {number}")
        self.line = lambda: other


def _diverges(job: int) -> None:
    if job == 4:
        raise _Odd(job, 1)
    raise Diverged(job, "the loss", "so far")


def test_commands_do_not_tell_where_the_data_are() -> None:
    said = command_of("m", ["a", "--data", "/some/where", "--images", "3"])
    assert said == "python -m m a --data DATA --images 3"
    assert command_of("m", ["--data=/some/where"]) == "python -m m --data=DATA"


def test_a_method_on_one_image_more_keeps_its_settings() -> None:
    case = case_named("mnist-bottom")
    settings = settings_of("svi", case, changes={})
    known = [run.identity(replace(case, images=n), "svi", settings, None, "f", None) for n in (1, 2)]
    assert known[0] == known[1]
    assert run.identity(replace(case, draws=9), "svi", settings, None, "f", None) != known[0]
