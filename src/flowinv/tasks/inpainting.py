"""Masks by name: halves, a box, random pixels or sub-pixels, a file's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..operators import Mask, Operator
from .mask_file import read_mask
from .options import finite, generator_of, image_size, pair, span, whole


def inpaint_half(shape: Sequence[int], half: str) -> Operator:
    """Completion from one half: the *observed* one is top, bottom, left or right; of an odd side the larger part."""
    height, width = image_size(shape, f"inpaint-{half}")
    mask = torch.zeros(1, 1, height, width, dtype=torch.bool)
    if half == "top":
        mask[..., : (height + 1) // 2, :] = True
    elif half == "bottom":
        mask[..., height // 2 :, :] = True
    elif half == "left":
        mask[..., : (width + 1) // 2] = True
    elif half == "right":
        mask[..., width // 2 :] = True
    else:
        raise ValueError(f"half must be top, bottom, left or right, got {half!r}")
    return Mask(mask, shape)


def inpaint_box(shape: Sequence[int], size: Any = None, rows: Any = None, columns: Any = None) -> Operator:
    """A hidden box: ``size`` (one number, or height x width) in the centre, by default half of each side.

    ``rows`` and ``columns``, written a:b as a slice (b not included), place it elsewhere.
    """
    height, width = image_size(shape, "inpaint-box")
    tall, wide = (height // 2, width // 2) if size is None else pair(size, "size", whole)
    if not (1 <= tall <= height and 1 <= wide <= width):
        raise ValueError(f"size must lie within the image's {height}x{width}, got {tall}x{wide}")
    if size is not None and rows is not None and columns is not None:
        raise ValueError("inpaint-box takes a size, or rows and columns, not all three")
    top, left = (height - tall) // 2, (width - wide) // 2
    first, last = (top, top + tall) if rows is None else span(rows, "rows", height)
    start, end = (left, left + wide) if columns is None else span(columns, "columns", width)
    mask = torch.ones(1, 1, height, width, dtype=torch.bool)
    mask[..., first:last, start:end] = False
    if not mask.any():
        raise ValueError("the box hides the whole image: nothing is observed")
    return Mask(mask, shape)


def inpaint_pixels(shape: Sequence[int], fraction: float = 0.5, seed: int = 0) -> Operator:
    """Random pixels observed, all channels of a pixel together: exactly round(fraction x pixels), at least one."""
    shape = tuple(shape)
    return Mask(_random_mask((1, *shape[1:]) if len(shape) == 3 else shape, fraction, seed), shape)


def inpaint_subpixels(shape: Sequence[int], fraction: float = 0.5, seed: int = 0) -> Operator:
    """Random sub-pixels observed, each channel by itself: exactly round(fraction x elements), at least one."""
    return Mask(_random_mask(tuple(shape), fraction, seed), shape)


def inpaint_mask(shape: Sequence[int], mask: Tensor | str | Path) -> Operator:
    """Elements where a mask is 1 are observed: a tensor broadcastable to (B, *shape), or the path of a file."""
    if not isinstance(mask, Tensor):
        if not isinstance(mask, str | Path):
            raise TypeError(f"mask must be a tensor or a path, got {type(mask).__name__}")
        mask = read_mask(mask)
    return Mask(mask, shape)


def _random_mask(shape: tuple[int, ...], fraction: float, seed: int) -> Tensor:
    fraction, size = finite(fraction, "fraction"), math.prod(shape)
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], got {fraction:g}")
    mask = torch.zeros(size, dtype=torch.bool)
    mask[torch.randperm(size, generator=generator_of(seed))[: max(1, round(fraction * size))]] = True
    return mask.view(1, *shape)
