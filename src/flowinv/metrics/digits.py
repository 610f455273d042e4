"""A small classifier of handwritten digits, and what it says about images of them."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .. import __version__
from ..checkpoint import fit_or_refuse
from ..store import BundleError, read_bundle, write_bundle
from .perceptual import unit_difference
from .shapes import check_images, check_pair, check_units

FORMAT = "flowinv-digit-classifier"
SHAPE = (1, 28, 28)
CLASSES = 10


class DigitClassifier(nn.Module):
    """Convolutional network from images (N, 1, 28, 28) in [0, 1] to the ten digits' logits, by way of 64 features.

    Three 3x3 convolutions with relus, each halved by maxima, then a linear layer with relu, whose outputs are the
    features. ``shipped()`` loads the weights that come with the package, trained on MNIST by
    ``python -m flowinv.metrics.train_classifier``. Values computed with it describe MNIST-like digits alone, and are
    never to be compared with published ones.
    """

    CHANNELS = (16, 32, 48)
    FEATURES = 64

    def __init__(self) -> None:
        super().__init__()
        pairs = zip((1, *self.CHANNELS[:-1]), self.CHANNELS, strict=True)
        self.convolutions = nn.ModuleList(nn.Conv2d(before, after, 3, padding=1) for before, after in pairs)
        self.body = nn.Linear(self.CHANNELS[-1] * 3 * 3, self.FEATURES)
        self.head = nn.Linear(self.FEATURES, CLASSES)

    def activations(self, images: Tensor) -> list[Tensor]:
        """The convolutions' activations, (N, 16, 28, 28), (N, 32, 14, 14) and (N, 48, 7, 7)."""
        check_images(images, "images")
        if images.shape[1:] != SHAPE:
            raise ValueError(f"digits must have shape (N, 1, 28, 28), got {tuple(images.shape)}")
        check_units(images, "digits")
        first, *others = self.convolutions
        found = [torch.relu(first(images.to(self.head.weight)))]
        for convolution in others:
            found.append(torch.relu(convolution(functional.max_pool2d(found[-1], 2))))
        return found

    def features(self, images: Tensor) -> Tensor:
        """Penultimate features (N, 64) of images (N, 1, 28, 28), for ``frechet_distance``."""
        last = functional.max_pool2d(self.activations(images)[-1], 2)
        return torch.relu(self.body(last.flatten(1)))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, 1, 28, 28)."""
        return self.head(self.features(images))

    def probabilities(self, images: Tensor) -> Tensor:
        """Class probabilities (N, 10) of images (N, 1, 28, 28), for ``inception_type_score``."""
        return self(images).softmax(1)

    def save(self, folder: str | Path, extra: dict[str, Any] | None = None, overwrite: bool = False) -> Path:
        """Write config.json and model.safetensors; ``extra`` joins the config."""
        config = {"format": FORMAT, "flowinv": __version__, "shape": list(SHAPE), "channels": list(self.CHANNELS)}
        return write_bundle(folder, {**config, **(extra or {})}, self.state_dict(), overwrite)

    @classmethod
    def load(cls, folder: str | Path) -> DigitClassifier:
        """The classifier saved in a folder, frozen; BundleError where it is not one."""
        config, tensors = read_bundle(folder, FORMAT)
        if config.get("channels") != list(cls.CHANNELS):
            raise BundleError(f"{folder}: channels are {config.get('channels')}, expected {list(cls.CHANNELS)}")
        with torch.random.fork_rng(devices=[]):  # initial weights are overwritten; the caller's random state is not
            network = cls()
        fit_or_refuse(tensors, network.state_dict(), f"{folder}: weights")
        network.load_state_dict(tensors)
        return network.requires_grad_(False).eval()

    @classmethod
    def shipped(cls) -> DigitClassifier:
        """The classifier that comes with the package."""
        return cls.load(Path(str(files(__package__))) / "weights" / "digits")


class DigitDistance(nn.Module):
    r"""Perceptual distance of digits by a classifier's activations: (N,) of two (N, 1, 28, 28) in [0, 1].

    .. math:: d(a, b) = \sum_{l=1}^3 \frac{1}{H_l W_l} \sum_{h,w} \sum_c (\hat a_{lchw} - \hat b_{lchw})^2

    with the activations at each place scaled to unit length over the channels, as LPIPS does (Zhang et al., 2018), all
    channels with weight 1. Between 0 (equal images) and 6, dimensionless, lower is closer. *Not* LPIPS: never compare its
    values with published ones. Differentiable; called as ``distance(y, prediction)`` it serves as
    ``flowinv.Distance(DigitDistance(), beta)``. Without a ``classifier`` the shipped one is taken.
    """

    def __init__(self, classifier: DigitClassifier | None = None):
        super().__init__()
        self.classifier = classifier if classifier is not None else DigitClassifier.shipped()
        self.spec = {"name": "digits"} if classifier is None else None

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances (N,) between the images a and b, both (N, 1, 28, 28)."""
        check_pair(a, b)
        layers = self.classifier.activations(torch.cat([a, b]))
        return torch.stack([unit_difference(x).sum(1).mean((1, 2)) for x in layers]).sum(0)
