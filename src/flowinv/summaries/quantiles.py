"""Quantiles and central intervals of every element, from histograms."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .draws import Source, chunks
from .moments import Moments, moments

LEVELS = 256


def quantiles(draws: Source, probabilities: Sequence[float], bins: int = 1024, memory: int = 2**28) -> Tensor:
    """Quantiles of every element, (len(probabilities), B, *shape), defined as ``torch.quantile`` defines them.

    A first pass finds each element's range, a second its histogram; order statistics are interpolated inside their bin.
    Every result is within (maximum - minimum) / ``bins`` of the exact quantile of the same draws, per element.
    Histograms take 4 ``bins`` bytes per element; where that is more than ``memory`` bytes, elements are done in
    blocks, with one more pass over the draws per block.
    """
    wanted = [float(p) for p in probabilities]
    if not wanted or not all(0 <= p <= 1 for p in wanted):
        raise ValueError(f"probabilities must lie in [0, 1], got {list(probabilities)}")
    return quantiles_within(draws, wanted, moments(draws), bins, memory)


def quantiles_within(draws: Source, wanted: list[float], found: Moments, bins: int, memory: int) -> Tensor:
    low, high = found.minimum.flatten(), found.maximum.flatten()
    block = max(1, memory // (4 * bins))
    parts = []
    for start in range(0, low.numel(), block):
        part = slice(start, start + block)
        counts = counts_in_bins(draws, low[part], high[part], bins, part)
        if int(counts[0].sum()) != found.count:
            raise ValueError("the source gave other draws when it was called again: it must give the same ones")
        parts.append(_quantiles_of_counts(counts, low[part].double(), high[part].double(), wanted))
    return torch.cat(parts, 1).to(low.dtype).reshape(len(wanted), *found.mean.shape)


def _quantiles_of_counts(counts: Tensor, low: Tensor, high: Tensor, wanted: list[float]) -> Tensor:
    """Quantiles (P, E) of histograms (E, bins) of equal bins on [low, high]."""
    cumulative = counts.cumsum(1)
    total = int(cumulative[0, -1])

    def order_statistic(rank: int) -> Tensor:
        # the rank-th smallest draw lies in the first bin whose cumulative count exceeds rank; draws that share a bin
        # are taken as spread evenly over it
        where = torch.searchsorted(cumulative, torch.full_like(cumulative[:, :1], rank), right=True)
        inside = counts.gather(1, where).double()
        before = cumulative.gather(1, where).double() - inside
        position = (where + (rank - before + 0.5) / inside).squeeze(1)
        value = low + (high - low) * position / counts.shape[1]
        return low if rank == 0 else high if rank == total - 1 else value

    results = []
    for p in wanted:
        rank = p * (total - 1)
        below = min(math.floor(rank), total - 1)
        above = min(below + 1, total - 1)
        results.append(torch.lerp(order_statistic(below), order_statistic(above), rank - below))
    return torch.stack(results)


def counts_in_bins(draws: Source, low: Tensor, high: Tensor, bins: int, part: slice = slice(None)) -> Tensor:
    """Histograms (E, bins), int32, of the elements ``part``; values outside [low, high] count in the end bins."""
    size = low.numel()
    counts = torch.zeros(size * bins, dtype=torch.int32, device=low.device)
    offset = torch.arange(size, device=low.device) * bins
    for x in chunks(draws):
        index = bin_index(x.flatten(1)[:, part], low, high, bins) + offset
        counts.scatter_add_(
            0, index.flatten(), torch.ones((), dtype=torch.int32, device=low.device).expand(index.numel())
        )
    return counts.view(size, bins)


def bin_index(x: Tensor, low: Tensor, high: Tensor, bins: int = LEVELS) -> Tensor:
    """Which of ``bins`` equal bins of [low, high] each value falls in: floor(bins (x - low) / (high - low)), int64."""
    width = (high - low).double()
    scale = torch.where(width > 0, bins / width, torch.zeros_like(width))
    return ((x.double() - low.double()) * scale).long().clamp_(0, bins - 1)


def credible_interval(draws: Source, mass: float = 0.9, bins: int = 1024) -> tuple[Tensor, Tensor]:
    """Central interval holding ``mass`` of every element's posterior: quantiles (1 - mass)/2 and (1 + mass)/2, each (B,
    *shape).

    Resolution as for ``quantiles``. Intervals are per element: the whole image lies inside all of them far less often.
    """
    lower, upper = quantiles(draws, tails(mass), bins=bins)
    return lower, upper


def tails(mass: float) -> list[float]:
    if not 0 < mass < 1:
        raise ValueError(f"the mass of an interval must lie between 0 and 1, got {mass:g}")
    return [(1 - mass) / 2, (1 + mass) / 2]
