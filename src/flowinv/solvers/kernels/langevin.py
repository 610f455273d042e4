"""The unadjusted Langevin algorithm."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .kernel import Noise, State, Target, wide


class Langevin:
    r"""Langevin Monte Carlo without correction.

    .. math:: z \leftarrow z - \eta \nabla U(z) + \sqrt{2\eta}\,\xi,\qquad \xi \sim N(0, I)

    Not exact: where U is quadratic with precision p the chain's variance is 1 / (p (1 - eta p / 2)), and above eta = 2 / p it
    diverges. Source: Whang, Lindgren and Dimakis, Composing Normalizing Flows for Inverse Problems, section 6 (their LMC).
    """

    exact: ClassVar[bool] = False
    needs_gradient: ClassVar[bool] = True
    target_acceptance: ClassVar[float] = 1.0
    evaluations = 1

    def step(self, target: Target, state: State, step_size: Tensor, noise: Noise) -> tuple[State, Tensor]:
        """The next state; every move is made, so the acceptance (C, B) is one."""
        assert state.gradient is not None
        eta = wide(step_size, state.position)
        position = state.position - eta * state.gradient + (2 * eta).sqrt() * noise.normal()
        return target.evaluate(position, gradient=True), torch.ones_like(state.potential)
