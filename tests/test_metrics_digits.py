"""The digit classifier that ships, its distance, and how it was trained."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import flowinv
from flowinv import metrics
from flowinv.metrics import DigitClassifier, DigitDistance
from flowinv.metrics.train_classifier import ClassifierSettings, LabelledDigits, accuracy, main, read_digits, train
from flowinv.store import CONFIG, WEIGHTS, BundleError, read_bundle, write_bundle

DATA = os.environ.get("FLOWINV_DATA")
HOME = Path(flowinv.__file__).parent / "metrics" / "weights" / "digits"


@pytest.fixture(scope="module")
def classifier() -> DigitClassifier:
    return DigitClassifier.shipped()


@pytest.fixture(scope="module")
def digits() -> Tensor:
    """The ten test digits of the demo, 0 to 9."""
    with np.load(Path(flowinv.__file__).parent / "demo" / "digits.npz") as file:
        assert file["test_y"].tolist() == list(range(10))
        return (torch.from_numpy(file["test_x"])[:, None].float() + 0.5) / 256


def squares(count: int, seed: int = 0) -> LabelledDigits:
    """Bright squares whose place, one of ten, is their label."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 10
    images = torch.randint(60, (count, 28, 28), generator=draw, dtype=torch.uint8)
    for image, label in zip(images, labels.tolist(), strict=True):
        row, column = 4 + 12 * (label // 5), 2 + 5 * (label % 5)
        image[row : row + 7, column : column + 4] = 255
    return LabelledDigits(images, labels)


def test_refuses_other_units_than_0_to_1_but_not_draws_that_overshoot(
    classifier: DigitClassifier, digits: Tensor
) -> None:
    distance, told = DigitDistance(classifier), r"digits must hold values in \[0, 1\], got values from 0\.\d+ to 25"
    wrong = digits.clone()
    wrong[4] *= 255
    for pair in ((wrong, digits), (digits, wrong), (255 * digits, 255 * digits)):
        with pytest.raises(ValueError, match=told):
            distance(*pair)
    with pytest.raises(ValueError, match=told):
        classifier.probabilities(255 * digits)
    with pytest.raises(ValueError, match=r"digits must hold values in \[0, 1\], got values from -0.99"):
        distance(2 * digits - 1, digits)
    assert (distance(1.2 * digits - 0.04, digits) > 0).all()
    # an iterate may be anywhere: solvers have words of their own for what diverges
    assert torch.isfinite(distance(digits, (255 * digits).requires_grad_())).all()


# -- what ships ------------------------------------------------------------------------------------------------------


def test_what_ships_is_small_described_and_knows_digits(classifier: DigitClassifier, digits: Tensor) -> None:
    assert (HOME / WEIGHTS).stat().st_size <= 300_000 and "never to be compared" in " ".join(
        (HOME / "README.md").read_text().split()
    )
    config, _ = read_bundle(HOME, "flowinv-digit-classifier")
    assert config["test_accuracy"] >= 0.99
    found = classifier(digits)
    right = int((found.argmax(1) == torch.arange(10)).sum())
    assert right >= 9  # at 99 % accuracy fewer are right in 4 of 1000 tens of digits
    assert classifier.features(digits).shape == (10, 64) and not found.requires_grad
    torch.testing.assert_close(classifier.probabilities(digits).sum(1), torch.ones(10))


def test_loading_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    DigitClassifier.shipped()
    assert torch.equal(before, torch.get_rng_state())


def test_other_images_are_refused(classifier: DigitClassifier) -> None:
    for shape in ((2, 28, 28), (2, 3, 28, 28), (2, 1, 32, 32)):
        with pytest.raises(ValueError, match=r"\(N, 1, 28, 28\), got \("):
            classifier(torch.zeros(shape))
    with pytest.raises(TypeError, match="uint8"):
        classifier(torch.zeros(1, 1, 28, 28, dtype=torch.uint8))


def test_save_and_load(classifier: DigitClassifier, digits: Tensor, tmp_path: Path) -> None:
    classifier.save(tmp_path / "a", {"note": 1})
    assert torch.equal(DigitClassifier.load(tmp_path / "a")(digits), classifier(digits))
    with pytest.raises(FileExistsError):
        classifier.save(tmp_path / "a")
    config, tensors = read_bundle(tmp_path / "a", "flowinv-digit-classifier")
    write_bundle(tmp_path / "b", config, {k: t for k, t in tensors.items() if k != "head.bias"})
    with pytest.raises(BundleError, match=r"head\.bias"):
        DigitClassifier.load(tmp_path / "b")
    write_bundle(tmp_path / "c", {**config, "channels": [1, 2]}, tensors)
    with pytest.raises(BundleError, match="channels"):
        DigitClassifier.load(tmp_path / "c")
    (tmp_path / "a" / CONFIG).write_text('{"format": "flowinv-prior"}')
    with pytest.raises(BundleError, match="format"):
        DigitClassifier.load(tmp_path / "a")


# -- what it measures ------------------------------------------------------------------------------------------------


def test_distance_is_zero_at_equality_symmetric_and_bounded(classifier: DigitClassifier, digits: Tensor) -> None:
    distance = DigitDistance(classifier)
    assert distance(digits, digits).abs().max() == 0
    other = digits.roll(1, 0)
    torch.testing.assert_close(distance(digits, other), distance(other, digits))
    assert (distance(digits, digits.roll(1, 3)) < 0.5 * distance(digits, other)).all()
    assert distance(digits, other).max() < 6
    with pytest.raises(ValueError, match=r"\(10, 1, 28, 28\) and \(1, 1, 28, 28\)"):
        distance(digits, digits[:1])


def test_distance_gradient_against_finite_differences(digits: Tensor) -> None:
    distance = DigitDistance(DigitClassifier.shipped().double())
    a, b = digits[3:4].double(), digits[8:9].double()
    noise = torch.randn(a.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = (a + 0.05 * noise).requires_grad_()  # off the ties between equal pixels, where maxima have no gradient
    (gradient,) = torch.autograd.grad(distance(b, x).sum(), x)
    h, v = 1e-6, noise.flip(3)
    numeric = (distance(b, x.detach() + h * v) - distance(b, x.detach() - h * v)) / (2 * h)
    assert float((gradient * v).sum()) == pytest.approx(float(numeric), rel=1e-5)


def test_distance_as_the_likelihood_of_a_problem(classifier: DigitClassifier, digits: Tensor) -> None:
    with pytest.warns(UserWarning, match="generalised posterior"):
        likelihood = flowinv.Distance(DigitDistance(classifier), beta=10.0)
    prior = flowinv.load_prior("mnist")
    problem = flowinv.InverseProblem(prior, flowinv.Identity(), likelihood, digits[:2])
    z = torch.randn(3, 2, *prior.shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    value = problem.potential(z)
    assert value.shape == (3, 2)
    (gradient,) = torch.autograd.grad(value.sum(), z)
    assert torch.isfinite(gradient).all()
    expected = 0.5 * z.square().flatten(2).sum(2) + 10 * metrics.distance_to_truth(
        DigitDistance(classifier), prior.decode(z.flatten(0, 1))[0].reshape(3, 2, 1, 28, 28), digits[:2]
    )
    differences = (value - expected).detach()
    torch.testing.assert_close(differences, differences[:1, :1].expand(3, 2), rtol=0, atol=1e-2)  # a constant


@pytest.mark.data
@pytest.mark.skipif(not DATA, reason="set FLOWINV_DATA to the folder of mnist.npz")
def test_accuracy_and_distances_of_sets(classifier: DigitClassifier) -> None:
    assert DATA is not None
    test = read_digits(Path(DATA) / "mnist.npz", "test")
    assert accuracy(classifier, test) >= 0.99
    images = (test.images[:, None].float() + 0.5) / 256
    halves = images[0::2][:1000], images[1::2][:1000]
    noise = torch.randn(halves[0].shape, generator=torch.Generator().manual_seed(0))
    reference = metrics.features_of(classifier.features, halves[1])

    def frechet(x: Tensor) -> float:
        return metrics.frechet_distance(metrics.features_of(classifier.features, x), reference)

    same, noisy, blurred = (
        frechet(halves[0]),
        frechet(halves[0] + 0.3 * noise),
        frechet(halves[0].roll(1, 2) / 2 + halves[0] / 2),
    )
    one_class = frechet(halves[0][test.labels[0::2][:1000] == 3])
    assert 0 < 5 * same < min(noisy, blurred, one_class)
    with torch.no_grad():
        score, _ = metrics.inception_type_score(classifier.probabilities(halves[0]), 4)
        unsure, _ = metrics.inception_type_score(classifier.probabilities(noise.clamp(0, 1)), 4)
    assert 9 < score <= 10 and unsure < 5


# -- training --------------------------------------------------------------------------------------------------------


def test_training_learns_repeats_itself_and_leaves_the_global_generator_alone() -> None:
    data, before, losses = squares(300), torch.get_rng_state(), []
    settings = ClassifierSettings(epochs=4, batch=30, shift=0, seed=3)
    first = train(data, settings, lambda epoch, loss: losses.append(loss))
    short = LabelledDigits(data.images[:60], data.labels[:60])
    once, again, other = (train(short, ClassifierSettings(epochs=2, batch=30, seed=seed)) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(once.state_dict().values(), again.state_dict().values(), strict=True))
    assert not torch.equal(once.head.weight, other.head.weight)
    assert torch.equal(before, torch.get_rng_state())
    assert losses[-1] < 0.5 * losses[0] and accuracy(first, squares(100, seed=1)) > 0.9
    shuffled = LabelledDigits(data.images, data.labels.roll(1))
    assert accuracy(first, shuffled) < 0.5


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = squares(60)
    arrays = {
        f"{part}_{k}": v.numpy() for part in ("train", "test") for k, v in (("x", data.images), ("y", data.labels))
    }
    np.savez(tmp_path / "d.npz", **arrays)
    command = ["--data", str(tmp_path / "d.npz"), "--out", str(tmp_path / "out"), "--epochs", "1"]
    main(command)
    assert "test accuracy" in capsys.readouterr().out
    assert "1 epochs" in (tmp_path / "out" / "README.md").read_text()
    DigitClassifier.load(tmp_path / "out")
    with pytest.raises(SystemExit):
        main(command)
    assert "already holds a bundle" in capsys.readouterr().err
    main([*command, "--overwrite"])


def no_labels(arrays: dict[str, np.ndarray]) -> None:
    del arrays["train_y"]


def floats(arrays: dict[str, np.ndarray]) -> None:
    arrays["train_x"] = arrays["train_x"] / 255


def eleven(arrays: dict[str, np.ndarray]) -> None:
    arrays["train_y"] = arrays["train_y"] + 2


@pytest.mark.parametrize(
    ("change", "message"), [(no_labels, "must hold train_x and train_y"), (floats, "float64"), (eleven, "0 to 9")]
)
def test_other_data_are_refused(tmp_path: Path, change: Callable[[dict[str, np.ndarray]], None], message: str) -> None:
    data = squares(20)
    arrays = {"train_x": data.images.numpy(), "train_y": data.labels.numpy()}
    change(arrays)
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        read_digits(tmp_path / "d.npz", "train")
    with pytest.raises(FileNotFoundError):
        read_digits(tmp_path / "none.npz", "train")
