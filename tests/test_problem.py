"""The inverse problem against closed forms with an affine prior, and finite differences."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from flowinv.flows import Affine, Chain, Flow, Quantile
from flowinv.flows.layers.actnorm import ActNorm
from flowinv.likelihoods import CustomLikelihood, Distance, Gaussian, Laplace, Poisson
from flowinv.operators import FunctionOperator, Identity, Mask, MatrixOperator
from flowinv.priors import load_prior
from flowinv.problem import InverseProblem
from flowinv.tasks import task

SHAPE, B, S = (1, 2, 3), 2, 5


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def affine_prior(dtype=torch.float64, support=(-math.inf, math.inf)):
    root = normal(6, 6, seed=1)
    covariance = root @ root.T + torch.eye(6, dtype=torch.float64)
    bijection = Affine.from_covariance(normal(*SHAPE, seed=2).to(dtype), covariance.to(dtype))
    return Flow(bijection, SHAPE, support=support)


def linear_problem(sigma=0.3):
    matrix = normal(4, 6, seed=3)
    y = normal(B, 4, seed=4)
    return InverseProblem(affine_prior(), MatrixOperator(matrix), Gaussian(sigma), y), matrix, y


def test_every_density_against_torch_distributions():
    problem, matrix, y = linear_problem()
    affine = affine_prior().bijection
    z = normal(S, B, *SHAPE, seed=5)
    x = problem.decode(z)
    assert x.shape == z.shape
    torch.testing.assert_close(x.flatten(2), z.flatten(2) @ affine.cholesky.T + affine.mean.flatten())
    prior = MultivariateNormal(affine.mean.flatten(), scale_tril=affine.cholesky).log_prob(x.flatten(2))
    likelihood = Normal(x.flatten(2) @ matrix.T, 0.3).log_prob(y).sum(-1)
    base = Normal(0.0, 1.0).log_prob(z).flatten(2).sum(-1)
    torch.testing.assert_close(problem.log_prior(x), prior)
    torch.testing.assert_close(problem.log_likelihood(x), likelihood)
    torch.testing.assert_close(problem.log_joint(x), prior + likelihood)
    torch.testing.assert_close(problem.potential(z), -base - likelihood)
    assert problem.potential(z).shape == (S, B) and problem.potential(z[0]).shape == (B,)
    torch.testing.assert_close(problem.potential(z.reshape(5, 1, B, *SHAPE)), problem.potential(z)[:, None])


def test_potential_differs_from_the_closed_form_posterior_by_the_log_evidence():
    problem, matrix, y = linear_problem()
    affine = affine_prior().bijection
    mean, covariance = affine.mean.flatten(), affine.cholesky @ affine.cholesky.T
    evidence = MultivariateNormal(matrix @ mean, matrix @ covariance @ matrix.T + 0.09 * torch.eye(4).double())
    root = matrix @ affine.cholesky
    precision = torch.eye(6).double() + root.T @ root / 0.09
    z = normal(S, B, *SHAPE, seed=6)
    centre = torch.linalg.solve(precision, root.T @ (y - matrix @ mean).T / 0.09).T
    posterior = MultivariateNormal(centre, precision_matrix=precision)
    expected = -posterior.log_prob(z.flatten(2)) - evidence.log_prob(y)
    torch.testing.assert_close(problem.potential(z), expected)


@pytest.mark.parametrize(
    ("operator", "likelihood", "y"),
    [
        (MatrixOperator(normal(4, 6, seed=3)), Gaussian(0.3), normal(B, 4)),
        (Mask(torch.tensor([[1, 0, 1], [0, 1, 1]])), Laplace(0.3), normal(B, *SHAPE)),
        (FunctionOperator(lambda x: x.exp()), Poisson(0.5, background=0.2), torch.full((B, *SHAPE), 1.5).double()),
        (
            FunctionOperator(lambda x: (x * torch.arange(1.0, 3).view(2, 1, 1, 1)).sin(), per_observation=True),
            Gaussian(0.3),
            normal(B, *SHAPE),
        ),
        (Identity(), CustomLikelihood(lambda y, p: -(y - p).pow(4).flatten(-3).sum(-1)), normal(B, *SHAPE)),
    ],
    ids=["matrix", "mask", "poisson", "per observation", "custom"],
)
def test_gradient_of_the_potential_against_finite_differences(operator, likelihood, y):
    problem = InverseProblem(affine_prior(), operator, likelihood, y)
    z = (0.3 * normal(2, B, *SHAPE, seed=7)).requires_grad_()
    assert torch.autograd.gradcheck(problem.potential, (z,))


def test_unobserved_elements_do_not_matter():
    mask = torch.tensor([[1, 0, 1], [0, 1, 1]])
    y = normal(B, *SHAPE)
    damaged = torch.where(mask.bool(), y, torch.full_like(y, float("nan")))
    problem = InverseProblem(affine_prior(), Mask(mask), Gaussian(0.3), damaged)
    assert torch.equal(problem.y, y * mask)
    z = normal(S, B, *SHAPE, seed=8)
    x = problem.decode(z)
    expected = (Normal(x, 0.3).log_prob(y) * mask).flatten(2).sum(-1)
    torch.testing.assert_close(problem.log_likelihood(x), expected)


def test_any_bijection_from_the_normal_is_a_prior():
    law = torch.distributions.Laplace(torch.tensor(0.0).double(), torch.tensor(1.0).double())
    problem = InverseProblem(Flow(Quantile(law), (4,)), lambda x: x, Gaussian(0.5), normal(3, 4))
    z = normal(S, 3, 4, seed=9)
    x = law.icdf(torch.special.ndtr(z))
    torch.testing.assert_close(problem.decode(z), x)
    torch.testing.assert_close(problem.log_prior(x), law.log_prob(x).sum(-1))
    assert problem.y.dtype == torch.float64


def test_prior_is_copied_frozen_and_fingerprinted_as_given():
    actnorm = ActNorm(1)
    prior = Flow(Chain([actnorm]), SHAPE)
    actnorm.log_scale.data.fill_(0.2)
    actnorm.initialized.fill_(True) if hasattr(actnorm, "initialized") else None
    fingerprint = prior.fingerprint()
    problem = InverseProblem(prior, Identity(), Gaussian(0.3), normal(B, *SHAPE))
    assert problem.prior_fingerprint == fingerprint == prior.fingerprint()
    assert not any(p.requires_grad for p in problem.prior.parameters())
    assert any(p.requires_grad for p in prior.parameters())
    problem.potential(normal(B, *SHAPE, dtype=torch.float32).requires_grad_()).sum().backward()
    assert all(p.grad is None for p in prior.parameters())


def test_caller_keeps_its_measurement_and_precision_follows_the_prior():
    y = normal(B, *SHAPE)
    kept = y.clone()
    problem = InverseProblem(affine_prior(torch.float32), Mask(torch.tensor([1, 0, 1])), Gaussian(0.3), y)
    assert torch.equal(y, kept) and problem.y.dtype == torch.float32
    y.fill_(0)
    assert problem.y.abs().sum() > 0
    assert problem.potential(normal(B, *SHAPE, dtype=torch.float32)).dtype == torch.float32


def test_from_task_and_repr():
    made = task("inpaint-top", SHAPE, sigma=0.2)
    y = made.observe(torch.rand(B, *SHAPE), torch.Generator().manual_seed(0))
    problem = InverseProblem.from_task(affine_prior(torch.float32), made, y)
    assert problem.batch == B and problem.shape == SHAPE and problem.normalised
    assert "sigma=0.2" in repr(problem) and "observations=2" in repr(problem)
    with pytest.warns(UserWarning):
        distance = Distance(lambda a, b: (a - b).abs().flatten(1).sum(1), 2.0)
    generalised = InverseProblem(affine_prior(torch.float32), Identity(), distance, torch.rand(B, *SHAPE))
    assert not generalised.normalised and "unnormalised" in repr(generalised)


NOISE = torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("operator", "likelihood", "y", "message"),
    [
        (Identity(), Gaussian(0.3), normal(*SHAPE), r"y must have shape \(B, 1, 2, 3\), got \(1, 2, 3\).*y\[None\]"),
        (Identity(), Gaussian(0.3), normal(B, 2, 2, 3), r"\(B, 1, 2, 3\), got \(2, 2, 2, 3\)"),
        (Identity(), Gaussian(0.3), normal(B, *SHAPE).int(), "int32"),
        (Identity(), Gaussian(0.3), [1.0], "list"),
        (Identity(), Gaussian(0.3), torch.ones(0, *SHAPE), "at least one observation"),
        (Identity(), Gaussian(0.3), torch.tensor(1.0), "at least one observation"),
        (Identity(), Gaussian(0.3), torch.full((B, *SHAPE), float("nan")), "12 observed values"),
        (Identity(), Gaussian(0.3), torch.full((B, *SHAPE), float("inf")), "12 observed values"),
        (Identity(), Gaussian(torch.ones(7)), normal(B, *SHAPE), "does not broadcast"),
        (Identity(), Poisson(1.0), torch.full((B, *SHAPE), 0.5), "Poisson measurements"),
        (Identity(), None, normal(B, *SHAPE), "needs a likelihood"),
        (Identity(), lambda y, p: 0, normal(B, *SHAPE), r"CustomLikelihood\(fn\)"),
        (3, Gaussian(0.3), normal(B, *SHAPE), "callable"),
        (Mask(torch.ones(3, 2, 3)), Gaussian(0.3), normal(B, *SHAPE), "does not fit"),
        (Mask(torch.ones(3, 1, 2, 3)), Gaussian(0.3), normal(B, *SHAPE), "does not fit"),
        (MatrixOperator(torch.ones(2, 5)), Gaussian(0.3), normal(B, 2), "expected 5"),
        (lambda x: x + torch.randn(x.shape, generator=NOISE), Gaussian(0.3), normal(B, *SHAPE), "two results"),
        (lambda x: x * torch.arange(2.0).view(2, 1, 1, 1), Gaussian(0.3), normal(B, *SHAPE), "per_observation=True"),
        (lambda x: x - x.mean(0, keepdim=True) + 1, Gaussian(0.3), normal(B, *SHAPE), "differently among several"),
        (FunctionOperator(lambda x: x, observed=torch.ones(5)), Gaussian(0.3), normal(B, *SHAPE), "do not fit y"),
    ],
)
def test_bad_input_is_refused_in_one_line(operator, likelihood, y, message):
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        InverseProblem(affine_prior(), operator, likelihood, y)
    assert "\n" not in str(caught.value)


def test_a_function_that_mixes_images_is_seen_where_the_prior_is_flat_around_the_origin():
    with pytest.raises(ValueError, match="differently among several"):
        InverseProblem(
            load_prior("mnist"), lambda x: x - x.mean(0, keepdim=True), Gaussian(0.1), torch.zeros(1, 1, 28, 28)
        )


def test_measurement_in_bytes_is_refused_for_a_prior_on_the_unit_interval():
    unit = affine_prior(support=(0.0, 1.0))
    with pytest.raises(ValueError, match=r"the prior's images lie in \[0, 1\]"):
        InverseProblem(unit, Identity(), Gaussian(0.1), torch.full((B, *SHAPE), 255.0))
    InverseProblem(unit, Identity(), Gaussian(0.1), torch.full((B, *SHAPE), 1.3))
    InverseProblem(unit, MatrixOperator(torch.ones(2, 6)), Gaussian(0.1), torch.full((B, 2), 255.0))


def test_a_bare_bijection_is_refused_with_the_cure():
    with pytest.raises(TypeError, match=r"Flow\(bijection, shape\)"):
        InverseProblem(affine_prior().bijection, Identity(), Gaussian(0.1), normal(B, *SHAPE))


@pytest.mark.parametrize("name", ["decode", "potential", "log_prior", "log_likelihood", "log_joint"])
def test_wrong_batches_never_broadcast(name):
    problem, _, _ = linear_problem()
    for wrong in (normal(1, *SHAPE), normal(S, 3, *SHAPE), normal(B, 1, 3, 2), normal(3)):
        with pytest.raises(ValueError, match=r"must have shape \(..., 2, 1, 2, 3\)"):
            getattr(problem, name)(wrong)
