"""The Metropolis-adjusted Langevin algorithm."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from .kernel import Noise, State, Target, event_sum, metropolis, wide


class MALA:
    r"""A Langevin step as proposal, accepted or not, so that the target is invariant.

    .. math::
        z' = z - \eta \nabla U(z) + \sqrt{2\eta}\,\xi,\qquad
        \log\alpha = U(z) - U(z') + \log q(z|z') - \log q(z'|z),\qquad
        \log q(z'|z) = -\tfrac{1}{4\eta}\|z' - z + \eta\nabla U(z)\|^2

    Source: Roberts and Tweedie, Exponential convergence of Langevin distributions (Bernoulli, 1996); .574 is the best
    acceptance in high dimension (Roberts and Rosenthal, 1998).
    """

    exact: ClassVar[bool] = True
    needs_gradient: ClassVar[bool] = True
    target_acceptance: ClassVar[float] = 0.574
    evaluations = 1

    def step(self, target: Target, state: State, step_size: Tensor, noise: Noise) -> tuple[State, Tensor]:
        """The next state and the acceptance probability (C, B); step_size is eta, (B,)."""
        assert state.gradient is not None
        eta = wide(step_size, state.position)
        xi = noise.normal()
        new = target.evaluate(state.position - eta * state.gradient + (2 * eta).sqrt() * xi, gradient=True)
        assert new.gradient is not None
        back = state.position - new.position + eta * new.gradient
        log_q_ratio = 0.5 * event_sum(xi.square()) - event_sum(back.square()) / (4 * step_size)
        return metropolis(state, new, state.potential - new.potential + log_q_ratio, noise)
