"""Summaries of draws against closed forms and torch.quantile."""

import math

import pytest
import torch
from torch import Tensor

from flowinv import summaries
from flowinv.likelihoods import CustomLikelihood, Gaussian, Laplace


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(count: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(count, *shape, generator=seeded(seed))


# -- sources ---------------------------------------------------------------------------------------------------------


class Endless:
    """A posterior of standard normal draws that remembers the largest chunk it was asked for."""

    batch, shape = 2, (3,)
    largest = 0

    def draws(self, n, generator, chunk=64):
        for start in range(0, n, chunk):
            size = min(chunk, n - start)
            self.largest = max(self.largest, size)
            yield torch.randn(size, self.batch, *self.shape, generator=generator)


def test_restartable_gives_the_same_draws_again_and_leaves_the_global_generator_alone():
    posterior, before = Endless(), torch.get_rng_state()
    source = summaries.restartable(posterior, 150, seeded(3))
    first, second = torch.cat(list(source())), torch.cat(list(source()))
    other = torch.cat(list(summaries.restartable(posterior, 150, seeded(4))()))
    assert first.shape == (150, 2, 3) and posterior.largest == 64
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_sources_from_one_generator_differ():
    generator = seeded()
    one, two = (torch.cat(list(summaries.restartable(Endless(), 8, generator)())) for _ in range(2))
    assert not torch.equal(one, two)


@pytest.mark.parametrize(
    ("draws", "message"),
    [
        (lambda: iter([]), "gave no draws"),
        (lambda: iter([torch.tensor([1.0])]), r"must have shape \(S, B"),
        (lambda: iter([torch.full((2, 1, 3), math.nan)]), "6 values that are NaN"),
        (lambda: iter([torch.zeros(2, 1, 3), torch.zeros(2, 1, 4)]), "changed their shape"),
    ],
)
def test_bad_sources_are_refused(draws, message):
    with pytest.raises(ValueError, match=message):
        summaries.mean(draws)


def test_a_source_that_changes_between_passes_is_refused():
    sizes = iter([50, 40])
    with pytest.raises(ValueError, match="other draws"):
        summaries.quantiles(lambda: iter([normal(next(sizes), 1, 2)]), [0.5])


# -- moments and quantiles -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_moments_match_torch_for_any_chunking(chunk):
    draws = normal(100, 2, 3, 4).double() * 2 + 5
    found = summaries.moments(summaries.from_tensor(draws, chunk))
    torch.testing.assert_close(found.mean, draws.mean(0))
    torch.testing.assert_close(found.std, draws.std(0))
    assert torch.equal(found.minimum, draws.amin(0)) and torch.equal(found.maximum, draws.amax(0))


def test_std_keeps_its_digits_far_from_zero():
    # in float32 and with sums of squares, 1e4 + N(0, 0.1^2) has no standard deviation left
    draws = (normal(4000, 1, 5) * 0.1 + 1e4).float()
    exact = draws.double().std(0).float()
    naive = (draws.square().mean(0) - draws.mean(0).square()).clamp_min(0).sqrt()
    torch.testing.assert_close(summaries.std(summaries.from_tensor(draws)), exact)
    assert (naive - exact).abs().max() > 0.1 * exact.max()


@pytest.mark.parametrize("count", [1, 2, 10, 999])
@pytest.mark.parametrize("kind", ["normal", "skewed", "atoms", "constant"])
def test_quantiles_lie_within_the_stated_resolution(count, kind):
    draws = normal(count, 2, 5, seed=count)
    draws = {"normal": draws, "skewed": draws.mul(2).exp(), "atoms": draws.gt(0.3) * 0.7, "constant": draws * 0 + 0.25}[
        kind
    ]
    levels = [0.0, 0.05, 0.5, 0.77, 0.95, 1.0]
    found = summaries.quantiles(summaries.from_tensor(draws, 64), levels, bins=256)
    exact = torch.quantile(draws, torch.tensor(levels), dim=0)
    resolution = (draws.amax(0) - draws.amin(0)) / 256
    assert ((found - exact).abs() <= resolution + 1e-6).all()
    assert torch.equal(found[0], draws.amin(0)) and torch.equal(found[-1], draws.amax(0))
    # shifted by half a percent of probability, the same check must fail where quantiles differ at all
    if kind == "skewed" and count == 999:
        shifted = torch.quantile(draws, torch.tensor([min(1.0, p + 0.005) for p in levels]), dim=0)
        assert ((found - shifted).abs() > resolution + 1e-6).any()


def test_quantiles_in_blocks_equal_quantiles_at_once():
    source = summaries.from_tensor(normal(200, 3, 4, 5))
    assert torch.equal(
        summaries.quantiles(source, [0.1, 0.9], memory=4096 * 7), summaries.quantiles(source, [0.1, 0.9])
    )


def test_credible_interval_of_a_normal():
    lower, upper = summaries.credible_interval(summaries.from_tensor(normal(20000, 1, 4) * 3 + 1), 0.9)
    # the standard error of a normal's 5 % quantile from n draws is 2.11 sd / sqrt(n)
    error = 2.11 * 3 / math.sqrt(20000)
    for found, exact in ((lower, 1 - 1.6449 * 3), (upper, 1 + 1.6449 * 3)):
        assert ((found - exact).abs() < 4.5 * error + 24 / 1024).all()
    with pytest.raises(ValueError, match="between 0 and 1"):
        summaries.credible_interval(summaries.from_tensor(normal(9, 1, 1)), 1.0)


# -- functions of draws ----------------------------------------------------------------------------------------------


def test_expectation_of_the_squared_norm():
    # ||x||^2 of a standard normal in 8 dimensions is chi-squared with mean 8, variance 16
    draws = summaries.from_tensor(normal(5000, 2, 8))
    found = summaries.expectation(draws, lambda x: x.square().sum(-1), mass=0.8)
    assert found.mean.shape == (2,) and found.count == 5000
    torch.testing.assert_close(found.standard_error, torch.full((2,), 4 / math.sqrt(5000)), rtol=0.05, atol=0)
    assert ((found.mean - 8).abs() < 4 * found.standard_error).all()
    assert ((found.mean - 9).abs() > 4 * found.standard_error).all()
    exact = torch.tensor([3.4895, 13.3616])  # the 10 % and 90 % quantiles of chi-squared with 8 degrees of freedom
    assert (torch.stack([found.lower, found.upper], 1) - exact).abs().max() < 0.4


def test_standard_error_covers_as_it_should():
    hits = 0
    for seed in range(200):
        found = summaries.expectation(summaries.from_tensor(normal(50, 1, 1, seed=seed)), lambda x: x)
        hits += int(found.mean.abs() < 1.96 * found.standard_error)
    assert 178 <= hits <= 200  # 190 expected, standard deviation 3.1; half the error would give 134


def test_a_function_must_keep_the_draw_axes():
    with pytest.raises(ValueError, match=r"must give \(50, 1, \.\.\.\)"):
        summaries.expectation(summaries.from_tensor(normal(50, 1, 4)), lambda x: x.sum())


def test_exceedance_of_a_normal_and_of_nothing():
    draws = summaries.from_tensor(normal(4000, 1, 6).double())
    found = summaries.exceedance(draws, 1.0)
    assert ((found.probability - 0.158655).abs() < 4 * found.standard_error).all()
    assert ((found.lower < found.probability) & (found.probability < found.upper)).all()
    never = summaries.exceedance(draws, 100.0, lambda x: x.sum(-1))
    assert never.probability.item() == 0 and never.standard_error.item() == 0
    # Wilson: z^2 / (n + z^2)
    assert never.upper.item() == pytest.approx(3.8415 / (4000 + 3.8415), rel=1e-3) and never.lower.item() < 1e-12


# -- densities -------------------------------------------------------------------------------------------------------


def bits_of_normal(sd: float) -> float:
    return math.log2(sd * math.sqrt(2 * math.pi * math.e)) + 8


def test_entropy_of_known_distributions_in_bits():
    n, generator = 8000, seeded(1)
    side = torch.rand(n, generator=generator) < 0.5
    noise = torch.randn(n, generator=generator)
    known = {
        "uniform": (torch.rand(n, generator=generator), 8.0),
        "half": (0.25 + 0.5 * torch.rand(n, generator=generator), 7.0),
        "normal": (0.5 + 0.05 * noise, bits_of_normal(0.05)),
        "narrow": (0.5 + 0.01 * noise, bits_of_normal(0.01)),
        "reflected": (0.05 * noise.abs(), bits_of_normal(0.05) - 1),
        "two modes": (torch.where(side, 0.2, 0.8) + 0.02 * noise, bits_of_normal(0.02) + 1),
        "certain": (torch.full((n,), 0.3), 0.0),
        "black or white": (side.float(), 1.0),
    }
    draws = torch.stack([x for x, _ in known.values()], 1)[:, None]
    found = summaries.entropy(summaries.from_tensor(draws, 500))[0]
    exact = torch.tensor([h for _, h in known.values()], dtype=torch.float64)
    assert ((found - exact).abs() < 0.08).all(), dict(zip(known, found.tolist(), strict=True))
    assert (found <= 8).all() and (found >= 0).all()


def test_density_and_entropy_take_a_tensor_of_draws_and_refuse_other_units() -> None:
    draws = torch.rand(200, 2, 1, 3, 3, generator=seeded(2))
    assert torch.equal(summaries.entropy(draws), summaries.entropy(summaries.from_tensor(draws)))
    assert torch.equal(summaries.density(draws).counts, summaries.density(summaries.from_tensor(draws)).counts)
    with pytest.raises(ValueError, match=r"^draws must lie in the support \[0, 1\], got values from 0\.\d+ to 25"):
        summaries.entropy(255 * draws)
    assert torch.equal(summaries.entropy(255 * draws, (0.0, 255.0)), summaries.entropy(draws))
    draws[0, 0, 0, 0, 0] = 40.0  # a draw that overshoots counts at the nearest end
    assert torch.equal(summaries.entropy(draws), summaries.entropy(draws.clamp(0, 1)))


def entropy_with_one_width(found: summaries.Density, sd: Tensor) -> float:
    """The entropy that a single Gaussian kernel of standard deviation 0.9 sd n^(-1/5) would give (Silverman's rule)."""
    counts = found.counts.flatten().double()
    h = 0.9 * sd.item() * 256 * counts.sum() ** -0.2
    level = torch.arange(256.0).double()
    p = ((-0.5 * ((level[:, None] - level) / h) ** 2).exp() * counts).sum(1)
    p = p / p.sum()
    return -torch.special.xlogy(p, p).sum().item() / math.log(2)


@pytest.mark.parametrize("kind", ["two modes", "black or grey"])
def test_mixed_pixels_from_few_draws_where_one_width_fails(kind):
    found, broken = [], []
    for seed in range(10):
        generator = seeded(seed)
        first = torch.rand(256, 1, 1, generator=generator)
        if kind == "two modes":
            draws = torch.where(first < 0.5, 0.2, 0.8) + 0.02 * torch.randn(256, 1, 1, generator=generator)
            exact = bits_of_normal(0.02) + 1
        else:  # black in seven draws of ten, otherwise any grey
            draws = torch.where(first < 0.7, 0.0, torch.rand(256, 1, 1, generator=generator))
            p = torch.full((256,), 0.3 / 256).double()
            p[0] += 0.7
            exact = -torch.special.xlogy(p, p).sum().item() / math.log(2)
        density = summaries.density(summaries.from_tensor(draws))
        found.append(density.entropy().item() - exact)
        broken.append(entropy_with_one_width(density, draws.std()) - exact)
    assert abs(sum(found) / 10) < 0.15 and max(map(abs, found)) < 0.6
    assert abs(sum(broken) / 10) > 1


def test_one_outlier_does_not_set_the_bandwidth():
    draws = torch.cat([torch.zeros(255, 1, 1), torch.full((1, 1, 1), 0.5)])
    assert summaries.entropy(summaries.from_tensor(draws)).item() < 0.1


@pytest.mark.parametrize("neighbours", [1, 2, 4, 7, 100])
def test_masses_are_the_sum_of_kernels_written_out(neighbours):
    draws = torch.tensor([0.01, 0.02, 0.02, 0.5, 0.98, 0.3, 0.31, 0.7]).view(8, 1, 1)
    found = summaries.density(summaries.from_tensor(draws))
    masses = summaries.Density(found.counts, torch.tensor([[neighbours]]), found.low, found.high).masses()[0, 0]
    at = torch.floor(draws.flatten().double() * 256).tolist()
    images = [c for c in at] + [-1 - c for c in at] + [511 - c for c in at]
    level, expected = torch.arange(256, dtype=torch.float64), torch.zeros(256, dtype=torch.float64)
    for centre in at:
        enough = [h for h in summaries.BANDWIDTHS if sum(abs(i - centre) <= h for i in images) >= neighbours]
        h = enough[0] if enough else 144
        if h == 0:
            expected[int(centre)] += 1
            continue
        mirrors = [512 * m + c for m in range(-4, 5) for c in (centre, -1 - centre)]
        expected += sum((-0.5 * ((level - i) / h) ** 2).exp() for i in mirrors) / (h * math.sqrt(2 * math.pi))
    torch.testing.assert_close(masses, expected / expected.sum(), rtol=1e-6, atol=1e-9)
    assert masses.sum().item() == pytest.approx(1, abs=1e-12)


def test_differential_entropy_without_bounds():
    draws = normal(6000, 2, 3) * torch.tensor([0.1, 1.0, 50.0]) + 7
    found = summaries.density(summaries.from_tensor(draws), None).differential_entropy()
    exact = torch.tensor([bits_of_normal(s) - 8 for s in (0.1, 1.0, 50.0)], dtype=torch.float64)
    assert ((found - exact).abs() < 0.08).all()
    assert torch.isfinite(summaries.density(summaries.from_tensor(draws * 0), None).differential_entropy()).all()


def test_support_is_checked():
    with pytest.raises(ValueError, match="finite interval"):
        summaries.density(summaries.from_tensor(normal(5, 1, 1)), (0.0, math.inf))


# -- data fit --------------------------------------------------------------------------------------------------------


class Half:
    """The first four of eight elements are measured."""

    observed = torch.tensor([True] * 4 + [False] * 4)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.where(self.observed, x, torch.zeros(()))


class Problem:
    def __init__(self, y, likelihood, operator=None):
        self.y, self.likelihood, self.operator = y, likelihood, operator or Half()


def simulate(batch: int, sigma: float = 0.5, spread: float = 1.0) -> tuple[Problem, Tensor]:
    """Truths from N(0, I), measurements, and draws of the exact posterior (its standard deviation times ``spread``)."""
    truth = normal(batch, 8, seed=5)
    y = Half()(truth + sigma * normal(batch, 8, seed=6))
    variance = torch.where(Half.observed, 1 / (1 + sigma**-2), 1.0)
    mean = torch.where(Half.observed, variance * y / sigma**2, torch.zeros(()))
    return Problem(y, Gaussian(sigma)), mean + spread * variance.sqrt() * normal(100, batch, 8, seed=7)


def z_of_mean(fit: summaries.DataFit) -> float:
    """How many standard errors the average of chi-squared over observations lies from 1, with 4 measurements each."""
    return abs(float(fit.value.mean()) - 1) / (math.sqrt(2 / 4) / math.sqrt(len(fit.value)))


def test_chi_squared_is_one_for_the_exact_posterior_and_not_for_others():
    problem, draws = simulate(2000)
    fit = summaries.data_fit(problem, summaries.from_tensor(draws))
    assert fit.statistic == "chi-squared" and fit.value.shape == (2000,) and (fit.count == 4).all()
    torch.testing.assert_close(fit.spread, torch.full((2000,), math.sqrt(0.5), dtype=torch.float64))
    assert z_of_mean(fit) < 4
    for spread in (0.8, 1.25):
        wrong, draws = simulate(2000, spread=spread)
        assert z_of_mean(summaries.data_fit(wrong, summaries.from_tensor(draws))) > 8


def test_chi_squared_written_out_and_its_histogram():
    problem, draws = simulate(3)
    problem.y[:, 5] = math.nan  # nobody measured it
    fit = summaries.data_fit(problem, summaries.from_tensor(draws, 9))
    residuals = (problem.y - draws)[:, :, :4] / 0.5
    torch.testing.assert_close(fit.value, residuals.double().square().mean((0, 2)), rtol=1e-5, atol=0)
    edges = torch.tensor(summaries.RESIDUAL_EDGES)
    for b in range(3):
        counts = torch.histogram(residuals[:, b].flatten().clamp(-4.99, 4.99), edges)[0]
        torch.testing.assert_close(fit.residuals[b], counts.long())


def test_replicas_give_expectation_spread_and_p_values():
    problem, draws = simulate(400)
    fit = summaries.data_fit(problem, summaries.from_tensor(draws), seeded(8))
    assert fit.expected.mean().item() == pytest.approx(1, abs=0.02)
    assert fit.spread.mean().item() == pytest.approx(math.sqrt(0.5), abs=0.03)
    assert abs(fit.p_value.mean().item() - 0.5) < 0.05
    far = Problem(problem.y + 3, problem.likelihood)
    assert summaries.data_fit(far, summaries.from_tensor(draws), seeded(8)).p_value.mean() < 0.01


def test_laplace_noise_spreads_wider_than_gaussian():
    problem, draws = simulate(200)
    fit = summaries.data_fit(Problem(problem.y, Laplace(0.3)), summaries.from_tensor(draws), seeded(9))
    # the variance of r^2 is 5 for Laplace noise, 2 for Gaussian
    assert fit.spread.mean().item() == pytest.approx(math.sqrt(5 / 4), rel=0.12)


def test_a_likelihood_without_std_is_checked_by_its_log_likelihood():
    problem, draws = simulate(50)

    def cauchy(y, prediction):
        return torch.distributions.Cauchy(prediction[..., :4], 0.3).log_prob(y[..., :4]).sum(-1)

    def sampler(prediction, generator):
        return prediction + 0.3 * torch.empty_like(prediction).cauchy_(generator=generator)

    silent = summaries.data_fit(Problem(problem.y, CustomLikelihood(cauchy)), summaries.from_tensor(draws), seeded())
    assert silent.statistic == "log-likelihood" and silent.expected is None and silent.residuals is None
    torch.testing.assert_close(silent.value, cauchy(problem.y, draws).double().mean(0))
    fit = summaries.data_fit(
        Problem(problem.y, CustomLikelihood(cauchy, sampler)), summaries.from_tensor(draws), seeded()
    )
    # E log p of a Cauchy with scale s is -log(4 pi s)
    assert fit.expected.mean().item() == pytest.approx(-4 * math.log(4 * math.pi * 0.3), abs=0.2)
    far = Problem(problem.y + 50, CustomLikelihood(cauchy, sampler))
    assert summaries.data_fit(far, summaries.from_tensor(draws), seeded()).p_value.mean() < 0.05 < fit.p_value.mean()


def test_no_measurement_to_check_is_refused():
    class Nothing(Half):
        observed = torch.zeros(8, dtype=torch.bool)

    problem, draws = simulate(2)
    with pytest.raises(ValueError, match="no observed measurement"):
        summaries.data_fit(Problem(problem.y, Gaussian(1.0), Nothing()), summaries.from_tensor(draws))


def test_a_measurement_of_one_number_is_checked_as_a_vector_of_one():
    class Total:
        observed = None

        def __init__(self, keepdim: bool):
            self.keepdim = keepdim

        def __call__(self, x: Tensor) -> Tensor:
            return x.sum(-1, keepdim=self.keepdim)

    _, draws = simulate(3)
    y = normal(3, seed=9)
    fits = [
        summaries.data_fit(Problem(v, Gaussian(0.5), Total(v.dim() == 2)), summaries.from_tensor(draws), seeded())
        for v in (y, y[:, None])
    ]
    for a, b in zip(vars(fits[0]).values(), vars(fits[1]).values(), strict=True):
        assert a == b if isinstance(a, str) else torch.equal(a, b)
