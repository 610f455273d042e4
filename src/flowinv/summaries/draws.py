"""Sources: posterior draws in chunks, the same ones at every call.

A *source* is a callable without arguments that gives an iterator over the same draws every time it is called, in
chunks of shape (s, B, *shape): s draws for each of B observations. ``restartable`` makes one of a posterior and
``from_tensor`` one of a tensor. Whatever needs two looks at the draws (quantiles, densities) calls its source twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Source = Callable[[], Iterator[Tensor]]


def restartable(posterior: Any, n: int, generator: torch.Generator, chunk: int = 64) -> Source:
    """A source of n draws of ``posterior``, (s, B, *shape) with s <= chunk, the same at every call.

    Of a posterior that holds a ``count`` of stored draws at most so many. One seed is drawn from ``generator``; every call
    starts a new generator of the same device with it.
    """
    if n < 1:
        raise ValueError(f"the number of draws must be at least 1, got {n}")
    n = min(n, getattr(posterior, "count", n))
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    device = generator.device

    def source() -> Iterator[Tensor]:
        return posterior.draws(n, torch.Generator(device).manual_seed(seed), chunk=chunk)

    return source


def from_tensor(draws: Tensor, chunk: int = 64) -> Source:
    """A source of the draws (S, B, *shape) held in one tensor."""
    return lambda: iter(draws.split(chunk))


def mapped(draws: Source, function: Callable[[Tensor], Tensor]) -> Source:
    """A source of ``function(draws)``; the function takes (s, B, *shape) and gives (s, B, ...)."""

    def source() -> Iterator[Tensor]:
        for x in draws():
            value = function(x)
            if not isinstance(value, Tensor) or value.shape[:2] != x.shape[:2]:
                got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"a function of draws must give ({x.shape[0]}, {x.shape[1]}, ...) as it was given, got {got}"
                )
            yield value if value.is_floating_point() else value.to(torch.get_default_dtype())

    return source


def chunks(draws: Source) -> Iterator[Tensor]:
    """The chunks of a source, checked: at least one draw, one shape, every value finite."""
    shape = None
    for x in draws():
        if x.dim() < 2:
            raise ValueError(f"draws must have shape (S, B, ...), got {tuple(x.shape)}")
        if shape is not None and x.shape[1:] != shape:
            raise ValueError(f"draws changed their shape from (s, {_list(shape)}) to (s, {_list(x.shape[1:])})")
        shape = x.shape[1:]
        if not torch.isfinite(x).all():
            raise ValueError(f"draws hold {int((~torch.isfinite(x)).sum())} values that are NaN or infinite")
        if len(x):
            yield x.detach()
    if shape is None:
        raise ValueError("the source gave no draws, expected at least one")


def _list(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape))
