"""SqueezeNet's features of photographs, for a Fréchet distance where Inception's weights cannot be had."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from .npz import read_weights
from .rgb import as_rgb


class SqueezeNetFeatures(nn.Module):
    """Features (N, 512) of images (N, C, H, W) by a SqueezeNet 1.1 trained on ImageNet, averaged over the last layer's pixels.

    Images hold values in [0, 1], grey (C = 1, repeated) or RGB; those with a side shorter than ``size`` are enlarged
    until it has ``size`` pixels. ``weights`` is the path of an .npz with torchvision's names (``features.0.weight``,
    ...), made for inputs in [0, 1]. Differentiable; the weights are buffers. Made for ``frechet_distance``; that is
    *not* the Fréchet inception distance, and its values are never to be compared with published ones.

    Raises FileNotFoundError or BundleError for weights that are missing or are not these, ValueError for shapes.
    """

    # fire module: its place, channels in, squeezed, and of each of the two expansions; pooling comes before some
    _FIRES = (
        (3, 64, 16, 64),
        (4, 128, 16, 64),
        (6, 128, 32, 128),
        (7, 256, 32, 128),
        (9, 256, 48, 192),
        (10, 384, 48, 192),
        (11, 384, 64, 256),
        (12, 512, 64, 256),
    )
    _POOLED = (3, 6, 9)

    def __init__(self, weights: str | Path, size: int = 64):
        super().__init__()
        if isinstance(size, bool) or not isinstance(size, int) or size < 32:
            raise ValueError(f"size must be a whole number of at least 32 pixels, got {size!r}")
        self.size = size
        kernels = {"features.0": (64, 3, 3)}
        for place, before, squeezed, expanded in self._FIRES:
            kernels[f"features.{place}.squeeze"] = (squeezed, before, 1)
            kernels[f"features.{place}.expand1x1"] = (expanded, squeezed, 1)
            kernels[f"features.{place}.expand3x3"] = (expanded, squeezed, 3)
        shapes: dict[str, tuple[int, ...]] = {}
        for name, (after, before, kernel) in kernels.items():
            shapes |= {f"{name}.weight": (after, before, kernel, kernel), f"{name}.bias": (after,)}
        for name, tensor in read_weights(weights, shapes).items():
            self.register_buffer(name.replace(".", "_"), tensor)

    def _convolve(self, x: Tensor, name: str, stride: int = 1, padding: int = 0) -> Tensor:
        weight, bias = (self.get_buffer(f"features_{name}_{part}") for part in ("weight", "bias"))
        return torch.relu(functional.conv2d(x, weight, bias, stride=stride, padding=padding))

    def forward(self, images: Tensor) -> Tensor:
        """Features (N, 512) of images (N, C, H, W) in [0, 1]."""
        x = as_rgb(images, self.size).to(self.get_buffer("features_0_weight"))
        x = self._convolve(x, "0", stride=2)
        for place, *_ in self._FIRES:
            if place in self._POOLED:
                x = functional.max_pool2d(x, 3, stride=2, ceil_mode=True)
            x = self._convolve(x, f"{place}_squeeze")
            x = torch.cat(
                [self._convolve(x, f"{place}_expand1x1"), self._convolve(x, f"{place}_expand3x3", padding=1)], 1
            )
        return x.mean((2, 3))
