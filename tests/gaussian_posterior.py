"""A posterior in closed form with the interface of a fitted one: affine Gaussian prior, mask, Gaussian noise."""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch
from torch import Tensor

from flowinv.flows.flow import REALS, Flow
from flowinv.flows.layers.analytic import Affine
from flowinv.likelihoods import Gaussian
from flowinv.operators import Mask


def smooth_covariance(shape: tuple[int, ...], sd: float, length: float) -> Tensor:
    """sd^2 exp(-d^2 / 2 length^2) between the positions of elements, channels correlated by one half."""
    channels, height, width = shape if len(shape) == 3 else (1, 1, math.prod(shape))
    row, col = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    place = torch.stack([row.flatten(), col.flatten()], 1).double()
    space = (-0.5 * torch.cdist(place, place).square() / length**2).exp() + 1e-4 * torch.eye(len(place)).double()
    between = 0.5 + 0.5 * torch.eye(channels).double()
    return sd**2 * torch.kron(between, space)


class GaussianPosterior:
    """x ~ N(1/2, C), y = mask * (x + sigma n): x | y is Gaussian with ``exact_mean`` and ``exact_std``, (B, *shape)."""

    def __init__(self, shape, observed: Tensor, batch=1, sigma=0.1, sd=0.15, length=3.0, support=REALS, seed=0):
        self.shape, self.batch = tuple(shape), batch
        size, generator = math.prod(shape), torch.Generator().manual_seed(seed)
        covariance = smooth_covariance(self.shape, sd, length)
        self.prior = Flow(
            Affine.from_covariance(torch.full(self.shape, 0.5), covariance.float()), self.shape, support=support
        )
        self.truth = self.prior.sample(batch, generator).clamp(max(0.0, support[0]) if support != REALS else -1e9, 1e9)
        operator = Mask(observed).on(self.shape)
        y = operator(self.truth + sigma * torch.randn(self.truth.shape, generator=generator))
        self.problem = SimpleNamespace(
            prior=self.prior,
            operator=operator,
            likelihood=Gaussian(sigma),
            y=y,
            normalised=True,
            batch=batch,
            shape=self.shape,
        )
        rows = torch.eye(size).double()[operator.observed.expand(1, *self.shape).flatten()]
        gain = (
            covariance
            @ rows.T
            @ torch.linalg.inv(rows @ covariance @ rows.T + sigma**2 * torch.eye(len(rows)).double())
        )
        posterior = covariance - gain @ rows @ covariance
        self.factor = torch.linalg.cholesky(posterior + 1e-10 * torch.eye(size).double())
        self.exact_mean = (0.5 + (y.flatten(1).double() - 0.5) @ rows.T @ gain.T).reshape(y.shape)
        self.exact_std = posterior.diagonal().sqrt().reshape(self.shape).expand(y.shape)
        marginal = torch.distributions.MultivariateNormal(
            torch.full((len(rows),), 0.5).double(),
            rows @ covariance @ rows.T + sigma**2 * torch.eye(len(rows)).double(),
        )
        self.elbo = marginal.log_prob(y.flatten(1).double() @ rows.T)
        self.elbo_se = torch.full((batch,), 0.25).double()
        steps = torch.arange(200)
        noise = torch.randn(200, batch, generator=generator)
        self.trace = {
            "step": steps.tolist(),
            "elbo": (
                self.elbo - 3000 * (-steps[:, None] / 6.0).exp() - 20 * (-steps[:, None] / 40.0).exp() + 2 * noise
            ).tolist(),
        }
        self.provenance = {"seed": seed, "solver": {"name": "closed form", "steps": 0}}

    def draws(self, n, generator, chunk=64):
        for start in range(0, n, chunk):
            noise = torch.randn(min(chunk, n - start), self.batch, math.prod(self.shape), generator=generator).double()
            yield (self.exact_mean + (noise @ self.factor.T).reshape(-1, self.batch, *self.shape)).float()


def upper_half(shape) -> Tensor:
    """A mask that observes the upper half of an image, the first half of a vector."""
    mask = torch.zeros(shape, dtype=torch.bool)
    axis = len(shape) - 2 if len(shape) == 3 else 0
    mask.narrow(axis, 0, shape[axis] // 2).fill_(True)
    return mask
