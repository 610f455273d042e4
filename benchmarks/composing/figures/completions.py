"""Figures 3, 5 and 6: original, observed, conditional draws and their deviation, from the draws that runs leave behind."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from benchmarks.composing.figures.canvas import grid
from benchmarks.composing.picture import as_rgb
from benchmarks.composing.run import result_path
from benchmarks.composing.store import read_draws

TASKS = {
    "colorization": "faces-colorize",
    "super-resolution 2x": "faces-superres",
    "compressed sensing": "faces-cs-625",
}


def _draws(out: Path, case: str, method: str) -> dict[str, np.ndarray]:
    path = result_path(out, case, method)
    found = read_draws(path)
    if found is None:
        raise FileNotFoundError(
            f"no draws beside {path}: run python -m benchmarks.composing.run {case} --methods {method}"
        )
    return found


def _row(found: dict[str, np.ndarray], i: int, shown: int) -> list[np.ndarray]:
    draws = [as_rgb(x) for x in found["draws"][i][:shown]]
    return [as_rgb(found["truth"][i]), found["observed"][i], *draws, found["std"][i]]


def _columns(shown: int) -> list[str]:
    return ["original", "observed", *(f"draw {k + 1}" for k in range(shown)), "deviation"]


def figure_3(options: argparse.Namespace) -> Path:
    """SVI on faces of which the top half was observed."""
    case, method = options.case or "faces-top", options.method or "svi"
    found = _draws(options.out, case, method)
    shown = min(6, found["draws"].shape[1])
    rows = [("", _row(found, i, shown)) for i in range(min(options.rows, len(found["image"])))]
    return grid(options.figures / f"figure-3-{case}.png", _columns(shown), rows, (shown + 2,))


def figure_5(options: argparse.Namespace) -> Path:
    """Zero-shot draws of the amortised pre-generator, with a fitted one's beside."""
    case = options.case or "mnist-bottom"
    found = _draws(options.out, case, "avi")
    shown = min(6, found["draws"].shape[1])
    columns = ["observed", *(f"AVI {k + 1}" for k in range(shown))]
    fitted = read_draws(result_path(options.out, case, "svi"))
    beside = min(3, fitted["draws"].shape[1]) if fitted is not None else 0
    rows = []
    for i, image in enumerate(found["image"][: options.rows].tolist()):
        pictures = [found["observed"][i], *(as_rgb(x) for x in found["draws"][i][:shown])]
        if fitted is not None and image in fitted["image"]:
            place = fitted["image"].tolist().index(image)
            pictures += [as_rgb(x) for x in fitted["draws"][place][:beside]]
        elif fitted is not None:
            pictures += [np.full_like(pictures[0], 255)] * beside
        rows.append(("", [*pictures, as_rgb(found["truth"][i])]))
    columns += [*(f"SVI {k + 1}" for k in range(beside)), "original"]
    return grid(options.figures / f"figure-5-{case}.png", columns, rows)


def figure_6(options: argparse.Namespace) -> Path:
    """Colorization, super-resolution and compressed sensing."""
    rows, shown, missing = [], 6, []
    for name, case in TASKS.items():
        try:
            found = _draws(options.out, case, options.method or "svi")
        except FileNotFoundError as error:
            missing.append(str(error))
            continue
        shown = min(shown, found["draws"].shape[1])
        rows += [(name if i == 0 else "", found, i) for i in range(min(2, len(found["image"])))]
    if not rows:
        raise FileNotFoundError(missing[0])
    for line in missing:
        print(line)
    pictures = [(name, _row(found, i, shown)) for name, found, i in rows]
    return grid(options.figures / "figure-6.png", _columns(shown), pictures, (shown + 2,))
