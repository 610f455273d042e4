"""A ReLU network that is M at the satisfying assignments of a formula and 0 away from them."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor, nn

from .dimacs import Formula

MARGIN = 1 / 6
_HEIGHTS = torch.tensor([1.0, -2.0, 1.0], dtype=torch.float64)


def check_margin(margin: float) -> None:
    if not 0 < margin < 1 / 3:
        raise ValueError(f"margin must lie in (0, 1/3), got {margin}: beyond, a clause that fails is not told apart")


class SatNetwork(nn.Module):
    r"""f_M: R^d -> R of Linear and ReLU layers alone, with three hidden layers.

    .. math::
        f_M(x) = M\,\mathrm{relu}\Big(\sum_j c_j - (m - 1)\Big),\quad
        c_j = \sum_{a \text{ satisfies } j} \delta\Big(\tfrac1k \sum_{i \in j} a_i \tilde x_i\Big),\quad
        \tilde x_i = \delta(x_i) - \delta(-x_i)

    with the bump :math:`\delta(t) = \max(0, 1 - |t - 1| / \epsilon)`, and k the number of variables of clause j.
    Within ``margin`` = epsilon (largest coordinate) of a satisfying assignment a,

    .. math:: f_M(x) = M\,\mathrm{relu}\Big(1 - \sum_j \sum_{i \in j} |x_i - a_i| / (k_j \epsilon^2)\Big),

    elsewhere 0: it is M at a only, and at least M / 2 within :math:`\epsilon^2 / 2m` of it. (The paper's 1 / 2m lacks the
    epsilon^2.) The default epsilon makes every weight a whole number, so that f_M(a) = M without rounding.

    Takes x (B, d), and ignores a context; gives (B, 1). Source: Whang et al., appendix A.2.
    """

    def __init__(self, formula: Formula, height: float, margin: float = MARGIN):
        super().__init__()
        check_margin(margin)
        if not height > 0:
            raise ValueError(f"height M must be positive, got {height}")
        if formula.unused:
            raise ValueError(
                f"variables {formula.unused} occur in no clause: f_M would not depend on them; leave them out and renumber"
            )
        self.formula, self.height, self.margin = formula, float(height), float(margin)
        inverse = 1 / margin
        read = _bumps(_literals(formula.variables), inverse)
        clauses = _bumps(_patterns(formula), inverse)
        clauses[0] = clauses[0] @ _heights(2 * formula.variables)  # the bumps' sums are absorbed into the next layer
        gate = _HEIGHTS.repeat(len(clauses[1]) // 3)[None]
        self.body = nn.Sequential(
            _linear(read[0], read[1]),
            nn.ReLU(),
            _linear(clauses[0], clauses[1]),
            nn.ReLU(),
            _linear(gate, gate.new_tensor([1.0 - len(formula.clauses)])),
            nn.ReLU(),
            _linear(gate.new_tensor([[float(height)]]), None),
        ).requires_grad_(False)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.body(x)

    def rates(self) -> Tensor:
        """sum over the clauses j of variable i of 1 / (k_j epsilon^2), (d,): how fast f_M / M falls along x_i."""
        rates = torch.zeros(self.formula.variables, dtype=torch.float64)
        for clause in self.formula.clauses:
            names = {abs(literal) for literal in clause}
            for i in names:
                rates[i - 1] += 1 / (len(names) * self.margin**2)
        return rates


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=torch.float64, device="meta")
    layer.weight = nn.Parameter(weight)
    if bias is not None:
        layer.bias = nn.Parameter(bias)
    return layer


def _literals(variables: int) -> Tensor:
    """x -> (x, -x), (2 d, d)."""
    eye = torch.eye(variables, dtype=torch.float64)
    return torch.cat([eye, -eye])


def _patterns(formula: Formula) -> Tensor:
    """One row for each satisfying pattern of each clause: from bumps at x and -x to the mean agreement, (n, 2 d)."""
    rows = []
    for clause in formula.clauses:
        names = sorted({abs(literal) for literal in clause})
        for signs in product((1, -1), repeat=len(names)):
            value = dict(zip(names, signs, strict=True))
            if any(value[abs(literal)] * literal > 0 for literal in clause):
                row = torch.zeros(2 * formula.variables, dtype=torch.float64)
                for name, sign in value.items():
                    row[name - 1], row[formula.variables + name - 1] = sign / len(names), -sign / len(names)
                rows.append(row)
    return torch.stack(rows)


def _bumps(linear: Tensor, inverse: float) -> list[Tensor]:
    r"""Weights and biases of a = (t - (1 - eps)) / eps, a - 1 and a - 2, three units for each t = ``linear`` x."""
    weight = (inverse * linear).repeat_interleave(3, 0)
    bias = torch.tensor([1 - inverse, -inverse, -1 - inverse], dtype=torch.float64).repeat(len(linear))
    return [weight, bias]


def _heights(bumps: int) -> Tensor:
    """The bumps, relu(a) - 2 relu(a - 1) + relu(a - 2) = max(0, 1 - |t - 1| / eps), from those units: (bumps, 3 bumps)."""
    return torch.block_diag(*[_HEIGHTS[None]] * bumps)
