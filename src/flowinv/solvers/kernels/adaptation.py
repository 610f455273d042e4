"""Step sizes that settle, during warm-up, where a kernel accepts as often as it should."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass
class DualAveraging:
    r"""Nesterov's dual averaging of log step sizes, one for each observation, over all its chains.

    .. math::
        \bar H_t = (1 - \tfrac{1}{t + t_0}) \bar H_{t-1} + \tfrac{\delta - \alpha_t}{t + t_0},\quad
        \log\epsilon_t = \mu - \tfrac{\sqrt t}{\gamma} \bar H_t,\quad
        \log\bar\epsilon_t = t^{-\kappa} \log\epsilon_t + (1 - t^{-\kappa}) \log\bar\epsilon_{t-1}

    with gamma .05, t_0 10 and kappa .75; mu is the log of the step size it starts from, delta the acceptance aimed at.
    Source: Hoffman and Gelman, The No-U-Turn Sampler (JMLR, 2014), section 3.2. Float64, tensors (B,).
    """

    mu: Tensor
    error: Tensor
    log_step: Tensor
    log_average: Tensor
    count: Tensor

    @classmethod
    def at(cls, step_size: Tensor) -> DualAveraging:
        """Starting from step sizes (B,)."""
        log = step_size.double().log()
        return cls(log, torch.zeros_like(log), log, log, torch.zeros((), dtype=torch.float64))

    @property
    def step_size(self) -> Tensor:
        """To try next, (B,)."""
        return self.log_step.exp()

    @property
    def average(self) -> Tensor:
        """To keep once the warm-up is over, (B,)."""
        return self.log_average.exp()

    def update(self, acceptance: Tensor, target: float) -> None:
        """Learn from the acceptance probabilities (C, B) of one step."""
        self.count = self.count + 1
        weight = 1 / (self.count + 10)
        self.error = (1 - weight) * self.error + weight * (target - acceptance.double().mean(0).to(self.error.device))
        self.log_step = self.mu - self.count.sqrt() / 0.05 * self.error
        share = self.count**-0.75
        self.log_average = share * self.log_step + (1 - share) * self.log_average

    def state(self) -> dict[str, Tensor]:
        """All there is to it, as tensors."""
        return {f.name: getattr(self, f.name) for f in fields(self)}
