"""Couplings: what moves, what stays, how far the scale can go, and bfloat16 networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowinv.flows.architectures import GlowConfig, build
from flowinv.flows.flow import Flow, set_bf16
from flowinv.flows.layers.couplings import (
    AdditiveCoupling,
    AffineCoupling,
    MaskedAffineCoupling,
    SigmoidCoupling,
    channel_mask,
    checkerboard_mask,
    clamped,
)
from flowinv.flows.networks import ConvNet, PatchNet


class Constant(nn.Module):
    """A network that answers the same numbers whatever it reads."""

    def __init__(self, *channels: float):
        super().__init__()
        self.values = torch.tensor(channels)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        shape = (1, -1) + (1,) * (x.dim() - 2)
        return self.values.view(shape).expand(len(x), -1, *x.shape[2:])


def test_affine_coupling_known_answer() -> None:
    z, log_det = AffineCoupling(2, Constant(0.5, 3.0), clamp=2.0).encode(torch.tensor([[1.0, 4.0]]))
    scale = 2 * torch.tanh(torch.tensor(0.25))
    torch.testing.assert_close(z, torch.stack([torch.tensor(1.0), 7 * scale.exp()])[None])
    torch.testing.assert_close(log_det, scale[None])


def test_sigmoid_coupling_known_answer() -> None:
    """(4 + 3) sigmoid(.5 + 2), by hand."""
    z, log_det = SigmoidCoupling(2, Constant(0.5, 3.0)).encode(torch.tensor([[1.0, 4.0]]))
    scale = 1 / (1 + math.exp(-2.5))
    torch.testing.assert_close(z, torch.tensor([[1.0, 7 * scale]]))
    torch.testing.assert_close(log_det, torch.tensor([math.log(scale)]))
    far = SigmoidCoupling(2, Constant(-1e30, 0.0), clamp=4.0).decode(torch.ones(1, 2))[0]
    torch.testing.assert_close(far, torch.tensor([[1.0, 1 + math.exp(2.0)]]))


def test_decoding_never_starts_a_norm_inside_a_coupling(generator: torch.Generator) -> None:
    layer = SigmoidCoupling(6, PatchNet(3, 6, 4, 8)).train()
    layer.decode(torch.randn(2, 6, 8, 8, generator=generator))
    assert not layer.net.norm.initialised and layer.net.training and layer.net.norm.training
    layer.encode(torch.randn(2, 6, 8, 8, generator=generator))
    assert layer.net.norm.initialised


def test_additive_coupling_known_answer() -> None:
    z, log_det = AdditiveCoupling(3, Constant(5.0)).encode(torch.tensor([[1.0, 2.0, 3.0]]))
    assert z.tolist() == [[1.0, 2.0, 8.0]]
    assert log_det.item() == 0


def test_masked_coupling_moves_only_what_the_mask_frees(generator: torch.Generator) -> None:
    mask = checkerboard_mask(4, 4)
    x = torch.randn(2, 1, 4, 4, generator=generator)
    z, log_det = MaskedAffineCoupling(mask, Constant(0.5, 3.0)).encode(x)
    scale = 2 * torch.tanh(torch.tensor(0.25))
    torch.testing.assert_close(z, mask * x + (1 - mask) * (x + 3) * scale.exp())
    torch.testing.assert_close(log_det, (8 * scale).expand(2))


def test_masked_coupling_never_reads_what_it_moves(generator: torch.Generator, randomise: Callable[..., Any]) -> None:
    layer = randomise(MaskedAffineCoupling(checkerboard_mask(4, 4, odd=True), ConvNet(1, 2, 4)))
    x = torch.randn(1, 1, 4, 4, generator=generator)
    moved = x + (1 - layer.mask) * torch.randn(1, 1, 4, 4, generator=generator)
    torch.testing.assert_close(layer.encode(x)[1], layer.encode(moved)[1])


def test_masks() -> None:
    assert checkerboard_mask(2, 3).tolist() == [[[1, 0, 1], [0, 1, 0]]]
    assert torch.equal(checkerboard_mask(2, 3) + checkerboard_mask(2, 3, odd=True), torch.ones(1, 2, 3))
    assert channel_mask(4).flatten().tolist() == [1, 1, 0, 0]
    assert channel_mask(4, odd=True).flatten().tolist() == [0, 0, 1, 1]


def test_log_scales_stay_within_the_clamp() -> None:
    x = torch.linspace(-1e4, 1e4, 101)
    assert clamped(x, 2.0).abs().max() <= 2
    torch.testing.assert_close(clamped(1e-3 * x / 1e4, 2.0), 1e-3 * x / 1e4)
    z, log_det = AffineCoupling(2, Constant(1e30, 0.0)).encode(torch.ones(1, 2))
    assert torch.isfinite(z).all()
    assert log_det.item() == pytest.approx(2.0)


class TestBFloat16:
    @pytest.fixture
    def flow(self, randomise: Callable[..., Any]) -> Flow:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            flow = Flow(build(GlowConfig((1, 8, 8), steps=(3, 3), hidden=16, mixing="lu")), (1, 8, 8))
        return randomise(flow, 0.05).eval()

    def test_round_trip_and_dtypes(self, flow: Flow, generator: torch.Generator) -> None:
        half = flow.frozen(bf16=True)
        z = flow.noise((16,), generator)
        x, back = half.decode(z)
        again, forth = half.encode(x)
        torch.testing.assert_close(again, z, atol=2e-2, rtol=0)
        assert {t.dtype for t in (x, back, again, forth)} == {torch.float32}
        assert {t.dtype for t in half.state_dict().values() if t.is_floating_point()} == {torch.float32}

    def test_it_is_close_to_float32_but_not_the_same(self, flow: Flow, generator: torch.Generator) -> None:
        z = flow.noise((16,), generator)
        x, half = flow.decode(z)[0], flow.frozen(bf16=True).decode(z)[0]
        assert 0 < (x - half).abs().max() < 0.1

    def test_it_can_be_switched_back(self, flow: Flow, generator: torch.Generator) -> None:
        z = flow.noise((4,), generator)
        before = flow.decode(z)[0]
        set_bf16(flow, True)
        assert not torch.equal(flow.decode(z)[0], before)
        set_bf16(flow, False)
        assert torch.equal(flow.decode(z)[0], before)

    def test_gradients_agree_roughly(self, flow: Flow, generator: torch.Generator) -> None:
        z = flow.noise((8,), generator)
        gradients = []
        for one in (flow.frozen(), flow.frozen(bf16=True)):
            latent = z.clone().requires_grad_()
            one.decode(latent)[0].square().sum().backward()
            gradients.append(latent.grad)
        assert (gradients[0] - gradients[1]).norm() < 0.05 * gradients[0].norm()
