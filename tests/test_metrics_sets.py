"""Distances and scores of sets: closed forms, scipy's matrix root, hand-counted pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from flowinv import metrics


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def covariance(d: int, seed: int, rank: int | None = None) -> Tensor:
    factor = normal(d, rank or d, seed=seed)
    return factor @ factor.T


# -- Fréchet ---------------------------------------------------------------------------------------------------------


def test_frechet_of_commuting_gaussians() -> None:
    rotation = torch.linalg.qr(normal(5, 5)).Q
    a, b = (torch.tensor(v, dtype=torch.float64) for v in ([4.0, 1.0, 9.0, 0.0, 0.25], [1.0, 1.0, 4.0, 16.0, 0.0]))
    mean_a, mean_b = normal(5, seed=1), normal(5, seed=2)
    wanted = (mean_a - mean_b).square().sum() + (a.sqrt() - b.sqrt()).square().sum()
    turned = [rotation * v @ rotation.T for v in (a, b)]
    found = metrics.frechet_of_statistics(mean_a, turned[0], mean_b, turned[1])
    assert found == pytest.approx(float(wanted), rel=1e-10)
    without_cross_term = (mean_a - mean_b).square().sum() + a.sum() + b.sum()
    assert abs(found - float(without_cross_term)) > 1


def test_frechet_against_scipy_where_covariances_do_not_commute() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    a, b, mean = covariance(7, 0), covariance(7, 1), normal(7, seed=2)
    root = linalg.sqrtm((a @ b).numpy())
    wanted = float(mean.square().sum() + a.trace() + b.trace()) - 2 * np.trace(root).real
    assert metrics.frechet_of_statistics(torch.zeros(7, dtype=torch.float64), a, mean, b) == pytest.approx(
        wanted, rel=1e-9
    )
    wrong = wanted + 2 * np.trace(root).real - 2 * float((a.diag() * b.diag()).sqrt().sum())
    assert wrong != pytest.approx(wanted, rel=1e-2)  # what the diagonals alone would say


def test_frechet_of_singular_covariances() -> None:
    a = covariance(20, 0, rank=3)
    zero = torch.zeros(20, dtype=torch.float64)
    assert metrics.frechet_of_statistics(zero, a, zero, a) < 1e-6 * float(a.trace())
    assert metrics.frechet_of_statistics(zero, a, zero, 4 * a) == pytest.approx(float(a.trace()), rel=1e-6)
    scale = 1e-12  # and of features of any size
    assert metrics.frechet_of_statistics(zero, scale * a, zero, 4 * scale * a) == pytest.approx(
        scale * float(a.trace()), rel=1e-6
    )


def test_frechet_of_samples_is_that_of_their_moments_and_symmetric() -> None:
    a, b = normal(300, 4), 2 * normal(200, 4, seed=1) + 1
    moments = [torch.from_numpy(f(v.numpy())) for v in (a, b) for f in (lambda v: v.mean(0), lambda v: np.cov(v.T))]
    found = metrics.frechet_distance(a, b)
    assert found == pytest.approx(metrics.frechet_of_statistics(*moments), rel=1e-10)
    assert found == pytest.approx(metrics.frechet_distance(b, a), rel=1e-10)
    assert metrics.frechet_distance(a, a) < 1e-8
    assert metrics.frechet_distance(a.float(), b.float()) == pytest.approx(found, rel=1e-4)


def test_frechet_estimate_tells_a_shift_and_shrinks_with_the_sample() -> None:
    """The exact distance of N(0, I_4) and N(m, I_4) is |m|^2; of equal ones 0, estimated a little too high."""
    few, many = (metrics.frechet_distance(normal(n, 4), normal(n, 4, seed=1)) for n in (100, 20_000))
    assert 0 < many < 2e-3 < few
    shifted = metrics.frechet_distance(normal(20_000, 4), normal(20_000, 4, seed=1) + 0.5)
    assert shifted == pytest.approx(1.0, abs=0.05)
    assert abs(many - 1.0) > 0.05  # a distance blind to means


def test_frechet_refuses_too_few_samples_and_what_is_no_statistic() -> None:
    with pytest.raises(ValueError, match="covariance of 8 features needs more than 8 samples, got 8"):
        metrics.frechet_distance(normal(8, 8), normal(30, 8))
    with pytest.raises(ValueError, match="as many features, got 3 and 4"):
        metrics.frechet_distance(normal(30, 3), normal(30, 4))
    with pytest.raises(ValueError, match=r"\(N, D\)"):
        metrics.frechet_distance(normal(30), normal(30))
    broken = normal(30, 3)
    broken[4, 1] = math.nan
    with pytest.raises(ValueError, match="1 values that are NaN"):
        metrics.frechet_distance(broken, normal(30, 3))
    zero, eye = torch.zeros(2), torch.eye(2)
    with pytest.raises(ValueError, match="covariance_b must be symmetric"):
        metrics.frechet_of_statistics(zero, eye, zero, torch.tensor([[1.0, 0.5], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="covariance_a must have no negative eigenvalue, got -1"):
        metrics.frechet_of_statistics(zero, torch.diag(torch.tensor([1.0, -1.0])), zero, eye)
    with pytest.raises(ValueError, match=r"\(3,\) and \(2, 2\)"):
        metrics.frechet_of_statistics(torch.zeros(3), eye, zero, eye)


def test_features_of_flattens_draws_and_keeps_no_graph() -> None:
    x = normal(3, 2, 1, 4, 4).requires_grad_()
    found = metrics.features_of(lambda v: v.flatten(1), x, chunk=4)
    assert not found.requires_grad and torch.equal(found, x.detach().reshape(6, 16))
    with pytest.raises(ValueError, match=r"\(4, 4\)"):
        metrics.features_of(lambda v: v, normal(4, 4))


# -- inception-type score --------------------------------------------------------------------------------------------


def test_inception_type_score_in_closed_form() -> None:
    sure = torch.eye(5).repeat(4, 1)
    mean, std = metrics.inception_type_score(sure, splits=2)
    assert mean == pytest.approx(5) and std == pytest.approx(0, abs=1e-12)
    assert metrics.inception_type_score(torch.full((8, 5), 0.2), splits=2)[0] == pytest.approx(1)
    assert metrics.inception_type_score(sure[:1].expand(8, -1), splits=1)[0] == pytest.approx(1)  # one class alone
    p = 0.9
    two = torch.tensor([[p, 1 - p], [1 - p, p]], dtype=torch.float64)
    wanted = 2 * math.exp(p * math.log(p) + (1 - p) * math.log(1 - p))
    assert metrics.inception_type_score(two, splits=1)[0] == pytest.approx(wanted)
    reversed_kl = math.exp(0.5 * math.log(0.5 / p) + 0.5 * math.log(0.5 / (1 - p)))
    assert wanted != pytest.approx(reversed_kl, rel=1e-2)


def test_inception_type_score_over_splits() -> None:
    halves = torch.cat([torch.eye(4), torch.eye(4)[[0, 0, 1, 1]]])
    mean, std = metrics.inception_type_score(halves, splits=2)
    assert mean == pytest.approx(3) and std == pytest.approx(math.sqrt(2))  # 4 and 2
    assert math.isnan(metrics.inception_type_score(halves, splits=1)[1])
    for splits in (0, 9, 2.0):
        with pytest.raises(ValueError, match="splits"):
            metrics.inception_type_score(halves, splits=splits)  # type: ignore[arg-type]
    for wrong in (2 * halves, halves - 0.25, torch.zeros(4, 2)):
        with pytest.raises(ValueError, match="sum to 1"):
            metrics.inception_type_score(wrong, splits=1)
    with pytest.raises(ValueError, match=r"\(3,\)"):
        metrics.inception_type_score(torch.ones(3), splits=1)


# -- diversity -------------------------------------------------------------------------------------------------------


def absolute(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs().flatten(1).mean(1)


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_pairwise_diversity_by_hand(chunk: int) -> None:
    draws = torch.tensor([0.0, 1.0, 3.0]).view(3, 1, 1, 1, 1) * torch.tensor([1.0, 10.0]).view(1, 2, 1, 1, 1).expand(
        1, 2, 1, 2, 2
    )
    found = metrics.pairwise_diversity(draws, absolute, chunk=chunk)  # pairs 1, 3, 2
    torch.testing.assert_close(found.mean, torch.tensor([2.0, 20.0]))
    torch.testing.assert_close(found.std, torch.tensor([1.0, 10.0]))
    assert found.pairs == 3
    with_itself = torch.stack([absolute(a, b) for a in draws for b in draws]).mean(0)
    assert (with_itself - found.mean).abs().min() > 0.5


def test_diversity_of_few_and_of_equal_draws() -> None:
    two = metrics.pairwise_diversity(torch.zeros(2, 1, 1, 3, 3), absolute)
    assert two.mean.tolist() == [0] and two.std.isnan().all()
    with pytest.raises(ValueError, match=r"at least 2 draws S, got \(1, 2, 4\)"):
        metrics.pairwise_diversity(torch.zeros(1, 2, 4), absolute)
    with pytest.raises(ValueError, match=r"must have shape \(4,\), got \(\)"):
        metrics.pairwise_diversity(torch.zeros(2, 4, 3), lambda a, b: (a - b).sum())


def test_distance_to_truth_asks_draw_by_draw() -> None:
    truth, draws = normal(2, 1, 3, 3), normal(4, 5, 2, 1, 3, 3, seed=1)
    wanted = (draws - truth).abs().flatten(3).mean(3)
    torch.testing.assert_close(metrics.distance_to_truth(absolute, draws, truth, chunk=3), wanted)
    with pytest.raises(ValueError, match=r"\(2, 1, 3, 3\).*\(1, 1, 3, 3\)"):
        metrics.distance_to_truth(absolute, draws[0, 0, :1], truth)
    order: list[Tensor] = []
    metrics.distance_to_truth(lambda a, b: (order.append(a), absolute(a, b))[1], draws[0, 0], truth)
    torch.testing.assert_close(order[0], truth)  # as flowinv.Distance calls it: the observation first
