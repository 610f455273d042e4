"""The one protocol every invertible map follows, and the two ways of combining maps."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def event_sum(t: Tensor) -> Tensor:
    """Sum over all but the first dimension: (B, ...) -> (B,)."""
    return t.flatten(1).sum(1) if t.dim() > 1 else t


def constant_log_det(value: Tensor | float, like: Tensor) -> Tensor:
    """The log-determinant of a map whose Jacobian does not depend on the sample, shape (B,)."""
    if isinstance(value, Tensor):
        return value.to(like.dtype).expand(like.shape[0])
    return like.new_full((like.shape[0],), value)


class Bijection(nn.Module):
    r"""An invertible map between data x and latent z, with its log-determinant in both directions.

    ``encode(x)`` returns :math:`(z, \log|\det \partial z/\partial x|)` and ``decode(z)`` returns
    :math:`(x, \log|\det \partial x/\partial z|)`: each log-determinant is that of the map just
    applied, one value per sample, shape (B,). ``context`` (optional, first dimension B) conditions
    the map; maps that do not use it ignore it.
    """

    def encode(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def decode(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def forward(self, *args: Tensor) -> Tensor:
        raise TypeError(
            f"{type(self).__name__} is a bijection: call encode (data to latent) or "
            "decode (latent to data), not the module itself"
        )


class Chain(Bijection):
    """Maps applied one after another: ``encode`` runs first to last, ``decode`` last to first."""

    def __init__(self, layers: Iterable[Bijection]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def encode(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(x.shape[0])
        for layer in self.layers:
            x, log_det = layer.encode(x, context)  # type: ignore[operator]
            total = total + log_det
        return x, total

    def decode(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total = z.new_zeros(z.shape[0])
        for layer in reversed(self.layers):
            z, log_det = layer.decode(z, context)  # type: ignore[operator]
            total = total + log_det
        return z, total


class Inverse(Bijection):
    """The same map read the other way round: its ``encode`` is the inner map's ``decode``."""

    def __init__(self, inner: Bijection):
        super().__init__()
        self.inner = inner

    def encode(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.inner.decode(x, context)

    def decode(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.inner.encode(z, context)


def frozen(module: nn.Module) -> bool:
    """Whether no parameter of the module asks for a gradient: then derived matrices may be cached."""
    return not any(p.requires_grad for p in module.parameters())


def random_orthogonal(n: int, generator: torch.Generator | None) -> Tensor:
    """A Haar-distributed rotation of R^n, computed in float64 so that float32 storage stays exact."""
    q, r = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    return q * r.diagonal().sign()
