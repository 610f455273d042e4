"""What metrics may be compared with what: nothing broadcasts but draws against the truth."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..images import in_other_units


def check_images(value: Any, name: str) -> None:
    """Refuse what is not a floating-point tensor with something in it: differences of bytes wrap around."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{name} must hold floating-point values, got {value.dtype}")
    if value.numel() == 0:
        raise ValueError(f"{name} is empty, of shape {tuple(value.shape)}: nothing to measure")


def check_units(images: Tensor, name: str) -> None:
    r"""Refuse images (N, \*shape) of other units than [0, 1]: those whose values lie outside by more than .1 on average.

    What gradients are asked of is an iterate of some solver, for which running off the range is not a caller's mistake.
    """
    if not images.requires_grad and in_other_units(images, 0, 1):
        low, high = images.detach().aminmax()
        raise ValueError(f"{name} must hold values in [0, 1], got values from {float(low):.4g} to {float(high):.4g}")


def draw_axes(x: Tensor, truth: Tensor) -> tuple[int, ...]:
    r"""The leading shape (..., B) of draws x (..., B, \*shape) of truths (B, \*shape); ValueError with both otherwise."""
    check_images(x, "x")
    check_images(truth, "truth")
    if truth.dim() < 2:
        raise ValueError(f"truth must have shape (B, *shape), got {tuple(truth.shape)}")
    extra = x.dim() - truth.dim()
    if extra < 0 or x.shape[extra:] != truth.shape:
        wanted = ", ".join(map(str, truth.shape))
        raise ValueError(f"x must have shape (..., {wanted}) as the truth {tuple(truth.shape)}, got {tuple(x.shape)}")
    return tuple(x.shape[: extra + 1])


def flat_pairs(x: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    r"""Draws and the truth of each, both (N, \*shape); call ``draw_axes`` first."""
    return x.reshape(-1, *truth.shape[1:]), truth.expand(x.shape).reshape(-1, *truth.shape[1:])


def check_pair(a: Tensor, b: Tensor) -> None:
    r"""Refuse two batches that are not of one shape (N, \*shape)."""
    check_images(a, "the first batch")
    check_images(b, "the second batch")
    if a.shape != b.shape or a.dim() < 2:
        raise ValueError(
            f"two batches of one shape (N, *shape) are compared, got {tuple(a.shape)} and {tuple(b.shape)}"
        )


def common_dtype(x: Tensor, truth: Tensor) -> torch.dtype:
    """What the two would be added in."""
    return torch.promote_types(x.dtype, truth.dtype)
