"""Fréchet distance between two sets of features, by the Gaussians that have their means and covariances."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .shapes import check_images


def features_of(network: Callable[[Tensor], Tensor], images: Tensor, chunk: int = 256) -> Tensor:
    r"""``network`` applied to images (..., C, H, W), draws and observations flattened: (N, D), without gradient."""
    check_images(images, "images")
    if images.dim() < 4:
        raise ValueError(f"images must have shape (..., N, C, H, W), got {tuple(images.shape)}")
    with torch.no_grad():
        return torch.cat([network(part) for part in images.reshape(-1, *images.shape[-3:]).split(chunk)])


def statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D), divisor N - 1, of features (N, D), in float64.

    ValueError where N <= D: such a covariance has no full rank, and a Fréchet distance taken with it says more about N
    than about the images. Take more images, or features of fewer dimensions.
    """
    check_images(features, "features")
    if features.dim() != 2:
        raise ValueError(f"features must have shape (N, D), got {tuple(features.shape)}")
    n, d = features.shape
    if n <= d:
        raise ValueError(f"a covariance of {d} features needs more than {d} samples, got {n}")
    if not torch.isfinite(features).all():
        raise ValueError(f"features hold {int((~torch.isfinite(features)).sum())} values that are NaN or infinite")
    wide = features.double()
    mean = wide.mean(0)
    centred = wide - mean
    return mean, centred.T @ centred / (n - 1)


def _factor(covariance: Tensor, name: str) -> Tensor:
    """F with F F^T = covariance; directions with no variance, where rounding may leave a little below 0, are kept at 0."""
    if not torch.allclose(covariance, covariance.T, rtol=1e-6, atol=1e-6 * float(covariance.abs().max())):
        raise ValueError(f"{name} must be symmetric")
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    if values[0] < -1e-6 * values[-1].abs():
        raise ValueError(f"{name} must have no negative eigenvalue, got {float(values[0]):.3g}")
    return vectors * values.clamp_min(0).sqrt()


def frechet_of_statistics(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> float:
    r"""Squared Fréchet (2-Wasserstein) distance of two Gaussians with means (D,) and covariances (D, D).

    .. math:: \|m_a - m_b\|^2 + \mathrm{tr}\,\Sigma_a + \mathrm{tr}\,\Sigma_b - 2\,\mathrm{tr}(\Sigma_a \Sigma_b)^{1/2}

    (Dowson and Landau, 1982; the form used by Heusel et al., 2017). In squared units of the features; lower is closer,
    0 for equal statistics. With F F^T = Sigma the last trace is the sum of the singular values of F_a^T F_b: no square
    root of a product that is not symmetric, nothing complex, and singular covariances are no trouble. In float64.
    """
    means, covariances = [], []
    for name, mean, covariance in (("a", mean_a, covariance_a), ("b", mean_b, covariance_b)):
        check_images(mean, f"mean_{name}")
        check_images(covariance, f"covariance_{name}")
        d = mean.numel()
        if mean.dim() != 1 or covariance.shape != (d, d):
            raise ValueError(
                f"a mean (D,) and a covariance (D, D) are needed, got {tuple(mean.shape)} and {tuple(covariance.shape)}"
            )
        if not (torch.isfinite(mean).all() and torch.isfinite(covariance).all()):
            raise ValueError(f"mean_{name} and covariance_{name} must be finite")
        means.append(mean.double())
        covariances.append(covariance.double())
    if mean_a.shape != mean_b.shape:
        raise ValueError(f"both sets must have as many features, got {mean_a.numel()} and {mean_b.numel()}")
    factor_a, factor_b = (_factor(c, f"covariance_{name}") for c, name in zip(covariances, "ab", strict=True))
    shared = torch.linalg.svdvals(factor_a.T @ factor_b).sum()
    value = (means[0] - means[1]).square().sum() + covariances[0].trace() + covariances[1].trace() - 2 * shared
    return max(0.0, float(value))


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Squared Fréchet distance between the Gaussians fitted to features (N, D) and (M, D); lower is closer.

    In squared units of the features. Estimated from finitely many samples it is too high, by an amount that shrinks
    like 1 / N and differs between networks and data: compare only values from the same network and the same N and M.
    Refused (ValueError) where N <= D or M <= D. With the features of ``DigitClassifier`` or ``SqueezeNetFeatures`` it
    is *not* the Fréchet inception distance; for that see ``frechet_inception_distance``.
    """
    return frechet_of_statistics(*statistics(features_a), *statistics(features_b))
