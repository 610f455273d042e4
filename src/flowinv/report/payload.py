"""What a report shows, as tensors (``Facts``) and as JSON the page can read (``payload``)."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import summaries


@dataclass(frozen=True)
class Facts:
    """Everything on the page, for the first ``batch`` of ``total`` observations; B below is ``batch``.

    ``draws`` (S, B, *shape) and the maps (B, *shape) are float32. ``observed`` is the measurement where it lies on the
    pixels of the image (NaN where not measured), ``picture`` (B, c, h, w) the measurement to look at, NaN where nothing
    was measured. ``trace`` has a row of steps and one curve of what ``curve`` names per observation, or one for all;
    ``mixing``, of chains, how far they agree. ``grain`` is half a grey
    level where the prior was trained on integers: what lies below it is the dequantisation's, not the image's.
    """

    shape: tuple[int, ...]
    batch: int
    total: int
    asked: int
    seed: int
    support: tuple[float, float] | None
    normalised: bool
    draws: Tensor
    found: summaries.Moments
    lower: Tensor
    upper: Tensor
    density: summaries.Density
    entropy: Tensor
    observed: Tensor | None
    picture: Tensor | None
    truth: Tensor | None
    fit: summaries.DataFit
    elbo: list[float] | None
    elbo_se: list[float] | None
    trace: tuple[list[float], list[list[float]]] | None
    mixing: dict[str, Any] | None = None
    curve: str = "ELBO"
    grain: float = 0.0


def gather(
    posterior: Any, generator: torch.Generator, asked: int, truth: Tensor | None, observations: int, budget: int
) -> Facts:
    """Draw from the posterior and compute the numbers of the page, with the functions of ``flowinv.summaries``."""
    shape, total = tuple(posterior.shape), int(posterior.batch)
    asked = min(asked, getattr(posterior, "count", asked))
    batch = min(total, observations)
    n = min(asked, max(32, budget // (batch * math.prod(shape))))
    seed = generator.initial_seed()
    source = summaries.restartable(posterior, n, generator)
    fit = summaries.data_fit(posterior.problem, source, torch.Generator(generator.device).manual_seed(seed))
    draws = torch.cat([x[:, :batch].detach().float().cpu() for x in source()])
    held = summaries.from_tensor(draws)
    support = _bounds(posterior.prior)
    density = summaries.density(held, support)
    lower, upper = summaries.credible_interval(held, 0.9)
    picture, observed = measured(posterior.problem, shape, batch)
    return Facts(
        grain=0.5 / 2**bits if (bits := getattr(posterior.prior, "bits", None)) else 0.0,
        shape=shape,
        batch=batch,
        total=total,
        asked=asked,
        seed=seed,
        support=support,
        normalised=bool(getattr(posterior.problem, "normalised", True)),
        draws=draws,
        found=summaries.moments(held),
        lower=lower,
        upper=upper,
        density=density,
        # levels mean something on bounded data only; without bounds their width would depend on the draws
        entropy=density.entropy() if support else density.differential_entropy(),
        observed=observed,
        picture=picture,
        truth=None if truth is None else truth[:batch].detach().float().cpu(),
        fit=fit,
        elbo=_numbers(getattr(posterior, "elbo", None)),
        elbo_se=_numbers(getattr(posterior, "elbo_se", None)),
        trace=_trace(getattr(posterior, "trace", None), total),
        mixing=_mixing(posterior),
        curve=_curve(posterior),
    )


def _curve(posterior: Any) -> str:
    """What the trace shows: only chains over the latent move on log p(z, y)."""
    if "potential" not in (getattr(posterior, "trace", None) or {}):
        return "ELBO"
    return "log p(z, y)" if posterior.provenance.get("target") == "latent" else "log density"


def _bounds(prior: Any) -> tuple[float, float] | None:
    low, high = getattr(prior, "support", (-math.inf, math.inf))
    return (float(low), float(high)) if math.isfinite(low) and math.isfinite(high) else None


def measured(problem: Any, shape: tuple[int, ...], batch: int) -> tuple[Tensor | None, Tensor | None]:
    """The measurement as a picture (B, c, h, w), and on the elements of x (B, *shape), NaN where not measured; None if
    there is none.
    """
    y = problem.y.detach().float().cpu()
    mask = getattr(problem.operator, "observed", None)
    if mask is not None:
        y = torch.where(mask.detach().cpu().bool().expand(y.shape), y, torch.full_like(y, math.nan))
    y = y[:batch]
    if len(shape) != 3:
        return None, y.reshape(batch, *shape) if tuple(y.shape[1:]) == shape else None
    picture = y if tuple(y.shape[1:]) == shape else None
    draw = getattr(problem.operator, "to_image", None)
    if picture is None and callable(draw):
        drawn = draw(problem.y)
        picture = None if drawn is None else drawn.detach().float().cpu()[:batch]
        if picture is not None and picture.shape == y.shape:
            picture = y
    if picture is None or picture.dim() != 4:
        return None, None
    channels, height, width = shape
    c, h, w = picture.shape[1:]
    if c not in (1, channels) or height % h or width % w:
        return picture, None
    on_pixels = picture.repeat_interleave(height // h, 2).repeat_interleave(width // w, 3)
    return picture, on_pixels.expand(batch, *shape)


def _numbers(value: Any) -> list[float] | None:
    if value is None:
        return None
    return [float(v) for v in torch.as_tensor(value).detach().cpu().double().flatten()]


def _mixing(posterior: Any) -> dict[str, Any] | None:
    """Of chains: R-hat and effective sample size by the log-density, acceptance, and whether their kernel is exact."""
    if not hasattr(posterior, "chains"):
        return None
    return {
        "rhat": _numbers(posterior.rhat),
        "stuck": posterior.rhat.isinf().tolist(),
        "ess": _numbers(posterior.ess),
        "acceptance": _numbers(posterior.acceptance.mean(0)),
        "exact": bool(posterior.provenance.get("exact")),
        "chains": len(posterior.chains),
        "draws": posterior.count,
    }


def _trace(trace: Any, total: int, points: int = 600) -> tuple[list[float], list[list[float]]] | None:
    """Steps and curves (the ELBO, or minus the chains' potential), thinned to at most ``points``: the page needs no more."""
    found, sign = (trace or {}).get("elbo"), 1.0
    if not found:
        found, sign = (trace or {}).get("potential"), -1.0
    if not trace or not found:
        return None
    values = sign * np.asarray([np.asarray(v, dtype=float).reshape(-1) for v in found])
    steps = np.asarray(trace.get("step") or range(len(values)), dtype=float)
    if len(steps) != len(values) or values.shape[1] not in (1, total):
        return None
    kept = np.unique(np.linspace(0, len(values) - 1, min(points, len(values))).round().astype(int))
    kept = kept[np.isfinite(values[kept]).all(1)]
    return steps[kept].tolist(), values[kept].T.tolist()


# -- as JSON ---------------------------------------------------------------------------------------------------------


def payload(facts: Facts) -> dict[str, Any]:
    """The JSON of the page: small things as numbers, arrays as base64 of float32 (little-endian), draws as bytes."""
    channels, height, width = facts.shape if len(facts.shape) == 3 else (1, 1, math.prod(facts.shape))
    image = len(facts.shape) == 3 and height > 1 and width > 1
    if not image:
        channels, height, width = 1, 1, math.prod(facts.shape)
    level = summaries.bin_index(facts.draws, facts.density.low, facts.density.high)
    low, high = (float(facts.draws.min()), float(facts.draws.max())) if facts.support is None else facts.support
    coverage = None
    if facts.truth is not None:
        low_enough, high_enough = facts.truth >= facts.lower - facts.grain, facts.truth <= facts.upper + facts.grain
        coverage = (low_enough & high_enough).double().flatten(1).mean(1).tolist()
    return {
        "image": image,
        "observations": facts.batch,
        "channels": channels,
        "height": height,
        "width": width,
        "draws": facts.draws.shape[0],
        "bounded": facts.support is not None,
        "range": [low, high],
        "bandwidths": list(summaries.BANDWIDTHS),
        "levels": _base64(level.byte().numpy()),
        "low": _float32(facts.density.low),
        "high": _float32(facts.density.high),
        "neighbours": _float32(facts.density.neighbours),
        "mean": _float32(facts.found.mean),
        "std": _float32(facts.found.std),
        "lower": _float32(facts.lower),
        "upper": _float32(facts.upper),
        "entropy": _float32(facts.entropy),
        "observed": _float32(facts.observed),
        "truth": _float32(facts.truth),
        "picture": None
        if facts.picture is None
        else {"shape": list(facts.picture.shape[1:]), "values": _float32(facts.picture)},
        "errors": None if facts.truth is None else _errors(facts),
        "coverage": coverage,
        "fit": _fit(facts),
        "elbo": _finite(facts.elbo, facts.batch),
        "elbo_se": _finite(facts.elbo_se, facts.batch),
        "trace": None
        if facts.trace is None
        else {"step": facts.trace[0], "curve": facts.trace[1][: facts.batch], "label": facts.curve},
        "mixing": None
        if facts.mixing is None
        else {k: _finite(v, facts.batch) if isinstance(v, list) else v for k, v in facts.mixing.items()},
        "total": facts.total,
        "normalised": facts.normalised,
    }


def _errors(facts: Facts) -> dict[str, list[float]]:
    """Sums of squared errors per observation, of the mean and (on average) of single draws."""
    assert facts.truth is not None
    of_mean = (facts.found.mean - facts.truth).double().square().flatten(1).sum(1)
    of_draws = (facts.draws - facts.truth).double().square().flatten(2).sum(2).mean(0)
    return {"mean": of_mean.tolist(), "draws": of_draws.tolist()}


def _fit(facts: Facts) -> dict[str, Any]:
    fit = facts.fit

    def listed(value: Tensor | None) -> list[float | None] | None:
        return None if value is None else _finite(value.cpu().tolist(), facts.batch)

    return {
        "statistic": fit.statistic,
        "value": listed(fit.value),
        "expected": listed(fit.expected),
        "spread": listed(fit.spread),
        "p_value": listed(fit.p_value),
        "count": listed(fit.count),
        "residuals": None if fit.residuals is None else fit.residuals[: facts.batch].tolist(),
        "edges": list(summaries.RESIDUAL_EDGES),
    }


def _finite(values: list[float] | None, batch: int) -> list[float | None] | None:
    """The first ``batch`` numbers; JSON has no NaN, so what is not finite becomes null."""
    return None if values is None else [v if math.isfinite(v) else None for v in values[:batch]]


def _float32(value: Tensor | None) -> str | None:
    return None if value is None else _base64(value.detach().cpu().contiguous().numpy().astype("<f4"))


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
