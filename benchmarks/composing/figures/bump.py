"""Figure 9: the bump of the hardness proof, and what the network of one clause makes of two of its variables."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from benchmarks.composing.figures.canvas import BLUE, GREEN, ORANGE, canvas, save, tidy
from flowinv.hardness import SatNetwork, parse_dimacs

EPSILONS = (0.1, 0.2, 0.3)


def bump(x: np.ndarray, epsilon: float) -> np.ndarray:
    """max(0, 1 - |x - 1| / epsilon), as the four ramps that a ReLU layer makes of it."""

    def relu(t: np.ndarray) -> np.ndarray:
        return np.maximum(t, 0)

    rise, fall = (x - (1 - epsilon)) / epsilon, (x - 1) / epsilon
    return relu(rise) - relu(rise - 1) - relu(fall) + relu(fall - 1)


def main(options: argparse.Namespace) -> Path:
    figure = canvas(9.5, 3.6)
    left, right = figure.subplots(1, 2)
    x = np.linspace(0, 2, 801)
    for epsilon, colour in zip(EPSILONS, (BLUE, ORANGE, GREEN), strict=True):
        left.plot(x, bump(x, epsilon), color=colour, label=f"epsilon {epsilon:g}")
    tidy(left, "x", "bump at 1 of width epsilon")
    left.legend(fontsize=8, frameon=False)
    network = SatNetwork(parse_dimacs("p cnf 2 1\n1 2 0\n"), height=1.0, margin=0.3)
    side = torch.linspace(-1.4, 1.4, 281, dtype=torch.float64)
    points = torch.cartesian_prod(side, side)
    with torch.no_grad():
        values = network.double()(points).view(281, 281).T
    mapped = right.imshow(values, origin="lower", extent=(-1.4, 1.4, -1.4, 1.4), cmap="viridis", vmin=0, vmax=1)
    bar = figure.colorbar(mapped, ax=right)
    bar.set_label("network of (x1 or x2), M = 1, epsilon 0.3", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    right.set_xlabel("x1", fontsize=9)
    right.set_ylabel("x2", fontsize=9)
    right.tick_params(labelsize=8)
    figure.set_layout_engine("tight")
    return save(figure, options.figures / "figure-9.png")
