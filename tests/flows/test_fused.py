"""Frozen steps decoded as one operation: the layers one by one, in float64, are the oracle."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from flowinv.flows import Flow, GlowConfig, build
from flowinv.flows.fused import FusedSteps
from flowinv.flows.layers.couplings import AffineCoupling

SHAPE = (3, 16, 16)


def _flow(shape: tuple[int, int, int] = SHAPE, steps: tuple[int, ...] = (2, 2, 2), hidden: int = 16) -> Flow:
    flow = Flow(build(GlowConfig(shape, steps=steps, hidden=hidden)), shape)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for part in flow.modules():
            if isinstance(part, nn.Conv2d):
                part.weight.copy_(torch.randn(part.weight.shape, generator=generator) / part.weight[0].numel() ** 0.5)
                assert part.bias is not None
                part.bias.copy_(0.1 * torch.randn(part.bias.shape, generator=generator))
        for name, parameter in flow.named_parameters():
            if name.endswith(("log_scale", "shift")):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return flow


def _runs(flow: Flow) -> list[FusedSteps]:
    return [m for m in flow.modules() if isinstance(m, FusedSteps)]


def _evaluate(flow: Flow, z: Tensor, weights: Tensor, log_det_weights: Tensor | None) -> list[Tensor]:
    """Decoded images, log-determinants and the gradient of a weighted sum of both."""
    z = z.clone().requires_grad_()
    x, log_det = flow.decode(z)
    total = (x * weights.to(x)).sum()
    if log_det_weights is not None:
        total = total + (log_det * log_det_weights.to(x)).sum()
    total.backward()
    assert z.grad is not None
    return [x.detach(), log_det.detach(), z.grad]


@pytest.fixture(scope="module")
def case() -> tuple[Flow, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(4, *SHAPE, generator=generator)
    weights = torch.randn(4, *SHAPE, generator=generator)
    return _flow(), z, weights, torch.randn(4, generator=generator)


def _largest_error(found: list[Tensor], expected: list[Tensor]) -> float:
    return max(
        float((a.detach().double() - b.detach()).abs().max() / b.detach().abs().max())
        for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("with_log_det", [True, False])
@pytest.mark.parametrize("onednn", [True, False])
def test_decode_and_its_gradient_are_those_of_the_layers(case, with_log_det: bool, onednn: bool) -> None:
    flow, z, weights, log_det_weights = case
    other = log_det_weights if with_log_det else None
    expected = _evaluate(copy.deepcopy(flow).double(), z.double(), weights, other)
    with torch.backends.mkldnn.flags(enabled=onednn):
        fast = flow.frozen()
        assert len(_runs(fast)) == 3
        found = _evaluate(fast, z, weights, other)
        with torch.no_grad():
            drawn = fast.decode(z)
    assert found[0].dtype == torch.float32
    assert _largest_error(found, expected) < 3e-6
    assert _largest_error(list(drawn), expected[:2]) < 3e-6


def test_a_wrong_gate_would_be_noticed(case, monkeypatch) -> None:
    flow, z, weights, log_det_weights = case
    expected = _evaluate(copy.deepcopy(flow).double(), z.double(), weights, log_det_weights)
    monkeypatch.setattr("flowinv.flows.fused._Coupling.through_gate", lambda self, g, gate: g)
    assert _largest_error(_evaluate(flow.frozen(), z, weights, log_det_weights), expected) > 1e-2


def test_log_determinant_is_that_of_its_own_jacobian() -> None:
    flow = _flow((1, 4, 4), steps=(2,), hidden=8).frozen()
    z = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(3), requires_grad=True)
    x, log_det = flow.decode(z)
    rows = [torch.autograd.grad(e, z, retain_graph=True)[0].flatten() for e in x.flatten()]
    assert torch.allclose(torch.linalg.slogdet(torch.stack(rows).double())[1].float(), log_det[0], atol=1e-4)


def test_bfloat16_networks_stay_near_float32(case) -> None:
    flow, z, weights, log_det_weights = case
    expected = _evaluate(copy.deepcopy(flow).double(), z.double(), weights, log_det_weights)
    fast = flow.frozen(bf16=True)
    plain = copy.deepcopy(fast)
    for run in _runs(plain):
        run._fusable = lambda z: False  # type: ignore[method-assign]
    error = _largest_error(_evaluate(fast, z, weights, log_det_weights), expected)
    error_of_layers = _largest_error(_evaluate(plain, z, weights, log_det_weights), expected)
    assert 1e-4 < error < 2.5 * error_of_layers


def test_second_derivatives_and_function_transforms(case) -> None:
    flow, z, weights, _ = case
    fast, exact = flow.frozen(), copy.deepcopy(flow).double()
    z, weights = z[:2], weights[:2]

    def value(of: Flow) -> Callable[[Tensor], Tensor]:
        def inner(z: Tensor) -> Tensor:
            x, log_det = of.decode(z)
            return (x.square() * weights.to(x)).sum() + log_det.sum()

        return inner

    def curvature(of: Flow, z: Tensor) -> Tensor:
        z = z.clone().requires_grad_()
        (slope,) = torch.autograd.grad(value(of)(z), z, create_graph=True)
        return torch.autograd.grad((slope * weights.to(z)).sum(), z)[0]

    assert _largest_error([curvature(fast, z)], [curvature(exact, z.double())]) < 1e-4
    gradient = torch.func.grad(value(fast))(z)
    assert _largest_error([gradient], [torch.func.grad(value(exact))(z.double())]) < 1e-5
    tangents = [torch.func.jvp(lambda z, f=f: f.decode(z)[0], (z.to(d),), (weights.to(d),))[1] for f, d in
                ((fast, torch.float32), (exact, torch.float64))]  # fmt: skip
    assert _largest_error(tangents[:1], tangents[1:]) < 1e-5
    leaf = z.clone().requires_grad_()
    directions = torch.stack([weights, -2 * weights])
    (batched,) = torch.autograd.grad(fast.decode(leaf)[0], leaf, directions, is_grads_batched=True)
    assert torch.allclose(batched[1], -2 * batched[0], atol=1e-4)
    single = _evaluate(fast, z, weights, None)[2]
    assert torch.allclose(batched[0], single, atol=1e-4)


def test_follows_changes_of_weights_size_and_trainability(case) -> None:
    flow, z, _, _ = case
    fast = flow.frozen()
    before = fast.decode(z)[0]
    assert torch.allclose(fast.decode(z[:3])[0], before[:3], atol=1e-5)  # another batch size
    twin = copy.deepcopy(fast)
    coupling = next(m for m in twin.modules() if isinstance(m, AffineCoupling))
    with torch.no_grad():
        next(coupling.net.parameters()).mul_(1.5)
    assert torch.equal(fast.decode(z)[0], before)
    assert (twin.decode(z)[0] - before).abs().max() > 1e-3
    slow = copy.deepcopy(twin).double()
    assert torch.allclose(twin.decode(z)[0].double(), slow.decode(z.double())[0], atol=1e-5)
    twin.requires_grad_(True)
    twin.decode(z)[0].sum().backward()
    assert all(p.grad is not None for p in coupling.parameters())
    # freezing again keeps the map, the switch to bfloat16 included
    assert torch.equal(fast.frozen().decode(z)[0], before)
    assert not torch.equal(fast.frozen(bf16=True).decode(z)[0], before)


def test_gradients_can_be_asked_for_twice_only_where_kept(case) -> None:
    flow, z, weights, _ = case
    for bf16 in (False, True):
        leaf = z.clone().requires_grad_()
        total = (flow.frozen(bf16=bf16).decode(leaf)[0] * weights).sum()
        (first,) = torch.autograd.grad(total, leaf, retain_graph=True)
        (second,) = torch.autograd.grad(total, leaf)
        assert torch.equal(first, second)
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(total, leaf)
