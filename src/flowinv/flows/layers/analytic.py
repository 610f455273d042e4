"""Closed-form maps from N(0, I): the priors whose posteriors can be checked by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..bijection import Bijection, constant_log_det, event_sum


class Affine(Bijection):
    r"""x = mean + L z with L lower triangular: x ~ N(mean, L L^T), over the flattened sample.

    ``mean`` has the shape of a sample with D elements, ``cholesky`` is (D, D) with a positive diagonal.
    """

    mean: Tensor
    cholesky: Tensor

    def __init__(self, mean: Tensor, cholesky: Tensor):
        super().__init__()
        size = mean.numel()
        if cholesky.shape != (size, size):
            raise ValueError(f"cholesky must have shape ({size}, {size}) to go with mean, got {tuple(cholesky.shape)}")
        if not (cholesky.diagonal() > 0).all() or cholesky.triu(1).abs().sum() > 0:
            raise ValueError("cholesky must be lower triangular with a positive diagonal")
        self.register_buffer("mean", mean)
        self.register_buffer("cholesky", cholesky)

    @classmethod
    def from_covariance(cls, mean: Tensor, covariance: Tensor) -> Affine:
        """The map whose image of N(0, I) is N(mean, covariance)."""
        return cls(mean, torch.linalg.cholesky(covariance.double()).to(covariance.dtype))

    def _log_det(self, like: Tensor) -> Tensor:
        return constant_log_det(self.cholesky.diagonal().log().sum(), like)

    def encode(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        centred = (x - self.mean).flatten(1)
        z = torch.linalg.solve_triangular(self.cholesky, centred.T, upper=False).T
        return z.reshape(x.shape), -self._log_det(x)

    def decode(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return (z.flatten(1) @ self.cholesky.T).reshape(z.shape) + self.mean, self._log_det(z)


class Quantile(Bijection):
    r"""x_i = Q(Phi(z_i)) elementwise: any one-dimensional marginal with quantile function Q.

    ``distribution`` is a ``torch.distributions`` object with ``cdf``, ``icdf`` and ``log_prob``, its batch shape
    broadcasting with a sample's.
    """

    def __init__(self, distribution: torch.distributions.Distribution):
        super().__init__()
        self.distribution = distribution

    def _log_slope(self, x: Tensor, z: Tensor) -> Tensor:
        """log dx/dz = log phi(z) - log p(x), summed."""
        return event_sum(-0.5 * z.square() - 0.5 * math.log(2 * math.pi) - self.distribution.log_prob(x))

    def encode(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        margin = torch.finfo(x.dtype).eps
        z = torch.special.ndtri(self.distribution.cdf(x).clamp(margin, 1 - margin))
        return z, -self._log_slope(x, z)

    def decode(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        margin = torch.finfo(z.dtype).eps
        x = self.distribution.icdf(torch.special.ndtr(z).clamp(margin, 1 - margin))
        return x, self._log_slope(x, z)


class Elementwise(Bijection):
    r"""z = exp(s) x + t with a learned s and t per element, s clamped to (-clamp, clamp), started at the identity."""

    def __init__(self, shape: Sequence[int], clamp: float = 5.0):
        super().__init__()
        self.raw_scale = torch.nn.Parameter(torch.zeros(tuple(shape)))
        self.shift = torch.nn.Parameter(torch.zeros(tuple(shape)))
        self.clamp = clamp

    def _log_scale(self) -> Tensor:
        return self.clamp * torch.tanh(self.raw_scale / self.clamp)

    @torch.no_grad()
    def set(self, shift: Tensor, scale: float) -> None:
        """Make it z = scale x + shift; log(scale) lies within the clamp."""
        self.raw_scale.fill_(self.clamp * math.atanh(math.log(scale) / self.clamp))
        self.shift.copy_(shift)

    def encode(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        s = self._log_scale()
        return x * s.exp() + self.shift, constant_log_det(s.sum(), x)

    def decode(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        s = self._log_scale()
        return (z - self.shift) * (-s).exp(), constant_log_det(-s.sum(), z)
