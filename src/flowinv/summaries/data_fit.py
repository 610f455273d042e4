"""How well draws reproduce the measurement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..likelihoods import Likelihood, measurement_sum
from .draws import Source, chunks

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
    for x in chunks(draws):
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
        expected, p_value = replica.mean(0), worse.double().mean(0)
        spread = replica.std(0) if len(replica) > 1 else torch.full_like(expected, torch.nan)
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
