"""Density and entropy of every element, by a kernel whose width follows the draws."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..images import in_other_units
from .draws import Source, from_tensor
from .moments import moments
from .quantiles import LEVELS, counts_in_bins

BANDWIDTHS = (0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144)  # of kernels, in levels; 0 is the level itself

_SHARES = (0.0, 0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8)  # of the draws, that a kernel's reach is to hold

_BLOCK = 4096  # elements smoothed at a time: their windows take 12 KiB each


@dataclass(frozen=True)
class Density:
    """Gaussian-kernel density of every element on 256 equal levels of [low, high].

    ``counts`` (B, *shape, 256) is the histogram of the draws; ``low`` and ``high`` (B, *shape) are the ends, at which
    everything is mirrored, so that no mass leaves. Each draw's kernel has as standard deviation h the least of 0, 1, 2,
    3, 5, 8, ..., 144 levels with at least ``neighbours`` (B, *shape, int64) draws within h levels of it, itself
    included.
    """

    counts: Tensor
    neighbours: Tensor
    low: Tensor
    high: Tensor

    def masses(self) -> Tensor:
        """Probability of each level, (B, *shape, 256), float64, summing to 1; density = mass * 256 / (high - low)."""
        counts, neighbours = self.counts.reshape(-1, LEVELS), self.neighbours.flatten()
        blocks = zip(counts.split(_BLOCK), neighbours.split(_BLOCK), strict=True)
        masses = torch.cat([_smooth(n.double(), _which(_within(n), k[:, None]))[0] for n, k in blocks])
        return (masses / masses.sum(-1, keepdim=True)).reshape(self.counts.shape)

    def entropy(self) -> Tensor:
        """-sum_k p_k log2 p_k in bits, (B, *shape): 0 for one certain level, 8 for a uniform density.

        On [0, 1] it is the differential entropy in bits + 8 (figure 1 of "Composing Normalizing Flows for Inverse
        Problems").
        """
        p = self.masses()
        return -torch.special.xlogy(p, p).sum(-1) / math.log(2) + 0.0

    def differential_entropy(self) -> Tensor:
        """-int p log2 p in bits, (B, *shape), in the units of the draws: entropy + log2((high - low) / 256)."""
        return self.entropy() + ((self.high - self.low).double() / LEVELS).log2()


def density(draws: Source | Tensor, support: tuple[float, float] | None = (0.0, 1.0)) -> Density:
    r"""Kernel density of every element of the draws on 256 grey levels, 1 KiB per element.

    ``draws`` is a source or a tensor (S, B, \*shape). ``support`` is the interval divided into levels; draws outside count
    at its nearest end, and draws of other units are refused: those whose mean is outside by a tenth of its width. None takes
    each element's own range, widened by a quarter on either side, for data without bounds.

    Kernels are narrow where draws crowd and wide where they are few: a pixel that is black in most draws and any grey
    in the rest needs both at once. How many neighbours set the width is chosen per element, among shares of 0 to 80 %
    of the draws, by leave-one-out likelihood, the criterion that lies nearest to an entropy: sum_s log[(sum_{t != s}
    K_t(x_s) + 1/256) / S]; the 1/256 is one uniform draw, without which a single outlier would decide. Rules from the
    standard deviation (Silverman's) would smear pixels that are either black or white.
    """
    if isinstance(draws, Tensor):
        draws = from_tensor(draws)
    found = moments(draws)
    shape = found.mean.shape
    if support is None:
        span = found.maximum - found.minimum
        pad = 0.25 * span + 1e-3 * found.mean.abs() * (span == 0) + 1e-6 * ((span == 0) & (found.mean == 0))
        low, high = found.minimum - pad, found.maximum + pad
    else:
        if not (math.isfinite(support[0]) and math.isfinite(support[1]) and support[0] < support[1]):
            raise ValueError(f"support must be a finite interval (low, high) or None, got {support}")
        if in_other_units(found.mean, *support):
            ends = f"{float(found.minimum.min()):.4g} to {float(found.maximum.max()):.4g}"
            raise ValueError(f"draws must lie in the support [{support[0]:g}, {support[1]:g}], got values from {ends}")
        low, high = (torch.full_like(found.mean, end) for end in support)
    counts = counts_in_bins(draws, low.flatten(), high.flatten(), LEVELS)
    neighbours = torch.cat([_neighbours(part) for part in counts.split(_BLOCK)])
    return Density(counts.reshape(*shape, LEVELS), neighbours.reshape(shape), low, high)


def entropy(draws: Source | Tensor, support: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """Entropy in bits of every element's posterior density on 256 grey levels, (B, *shape), between 0 and 8."""
    return density(draws, support).entropy()


def _within(counts: Tensor) -> Tensor:
    """How many draws lie within h levels of each level, mirror images included, (len(BANDWIDTHS), E, 256)."""
    reach = BANDWIDTHS[-1]
    mirrored = torch.cat([counts[:, :reach].flip(1), counts, counts[:, -reach:].flip(1)], 1)
    sums = torch.nn.functional.pad(mirrored.cumsum(1, dtype=torch.int32), (1, 0))
    level = torch.arange(LEVELS, device=counts.device) + reach
    return torch.stack([sums[:, level + h + 1] - sums[:, level - h] for h in BANDWIDTHS])


def _which(within: Tensor, neighbours: Tensor | int) -> Tensor:
    """Index into ``BANDWIDTHS`` of the least with enough neighbours, the widest if none has, (E, 256)."""
    return (within < neighbours).sum(0).clamp_max(len(BANDWIDTHS) - 1)


def _smooth(n: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the kernels of histograms n (E, 256), and the part that a draw has in its own level, both (E, 256)."""
    total, own = torch.zeros_like(n), torch.zeros_like(n)
    for index, h in enumerate(BANDWIDTHS):
        kernel, chosen = _kernel(h).to(n), which == index
        total += torch.where(chosen, n, 0) @ kernel
        own += torch.where(chosen, kernel.diagonal(), 0)
    return total, own


def _neighbours(counts: Tensor) -> Tensor:
    """The number of neighbours (E,) with the greatest leave-one-out likelihood for histograms (E, 256)."""
    n, within, total = counts.float(), _within(counts), int(counts[0].sum())
    best = torch.full((len(n),), -math.inf, device=n.device)
    chosen = torch.ones(len(n), dtype=torch.int64, device=n.device)
    for share in _SHARES:
        neighbours = max(1, math.ceil(share * total))
        density, own = _smooth(n, _which(within, neighbours))
        score = (n * ((density - own).clamp_min(0) + 1 / LEVELS).log()).sum(1)
        better = score > best
        best, chosen = torch.where(better, score, best), chosen.masked_fill(better, neighbours)
    return chosen


@lru_cache(maxsize=32)
def _kernel(h: int) -> Tensor:
    """K[j, k] (256, 256): Gaussian of standard deviation h levels at j, on level k, mirrored at both ends, float64.

    Rows sum to 1. Mirroring makes the line a circle of 512 levels: K[j, k] = g[k - j] + g[k + j + 1] with g the wrapped
    Gaussian.
    """
    if h == 0:
        return torch.eye(LEVELS, dtype=torch.float64)
    period = 2 * LEVELS
    images = torch.arange(-3, 4, dtype=torch.float64)[:, None] * period
    g = (-0.5 * ((torch.arange(period, dtype=torch.float64) + images) / h).square()).exp().sum(0)
    g = g / g.sum()
    level = torch.arange(LEVELS)
    return g[(level - level[:, None]) % period] + g[(level + level[:, None] + 1) % period]
