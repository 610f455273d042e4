"""Learned dequantisation noise: its density against torch.distributions, its range, its gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from flowinv.flows.layers.dequantization import Dequantizer, dequantize_with
from flowinv.flows.layers.transforms import dequantize

NORMAL = torch.distributions.Normal(torch.tensor(0.0).double(), torch.tensor(1.0).double())


@pytest.fixture
def images(generator: torch.Generator) -> Tensor:
    return torch.randint(0, 256, (16, 1, 8, 8), generator=generator, dtype=torch.uint8)


@pytest.fixture
def dequantizer() -> Dequantizer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Dequantizer(1, 8, hidden=8).double()


def test_it_starts_uniform(dequantizer: Dequantizer, images: Tensor, generator: torch.Generator) -> None:
    x, log_q = dequantizer.sample(images, generator)
    torch.testing.assert_close(log_q, torch.zeros(16).double(), atol=1e-12, rtol=0)
    v = (x * 256 - images).detach()
    assert abs(float(v.mean()) - 0.5) < 0.05
    assert abs(float(v.std()) - 12**-0.5) < 0.02


def test_log_q_is_the_density_of_the_noise(
    dequantizer: Dequantizer, images: Tensor, generator: torch.Generator
) -> None:
    mean, raw = 0.4, -0.7
    with torch.no_grad():
        dequantizer.net.leave.bias[:4] = mean
        dequantizer.net.leave.bias[4:] = raw
    x, log_q = dequantizer.sample(images, generator)
    scale = (2 * torch.tanh(torch.tensor(raw / 2).double())).exp()
    truth = torch.distributions.TransformedDistribution(
        torch.distributions.Normal(torch.tensor(mean).double(), scale),
        torch.distributions.transforms.CumulativeDistributionTransform(NORMAL),
    )
    torch.testing.assert_close(log_q, truth.log_prob(x * 256 - images).sum((1, 2, 3)), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_stays_in_its_level(
    dtype: torch.dtype, generator: torch.Generator, randomise: Callable[..., Any]
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = randomise(Dequantizer(3, 5, hidden=8), 0.3).to(dtype)
    with torch.no_grad():
        layer.net.leave.bias += 3  # towards the upper edge
    images = torch.randint(0, 32, (64, 3, 8, 8), generator=generator)
    x, log_q = layer.sample(images, generator)
    assert torch.equal((x * 32).floor().long(), images)
    assert torch.isfinite(log_q).all() and log_q.shape == (64,) and x.dtype == dtype
    (x.sum() + log_q.sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters())


def test_without_a_dequantizer_the_noise_is_uniform(images: Tensor) -> None:
    x, log_q = dequantize_with(None, images, 8, torch.Generator().manual_seed(2))
    assert torch.equal(x, dequantize(images, 8, torch.Generator().manual_seed(2)))
    assert torch.equal(log_q, torch.zeros(16))
