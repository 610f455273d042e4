"""Folded flows are the same maps with fewer layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from flowinv.flows.architectures import Config, DenseConfig, GlowConfig, PatchFlowConfig, RealNVPConfig, build
from flowinv.flows.bijection import Bijection, Chain, Inverse
from flowinv.flows.flow import Flow
from flowinv.flows.folding import fold
from flowinv.flows.layers.actnorm import ActNorm
from flowinv.flows.layers.mixing import ChannelAffine, LUConv1x1, Orthogonal, Swap

CONFIGS: dict[str, Config] = {
    "orthogonal": GlowConfig((1, 8, 8), steps=(2, 2), hidden=8),
    "lu": GlowConfig((1, 8, 8), steps=(2, 2), hidden=8, mixing="lu"),
    "unsplit": GlowConfig((1, 8, 8), steps=(2, 2), hidden=8, split=False),
    "context": GlowConfig((1, 8, 8), steps=(1, 1), hidden=8, context=(1, 8, 8)),
    "patch": PatchFlowConfig((1, 8, 8), steps=(2, 2, 3), hidden=6, splits=(0, 1)),
    "patch-lu": PatchFlowConfig((1, 16, 16), steps=(1, 2), hidden=6, splits=(), mixing="lu"),
    "realnvp": RealNVPConfig((1, 8, 8), scales=2, blocks=1, hidden=4),
    "dense": DenseConfig((6,), steps=3, hidden=8, mixing="lu"),
}


@pytest.fixture(params=CONFIGS)
def flow(request: pytest.FixtureRequest, randomise: Callable[..., Any]) -> Flow:
    config = CONFIGS[request.param]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return randomise(Flow(build(config), config.shape)).eval()


def context_of(flow: Flow, batch: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.linspace(-1, 1, batch * 64, dtype=dtype).view(batch, 1, 8, 8)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)])
def test_folded_equals_unfolded(flow: Flow, dtype: torch.dtype, tolerance: float, generator: torch.Generator) -> None:
    flow.to(dtype)
    folded = flow.frozen()
    z, context = flow.noise((4,), generator), context_of(flow, 4, dtype)
    for direction in ("decode", "encode"):
        values, log_det = getattr(flow, direction)(z, context)
        found, found_log_det = getattr(folded, direction)(z, context)
        torch.testing.assert_close(found, values, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(found_log_det, log_det, rtol=tolerance, atol=10 * tolerance)
        assert found.dtype == dtype and found_log_det.dtype == dtype


def test_a_folded_flow_made_double_inverts_to_double_precision(flow: Flow, generator: torch.Generator) -> None:
    folded = flow.frozen().double()
    z, context = folded.noise((4,), generator), context_of(flow, 4, torch.float64)
    x, back = folded.decode(z, context)
    again, forth = folded.encode(x, context)
    torch.testing.assert_close(again, z, rtol=0, atol=1e-9)
    torch.testing.assert_close(forth, -back, rtol=1e-10, atol=1e-9)


def test_nothing_linear_is_left_beside_a_folded_matrix(flow: Flow) -> None:
    before = sum(isinstance(m, (ActNorm, Orthogonal, LUConv1x1)) for m in flow.modules())
    folded = flow.frozen()
    assert not any(isinstance(m, (ActNorm, Orthogonal, LUConv1x1)) for m in folded.modules())
    assert 0 < sum(isinstance(m, ChannelAffine) for m in folded.modules()) <= before
    assert before == sum(isinstance(m, (ActNorm, Orthogonal, LUConv1x1)) for m in flow.modules())


def test_freezing_leaves_the_flow_as_it_was(flow: Flow, generator: torch.Generator) -> None:
    fingerprint = flow.fingerprint()
    flow.train()
    twin = flow.frozen()
    assert not any(p.requires_grad for p in twin.parameters())
    assert not any(m.training for m in twin.modules() if isinstance(m, (ActNorm, nn.Conv2d, nn.Linear)))
    with torch.no_grad():
        for tensor in (*twin.parameters(), *twin.buffers()):
            tensor.zero_()
    assert flow.training and all(p.requires_grad for p in flow.parameters())
    assert flow.fingerprint() == fingerprint


def test_frozen_copies_take_gradients_to_the_latent_only(flow: Flow, generator: torch.Generator) -> None:
    z, context = flow.noise((2,), generator), context_of(flow, 2, torch.float32)
    gradients = []
    for one in (flow, flow.frozen()):
        latent = z.clone().requires_grad_()
        x, log_det = one.decode(latent, context)
        (x.square().sum() + log_det.sum()).backward()
        gradients.append(latent.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-3)


def test_freezing_twice_and_copying_is_fine(flow: Flow, generator: torch.Generator) -> None:
    z, context = flow.noise((2,), generator), context_of(flow, 2, torch.float32)
    flow.requires_grad_(False).decode(z, context)  # fills the caches of LU convolutions
    expected = flow.decode(z, context)[0]
    for twin in (copy.deepcopy(flow), flow.frozen().frozen(), copy.deepcopy(flow.frozen())):
        torch.testing.assert_close(twin.decode(z, context)[0], expected, rtol=1e-4, atol=1e-4)


def test_runs_are_merged_in_order_across_chains(generator: torch.Generator, randomise: Callable[..., Any]) -> None:
    def linear() -> list[Bijection]:
        return [ActNorm(4), LUConv1x1(4, generator), Chain([Orthogonal(4, generator), ActNorm(4)])]

    chain = randomise(Chain([*linear(), Swap(4), Inverse(Chain(linear())), ActNorm(4)])).double().eval()
    folded = fold(chain)
    assert [type(m).__name__ for m in folded.layers] == ["ChannelAffine", "Inverse", "ChannelAffine"]
    x = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    for found, expected in zip(folded.encode(x), chain.encode(x), strict=True):
        torch.testing.assert_close(found, expected)
