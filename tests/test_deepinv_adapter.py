"""deepinv's physics through the adapter, against deepinv called one observation at a time."""

import subprocess
import sys

import pytest
import torch

from flowinv.flows import Affine, Flow
from flowinv.likelihoods import Gaussian, Laplace, Poisson
from flowinv.problem import InverseProblem

deepinv = pytest.importorskip("deepinv")
from deepinv.physics import (  # noqa: E402
    MRI,
    Blur,
    BlurFFT,
    Decolorize,
    Demosaicing,
    Denoising,
    Downsampling,
    GammaNoise,
    GaussianNoise,
    Inpainting,
    LaplaceNoise,
    PoissonNoise,
    UniformGaussianNoise,
)

from flowinv.adapters.deepinv import from_deepinv, gaussian_kernel, is_physics  # noqa: E402

SHAPE = (3, 8, 8)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(*leading, shape=SHAPE, dtype=torch.float32):
    return torch.rand(*leading, *shape, generator=generator(1), dtype=dtype)


MASKS = (torch.rand(2, *SHAPE, generator=generator(2)) > 0.5).float()
KERNELS = torch.softmax(torch.randn(2, 1, 9, generator=generator(3)), -1).view(2, 1, 3, 3)


@pytest.mark.parametrize(
    ("make", "per_observation"),
    [
        (lambda: Inpainting(SHAPE, mask=MASKS), True),
        (lambda: Inpainting(SHAPE, mask=MASKS[:1]), False),
        (lambda: Inpainting(SHAPE, mask=0.4, rng=generator()), False),
        (lambda: Demosaicing(SHAPE), False),
        (lambda: Denoising(), False),
        (lambda: Decolorize(), False),
        (lambda: Blur(filter=KERNELS, padding="circular"), True),
        (lambda: Blur(filter=KERNELS[:1], padding="reflect"), False),
        (lambda: BlurFFT(SHAPE, filter=KERNELS[:1]), False),
        (lambda: Downsampling(SHAPE, filter="bicubic", factor=2), False),
    ],
    ids=["masks", "mask", "random", "demosaic", "denoise", "grey", "kernels", "kernel", "fft", "down"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_equal_one_draw_at_a_time(make, per_observation, dtype):
    physics = make()
    operator, _ = from_deepinv(physics)
    operator = operator.on(SHAPE)
    assert operator.per_observation == per_observation
    x = images(4, 2, dtype=dtype)
    y = operator(x)
    assert y.dtype == dtype
    oracle = torch.stack([physics.A(draw.float()) for draw in x])
    torch.testing.assert_close(y, oracle.to(dtype), atol=1e-5, rtol=1e-5)


def test_flattened_draws_would_meet_the_wrong_mask():
    operator, _ = from_deepinv(Inpainting(SHAPE, mask=MASKS), per_observation=False)
    with pytest.raises(RuntimeError):
        operator.on(SHAPE)(images(4, 2))


def test_gradient_through_vmap():
    operator, _ = from_deepinv(Blur(filter=KERNELS.double(), padding="circular"))
    operator = operator.on((1, 4, 4))
    x = images(2, 2, shape=(1, 4, 4), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(operator, (x,))


def test_float64_keeps_complex_buffers_and_double_filters():
    kernel = KERNELS[:1].double()
    operator, _ = from_deepinv(BlurFFT(SHAPE, filter=kernel))
    reference, _ = from_deepinv(Blur(filter=kernel, padding="circular"))
    x = images(2, dtype=torch.float64)
    torch.testing.assert_close(operator(x), reference(x), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("noise", "expected"),
    [
        (GaussianNoise(0.2, rng=generator()), Gaussian(0.2)),
        (GaussianNoise(torch.tensor([0.1, 0.3])), Gaussian(torch.tensor([0.1, 0.3]).view(2, 1, 1, 1))),
        (LaplaceNoise(0.2), Laplace(0.2)),
        (PoissonNoise(0.1), Poisson(0.1)),
        (PoissonNoise(0.1, normalize=False), Poisson(0.1, counts=True)),
    ],
    ids=["gaussian", "gaussian per image", "laplace", "poisson", "poisson counts"],
)
def test_noise_models_become_likelihoods(noise, expected):
    _, likelihood = from_deepinv(Denoising(noise_model=noise))
    assert type(likelihood) is type(expected)
    x = images(2)
    y = expected.sample(x, generator())
    torch.testing.assert_close(likelihood.log_prob(y, x), expected.log_prob(y, x))


@pytest.mark.parametrize("noise", [GaussianNoise, LaplaceNoise, PoissonNoise])
def test_the_likelihood_describes_what_deepinv_draws(noise):
    """chi-squared of deepinv's own noise is 1 under the likelihood; under one with a scale 10 % off it is not."""
    x = images(40, shape=(1, 32, 32)) + 0.5
    physics = Denoising(noise_model=noise(0.2, rng=generator(5)))
    y = physics(x)
    _, likelihood = from_deepinv(physics)
    values = likelihood.chi_squared(y, x)
    error = values.std() / len(values) ** 0.5
    assert abs(values.mean() - 1) < 4 * error
    wrong = type(likelihood)(0.22).chi_squared(y, x)
    assert abs(wrong.mean() - 1) > 4 * error


def test_no_noise_gives_no_likelihood_and_an_explicit_one_wins():
    assert from_deepinv(Denoising(noise_model=None))[1] is None or isinstance(from_deepinv(Denoising())[1], Gaussian)
    assert from_deepinv(Blur(filter=KERNELS[:1]))[1] is None
    explicit = Laplace(0.3)
    assert from_deepinv(Denoising(noise_model=GammaNoise()), likelihood=explicit)[1] is explicit


def test_masks_are_the_observed_elements():
    operator, likelihood = from_deepinv(Inpainting(SHAPE, mask=MASKS, noise_model=GaussianNoise(0.1)))
    assert torch.equal(operator.observed, MASKS.bool())
    x = images(2)
    expected = (torch.distributions.Normal(x, 0.1).log_prob(x + 0.05) * MASKS).flatten(1).sum(1)
    torch.testing.assert_close(likelihood.log_prob((x + 0.05) * MASKS, operator(x), operator.observed), expected)


def test_mri_masks_are_the_observed_elements():
    mask = (torch.rand(8, 8, generator=generator(4)) > 0.5).float()
    operator, _ = from_deepinv(MRI(mask=mask, img_size=(2, 8, 8), noise_model=GaussianNoise(0.1)))
    y = operator.on((2, 8, 8))(images(3, 2, shape=(2, 8, 8)))
    assert y.shape == (3, 2, 2, 8, 8)
    assert torch.equal(operator.observed.expand(1, 2, 8, 8)[0, 0], mask.bool())
    assert (y[..., ~mask.bool()] == 0).all() and (y[..., mask.bool()] != 0).all()


def test_the_original_is_left_alone_and_cannot_reach_the_operator():
    physics = Inpainting(SHAPE, mask=MASKS[:1].clone(), noise_model=GaussianNoise(0.1, rng=generator()))
    state = physics.noise_model.rng.get_state()
    operator, _ = from_deepinv(physics)
    x = images(2)
    before = operator(x)
    operator(x.double())
    physics.update(mask=1 - MASKS[:1])
    physics.mask.zero_()
    assert torch.equal(operator(x), before)
    assert physics.mask.dtype == torch.float32
    assert torch.equal(state, physics.noise_model.rng.get_state())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: from_deepinv(torch.nn.Identity()), "deepinv physics, got Identity"),
        (lambda: from_deepinv(Denoising(noise_model=GammaNoise())), "GammaNoise.*explicit likelihood"),
        (lambda: from_deepinv(Denoising(noise_model=UniformGaussianNoise())), "UniformGaussianNoise.*explicit"),
        (lambda: from_deepinv(Denoising(noise_model=GaussianNoise(0.0))), "sigma must be positive"),
        (
            lambda: from_deepinv(Denoising(noise_model=GaussianNoise(0.1), sensor_model=lambda y: y.round())),
            "sensor after the noise",
        ),
        (lambda: from_deepinv(Inpainting(SHAPE)), "has no mask"),
        (lambda: from_deepinv(Inpainting(SHAPE, mask=0.5 * torch.ones(SHAPE))), "0.5"),
        (lambda: from_deepinv(Inpainting((1, 8, 8), mask=torch.ones(1, 3, 8, 8))), "does not fit its img_size"),
        (lambda: from_deepinv(Inpainting(SHAPE, mask=MASKS[:1]))[0].on((1, 8, 8)), r"for samples of shape \(3, 8, 8\)"),
        (lambda: from_deepinv(Inpainting(SHAPE, mask=MASKS[:1]))[0](torch.ones(2, 1, 8, 8)), r"B, 3, 8, 8"),
        (lambda: from_deepinv(Denoising().stack(Denoising())), "concatenates"),
    ],
)
def test_bad_physics_are_refused_in_one_line(make, message):
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def affine_prior(shape=SHAPE):
    size = torch.Size(shape).numel()
    return Flow(Affine(torch.full(shape, 0.5), 0.2 * torch.eye(size)), shape)


def test_problem_takes_physics_without_their_noise():
    physics = Inpainting(SHAPE, mask=MASKS, noise_model=GaussianNoise(0.1, rng=generator()))
    x = images(2)
    problem = InverseProblem(affine_prior(), physics, None, physics(x))
    z = torch.randn(4, 2, *SHAPE, generator=generator())
    truth = problem.decode(z)
    expected = (torch.distributions.Normal(truth, 0.1).log_prob(problem.y) * MASKS).flatten(2).sum(-1)
    torch.testing.assert_close(problem.log_likelihood(truth), expected)
    assert torch.equal(problem.potential(z), problem.potential(z))
    with pytest.raises(ValueError, match="for samples of shape"):
        InverseProblem(affine_prior((1, 8, 8)), physics, None, physics(x))
    with pytest.raises(ValueError, match="needs a likelihood"):
        InverseProblem(affine_prior(), Blur(filter=KERNELS[:1]), None, torch.rand(2, 3, 6, 6))


def test_wrong_choice_of_per_observation_is_caught_by_the_problem():
    operator, likelihood = from_deepinv(
        Inpainting(SHAPE, mask=MASKS, noise_model=GaussianNoise(0.1)), per_observation=False
    )
    with pytest.raises(ValueError, match="per_observation=True"):
        InverseProblem(affine_prior(), operator, likelihood, images(2) * MASKS)


def test_gaussian_kernel_is_two_dimensional_and_exact():
    kernel = gaussian_kernel((1.5, 1.5))
    grid = torch.arange(len(kernel), dtype=torch.float64) - len(kernel) // 2
    profile = torch.exp(-0.5 * (grid / 1.5).square())
    expected = profile[:, None] * profile
    torch.testing.assert_close(kernel, expected / expected.sum())


def test_deepinv_is_imported_only_when_used():
    code = (
        "import sys, torch, flowinv.problem, flowinv.tasks as t;"
        "t.task('superres', (1, 4, 4)); t.task('inpaint-top', (1, 4, 4));"
        "assert 'deepinv' not in sys.modules;"
        "t.task('deblur', (1, 16, 16)); assert 'deepinv' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert is_physics(Denoising()) and not is_physics(torch.nn.Identity())
