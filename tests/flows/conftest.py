"""What the tests of the flows share: weights that are not the identity, and Jacobians by automatic differentiation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn


def _randomise(module: nn.Module, scale: float = 0.1, seed: int = 1) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_((scale * noise).to(parameter.dtype))
    return module


def _jacobian(function: Callable[[Tensor], Tensor], x: Tensor, chunk: int = 784) -> Tensor:
    """d function(x) / dx for one sample x (1, *shape), as (D, D): row i by the i-th copy of x in one batch."""
    size = x.numel()
    rows = []
    for start in range(0, size, chunk):
        indices = torch.arange(start, min(start + chunk, size))
        copies = x.detach().expand(len(indices), *x.shape[1:]).clone().requires_grad_()
        out = function(copies).flatten(1).gather(1, indices[:, None])
        (rows_here,) = torch.autograd.grad(out.sum(), copies)
        rows.append(rows_here.flatten(1))
    return torch.cat(rows)


@pytest.fixture
def randomise() -> Callable[..., Any]:
    """Move every parameter off its start, so that no coupling is the identity."""
    return _randomise


@pytest.fixture
def jacobian() -> Callable[..., Tensor]:
    """The dense Jacobian of a per-sample map at one sample."""
    return _jacobian


@pytest.fixture
def generator() -> torch.Generator:
    """A fresh seeded generator."""
    return torch.Generator().manual_seed(0)
