"""The networks inside couplings: shapes, zero start, context, memory format."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flowinv.flows.networks import MLP, ConvNet, PatchNet, ResNet, fit_context

IMAGE = [lambda context=0: ConvNet(3, 5, 8, context), lambda context=0: ResNet(3, 5, 8, 2, context)]


@pytest.mark.parametrize("make", IMAGE, ids=["conv", "resnet"])
def test_image_networks_start_at_zero_and_keep_the_size(make: Callable[..., nn.Module]) -> None:
    out = make()(torch.ones(2, 3, 6, 4))
    assert torch.equal(out, torch.zeros(2, 5, 6, 4))


def test_vector_networks_start_at_zero() -> None:
    assert torch.equal(MLP(3, 5, 8)(torch.ones(2, 3)), torch.zeros(2, 5))


@pytest.mark.parametrize("make", IMAGE, ids=["conv", "resnet"])
def test_weights_are_channels_last(make: Callable[..., nn.Module]) -> None:
    convolutions = [m for m in make().modules() if isinstance(m, nn.Conv2d)]
    assert all(m.weight.is_contiguous(memory_format=torch.channels_last) for m in convolutions)


@pytest.mark.parametrize("side", [1, 2, 4, 8])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_patch_networks_are_their_convolutions(
    side: int, layout: torch.memory_format, generator: torch.Generator
) -> None:
    """The matrix products on small maps against torch's convolutions, values and gradients."""
    net = PatchNet(3, 4, 5, side).double().to(memory_format=layout)
    for parameter in net.parameters():
        parameter.data.normal_(generator=generator)
    x = torch.randn(2, 3, side, side, generator=generator, dtype=torch.float64).requires_grad_()

    def spread(h: torch.Tensor) -> torch.Tensor:
        return F.pixel_shuffle(h, net.factor) if net.factor > 1 else h

    h = spread(F.conv2d(x, net.enter.weight, None, 1, net.enter.padding))
    h = F.relu(net.norm.encode(h)[0])  # type: ignore[operator]
    h = spread(F.conv2d(h, net.leave.weight, net.leave.bias, 1, net.leave.padding))
    expected = h * (3 * net.gains).exp()[:, None, None]
    inputs = [x, *net.parameters()]
    torch.testing.assert_close(net(x), expected)
    found = torch.autograd.grad(net(x).sin().sum(), inputs)
    for a, b in zip(found, torch.autograd.grad(expected.sin().sum(), inputs), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("make", IMAGE, ids=["conv", "resnet"])
def test_inputs_are_left_alone(make: Callable[..., nn.Module], generator: torch.Generator) -> None:
    x = torch.randn(2, 3, 4, 4, generator=generator)
    before = x.clone()
    make()(x)
    assert torch.equal(x, before)


def test_mlp_depth_counts_hidden_layers() -> None:
    net = MLP(3, 5, 8, depth=3, context=2)
    sizes = [(m.in_features, m.out_features) for m in net.modules() if isinstance(m, nn.Linear)]
    assert sizes == [(5, 8), (8, 8), (8, 8), (8, 5)]


@pytest.mark.parametrize(
    ("context", "like", "expected"),
    [
        ((2, 3), (2, 8, 4, 4), (2, 3, 4, 4)),
        ((2, 1, 8, 8), (2, 8, 4, 4), (2, 4, 4, 4)),
        ((2, 1, 4, 4), (2, 8, 4, 4), (2, 1, 4, 4)),
        ((2, 1, 2, 3), (2, 8), (2, 6)),
        ((2, 3), (2, 8), (2, 3)),
    ],
)
def test_contexts_are_brought_to_size(
    context: tuple[int, ...], like: tuple[int, ...], expected: tuple[int, ...], generator: torch.Generator
) -> None:
    values = torch.randn(context, generator=generator)
    fitted = fit_context(values, torch.zeros(like))
    assert fitted.shape == expected
    assert set(fitted.flatten().tolist()) == set(values.flatten().tolist())


@pytest.mark.parametrize(
    "context", [(2, 4, 2, 2), (2, 1, 9, 8), (2, 1, 9, 9), (2, 1, 12, 12), (3, 1, 8, 8), (2, 4), (2, 4, 4), (2, 2, 8, 8)]
)
def test_contexts_that_do_not_fit_are_refused_by_shape(context: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"context of shape .* does not fit features of shape") as error:
        ConvNet(3, 5, 8, context=4 if len(context) != 2 else 5)(torch.zeros(2, 3, 4, 4), torch.zeros(context))
    assert "\n" not in str(error.value)
