"""The sampler that knows the answer: exact draws given y = M, from a list of the satisfying assignments."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..flows.flow import standard_normal_log_prob
from .network import SatNetwork

_LOG_2PI = math.log(2 * math.pi)


class Oracle:
    r"""p(x, v | y = M) where x ~ N(0, I) in R^d, v = z + f_M(x), z ~ N(0, 1), y = v + sigma n.

    f_M is not 0 only in the cores S_a(x) = sum_i rate_i \|x_i - a_i\| < 1 of the satisfying assignments a, where it is
    M (1 - S_a). So the joint density of x and y is N(x; 0, I) N(M S_a; 0, 1 + sigma^2) in a core and
    N(x; 0, I) N(M; 0, 1 + sigma^2) elsewhere. In a core x is drawn from the second factor, exactly, and accepted by the first.
    """

    def __init__(self, network: SatNetwork, solutions: Tensor, sigma: float = 0.0):
        if not len(solutions):
            raise ValueError("the formula has no satisfying assignment: there is nothing to condition on")
        self.network, self.solutions, self.sigma = network, solutions.double(), float(sigma)
        self.rates = network.rates()
        self.reach = network.height / math.sqrt(1 + sigma**2)  # M in standard deviations of y given x

    def success(self, n: int, generator: torch.Generator) -> tuple[float, float]:
        """P(x in a core | y = M), from n importance draws in each core, with its standard error.

        The cores lie in the cubes of the theorem: the cubes' probability is this or a little more.
        """
        inside, outside, relative = self._split(n, generator)
        p = float(torch.tensor(inside - outside, dtype=torch.float64).sigmoid())
        return p, p * (1 - p) * relative

    def log_evidence(self, n: int, generator: torch.Generator) -> float:
        """log p(y = M), in nats: what an ELBO of the problem can come to at most."""
        inside, outside, _ = self._split(n, generator)
        mass = torch.tensor([inside, outside], dtype=torch.float64).logsumexp(0)
        return float(mass) - 0.5 * (_LOG_2PI + math.log(1 + self.sigma**2))

    def log_prior_mass(self, n: int, generator: torch.Generator) -> float:
        """log of the share of N(0, I) that lies in a core, where alone the formula can be felt."""
        return float(self._log_masses(n, generator, 0.0)[0].logsumexp(0))

    def _split(self, n: int, generator: torch.Generator) -> tuple[float, float, float]:
        """log of the joint mass of (x, y = M) in the cores and elsewhere, up to a factor; the first's relative error."""
        log_mass, errors = self._log_masses(n, generator, self.reach)
        outside = -0.5 * self.reach**2 + math.log1p(-math.exp(self.log_prior_mass(n, generator)))
        relative = (log_mass.softmax(0) * errors).square().sum().sqrt()
        return float(log_mass.logsumexp(0)), outside, float(relative)

    def sample(self, n: int, generator: torch.Generator, precision: int = 1000) -> Tensor:
        """n independent draws of (x, v), (n, d + 1); ``precision`` importance draws a core tell how often to go there."""
        p, _ = self.success(precision, generator)
        log_mass, _ = self._log_masses(precision, generator, self.reach)
        inside = torch.rand(n, generator=generator, dtype=torch.float64) < p
        count = int(inside.sum())
        x = torch.empty(n, len(self.rates), dtype=torch.float64)
        if count:
            which = torch.multinomial(log_mass.softmax(0), count, replacement=True, generator=generator)
            x[inside] = self._in_core(self.solutions[which], generator)
        x[~inside] = self._outside(n - count, generator)
        f = self.network(x)
        noise = torch.randn(n, 1, generator=generator, dtype=torch.float64)
        v = self.network.height + self.sigma**2 * f + self.sigma * math.sqrt(1 + self.sigma**2) * noise
        return torch.cat([x, v / (1 + self.sigma**2)], 1)

    def _offsets(self, n: int, generator: torch.Generator, reach: float) -> Tensor:
        """n draws of x - a in a core, of density proportional to exp(-(reach S)^2 / 2), (n, d)."""
        d = len(self.rates)
        level = torch.rand(n, generator=generator, dtype=torch.float64)
        radius = _radius(level, d, reach)
        parts = torch.empty(n, d, dtype=torch.float64).exponential_(generator=generator)
        signs = 2 * torch.randint(2, (n, d), generator=generator) - 1
        return radius[:, None] * signs * parts / parts.sum(1, keepdim=True) / self.rates

    def _log_masses(self, n: int, generator: torch.Generator, reach: float) -> tuple[Tensor, Tensor]:
        """log of the integral over each core of N(x; 0, I) exp(-(reach S)^2 / 2), and its relative standard error."""
        d = len(self.rates)
        # the l1 sphere sum |v_i| = S has the surface 2^d S^(d-1) / (d-1)! per unit of S, and v_i = rate_i (x_i - a_i)
        constant = d * math.log(2) - math.lgamma(d) + _log_radial(d, reach) - float(self.rates.log().sum())
        values, errors = [], []
        for a in self.solutions:
            log_normal = standard_normal_log_prob(a + self._offsets(n, generator, reach))
            weights = (log_normal - log_normal.max()).exp()
            values.append(constant + log_normal.max() + weights.mean().log())
            errors.append(weights.std() / weights.mean() / math.sqrt(n))
        return torch.stack(values), torch.stack(errors)

    def _in_core(self, centres: Tensor, generator: torch.Generator) -> Tensor:
        """One exact draw in the core of each of the centres (n, d)."""
        x = centres.clone()
        todo = torch.arange(len(x))
        bound = 1 / float(self.rates.min())  # how much log N(x) - log N(a) can be: the largest l1 distance in a core
        while len(todo):
            trial = centres[todo] + self._offsets(len(todo), generator, self.reach)
            excess = standard_normal_log_prob(trial) - standard_normal_log_prob(centres[todo]) - bound
            taken = torch.rand(len(todo), generator=generator, dtype=torch.float64).log() < excess
            x[todo[taken]] = trial[taken]
            todo = todo[~taken]
        return x

    def _outside(self, n: int, generator: torch.Generator) -> Tensor:
        """n draws of N(0, I) that lie in no core."""
        found = torch.empty(0, len(self.rates), dtype=torch.float64)
        while len(found) < n:
            x = torch.randn(n - len(found), len(self.rates), generator=generator, dtype=torch.float64)
            found = torch.cat([found, x[self.network(x)[:, 0] == 0]])
        return found


def _log_radial(d: int, reach: float) -> float:
    """log of the integral of S^(d-1) exp(-(reach S)^2 / 2) over S in [0, 1]."""
    if reach == 0:
        return -math.log(d)
    half = torch.tensor(d / 2, dtype=torch.float64)
    below = torch.special.gammainc(half, torch.full_like(half, reach**2 / 2))
    return (d / 2 - 1) * math.log(2) + math.lgamma(d / 2) + float(below.log()) - d * math.log(reach)


def _radius(level: Tensor, d: int, reach: float) -> Tensor:
    """The S at which that integral, from 0 to S, has come to ``level`` of its value."""
    if reach == 0:
        return level ** (1 / d)
    half = torch.full_like(level, d / 2)
    target = level * torch.special.gammainc(half, torch.full_like(level, reach**2 / 2))
    low, high = torch.zeros_like(level), torch.ones_like(level)
    for _ in range(60):
        middle = (low + high) / 2
        short = torch.special.gammainc(half, (reach * middle).square() / 2) < target
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return high
