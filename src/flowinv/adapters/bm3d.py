"""BM3D, through the authors' package: a baseline that knows no prior. Its licence allows non-commercial use alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def denoise(y: Tensor, sigma: float) -> Tensor:
    """y (B, C, H, W), C 1 or 3, with white noise of standard deviation ``sigma`` removed, in the images' units.

    Colour goes through the authors' opponent space (CBM3D). Needs the extra ``flowinv[bm3d]``; images of 8 pixels a side or
    more. Source: Dabov, Foi, Katkovnik and Egiazarian, Image denoising by sparse 3-D transform-domain collaborative filtering
    (2007).
    """
    if not isinstance(y, Tensor) or y.dim() != 4 or not len(y) or y.shape[1] not in (1, 3) or min(y.shape[2:]) < 8:
        got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"BM3D takes images (B, 1 or 3, H, W) of at least 8 x 8 pixels, got {got}")
    if not y.is_floating_point():
        raise ValueError(f"BM3D takes real floating-point images, got {y.dtype}")
    if not torch.isfinite(y).all():
        raise ValueError(f"y has {int((~torch.isfinite(y)).sum())} values that are NaN or infinite")
    if not isinstance(sigma, int | float) or not 0 < sigma < math.inf:
        raise ValueError(f"sigma must be positive and finite, got {sigma!r}")
    try:
        import bm3d
    except ImportError:
        raise ImportError("BM3D is an optional extra, free for non-commercial use: pip install flowinv[bm3d]") from None
    found = []
    for image in y.detach().double().cpu():
        pixels = image.permute(1, 2, 0).numpy()
        result = bm3d.bm3d_rgb(pixels, sigma) if len(image) == 3 else bm3d.bm3d(pixels[..., 0], sigma)[..., None]
        found.append(torch.from_numpy(result.reshape(pixels.shape)).permute(2, 0, 1))
    return torch.stack(found).to(y)
