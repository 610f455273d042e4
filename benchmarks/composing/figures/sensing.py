"""Figure 4: PSNR of compressed sensing over the number of measurements, single draws and means, from the rows of faces-cs-*."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.composing.aggregate import column, common_images
from benchmarks.composing.bootstrap import Interval, mean_interval
from benchmarks.composing.cases import MEASUREMENTS
from benchmarks.composing.figures.canvas import BLUE, GREEN, ORANGE, PURPLE, RED, canvas, save, tidy
from benchmarks.composing.methods import METHODS
from benchmarks.composing.run import result_path
from benchmarks.composing.store import read_rows

CURVES = (
    ("svi", "psnr_mean", "SVI, mean of 32 draws", BLUE, "-o"),
    ("svi", "psnr", "SVI, single draws", BLUE, "--s"),
    ("lmc", "psnr_mean", "LMC, mean", GREEN, "-o"),
    ("lmc", "psnr", "LMC, single draws", GREEN, "--s"),
    ("ivom-point", "psnr", "Asim et al. / IvOM", ORANGE, "-^"),
    ("csgm-point", "psnr", "CSGM", RED, "-v"),
    ("hmc-noise", "psnr_mean", "HMC through SVI, mean", PURPLE, "-o"),
)


def points(out: Path, method: str, name: str) -> dict[int, Interval]:
    """PSNR by number of measurements, over the images that every method was run on."""
    found = {}
    for m in MEASUREMENTS:
        only = common_images(result_path(out, f"faces-cs-{m}", other) for other in METHODS) or set()
        stored = read_rows(result_path(out, f"faces-cs-{m}", method))
        values = column([r for r in stored["rows"] if r["image"] in only], name) if stored is not None else []
        if values:
            found[m] = mean_interval(values)
    return found


def main(options: argparse.Namespace) -> Path:
    figure = canvas(6.4, 4.4)
    axis = figure.subplots()
    drawn = 0
    for i, (method, name, label, colour, style) in enumerate(CURVES):
        found = points(options.out, method, name)
        if not found:
            continue
        drawn += 1
        x = [m * 1.015 ** (i - 3) for m in found]  # side by side, so that intervals can be seen
        y = [v.value for v in found.values()]
        axis.plot(x, y, style, color=colour, label=label, markersize=5, linewidth=1.3)
        for at, v in zip(x, found.values(), strict=True):
            axis.plot([at, at], [v.low, v.high], color=colour, linewidth=1, alpha=0.6)
    if not drawn:
        raise FileNotFoundError(
            "no rows of faces-cs-*: run python -m benchmarks.composing.run faces-cs-250 and the others"
        )
    axis.set_xscale("log")
    axis.set_xticks(MEASUREMENTS, [str(m) for m in MEASUREMENTS])
    axis.minorticks_off()
    tidy(axis, "number of measurements (of 3072)", "PSNR, dB (bars: 95 % over images)")
    axis.legend(fontsize=8, frameon=False)
    return save(figure, options.figures / "figure-4.png")
