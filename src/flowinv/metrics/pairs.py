"""A distance between two batches, asked of draws: against the truth, and among themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from .shapes import check_images, draw_axes, flat_pairs

PairDistance = Callable[[Tensor, Tensor], Tensor]


def _distances(distance: PairDistance, a: Tensor, b: Tensor, chunk: int) -> Tensor:
    """Distances (N,) of two (N, *shape), some at a time."""
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    values = []
    for left, right in zip(a.split(chunk), b.split(chunk), strict=True):
        value = distance(left, right)
        if not isinstance(value, Tensor) or value.shape != (len(left),):
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"a distance between {len(left)} pairs must have shape ({len(left)},), got {found}")
        values.append(value)
    return torch.cat(values)


def distance_to_truth(distance: PairDistance, x: Tensor, truth: Tensor, chunk: int = 128) -> Tensor:
    r"""distance(truth_b, x_sb) of draws x (..., B, \*shape) and truths (B, \*shape), one value per image: (..., B).

    ``distance`` takes two batches (N, \*shape) to (N,): ``STLPIPS``, ``DigitDistance``, ``LPIPS``. In its units; lower is
    better. ``chunk`` images are compared at a time.
    """
    axes = draw_axes(x, truth)
    draws, targets = flat_pairs(x, truth)
    return _distances(distance, targets, draws, chunk).reshape(axes)


@dataclass(frozen=True)
class Diversity:
    """Mean and standard deviation (divisor: pairs - 1) over pairs of draws, each (B,), and how many pairs there were.

    ``std`` is the spread of the distances, not the error of their mean; NaN for a single pair.
    """

    mean: Tensor
    std: Tensor
    pairs: int


def pairwise_diversity(draws: Tensor, distance: PairDistance, chunk: int = 128) -> Diversity:
    r"""How far apart the draws of one observation are: the mean of d(x_s, x_t) over all pairs s < t of draws (S, B, \*shape).

    ``distance`` is symmetric and takes two batches (N, \*shape) to (N,). In its units. Higher means more diverse, which
    is not better in itself: an ignorant posterior is diverse too. With a perceptual distance it is the diversity of
    section 5 of Whang et al., "Composing Normalizing Flows for Inverse Problems". ValueError for fewer than 2 draws.
    """
    check_images(draws, "draws")
    if draws.dim() < 3 or len(draws) < 2:
        raise ValueError(f"draws must have shape (S, B, *shape) with at least 2 draws S, got {tuple(draws.shape)}")
    first, second = (torch.tensor(column) for column in zip(*combinations(range(len(draws)), 2), strict=True))
    values = []
    with torch.no_grad():
        for s, t in zip(first.split(chunk), second.split(chunk), strict=True):  # never all pairs in memory at once
            flat = (draws[s].flatten(0, 1), draws[t].flatten(0, 1))
            values.append(_distances(distance, *flat, chunk).reshape(len(s), draws.shape[1]))
    found = torch.cat(values)
    std = found.std(0) if len(found) > 1 else torch.full_like(found[0], torch.nan)
    return Diversity(found.mean(0), std, len(found))
