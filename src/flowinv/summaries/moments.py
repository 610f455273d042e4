"""Mean, standard deviation and range of every element."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .draws import Source, chunks


@dataclass(frozen=True)
class Moments:
    """Count S, and mean, standard deviation (divisor S - 1), least and greatest value, each (B, *shape)."""

    count: int
    mean: Tensor
    std: Tensor
    minimum: Tensor
    maximum: Tensor


def moments(draws: Source) -> Moments:
    """Mean and standard deviation of every element in one pass.

    Chunks are merged by Chan's update of Welford's sums in float64: M2 += M2' + (mean' - mean)^2 n n' / (n + n'), so a
    mean far from zero costs no digits. Results have the draws' dtype. One draw has standard deviation 0.
    """
    count, dtype = 0, torch.get_default_dtype()
    mean = m2 = low = high = torch.empty(0)
    for x in chunks(draws):
        wide, n, dtype = x.double(), len(x), x.dtype
        chunk_mean = wide.mean(0)
        chunk_m2 = (wide - chunk_mean).square().sum(0)
        if count == 0:
            mean, m2, low, high = chunk_mean, chunk_m2, x.amin(0), x.amax(0)
        else:
            delta, total = chunk_mean - mean, count + n
            mean = mean + delta * (n / total)
            m2 = m2 + chunk_m2 + delta.square() * (count * n / total)
            low, high = torch.minimum(low, x.amin(0)), torch.maximum(high, x.amax(0))
        count += n
    std = (m2 / max(count - 1, 1)).sqrt()
    return Moments(count, mean.to(dtype), std.to(dtype), low, high)


def mean(draws: Source) -> Tensor:
    """Posterior mean, (B, *shape): of all point estimates the one with the least expected squared error."""
    return moments(draws).mean


def std(draws: Source) -> Tensor:
    """Posterior standard deviation per element (divisor S - 1), (B, *shape), in the units of the draws."""
    found = moments(draws)
    if found.count < 2:
        raise ValueError("a standard deviation needs at least 2 draws, got 1")
    return found.std
