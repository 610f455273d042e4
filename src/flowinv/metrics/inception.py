"""Score of a set of images by how sure and how varied a classifier's answers are."""

from __future__ import annotations

import torch
from torch import Tensor

from .shapes import check_images


def inception_type_score(probabilities: Tensor, splits: int = 10) -> tuple[float, float]:
    r"""Mean and standard deviation over splits of exp E_x KL(p(k | x) || p(k)), from class probabilities (N, K).

    .. math:: \exp \frac1n \sum_x \sum_k p(k|x) \log \frac{p(k|x)}{p(k)}, \qquad p(k) = \frac1n \sum_x p(k|x)

    Between 1 and K, dimensionless; higher: each image sure of its class, and all classes equally frequent. It is blind
    to how images of one class vary and to the data that they should resemble. The N images are cut into ``splits``
    consecutive parts, so shuffle what is sorted by class. The standard deviation has divisor ``splits`` - 1, and is NaN
    for one split. With the probabilities of a classifier other than Inception v3 this is *not* the inception score of
    Salimans et al. (2016), and not to be compared with it.
    """
    check_images(probabilities, "probabilities")
    if probabilities.dim() != 2 or not probabilities.shape[1]:
        raise ValueError(f"probabilities must have shape (N, K), got {tuple(probabilities.shape)}")
    if isinstance(splits, bool) or not isinstance(splits, int) or not 1 <= splits <= len(probabilities):
        raise ValueError(f"splits must be a whole number from 1 to the {len(probabilities)} images, got {splits!r}")
    p = probabilities.double()
    if not ((p >= 0).all() and torch.allclose(p.sum(1), torch.ones(len(p), dtype=p.dtype, device=p.device), atol=1e-3)):
        raise ValueError("probabilities must be non-negative and sum to 1 over the classes of each image")
    scores = []
    for part in p.tensor_split(splits):
        marginal = part.mean(0, keepdim=True)
        scores.append((torch.special.xlogy(part, part) - torch.special.xlogy(part, marginal)).sum(1).mean().exp())
    found = torch.stack(scores)
    return float(found.mean()), float(found.std()) if splits > 1 else float("nan")
