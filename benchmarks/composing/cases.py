"""What is measured: each case is a data set, a task, a noise scale, and how many images and draws there are of it.

y = A(x) exactly, and sigma only smooths, as in the paper. A pixel's byte k stands for (k + .5) / 2^bits; images of 5 bits are
floored to 5 bits before A is applied. Tasks with a random operator draw one for every image, from its place in the list.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

import flowinv
from flowinv import Operator
from flowinv.training.data import Preparation

RANDOM_OPERATORS = ("inpaint-pixels", "inpaint-subpixels", "compressed-sensing")
_ELEMENTS = 3 * 32 * 32  # for which the numbers of measurements are given


@dataclass(frozen=True)
class DataSet:
    """Where images come from and how they are read; the last ``holdout`` training images are for tuning."""

    name: str
    file: str
    shape: tuple[int, int, int]
    bits: int
    prior: str
    holdout: int
    preparation: Preparation = field(default_factory=Preparation)


@dataclass(frozen=True)
class Case:
    """One experiment. ``images`` test images with ``draws`` draws each; step sizes are those tuned for ``tuned_as``.

    ``measurements`` counts those of 3x32x32 images; for other shapes it is scaled with the number of elements. ``paper`` names
    the solver's preset with the paper's settings, ``paper_steps`` and ``paper_chain`` the lengths it reports for this task.
    """

    name: str
    data: str
    task: str
    sigma: float
    images: int
    draws: int
    tuned_as: str
    paper: str
    paper_steps: int
    paper_chain: int
    options: tuple[tuple[str, Any], ...] = ()
    measurements: int | None = None

    @property
    def dataset(self) -> DataSet:
        return DATASETS[self.data]

    @property
    def measured(self) -> int:
        """How many elements of y the first image's operator observes."""
        operator = self.task_of(self.dataset.shape, 0).operator
        return measured_elements(operator(torch.zeros(1, *self.dataset.shape)), operator.observed)

    def task_of(self, shape: tuple[int, ...], index: int) -> flowinv.Task:
        """The task of the image at a place in the list."""
        options = dict(self.options)
        if self.measurements is not None:
            options["measurements"] = max(1, round(self.measurements * math.prod(shape) / _ELEMENTS))
        if self.task in RANDOM_OPERATORS:
            options["seed"] = index
        return flowinv.task(self.task, shape, sigma=self.sigma, **options)

    def problem(self, prior: flowinv.Flow, truth: Tensor, index: int) -> flowinv.InverseProblem:
        """The problem of truth (B, *shape), images that follow one another in the list from place ``index``; y = A(truth)."""
        places = range(index, index + len(truth)) if self.task in RANDOM_OPERATORS else [index]
        tasks = [self.task_of(prior.shape, place) for place in places]
        operator = _together([task.operator for task in tasks])
        y = operator(truth)
        return flowinv.InverseProblem(prior, operator, tasks[0].likelihood, y)


def measured_elements(y: Tensor, observed: Tensor | None) -> int:
    """How many elements of one y were observed, at most, of observations (B, ...)."""
    return y[0].numel() if observed is None else int(observed.expand(y.shape).flatten(1).sum(1).max())


class OneEach(Operator):
    """An operator for each of B observations, or of ``times`` B that repeat them copy by copy."""

    def __init__(self, operators: Sequence[Operator], times: int = 1):
        super().__init__(operators[0].shape)
        self.operators, self.times = tuple(operators), times

    def apply(self, x: Tensor) -> Tensor:
        copies = x.unflatten(1, (self.times, len(self.operators)))
        found = [operator(copies[:, :, b : b + 1]) for b, operator in enumerate(self.operators)]
        return torch.cat(found, 2).flatten(1, 2)


def _together(operators: Sequence[Operator]) -> Operator:
    """One operator for a batch: one for all, a mask for each, or whatever each has."""
    if len(operators) == 1:
        return operators[0]
    if all(isinstance(operator, flowinv.Mask) for operator in operators):
        return flowinv.Mask(torch.cat([operator.mask for operator in operators]), operators[0].shape)  # type: ignore[attr-defined]
    return OneEach(operators)


def truth_of(images: Tensor, bits: int) -> Tensor:
    """Pixels (k + .5) / 2^bits of images (N, C, H, W) that hold the integers k."""
    return (images.float() + 0.5) / 2**bits


DATASETS = {
    "mnist": DataSet("mnist", "mnist.npz", (1, 28, 28), 8, "mnist", 2000),
    "faces": DataSet(
        "faces",
        "celeba10k_jpeg.npz",
        (3, 32, 32),
        5,
        "faces",
        500,
        Preparation((7, 17, 81, 91), (32, 32), 1000),
    ),
    "cifar10": DataSet("cifar10", "cifar10_jpeg.npz", (3, 32, 32), 5, "runs/cifar10/prior", 2000),
}
MEASUREMENTS = (25, 62, 125, 250, 625, 1250)


def _cases() -> dict[str, Case]:
    digits = Case("mnist-bottom", "mnist", "inpaint-bottom", 0.1, 100, 6, "mnist-bottom", "paper-mnist", 1000, 4000)
    faces = Case("faces-top", "faces", "inpaint-top", 0.05, 32, 8, "faces-top", "paper-celebahq", 4000, 4000)
    objects = Case(
        "cifar10-subpixels",
        "cifar10",
        "inpaint-subpixels",
        0.05,
        32,
        8,
        "cifar10-subpixels",
        "paper-cifar10",
        1000,
        1000,
    )
    found = [
        digits,
        replace(digits, name="mnist-top", task="inpaint-top"),
        replace(digits, name="mnist-subpixels", task="inpaint-subpixels"),
        faces,
        replace(faces, name="faces-subpixels", task="inpaint-subpixels"),
        replace(faces, name="faces-colorize", task="colorize", paper_steps=1000),
        replace(faces, name="faces-superres", task="superres", paper_steps=1000),
        objects,
        replace(objects, name="cifar10-top", task="inpaint-top"),
        replace(objects, name="cifar10-colorize", task="colorize"),
        replace(objects, name="cifar10-superres", task="superres"),
        replace(objects, name="cifar10-cs-500", task="compressed-sensing", measurements=500),
    ]
    sensing = replace(faces, task="compressed-sensing", images=16, tuned_as="faces-cs-250")
    found += [replace(sensing, name=f"faces-cs-{m}", measurements=m) for m in MEASUREMENTS]
    return {case.name: case for case in found}


CASES = _cases()


def case_named(name: str) -> Case:
    """A case; an unknown name is refused with the known ones."""
    if name not in CASES:
        raise ValueError(f"unknown case {name!r}: expected one of {', '.join(CASES)}")
    return CASES[name]
