"""What all figures share: a canvas without pyplot's global state, pictures, and colours that can be told apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#555555"


def canvas(width: float, height: float) -> Any:
    """An empty figure of so many inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: Path) -> Path:
    """Write a PNG, over what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, bbox_inches="tight", facecolor="white")
    print(f"written to {path}")
    return path


def grid(
    path: Path,
    columns: list[str],
    rows: list[tuple[str, list[np.ndarray]]],
    maps: tuple[int, ...] = (),
    title: str = "",
    cell: float = 1.15,
    unit: str = "standard deviation",
) -> Path:
    """Rows of pictures (H, W, 3) in bytes under column names; columns ``maps`` hold maps (H, W), with one colour bar."""
    figure = canvas(cell * len(columns) + 1.2, cell * len(rows) + 0.5)
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    figure.subplots_adjust(wspace=0.04, hspace=0.04)
    top = max((float(row[1][m].max()) for row in rows for m in maps), default=1.0) or 1.0
    shown = None
    for i, (name, pictures) in enumerate(rows):
        for j, picture in enumerate(pictures):
            axis = axes[i][j]
            axis.set_xticks([])
            axis.set_yticks([])
            for side in axis.spines.values():
                side.set_visible(False)
            if i == 0:
                axis.set_title(columns[j], fontsize=9)
            if j == 0 and name:
                axis.set_ylabel(name, fontsize=9)
            if j in maps:
                shown = axis.imshow(picture.astype(float), cmap="inferno", vmin=0, vmax=top, interpolation="nearest")
            else:
                axis.imshow(picture, interpolation="nearest")
    if shown is not None:
        bar = figure.colorbar(shown, ax=axes.ravel().tolist(), shrink=min(1.0, 3 / len(rows)), pad=0.015, aspect=18)
        bar.set_label(unit, fontsize=8)
        bar.ax.tick_params(labelsize=7)
    if title:
        figure.suptitle(title, fontsize=10, y=0.98 if len(rows) > 2 else 1.06)
    return save(figure, path)


def tidy(axis: Any, x: str, y: str) -> None:
    """Axis labels and a light grid."""
    axis.set_xlabel(x, fontsize=9)
    axis.set_ylabel(y, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(True, alpha=0.25, linewidth=0.6)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
