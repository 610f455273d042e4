"""Perceptual distances between images: how far apart a network's activations are."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..store import BundleError
from .npz import read_weights
from .rgb import as_rgb
from .shapes import check_pair

_TINY = 1e-30


def unit_difference(features: Tensor) -> Tensor:
    """Squared differences (N, C, H, W) of the unit-length activations of N pairs, from features (2 N, C, H, W).

    The activations at each place, C numbers, are divided by their length; where all are 0 they stay 0, with gradient 0.
    """
    length = features.square().sum(1, keepdim=True).clamp_min(_TINY).sqrt()
    a, b = (features / (length + 1e-10)).chunk(2)
    return (a - b).square()


class STLPIPS(nn.Module):
    r"""ST-LPIPS, the shift-tolerant perceptual distance of Ghildyal and Liu, with its AlexNet trunk: (N,) of two (N, C, H, W).

    .. math:: d(a, b) = \sum_{l=1}^5 \frac{1}{H_l W_l} \sum_{h,w} \sum_c w_{lc} (\hat a_{lchw} - \hat b_{lchw})^2

    over the activations after the five convolutions of an AlexNet that blurs before it subsamples, at each place scaled
    to unit length over the channels; w_l >= 0 was fitted to human judgements ("Shift-tolerant Perceptual Similarity
    Metric", ECCV 2022; the network is the ``shift_tolerant`` variant of its code). 0 for equal images, dimensionless,
    lower is closer. It is *not* the LPIPS of Zhang et al.: never compare its values with published ones.

    Images hold values in [0, 1], grey (C = 1, repeated) or RGB; those with a side shorter than ``size`` are enlarged
    until it has ``size`` pixels (default 64, the size that the distance was fitted at). ``weights`` is the path of an
    .npz with the arrays of the authors' ``alex_shift_tolerant`` under their names. Differentiable in both images; the
    weights are buffers, in float32 (``.double()`` for more). Called as ``distance(y, prediction)``, it serves as
    ``flowinv.Distance(STLPIPS(path), beta)``.

    Raises FileNotFoundError or BundleError for weights that are missing or are not these, ValueError for shapes.
    """

    # name in the file, channels in and out, kernel, padding
    _CONVOLUTIONS = (
        ("net.slice1.0", 3, 64, 11, 2),
        ("net.slice2.5", 64, 192, 5, 2),
        ("net.slice3.9", 192, 384, 3, 1),
        ("net.slice4.11", 384, 256, 3, 1),
        ("net.slice5.13", 256, 256, 3, 1),
    )
    _BLURS = (("net.slice1.1", 64), ("net.slice2.4", 64), ("net.slice3.8", 192))

    shift: Tensor
    scale: Tensor
    blur: Tensor

    def __init__(self, weights: str | Path, size: int = 64):
        super().__init__()
        if isinstance(size, bool) or not isinstance(size, int) or size < 32:
            raise ValueError(f"size must be a whole number of at least 32 pixels, got {size!r}")
        self.size = size
        self.spec = {"name": "stlpips", "weights": str(Path(weights).expanduser().resolve()), "size": size}
        shapes: dict[str, tuple[int, ...]] = {f"scaling_layer.{name}": (1, 3, 1, 1) for name in ("shift", "scale")}
        shapes |= {f"{name}.filt": (channels, 1, 3, 3) for name, channels in self._BLURS}
        for layer, (name, before, after, kernel, _) in enumerate(self._CONVOLUTIONS):
            shapes |= {f"{name}.weight": (after, before, kernel, kernel), f"{name}.bias": (after,)}
            shapes[f"lin{layer}.model.1.weight"] = (1, after, 1, 1)
        tensors = read_weights(weights, shapes)
        ramp = torch.tensor([1.0, 2.0, 1.0])
        blur = (ramp[:, None] * ramp / 16)[None, None]
        if any(not torch.equal(tensors[f"{name}.filt"], blur.expand(c, 1, 3, 3)) for name, c in self._BLURS):
            raise BundleError(f"{weights}: the blurs of ST-LPIPS are [1, 2, 1] x [1, 2, 1] / 16, these are not")
        self.register_buffer("blur", blur)
        self.register_buffer("shift", tensors["scaling_layer.shift"])
        self.register_buffer("scale", tensors["scaling_layer.scale"])
        for layer, (name, *_) in enumerate(self._CONVOLUTIONS):
            self.register_buffer(f"weight{layer}", tensors[f"{name}.weight"])
            self.register_buffer(f"bias{layer}", tensors[f"{name}.bias"])
            self.register_buffer(f"linear{layer}", tensors[f"lin{layer}.model.1.weight"])

    def _convolve(self, x: Tensor, layer: int) -> Tensor:
        padding = self._CONVOLUTIONS[layer][-1]
        return functional.conv2d(x, self.get_buffer(f"weight{layer}"), self.get_buffer(f"bias{layer}"), padding=padding)

    def _halve(self, x: Tensor) -> Tensor:
        """Blur, and keep every second pixel; mirrored by two pixels, so that the result reaches past the border."""
        padded = functional.pad(x, (2, 2, 2, 2), mode="reflect")
        channels = x.shape[1]
        return functional.conv2d(padded, self.blur.expand(channels, 1, 3, 3), stride=2, groups=channels)

    def activations(self, images: Tensor) -> list[Tensor]:
        """The five layers' activations (N, C_l, H_l, W_l) of images (N, C, H, W) in [0, 1]."""
        x = as_rgb(images, self.size).to(self.shift)
        x = (2 * x - 1 - self.shift) / self.scale
        found = [torch.relu(self._halve(self._convolve(x, 0)))]  # the first layer blurs before its relu
        for layer in (1, 2):
            x = self._halve(functional.max_pool2d(found[-1], 3, stride=1))
            found.append(torch.relu(self._convolve(x, layer)))
        for layer in (3, 4):
            found.append(torch.relu(self._convolve(found[-1], layer)))
        return found

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances (N,) between the images a and b, both (N, C, H, W)."""
        check_pair(a, b)
        terms = [
            functional.conv2d(unit_difference(x), self.get_buffer(f"linear{layer}")).mean((1, 2, 3))
            for layer, x in enumerate(self.activations(torch.cat([a, b])))
        ]
        return torch.stack(terms).sum(0)
