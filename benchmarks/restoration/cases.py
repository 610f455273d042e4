"""What is restored: the paper's four tasks on faces of 32x32 pixels in 5 bits.

A pixel's level k stands for (k + .5) / 32. Denoising has noise of standard deviation .1; the other measurements are A(x) exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import flowinv
from benchmarks.composing.cases import DATASETS, DataSet
from flowinv.randomness import keyed_generator

FACES: DataSet = DATASETS["faces"]
BATCH = 32  # images solved at once, and over which the paper's PSNR is pooled


@dataclass(frozen=True)
class Case:
    """A task, its options, the noise in y, the paper's results (method: dB, SSIM), its decibels corrected, and the prior."""

    name: str
    task: str
    options: tuple[tuple[str, Any], ...]
    noise: float
    paper: tuple[tuple[str, float, float], ...]
    prior: str = FACES.prior

    def problem(
        self, prior: flowinv.Flow, truth: Tensor, place: int, sigma: float | None = None
    ) -> flowinv.InverseProblem:
        """Of truth (B, *shape), images that follow one another in the list from ``place``. ``sigma`` is the solver's."""
        scale = sigma if sigma is not None else self.noise or 0.05
        task = flowinv.task(self.task, prior.shape, sigma=scale, **dict(self.options))
        y = task.operator(truth)
        if self.noise:
            noise = [torch.randn(y.shape[1:], generator=keyed_generator(94, place + b)) for b in range(len(y))]
            y = y + self.noise * torch.stack(noise)
        return flowinv.InverseProblem.from_task(prior, task, y)


CASES = {
    case.name: case
    for case in (
        Case(
            "denoise",
            "denoise",
            (),
            0.1,
            (
                ("csgm", 26.69, 0.897),
                ("glowip", 26.29, 0.894),
                ("map", 26.57, 0.898),
                ("bm3d", 27.17, 0.905),
                ("solverip", 27.31, 0.918),
            ),
        ),
        Case(
            "deblur",
            "deblur",
            (("kernel", "box"), ("padding", "grey")),
            0.0,
            (("csgm", 26.21, 0.883), ("glowip", 23.51, 0.867), ("solverip", 31.31, 0.963)),
        ),
        Case(
            "inpaint",
            "inpaint-box",
            (("rows", "9:22"), ("columns", "9:22")),
            0.0,
            (("csgm", 24.65, 0.839), ("glowip", 27.49, 0.903), ("solverip", 27.81, 0.913)),
        ),
        Case(
            "colorize",
            "colorize",
            (),
            0.0,
            (("csgm", 21.29, 0.897), ("glowip", 23.45, 0.937), ("solverip", 23.31, 0.940)),
        ),
    )
}
# the paper's own architecture, at a CPU's size
CASES["denoise-1x1"] = replace(CASES["denoise"], name="denoise-1x1", prior="faces-1x1")


def case_named(name: str) -> Case:
    """A case; an unknown name is refused with the known ones."""
    if name not in CASES:
        raise ValueError(f"unknown case {name!r}: expected one of {', '.join(CASES)}")
    return CASES[name]
