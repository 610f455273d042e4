"""The minimisers of many rows at once against torch's own, row by row."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flowinv.solvers.minimizers import LBFGS, Adam


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def valley(z: Tensor) -> Tensor:
    """Rows of a Rosenbrock-like function, each with a curvature of its own, (N,)."""
    bend = torch.linspace(1, 5, len(z), dtype=z.dtype)
    return (bend[:, None] * (z[:, 1:] - z[:, :-1].square()).square()).sum(1) + (1 - z).square().sum(1)


@pytest.mark.parametrize("kind", ["adam", "adam-cosine", "lbfgs"])
def test_rows_move_as_by_torchs_optimiser_alone(kind: str) -> None:
    start, steps = 0.3 * normal(4, 6, seed=1), 60
    horizon = steps if kind == "adam-cosine" else None
    ours = LBFGS(start, 0.3, history=7) if kind == "lbfgs" else Adam(start, 0.05, (0.8, 0.99), horizon)
    z = start.clone()
    for _ in range(steps):
        z = z.detach().requires_grad_()
        value = valley(z)
        (gradient,) = torch.autograd.grad(value.sum(), z)
        if isinstance(ours, LBFGS):
            assert (value <= ours.tensors["last_value"]).all(), "torch's takes no step back"
        z = ours.step(z.detach(), gradient, value.detach())
    for row in range(4):
        parameter = start.clone().requires_grad_()
        if kind == "lbfgs":
            theirs = torch.optim.LBFGS([parameter], lr=0.3, history_size=7, tolerance_grad=0, tolerance_change=0)
        else:
            theirs = torch.optim.Adam([parameter], lr=0.05, betas=(0.8, 0.99))
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, steps) if horizon else None

        def closure(parameter=parameter, row=row, theirs=theirs) -> Tensor:
            theirs.zero_grad()
            value = valley(parameter)[row]
            value.backward()
            return value

        for _ in range(steps // 20 if kind == "lbfgs" else steps):
            theirs.step(closure)
            if falling is not None:
                falling.step()
        torch.testing.assert_close(z[row], parameter.detach()[row], atol=1e-9, rtol=1e-7)
        assert (parameter.detach()[row] - start[row]).abs().max() > 0.1


def test_a_point_at_rest_stays_and_leaves_its_neighbours_alone() -> None:
    start = torch.stack([torch.ones(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)])
    minimizer, z = LBFGS(start, 1.0, 5), start
    for _ in range(60):
        z = z.detach().requires_grad_()
        value = valley(z)
        (gradient,) = torch.autograd.grad(value.sum(), z)
        z = minimizer.step(z.detach(), gradient, value.detach())
    assert torch.equal(z[0], start[0])
    torch.testing.assert_close(z[1], start[0], atol=1e-4, rtol=0)


def test_a_step_that_raises_the_value_is_taken_back_and_halved() -> None:
    """(z^4 - z)-like rows from a point where full quasi-Newton steps jump out; one row is easy and takes whole steps."""
    scale = torch.tensor([[1.0], [30.0]], dtype=torch.float64)
    minimizer, z = LBFGS(torch.zeros(2, 1).double(), 1.0, 5), torch.full((2, 1), -1.5).double()
    seen, lowest = [], torch.full((2,), math.inf).double()
    for _ in range(60):
        z = z.detach().requires_grad_()
        value = (scale * (z.square() - 1).square() + z.exp()).sum(1)
        (gradient,) = torch.autograd.grad(value.sum(), z)
        seen.append((value > lowest).tolist())
        lowest = torch.minimum(lowest, value.detach())
        z = minimizer.step(z.detach(), gradient, value.detach())
    assert any(rose for _, rose in seen), "the case was meant to need it"
    end = z.detach().requires_grad_()
    (gradient,) = torch.autograd.grad((scale * (end.square() - 1).square() + end.exp()).sum(), end)
    assert (gradient.abs() < 1e-5).all()
