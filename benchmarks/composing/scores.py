"""Scores of a method's draws as a set, from the features that were kept of them, with intervals over images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.composing.bootstrap import Interval, indices
from benchmarks.composing.perception import Reference
from flowinv.metrics import frechet_of_statistics, inception_type_score, statistics

RESAMPLES = 200  # each is a Fréchet distance of its own
_NAN = float("nan")


def frechet(features: Tensor, reference: Reference) -> Interval:
    """Fréchet distance of features (N, S, K), S draws of each of N images, to the test images; lower is closer.

    The interval is value +- 1.96 standard deviations of the bootstrap over images: its percentiles would lie too high,
    because a resample holds fewer different images. NaN where draws are too few for a covariance.
    """
    n, s, k = features.shape
    if n * s <= k:
        return Interval(_NAN, _NAN, _NAN, n)
    value = _frechet(features.flatten(0, 1), reference)
    if n < 4:
        return Interval(value, _NAN, _NAN, n)
    again = torch.tensor([_frechet(features[i].flatten(0, 1), reference) for i in indices(n, RESAMPLES)])
    reach = 1.96 * float(again.std())
    return Interval(value, value - reach, value + reach, n)


def frechet_difference(features: Tensor, others: Tensor, reference: Reference) -> Interval:
    """By how much the Fréchet distance of features (N, S, K) exceeds that of others of the same images; interval as there."""
    n, s, k = features.shape
    if n < 4 or min(n * s, n * others.shape[1]) <= k:
        return Interval(_NAN, _NAN, _NAN, n)
    both = [(features, others), *((features[i], others[i]) for i in indices(n, RESAMPLES))]
    found = [_frechet(a.flatten(0, 1), reference) - _frechet(b.flatten(0, 1), reference) for a, b in both]
    reach = 1.96 * float(torch.tensor(found[1:]).std())
    return Interval(found[0], found[0] - reach, found[0] + reach, n)


def _frechet(features: Tensor, reference: Reference) -> float:
    return frechet_of_statistics(*statistics(features.float()), reference.mean, reference.covariance)


def of_truths(reference: Reference, images: Sequence[int], draws: int) -> float:
    """The Fréchet distance of draws that all are the truth: what so few images, each so many times, make of perfection."""
    known = max(images, default=0) < len(reference.truths) and len(images) * draws > reference.mean.numel()
    return _frechet(reference.truths[list(images)].repeat(draws, 1), reference) if known else _NAN


def inception_type(probabilities: Tensor) -> Interval:
    """Inception-type score of class probabilities (N, S, K); higher is better, at most K. Interval as for ``frechet``."""
    n = len(probabilities)
    value = _inception(probabilities)
    if n < 4:
        return Interval(value, _NAN, _NAN, n)
    again = torch.tensor([_inception(probabilities[i]) for i in indices(n, RESAMPLES)])
    reach = 1.96 * float(again.std())
    return Interval(value, value - reach, value + reach, n)


def _inception(probabilities: Tensor) -> float:
    return inception_type_score(probabilities.flatten(0, 1).float(), splits=1)[0]
