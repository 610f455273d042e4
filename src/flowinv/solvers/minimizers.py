"""First-order minimisers of many independent functions at once: row n of z only ever sees row n of the gradient."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor


class Minimizer(Protocol):
    """Moves N points by their gradients. ``tensors`` is its whole state, changed in place."""

    tensors: dict[str, Tensor]

    def step(self, z: Tensor, grad: Tensor, value: Tensor) -> Tensor:
        """The next points, (N, D), from the points, and the gradients and values (N,) there."""


class Adam:
    r"""z <- z - lr_t mhat / (sqrt(vhat) + 1e-8). Source: Kingma and Ba, Adam, algorithm 1.

    lr_t = lr; or, over a ``horizon`` of so many steps, lr (1 + cos(pi t / horizon)) / 2, which begins at lr and ends near 0.
    """

    def __init__(self, like: Tensor, learning_rate: float, betas: tuple[float, float], horizon: int | None = None):
        self.learning_rate, self.betas, self.horizon = learning_rate, betas, horizon
        zeros = torch.zeros_like(like)
        self.tensors = {"count": torch.zeros((), dtype=torch.long), "mean": zeros, "square": zeros.clone()}

    def step(self, z: Tensor, grad: Tensor, value: Tensor) -> Tensor:
        (a, b), state, rate = self.betas, self.tensors, self.learning_rate
        if self.horizon is not None:
            rate *= (1 + math.cos(math.pi * min(1.0, int(state["count"]) / self.horizon))) / 2
        state["count"] += 1
        t = int(state["count"])
        mean = state["mean"].lerp_(grad, 1 - a)
        square = state["square"].mul_(b).addcmul_(grad, grad, value=1 - b)
        return z - rate / (1 - a**t) * mean / ((square / (1 - b**t)).sqrt() + 1e-8)


class LBFGS:
    r"""z <- z - lr H grad, with H built from the last ``history`` steps of that point.

    A step that raises the value is taken back and tried again half as long, at one gradient each. Where none does, these are
    the steps of ``torch.optim.LBFGS`` without a line search, ``max_iter`` (20) of them in each call to its ``step``, until its
    stopping rules end it. The first step is min(1, 1 / ||grad||_1) times as long.
    Source: Nocedal and Wright, Numerical Optimization, algorithm 7.4.
    """

    def __init__(self, like: Tensor, learning_rate: float, history: int):
        self.learning_rate, self.history = learning_rate, history
        rows, size = like.shape
        self.tensors = {
            "pairs": torch.zeros(rows, dtype=torch.long, device=like.device),  # how many each row has had
            "moves": like.new_zeros(history, rows, size),
            "changes": like.new_zeros(history, rows, size),
            "curvatures": like.new_zeros(history, rows),  # 1 / (move . change); 0 where there is no pair yet
            "scale": like.new_ones(rows),
            "started": torch.zeros((), dtype=torch.bool),
            "last_point": torch.zeros_like(like),  # kept, since a long move swallows the digits of where it began
            "last_move": torch.zeros_like(like),
            "last_grad": torch.zeros_like(like),
            "last_value": like.new_full((rows,), torch.inf),
        }

    def step(self, z: Tensor, grad: Tensor, value: Tensor) -> Tensor:
        state, first = self.tensors, not self.tensors["started"]
        worse = value > state["last_value"]
        if not first:
            self._remember(grad, ~worse)
        direction = self._direction(grad)
        length = (
            self.learning_rate * (1 / grad.abs().sum(1)).clamp_max(1)
            if first
            else grad.new_tensor([self.learning_rate])
        )
        downhill = (direction * grad).sum(1) < 0  # always, but for rounding and for points at rest
        move = torch.where(downhill[:, None], length[:, None] * direction, torch.zeros_like(direction))
        back = state["last_move"] / 2
        point = torch.where(worse[:, None], state["last_point"], z)
        moved = point + torch.where(worse[:, None], back, move)
        state["last_point"].copy_(point)
        state["last_move"].copy_(torch.where(worse[:, None], back, move))
        state["last_grad"].copy_(torch.where(worse[:, None], state["last_grad"], grad))
        state["last_value"].copy_(torch.where(worse, state["last_value"], value))
        state["started"].fill_(True)
        return moved

    def _remember(self, grad: Tensor, rows: Tensor) -> None:
        """The last step and what it changed, of the rows that keep it."""
        state = self.tensors
        move, change = state["last_move"], grad - state["last_grad"]
        product = (move * change).sum(1)
        (rows,) = (rows & (product > 1e-10)).nonzero(as_tuple=True)  # what torch.optim.LBFGS asks of a pair
        slots = state["pairs"][rows] % self.history
        state["moves"][slots, rows], state["changes"][slots, rows] = move[rows], change[rows]
        state["curvatures"][slots, rows] = 1 / product[rows]
        state["scale"][rows] = product[rows] / change[rows].square().sum(1)
        state["pairs"][rows] += 1

    def _direction(self, grad: Tensor) -> Tensor:
        """-H grad by the two-loop recursion, each row from the last of its own pairs to the first."""
        state = self.tensors
        rows = torch.arange(len(grad), device=grad.device)
        depth = min(int(state["pairs"].max()), self.history)
        newest_first = [(state["pairs"] - 1 - i) % self.history for i in range(depth)]
        q, weights = -grad, []
        for slots in newest_first:
            weights.append(state["curvatures"][slots, rows] * (state["moves"][slots, rows] * q).sum(1))
            q = q - weights[-1][:, None] * state["changes"][slots, rows]
        q = q * state["scale"][:, None]
        for slots, weight in zip(reversed(newest_first), reversed(weights), strict=True):
            back = state["curvatures"][slots, rows] * (state["changes"][slots, rows] * q).sum(1)
            q = q + (weight - back)[:, None] * state["moves"][slots, rows]
        return q
