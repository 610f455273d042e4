"""The Laplace approximation of the latent's posterior: a full-rank Gaussian from one linearisation of A(f(z))."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..flows.flow import Flow
from ..gradients import require_gradient
from ..problem import InverseProblem

LARGEST = 4096
_ROWS = 512  # of the Jacobian that are multiplied at once: a sum of D x D products costs more than the products


def no_laplace(problem: InverseProblem) -> str | None:
    """Why a problem has no Laplace start: too many latents, or a likelihood of unknown Fisher information; None where it has."""
    if (size := math.prod(problem.shape)) > LARGEST:
        return (
            f"a Laplace start holds a D x D matrix for each observation: D can be at most {LARGEST}, here it is {size}; "
            "start at the point instead"
        )
    if problem.likelihood.fisher(problem.y) is None:
        return f"a Laplace start needs the Fisher information of A(x), which {problem.likelihood!r} has not; start at the point"
    return None


@torch.enable_grad()  # the caller may have turned it off
def laplace_factor(problem: InverseProblem, z: Tensor, prior: Flow | None = None, chunk: int = 32) -> Tensor:
    r"""Lower triangular L (B, D, D) with :math:`L L^T = (I + J^T W J)^{-1}`, J = dA(f(z))/dz at z (B, \*shape), D its elements.

    W holds the likelihood's Fisher information of each observed element, so that J^T W J is that of z (Gauss-Newton), and
    N(z, L L^T) the posterior's Laplace approximation where z is its mode: exact for a linear f and Gaussian noise. Costs one
    backward pass of the prior for every element that an observation has, ``chunk`` at a time, and B D^2 numbers of memory.
    ``prior`` stands in for the problem's, a copy in bfloat16 say. Refuses D above 4096, and a likelihood whose Fisher
    information is unknown.
    """
    prior = prior if prior is not None else problem.prior
    size = z[0].numel()
    if (why := no_laplace(problem)) is not None:
        raise ValueError(why)
    leaf = z.detach().expand(chunk, *z.shape).clone().requires_grad_()
    x = prior.decode(leaf.flatten(0, 1))[0].view(leaf.shape)
    prediction = problem.operator(x).flatten(2)  # (chunk, B, m)
    require_gradient(prediction, "A(x)")
    precision = _precision(problem, prediction[0].detach())
    information = torch.eye(size, dtype=torch.float64, device=z.device).repeat(len(z), 1, 1)
    # The k-th observed element of every observation at once: where each has a mask of its own their union is larger.
    most = int((precision > 0).sum(1).max())
    seen = (precision > 0).int().argsort(dim=1, descending=True, stable=True)[:, :most]
    for many in torch.arange(most, device=z.device).split(max(chunk, _ROWS // chunk * chunk)):
        parts = []
        for rows in many.split(chunk):
            places = seen[:, rows].T.unsqueeze(2)  # (rows, B, 1)
            taken = prediction[: len(rows)].gather(2, places).squeeze(2) * precision.gather(1, seen[:, rows]).T.sqrt()
            (gradient,) = torch.autograd.grad(taken.sum(), leaf, retain_graph=True)
            parts.append(gradient[: len(rows)].flatten(2))
        jacobian = torch.cat(parts).transpose(0, 1)  # (B, rows, D)
        information += jacobian.mT @ jacobian
    return torch.stack([_inverse_factor(part) for part in information]).to(z)


def _precision(problem: InverseProblem, prediction: Tensor) -> Tensor:
    """The Fisher information of every element of A(x), 0 where nothing was observed, (B, m)."""
    shaped = prediction.view(problem.y.shape)
    fisher = problem.likelihood.fisher(shaped)
    assert fisher is not None
    precision = fisher.expand(shaped.shape)
    if problem.observed is not None:
        precision = torch.where(problem.observed, precision, precision.new_zeros(()))
    if not torch.isfinite(precision).all():
        raise ValueError(
            f"a Laplace start needs a finite Fisher information of A(x): at the point that of {problem.likelihood!r} is not; "
            "start at the point"
        )
    return precision.flatten(1)


def _inverse_factor(matrix: Tensor) -> Tensor:
    """The lower triangular L with L L^T = matrix^-1: from matrix = U U^T, U upper triangular, it is U^-T."""
    upper = torch.linalg.cholesky(matrix.flip(0, 1)).flip(0, 1)
    eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return torch.linalg.solve_triangular(upper, eye, upper=True).T
