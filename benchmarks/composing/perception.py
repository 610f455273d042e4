"""The networks that judge images here, and what they say of real ones: digits by a classifier, photographs by two networks.

None of them is Inception or LPIPS, and none of the scores made with them may be compared with published values.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.composing.data import Images
from benchmarks.composing.store import save_arrays
from flowinv.metrics import STLPIPS, DigitClassifier, DigitDistance, SqueezeNetFeatures, features_of, statistics
from flowinv.metrics.pairs import PairDistance
from flowinv.randomness import keyed_generator

COMPONENTS = 64  # a covariance of all 512 SqueezeNet features needs more draws than a CPU has time for
_FLOOR = 2048


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
    are those of all test images, ``floor`` (N, K) holds training images: what a score makes of other real images.
    """

    basis: Tensor
    mean: Tensor
    covariance: Tensor
    floor: Tensor

    @classmethod
    def of(cls, test: Tensor, train: Tensor) -> Reference:
        """From features (N, D) of test and of training images."""
        _, covariance = statistics(test)
        k = min(COMPONENTS, test.shape[1])
        basis = torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, :k].float()
        if k == test.shape[1]:
            basis = torch.eye(k)
        return cls(basis, *statistics(test.float() @ basis), train.float() @ basis)

    def save(self, path: Path) -> None:
        arrays = {k: getattr(self, k).numpy() for k in ("basis", "mean", "covariance")}
        save_arrays(path, {**arrays, "floor": self.floor.half().numpy()})

    @classmethod
    def load(cls, path: Path) -> Reference:
        with np.load(path, allow_pickle=False) as file:
            parts = {k: torch.from_numpy(file[k]) for k in ("basis", "mean", "covariance", "floor")}
        return cls(**{**parts, "floor": parts["floor"].float()})


def reference_path(out: Path, data: str, shape: tuple[int, ...]) -> Path:
    return out / "reference" / f"{data}-{'x'.join(map(str, shape))}.npz"


def reference(out: Path, data: str, images: Images, folder: str) -> Reference:
    """The reference of a data set, computed where it is not there yet (a minute for photographs)."""
    path = reference_path(out, data, tuple(images.test.shape[1:]))
    if path.is_file():
        return Reference.load(path)
    eyes = perception(images.test.shape[1] == 1, folder)
    chosen = torch.randperm(len(images.train), generator=keyed_generator(91))[:_FLOOR]
    seen = [eyes.features((part.float() + 0.5) / 2**images.bits) for part in (images.test, images.train[chosen])]
    found = Reference.of(*seen)
    found.save(path)
    return found
