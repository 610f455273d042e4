"""Likelihoods against torch.distributions and SciPy-free goodness-of-fit tests of their draws."""

import json
import math

import pytest
import torch
import torch.distributions as D

from flowinv.likelihoods import (
    CustomLikelihood,
    Distance,
    Gaussian,
    Laplace,
    Poisson,
    likelihood_from_spec,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


S, B, M = 4, 3, (2, 5)
PREDICTION = torch.rand(S, B, *M, generator=generator(1), dtype=torch.float64) + 0.2
Y = torch.rand(B, *M, generator=generator(2), dtype=torch.float64)
OBSERVED = torch.rand(B, *M, generator=generator(3)) > 0.4
PER_ELEMENT = torch.rand(B, *M, generator=generator(4), dtype=torch.float64) + 0.1
PER_MEASUREMENT = torch.rand(M[1], generator=generator(5), dtype=torch.float64) + 0.1


@pytest.mark.parametrize("scale", [0.3, PER_ELEMENT, PER_MEASUREMENT], ids=["scalar", "element", "measurement"])
@pytest.mark.parametrize("observed", [None, OBSERVED, OBSERVED[:1]], ids=["all", "each", "one"])
@pytest.mark.parametrize(("ours", "theirs"), [(Gaussian, D.Normal), (Laplace, D.Laplace)])
def test_continuous_densities(ours, theirs, scale, observed):
    terms = theirs(
        PREDICTION, scale if isinstance(scale, torch.Tensor) else torch.tensor(scale, dtype=torch.float64)
    ).log_prob(Y)
    expected = (terms if observed is None else terms * observed).sum((-1, -2))
    found = ours(scale).log_prob(Y, PREDICTION, observed)
    assert found.shape == (S, B)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(ours(scale).log_prob(Y, PREDICTION[0], observed), expected[0])


@pytest.mark.parametrize("gain", [0.25, PER_ELEMENT])
@pytest.mark.parametrize("observed", [None, OBSERVED])
def test_poisson_with_gain(gain, observed):
    k = torch.poisson(3 * torch.ones(B, *M, dtype=torch.float64), generator=generator(6))
    terms = D.Poisson(PREDICTION / gain).log_prob(k)
    expected = (terms if observed is None else terms * observed).sum((-1, -2))
    torch.testing.assert_close(Poisson(gain).log_prob(gain * k, PREDICTION, observed), expected)
    torch.testing.assert_close(Poisson(gain, counts=True).log_prob(k, PREDICTION, observed), expected)
    with_background = D.Poisson((PREDICTION + 0.5) / gain).log_prob(k).sum((-1, -2))
    torch.testing.assert_close(Poisson(gain, background=0.5).log_prob(gain * k, PREDICTION), with_background)


def test_poisson_sums_to_one_over_counts():
    k = torch.arange(200, dtype=torch.float64)[:, None]
    total = Poisson(0.1).log_prob(0.1 * k, torch.full_like(k, 1.7)).exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-12)


def test_poisson_at_zero_rate():
    zero = torch.zeros(2, 1, dtype=torch.float64, requires_grad=True)
    value = Poisson(1.0).log_prob(torch.tensor([[0.0], [1.0]], dtype=torch.float64), zero)
    assert value.tolist() == [0.0, -math.inf]
    (gradient,) = torch.autograd.grad(value[0], zero)
    assert torch.isfinite(gradient).all()
    negative = torch.tensor([[-0.2]], dtype=torch.float64)
    assert torch.isfinite(Poisson(1.0, background=0.1).log_prob(torch.ones_like(negative), negative)).all()


@pytest.mark.parametrize("likelihood", [Gaussian(0.3), Laplace(0.3), Poisson(0.5)], ids=repr)
def test_unobserved_elements_touch_neither_value_nor_gradient(likelihood):
    y = (0.5 * torch.ones(1, 3, dtype=torch.float64)).clone()
    prediction = torch.tensor([[0.7, 0.4, 0.0]], dtype=torch.float64, requires_grad=True)
    observed = torch.tensor([[True, True, False]])
    y[0, 2] = float("nan")
    value = likelihood.log_prob(y, prediction, observed)
    torch.testing.assert_close(value, likelihood.log_prob(y[:, :2], prediction[:, :2]))
    (gradient,) = torch.autograd.grad(value.sum(), prediction)
    assert torch.isfinite(gradient).all() and gradient[0, 2] == 0


@pytest.mark.parametrize("likelihood", [Gaussian(PER_ELEMENT), Laplace(0.3), Poisson(0.25)], ids=repr)
def test_gradients_against_finite_differences(likelihood):
    y = 0.25 * torch.poisson(3 * torch.ones(B, *M, dtype=torch.float64), generator=generator(7)) + 0.0
    prediction = PREDICTION.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: likelihood.log_prob(y, p, OBSERVED), (prediction,))


def chi_square_of_fit(draws, cdf, bins=20):
    """Pearson's statistic of draws over bins of equal probability: about bins - 1, sd sqrt(2 (bins - 1))."""
    counts = torch.histc(cdf(draws), bins=bins, min=0, max=1)
    expected = len(draws) / bins
    return ((counts - expected).square() / expected).sum().item()


LIMIT = 19 + 5 * math.sqrt(38)


@pytest.mark.parametrize(
    ("likelihood", "law"),
    [(Gaussian(0.3), D.Normal(1.0, 0.3)), (Laplace(0.3), D.Laplace(1.0, 0.3))],
    ids=["gaussian", "laplace"],
)
def test_draws_follow_the_law_and_broken_ones_do_not(likelihood, law):
    draws = likelihood.sample(torch.ones(20_000, dtype=torch.float64), generator())
    assert chi_square_of_fit(draws, law.cdf) < LIMIT
    assert chi_square_of_fit(1 + (draws - 1) * 1.05, law.cdf) > LIMIT  # a scale 5 % too large
    other = D.Laplace(1.0, 0.3 / math.sqrt(2)) if isinstance(law, D.Normal) else D.Normal(1.0, 0.3 * math.sqrt(2))
    assert chi_square_of_fit(draws, other.cdf) > LIMIT  # the right variance, another law


def poisson_fit(counts, rate):
    k = torch.arange(11, dtype=torch.float64)
    p = D.Poisson(torch.tensor(rate, dtype=torch.float64)).log_prob(k).exp()
    p = torch.cat([p, 1 - p.sum(0, keepdim=True)])
    found = torch.bincount(counts.round().long().clamp_max(11), minlength=12).double()
    expected = p * len(counts)
    return ((found - expected).square() / expected).sum().item()


def test_poisson_draws():
    limit = 11 + 5 * math.sqrt(22)
    prediction = torch.full((20_000,), 1.0, dtype=torch.float64)
    y = Poisson(0.25).sample(prediction, generator())
    assert poisson_fit(y / 0.25, 4.0) < limit
    assert poisson_fit(torch.poisson(prediction * 4.2, generator=generator()), 4.0) > limit  # a gain 5 % off
    dark = Poisson(0.25, background=0.5, counts=True).sample(prediction, generator())
    assert poisson_fit(dark, 6.0) < limit
    assert poisson_fit(dark, 4.0) > limit


def test_draws_repeat_with_the_seed_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    for likelihood in (Gaussian(0.3), Laplace(0.3), Poisson(0.5)):
        a, b, c = (likelihood.sample(PREDICTION, generator(s)) for s in (5, 5, 6))
        assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("likelihood", [Gaussian(PER_ELEMENT), Laplace(0.2), Poisson(0.25, background=0.3)], ids=repr)
def test_chi_squared_is_one_at_the_truth(likelihood):
    prediction = PREDICTION[0].expand(4_000, B, *M)
    y = likelihood.sample(prediction, generator(8))
    values = torch.stack(
        [likelihood.chi_squared(draw, p, OBSERVED) for draw, p in zip(y[:800], prediction, strict=False)]
    )
    error = values.std(0) / math.sqrt(len(values))
    assert ((values.mean(0) - 1).abs() < 5 * error).all()
    assert not ((1.2 * values.mean(0) - 1).abs() < 5 * error).all()
    mean, std = likelihood.mean(prediction[0]), likelihood.std(prediction[0])
    torch.testing.assert_close(y.mean(0), mean, atol=5 * float(std.max()) / math.sqrt(4_000), rtol=0)


@pytest.mark.parametrize(
    "likelihood",
    [
        Gaussian(PER_ELEMENT),
        Laplace(0.2),
        Laplace(PER_MEASUREMENT),
        Poisson(0.05, background=0.3),
        Poisson(0.05 * PER_ELEMENT, counts=True),
    ],
    ids=repr,
)
def test_fisher_information_is_the_expected_squared_score(likelihood):
    prediction = PREDICTION[0].expand(20_000, B, *M).clone().requires_grad_()
    y = likelihood.sample(prediction.detach(), generator(9))
    (score,) = torch.autograd.grad(likelihood.elementwise(y, prediction).sum(), prediction)
    squares = score.square()
    error = 5 * squares.std(0) / math.sqrt(len(squares)) + 1e-9 * squares.mean(0)
    found = likelihood.fisher(PREDICTION[0]).expand(B, *M)
    assert ((squares.mean(0) - found).abs() < error).all()
    assert not ((1.2 * squares.mean(0) - found).abs() < error).any()


def test_fisher_information_where_there_is_little_or_none():
    prediction = torch.tensor([-0.1, 0.0, 0.1, 0.5], dtype=torch.float64)
    assert Poisson(0.25).fisher(prediction).tolist() == pytest.approx([0, 16, 16, 8])  # a rate below 1 counts as 1
    custom = CustomLikelihood(lambda y, p: p.sum(-1))
    assert custom.fisher(prediction) is None
    custom.std = lambda prediction: 0.5 * torch.ones_like(prediction)  # type: ignore[method-assign]
    assert custom.fisher(prediction).tolist() == [4.0] * 4  # a Gaussian's


def test_chi_squared_by_hand():
    y, prediction = torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[[0.0, 0.0, 0.0]], [[1.0, 1.0, 1.0]]])
    observed = torch.tensor([[True, True, False]])
    assert Gaussian(0.5).chi_squared(y, prediction, observed).tolist() == [[10.0], [2.0]]
    with pytest.raises(TypeError, match="chi-squared"):
        CustomLikelihood(lambda y, p: p.sum(-1)).chi_squared(y, prediction)


def test_custom_likelihood_is_used_as_given():
    def student(y, prediction):
        return D.StudentT(4.0, prediction, 0.2).log_prob(y).sum((-1, -2))

    likelihood = CustomLikelihood(student, sampler=lambda p, g: p)
    torch.testing.assert_close(likelihood.log_prob(Y, PREDICTION), student(Y, PREDICTION))
    assert likelihood.normalised and likelihood.spec is None and "student" in repr(likelihood)
    torch.testing.assert_close(
        likelihood.log_prob(Y, PREDICTION, OBSERVED), student(Y * OBSERVED, PREDICTION * OBSERVED)
    )
    assert likelihood.sample(Y, generator()) is Y
    with pytest.raises(ValueError, match=r"one value per sample, shape \(4, 3\)"):
        CustomLikelihood(lambda y, p: p.sum()).log_prob(Y, PREDICTION)
    with pytest.raises(TypeError, match="sampler"):
        CustomLikelihood(student).sample(Y, generator())


def test_distance_warns_is_unnormalised_and_matches_the_gaussian_up_to_a_constant():
    def squared(a, b):
        assert a.shape == b.shape == (S * B, *M)
        return (a - b).square().flatten(1).sum(1)

    with pytest.warns(UserWarning, match="generalised posterior") as caught:
        distance = Distance(squared, beta=1 / (2 * 0.3**2))
        found = distance.log_prob(Y, PREDICTION)
    assert len(caught) == 1 and not distance.normalised and "unnormalised" in repr(distance)
    difference = found - Gaussian(0.3).log_prob(Y, PREDICTION)
    torch.testing.assert_close(difference, difference[0, 0].expand(S, B))
    torch.testing.assert_close(
        distance.log_prob(Y, PREDICTION, OBSERVED),
        -((Y - PREDICTION).square() * OBSERVED).sum((-1, -2)) / (2 * 0.3**2),
    )


@pytest.mark.parametrize(
    "likelihood", [Gaussian(0.1), Laplace(PER_ELEMENT), Poisson(PER_MEASUREMENT, counts=True, background=0.1)], ids=repr
)
def test_description_rebuilds_the_likelihood(likelihood):
    y = Poisson(PER_MEASUREMENT, counts=True).sample(PREDICTION[0], generator())
    again = likelihood_from_spec(json.loads(json.dumps(likelihood.spec)), likelihood.tensors())
    assert torch.equal(again.log_prob(y, PREDICTION), likelihood.log_prob(y, PREDICTION))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gaussian(0), "positive and finite, got 0"),
        (lambda: Gaussian(-0.1), "-0.1"),
        (lambda: Gaussian(float("nan")), "nan"),
        (lambda: Gaussian(True), "bool"),
        (lambda: Gaussian("big"), "str"),
        (lambda: Gaussian(torch.tensor([0.1, float("nan")])), "positive and finite everywhere"),
        (lambda: Gaussian(torch.tensor([0.1, 0.0])), "positive and finite everywhere"),
        (lambda: Laplace(float("inf")), "inf"),
        (lambda: Poisson(-1.0), "gain"),
        (lambda: Poisson(1.0, background=-1.0), "background"),
        (lambda: Distance(lambda a, b: a, 0.0), "beta"),
        (lambda: Distance(lambda a, b: a, torch.ones(2)), "one number"),
        (lambda: Distance(3, 1.0), "callable"),
        (lambda: CustomLikelihood(3), "callable"),
        (lambda: Gaussian(0.1).log_prob(torch.ones(1, 4), torch.ones(5, 3, 4)), r"\(..., 1, 4\), got \(5, 3, 4\)"),
        (lambda: Gaussian(torch.ones(3)).log_prob(torch.ones(1, 4), torch.ones(1, 4)), "does not broadcast"),
        (lambda: Gaussian(torch.ones(2, 4)).log_prob(torch.ones(1, 4), torch.ones(1, 4)), "does not broadcast"),
        (lambda: Poisson(0.5).check(torch.tensor([[0.5, 0.7]])), "whole multiples of the gain"),
        (lambda: Poisson(0.5).check(torch.tensor([[-0.5]])), "non-negative"),
        (lambda: Poisson(1.0, counts=True).check(torch.tensor([[0.5]])), "whole counts"),
        (lambda: likelihood_from_spec({"kind": "cauchy"}), "gaussian, laplace, poisson"),
        (lambda: likelihood_from_spec({"kind": "gaussian", "sigma": None}), "missing"),
    ],
)
def test_bad_input_is_refused_in_one_line(make, message):
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_sigma_is_copied():
    sigma = torch.ones(2)
    likelihood = Gaussian(sigma)
    sigma[0] = 5
    assert likelihood.sigma.tolist() == [1, 1]


def test_annealed_scales() -> None:
    y, x = torch.zeros(1, 3), torch.ones(1, 3)
    assert torch.allclose(Gaussian(0.2).widened(3.0).log_prob(y, x), Gaussian(0.6).log_prob(y, x))
    assert torch.allclose(Laplace(0.2).widened(3.0).log_prob(y, x), Laplace(0.6).log_prob(y, x))
    with pytest.warns(UserWarning):
        found = Distance(lambda a, b: (a - b).square().sum(1), 9.0)
    assert torch.allclose(found.widened(3.0).log_prob(y, x), torch.tensor([-3.0]))
    for without in (Poisson(1.0), CustomLikelihood(lambda y, p: p.sum(-1))):
        with pytest.raises(TypeError, match="no scale to anneal"):
            without.widened(2.0)


@pytest.mark.filterwarnings("ignore:.*generalised")
def test_a_distance_with_a_name_comes_back_from_its_spec() -> None:
    from flowinv.metrics import DigitDistance

    y, x = (torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    likelihood = Distance(DigitDistance(), 7.0)
    again = likelihood_from_spec(likelihood.spec)
    assert torch.equal(again.log_prob(y, x), likelihood.log_prob(y, x))
    assert Distance(lambda a, b: (a - b).flatten(1).sum(1), 1.0).spec is None
