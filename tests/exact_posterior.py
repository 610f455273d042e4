"""Posteriors in closed form as ``flowinv.Posterior`` objects: affine prior, linear operator, Gaussian noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from flowinv import Affine, Flow, FlowPosterior, Gaussian, InverseProblem, Mask, MatrixOperator, Operator
from flowinv.families import Family, Generators, PreGeneratorConfig
from flowinv.families.pregenerator import LowerTriangular
from flowinv.flows.flow import REALS


def affine_flow(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64, **options: Any) -> Flow:
    """N(1/2 + a little, C) with correlated elements of standard deviation about .15."""
    size, generator = math.prod(shape), torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=generator).double() / math.sqrt(size)
    covariance = 0.02 * (root @ root.T + 0.3 * torch.eye(size).double())
    mean = 0.5 + 0.05 * torch.randn(shape, generator=generator).double()
    return Flow(Affine.from_covariance(mean, covariance).to(dtype), shape, **{"support": REALS, **options})


class Exact:
    """x ~ N(m, C), y = A x + sigma n for B observations; ``posterior(...)`` holds the exact answer, or another one."""

    def __init__(
        self,
        shape: tuple[int, ...] = (12,),
        batch: int = 1,
        sigma: float = 0.1,
        dtype: torch.dtype = torch.float64,
        operator: Operator | Callable[[Tensor], Tensor] | None = None,
        matrix: Tensor | None = None,
        seed: int = 0,
    ):
        size, generator = math.prod(shape), torch.Generator().manual_seed(seed)
        self.shape, self.batch = shape, batch
        self.prior = affine_flow(shape, seed, dtype)
        if matrix is None:
            mask = torch.zeros(size, dtype=torch.bool)
            mask[: size // 2] = True
            matrix = torch.eye(size).double()[mask]
            operator = operator if operator is not None else Mask(mask.view(shape), shape)
        self.matrix = matrix
        operator = operator if operator is not None else MatrixOperator(matrix, shape)
        truth = self.prior.sample(batch, generator)
        y = MatrixOperator(matrix, shape)(truth) + sigma * torch.randn(batch, len(matrix), generator=generator)
        mean, root = self.prior.bijection.mean.flatten().double(), self.prior.bijection.cholesky.double()
        covariance = root @ root.T
        evidence = matrix @ covariance @ matrix.T + sigma**2 * torch.eye(len(matrix)).double()
        self.log_evidence = MultivariateNormal(matrix @ mean, evidence).log_prob(y.double())
        gain = covariance @ matrix.T @ torch.linalg.inv(evidence)
        self.mean = mean + (y.double() - matrix @ mean) @ gain.T
        self.covariance = covariance - gain @ matrix @ covariance
        measured = operator(truth)
        if measured.shape != y.shape:  # a mask: the measurement has the image's shape, zeros where nothing was seen
            y = (y.double() @ matrix).view(measured.shape)
        self.y = y.to(dtype)
        self.truth = truth
        self.problem = InverseProblem(self.prior, operator, Gaussian(sigma), self.y)
        # in the latent: z = root^-1 (x - m)
        inverse = torch.linalg.inv(root)
        self.latent_mean = (self.mean - mean) @ inverse.T
        self.latent_covariance = inverse @ self.covariance @ inverse.T
        self.dtype = dtype

    def distribution(self, b: int = 0) -> MultivariateNormal:
        return MultivariateNormal(self.mean[b], self.covariance)

    def posterior(self, shift: float = 0.0, scale: float = 1.0) -> FlowPosterior:
        """The exact posterior; with a shift or a scale of the latent, a wrong one with a known divergence."""
        factor = torch.linalg.cholesky(0.5 * (self.latent_covariance + self.latent_covariance.T))
        family = PreGeneratorConfig("gaussian")
        generators = []
        for b in range(self.batch):
            layer = LowerTriangular(self.shape).double()
            with torch.no_grad():
                layer.log_diagonal.copy_(factor.diagonal().log() + math.log(scale))
                layer.lower.copy_(scale * factor)
                layer.shift.copy_(self.latent_mean[b] + shift)
            generators.append(layer.to(self.dtype))
        trace = {"step": [1, 2], "elbo": [[0.0] * self.batch] * 2}
        provenance = {"settings": {"pregenerator": asdict(family), "seed": 0}, "steps": 2, "seconds": 0.5}
        description = {"kind": "composed", "space": "latent", "pregenerator": asdict(family)}
        return FlowPosterior(self.problem, Family(Generators(generators), "latent", description), trace, provenance)

    def divergence(self, shift: float = 0.0, scale: float = 1.0) -> float:
        """KL(q || posterior) of what ``posterior(shift, scale)`` gives, nats: the latent's, which the flow keeps."""
        exact = MultivariateNormal(torch.zeros(len(self.latent_covariance)).double(), self.latent_covariance)
        moved = MultivariateNormal(exact.mean + shift, scale**2 * self.latent_covariance)
        return float(torch.distributions.kl_divergence(moved, exact))
