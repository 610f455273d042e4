"""Errors per image against scikit-image and hand-made numbers; shapes that do not match are refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from flowinv import metrics


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(*shape: int, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    truth = images(*shape)
    return (truth + noise * (images(*shape, seed=1) - 0.5)).clamp(0, 1), truth


PER_IMAGE: list[Callable[..., Tensor]] = [
    metrics.sum_squared_error,
    metrics.mean_squared_error,
    metrics.psnr,
    metrics.ssim,
]


@pytest.mark.parametrize("metric", PER_IMAGE)
def test_one_value_per_image_also_of_draws(metric: Callable[..., Tensor]) -> None:
    pytest.importorskip("torchmetrics")
    truth = images(3, 1, 12, 13)
    draws = (truth + 0.1 * (images(2, 4, 3, 1, 12, 13, seed=1) - 0.5)).clamp(0, 1)
    values = metric(draws, truth)
    assert values.shape == (2, 4, 3)
    for i, j, b in ((0, 0, 0), (1, 3, 2), (0, 2, 1)):
        torch.testing.assert_close(values[i, j, b : b + 1], metric(draws[i, j, b : b + 1], truth[b : b + 1]))


@pytest.mark.parametrize("metric", [*PER_IMAGE, lambda x, truth: metrics.pooled_psnr(x, truth, 8)])
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 12, 12), (3, 1, 12, 1), (1, 12, 12), (3, 3, 12, 12), (5, 1, 1, 12, 12), (2, 3, 12, 12), (12, 12)],
)
def test_nothing_broadcasts_but_draws(metric: Callable[..., Tensor], shape: tuple[int, ...]) -> None:
    pytest.importorskip("torchmetrics")
    truth = images(3, 1, 12, 12)
    with pytest.raises(ValueError, match=r"\(3, 1, 12, 12\)") as caught:
        metric(images(*shape), truth)
    assert str(tuple(shape)) in str(caught.value)


@pytest.mark.parametrize("metric", PER_IMAGE)
def test_bytes_are_refused(metric: Callable[..., Tensor]) -> None:
    pytest.importorskip("torchmetrics")
    with pytest.raises(TypeError, match="uint8"):
        metric(torch.zeros(1, 1, 12, 12, dtype=torch.uint8), images(1, 1, 12, 12))
    with pytest.raises(TypeError, match="ndarray"):
        metric(np.zeros((1, 1, 12, 12)), images(1, 1, 12, 12))


@pytest.mark.parametrize("metric", PER_IMAGE)
def test_no_images_are_refused(metric: Callable[..., Tensor]) -> None:
    pytest.importorskip("torchmetrics")
    with pytest.raises(ValueError, match=r"is empty, of shape \(0, 1, 12, 12\)"):
        metric(torch.zeros(0, 1, 12, 12), torch.zeros(0, 1, 12, 12))


def test_squared_errors_by_hand() -> None:
    truth = torch.zeros(2, 1, 2, 2)
    x = torch.tensor([[[[0.1, 0.2], [0.0, 0.0]]], [[[0.0, 0.0], [0.0, 0.5]]]])
    torch.testing.assert_close(metrics.sum_squared_error(x, truth), torch.tensor([0.05, 0.25]))
    torch.testing.assert_close(metrics.mean_squared_error(x, truth), torch.tensor([0.0125, 0.0625]))
    torch.testing.assert_close(metrics.sum_squared_error(x.flatten(1), truth.flatten(1)), torch.tensor([0.05, 0.25]))
    assert metrics.sum_squared_error(x, truth).dtype == torch.float32


def test_psnr_is_that_of_scikit_image() -> None:
    skimage = pytest.importorskip("skimage.metrics")
    x, truth = pair(3, 3, 16, 16)
    for data_range in (1.0, 2.0):
        pairs = zip(x.numpy(), truth.numpy(), strict=True)
        wanted = [skimage.peak_signal_noise_ratio(t, a, data_range=data_range) for a, t in pairs]
        found = metrics.psnr(x, truth, data_range)
        np.testing.assert_allclose(found, wanted, rtol=1e-12)
    root = (x - truth).square().flatten(1).mean(1).sqrt()
    assert (20 * (1 / root.sqrt()).log10() - metrics.psnr(x, truth)).abs().min() > 5  # the double square root
    assert metrics.psnr(truth, truth).eq(math.inf).all()
    with pytest.raises(ValueError, match="data_range"):
        metrics.psnr(x, truth, 0.0)


def test_pooled_psnr_undoes_the_published_double_square_root() -> None:
    """The published code: bytes floored to 5 bits, one root mean square for the batch, and a second root by mistake."""
    x, truth = pair(32, 3, 8, 8)
    x[0] += 0.3  # leaves [0, 1]: clamped to the last of 32 levels, byte 248
    levels = [np.clip(np.floor(v.numpy() * 32), 0, 31) * 8 for v in (x, truth)]
    root = np.sqrt(np.mean((levels[0] - levels[1]) ** 2))
    printed = 20 * np.log10(255 / np.sqrt(root))
    found = float(metrics.pooled_psnr(x, truth, bits=5))
    assert found == pytest.approx(2 * printed - 48.1308, abs=1e-3)
    assert abs(found - printed) > 5


def test_pooled_psnr_refuses_other_units_than_0_to_1_but_not_draws_that_overshoot() -> None:
    x, truth = pair(4, 1, 8, 8)
    for wrong, name in (((255 * x, truth), "x"), ((x, 255 * truth), "truth"), ((255 * x, 255 * truth), "x")):
        with pytest.raises(
            ValueError, match=rf"^{name} must hold values in \[0, 1\], got values from [01](\.\d+)? to 25\d"
        ):
            metrics.pooled_psnr(*wrong, 5)
    with pytest.raises(ValueError, match=r"^x must hold values in \[0, 1\], got values from -"):
        metrics.pooled_psnr(2 * x - 1, truth, 5)
    over = torch.where(torch.arange(8) == 3, 1.5 * x + 0.5, x)
    assert float(metrics.pooled_psnr(over, truth, 5)) == float(metrics.pooled_psnr(over.clamp(0, 1), truth, 5))


def test_pooled_psnr_is_below_the_mean_and_pools_draw_by_draw() -> None:
    truth = (torch.arange(256, dtype=torch.float64).reshape(4, 1, 8, 8) + 0.5) / 256
    x = truth + torch.tensor([1, 2, 8, 64], dtype=torch.float64).view(4, 1, 1, 1) / 256
    x = torch.where(x < 1, x, 2 * truth - x)  # every pixel is off by a whole number of bytes
    pooled = metrics.pooled_psnr(x, truth, 8)
    assert pooled < metrics.psnr(x, truth, 255 / 256).mean() - 1  # Jensen
    squares = torch.tensor([1.0, 4.0, 64.0, 4096.0]).mean()
    assert float(pooled) == pytest.approx(20 * math.log10(255) - 10 * math.log10(squares), abs=1e-9)
    draws = torch.stack([x, truth + 0.25 / 256])  # the second stays within its byte
    assert metrics.pooled_psnr(draws, truth, 8).tolist() == [float(pooled), math.inf]
    for bits in (0, 9, 5.0, True):
        with pytest.raises(ValueError, match="bits"):
            metrics.pooled_psnr(x, truth, bits)  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_is_that_of_scikit_image(channels: int) -> None:
    skimage = pytest.importorskip("skimage.metrics")
    torchmetrics = pytest.importorskip("torchmetrics.functional.image")
    x, truth = pair(3, channels, 20, 24, noise=0.6)
    wanted = [
        skimage.structural_similarity(
            t.numpy(), a.numpy(), channel_axis=0, gaussian_weights=True, use_sample_covariance=False, data_range=1.0
        )
        for a, t in zip(x, truth, strict=True)
    ]
    np.testing.assert_allclose(metrics.ssim(x, truth), wanted, rtol=1e-9)
    torch.testing.assert_close(metrics.ssim(truth, truth), torch.ones(3, dtype=torch.float64))
    whole = torchmetrics.structural_similarity_index_measure(
        x, truth, data_range=1.0, reduction=None, return_full_image=True
    )
    assert (whole[1].flatten(1).mean(1) - torch.tensor(wanted)).abs().min() > 1e-4  # with the mirrored border
    torch.testing.assert_close(metrics.ssim(255 * x, 255 * truth, 255.0), metrics.ssim(x, truth))


def test_ssim_refuses_what_has_no_window() -> None:
    pytest.importorskip("torchmetrics")
    for shape in ((2, 1, 10, 20), (2, 20, 20), (2, 400)):
        with pytest.raises(ValueError, match="11 pixels"):
            metrics.ssim(images(*shape), images(*shape))


def test_ssim_without_torchmetrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchmetrics.functional.image", None)
    with pytest.raises(ImportError, match=r"flowinv\[metrics\]"):
        metrics.ssim(images(1, 1, 12, 12), images(1, 1, 12, 12))


def test_entropy_of_a_normal_pixel() -> None:
    """In bits over 256 grey levels: the differential entropy on [0, 1] plus 8, as figure 1 of the paper has it."""
    std = torch.tensor([0.02, 0.1])
    draws = 0.5 + std * torch.randn(3200, 1, 2, generator=torch.Generator().manual_seed(0))
    found = metrics.entropy(lambda: iter(draws.split(400)))
    wanted = 0.5 * (2 * math.pi * math.e * std.double().square()).log2() + 8
    torch.testing.assert_close(found[0], wanted, atol=0.1, rtol=0)
    uniform = metrics.entropy(lambda: iter([torch.rand(3200, 1, 1, generator=torch.Generator().manual_seed(0))]))
    assert 7.9 < float(uniform) <= 8
