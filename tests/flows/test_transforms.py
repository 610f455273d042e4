"""Data transforms and closed-form maps against distributions: dequantisation, logit, Gaussianisation, quantiles."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flowinv.flows import UNIT, Affine, Elementwise, Flow, Quantile
from flowinv.flows.layers.transforms import Gaussianize, Logit, Shift, dequantize

NORMAL = torch.distributions.Normal(0.0, 1.0)


def ks(sample: Tensor) -> float:
    """Kolmogorov's sqrt(n) sup|F_n - Phi| of a sample against N(0, 1): below 1.95 with probability .999."""
    u = NORMAL.cdf(sample.flatten().double().sort().values)
    n = len(u)
    steps = torch.arange(n, dtype=torch.float64) / n
    return float(torch.maximum((u - steps).abs(), (u - steps - 1 / n).abs()).max()) * math.sqrt(n)


class TestDequantize:
    @pytest.mark.parametrize("bits", [1, 5, 8, 12])
    def test_every_value_stays_in_its_bin(self, bits: int, generator: torch.Generator) -> None:
        images = torch.randint(0, 2**bits, (400_000,), generator=generator, dtype=torch.int32)
        x = dequantize(images, bits, generator)
        assert torch.equal((x * 2**bits).floor().int(), images)
        assert x.min() >= 0 and x.max() < 1

    def test_noise_at_its_largest_does_not_reach_the_next_bin(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, 1 - 2**-24))
        images = torch.arange(256, dtype=torch.uint8)
        assert torch.equal((dequantize(images) * 256).floor().byte(), images)

    def test_the_noise_is_uniform(self, generator: torch.Generator) -> None:
        images = torch.full((20_000,), 7, dtype=torch.uint8)
        noise = dequantize(images, 8, generator).double() * 256 - 7
        assert ks(NORMAL.icdf(noise.clamp(1e-9, 1 - 1e-9))) < 1.95
        assert ks(NORMAL.icdf((0.95 * noise).clamp(1e-9, 1 - 1e-9))) > 1.95

    def test_a_generator_repeats_it(self) -> None:
        images = torch.arange(16, dtype=torch.uint8)
        first, second = (dequantize(images, 8, torch.Generator().manual_seed(3)) for _ in range(2))
        assert torch.equal(first, second)

    def test_floats_and_other_ranges_are_refused(self) -> None:
        with pytest.raises(TypeError, match=r"dequantize expects integer images in 0\.\.255, got torch\.float32"):
            dequantize(torch.zeros(3))
        with pytest.raises(ValueError, match=r"integer images in 0\.\.31, got 0\.\.255"):
            dequantize(torch.tensor([0, 255], dtype=torch.uint8), bits=5)
        with pytest.raises(ValueError, match=r"integer images in 0\.\.255, got -1\.\.3"):
            dequantize(torch.tensor([-1, 3]))


class TestLogitAndShift:
    def test_logit_known_answer(self) -> None:
        x = torch.tensor([[0.0, 0.5, 1.0]], dtype=torch.float64)
        u, log_det = Logit(0.05).encode(x)
        torch.testing.assert_close(u, torch.logit(torch.tensor([[0.05, 0.5, 0.95]], dtype=torch.float64)))
        expected = 3 * math.log(0.9) - 2 * math.log(0.05 * 0.95) - math.log(0.25)
        assert log_det.item() == pytest.approx(expected)

    @pytest.mark.parametrize("margin", [0.0, 0.5, -1.0, math.nan])
    def test_logit_refuses_a_margin_outside(self, margin: float) -> None:
        with pytest.raises(ValueError, match=r"margin lies in \(0, 0\.5\)"):
            Logit(margin)

    @pytest.mark.parametrize("scale", [0.0, -1.0, math.nan])
    def test_shift_refuses_a_scale_that_is_not_positive(self, scale: float) -> None:
        with pytest.raises(ValueError, match="scale must be positive"):
            Shift(0.5, scale)


def training_images(generator: torch.Generator) -> Tensor:
    """Bytes whose grey levels are far from normal and differ by pixel, (N, 1, 2, 2)."""
    levels = torch.tensor([0.0, 60.0, 120.0, 250.0]).view(1, 1, 2, 2)
    images = (levels + 40 * torch.randn(8000, 1, 2, 2, generator=generator)).clamp(0, 255)
    return images.byte()


def histogram(images: Tensor, per_pixel: bool) -> Tensor:
    one_hot = torch.nn.functional.one_hot(images.long(), 256)
    return one_hot.sum(0).movedim(-1, 0) if per_pixel else one_hot.flatten(0, -2).sum(0)


class TestGaussianize:
    def test_per_pixel_marginals_of_the_training_set_become_normal(self, generator: torch.Generator) -> None:
        images = training_images(generator)
        layer = Gaussianize.from_counts(histogram(images, per_pixel=True), smoothing=1e-3)
        u, _ = layer.encode(dequantize(images, 8, generator))
        assert all(ks(u[:, 0, i, j]) < 1.95 for i in range(2) for j in range(2))
        shifted, _ = layer.encode(dequantize((images.long() + 4).clamp(max=255), 8, generator))
        assert all(ks(shifted[:, 0, i, j]) > 1.95 for i in range(2) for j in range(2))

    def test_the_shared_marginal_of_the_training_set_becomes_normal(self, generator: torch.Generator) -> None:
        images = training_images(generator)
        layer = Gaussianize.from_counts(histogram(images, per_pixel=False), smoothing=1e-3)
        u, _ = layer.encode(dequantize(images, 8, generator))
        assert ks(u) < 1.95
        assert ks(u[:, 0, 0, 0]) > 1.95

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("per_pixel", [False, True])
    def test_decoded_pixels_lie_in_the_unit_interval(
        self, per_pixel: bool, dtype: torch.dtype, generator: torch.Generator
    ) -> None:
        layer = Gaussianize.from_counts(histogram(training_images(generator), per_pixel)).to(dtype)
        z = 3 * torch.randn(2000, 1, 2, 2, generator=generator, dtype=dtype)
        z[:4] = torch.tensor([-40.0, -8.0, 8.0, 40.0]).view(4, 1, 1, 1)
        x, log_det = layer.decode(z)
        assert x.min() >= 0 and x.max() <= 1
        assert torch.isfinite(log_det).all()

    def test_edges_of_the_interval_are_finite(self, generator: torch.Generator) -> None:
        layer = Gaussianize.from_counts(histogram(training_images(generator), per_pixel=True))
        x = torch.tensor([0.0, 1.0, 0.5, 1 / 256]).view(4, 1, 1, 1).expand(4, 1, 2, 2).requires_grad_()
        u, log_det = layer.encode(x)
        assert torch.isfinite(u).all() and torch.isfinite(log_det).all()

    def test_the_density_is_the_histogram_and_integrates_to_one(self) -> None:
        counts = torch.tensor([5.0, 1.0, 0.0, 10.0])
        flow = Flow(Elementwise((1,)), (1,), Gaussianize.from_counts(counts, smoothing=1.0), UNIT).double()
        middles = ((torch.arange(4000, dtype=torch.float64) + 0.5) / 4000)[:, None]
        density = flow.log_prob(middles).exp()
        expected = 4 * (counts.double() + 1) / 20
        torch.testing.assert_close(density.view(4, 1000), expected[:, None].expand(4, 1000), rtol=1e-6, atol=0)
        with torch.no_grad():
            flow.bijection.raw_scale.fill_(0.4)
            flow.bijection.shift.fill_(0.3)
        assert flow.log_prob(middles).exp().mean().item() == pytest.approx(1, abs=1e-2)
        broken = flow.log_prob(middles) - flow.encode(middles)[1]
        assert broken.exp().mean().item() != pytest.approx(1, abs=1e-2)

    def test_binary_images_leave_no_bin_without_width(self) -> None:
        counts = torch.zeros(256)
        counts[0], counts[255] = 4e7, 9e6
        layer = Gaussianize.from_counts(counts)
        x = torch.rand(100, 1, generator=torch.Generator().manual_seed(0))
        u, log_det = layer.encode(x)
        assert torch.isfinite(u).all() and torch.isfinite(log_det).all()
        assert torch.isfinite(layer.decode(torch.linspace(-6, 6, 1001)[:, None])[0]).all()

    @pytest.mark.parametrize(
        "cdf", [[0.0, 0.5, 0.9], [0.1, 0.5, 1.0], [0.0, 0.5, 0.5, 1.0], [0.0, math.nan, 1.0], [1.0]]
    )
    def test_what_is_no_distribution_function_is_refused(self, cdf: list[float]) -> None:
        with pytest.raises(ValueError, match="cdf must rise strictly from 0 to 1"):
            Gaussianize(torch.tensor(cdf))


class TestAnalytic:
    def test_affine_is_the_multivariate_normal(self, generator: torch.Generator) -> None:
        mean = torch.randn(5, generator=generator, dtype=torch.float64)
        root = torch.randn(5, 5, generator=generator, dtype=torch.float64)
        covariance = root @ root.T + 0.1 * torch.eye(5)
        flow = Flow(Affine.from_covariance(mean, covariance), (5,))
        x = torch.randn(20, 5, generator=generator, dtype=torch.float64)
        truth = torch.distributions.MultivariateNormal(mean, covariance)
        torch.testing.assert_close(flow.log_prob(x), truth.log_prob(x))
        draws = flow.sample(40_000, generator)
        assert (draws.mean(0) - mean).abs().max() < 5 * covariance.diagonal().max().sqrt() / 200
        torch.testing.assert_close(draws.T.cov(), covariance, rtol=0, atol=0.05 * float(covariance.diagonal().max()))

    def test_affine_on_images(self, generator: torch.Generator) -> None:
        mean = torch.ones(1, 2, 3).double()
        flow = Flow(Affine(mean, 2 * torch.eye(6).double()), (1, 2, 3))
        x = torch.randn(4, 1, 2, 3, generator=generator, dtype=torch.float64)
        truth = torch.distributions.Normal(1.0, 2.0).log_prob(x).sum((1, 2, 3))
        torch.testing.assert_close(flow.log_prob(x), truth)

    def test_affine_refuses_what_is_no_cholesky_factor(self) -> None:
        with pytest.raises(ValueError, match=r"cholesky must have shape \(3, 3\) to go with mean, got \(2, 2\)"):
            Affine(torch.zeros(3), torch.eye(2))
        for bad in (-torch.eye(2), torch.ones(2, 2), torch.full((2, 2), math.nan)):
            with pytest.raises(ValueError, match="lower triangular with a positive diagonal"):
                Affine(torch.zeros(2), bad)

    @pytest.mark.parametrize(
        "distribution",
        [
            torch.distributions.Laplace(torch.tensor([0.0, 2.0, -1.0]).double(), 0.7),
            torch.distributions.Gumbel(torch.zeros(3).double(), torch.tensor(1.3).double()),
            torch.distributions.Uniform(torch.zeros(3).double(), torch.tensor([1.0, 2.0, 3.0]).double()),
            torch.distributions.LogNormal(torch.zeros(3).double(), torch.tensor(0.5).double()),
        ],
        ids=lambda d: type(d).__name__,
    )
    def test_quantile_has_the_density_of_its_distribution(
        self, distribution: torch.distributions.Distribution, generator: torch.Generator
    ) -> None:
        flow = Flow(Quantile(distribution), (3,))
        z = torch.randn(500, 3, generator=generator, dtype=torch.float64)
        x, _ = flow.decode(z)
        torch.testing.assert_close(flow.log_prob(x), distribution.log_prob(x).sum(1), rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(distribution.cdf(x), NORMAL.cdf(z), rtol=1e-8, atol=1e-10)

    def test_elementwise_starts_at_the_identity_and_is_clamped(self) -> None:
        layer = Elementwise((3,), clamp=2.0)
        x = torch.arange(3.0)[None]
        assert torch.equal(layer.encode(x)[0], x)
        torch.nn.init.constant_(layer.raw_scale, 1e9)
        assert layer.encode(x)[1].item() == pytest.approx(6.0)
