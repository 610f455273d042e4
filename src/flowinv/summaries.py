"""Numbers asked of posterior draws, in memory that does not grow with their number.

A *source* is a callable without arguments that gives an iterator over the same draws every time it is called, in
chunks of shape (s, B, *shape): s draws for each of B observations. ``restartable`` makes one of a posterior and
``from_tensor`` one of a tensor. Whatever needs two looks at the draws (quantiles, densities) calls its source twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .likelihoods import Likelihood, measurement_sum

Source = Callable[[], Iterator[Tensor]]

LEVELS = 256
BANDWIDTHS = (0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144)  # of kernels, in levels; 0 is the level itself
_SHARES = (0.0, 0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8)  # of the draws, that a kernel's reach is to hold
_NORMAL_95 = 1.959963984540054


# -- sources ---------------------------------------------------------------------------------------------------------


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


def _chunks(draws: Source) -> Iterator[Tensor]:
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


# -- moments ---------------------------------------------------------------------------------------------------------


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
    for x in _chunks(draws):
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


# -- quantiles -------------------------------------------------------------------------------------------------------


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
    return _quantiles(draws, wanted, moments(draws), bins, memory)


def _quantiles(draws: Source, wanted: list[float], found: Moments, bins: int, memory: int) -> Tensor:
    low, high = found.minimum.flatten(), found.maximum.flatten()
    block = max(1, memory // (4 * bins))
    parts = []
    for start in range(0, low.numel(), block):
        part = slice(start, start + block)
        counts = _counts(draws, low[part], high[part], bins, part)
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


def _counts(draws: Source, low: Tensor, high: Tensor, bins: int, part: slice = slice(None)) -> Tensor:
    """Histograms (E, bins), int32, of the elements ``part``; values outside [low, high] count in the end bins."""
    size = low.numel()
    counts = torch.zeros(size * bins, dtype=torch.int32, device=low.device)
    offset = torch.arange(size, device=low.device) * bins
    for x in _chunks(draws):
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
    lower, upper = quantiles(draws, _tails(mass), bins=bins)
    return lower, upper


def _tails(mass: float) -> list[float]:
    if not 0 < mass < 1:
        raise ValueError(f"the mass of an interval must lie between 0 and 1, got {mass:g}")
    return [(1 - mass) / 2, (1 + mass) / 2]


# -- functions of draws ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Expectation:
    """Posterior mean of a function g, its interval, and the Monte-Carlo error of the mean; tensors (B, ...).

    ``lower`` and ``upper`` bound g(x) itself with the posterior probability asked for; ``standard_error`` =
    std / sqrt(count) tells how far ``mean`` is from the limit of infinitely many (independent) draws.
    """

    mean: Tensor
    std: Tensor
    standard_error: Tensor
    lower: Tensor
    upper: Tensor
    count: int


def expectation(
    draws: Source, function: Callable[[Tensor], Tensor], mass: float = 0.9, bins: int = 1024
) -> Expectation:
    """E[g(x) | y] for any g from draws (s, B, *shape) to (s, B, ...), with the central interval that holds ``mass`` of
    g(x).
    """
    tails, values = _tails(mass), mapped(draws, function)
    found = moments(values)
    if found.count < 2:
        raise ValueError("an expectation needs at least 2 draws, got 1")
    lower, upper = _quantiles(values, tails, found, bins, 2**28)
    return Expectation(found.mean, found.std, found.std / math.sqrt(found.count), lower, upper, found.count)


@dataclass(frozen=True)
class Probability:
    """A probability (B, ...) estimated from ``count`` draws, its standard error, and Wilson's 95 % bounds on it.

    The bounds stay informative where no draw (or every draw) is a hit and the standard error is 0.
    """

    probability: Tensor
    standard_error: Tensor
    lower: Tensor
    upper: Tensor
    count: int


def wilson_interval(p: Tensor, n: int | Tensor) -> tuple[Tensor, Tensor]:
    """95 % bounds on a probability that was p in n trials (Wilson): never empty, even where p is 0 or 1."""
    q = _NORMAL_95**2
    centre = (p + q / (2 * n)) / (1 + q / n)
    reach = (q * (p * (1 - p) / n + q / (4 * n * n))).sqrt() / (1 + q / n)
    return (centre - reach).clamp(0, 1), (centre + reach).clamp(0, 1)


def exceedance(
    draws: Source, threshold: float | Tensor, function: Callable[[Tensor], Tensor] | None = None
) -> Probability:
    """P(g(x) > threshold | y), (B, ...); without ``function`` g is every element itself. Errors assume independent
    draws.
    """
    values = draws if function is None else mapped(draws, function)
    hits = moments(mapped(values, lambda v: (v > threshold).double()))
    p, n = hits.mean, hits.count
    lower, upper = wilson_interval(p, n)
    return Probability(p, (p * (1 - p) / n).sqrt(), lower, upper, n)


# -- density and entropy per element ---------------------------------------------------------------------------------


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


def density(draws: Source, support: tuple[float, float] | None = (0.0, 1.0)) -> Density:
    """Kernel density of every element of the draws on 256 grey levels, 1 KiB per element.

    ``support`` is the interval divided into levels; draws outside count at its nearest end. None takes each element's
    own range, widened by a quarter on either side, for data without bounds.

    Kernels are narrow where draws crowd and wide where they are few: a pixel that is black in most draws and any grey
    in the rest needs both at once. How many neighbours set the width is chosen per element, among shares of 0 to 80 %
    of the draws, by leave-one-out likelihood, the criterion that lies nearest to an entropy: sum_s log[(sum_{t != s}
    K_t(x_s) + 1/256) / S]; the 1/256 is one uniform draw, without which a single outlier would decide. Rules from the
    standard deviation (Silverman's) would smear pixels that are either black or white.
    """
    found = moments(draws)
    shape = found.mean.shape
    if support is None:
        span = found.maximum - found.minimum
        pad = 0.25 * span + 1e-3 * found.mean.abs() * (span == 0) + 1e-6 * ((span == 0) & (found.mean == 0))
        low, high = found.minimum - pad, found.maximum + pad
    else:
        if not (math.isfinite(support[0]) and math.isfinite(support[1]) and support[0] < support[1]):
            raise ValueError(f"support must be a finite interval (low, high) or None, got {support}")
        low, high = (torch.full_like(found.mean, end) for end in support)
    counts = _counts(draws, low.flatten(), high.flatten(), LEVELS)
    neighbours = torch.cat([_neighbours(part) for part in counts.split(_BLOCK)])
    return Density(counts.reshape(*shape, LEVELS), neighbours.reshape(shape), low, high)


def entropy(draws: Source, support: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """Entropy in bits of every element's posterior density on 256 grey levels, (B, *shape), between 0 and 8."""
    return density(draws, support).entropy()


_BLOCK = 4096  # elements smoothed at a time: their windows take 12 KiB each


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


# -- data fit --------------------------------------------------------------------------------------------------------

RESIDUAL_EDGES = tuple(k / 4 for k in range(-20, 21))  # of the histogram of standardised residuals


@dataclass(frozen=True)
class DataFit:
    """How well the draws reproduce the measurement, one value per observation (B,).

    ``statistic`` is "chi-squared" (per observed measurement) where the likelihood has a standard deviation, else
    "log-likelihood" (nats). ``value`` is its mean over draws; ``expected`` and ``spread`` are the mean and standard
    deviation it would have if the measurement had come from the model; ``p_value`` is the posterior predictive
    P(replica worse than the measurement); each None where the likelihood cannot tell. ``count`` is the number of
    observed measurements, ``residuals`` (B, 40) the histogram of (y - A(x)) / std over measurements and draws, with
    edges ``RESIDUAL_EDGES`` and everything farther out in the end bins (None without a standard deviation).

    How to read it: for a draw of the true posterior, (x, y) is a pair of the model, so y - A(x) is distributed as the
    noise and chi-squared per measurement is 1 +- sqrt(2 / count) for Gaussian noise. Above: the draws miss the data.
    Below: the measurement holds less noise than the likelihood says, or the draws follow the noise.
    """

    statistic: str
    value: Tensor
    expected: Tensor | None
    spread: Tensor | None
    p_value: Tensor | None
    count: Tensor
    residuals: Tensor | None


def data_fit(problem: Any, draws: Source, generator: torch.Generator | None = None) -> DataFit:
    """Check draws (s, B, *shape) against the measurement ``problem.y`` (B, *measurement).

    chi2_b = mean over draws and observed measurements of ((y - A(x)) / std)^2, with ``problem.likelihood.std`` (a
    number, a tensor, or a function of the prediction). Without ``std``: the mean log-likelihood. With a ``generator``,
    and a likelihood that can ``sample``, each draw also gets a replica y' ~ p(y' | x): expected value, spread and
    p-value come from the replicas. Without, chi-squared is compared with Gaussian noise: 1 and sqrt(2 / count).
    """
    y, operator, likelihood = problem.y, problem.operator, problem.likelihood
    observed = getattr(operator, "observed", None)
    mask = torch.ones_like(y, dtype=torch.bool) if observed is None else observed.to(y.device).bool().expand(y.shape)
    count = measurement_sum(mask.long(), y)
    if (count == 0).any():
        raise ValueError(
            f"observations {torch.nonzero(count == 0).flatten().tolist()} have no observed measurement to check"
        )
    replicate = generator is not None and can_sample(likelihood)
    edges = torch.tensor(RESIDUAL_EDGES, dtype=torch.float64, device=y.device)
    bins = len(RESIDUAL_EDGES) - 1
    histogram = torch.zeros(len(y), bins, dtype=torch.int64, device=y.device)
    real, replicas, has_std = [], [], True
    for x in _chunks(draws):
        with torch.no_grad():
            prediction = operator(x)
            r = _standardised(likelihood, y, prediction, mask)
            has_std = r is not None
            if r is None:
                real.append(likelihood.log_prob(y, prediction, observed).double())
            else:
                real.append(measurement_sum(r.square(), y) / count)
                where = (torch.bucketize(r.contiguous(), edges, right=True) - 1).clamp(0, bins - 1)
                for b in range(len(y)):
                    histogram[b] += torch.bincount(where[:, b][:, mask[b]].flatten(), minlength=bins)
            if replicate:
                replicas.append(_replica_statistic(likelihood, prediction, mask, observed, count, generator))
    value = torch.cat(real)
    expected = spread = p_value = None
    if replicas:
        replica = torch.cat(replicas)
        worse = replica >= value if has_std else replica <= value
        expected, spread, p_value = replica.mean(0), replica.std(0), worse.double().mean(0)
    elif has_std:
        expected, spread = torch.ones_like(value[0]), (2 / count.double()).sqrt()
    name = "chi-squared" if has_std else "log-likelihood"
    return DataFit(name, value.mean(0), expected, spread, p_value, count, histogram if has_std else None)


def _standardised(likelihood: Any, y: Tensor, prediction: Tensor, mask: Tensor) -> Tensor | None:
    """(y - E y) / std (s, B, *measurement), float64, 0 where not observed; None if the likelihood has no std."""
    deviation = getattr(likelihood, "std", None)
    scale = deviation(prediction) if callable(deviation) else deviation
    if scale is None:
        return None
    centre = getattr(likelihood, "mean", None)
    difference = (y - (centre(prediction) if callable(centre) else prediction)).double()
    # a measurement that was not made may hold anything, and a certain one may have std 0: neither may become NaN
    return torch.where(mask & (difference != 0), difference / scale, torch.zeros_like(difference))


def _replica_statistic(
    likelihood: Any,
    prediction: Tensor,
    mask: Tensor,
    observed: Tensor | None,
    count: Tensor,
    generator: torch.Generator | None,
) -> Tensor:
    """The statistic (s, B) of one replica y' ~ p(y' | x) per draw, as if y' had been measured."""
    rows = []
    for drawn, own in zip(likelihood.sample(prediction, generator), prediction, strict=True):
        r = _standardised(likelihood, drawn, own[None], mask)
        if r is None:
            rows.append(likelihood.log_prob(drawn, own[None], observed).double())
        else:
            rows.append(measurement_sum(r.square(), own) / count)
    return torch.cat(rows)


def can_sample(likelihood: Any) -> bool:
    """Whether the likelihood defines ``sample``: the base class's only refuses, and so does one without its
    ``sampler``.
    """
    own = getattr(type(likelihood), "sample", None)
    return own is not None and own is not Likelihood.sample and getattr(likelihood, "sampler", own) is not None
