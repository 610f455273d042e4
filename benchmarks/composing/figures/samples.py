"""Figure 10: unconditional samples of the priors."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import flowinv
from benchmarks.composing.cases import DATASETS
from benchmarks.composing.figures.canvas import canvas, save
from benchmarks.composing.picture import as_bytes, as_rgb
from flowinv.randomness import keyed_generator

SIDE = 8


def main(options: argparse.Namespace) -> Path:
    names = [options.prior] if options.prior else [d.prior for d in DATASETS.values()]
    found: dict[str, np.ndarray] = {}
    for name in names:
        try:
            prior = flowinv.load_prior(name)
        except FileNotFoundError as error:
            print(error)
            continue
        x = prior.sample(SIDE * SIDE, keyed_generator(96)).clamp(*prior.support)
        found[name] = _tiled(as_rgb(as_bytes(x)))
    if not found:
        raise FileNotFoundError(f"none of the priors {', '.join(names)} is there")
    figure = canvas(4.6 * len(found), 4.9)
    axes = figure.subplots(1, len(found), squeeze=False)[0]
    for axis, (name, picture) in zip(axes, found.items(), strict=True):
        axis.imshow(picture, interpolation="nearest")
        axis.set_title(f"samples of the prior {name}", fontsize=10)
        axis.set_axis_off()
    figure.set_layout_engine("tight")
    return save(figure, options.figures / "figure-10.png")


def _tiled(images: np.ndarray) -> np.ndarray:
    """(N, H, W, 3) as one picture of SIDE rows, one pixel of white between."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
    n, height, width, _ = padded.shape
    rows = padded.reshape(n // SIDE, SIDE, height, width, 3).transpose(0, 2, 1, 3, 4)
    return rows.reshape(n // SIDE * height, SIDE * width, 3)
