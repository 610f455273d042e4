"""Measurements and images as RGB bytes, to be shown."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flowinv import InverseProblem, Mask

UNSEEN = (214, 222, 232)  # no grey level looks like it


def as_bytes(x: Tensor) -> np.ndarray:
    """Images in [0, 1] as bytes."""
    return (x * 256).floor().clamp(0, 255).byte().cpu().numpy()


def as_rgb(images: np.ndarray) -> np.ndarray:
    """Bytes (..., C, H, W) with C 1 or 3 as (..., H, W, 3)."""
    last = np.moveaxis(images, -3, -1)
    return np.broadcast_to(last, (*last.shape[:-1], 3)) if last.shape[-1] == 1 else last


def measurement(problem: InverseProblem, b: int = 0) -> np.ndarray:
    """The b-th observation as a picture (H, W, 3) of the image's size.

    What a mask hides entirely is pale blue, sub-pixels that it hides are mid-grey; small and grey measurements are enlarged and
    shown as they are; of measurements that are no picture the adjoint A^T y, from its least to its greatest value.
    """
    y = problem.y[b : b + 1].cpu()
    height, width = problem.shape[1:]
    if isinstance(problem.operator, Mask):
        mask = problem.operator.mask.expand(problem.batch, *problem.shape)
        seen = mask[b : b + 1].cpu()
        filled = torch.where(seen, y, torch.full_like(y, 0.4))
        picture = as_rgb(as_bytes(filled[0])).copy()
        picture[~seen[0].any(0).numpy()] = UNSEEN
        return picture
    shown = problem.operator.to_image(y)
    if shown is None:
        x = torch.zeros(problem.batch, *problem.shape, requires_grad=True)
        (all_back,) = torch.autograd.grad(problem.operator(x), x, problem.y.cpu())
        back = all_back[b : b + 1]
        shown = (back - back.min()) / (back.max() - back.min()).clamp_min(1e-12)
    return as_rgb(as_bytes(F.interpolate(shown, size=(height, width), mode="nearest")[0]))
