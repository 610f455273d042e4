"""What every kernel is made of: the state of the chains, their noise, and the choice between old and new."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from ...randomness import keyed_generator


class State(NamedTuple):
    r"""Where C chains of each of B observations stand.

    ``position`` and ``x``, the image there, are (C, B, \*shape); ``potential``, minus the log of the target up to a
    constant, is (C, B), in nats; ``gradient`` is that of the potential, None where the kernel needs none.
    """

    position: Tensor
    x: Tensor
    potential: Tensor
    gradient: Tensor | None


class Target(Protocol):
    """The density that chains run on."""

    def evaluate(self, position: Tensor, gradient: bool) -> State:
        """The state at a position (C, B, *shape)."""


class Noise:
    """One step's random numbers: observation b's from a generator of its own, so that it never depends on the others."""

    def __init__(self, generators: Sequence[torch.Generator], like: Tensor):
        self.generators, self.like = generators, like
        if len(generators) != like.shape[1]:
            raise ValueError(f"expected a generator for each of {like.shape[1]} observations, got {len(generators)}")

    @classmethod
    def keyed(cls, like: Tensor, *key: int) -> Noise:
        """Noise for chains placed like (C, B, *shape) that depends on the key alone, and on the observation's number."""
        return cls([keyed_generator(*key, b) for b in range(like.shape[1])], like)

    def normal(self) -> Tensor:
        """Standard normal, (C, B, *shape)."""
        shape = (self.like.shape[0], *self.like.shape[2:])
        draws = [torch.randn(shape, generator=g, dtype=self.like.dtype) for g in self.generators]
        return torch.stack(draws, 1).to(self.like.device)

    def uniform(self) -> Tensor:
        """Uniform on [0, 1), (C, B)."""
        draws = [torch.rand(self.like.shape[0], generator=g, dtype=self.like.dtype) for g in self.generators]
        return torch.stack(draws, 1).to(self.like.device)


class Kernel(Protocol):
    """One step of a Markov chain.

    ``exact`` tells that the target is invariant; ``needs_gradient`` that the state holds its gradient; ``evaluations``
    counts how often a step evaluates the target; ``target_acceptance`` is what a step size is adapted to.
    """

    exact: ClassVar[bool]
    needs_gradient: ClassVar[bool]
    target_acceptance: ClassVar[float]

    @property
    def evaluations(self) -> int: ...

    def step(self, target: Target, state: State, step_size: Tensor, noise: Noise) -> tuple[State, Tensor]:
        """The next state, and the probability (C, B) with which the proposal was accepted; step_size is (B,)."""
        ...


def start(target: Target, position: Tensor, kernel: Kernel) -> State:
    """The state at a position (C, B, *shape), with what the kernel needs there."""
    return target.evaluate(position.detach(), kernel.needs_gradient)


def wide(per_chain: Tensor, like: Tensor) -> Tensor:
    """One value per chain (C, B), or per observation (B,), shaped to multiply positions (C, B, *shape)."""
    return per_chain.reshape(*per_chain.shape, *(1,) * (like.dim() - 2))


def event_sum(t: Tensor) -> Tensor:
    """Sum over a sample: (C, B, *shape) -> (C, B)."""
    return t.flatten(2).sum(2) if t.dim() > 2 else t


def metropolis(old: State, new: State, log_ratio: Tensor, noise: Noise) -> tuple[State, Tensor]:
    """New where accepted, with probability min(1, exp(log_ratio)), else old; never where log_ratio is not a number."""
    usable = torch.isfinite(new.potential)
    if new.gradient is not None:
        usable &= torch.isfinite(new.gradient).flatten(2).all(2)
    log_ratio = torch.where(usable, log_ratio, -torch.inf).nan_to_num(nan=-torch.inf, posinf=torch.inf)
    probability = log_ratio.clamp_max(0).exp()
    accept = noise.uniform() < probability

    def choose(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(wide(accept, a), a, b)

    gradient = None
    if new.gradient is not None and old.gradient is not None:
        gradient = choose(new.gradient, old.gradient)
    chosen = State(
        choose(new.position, old.position), choose(new.x, old.x), choose(new.potential, old.potential), gradient
    )
    return chosen, probability
