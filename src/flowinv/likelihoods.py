"""Noise models as normalised densities log p(y | A(x)), and the one family that is not normalised."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_LOG_2PI = math.log(2 * math.pi)


class Likelihood:
    r"""log p(y | prediction) in nats, prediction = A(x).

    y is (B, \*m), predictions are (..., B, \*m) with any leading draw axes, results are (..., B). Elements that
    ``observed`` (bool, broadcastable to (B, \*m)) marks False are left out. ``normalised`` tells whether
    exp(log_prob) integrates (or sums) to one over y: only then is an ELBO a bound on log p(y). ``spec`` and
    ``tensors()`` rebuild the likelihood through :func:`likelihood_from_spec`; spec is None where code would be
    needed.

    A subclass with independent elements writes ``elementwise``.
    """

    normalised: bool = True
    spec: dict[str, Any] | None = None

    def elementwise(self, y: Tensor, prediction: Tensor) -> Tensor:
        """log p of every element, (..., B, *m)."""
        raise NotImplementedError(f"{type(self).__name__} must define elementwise or log_prob")

    def log_prob(self, y: Tensor, prediction: Tensor, observed: Tensor | None = None) -> Tensor:
        """log p(y | prediction), (..., B), in nats."""
        _match(y, prediction)
        if observed is not None:
            # Ones on both sides, not zeros, and before the density: a NaN or a zero rate in an element that nobody
            # measured would otherwise come back as a NaN gradient through torch.where.
            one = prediction.new_ones(())
            y, prediction = torch.where(observed, y, one), torch.where(observed, prediction, one)
        terms = self.elementwise(y, prediction)
        if observed is not None:
            terms = torch.where(observed, terms, terms.new_zeros(()))
        return measurement_sum(terms, y)

    def sample(self, prediction: Tensor, generator: torch.Generator) -> Tensor:
        """A measurement y ~ p(y | prediction), of the prediction's shape."""
        raise TypeError(f"{self!r} cannot draw measurements: take y = A(x) instead (--noiseless)")

    def mean(self, prediction: Tensor) -> Tensor:
        """E[y | prediction]."""
        return prediction

    def std(self, prediction: Tensor) -> Tensor | None:
        """Standard deviation of each element of y, broadcastable to the prediction; None where it is unknown."""
        return None

    def fisher(self, prediction: Tensor) -> Tensor | None:
        """E[(d log p(y | prediction) / d prediction)^2] of each element, broadcastable to the prediction; None where unknown.

        The Fisher information of A(x): J^T fisher J is that of what A(x) depends on, J its Jacobian. A likelihood that only
        tells its ``std`` is taken for a Gaussian, whose 1 / std^2 is the least there is at a given variance.
        """
        std = self.std(prediction)
        return None if std is None else std.square().reciprocal()

    def chi_squared(self, y: Tensor, prediction: Tensor, observed: Tensor | None = None) -> Tensor:
        """Mean over observed elements of ((y - E y) / std)^2, (..., B): 1 on average at the true x."""
        _match(y, prediction)
        std = self.std(prediction)
        if std is None:
            raise TypeError(f"{self!r} has no standard deviation, so no chi-squared")
        squares = ((y - self.mean(prediction)) / std).square()
        if observed is None:
            return measurement_sum(squares, y) / max(1, y[0].numel())
        count = measurement_sum(observed.expand(y.shape).to(squares.dtype), y)
        return measurement_sum(torch.where(observed, squares, squares.new_zeros(())), y) / count

    def widened(self, factor: float) -> Likelihood:
        """The same noise with a scale ``factor`` times as wide, for annealing."""
        raise TypeError(f"{self!r} has no scale to anneal")

    def check(self, y: Tensor, observed: Tensor | None = None) -> None:
        """Refuse a measurement that this noise cannot have made."""

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that ``spec`` needs beside it."""
        return {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class _Scaled(Likelihood):
    r"""A likelihood with one positive scale: a number, or a tensor broadcastable to (B, \*m)."""

    scale_name = "scale"

    def __init__(self, scale: float | Tensor):
        self.scale = _positive(scale, self.scale_name)

    @property
    def spec(self) -> dict[str, Any]:  # type: ignore[override]
        value = None if isinstance(self.scale, Tensor) else self.scale
        return {"kind": type(self).__name__.lower(), self.scale_name: value}

    def tensors(self) -> dict[str, Tensor]:
        return {self.scale_name: self.scale} if isinstance(self.scale, Tensor) else {}

    def _scale(self, like: Tensor) -> Tensor:
        """The scale in the dtype and on the device of a prediction, refused where it would enlarge it."""
        if not isinstance(self.scale, Tensor):
            return like.new_tensor(self.scale)
        self._fits(tuple(like.shape))
        return self.scale.to(device=like.device, dtype=like.dtype)

    def _fits(self, shape: tuple[int, ...]) -> None:
        if isinstance(self.scale, Tensor):
            own = tuple(self.scale.shape)
            if len(own) > len(shape) or any(a not in (1, b) for a, b in zip(own[::-1], shape[::-1], strict=False)):
                raise ValueError(
                    f"{self.scale_name} of shape {own} does not broadcast to measurements of shape {shape}"
                )

    def check(self, y: Tensor, observed: Tensor | None = None) -> None:
        self._fits(tuple(y.shape))

    def widened(self, factor: float) -> Likelihood:
        if self.scale_name != "scale" and self.scale_name != "sigma":
            return super().widened(factor)  # a gain is not a width
        return type(self)(self.scale * factor)

    def __repr__(self) -> str:
        shown = f"tensor{tuple(self.scale.shape)}" if isinstance(self.scale, Tensor) else f"{self.scale:g}"
        return f"{type(self).__name__}({self.scale_name}={shown})"


class Gaussian(_Scaled):
    r"""y_i ~ N(A(x)_i, sigma_i^2): :math:`-\tfrac12 ((y_i - A(x)_i)/\sigma_i)^2 - \log\sigma_i - \tfrac12\log 2\pi`.

    ``sigma`` is the standard deviation in the measurement's units: a number, or a tensor broadcastable to
    (B, \*m).
    """

    scale_name = "sigma"

    def __init__(self, sigma: float | Tensor):
        super().__init__(sigma)

    @property
    def sigma(self) -> float | Tensor:
        return self.scale

    def elementwise(self, y: Tensor, prediction: Tensor) -> Tensor:
        sigma = self._scale(prediction)
        return -0.5 * ((y - prediction) / sigma).square() - (sigma.log() + 0.5 * _LOG_2PI)

    def sample(self, prediction: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.empty_like(prediction).normal_(generator=generator)
        return prediction + self._scale(prediction) * noise

    def std(self, prediction: Tensor) -> Tensor:
        return self._scale(prediction)


class Laplace(_Scaled):
    r"""y_i ~ Laplace(A(x)_i, b_i): :math:`-|y_i - A(x)_i|/b_i - \log 2 b_i`, of standard deviation sqrt(2) b.

    ``scale`` is b in the measurement's units: a number, or a tensor broadcastable to (B, \*m).
    """

    def __init__(self, scale: float | Tensor):
        super().__init__(scale)

    def elementwise(self, y: Tensor, prediction: Tensor) -> Tensor:
        scale = self._scale(prediction)
        return -(y - prediction).abs() / scale - (2 * scale).log()

    def sample(self, prediction: Tensor, generator: torch.Generator) -> Tensor:
        # A difference of two exponentials: exact, and no logarithm of zero as with the inverse distribution function.
        up = torch.empty_like(prediction).exponential_(generator=generator)
        down = torch.empty_like(prediction).exponential_(generator=generator)
        return prediction + self._scale(prediction) * (up - down)

    def std(self, prediction: Tensor) -> Tensor:
        return math.sqrt(2) * self._scale(prediction)

    def fisher(self, prediction: Tensor) -> Tensor:
        return self._scale(prediction).square().reciprocal()


class Poisson(_Scaled):
    r"""y_i = gain * k_i with k_i ~ Poisson(rate_i), rate = (max(A(x), 0) + background) / gain.

    .. math:: \log p = k \log(\mathrm{rate}) - \mathrm{rate} - \log k!, \qquad k = y / \mathrm{gain}

    a probability of the counts k, not a density of y. ``gain`` > 0 is a number, or a tensor broadcastable to
    (B, \*m). With ``counts=True`` y holds the counts k themselves. ``background`` >= 0, in the units of A(x), is the
    dark signal: where A(x) can be zero or negative it keeps log p finite at k > 0, which is -inf without it.
    """

    scale_name = "gain"

    def __init__(self, gain: float | Tensor = 1.0, counts: bool = False, background: float = 0.0):
        super().__init__(gain)
        self.counts = bool(counts)
        self.background = float(background)
        if not (0 <= self.background < math.inf):
            raise ValueError(f"background must be a finite number of at least 0, got {background}")

    @property
    def gain(self) -> float | Tensor:
        return self.scale

    @property
    def spec(self) -> dict[str, Any]:  # type: ignore[override]
        return {**super().spec, "counts": self.counts, "background": self.background}

    def _rate(self, prediction: Tensor) -> Tensor:
        return (prediction.clamp_min(0) + self.background) / self._scale(prediction)

    def _unit(self, like: Tensor) -> Tensor:
        """What one count adds to y."""
        return like.new_ones(()) if self.counts else self._scale(like)

    def elementwise(self, y: Tensor, prediction: Tensor) -> Tensor:
        k, rate = y / self._unit(prediction), self._rate(prediction)
        # k log rate with value and gradient 0 at k = 0, also where the rate is 0 (xlogy's gradient is NaN there).
        some = k > 0
        log_rate = torch.where(some, rate, torch.ones_like(rate)).log()
        return torch.where(some, k * log_rate, torch.zeros_like(log_rate)) - rate - torch.lgamma(k + 1)

    def sample(self, prediction: Tensor, generator: torch.Generator) -> Tensor:
        return self._unit(prediction) * torch.poisson(self._rate(prediction), generator=generator)

    def mean(self, prediction: Tensor) -> Tensor:
        return self._unit(prediction) * self._rate(prediction)

    def std(self, prediction: Tensor) -> Tensor:
        return self._unit(prediction) * self._rate(prediction).sqrt()

    def fisher(self, prediction: Tensor) -> Tensor:
        """1 / (gain^2 rate), 0 where A(x) < 0, which log p does not depend on.

        A rate below one count is taken as one: the information grows without bound towards rate 0, where hardly any count
        comes, and after none A(x) is known to within one gain.
        """
        information = 1 / (self._scale(prediction).square() * self._rate(prediction).clamp_min(1))
        return torch.where(prediction < 0, information.new_zeros(()), information)

    def check(self, y: Tensor, observed: Tensor | None = None) -> None:
        super().check(y, observed)
        k = y / self._unit(y)
        if observed is not None:
            k = torch.where(observed, k, k.new_zeros(()))
        if (k < 0).any() or ((k - k.round()).abs() > 1e-3 * k.abs().clamp_min(1)).any():
            unit = "whole counts" if self.counts else f"whole multiples of the gain ({self!r})"
            raise ValueError(
                f"Poisson measurements must be non-negative {unit}, got values from {y.min():.4g} to {y.max():.4g}"
            )


class CustomLikelihood(Likelihood):
    r"""A user's own ``fn(y, prediction) -> (..., B)``: the normalised log p(y | prediction) in nats.

    y is (B, \*m), prediction (..., B, \*m). Elements that were not observed are zero in both; leaving them out of
    the density is the function's business. ``sampler(prediction, generator)`` (optional) draws measurements.
    ``normalised=False`` declares a density known up to a constant.
    """

    def __init__(
        self,
        fn: Callable[[Tensor, Tensor], Tensor],
        sampler: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        normalised: bool = True,
    ):
        if not callable(fn):
            raise TypeError(f"a likelihood needs a callable fn(y, prediction), got {type(fn).__name__}")
        self.fn, self.sampler, self.normalised = fn, sampler, bool(normalised)

    def log_prob(self, y: Tensor, prediction: Tensor, observed: Tensor | None = None) -> Tensor:
        _match(y, prediction)
        if observed is not None:
            zero = prediction.new_zeros(())
            y, prediction = torch.where(observed, y, zero), torch.where(observed, prediction, zero)
        return _one_per_sample(self.fn(y, prediction), tuple(prediction.shape[: prediction.dim() - y.dim() + 1]), self)

    def sample(self, prediction: Tensor, generator: torch.Generator) -> Tensor:
        if self.sampler is None:
            raise TypeError(f"{self!r} cannot draw measurements: give it a sampler(prediction, generator)")
        return self.sampler(prediction, generator)

    def __repr__(self) -> str:
        note = "" if self.normalised else ", unnormalised"
        return f"CustomLikelihood({getattr(self.fn, '__name__', type(self.fn).__name__)}{note})"


class Distance(Likelihood):
    r"""exp(-beta d(y, A(x))): a generalised posterior, *not* a normalised likelihood.

    ``distance(y, prediction)`` takes two tensors (N, \*m) and gives (N,); draws are flattened into N. Its normaliser
    over y depends on x unless d is invariant to translations, so an ELBO bounds no log p(y); the warning at
    construction says so. A distance with a ``spec`` (those of ``flowinv.metrics``) is saved by it; any other is code.
    Source: Whang et al., Composing Normalizing Flows for Inverse Problems, section 4 (smoothing).
    """

    normalised = False

    def __init__(self, distance: Callable[[Tensor, Tensor], Tensor], beta: float):
        if not callable(distance):
            raise TypeError(f"distance must be callable as distance(y, prediction), got {type(distance).__name__}")
        if isinstance(beta, Tensor) and beta.dim():
            raise TypeError(f"beta must be one number, got a tensor of shape {tuple(beta.shape)}")
        self.distance, self.beta = distance, float(_positive(beta, "beta"))
        warnings.warn(
            f"{self!r}: results are those of a generalised posterior; its ELBO bounds no evidence", stacklevel=2
        )

    @property
    def spec(self) -> dict[str, Any] | None:  # type: ignore[override]
        known = getattr(self.distance, "spec", None)
        return None if known is None else {"kind": "distance", "distance": known, "beta": self.beta}

    def log_prob(self, y: Tensor, prediction: Tensor, observed: Tensor | None = None) -> Tensor:
        _match(y, prediction)
        if observed is not None:
            zero = prediction.new_zeros(())
            y, prediction = torch.where(observed, y, zero), torch.where(observed, prediction, zero)
        leading = tuple(prediction.shape[: prediction.dim() - y.dim() + 1])
        flat = prediction.reshape(-1, *y.shape[1:])
        distance = self.distance(y.to(prediction).expand_as(prediction).reshape(flat.shape), flat)
        return -self.beta * _one_per_sample(distance, (len(flat),), self).reshape(leading)

    def widened(self, factor: float) -> Likelihood:
        with warnings.catch_warnings():  # it was said when this one was made
            warnings.simplefilter("ignore")
            return Distance(self.distance, self.beta / factor**2)

    def __repr__(self) -> str:
        name = getattr(self.distance, "__name__", type(self.distance).__name__)
        return f"Distance({name}, beta={self.beta:g}, unnormalised)"


def likelihood_from_spec(spec: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> Likelihood:
    """The likelihood whose ``spec`` and ``tensors()`` these are."""
    kinds: dict[str, type[_Scaled]] = {"gaussian": Gaussian, "laplace": Laplace, "poisson": Poisson}
    if isinstance(spec, dict) and spec.get("kind") == "distance":
        from .metrics import distance_from_spec

        return Distance(distance_from_spec(spec["distance"]), spec["beta"])
    if not isinstance(spec, dict) or spec.get("kind") not in kinds:
        raise ValueError(f"no likelihood is described by {spec!r}; known kinds: {', '.join(kinds)}")
    arguments = {k: v for k, v in spec.items() if k != "kind"}
    for name, value in arguments.items():
        if value is None:
            if tensors is None or name not in tensors:
                raise ValueError(f"the {spec['kind']} likelihood's {name} was saved as a tensor, which is missing")
            arguments[name] = tensors[name]
    return kinds[spec["kind"]](**arguments)


def _positive(value: float | Tensor, name: str) -> float | Tensor:
    """A positive finite number, or a copy of a tensor of them."""
    if isinstance(value, Tensor):
        if value.is_complex() or value.dtype == torch.bool or value.numel() == 0:
            raise TypeError(
                f"{name} must be a positive number or a tensor of them, got {value.dtype} {tuple(value.shape)}"
            )
        if not ((value > 0) & torch.isfinite(value)).all():
            raise ValueError(f"{name} must be positive and finite everywhere, got a tensor that is not")
        copy = value.detach().clone()
        copy = copy if copy.is_floating_point() else copy.to(torch.get_default_dtype())
        return float(copy) if copy.dim() == 0 else copy
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a positive number or a tensor of them, got {type(value).__name__}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")
    return float(value)


def _match(y: Tensor, prediction: Tensor) -> None:
    """Refuse a prediction that would broadcast against y in any way but over draws."""
    if prediction.dim() < y.dim() or prediction.shape[prediction.dim() - y.dim() :] != y.shape:
        wanted = ", ".join(map(str, y.shape))
        raise ValueError(f"prediction must have shape (..., {wanted}), got {tuple(prediction.shape)}")


def measurement_sum(terms: Tensor, y: Tensor) -> Tensor:
    """Sum over the elements of a measurement: (..., B, *m) -> (..., B)."""
    return terms.flatten(terms.dim() - y.dim() + 1).sum(-1) if y.dim() > 1 else terms


def _one_per_sample(value: Any, expected: tuple[int, ...], source: Likelihood) -> Tensor:
    if not isinstance(value, Tensor) or tuple(value.shape) != expected:
        found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{source!r} must return one value per sample, shape {expected}, got {found}")
    return value
