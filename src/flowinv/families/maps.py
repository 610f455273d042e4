"""Maps from noise for B observations at once: a bijection for each, one that is shared and told the observation, or both."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..flows.bijection import Bijection
from .conditional import Conditional

Pushed = tuple[Tensor, Tensor]


class Generators(nn.Module):
    """One bijection per observation."""

    def __init__(self, bijections: Iterable[Bijection]):
        super().__init__()
        self.bijections = nn.ModuleList(bijections)
        self.batch = len(self.bijections)

    def push(self, noise: Tensor) -> Pushed:
        """Noise (m, B, *shape) to the inner space, with log|det d inner/d noise|, (m, B)."""
        return _each([bijection.decode(noise[:, b]) for b, bijection in enumerate(self.bijections)])  # type: ignore[operator]

    def pull(self, inner: Tensor) -> Pushed:
        """The inverse of ``push``, with log|det d noise/d inner|."""
        return _each([bijection.encode(inner[:, b]) for b, bijection in enumerate(self.bijections)])  # type: ignore[operator]


def _each(pairs: list[Pushed]) -> Pushed:
    values, log_dets = zip(*pairs, strict=True)
    return torch.stack(values, 1), torch.stack(log_dets, 1)


class Shared(nn.Module):
    """One conditional bijection for all observations, which it is told through ``context``, (B, ...)."""

    context: Tensor

    def __init__(self, bijection: Conditional, context: Tensor):
        super().__init__()
        self.bijection = bijection
        self.register_buffer("context", context)
        self.batch = len(context)

    def push(self, noise: Tensor) -> Pushed:
        """Noise (m, B, *shape) to the inner space, with log|det d inner/d noise|, (m, B)."""
        value, log_det = self.bijection.chain.decode(noise.flatten(0, 1), self._features(len(noise)))
        return value.unflatten(0, noise.shape[:2]), log_det.view(noise.shape[:2])

    def pull(self, inner: Tensor) -> Pushed:
        """The inverse of ``push``, with log|det d noise/d inner|."""
        value, log_det = self.bijection.chain.encode(inner.flatten(0, 1), self._features(len(inner)))
        return value.unflatten(0, inner.shape[:2]), log_det.view(inner.shape[:2])

    def _features(self, draws: int) -> Tensor:
        """What the couplings are told, for each draw: the encoder runs once for each observation."""
        found = self.bijection.features(self.context, self.batch)
        return found.expand(draws, *found.shape).flatten(0, 1)


class After(nn.Module):
    """Noise goes through ``first``, then through ``second``."""

    def __init__(self, first: Generators, second: Shared):
        super().__init__()
        self.first, self.second = first, second
        self.batch = first.batch

    def push(self, noise: Tensor) -> Pushed:
        """Noise (m, B, *shape) to the inner space, with log|det d inner/d noise|, (m, B)."""
        between, first = self.first.push(noise)
        inner, second = self.second.push(between)
        return inner, first + second

    def pull(self, inner: Tensor) -> Pushed:
        """The inverse of ``push``, with log|det d noise/d inner|."""
        between, second = self.second.pull(inner)
        noise, first = self.first.pull(between)
        return noise, first + second
