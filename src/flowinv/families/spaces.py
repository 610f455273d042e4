"""Where a family's map ends: in the prior's latent, or in u, the image before the prior's last elementwise transform."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ..flows.flow import Flow, standard_normal_log_prob

Space = Literal["latent", "ambient"]


def to_x(space: Space, inner: Tensor, prior: Flow) -> tuple[Tensor, Tensor]:
    """x (N, *shape) at points of the space, with log|det dx/d inner|, (N,)."""
    return prior.decode(inner) if space == "latent" else prior.transform.decode(inner)


def from_x(space: Space, x: Tensor, prior: Flow) -> tuple[Tensor, Tensor]:
    """The inverse of ``to_x``, with log|det d inner/dx|."""
    return prior.encode(x) if space == "latent" else prior.transform.encode(x)


def log_prior(space: Space, inner: Tensor, prior: Flow) -> Tensor:
    """The prior's log-density in the space, (N,), nats."""
    return standard_normal_log_prob(inner) if space == "latent" else prior.log_prob_u(inner)
