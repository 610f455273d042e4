"""Figures 7 and 8: draws and errors at sigma from 1 to 1e-5, from what ``benchmarks.composing.smoothing`` computes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.composing import smoothing
from benchmarks.composing.figures.canvas import BLUE, GREEN, ORANGE, canvas, grid, save, tidy
from benchmarks.composing.picture import as_rgb

COLOURS = {"l2": BLUE, "annealed": ORANGE, "perceptual": GREEN}
LABELS = {"l2": "sigma fixed", "annealed": "annealed from sigma 1", "perceptual": "perceptual distance, beta"}


def _computed(options: argparse.Namespace) -> None:
    if options.data is not None:
        smoothing.compute(options, options.command)


def figure_7(options: argparse.Namespace) -> Path:
    """Draws of one observation: a column for each sigma, two rows of deviations below the draws."""
    _computed(options)
    path = options.out / "smoothing.draws.npz"
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: give --data, or run python -m benchmarks.composing.smoothing")
    with np.load(path, allow_pickle=False) as file:
        found = {name: file[name] for name in file.files}
    columns = [("l2", s) for s in smoothing.SIGMAS] + [("annealed", s) for s in smoothing.SCALES["annealed"][-2:]]
    columns = [c for c in columns if f"{c[0]}:{c[1]:g}:draws" in found]
    if not columns:
        raise FileNotFoundError(f"{path} holds no draws of l2 yet")
    draws = {c: found[f"{c[0]}:{c[1]:g}:draws"] for c in columns}
    count = min(4, *(len(d) for d in draws.values()))
    first = f"{columns[0][0]}:{columns[0][1]:g}"
    truth, observed = as_rgb(found[f"{first}:truth"]), found[f"{first}:observed"]
    left = [truth, observed] + [np.full_like(observed, 255)] * (count - 2)
    rows: list[tuple[str, list[np.ndarray]]] = []
    for k in range(count):
        name = ("original", "observed")[k] if k < 2 else ""
        rows.append((name, [left[k], *(as_rgb(draws[c][k]) for c in columns)]))
    titles = ["", *(("annealed to\n" if c[0] == "annealed" else "sigma\n") + f"{c[1]:g}" for c in columns)]
    spreads = [found[f"{c[0]}:{c[1]:g}:std"].astype(np.float32) for c in columns]
    return _with_spreads(options.figures / "figure-7.png", titles, rows, spreads)


def _with_spreads(path: Path, titles: list[str], rows: list[tuple[str, list[Any]]], spreads: list[np.ndarray]) -> Path:
    """A grid whose last row holds maps, each on its own scale from 0 to its greatest value."""
    from matplotlib import colormaps

    cells = [np.full_like(rows[0][1][0], 255)]
    for spread in spreads:
        scaled = spread / max(float(spread.max()), 1e-6)
        cells.append((colormaps["inferno"](scaled)[..., :3] * 255).astype(np.uint8))
    return grid(path, titles, [*rows, ("deviation\n(own scale)", cells)])


def figure_8(options: argparse.Namespace) -> Path:
    """Misfit of the observed half, and quality of the draws, over sigma; the perceptual distance beside."""
    _computed(options)
    path = options.out / "smoothing.json"
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: give --data, or run python -m benchmarks.composing.smoothing")
    summary = smoothing.summarise(json.loads(path.read_text(encoding="utf-8"))["rows"])
    figure = canvas(10.5, 3.6)
    axes = figure.subplots(1, 3)
    panels = (("observed", "mean squared error, observed half"), ("perceptual", "perceptual distance to the truth"))
    for axis, (name, text) in zip(axes, panels, strict=False):
        for variant in ("l2", "annealed"):
            _curve(axis, summary, variant, name)
        axis.set_xscale("log")
        axis.invert_xaxis()
        tidy(axis, "sigma", text)
    axes[0].set_yscale("log")
    axes[0].plot(smoothing.SIGMAS, [s**2 for s in smoothing.SIGMAS], ":", color="0.4", linewidth=1, label="sigma²")
    axes[0].set_ylim(bottom=1e-7)
    axes[0].legend(fontsize=8, frameon=False)
    for variant in COLOURS:
        _tradeoff(axes[2], summary, variant)
    axes[2].set_xscale("log")
    tidy(axes[2], "mean squared error, observed half", "energy score of the draws")
    axes[2].legend(fontsize=8, frameon=False)
    figure.set_layout_engine("tight")
    return save(figure, options.figures / "figure-8.png")


def _entries(summary: list[dict[str, Any]], variant: str, *names: str) -> list[dict[str, Any]]:
    return [e for e in summary if e["variant"] == variant and all(e.get(n) is not None for n in names)]


def _curve(axis: Any, summary: list[dict[str, Any]], variant: str, name: str) -> None:
    found = _entries(summary, variant, name)
    if not found:
        return
    x = [e["scale"] for e in found]
    axis.plot(x, [e[name]["value"] for e in found], "-o", color=COLOURS[variant], label=LABELS[variant], markersize=4)
    low, high = ([e[name][k] if e[name][k] is not None else e[name]["value"] for e in found] for k in ("low", "high"))
    axis.fill_between(x, low, high, color=COLOURS[variant], alpha=0.15, linewidth=0)


def _tradeoff(axis: Any, summary: list[dict[str, Any]], variant: str) -> None:
    found = _entries(summary, variant, "observed", "energy_score")
    if not found:
        return
    x, y = ([e[name]["value"] for e in found] for name in ("observed", "energy_score"))
    axis.plot(x, y, "-o", color=COLOURS[variant], label=LABELS[variant], markersize=4)
    far, ha, va = (-3, "right", "top") if variant == "annealed" else (3, "left", "bottom")
    for e, at, height in zip(found, x, y, strict=True):
        axis.annotate(
            f"{e['scale']:g}",
            (at, height),
            xytext=(far, far),
            ha=ha,
            va=va,
            fontsize=6,
            color=COLOURS[variant],
            textcoords="offset points",
        )
