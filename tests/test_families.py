"""Families: densities that are those of their draws, in every space and with every map, and starts that are where they say."""

from __future__ import annotations

import math

import pytest
import torch
from exact_posterior import affine_flow
from torch import Tensor

from flowinv import FlowPosterior, Gaussian, Identity, InverseProblem, Mask, MatrixOperator, Posterior
from flowinv.families import Conditional, ConditionalConfig, PreGeneratorConfig, context_of, family_from_description
from flowinv.families.family import Family, amortized, composed, semi_amortized
from flowinv.flows.flow import UNIT, standard_normal_log_prob
from flowinv.flows.layers.transforms import Logit

IMAGE, VECTOR = (1, 8, 8), (6,)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shaken(module: torch.nn.Module, size: float = 0.05) -> torch.nn.Module:
    """Weights moved away from the identity, so that nothing passes by being zero."""
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p += size * torch.randn(p.shape, generator=seeded(i), dtype=p.dtype)
    return module


def conditional(shape: tuple[int, ...]) -> Conditional:
    context = (2, 8, 8) if len(shape) == 3 else (4,)
    config = ConditionalConfig(
        shape, context, steps=3, hidden=8, features=6, blocks=1, squeezes=2 if len(shape) == 3 else 0
    )
    return shaken(Conditional(config).double())  # type: ignore[return-value]


def contexts(shape: tuple[int, ...], batch: int = 2) -> Tensor:
    size = (2, 8, 8) if len(shape) == 3 else (4,)
    return torch.randn(batch, *size, generator=seeded(9), dtype=torch.float64)


def families(shape: tuple[int, ...]) -> dict[str, Family]:
    config = PreGeneratorConfig(steps=2, hidden=8)
    return {
        "composed": shaken(composed(shape, 2, config).double()),
        "ambient": shaken(composed(shape, 2, config, "ambient").double()),
        "amortized": amortized(conditional(shape), contexts(shape)),
        "semi-amortized": shaken(semi_amortized(conditional(shape), contexts(shape), config)),
    }


@pytest.mark.parametrize("shape", [IMAGE, VECTOR])
@pytest.mark.parametrize("name", ["composed", "ambient", "amortized", "semi-amortized"])
def test_density_of_draws_is_the_change_of_variables(name: str, shape: tuple[int, ...]) -> None:
    family, prior = families(shape)[name], affine_flow(shape, transform=Logit(), support=UNIT)
    noise = torch.randn(3, 2, *shape, generator=seeded(), dtype=torch.float64)
    draw = family.draw(noise, prior)
    found = draw.log_q - draw.log_det
    assert torch.allclose(family.log_prob(draw.x, prior), found, atol=1e-7)
    size = math.prod(shape)
    for b in range(2):  # against the Jacobian itself, of each observation's own map

        def push(e: Tensor, b: int = b) -> Tensor:
            both = noise[:1].clone()
            both[:, b] = e
            return family.draw(both, prior).x[0, b]

        jacobian = torch.autograd.functional.jacobian(push, noise[0, b]).reshape(size, size)
        exact = standard_normal_log_prob(noise[:1, b]) - torch.linalg.slogdet(jacobian)[1]
        assert torch.allclose(found[:1, b], exact, atol=1e-7)
    assert not torch.allclose(found[:, 0], found[:, 1], atol=1e-3)


@pytest.mark.parametrize("shape", [IMAGE, VECTOR])
def test_prior_density_of_the_inner_point(shape: tuple[int, ...]) -> None:
    prior = affine_flow(shape, transform=Logit(), support=UNIT)
    inner = 0.5 * torch.randn(2, 2, *shape, generator=seeded(1), dtype=torch.float64)  # well inside of [0, 1]
    found = families(shape)
    assert torch.equal(found["composed"].log_prior(inner, prior)[0], standard_normal_log_prob(inner[0]))
    u = found["ambient"].log_prior(inner, prior)
    x, log_det = prior.transform.decode(inner.flatten(0, 1))
    assert torch.allclose(u.flatten(), prior.log_prob(x) + log_det, atol=1e-8)


@pytest.mark.parametrize("shape", [IMAGE, VECTOR])
def test_starts_are_where_they_say(shape: tuple[int, ...]) -> None:
    noise = torch.randn(2, 2, *shape, generator=seeded(), dtype=torch.float64)
    fresh = composed(shape, 2, PreGeneratorConfig(steps=2, hidden=8)).double()
    assert torch.allclose(fresh.inner(noise)[0], noise, atol=1e-6)  # rotations are kept in single precision
    net, context = conditional(shape), contexts(shape)
    zero_shot = amortized(net, context).inner(noise)
    config = PreGeneratorConfig(steps=2, hidden=8)
    semi = semi_amortized(net, context, config)
    inner, log_q = semi.inner(noise)
    assert torch.allclose(inner, zero_shot[0], atol=1e-6) and torch.allclose(log_q, zero_shot[1], atol=1e-6)
    trainable = [p for p in semi.parameters() if p.requires_grad]
    own = composed(shape, 2, config)
    assert sum(p.numel() for p in trainable) == sum(p.numel() for p in own.parameters())
    with torch.no_grad():
        for p in semi.parameters():
            p.add_(1.0)
    assert torch.equal(amortized(net, context).inner(noise)[0], zero_shot[0])  # a copy was changed, not the amortizer


def test_conditional_starts_at_the_identity_and_heeds_its_context() -> None:
    config = ConditionalConfig(IMAGE, (2, 8, 8), steps=3, hidden=8, features=6, blocks=1)
    noise = torch.randn(2, *IMAGE, generator=seeded())
    assert torch.allclose(Conditional(config).decode(noise, contexts(IMAGE).float())[0], noise, atol=1e-5)
    net = conditional(IMAGE)
    a, b = (net.decode(noise.double(), c)[0] for c in (contexts(IMAGE), contexts(IMAGE).flip(0)))
    assert (a - b).abs().max() > 1e-3
    with pytest.raises(ValueError, match=r"needs a context \(2, \*\(2, 8, 8\)\), got \(1, 2, 8, 8\)"):
        net.decode(noise.double(), contexts(IMAGE)[:1])
    with pytest.raises(ValueError, match="divisible by 4"):
        Conditional(ConditionalConfig((1, 6, 6), (2, 6, 6)))


@pytest.mark.parametrize("name", ["composed", "ambient", "amortized", "semi-amortized"])
def test_save_and_load(name: str, tmp_path) -> None:
    family, prior = families(IMAGE)[name], affine_flow(IMAGE)
    problem = InverseProblem(prior, Identity(), Gaussian(0.1), torch.full((2, *IMAGE), 0.5, dtype=torch.float64))
    posterior = FlowPosterior(problem, family, {"step": [], "elbo": []}, {"steps": 0})
    posterior.save(tmp_path)
    found = Posterior.load(tmp_path)
    assert isinstance(found, FlowPosterior)
    assert torch.equal(found.sample(3, seeded()), posterior.sample(3, seeded()))


def test_descriptions_that_are_none_are_refused() -> None:
    for wrong, message in (
        ({"kind": "painted", "space": "latent"}, "unknown family"),
        ({"kind": "composed"}, "misses"),
    ):
        with pytest.raises(ValueError, match=message):
            family_from_description(wrong, IMAGE, 1, torch.float64)


def test_context_is_the_adjoint_and_the_mask() -> None:
    prior, half = affine_flow(IMAGE), torch.zeros(IMAGE)
    half[:, 4:] = 1
    y = torch.rand(2, *IMAGE, generator=seeded(), dtype=torch.float64)
    context = context_of(InverseProblem(prior, Mask(half), Gaussian(0.1), y))
    assert context.shape == (2, 2, 8, 8)
    assert torch.equal(context[:, :1], y * half) and torch.equal(context[:, 1:], half.double().expand(2, 1, 8, 8))
    colour, three = affine_flow((3, 8, 8)), torch.rand(2, 3, 8, 8, generator=seeded(), dtype=torch.float64)
    context = context_of(InverseProblem(colour, Mask(half), Gaussian(0.1), three))  # one mask for all channels
    assert context.shape == (2, 6, 8, 8) and torch.equal(context[:, 3:], half.double().expand(2, 3, 8, 8))
    matrix = torch.randn(5, 64, generator=seeded(2), dtype=torch.float64)
    y = torch.randn(3, 5, generator=seeded(3), dtype=torch.float64)
    context = context_of(InverseProblem(prior, MatrixOperator(matrix), Gaussian(0.1), y))
    assert torch.allclose(context.flatten(1), y @ matrix)
