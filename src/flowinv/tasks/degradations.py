"""Operators by name that look at the whole image: blur, coarser pixels, grey, projections."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..adapters import deepinv as adapter
from ..operators import AveragePool, Grey, Identity, MatrixOperator, Operator
from .options import finite, generator_of, image_size, pair, positive, whole

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def denoise(shape: Sequence[int]) -> Operator:
    """Everything is observed, with noise."""
    return Identity(shape)


def deblur(
    shape: Sequence[int],
    kernel: str = "gaussian",
    width: Any = None,
    size: Any = None,
    angle: float | None = None,
    padding: str = "reflect",
) -> Operator:
    """Blurred images, through deepinv's Blur.

    ``kernel``: gaussian, of standard deviation ``width`` (1; one number for both axes, or rows x columns); box, the
    mean over ``size`` (3; or height x width) pixels; motion, a straight line of ``size`` (7) pixels at ``angle`` (0)
    degrees, anticlockwise from the row. ``padding``: reflect, circular, replicate, constant (zeros), grey (.5)
    or valid (a smaller measurement).
    """
    image_size(shape, "deblur")
    uses = {"gaussian": ("width",), "box": ("size",), "motion": ("size", "angle")}
    if kernel not in uses:
        raise ValueError(f"unknown kernel {kernel!r}; known: {', '.join(uses)}")
    for name, value in {"width": width, "size": size, "angle": angle}.items():
        if value is not None and name not in uses[kernel]:
            raise ValueError(f"option {name!r} does not go with kernel={kernel}, which takes {', '.join(uses[kernel])}")
    if kernel == "gaussian":
        weights = adapter.gaussian_kernel(pair(1.0 if width is None else width, "width", positive))
    elif kernel == "box":
        tall, wide = pair(3 if size is None else size, "size", whole)
        weights = torch.full((tall, wide), 1 / (tall * wide), dtype=torch.float64)
    else:
        degrees = 0.0 if angle is None else finite(angle, "angle")
        weights = motion_kernel(positive(7 if size is None else size, "size"), degrees)
    return adapter.blur(weights, shape, padding)


def motion_kernel(length: float, angle: float) -> Tensor:
    """A straight motion blur (h, w) that sums to 1: ``length`` pixels along ``angle`` degrees.

    The angle is anticlockwise from the row. Each pixel is weighted by max(0, 1 - its distance to the segment
    that joins the two end pixels' centres).
    """
    half = max(length - 1, 0) / 2
    reach = math.ceil(half) + 1
    grid = torch.arange(-reach, reach + 1, dtype=torch.float64)
    rows, columns = torch.meshgrid(grid, grid, indexing="ij")
    direction = math.radians(angle)
    along = columns * math.cos(direction) - rows * math.sin(direction)
    across = columns * math.sin(direction) + rows * math.cos(direction)
    beyond = (along.abs() - half).clamp_min(0)
    weights = (1 - (across.square() + beyond.square()).sqrt()).clamp_min(0)
    tall, wide = (int((weights.sum(d) > 1e-9).nonzero().sub(reach).abs().max()) for d in (1, 0))
    weights = weights[reach - tall : reach + tall + 1, reach - wide : reach + wide + 1]
    return weights / weights.sum()


def superres(shape: Sequence[int], factor: int = 2, filter: str = "average") -> Operator:
    """Images smaller by ``factor``.

    ``filter=average`` is the mean of each block, as a coarser sensor measures and without borders; gaussian,
    bilinear, bicubic, sinc and none are deepinv's Downsampling (filter, then keep every factor-th pixel).
    """
    image_size(shape, "superres")
    factor = whole(factor, "factor")
    if factor < 2:
        raise ValueError(f"factor must be an integer of at least 2, got {factor}")
    if filter == "average":
        return AveragePool(factor, shape)
    return adapter.downsampling(factor, filter, shape)


def colorize(shape: Sequence[int], weights: str = "mean") -> Operator:
    """Grey observed of a colour image: the channels' mean, or ``weights=luma`` (.299, .587, .114; ITU-R BT.601)."""
    known = {"mean": None, "luma": LUMA}
    if weights not in known:
        raise ValueError(f"unknown weights {weights!r}; known: {', '.join(known)}")
    return Grey(known[weights], shape)


def compressed_sensing(shape: Sequence[int], measurements: int | None = None, seed: int = 0) -> Operator:
    """``measurements`` = m random projections (a sixth of the elements by default), A_ij ~ N(0, 1/m)."""
    size = math.prod(shape)
    m = max(1, size // 6) if measurements is None else whole(measurements, "measurements")
    matrix = torch.randn(m, size, generator=generator_of(seed)) / math.sqrt(m)
    return MatrixOperator(matrix, shape)
