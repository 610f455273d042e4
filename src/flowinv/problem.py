"""The inverse problem: a flow prior, a forward operator and a likelihood, joined at a measurement."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .adapters.deepinv import from_deepinv, is_physics
from .flows import Bijection, Flow
from .likelihoods import Likelihood
from .operators import FunctionOperator, Operator, as_operator
from .store import hash_tensors
from .tasks import Task

_LOG_2PI = math.log(2 * math.pi)


class InverseProblem:
    r"""p(x | y) up to p(y): x = f(z) with z ~ N(0, I), and y ~ p(y | A(x)), for B observations at once.

    Args:
        prior: the flow f. A frozen, folded copy is kept as ``prior``, the flow itself as ``given_prior``;
            ``prior_fingerprint`` is that of the flow as given.
        operator: A, as an :class:`~flowinv.operators.Operator`, any callable acting item by item on (N, \*shape), or
            deepinv physics (whose noise model then is the likelihood, if none is given).
        likelihood: p(y | A(x)).
        y: (B, \*measurement), in the units of A(x). Elements that the operator does not observe are not looked at; the
            copy kept as ``y`` has zeros there, and the prior's dtype and device.

    Every density is in nats, one value for each draw of each observation, shape (..., B).
    The objective of every solver: ``potential(z)`` = -log N(z; 0, I) - log p(y | f(z)).
    """

    def __init__(
        self,
        prior: Flow,
        operator: Operator | Callable[[Tensor], Tensor],
        likelihood: Likelihood | None,
        y: Tensor,
    ):
        if not isinstance(prior, Flow):
            hint = ": wrap it as Flow(bijection, shape)" if isinstance(prior, Bijection) else ""
            raise TypeError(f"prior must be a Flow, got {type(prior).__name__}{hint}")
        operator, likelihood = _resolved(operator, likelihood)
        self.given_prior: Flow = prior
        self.prior_fingerprint: str = prior.fingerprint()
        self.prior: Flow = prior.frozen()
        self.shape: tuple[int, ...] = prior.shape
        self.operator: Operator = operator.on(self.shape)
        self.likelihood: Likelihood = likelihood

        like = next((t for t in self.prior.state_dict().values() if t.is_floating_point()), None)
        self.y: Tensor = _checked(y, like)
        self.batch: int = len(y)
        expected = self._probe()
        if y.shape != expected:
            hint = "; put the observations on a leading axis: y[None]" if y.shape == expected[1:] else ""
            raise ValueError(f"y must have shape (B, {', '.join(map(str, expected[1:]))}), got {tuple(y.shape)}{hint}")
        self.observed: Tensor | None = self._observed_elements()
        if self.observed is not None:
            self.y = torch.where(self.observed, self.y, self.y.new_zeros(()))
        _check_finite(self.y)
        self._check_units()
        self.likelihood.check(self.y, self.observed)

    @classmethod
    def from_task(cls, prior: Flow, task: Task, y: Tensor) -> InverseProblem:
        """The problem of a task at a measurement."""
        return cls(prior, task.operator, task.likelihood, y)

    def widened(self, factor: float) -> InverseProblem:
        """The same with a noise scale ``factor`` times as wide."""
        return InverseProblem(self.given_prior, self.operator, self.likelihood.widened(factor), self.y)

    @property
    def normalised(self) -> bool:
        """Whether p(y | x) is normalised over y, so that an ELBO is a lower bound on log p(y)."""
        return self.likelihood.normalised

    def fingerprint(self) -> str:
        """SHA-256 over prior, operator, likelihood and y: a checkpoint belongs to one problem.

        Code is known by its name only.
        """
        digest = hashlib.sha256(self.prior_fingerprint.encode())
        for part in (self.operator, self.likelihood):
            digest.update(repr(part).encode() + json.dumps(part.spec, sort_keys=True).encode())
            hash_tensors(digest, part.tensors())
        digest.update(self.y.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def decode(self, z: Tensor) -> Tensor:
        r"""x = f(z): (..., B, \*shape) to the same shape."""
        draws = self._draw_axes(z, "z")
        x, _ = self.prior.decode(z.reshape(-1, *self.shape))
        return x.reshape(*z.shape[: draws + 1], *self.shape)

    def log_likelihood(self, x: Tensor) -> Tensor:
        """log p(y | A(x)), (..., B)."""
        self._draw_axes(x, "x")
        return self.likelihood.log_prob(self.y, self.operator(x), self.observed)

    def log_prior(self, x: Tensor) -> Tensor:
        """log p(x), (..., B). The support is not checked: a draw a rounding error outside it keeps its density."""
        draws = self._draw_axes(x, "x")
        z, log_det = self.prior.encode(x.reshape(-1, *self.shape))
        return (_log_normal(z.flatten(1)) + log_det).reshape(x.shape[: draws + 1])

    def log_joint(self, x: Tensor) -> Tensor:
        """log p(x) + log p(y | A(x)), (..., B)."""
        return self.log_prior(x) + self.log_likelihood(x)

    def potential(self, z: Tensor) -> Tensor:
        """-log N(z; 0, I) - log p(y | A(f(z))), (..., B): minus the log of the latent's joint density with y."""
        draws = self._draw_axes(z, "z")
        return -_log_normal(z.flatten(draws + 1)) - self.log_likelihood(self.decode(z))

    def _draw_axes(self, t: Tensor, name: str) -> int:
        draws = t.dim() - 1 - len(self.shape)
        if draws < 0 or t.shape[draws:] != (self.batch, *self.shape):
            wanted = ", ".join(map(str, (self.batch, *self.shape)))
            raise ValueError(f"{name} must have shape (..., {wanted}), got {tuple(t.shape)}")
        return draws

    @torch.no_grad()
    def _probe(self) -> tuple[int, ...]:
        """The shape of A(x) for images of the prior; for a user's function, that it treats draws as it should."""
        generator = torch.Generator().manual_seed(0)  # near z = 0 the images of some priors hardly differ
        z = torch.randn(2, *self.shape, generator=generator, dtype=self.y.dtype)
        x, _ = self.prior.decode(z.to(self.y.device))
        if x.shape[1:] != self.shape:
            raise ValueError(f"the prior decodes to {tuple(x.shape[1:])}, but its shape is {self.shape}")
        draws = x.unsqueeze(1).expand(2, self.batch, *self.shape)
        single = self.operator(draws[0])
        if isinstance(self.operator, FunctionOperator):
            _check_draws(self.operator, draws, single)
        return tuple(single.shape)

    def _observed_elements(self) -> Tensor | None:
        observed = self.operator.observed
        if observed is None:
            return None
        try:
            fits = torch.broadcast_shapes(observed.shape, self.y.shape) == self.y.shape
        except RuntimeError:
            fits = False
        if not fits:
            shapes = f"{tuple(observed.shape)} do not fit y {tuple(self.y.shape)}"
            raise ValueError(f"the operator's observed elements {shapes}")
        return observed.to(self.y.device)

    def _check_units(self) -> None:
        """Refuse a measurement in other units than the prior's, such as bytes against images in [0, 1]."""
        low, high = self.prior.support
        if not self.operator.in_image_units or not math.isfinite(high - low):
            return
        std = self.likelihood.std(self.y)
        margin = (high - low) + 10 * (0.0 if std is None else float(std.max()))
        if self.y.min() < low - margin or self.y.max() > high + margin:
            raise ValueError(
                f"y runs from {self.y.min():.4g} to {self.y.max():.4g}, but the prior's images lie in "
                f"[{low:g}, {high:g}]: bring y to the same units"
            )

    def __repr__(self) -> str:
        note = "" if self.normalised else ", unnormalised"
        return (
            f"InverseProblem(observations={self.batch}, prior=Flow{self.shape}, operator={self.operator!r}, "
            f"likelihood={self.likelihood!r}, y={tuple(self.y.shape)}{note})"
        )


def _log_normal(z: Tensor) -> Tensor:
    return -0.5 * (z.square().sum(-1) + z.shape[-1] * _LOG_2PI)


def _resolved(operator: Any, likelihood: Likelihood | None) -> tuple[Operator, Likelihood]:
    """The operator, whatever it came as, and a likelihood."""
    # Calling physics adds noise: it must never pass for "any callable".
    if is_physics(operator):
        operator, likelihood = from_deepinv(operator, likelihood)
    if likelihood is None:
        raise ValueError("the problem needs a likelihood, such as Gaussian(sigma)")
    if not isinstance(likelihood, Likelihood):
        raise TypeError(
            f"likelihood must be a Likelihood, got {type(likelihood).__name__}; wrap a function in CustomLikelihood(fn)"
        )
    return as_operator(operator), likelihood


def _checked(y: Tensor, like: Tensor | None) -> Tensor:
    """A copy of a measurement in the prior's dtype and on its device."""
    if not isinstance(y, Tensor) or not y.is_floating_point():
        raise TypeError(
            f"y must be a floating-point tensor, got {y.dtype if isinstance(y, Tensor) else type(y).__name__}"
        )
    if y.dim() == 0 or y.numel() == 0:
        raise ValueError(f"y must have shape (B, ...) with at least one observation, got {tuple(y.shape)}")
    return y.detach().clone() if like is None else y.detach().to(dtype=like.dtype, device=like.device, copy=True)


def _check_finite(y: Tensor) -> None:
    wrong = int((~torch.isfinite(y)).sum())
    if wrong:
        which = "value that is" if wrong == 1 else "values that are"
        raise ValueError(f"y has {wrong} observed {which} NaN or infinite")


def _check_draws(operator: FunctionOperator, draws: Tensor, first: Tensor) -> None:
    """Refuse a function that adds noise, or that mixes up observations when it is given several draws of each."""
    close = 1e-4 if first.dtype == torch.float32 else 1e-8
    scale = close * max(1.0, float(first.abs().max()) if first.numel() else 1.0)
    if (operator(draws[0]) - first).abs().max() > scale:
        raise ValueError(f"{operator!r} gives two results for the same x: it must be the noise-free map A")
    hint = "does it hold something per observation? Then use FunctionOperator(fn, per_observation=True)"
    try:
        both = operator(draws)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{operator!r} fails on several draws ({reason}); {hint}") from None
    if both.shape[1:] != first.shape or (both - torch.stack([first, operator(draws[1])])).abs().max() > scale:
        raise ValueError(f"{operator!r} treats an image differently among several draws; {hint}")


def require_problem(problem: object) -> None:
    """Refuse what is no problem, such as a bare measurement."""
    if not isinstance(problem, InverseProblem):
        raise TypeError(f"a solver takes an InverseProblem, got {type(problem).__name__}")
