"""Elementwise maps between data in its own units and the unbounded u that a flow works on."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..bijection import Bijection, constant_log_det, event_sum

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


def within_level(images: Tensor, fraction: Tensor) -> Tensor:
    """k + v for integers k and v in [0, 1), held below k + 1, to which float32 may round it."""
    return torch.minimum(images + fraction, (images + 1.0) * (1 - 2**-24))


def dequantize(images: Tensor, bits: int = 8, generator: torch.Generator | None = None) -> Tensor:
    r"""Uniform dequantisation of integer images: (k + U(0,1)) / 2^bits, shape kept, in [0, 1).

    The density of the result bounds the probability of the integers: log2 P(k) >= E log2 p(x) - D * bits.
    """
    if images.is_floating_point():
        raise TypeError(f"dequantize expects integer images in 0..{2**bits - 1}, got {images.dtype}")
    if images.numel():
        low, high = int(images.min()), int(images.max())
        if low < 0 or high >= 2**bits:
            raise ValueError(f"dequantize expects integer images in 0..{2**bits - 1}, got {low}..{high}")
    noise = torch.rand(images.shape, generator=generator, device=images.device)
    return within_level(images, noise) / 2**bits


class Logit(Bijection):
    r"""u = logit(a + (1 - 2a) x) - the usual input transform for pixels in [0, 1]; a = .05 by default.

    Source: Dinh et al., Real NVP, section 4.1.
    """

    def __init__(self, margin: float = 0.05):
        super().__init__()
        if not 0 < margin < 0.5:
            raise ValueError(f"the logit's margin lies in (0, 0.5), got {margin}")
        self.margin = margin

    def _log_derivative(self, u: Tensor) -> Tensor:
        sigmoid = nn.functional.logsigmoid
        return event_sum(math.log(1 - 2 * self.margin) - sigmoid(u) - sigmoid(-u))

    def encode(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        u = torch.logit(self.margin + (1 - 2 * self.margin) * x)
        return u, self._log_derivative(u)

    def decode(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return (torch.sigmoid(z) - self.margin) / (1 - 2 * self.margin), -self._log_derivative(z)


class Shift(Bijection):
    """u = scale (x - centre) with fixed numbers: the plainest input transform."""

    def __init__(self, centre: float = 0.5, scale: float = 1.0):
        super().__init__()
        if not scale > 0:
            raise ValueError(f"the shift's scale must be positive, got {scale}")
        self.centre, self.scale = centre, scale

    def encode(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return (x - self.centre) * self.scale, constant_log_det(math.log(self.scale) * x.shape[1:].numel(), x)

    def decode(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return z / self.scale + self.centre, constant_log_det(-math.log(self.scale) * z.shape[1:].numel(), z)


class Gaussianize(Bijection):
    r"""u = Phi^{-1}(F(x)), F the piecewise-linear distribution function of a pixel's dequantised grey level.

    ``cdf`` holds F at the n + 1 edges of n equal bins of [0, 1]: shape (n + 1,) for one F shared by all
    pixels, or (n + 1, C, H, W) for one per pixel. After it every pixel is exactly standard normal
    over the training set, and every decoded pixel lies in [0, 1].

    :math:`\log|du/dx| = \log(n\,p_k) - \log\varphi(u)` in bin k of probability :math:`p_k`.
    """

    cdf: Tensor

    def __init__(self, cdf: Tensor):
        super().__init__()
        cdf = cdf.float()
        if len(cdf) < 2 or not ((cdf[0] == 0).all() and (cdf[-1] == 1).all() and (cdf.diff(dim=0) > 0).all()):
            raise ValueError("cdf must rise strictly from 0 to 1 along its first dimension, in float32")
        self.register_buffer("cdf", cdf)

    @classmethod
    def from_counts(cls, counts: Tensor, smoothing: float = 1.0) -> Gaussianize:
        """From histogram counts (n, ...): ``smoothing`` is added to each bin so that none is empty.

        No bin gets less than 2^-20, so that each keeps a width in float32.
        """
        p = counts.double() + smoothing
        p = (p / p.sum(0)).clamp_min(2**-20)
        cdf = torch.cat([torch.zeros_like(p[:1]), p.cumsum(0)])
        return cls(cdf / cdf[-1])

    @property
    def bins(self) -> int:
        return self.cdf.shape[0] - 1

    def _edges(self, k: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """F at the lower edge of bin k and the bin's probability."""
        cdf = self.cdf.to(like.dtype)
        if cdf.dim() == 1:
            low, high = cdf[k], cdf[k + 1]
        else:
            flat = cdf.flatten(1)
            column = torch.arange(flat.shape[1], device=k.device).view(1, -1)
            index = k.flatten(1) * flat.shape[1] + column
            low = flat.flatten()[index].view_as(like)
            high = flat.flatten()[index + flat.shape[1]].view_as(like)
        return low, high - low

    def _log_derivative(self, u: Tensor, probability: Tensor) -> Tensor:
        return event_sum((probability * self.bins).log() + 0.5 * u.square() + _LOG_SQRT_2PI)

    def encode(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        scaled = x * self.bins
        k = scaled.detach().floor().clamp(0, self.bins - 1).long()
        low, probability = self._edges(k, x)
        level = low + (scaled - k) * probability
        margin = torch.finfo(x.dtype).eps
        u = torch.special.ndtri(level.clamp(margin, 1 - margin))
        return u, self._log_derivative(u, probability)

    def decode(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        level = torch.special.ndtr(z)
        cdf = self.cdf.to(z.dtype)
        if cdf.dim() == 1:
            k = torch.searchsorted(cdf, level.detach().contiguous(), right=True) - 1
        else:
            sorted_cdf = cdf.flatten(1).T.contiguous()  # one sorted row per pixel
            queries = level.detach().flatten(1).T.contiguous()
            k = (torch.searchsorted(sorted_cdf, queries, right=True) - 1).T.reshape(level.shape)
        k = k.clamp(0, self.bins - 1)
        low, probability = self._edges(k, z)
        x = (k + (level - low) / probability) / self.bins
        return x, -self._log_derivative(z, probability)
