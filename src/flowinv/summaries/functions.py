"""Expectations and probabilities of functions of draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .draws import Source, mapped
from .moments import moments
from .quantiles import quantiles_within, tails

_NORMAL_95 = 1.959963984540054


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
    ends, values = tails(mass), mapped(draws, function)
    found = moments(values)
    if found.count < 2:
        raise ValueError("an expectation needs at least 2 draws, got 1")
    lower, upper = quantiles_within(values, ends, found, bins, 2**28)
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
