"""Hamiltonian Monte Carlo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .kernel import Noise, State, Target, event_sum, metropolis, wide


@dataclass(frozen=True, eq=False)
class HMC:
    r"""``leapfrogs`` leapfrog steps of H(z, p) = U(z) + |p|^2 / 2 from a fresh momentum, accepted or not.

    .. math::
        p \leftarrow p - \tfrac{\epsilon}{2} s \nabla U(z),\quad z \leftarrow z + \epsilon s p,\quad
        p \leftarrow p - \tfrac{\epsilon}{2} s \nabla U(z),\qquad \log\alpha = H(z, p) - H(z', p')

    ``scale`` s (B, \*shape), None for ones, is a diagonal metric: roughly the posterior's standard deviations. Each
    trajectory's step size is multiplied by a number uniform on 1 -+ ``jitter``, so that no orbit closes on itself.
    Source: Neal, MCMC using Hamiltonian dynamics (2011).
    """

    leapfrogs: int = 8
    jitter: float = 0.2
    scale: Tensor | None = None

    exact: ClassVar[bool] = True
    needs_gradient: ClassVar[bool] = True
    target_acceptance: ClassVar[float] = 0.8

    @property
    def evaluations(self) -> int:
        return self.leapfrogs

    def step(self, target: Target, state: State, step_size: Tensor, noise: Noise) -> tuple[State, Tensor]:
        """The next state and the acceptance probability (C, B); step_size is epsilon, (B,)."""
        momentum = noise.normal()
        epsilon = wide(step_size * (1 + self.jitter * (2 * noise.uniform() - 1)), momentum)
        if self.scale is not None:
            epsilon = epsilon * self.scale
        before = state.potential + 0.5 * event_sum(momentum.square())
        new = state
        for _ in range(self.leapfrogs):
            assert new.gradient is not None
            momentum = momentum - 0.5 * epsilon * new.gradient
            new = target.evaluate(new.position + epsilon * momentum, gradient=True)
            assert new.gradient is not None
            momentum = momentum - 0.5 * epsilon * new.gradient
        after = new.potential + 0.5 * event_sum(momentum.square())
        return metropolis(state, new, before - after, noise)
