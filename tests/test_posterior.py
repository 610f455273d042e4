"""The posterior against closed forms: draws, densities, the ELBO, and what comes back from a file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_posterior import Exact, affine_flow
from torch import Tensor

from flowinv import (
    Affine,
    BundleError,
    CustomLikelihood,
    Flow,
    FlowPosterior,
    Gaussian,
    Identity,
    InverseProblem,
    Posterior,
    Quantile,
    load_prior,
    task,
)
from flowinv.families import PreGeneratorConfig
from flowinv.families.family import composed
from flowinv.flows.flow import UNIT
from flowinv.flows.layers.transforms import Gaussianize, Logit
from flowinv.randomness import keyed_generator
from flowinv.solvers import find_amortizer
from flowinv.store import read_bundle, write_bundle


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def doubled(x: Tensor) -> Tensor:
    return 2 * x


@pytest.fixture(scope="module")
def exact() -> Exact:
    return Exact(shape=(1, 3, 4), batch=3)


# -- draws -------------------------------------------------------------------------------------------


def distance_of_moments(draws: Tensor, exact: Exact) -> tuple[float, float]:
    """How many standard errors the worst mean, and the worst covariance, lie from the closed form."""
    n, worst_mean, worst_cov = len(draws), 0.0, 0.0
    variance = exact.covariance.diagonal()
    for b in range(exact.batch):
        x = draws[:, b].flatten(1).double()
        error = (x.mean(0) - exact.mean[b]) / (variance / n).sqrt()
        cov_error = (torch.cov(x.T) - exact.covariance) / (
            (variance[:, None] * variance + exact.covariance.square()) / n
        ).sqrt()
        worst_mean = max(worst_mean, float(error.abs().max()))
        worst_cov = max(worst_cov, float(cov_error.abs().max()))
    return worst_mean, worst_cov


def test_draws_have_the_mean_and_covariance_of_the_closed_form(exact: Exact) -> None:
    mean, cov = distance_of_moments(exact.posterior().sample(4000, seeded()), exact)
    assert mean < 4.5 and cov < 5
    assert distance_of_moments(exact.posterior(shift=0.2).sample(4000, seeded()), exact)[0] > 6
    assert distance_of_moments(exact.posterior(scale=1.15).sample(4000, seeded()), exact)[1] > 6


def test_the_draws_of_summaries_are_kept_and_those_of_a_generator_are_not(exact: Exact, monkeypatch) -> None:
    posterior, asked = exact.posterior(), []
    draws = type(posterior).draws

    def counted(self: FlowPosterior, n: int, *rest: Any, **more: Any) -> Any:
        asked.append(n)
        return draws(self, n, *rest, **more)

    monkeypatch.setattr(type(posterior), "draws", counted)
    low, high = posterior.credible_interval(0.9, n=300)
    assert asked == [300]
    assert torch.equal(posterior.mean(300), posterior.mean(300)) and asked == [300]
    again = exact.posterior()
    found = torch.quantile(again.sample(300, keyed_generator(0, 7)), torch.tensor([0.05, 0.95]).double(), dim=0)
    assert ((found[0] - low).abs() < 0.05).all() and ((found[1] - high).abs() < 0.05).all()
    asked.clear()
    posterior.mean(200)
    assert asked == [200]
    assert not torch.equal(posterior.mean(200, seeded(1)), posterior.mean(200, seeded(2))) and len(asked) == 3
    monkeypatch.setattr("flowinv.posterior._KEPT", 10)
    posterior.std(100)
    assert posterior._kept[0] == 200, "too many to keep"


def test_summaries_are_those_of_the_closed_form(exact: Exact) -> None:
    posterior, sd = exact.posterior(), exact.covariance.diagonal().sqrt().view(exact.shape)
    mean = exact.mean.view(exact.batch, *exact.shape)
    assert torch.allclose(posterior.mean(4000).double(), mean, atol=5 * float(sd.max()) / 63)
    assert torch.allclose(posterior.std(4000).double(), sd.expand_as(mean), rtol=0.06)
    low, high = posterior.credible_interval(0.9, 4000)
    assert torch.allclose((high - low).double(), (2 * 1.645 * sd).expand_as(mean), rtol=0.1)
    middle = posterior.quantiles([0.5], 4000)[0]
    assert torch.allclose(middle.double(), mean, atol=5 * 1.25 * float(sd.max()) / 63)
    total = posterior.expectation(lambda x: x.flatten(2).sum(2), 4000)
    assert torch.allclose(total.mean.double(), exact.mean.sum(1), atol=5 * float(exact.covariance.sum().sqrt()) / 63)
    above = posterior.exceedance(mean.to(torch.float64), n=4000)
    assert torch.allclose(above.probability.double(), torch.full_like(mean, 0.5), atol=5 * 0.5 / 63)


@pytest.mark.parametrize("shape", [(5,), (1, 3, 4)])
def test_draws_do_not_depend_on_the_size_of_the_pieces(shape: tuple[int, ...]) -> None:
    posterior = Exact(shape, batch=2).posterior()
    whole = posterior.sample(30, seeded(4))
    assert whole.shape == (30, 2, *shape)
    for chunk in (1, 7, 64):
        parts = list(posterior.draws(30, seeded(4), chunk))
        assert max(len(p) for p in parts) <= max(1, chunk // 2)
        assert torch.allclose(torch.cat(parts), whole, atol=1e-12)
    assert torch.allclose(posterior.sample(11, seeded(4)), whole[:11], atol=1e-12), "more draws go on from fewer"
    assert not torch.equal(posterior.sample(30, seeded(5)), whole)


def test_draws_in_bf16_are_those_in_float32_but_for_rounding() -> None:
    prior = load_prior("mnist")
    bottom = task("inpaint-bottom", prior.shape, sigma=0.1)
    x = prior.sample(2, keyed_generator(1)).clamp(0, 1)
    problem = InverseProblem.from_task(prior, bottom, bottom.operator(x))
    amortizer = find_amortizer(problem)
    assert amortizer is not None
    posterior = amortizer.posterior(problem)
    full, rounded, again = (posterior.sample(8, keyed_generator(2), bf16=bf16) for bf16 in (False, True, False))
    assert torch.equal(full, again) and full.dtype == rounded.dtype == torch.float32
    error, apart = (rounded - full).abs().mean(), (full - full.roll(1, 0)).abs().mean()
    assert 0 < error < 0.05 * apart
    twice = InverseProblem.from_task(load_prior("mnist").double(), bottom, bottom.operator(x.double()))
    with pytest.raises(ValueError, match=r"bf16 is for posteriors in float32, this one is in torch.float64"):
        amortizer.posterior(twice).sample(1, keyed_generator(2), bf16=True)


def test_the_callers_generator_is_used_and_no_other(exact: Exact) -> None:
    posterior, generator = exact.posterior(), seeded(1)
    before = torch.get_rng_state()
    first, second = posterior.sample(2, generator), posterior.sample(2, generator)
    assert not torch.equal(first, second) and torch.equal(torch.get_rng_state(), before)
    assert torch.equal(posterior.mean(64), posterior.mean(64)), "without a generator, a fixed one"


@pytest.mark.parametrize("n", [0, -1])
def test_no_draws_are_refused(exact: Exact, n: int) -> None:
    with pytest.raises(ValueError, match=f"number of draws must be at least 1, got {n}"):
        exact.posterior().sample(n, seeded())


# -- densities ---------------------------------------------------------------------------------------


def test_log_prob_is_that_of_the_multivariate_normal(exact: Exact) -> None:
    posterior = exact.posterior()
    x = exact.prior.sample(5 * exact.batch, seeded(2)).view(5, exact.batch, *exact.shape)
    expected = torch.stack([exact.distribution(b).log_prob(x[:, b].flatten(1)) for b in range(exact.batch)], 1)
    assert torch.allclose(posterior.log_prob(x), expected, atol=1e-7)
    assert torch.allclose(posterior.log_prob(x[0]), expected[0], atol=1e-7)
    assert torch.allclose(posterior.log_prob(x.view(5, 1, *x.shape[1:])), expected[:, None], atol=1e-7)
    assert not torch.allclose(exact.posterior(shift=0.01).log_prob(x), expected, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_prob_of_draws_is_what_came_with_them(dtype: torch.dtype) -> None:
    posterior = Exact((2, 4, 4), batch=2, dtype=dtype).posterior()
    x, log_q = posterior.sample_with_log_prob(40, seeded())
    assert x.dtype == dtype and log_q.shape == (40, 2)
    assert torch.equal(x, posterior.sample(40, seeded()))
    assert torch.allclose(posterior.log_prob(x), log_q, atol=1e-8 if dtype == torch.float64 else 5e-3)


@pytest.mark.parametrize("kind", ["coupling", "realnvp"])
def test_learned_families_too_through_a_prior_with_a_transform(kind: str) -> None:
    shape = (1, 4, 4)
    config = PreGeneratorConfig(kind, steps=2, hidden=8, scales=2, blocks=1)
    family = composed(shape, 2, config).double()
    with torch.no_grad():
        for p in family.parameters():
            p += 0.05 * torch.randn(p.shape, generator=seeded(1), dtype=p.dtype)
    prior = affine_flow(shape, transform=Logit(), support=UNIT)
    problem = InverseProblem(prior, Identity(), Gaussian(0.1), torch.full((2, *shape), 0.5))
    posterior = FlowPosterior(problem, family, {}, {})
    x, log_q = posterior.sample_with_log_prob(50, seeded())
    assert torch.allclose(posterior.log_prob(x), log_q, atol=1e-5)


def with_transform(transform: Logit | Gaussianize, spread: float) -> Posterior:
    shape = (4,)
    prior = Flow(Affine(torch.zeros(shape), spread * torch.eye(4)), shape, transform, UNIT)
    problem = InverseProblem(prior, Identity(), Gaussian(0.1), torch.full((1, 4), 0.5))
    return FlowPosterior(problem, composed(shape, 1, PreGeneratorConfig("gaussian")), {}, {})


def test_draws_beyond_the_support_have_their_density() -> None:
    """The logit's margin lets draws lie a little outside [0, 1]; where no draw can lie the density is zero."""
    posterior = with_transform(Logit(), 4.0)
    x, log_q = posterior.sample_with_log_prob(200, seeded())
    assert (x < 0).any() and (x > 1).any()
    assert torch.allclose(posterior.log_prob(x), log_q, atol=2e-2)
    inside = torch.full((1, 4), 0.5)
    far = inside.clone()
    far[0, 2] = 1.2
    assert posterior.log_prob(far).tolist() == [-math.inf] and torch.isfinite(posterior.log_prob(inside)).all()
    other = with_transform(Gaussianize(torch.linspace(0, 1, 17)), 1.0)
    assert other.log_prob(far).tolist() == [-math.inf]
    assert float(other.log_prob(inside)) == pytest.approx(0, abs=1e-5), "uniform on [0, 1]^4"


def test_log_prob_refuses_what_is_no_image_of_the_problem(exact: Exact) -> None:
    posterior = exact.posterior()
    good = posterior.sample(1, seeded())
    for bad in (good[0, 0], good[:, :2], good[..., :2]):
        with pytest.raises(ValueError, match="x must have shape"):
            posterior.log_prob(bad)
    with pytest.raises(TypeError, match="floating-point"):
        posterior.log_prob(torch.zeros(good.shape, dtype=torch.uint8))
    with pytest.raises(TypeError, match="floating-point"):
        posterior.log_prob([1.0])
    good[0, 0, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="1 values that are NaN"):
        posterior.log_prob(good)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got values from 128 to 128"):
        with_transform(Logit(), 1.0).log_prob(torch.full((1, 4), 128.0))


# -- the ELBO ----------------------------------------------------------------------------------------


def test_the_exact_posteriors_elbo_is_the_log_evidence_without_variance(exact: Exact) -> None:
    posterior = exact.posterior()
    elbo = posterior.measure_elbo(16, seeded())
    assert elbo.dtype == torch.float64 and elbo.shape == (exact.batch,)
    assert torch.allclose(elbo, exact.log_evidence, atol=1e-6)
    assert posterior.elbo_se is not None and float(posterior.elbo_se.max()) < 1e-7
    assert posterior.elbo is elbo


@pytest.mark.parametrize(("shift", "scale"), [(0.3, 1.0), (0.0, 1.3), (-0.2, 0.8)])
def test_a_wrong_posteriors_elbo_is_lower_by_its_divergence(exact: Exact, shift: float, scale: float) -> None:
    posterior = exact.posterior(shift, scale)
    elbo = posterior.measure_elbo(4000, seeded())
    assert posterior.elbo_se is not None
    gap, error = exact.log_evidence - elbo, posterior.elbo_se
    expected = exact.divergence(shift, scale)
    assert expected > 0.1
    assert ((gap - expected).abs() < 4.5 * error).all()
    assert (error < expected / 5).all(), "the test can tell the divergence from none"


def test_a_broken_elbo_would_be_seen(exact: Exact) -> None:
    """Without log q's Jacobian, the exact posterior's objective is far from the evidence."""
    posterior = exact.posterior()
    part = next(posterior._chunks(64, seeded()))
    jacobian = posterior.family.map.bijections[0].log_diagonal.sum()
    log_prior = posterior.family.log_prior(part.inner, posterior.prior)
    broken = (posterior.problem.log_likelihood(part.x) + log_prior - (part.log_q + jacobian)).mean(0)
    assert ((broken - exact.log_evidence).abs() > 1).all()


def test_one_draw_has_no_standard_error(exact: Exact) -> None:
    posterior = exact.posterior()
    posterior.measure_elbo(1, seeded())
    assert posterior.elbo_se is not None and torch.isnan(posterior.elbo_se).all()


def test_the_elbo_keeps_no_graph() -> None:
    """An operator with weights of its own must not make every draw's graph stay in memory."""
    net = torch.nn.Linear(12, 7).double()
    problem = InverseProblem(affine_flow((12,)), net, Gaussian(0.1), torch.zeros(1, 7))
    posterior = Exact((12,)).posterior()
    posterior.problem = problem
    assert not posterior.measure_elbo(4, seeded()).requires_grad


# -- files -------------------------------------------------------------------------------------------


def test_saved_and_loaded_it_is_the_same(exact: Exact, tmp_path: Path) -> None:
    posterior = exact.posterior()
    posterior.measure_elbo(32, seeded())
    posterior.save(tmp_path / "p")
    loaded = Posterior.load(tmp_path / "p")
    assert loaded.elbo is not None and loaded.elbo_se is not None
    assert torch.equal(loaded.elbo, posterior.elbo) and torch.equal(loaded.elbo_se, posterior.elbo_se)
    x = posterior.sample(5, seeded(3))
    assert torch.equal(loaded.sample(5, seeded(3)), x) and torch.equal(loaded.log_prob(x), posterior.log_prob(x))
    assert loaded.trace == posterior.trace and loaded.provenance == posterior.provenance
    assert repr(loaded) == repr(posterior)
    assert loaded.problem.fingerprint() == posterior.problem.fingerprint()
    text = json.loads((tmp_path / "p" / "config.json").read_text())
    assert {"flowinv", "torch", "python", "prior", "settings"} <= text["provenance"].keys()
    assert sorted(f.name for f in (tmp_path / "p").iterdir()) == ["config.json", "model.safetensors"]


def test_a_matrix_and_a_scale_per_measurement_come_back(tmp_path: Path) -> None:
    matrix = torch.randn(7, 12, generator=seeded(8)).double()
    exact = Exact(matrix=matrix)
    exact.problem = InverseProblem(exact.prior, exact.problem.operator, Gaussian(torch.full((7,), 0.1)), exact.y)
    posterior = exact.posterior()
    loaded = Posterior.load(posterior.save(tmp_path))
    assert torch.equal(loaded.measure_elbo(8, seeded()), posterior.measure_elbo(8, seeded()))


def test_what_is_saved_is_not_written_over_unasked(exact: Exact, tmp_path: Path) -> None:
    exact.posterior().save(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(FileExistsError, match="already holds a bundle"):
        exact.posterior(shift=1.0).save(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    exact.posterior(shift=1.0).save(tmp_path, overwrite=True)
    assert not torch.equal(Posterior.load(tmp_path).sample(1, seeded()), exact.posterior().sample(1, seeded()))


def test_code_must_be_given_again(tmp_path: Path) -> None:
    exact = Exact((6,), matrix=2 * torch.eye(6).double(), operator=doubled)
    posterior = exact.posterior()
    posterior.save(tmp_path / "operator")
    with pytest.raises(BundleError, match="operator was Python code; give it again"):
        Posterior.load(tmp_path / "operator")
    loaded = Posterior.load(tmp_path / "operator", operator=doubled)
    assert torch.equal(loaded.measure_elbo(8, seeded()), posterior.measure_elbo(8, seeded()))
    gaussian = Gaussian(0.1)
    custom = CustomLikelihood(lambda y, prediction: gaussian.log_prob(y, prediction))
    exact = Exact((6,))
    exact.problem = InverseProblem(exact.prior, Identity(), custom, torch.zeros(1, 6))
    exact.posterior().save(tmp_path / "likelihood")
    with pytest.raises(BundleError, match="likelihood was Python code; give it again"):
        Posterior.load(tmp_path / "likelihood")
    assert Posterior.load(tmp_path / "likelihood", likelihood=custom).problem.likelihood is custom


def rewrite(folder: Path, change: Callable[[dict, dict], None]) -> None:
    config, tensors = read_bundle(folder, "flowinv-posterior")
    change(config, tensors)
    write_bundle(folder, config, tensors, overwrite=True)


def _set(tensors: dict, name: str, value: Tensor) -> None:
    assert name in tensors
    tensors[name] = value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, t: _set(t, "prior.bijection.mean", t["prior.bijection.mean"] + 1e-6), "not those the problem was"),
        (lambda c, t: t.pop("prior.bijection.mean"), "weights do not fit: 1 tensors differ"),
        (lambda c, t: t.pop("y"), "misses 'y'"),
        (lambda c, t: c.pop("prior"), "misses 'prior'"),
        (lambda c, t: c.pop("provenance"), "misses 'provenance'"),
        (lambda c, t: c.pop("elbo"), "misses 'elbo'"),
        (lambda c, t: c.pop("prior_sha256"), "misses 'prior_sha256'"),
        (lambda c, t: c.update(provenance=None), "not a whole posterior"),
        (lambda c, t: c.update(prior="mnist"), "not describe a prior"),
        (lambda c, t: c.update(family={"kind": "gaussian"}), "family's description misses 'space'"),
        (lambda c, t: c.update(family={"kind": "gaussian", "space": "latent"}), "unknown family 'gaussian'"),
        (lambda c, t: c.update(kind="painted"), "unknown kind 'painted'"),
        (lambda c, t: c.update(batch=7), "tells of 7 observations, y has 3"),
        (lambda c, t: t.pop("family.map.bijections.1.shift"), "family's weights do not fit"),
        (lambda c, t: _set(t, "family.map.bijections.1.shift", torch.zeros(3).double()), "family's weights do not fit"),
        (lambda c, t: t["family.map.bijections.1.shift"].fill_(math.nan), "family's weights hold NaN"),
        (lambda c, t: t["prior.bijection.mean"].fill_(math.nan), "weights hold NaN"),
        (lambda c, t: t["y"].fill_(math.nan), "y has .* NaN"),
        (lambda c, t: c.update(format="flowinv-prior"), "expected 'flowinv-posterior'"),
    ],
)
def test_files_that_are_not_whole_are_refused_in_one_line(
    exact: Exact, tmp_path: Path, change: Callable[[dict, dict], None], message: str
) -> None:
    exact.posterior().save(tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(ValueError, match=message) as error:
        Posterior.load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_prior_that_changed_meanwhile_is_not_saved(tmp_path: Path) -> None:
    exact = Exact((6,))
    posterior = exact.posterior()
    exact.prior.bijection.mean += 1
    with pytest.raises(ValueError, match="prior has changed since the problem was solved"):
        posterior.save(tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_a_prior_that_is_code_is_not_saved(tmp_path: Path) -> None:
    prior = Flow(Quantile(torch.distributions.Normal(torch.zeros(6), 1.0)), (6,))
    exact = Exact((6,))
    exact.problem = InverseProblem(prior, Identity(), Gaussian(0.1), torch.zeros(1, 6))
    with pytest.raises(TypeError, match="Quantile bijection without an architecture cannot be rebuilt"):
        exact.posterior().save(tmp_path / "p")
    assert not (tmp_path / "p").exists()


# -- what it says of itself --------------------------------------------------------------------------


def test_the_repr_explains_itself(exact: Exact) -> None:
    posterior = exact.posterior()
    assert "ELBO" not in repr(posterior)
    posterior.measure_elbo(16, seeded())
    text = repr(posterior)
    assert "Posterior of 3 observations, draws of shape (1, 3, 4)" in text
    assert "Mask" in text and "Gaussian(sigma=0.1)" in text and posterior.provenance["prior"][:12] in text
    assert f"{exact.log_evidence[0]:.1f} +- 0.0" in text and ".sample(n, generator)" in text
