"""The formula as a flow: an additive coupling whose conditional at y = M sits on the satisfying assignments."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..flows.bijection import Inverse
from ..flows.flow import Flow
from ..flows.layers.couplings import AdditiveCoupling
from ..likelihoods import Gaussian
from ..operators import MatrixOperator
from ..problem import InverseProblem
from .dimacs import Formula
from .network import MARGIN, SatNetwork, check_margin


def sat_flow(formula: Formula, height: float, margin: float = MARGIN) -> Flow:
    """decode: (x, z) -> (x, z + f_M(x)), on vectors of d + 1 elements, in float64. Log-determinants are 0."""
    coupling = AdditiveCoupling(formula.variables + 1, SatNetwork(formula, height, margin))
    coupling.first = formula.variables  # all the variables move the one element left, not one half the other
    return Flow(Inverse(coupling), (formula.variables + 1,)).eval()


def sat_problem(
    formula: Formula, height: float, margin: float = MARGIN, sigma: float = 0.1, observations: int = 1
) -> InverseProblem:
    r"""The flow's last element observed as y = M, with noise ``sigma``; ``observations`` times the same.

    Exact conditioning is sigma -> 0. A sigma only widens the element's own noise: x | y has density proportional to
    N(x; 0, I) N(M - f_M(x); 0, 1 + sigma^2).
    """
    pick = torch.zeros(1, formula.variables + 1, dtype=torch.float64)
    pick[0, -1] = 1
    y = torch.full((observations, 1), float(height), dtype=torch.float64)
    return InverseProblem(sat_flow(formula, height, margin), MatrixOperator(pick), Gaussian(sigma), y)


def enough_height(
    variables: int, clauses: int, margin: float = MARGIN, failure: float = 0.01, sigma: float = 0.0
) -> float:
    r"""An M at which a draw of x given y = M misses the cubes around satisfying assignments with odds below ``failure``.

    .. math:: M^2 = (1 + \sigma^2) \tfrac83 [d \log(m / (.2419\, \epsilon^2)) + \log(1 / \eta)]

    From P(x within eps^2 / 2m of a) >= (.2419 eps^2 / m)^d, f_M >= M / 2 there, and f_M = 0 outside of the cubes. (The paper's
    .242 is the density of N(0, 1) at 1 rounded up.)
    """
    if variables < 1 or clauses < 1:
        raise ValueError(f"a formula has at least 1 variable and 1 clause, got {variables} and {clauses}")
    check_margin(margin)
    if not 0 <= sigma < math.inf:
        raise ValueError(f"sigma must be finite and at least 0, got {sigma}")
    if not 0 < failure < 1:
        raise ValueError(f"failure is a probability in (0, 1), got {failure}")
    nats = variables * math.log(clauses / (0.2419 * margin**2)) - math.log(failure)
    return math.sqrt((1 + sigma**2) * 8 / 3 * nats)


def rounded(draws: Tensor) -> Tensor:
    """The nearest assignments, +1 or -1, of draws (..., d + 1): (..., d)."""
    x = draws[..., :-1]
    return torch.where(x >= 0, torch.ones_like(x), -torch.ones_like(x))
