"""LPIPS, FID and the inception score with the published weights, downloaded by torchmetrics when first used.

All raise ImportError without torchmetrics, and ``WeightsUnavailable`` where the weights cannot be downloaded.
"""

from __future__ import annotations

import http.client
import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .inception import inception_type_score
from .rgb import as_rgb
from .shapes import check_pair

_CHUNK = 64
_NEEDS = "{} needs torchmetrics with its image extra: pip install 'flowinv[metrics]'"
_INCEPTION = "DigitClassifier.shipped() for digits or SqueezeNetFeatures for photographs"


class WeightsUnavailable(RuntimeError):
    """Published weights that cannot be downloaded here; the message names what can be computed without them."""


def _download(make: Callable[[], Any], what: str, counterpart: str) -> Any:
    try:
        return make()
    except ImportError:  # torchmetrics is there, but not torchvision or torch-fidelity
        raise ImportError(_NEEDS.format(what)) from None
    except (OSError, http.client.HTTPException, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsUnavailable(
            f"the weights of {what} cannot be downloaded ({reason}); offline, use {counterpart}"
        ) from None


class LPIPS(nn.Module):
    """The published LPIPS of Zhang et al. (2018): (N,) of two batches (N, C, H, W) in [0, 1].

    ``net`` is "alex" (the usual one for evaluation), "vgg" or "squeeze". 0 for equal images, dimensionless, lower is
    closer. Grey is repeated over the channels; images with a side shorter than ``size`` are enlarged until it has
    ``size`` pixels, which published numbers for small images may have done differently: say so beside yours.
    Differentiable; the network is frozen.
    """

    def __init__(self, net: Literal["alex", "vgg", "squeeze"] = "alex", size: int = 64):
        super().__init__()
        if net not in ("alex", "vgg", "squeeze"):
            raise ValueError(f"net must be alex, vgg or squeeze, got {net!r}")
        try:
            from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
        except ImportError:
            raise ImportError(_NEEDS.format("LPIPS")) from None
        self.size = size
        with torch.random.fork_rng(devices=[]):  # initial weights are overwritten; the caller's random state is not
            self.net = _download(
                lambda: LearnedPerceptualImagePatchSimilarity(net_type=net).net,
                f"LPIPS ({net})",
                "STLPIPS, or DigitDistance for digits",
            )
        self.requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances (N,) between the images a and b, both (N, C, H, W)."""
        check_pair(a, b)
        return self.net(as_rgb(a, self.size), as_rgb(b, self.size), normalize=True).flatten()


def _as_bytes(images: Tensor) -> Tensor:
    """Images (..., C, H, W) in [0, 1] as bytes (N, 3, H, W): k for values in [k, k + 1) / 256."""
    flat = images.reshape(-1, *images.shape[-3:]) if images.dim() > 4 else images
    return (as_rgb(flat, 1) * 256).floor().clamp(0, 255).byte()


def frechet_inception_distance(x: Tensor, reference: Tensor, extractor: nn.Module | None = None) -> float:
    """The published FID of Heusel et al. (2017) between images (..., C, H, W) in [0, 1] and reference images; lower is closer.

    By torchmetrics, with the Inception v3 weights of torch-fidelity, in float64; images are enlarged to 299x299 by its
    resampling. Squared units of 2048 features: with fewer than that many images covariances are singular, and values
    with different numbers of images do not compare. ``extractor`` (bytes (N, 3, H, W) to features (N, D)) replaces
    Inception; the result is then no longer an FID.
    """
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ImportError:
        raise ImportError(_NEEDS.format("FID")) from None
    feature: Any = extractor if extractor is not None else 2048
    with torch.random.fork_rng(devices=[]):
        metric = _download(
            lambda: FrechetInceptionDistance(feature=feature),
            "FID",
            f"frechet_distance with the features of {_INCEPTION}",
        )
    metric = metric.to(x.device)
    with torch.no_grad():
        for images, real in ((reference, True), (x, False)):
            for part in _as_bytes(images).split(_CHUNK):
                metric.update(part, real=real)
        return float(metric.compute())


def inception_score(
    images: Tensor, generator: torch.Generator, splits: int = 10, extractor: nn.Module | None = None
) -> tuple[float, float]:
    """The published inception score of Salimans et al. (2016) of images (..., C, H, W) in [0, 1]: mean and std over splits.

    Between 1 and 1008 (Inception's outputs), dimensionless; higher is better. Inception v3's logits by torchmetrics with
    the weights of torch-fidelity; images are shuffled by ``generator`` before they are split. ``extractor`` (bytes (N,
    3, H, W) to logits (N, K)) replaces Inception; the result is then no longer an inception score.
    """
    try:
        from torchmetrics.image.inception import InceptionScore
    except ImportError:
        raise ImportError(_NEEDS.format("the inception score")) from None
    feature: Any = extractor if extractor is not None else "logits_unbiased"
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it warns of a buffer that is not used here
        metric = _download(
            lambda: InceptionScore(feature=feature),
            "the inception score",
            f"inception_type_score with the probabilities of {_INCEPTION.split(' for ')[0]}",
        )
    network = metric.inception.to(images.device)
    with torch.no_grad():
        logits = torch.cat([network(part) for part in _as_bytes(images).split(_CHUNK)])
    order = torch.randperm(len(logits), generator=generator, device=generator.device).to(logits.device)
    return inception_type_score(logits[order].double().softmax(1), splits)
