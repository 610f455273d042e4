"""The images of a case: integers floored to the prior's bits, split into training, validation and test."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

import flowinv
from benchmarks.composing.cases import DataSet, truth_of
from flowinv.priors import training_settings
from flowinv.randomness import keyed_generator
from flowinv.training.config import TrainingConfig
from flowinv.training.data import floor_bits, load_images

TEST, VALIDATION = 1, 2  # which permutation


@dataclass(frozen=True)
class Images:
    """Integers 0 .. 2^bits - 1, each (N, C, H, W)."""

    train: Tensor
    validation: Tensor
    test: Tensor
    bits: int

    def part(self, which: int) -> Tensor:
        """The test or the validation images."""
        return self.test if which == TEST else self.validation

    def truth(self, place: int, which: int = TEST) -> Tensor:
        """The image at a place in the list, (1, C, H, W), in the prior's units."""
        images = self.part(which)
        return truth_of(images[order(len(images), which)[place]][None], self.bits)


@lru_cache(maxsize=4)
def order(count: int, which: int = TEST) -> tuple[int, ...]:
    """The list of images to be used, first things first: a fixed permutation, so that a longer run extends a shorter one."""
    return tuple(torch.randperm(count, generator=keyed_generator(90, which)).tolist())


def load(dataset: DataSet, folder: str | Path, prior: str | None = None) -> Images:
    """The images, read as the prior's training read them where the prior tells, else as the data set says."""
    path = Path(folder).expanduser() / dataset.file
    name = prior or dataset.prior
    known = training_settings(name)
    preparation, bits, holdout = dataset.preparation, dataset.bits, dataset.holdout
    if known is not None:
        config = TrainingConfig.from_dict(known)
        preparation, bits, holdout = config.preparation, config.bits, config.holdout
    read = load_images(path, prepare=preparation)
    shape = flowinv.load_prior(name).shape
    if tuple(read.test.shape[1:]) != shape or len(read.test) == 0:
        raise ValueError(f"{path}: test images have shape {tuple(read.test.shape)}, the prior {name} takes {shape}")
    cut = len(read.train) - holdout
    train, validation, test = (floor_bits(part, bits) for part in (read.train[:cut], read.train[cut:], read.test))
    return Images(train, validation, test, bits)
