"""The random walk of projected latent Markov chain Monte Carlo."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .kernel import Noise, State, Target, event_sum, metropolis, wide


@dataclass(frozen=True)
class RandomWalk:
    r"""Metropolis-Hastings from a step nearby, or, with probability ``refresh``, from a fresh draw of N(0, I).

    .. math::
        q(z'|z) = (1 - w) N(z'; z, \sigma_p^2 I) + w N(z'; 0, I),\qquad
        \log\alpha = U(z) - U(z') + \log q(z|z') - \log q(z'|z)

    w is ``refresh``, sigma_p the step size. Gradients are not needed. Source: Cannella, Soltani and Tarokh, Projected
    Latent Markov Chain Monte Carlo (2020), whose target is :class:`~flowinv.solvers.targets.ProjectedTarget`.
    """

    refresh: float = 0.0

    exact: ClassVar[bool] = True
    needs_gradient: ClassVar[bool] = False
    target_acceptance: ClassVar[float] = 0.234
    evaluations = 1

    def step(self, target: Target, state: State, step_size: Tensor, noise: Noise) -> tuple[State, Tensor]:
        """The next state and the acceptance probability (C, B); step_size is sigma_p, (B,)."""
        xi = noise.normal()
        position = state.position + wide(step_size, xi) * xi
        log_q_ratio = torch.zeros_like(state.potential)
        if self.refresh > 0:
            fresh = noise.uniform() < self.refresh
            position = torch.where(wide(fresh, xi), xi, position)
            log_q_ratio = self._log_q(state.position, position, step_size) - self._log_q(
                position, state.position, step_size
            )
        new = target.evaluate(position, gradient=False)
        return metropolis(state, new, state.potential - new.potential + log_q_ratio, noise)

    def _log_q(self, to: Tensor, start: Tensor, step_size: Tensor) -> Tensor:
        """log q(to | start) but for a constant, (C, B)."""
        size = math.prod(to.shape[2:])
        near = -0.5 * event_sum((to - start).square()) / step_size.square() - size * step_size.log()
        far = -0.5 * event_sum(to.square())
        stay = math.log1p(-self.refresh) if self.refresh < 1 else -math.inf
        return torch.logaddexp(near + stay, far + math.log(self.refresh))
