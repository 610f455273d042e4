"""Images as networks trained on photographs take them: three channels, not too small."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import interpolate

from .shapes import check_images, check_units


def as_rgb(images: Tensor, least: int) -> Tensor:
    """Images (N, C, H, W) in [0, 1] with C 1 or 3 as (N, 3, H', W'), both sides at least ``least``.

    Grey is repeated over the channels. Where a side is shorter, both grow (bilinear, corners not aligned) until the
    shorter one is ``least``; larger images stay as they are.
    """
    check_images(images, "images")
    if images.dim() != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images must have shape (N, C, H, W) with C 1 or 3, got {tuple(images.shape)}")
    check_units(images, "images")
    short = min(images.shape[2:])
    if short < least:
        height, width = (max(least, round(side * least / short)) for side in images.shape[2:])
        images = interpolate(images, size=(height, width), mode="bilinear", align_corners=False)
    return images.expand(-1, 3, -1, -1)
