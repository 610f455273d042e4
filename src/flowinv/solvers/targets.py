"""What chains run on: potentials over the latent, over the noise of a fitted flow, and over projected images."""

from __future__ import annotations

import torch
from torch import Tensor

from ..flow_posterior import FlowPosterior
from ..flows.flow import Flow, standard_normal_log_prob
from ..gradients import require_gradient
from ..problem import InverseProblem
from .kernels.kernel import State, event_sum

Terms = dict[str, Tensor]


class Target:
    r"""A potential U, minus the log of an unnormalised density, for C chains of each of B observations at once.

    Positions are (C, B, \*shape), the summands of -U, in nats, (C, B). ``passes`` counts how often one evaluation sends a
    chain's state through the prior.
    """

    name: str
    passes: int = 1
    differentiable: tuple[str, ...] = ()  # the terms that no chain with gradients can do without

    def __init__(self, problem: InverseProblem):
        self.problem = problem

    @property
    def dtype(self) -> torch.dtype:
        """Of positions."""
        return torch.promote_types(self.problem.y.dtype, torch.float32)

    def terms(self, position: Tensor) -> tuple[Tensor, Terms]:
        """The image x at a position, and the summands of -U by name."""
        raise NotImplementedError

    def evaluate(self, position: Tensor, gradient: bool) -> State:
        """Image, potential and, if asked for, its gradient at a position, all in one call of the prior."""
        position = position.detach()
        if not gradient:
            with torch.no_grad():
                x, terms = self.terms(position)
            return State(position, x, -_total(terms), None)
        with torch.enable_grad():
            leaf = position.requires_grad_()
            x, terms = self.terms(leaf)
            for name in self.differentiable:
                require_gradient(terms[name], name)
            potential = -_total(terms)
            (slope,) = torch.autograd.grad(potential.sum(), leaf)
        return State(leaf.detach(), x.detach(), potential.detach(), slope)

    @torch.no_grad()
    def fault(self, position: Tensor) -> str:
        """The first term that is not finite at a position, for a message; the gradient where all of them are."""
        _, terms = self.terms(position)
        return next((name for name, value in terms.items() if not torch.isfinite(value).all()), "the gradient")


def _total(terms: Terms) -> Tensor:
    return torch.stack(list(terms.values())).sum(0)


def _per_chain(values: Tensor, position: Tensor) -> Tensor:
    """(C B,) to (C, B)."""
    return values.view(position.shape[:2])


class LatentTarget(Target):
    r"""The posterior of the latent: :math:`U(z) = -\log N(z; 0, I) - \log p(y | f(z))`, positions z.

    ``prior`` stands in for the problem's, a copy in bfloat16 say.
    """

    name, passes, differentiable = "latent", 1, ("log p(y|x)",)

    def __init__(self, problem: InverseProblem, prior: Flow | None = None):
        super().__init__(problem)
        self.prior = prior if prior is not None else problem.prior

    def terms(self, position: Tensor) -> tuple[Tensor, Terms]:
        z = position.flatten(0, 1)
        x = self.prior.decode(z)[0].view(position.shape)
        log_prior = _per_chain(standard_normal_log_prob(z), position)
        return x, {"log p(z)": log_prior, "log p(y|x)": self.problem.log_likelihood(x)}


class NoiseTarget(Target):
    r"""The same posterior over the noise of a fitted flow fhat, where it is nearly N(0, I) if the fit is good.

    .. math:: U(\epsilon) = -\log N(z; 0, I) - \log p(y | f(z)) - \log|\det J_{\hat f}(\epsilon)|,\qquad z = \hat f(\epsilon)

    Exact whatever the fit; a good one mixes faster. An ambient family's u takes the place of z, its prior density that of
    N(z; 0, I). Source: Hoffman et al., NeuTra-lizing bad geometry in Hamiltonian Monte Carlo using neural transport (2019).
    """

    name, passes, differentiable = "noise", 1, ("log p(y|x)",)

    def __init__(self, problem: InverseProblem, through: FlowPosterior):
        super().__init__(problem)
        self.family = through.family

    @property
    def dtype(self) -> torch.dtype:
        return next(self.family.parameters()).dtype

    def terms(self, position: Tensor) -> tuple[Tensor, Terms]:
        prior = self.problem.prior
        inner, log_det = self.family.map.push(position)
        x, _ = self.family.to_x(inner, prior)
        letter = "z" if self.family.space == "latent" else "u"
        return x, {
            f"log p({letter})": self.family.log_prior(inner, prior),
            "log p(y|x)": self.problem.log_likelihood(x),
            f"log|det d{letter}/deps|": log_det,
        }


class ProjectedTarget(Target):
    r"""The conditional p(x_mis | x_obs = y) of the prior given pixels without noise: the target of PL-MCMC; masks only.

    Y = f(z); P(Y) has y in place of Y's observed pixels, and is the draw.

    .. math:: U(z) = -\log p_x(P(f(z))) + \|f(z)_{obs} - y\|^2 / (2 \sigma_a^2) - \log|\det J_f(z)|

    so that Y_mis has the conditional's density and Y_obs is N(y, sigma_a^2 I), independent of it: exact for every
    sigma_a, which only sets how far Y_obs strays while the chain moves. The problem's likelihood plays no part. Without the
    log-determinant the chain has another target (the authors' public code leaves it out).

    The prior's last transform T: u -> x is elementwise, so what missing pixels add to log p_x(P) and to log|det J_f| through
    its slope cancels. It is left out of both, and the densities are taken in u: no missing pixel, however close to the
    edge of the support, goes through T and back. y must lie in the support; observed pixels nearer to its edges than the
    dtype's epsilon (of its width) are moved there, where T^-1 is finite.

    Source: Cannella, Soltani and Tarokh, Projected Latent Markov Chain Monte Carlo (2020); Whang, Lindgren and Dimakis,
    Composing Normalizing Flows for Inverse Problems, section 6.
    """

    name, passes = "projected", 2

    def __init__(self, problem: InverseProblem, sigma_a: float):
        super().__init__(problem)
        if not sigma_a > 0:
            raise ValueError(f"sigma_a must be positive, got {sigma_a!r}")
        self.sigma_a = float(sigma_a)
        self.observed = _mask(problem)
        self.y = _inside(problem.y, self.observed, problem.prior.support)
        zero = self.y.new_zeros(())
        u = problem.prior.transform.encode(self.y)[0]
        if not torch.isfinite(u[self.observed]).all():
            raise ValueError("PL-MCMC needs y inside the prior's support: its transform is not finite there")
        self.u = torch.where(self.observed, u, zero)
        self.slope = problem.prior.transform.decode(self.u)[1]  # log|dx/du|, summed over observed pixels and a constant

    def terms(self, position: Tensor) -> tuple[Tensor, Terms]:
        prior = self.problem.prior
        flat, inner = prior.bijection.decode(position.flatten(0, 1))
        u = flat.view(position.shape)
        zero = u.new_zeros(())
        x = prior.transform.decode(flat)[0].view(position.shape)
        slope = prior.transform.decode(torch.where(self.observed, u, zero).flatten(0, 1))[1]
        projected = torch.where(self.observed, self.u, u)
        log_prior = _per_chain(prior.log_prob_u(projected.flatten(0, 1)), position) - self.slope
        misfit = event_sum(torch.where(self.observed, x - self.y, zero).square()) / (2 * self.sigma_a**2)
        terms = {
            "log p(P(f(z)))": log_prior,
            "the misfit": -misfit,
            "log|det J_f(z)|": _per_chain(inner + slope, position),
        }
        return torch.where(self.observed, self.y, x), terms


def _mask(problem: InverseProblem) -> Tensor:
    """The observed pixels (B, *shape) of a problem whose operator is a mask; refused for any other operator."""
    observed = problem.observed
    x = torch.linspace(0.1, 0.9, problem.y[0].numel(), dtype=problem.y.dtype, device=problem.y.device)
    if observed is not None and problem.y.shape[1:] == problem.shape:
        x = x.view(problem.shape).expand(problem.y.shape)
        if torch.equal(problem.operator(x), torch.where(observed, x, x.new_zeros(()))):
            return observed.expand(problem.y.shape)
    raise ValueError(f"PL-MCMC is for masks only (y = some pixels of x), got {problem.operator!r}")


def _inside(y: Tensor, observed: Tensor, support: tuple[float, float]) -> Tensor:
    """y with observed pixels in the open support, missing ones anywhere in it; refused where it lies outside."""
    low, high = support
    seen = y[observed]
    if seen.min() < low or seen.max() > high:
        raise ValueError(
            f"PL-MCMC conditions on y without noise, so y must lie in the prior's support [{low:g}, {high:g}], got values "
            f"from {float(seen.min()):.4g} to {float(seen.max()):.4g}: clip y, or degrade the image without noise (--noiseless)"
        )
    finite = [edge for edge in (low, high) if abs(edge) < float("inf")]
    if not finite:
        return y
    margin = torch.finfo(y.dtype).eps * ((high - low) if len(finite) == 2 else max(1.0, abs(finite[0])))
    return y.clamp(low + margin, high - margin)
