"""The networks that judge images here, and what they say of real ones: digits by a classifier, photographs by two networks.

None of them is Inception or LPIPS, and none of the scores made with them may be compared with published values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.composing.data import TEST, Images, order
from benchmarks.composing.store import save_arrays
from flowinv.metrics import STLPIPS, DigitClassifier, DigitDistance, SqueezeNetFeatures, features_of, statistics
from flowinv.metrics.pairs import PairDistance

COMPONENTS = 64  # a covariance of all 512 SqueezeNet features needs more draws than a CPU has time for
_TRUTHS = 512


@dataclass(frozen=True)
class Perception:
    """A perceptual distance, and features before they are projected."""

    distance: PairDistance
    network: object
    names: tuple[str, str]  # of the distance and of the features

    def features(self, images: Tensor) -> Tensor:
        """Features (N, D) of images (..., C, H, W) in [0, 1]."""
        network = self.network.features if isinstance(self.network, DigitClassifier) else self.network
        return features_of(network, images.float())  # type: ignore[arg-type]


@lru_cache(maxsize=2)
def perception(grey: bool, folder: str) -> Perception:
    """The networks for digits (shipped) or for photographs (weights in the data folder)."""
    if grey:
        classifier = DigitClassifier.shipped()
        names = ("DigitDistance", "the digit classifier's 64 features")
        return Perception(DigitDistance(classifier), classifier, names)
    path = Path(folder).expanduser()
    distance = STLPIPS(path / "stlpips_alex.npz").eval()
    network = SqueezeNetFeatures(path / "squeezenet1_1_features.npz").eval()
    return Perception(distance, network, ("ST-LPIPS", f"{COMPONENTS} components of SqueezeNet's features"))


@dataclass(frozen=True)
class Reference:
    """Real images as the networks see them.

    ``basis`` (D, K) projects features on the leading components of the test images'; ``mean`` (K,) and ``covariance`` (K, K)
    are those of all test images, ``truths`` (N, K) holds the first images of the list: what draws would be that are the truth.
    """

    basis: Tensor
    mean: Tensor
    covariance: Tensor
    truths: Tensor

    @classmethod
    def of(cls, test: Tensor, first: Sequence[int]) -> Reference:
        """From features (N, D) of the test images, and the places of those that come first in the list."""
        _, covariance = statistics(test)
        k = min(COMPONENTS, test.shape[1])
        basis = torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, :k].float()
        if k == test.shape[1]:
            basis = torch.eye(k)
        projected = test.float() @ basis
        return cls(basis, *statistics(projected), projected[list(first)])

    def save(self, path: Path) -> None:
        arrays = {k: getattr(self, k).numpy() for k in ("basis", "mean", "covariance")}
        save_arrays(path, {**arrays, "truths": self.truths.half().numpy()})

    @classmethod
    def load(cls, path: Path) -> Reference:
        with np.load(path, allow_pickle=False) as file:
            parts = {k: torch.from_numpy(file[k]) for k in ("basis", "mean", "covariance", "truths")}
        return cls(**{**parts, "truths": parts["truths"].float()})


def reference_path(out: Path, data: str, shape: tuple[int, ...]) -> Path:
    return out / "reference" / f"{data}-{'x'.join(map(str, shape))}.npz"


def reference(out: Path, data: str, images: Images, folder: str) -> Reference:
    """The reference of a data set, computed where it is not there yet (a minute for photographs)."""
    path = reference_path(out, data, tuple(images.test.shape[1:]))
    if path.is_file():
        return Reference.load(path)
    eyes = perception(images.test.shape[1] == 1, folder)
    features = eyes.features((images.test.float() + 0.5) / 2**images.bits)
    found = Reference.of(features, order(len(images.test), TEST)[:_TRUTHS])
    found.save(path)
    return found
