"""The conditional pre-generator: a pre-generator that is told the observation, for amortised inference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..flows.bijection import Bijection, Chain, Inverse
from ..flows.layers.reshaping import Squeeze
from ..gradients import require_gradient
from ..problem import InverseProblem
from ..settings import check_types
from .pregenerator import rotated_couplings


@dataclass(frozen=True)
class ConditionalConfig:
    """A conditional pre-generator: ``steps`` affine couplings with ``hidden`` channels, all of which see ``features``
    channels that an encoder of ``blocks`` residual blocks reads out of the observation. ``context`` is the shape of what
    the encoder is given. An image latent is squeezed ``squeezes`` times first.
    """

    shape: tuple[int, ...]
    context: tuple[int, ...]
    steps: int = 10
    hidden: int = 64
    features: int = 64
    blocks: int = 3
    squeezes: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self, "conditional pre-generator's")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ConditionalConfig:
        """What ``asdict`` gave, by way of JSON."""
        settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**settings)


class _Encoder(nn.Module):
    """An image context (N, C, H, W) to features at the resolution of the couplings; a vector to a vector."""

    def __init__(self, config: ConditionalConfig):
        super().__init__()
        self.image = len(config.context) == 3
        width = 2 * config.features
        if self.image:
            self.ratio = 2**config.squeezes
            channels = config.context[0] * self.ratio**2
            self.enter: nn.Module = nn.Conv2d(channels, width, 3, padding=1)
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 1))
                for _ in range(config.blocks)
            )
            self.leave: nn.Module = nn.Conv2d(width, config.features, 1)
            self.to(memory_format=torch.channels_last)
        else:
            self.enter = nn.Linear(config.context[0], width)
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
                for _ in range(config.blocks)
            )
            self.leave = nn.Linear(width, config.features)

    def forward(self, context: Tensor) -> Tensor:
        h = self.enter(F.pixel_unshuffle(context, self.ratio) if self.image else context)
        for block in self.blocks:
            h = h + block(h)
        return self.leave(F.relu(h))


class Conditional(Bijection):
    """A bijection between the latent and noise that is conditioned on an observation, and starts as the identity."""

    def __init__(self, config: ConditionalConfig):
        super().__init__()
        image = len(config.shape) == 3
        if image != (len(config.context) == 3) or len(config.shape) not in (1, 3):
            raise ValueError(
                f"an image latent takes an image context and a vector a vector, got shape {config.shape} and "
                f"context {config.context}"
            )
        if image and any(side % 2**config.squeezes for side in (*config.shape[1:], *config.context[1:])):
            raise ValueError(f"sides of {config.shape} and {config.context} must be divisible by {2**config.squeezes}")
        channels = config.shape[0] * (4**config.squeezes if image else 1)
        if channels < 2:
            raise ValueError(
                f"couplings split channels, and a latent of shape {config.shape} has {channels} after {config.squeezes} squeezes"
                + (": set squeezes to 1 or more" if image else "")
            )
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.encoder = _Encoder(config)
            self.chain = self._couplings(image)

    def _couplings(self, image: bool) -> Chain:
        config = self.config
        channels = config.shape[0] * (4**config.squeezes if image else 1)
        down = [Squeeze() for _ in range(config.squeezes)] if image else []
        inner = rotated_couplings(channels, config.steps, config.hidden, config.seed, image, config.features)
        return Chain([*down, *inner, *map(Inverse, down)])

    def encode(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.chain.encode(x, self.features(context, len(x)))

    def decode(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.chain.decode(z, self.features(context, len(z)))

    def features(self, context: Tensor | None, n: int) -> Tensor:
        """What the couplings are told of n observations, (n, features, ...)."""
        if context is None or context.shape[1:] != self.config.context or len(context) != n:
            got = None if context is None else tuple(context.shape)
            raise ValueError(f"the conditional pre-generator needs a context ({n}, *{self.config.context}), got {got}")
        return self.encoder(context)


def context_of(problem: InverseProblem) -> Tensor:
    """What a conditional pre-generator is told of each observation, (B, C, H, W), or (B, D) for vectors.

    For images A's adjoint at y, that is the vector-Jacobian product of the operator at the middle of the support, which
    puts any measurement back onto the pixels, with the mask as further channels where not everything was observed.
    For vectors y itself.
    """
    if len(problem.shape) != 3:
        return problem.y.flatten(1).clone()
    low, high = problem.prior.support
    middle = 0.5 * (low + high) if high - low < float("inf") else 0.0
    with torch.enable_grad():
        x = problem.y.new_full((problem.batch, *problem.shape), middle).requires_grad_(True)
        prediction = problem.operator(x)
        require_gradient(prediction, "A(x)")
        parts: list[Any] = [torch.autograd.grad(prediction, x, problem.y)[0]]
    if problem.observed is not None and problem.y.shape[1:] == problem.shape:
        parts.append(problem.observed.expand(problem.batch, *problem.shape).to(problem.y.dtype))
    return torch.cat(parts, 1)
