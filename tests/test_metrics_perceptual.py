"""Networks rebuilt from weight files, against second implementations, the authors' numbers and finite differences."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import flowinv
from flowinv.metrics import STLPIPS, SqueezeNetFeatures
from flowinv.metrics.perceptual import unit_difference
from flowinv.store import BundleError

DATA = os.environ.get("FLOWINV_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="set FLOWINV_DATA to the folder of the weights")


def arrays(*shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    draw = np.random.default_rng(seed)
    return [torch.from_numpy(draw.random(shape)).float() for shape in shapes]


def trunk() -> nn.ModuleList:
    """ST-LPIPS's layers as its paper draws them, in five slices, with weights of a fixed seed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)

        class Blur(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                rows = functional.pad(x, (2, 2, 2, 2), mode="reflect")
                rows = (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:])[:, :, ::2] / 4
                return (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:])[..., ::2] / 4

        return nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(3, 64, 11, padding=2), Blur(), nn.ReLU()),
                nn.Sequential(nn.MaxPool2d(3, 1), Blur(), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU()),
                nn.Sequential(nn.MaxPool2d(3, 1), Blur(), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
                nn.Sequential(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
                nn.Sequential(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
            ]
        )


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    """What an ST-LPIPS file holds, with the trunk above."""
    blur = np.float32([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
    found = {
        "scaling_layer.shift": np.float32([-0.03, -0.088, -0.188]).reshape(1, 3, 1, 1),
        "scaling_layer.scale": np.float32([0.458, 0.448, 0.45]).reshape(1, 3, 1, 1),
        "net.slice1.1.filt": np.tile(blur, (64, 1, 1, 1)),
        "net.slice2.4.filt": np.tile(blur, (64, 1, 1, 1)),
        "net.slice3.8.filt": np.tile(blur, (192, 1, 1, 1)),
    }
    places = ("slice1.0", "slice2.5", "slice3.9", "slice4.11", "slice5.13")
    draw = np.random.default_rng(0)
    for layer, (place, part) in enumerate(zip(places, trunk(), strict=True)):
        convolution = next(m for m in part if isinstance(m, nn.Conv2d))
        found[f"net.{place}.weight"] = convolution.weight.detach().numpy()
        found[f"net.{place}.bias"] = convolution.bias.detach().numpy()
        found[f"lin{layer}.model.1.weight"] = draw.random((1, convolution.out_channels, 1, 1), dtype=np.float32)
    return found


@pytest.fixture(scope="module")
def path(weights: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "stlpips.npz"
    np.savez(path, **weights)
    return path


def oracle(weights: dict[str, np.ndarray], a: Tensor, b: Tensor) -> Tensor:
    """The distance by a second implementation, image by image."""
    values = []
    for pair in zip(a, b, strict=True):
        layers = []
        for image in pair:
            x = (2 * image[None] - 1 - torch.from_numpy(weights["scaling_layer.shift"])) / torch.from_numpy(
                weights["scaling_layer.scale"]
            )
            found = []
            for part in trunk():
                x = part(x)
                found.append(functional.normalize(x, dim=1))
            layers.append(found)
        value = torch.zeros(())
        for layer, (left, right) in enumerate(zip(*layers, strict=True)):
            linear = torch.from_numpy(weights[f"lin{layer}.model.1.weight"])
            value = value + (linear * (left - right) ** 2).sum(1).mean()
        values.append(value.detach())
    return torch.stack(values)


# -- ST-LPIPS --------------------------------------------------------------------------------------------------------


def test_stlpips_against_a_second_implementation(path: Path, weights: dict[str, np.ndarray]) -> None:
    before = torch.get_rng_state()
    distance = STLPIPS(path, size=32)
    a, b = arrays((2, 3, 40, 37), (2, 3, 40, 37))
    found = distance(a, b)
    torch.testing.assert_close(found, oracle(weights, a, b), rtol=1e-4, atol=0)
    assert torch.equal(before, torch.get_rng_state())
    assert not any(p.requires_grad for p in distance.parameters())
    torch.testing.assert_close(distance(b, a), found)
    assert distance(a, a).tolist() == [0, 0]


@pytest.mark.parametrize("fault", ["relu before blur", "range", "unit length"])
def test_the_second_implementation_sees_faults(
    path: Path, weights: dict[str, np.ndarray], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    distance = STLPIPS(path, size=32)
    a, b = arrays((1, 3, 40, 37), (1, 3, 40, 37))
    wanted = oracle(weights, a, b)
    if fault == "relu before blur":
        halve = distance._halve
        monkeypatch.setattr(distance, "_halve", lambda x: halve(torch.relu(x)))
    elif fault == "range":
        distance.shift = 2 * distance.shift + 1
    else:
        monkeypatch.setattr("flowinv.metrics.perceptual.unit_difference", lambda x: (x[:1] - x[1:]).square())
    assert (distance(a, b) / wanted - 1).abs() > 1e-2


def test_small_and_grey_images_are_enlarged_and_repeated(path: Path) -> None:
    distance = STLPIPS(path, size=40)
    a, b = arrays((2, 1, 20, 24), (2, 1, 20, 24))
    large = [functional.interpolate(v, (40, 48), mode="bilinear").repeat(1, 3, 1, 1) for v in (a, b)]
    torch.testing.assert_close(distance(a, b), distance(*large))
    for wrong in ((2, 2, 20, 24), (2, 20, 24), (1, 1, 20, 24)):
        with pytest.raises(ValueError, match=r"\("):
            distance(torch.zeros(wrong), a if wrong[0] == 1 else torch.zeros(wrong))
    with pytest.raises(ValueError, match=r"images must hold values in \[0, 1\], got values from"):
        distance(255 * a, 255 * b)
    with pytest.raises(ValueError, match="32 pixels"):
        STLPIPS(path, size=16)


def test_stlpips_gradient_against_finite_differences(path: Path) -> None:
    distance = STLPIPS(path, size=32).double()
    a, b = (v.double() for v in arrays((1, 1, 32, 32), (1, 1, 32, 32)))
    x = a.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(distance(b, x).sum(), x)
    h = 1e-6
    for seed in range(3):
        v = torch.randn(a.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        numeric = (distance(b, a + h * v) - distance(b, a - h * v)) / (2 * h)
        assert float((gradient * v).sum()) == pytest.approx(float(numeric), rel=1e-5)
        assert float((2 * gradient * v).sum()) != pytest.approx(float(numeric), rel=1e-2)
    (at_itself,) = torch.autograd.grad(distance(a, x).sum(), x)
    assert at_itself.abs().max() == 0


def test_places_where_nothing_is_active_have_gradient_zero() -> None:
    features = torch.zeros(2, 4, 3, 3)
    features[:, :, 1, 1] = torch.tensor([[1.0, 2.0, 0.0, 2.0], [0.0, 3.0, 4.0, 0.0]])
    features.requires_grad_()
    value = unit_difference(features)
    torch.testing.assert_close(value[0, :, 1, 1], torch.tensor([1 / 9, (2 / 3 - 0.6) ** 2, 0.64, 4 / 9]))
    (gradient,) = torch.autograd.grad(value.sum(), features)
    assert torch.isfinite(gradient).all() and gradient[:, :, 0, 0].abs().max() == 0
    naive = features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10)
    (broken,) = torch.autograd.grad((naive[0] - naive[1]).square().sum(), features)
    assert broken.isnan().any()


def test_a_distance_serves_as_a_generalised_likelihood(path: Path) -> None:
    distance = STLPIPS(path, size=32)
    with pytest.warns(UserWarning, match="generalised posterior"):
        likelihood = flowinv.Distance(distance, beta=3.0)
    (y, draws) = arrays((2, 1, 16, 16), (3, 2, 1, 16, 16))
    draws.requires_grad_()
    value = likelihood.log_prob(y, draws)
    assert value.shape == (3, 2)
    torch.testing.assert_close(value[1], -3 * distance(y, draws[1]))
    (gradient,) = torch.autograd.grad(value.sum(), draws)
    assert torch.isfinite(gradient).all() and (gradient.flatten(2).abs().sum(2) > 0).all()


def remove(weights: dict[str, np.ndarray]) -> None:
    del weights["lin3.model.1.weight"]


def reshape(weights: dict[str, np.ndarray]) -> None:
    weights["net.slice1.0.weight"] = weights["net.slice1.0.weight"][:, :, 1:, 1:]


def sharpen(weights: dict[str, np.ndarray]) -> None:
    weights["net.slice2.4.filt"] = np.zeros_like(weights["net.slice2.4.filt"])


def spoil(weights: dict[str, np.ndarray]) -> None:
    weights["net.slice1.0.bias"] = np.full_like(weights["net.slice1.0.bias"], np.nan)


@pytest.mark.parametrize(
    ("change", "message"), [(remove, "lin3"), (reshape, "slice1.0.weight"), (sharpen, "blurs"), (spoil, "NaN")]
)
def test_other_weights_are_refused(
    weights: dict[str, np.ndarray], tmp_path: Path, change: Callable[[dict[str, np.ndarray]], None], message: str
) -> None:
    other = dict(weights)
    change(other)
    np.savez(tmp_path / "w.npz", **other)
    with pytest.raises(BundleError, match=message):
        STLPIPS(tmp_path / "w.npz")


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    for network in (STLPIPS, SqueezeNetFeatures):
        with pytest.raises(FileNotFoundError, match="no such file"):
            network(tmp_path / "none.npz")
        (tmp_path / "text.npz").write_text("no zip")
        with pytest.raises(BundleError, match="cannot be read"):
            network(tmp_path / "text.npz")
        np.save(tmp_path / "a.npy", np.zeros(3))
        with pytest.raises(BundleError, match="cannot be read"):
            network(tmp_path / "a.npy")


@pytest.mark.data
@needs_data
def test_stlpips_against_its_authors_code() -> None:
    """Values by the package stlpips_pytorch 0.0.2 (net "alex", variant "shift_tolerant") for the same images."""
    assert DATA is not None
    distance = STLPIPS(Path(DATA) / "stlpips_alex.npz")
    square = [0.002385251922532916, 0.0027251108549535275, 0.002495021792128682]
    wide = [0.002460981486365199, 0.002489084145054221]
    draw = np.random.default_rng(0)
    for shape, wanted in (((3, 3, 64, 64), square), ((2, 3, 80, 96), wide)):
        a, b = (torch.from_numpy(draw.random(shape)).float() for _ in range(2))
        b = (a + 0.3 * (b - 0.5)).clamp(0, 1)
        with torch.no_grad():
            torch.testing.assert_close(distance(a, b), torch.tensor(wanted), rtol=1e-4, atol=0)


@pytest.mark.data
@needs_data
def test_stlpips_forgives_a_shift_and_not_another_digit() -> None:
    assert DATA is not None
    distance = STLPIPS(Path(DATA) / "stlpips_alex.npz")
    with np.load(Path(flowinv.__file__).parent / "demo" / "digits.npz") as file:
        digits = (torch.from_numpy(file["test_x"])[:, None].float() + 0.5) / 256
    with torch.no_grad():
        shifted, other = distance(digits, digits.roll(1, 3)), distance(digits, digits.roll(1, 0))
    errors = [(digits - v).square().flatten(1).sum(1) for v in (digits.roll(1, 3), digits.roll(1, 0))]
    assert (shifted < 0.25 * other).all() and (errors[0] > 0.25 * errors[1]).any()


# -- SqueezeNet ------------------------------------------------------------------------------------------------------


def squeezenet(seed: int = 0) -> nn.Module:
    models = pytest.importorskip("torchvision.models")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return models.squeezenet1_1(weights=None).features.eval()


def test_squeezenet_against_torchvision(tmp_path: Path) -> None:
    network = squeezenet()
    for bias in (p for name, p in network.named_parameters() if name.endswith("bias")):
        bias.data.uniform_(0, 0.1, generator=torch.Generator().manual_seed(1))  # torchvision starts them at 0
    np.savez(tmp_path / "s.npz", **{f"features.{k}": v.numpy() for k, v in network.state_dict().items()})
    ours = SqueezeNetFeatures(tmp_path / "s.npz")
    for shape in ((2, 3, 64, 64), (1, 3, 70, 91)):  # pooling rounds up at 70
        (x,) = arrays(shape)
        torch.testing.assert_close(ours(x), network(x).mean((2, 3)).detach())
        assert ours(x).shape == (shape[0], 512)
    (grey,) = arrays((2, 1, 32, 32))
    large = functional.interpolate(grey, (64, 64), mode="bilinear").repeat(1, 3, 1, 1)
    torch.testing.assert_close(ours(grey), network(large).mean((2, 3)).detach())
    x = grey.requires_grad_()
    (gradient,) = torch.autograd.grad(ours(x).sum(), x)
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 0
    with pytest.raises(ValueError, match=r"\(2, 4, 8, 8\)"):
        ours(torch.zeros(2, 4, 8, 8))


@pytest.mark.data
@needs_data
def test_squeezenet_with_its_weights() -> None:
    """Against torchvision, and for inputs in [0, 1]: the first layer hardly answers to the mean colour of ImageNet."""
    assert DATA is not None
    path = Path(DATA) / "squeezenet1_1_features.npz"
    network = squeezenet()
    with np.load(path) as file:
        network.load_state_dict({k.removeprefix("features."): torch.from_numpy(file[k]) for k in file.files})
    (x,) = arrays((2, 3, 64, 64))
    torch.testing.assert_close(SqueezeNetFeatures(path)(x), network(x).mean((2, 3)).detach())
    first = network[0]
    weight, bias = first.weight.detach(), first.bias.detach()
    answer = weight.sum((2, 3)) @ torch.tensor([0.485, 0.456, 0.406]) + bias
    normalised = bias  # if images were to be centred before, this is how it would answer
    assert answer.abs().mean() < 0.1 * normalised.abs().mean()
