r"""Errors of estimates against the truth, one value per image.

All take ``x`` (..., B, \*shape), any number of draw axes before the B observations, and ``truth`` (B, \*shape), and
give (..., B); any other pair of shapes raises ValueError. Sums are taken in float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .shapes import check_units, common_dtype, draw_axes, flat_pairs

SSIM_WINDOW = 11  # pixels on a side; Gaussian weights of standard deviation 1.5
_CHUNK = 256


def _sum_squared(x: Tensor, truth: Tensor) -> Tensor:
    axes = draw_axes(x, truth)
    return (x.double() - truth.double()).square().flatten(len(axes)).sum(-1)


def sum_squared_error(x: Tensor, truth: Tensor) -> Tensor:
    r"""Squared error summed over an image, sum_i (x_i - truth_i)^2, (..., B); lower is better.

    In squared units of the images. It is what table 1 of Whang et al., "Composing Normalizing Flows for Inverse
    Problems", calls MSE: 22.13 for a 28x28 image in [0, 1] is a root mean square of .17 per pixel.
    """
    return _sum_squared(x, truth).to(common_dtype(x, truth))


def mean_squared_error(x: Tensor, truth: Tensor) -> Tensor:
    r"""Squared error averaged over an image, (1/n) sum_i (x_i - truth_i)^2, (..., B), in squared units; lower is better."""
    return (_sum_squared(x, truth) / truth[0].numel()).to(common_dtype(x, truth))


def psnr(x: Tensor, truth: Tensor, data_range: float = 1.0) -> Tensor:
    r"""Peak signal-to-noise ratio of each image, 10 log10(data_range^2 / mean squared error), in dB, (..., B).

    Higher is better; infinite for equal images. ``data_range`` is the span of values that a pixel can have (1 for
    [0, 1]). The mean over images of this is not ``pooled_psnr``: by Jensen's inequality it is higher.
    """
    if not (0 < data_range < math.inf):
        raise ValueError(f"data_range must be positive and finite, got {data_range}")
    error = _sum_squared(x, truth) / truth[0].numel()
    return (2 * 10 * math.log10(data_range) - 10 * error.log10()).to(common_dtype(x, truth))


def pooled_psnr(x: Tensor, truth: Tensor, bits: int) -> Tensor:
    r"""PSNR of a whole batch at once, in dB, floored to ``bits`` bits: (...), one value per draw; higher is better.

    With q(v) = min(floor(2^bits v), 2^bits - 1) 2^(8 - bits) for v in [0, 1]:

        20 log10(255) - 10 log10 mean_{B, \*shape} (q(x) - q(truth))^2

    The error is averaged over the B images *before* the logarithm, so one bad image weighs more than in the mean of
    ``psnr``. It is what table 1 of "Generative Flows as a General Purpose Solution for Inverse Problems" reports (5
    bits, batches of 32) once the second square root in its published code is taken out: dB = 2 x printed - 48.13.
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8:
        raise ValueError(f"bits must be a whole number from 1 to 8, got {bits!r}")
    axes = draw_axes(x, truth)
    for images, name in ((x.flatten(0, len(axes) - 1), "x"), (truth, "truth")):
        check_units(images, name)
    found, wanted = (quantised(v, bits) for v in (x, truth))
    error = (found - wanted).square().flatten(len(axes) - 1).mean(-1)
    return (20 * math.log10(255) - 10 * error.log10()).to(common_dtype(x, truth))


def quantised(x: Tensor, bits: int) -> Tensor:
    """Pixels in [0, 1] floored to ``bits`` bits, as 8-bit values: min(floor(2^bits x), 2^bits - 1) 2^(8 - bits), in float64."""
    return (x.double() * 2**bits).floor().clamp(0, 2**bits - 1) * 2.0 ** (8 - bits)


def ssim(x: Tensor, truth: Tensor, data_range: float = 1.0) -> Tensor:
    r"""Structural similarity of each image, (..., B), dimensionless, at most 1 (equal images); higher is better.

    The mean, over channels and over the windows of 11x11 pixels that lie wholly inside the image, of

        (2 m_x m_t + c1) (2 s_xt + c2) / ((m_x^2 + m_t^2 + c1) (s_x^2 + s_t^2 + c2))

    with Gaussian weights of standard deviation 1.5, c1 = (.01 data_range)^2, c2 = (.03 data_range)^2 (Wang et al.,
    "Image Quality Assessment: From Error Visibility to Structural Similarity", 2004). Images (C, H, W) of at least
    11 pixels a side. Computed by torchmetrics, whose own mean also counts windows mirrored at the border; leaving
    these out is what scikit-image and pytorch-msssim do.
    """
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError:
        raise ImportError("SSIM needs torchmetrics: pip install 'flowinv[metrics]'") from None
    if not (0 < data_range < math.inf):
        raise ValueError(f"data_range must be positive and finite, got {data_range}")
    axes = draw_axes(x, truth)
    if truth.dim() != 4 or min(truth.shape[2:]) < SSIM_WINDOW:
        raise ValueError(
            f"SSIM needs images (B, C, H, W) of at least {SSIM_WINDOW} pixels a side, got {tuple(truth.shape)}"
        )
    edge = SSIM_WINDOW // 2
    values = []
    for part, target in zip(*(v.split(_CHUNK) for v in flat_pairs(x, truth)), strict=True):
        _, picture = structural_similarity_index_measure(
            part.double(),
            target.double(),
            sigma=1.5,
            data_range=float(data_range),
            reduction=None,
            return_full_image=True,
        )
        values.append(picture[..., edge:-edge, edge:-edge].flatten(1).mean(1))
    return torch.cat(values).reshape(axes).to(common_dtype(x, truth))
