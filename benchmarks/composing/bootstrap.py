"""Intervals over images: each image, with all its draws, is one unit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowinv.randomness import keyed_generator

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A value over ``count`` images and the ends of its 95 % interval (NaN where one image is all there is)."""

    value: float
    low: float
    high: float
    count: int

    def text(self, digits: int = 3) -> str:
        """Value and interval to so many significant digits."""
        if self.low != self.low:
            return f"{number(self.value, digits)}"
        return f"{number(self.value, digits)} ({number(self.low, digits)} – {number(self.high, digits)})"


def number(value: float, digits: int = 3) -> str:
    """To so many significant digits, without an exponent where there is no need."""
    if value != value:
        return "–"
    size = f"{value:.{digits}g}"
    return f"{float(size):.0f}" if "e+" in size else size


def indices(count: int, resamples: int = RESAMPLES, seed: int = 0) -> Tensor:
    """Which images each resample takes, (resamples, count)."""
    return torch.randint(count, (resamples, count), generator=keyed_generator(92, seed))


def mean_interval(values: list[float], seed: int = 0) -> Interval:
    """The mean of one value per image with its percentile interval."""
    column = torch.tensor(values, dtype=torch.float64)
    if not len(column):
        raise ValueError("an interval needs at least one image, got none")
    if len(column) == 1:
        return Interval(float(column), float("nan"), float("nan"), 1)
    means = column[indices(len(column), seed=seed)].mean(1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(float(column.mean()), low, high, len(column))
