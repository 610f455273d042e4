"""Pictures in files: a contact sheet of a posterior, and a grid of images."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import store, summaries

_UNSEEN = (214 / 255, 222 / 255, 232 / 255)  # the colour of what was not measured: no grey level looks like it


def contact_sheet(
    posterior: Any,
    path: str | Path,
    *,
    generator: torch.Generator | None = None,
    seed: int = 0,
    draws: int = 256,
    shown: int = 6,
    truth: Tensor | None = None,
    observations: int = 10,
    overwrite: bool = False,
) -> Path:
    """Write a PNG with a row per observation: measurement, truth (if given), posterior mean, standard deviation,
    ``shown`` draws.

    Mean and deviation come from ``draws`` draws in bounded memory; the deviation's colours run from 0 to the greatest
    of all rows. Vectors get one plot per observation: draws, mean, 90 % interval, and the measured and true values
    where they are values of x. At most the first ``observations`` rows. An existing file is kept, with FileExistsError,
    unless ``overwrite``.
    """
    path = Path(path)
    store.refuse_existing(path, overwrite)
    shape, rows = tuple(posterior.shape), min(int(posterior.batch), observations)
    if truth is not None and tuple(truth.shape) != (posterior.batch, *shape):
        raise ValueError(f"truth must have shape {(posterior.batch, *shape)}, got {tuple(truth.shape)}")
    generator = generator if generator is not None else torch.Generator().manual_seed(seed)
    source = summaries.restartable(posterior, max(draws, shown, 2), generator)
    found = summaries.moments(source)
    few = _first(source, shown)[:, :rows]
    if len(shape) == 3:
        figure = _image_sheet(posterior, rows, found, few, truth)
    else:
        figure = _vector_sheet(posterior, rows, found, summaries.credible_interval(source, 0.9), few, truth)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=110)
    return path


def _first(source: summaries.Source, n: int) -> Tensor:
    """The first n draws, (n, B, *shape)."""
    parts: list[Tensor] = []
    for chunk in source():
        parts.append(chunk[: n - sum(map(len, parts))].detach().float().cpu())
        if sum(map(len, parts)) == n:
            break
    return torch.cat(parts)


def _image_sheet(posterior: Any, rows: int, found: summaries.Moments, few: Tensor, truth: Tensor | None) -> Any:
    from .report.payload import measured

    low, high = _range(posterior, few)
    picture, _ = measured(posterior.problem, tuple(posterior.shape), rows)
    columns: list[tuple[str, Tensor]] = []
    if picture is not None:
        columns.append(("measurement", picture))
    if truth is not None:
        columns.append(("truth", truth[:rows].detach().float().cpu()))
    columns.append(("mean", found.mean[:rows].float().cpu()))
    deviation = found.std[:rows].float().mean(1, keepdim=True).cpu()
    columns.append(("std", deviation))
    columns += [(f"draw {s + 1}", few[s]) for s in range(len(few))]

    figure, axes = _figure(rows, len(columns), 1.25 * len(columns) + 0.7, 1.25 * rows + 0.45)
    figure.subplots_adjust(
        left=0.01, right=1 - 0.62 / figure.get_figwidth(), top=1 - 0.32 / figure.get_figheight(), bottom=0.02
    )
    top = max(float(deviation.max()), 1e-12)
    for column, (name, images) in enumerate(columns):
        for row in range(rows):
            axis = axes[row][column]
            axis.set_axis_off()
            if row == 0:
                axis.set_title(name, fontsize=9)
            if name == "std":
                mapped = axis.imshow(images[row, 0].numpy(), cmap="inferno", vmin=0, vmax=top, interpolation="nearest")
            else:
                axis.imshow(_pixels(images[row], low, high).numpy(), interpolation="nearest")
    bar = figure.colorbar(
        mapped, cax=figure.add_axes((1 - 0.5 / figure.get_figwidth(), 0.08, 0.1 / figure.get_figwidth(), 0.78))
    )
    bar.ax.tick_params(labelsize=7)
    bar.ax.set_title("std", fontsize=8)
    return figure


def _vector_sheet(
    posterior: Any,
    rows: int,
    found: summaries.Moments,
    interval: tuple[Tensor, Tensor],
    few: Tensor,
    truth: Tensor | None,
) -> Any:
    from .report.payload import measured

    _, observed = measured(posterior.problem, tuple(posterior.shape), rows)
    figure, axes = _figure(rows, 1, 8, 2.6 * rows + 0.4)
    index = range(math.prod(posterior.shape))
    for row in range(rows):
        axis = axes[row][0]
        lower, upper = (end[row].flatten().float().cpu() for end in interval)
        axis.fill_between(index, lower, upper, color="#0072B2", alpha=0.2, linewidth=0, label="90 % interval")
        for s in range(len(few)):
            axis.plot(index, few[s, row].flatten(), color="0.6", linewidth=0.6, label="draws" if s == 0 else None)
        axis.plot(index, found.mean[row].flatten().float().cpu(), color="black", linewidth=1.4, label="mean")
        if observed is not None:
            axis.plot(index, observed[row].flatten(), "v", color="#009E73", markersize=4, label="measured")
        if truth is not None:
            axis.plot(
                index, truth[row].detach().flatten().float().cpu(), "D", color="#D55E00", markersize=3, label="truth"
            )
        axis.set_ylabel(f"observation {row}" if rows > 1 else "value", fontsize=8)
        axis.tick_params(labelsize=7)
    axes[0][0].legend(fontsize=7, ncol=5, frameon=False, loc="lower left", bbox_to_anchor=(0, 1))
    axes[-1][0].set_xlabel("element", fontsize=8)
    figure.set_layout_engine("tight")
    return figure


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    # figures made without pyplot leave its global state and the caller's backend alone
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _range(posterior: Any, few: Tensor) -> tuple[float, float]:
    low, high = getattr(posterior.prior, "support", (-math.inf, math.inf))
    if math.isfinite(low) and math.isfinite(high):
        return float(low), float(high)
    return float(few.min()), float(few.max())


def _pixels(image: Tensor, low: float, high: float) -> Tensor:
    """(C, H, W) on [low, high] as RGB (H, W, 3) on [0, 1]; channels other than 3 are averaged to grey, NaN is pale
    blue-grey.
    """
    seen = torch.isfinite(image)
    scaled = ((image - low) / ((high - low) or 1.0)).clamp(0, 1)
    if image.shape[0] != 3:
        scaled = scaled.nanmean(0, keepdim=True).expand(3, -1, -1)
    # a channel not measured among others that were is mid-grey, so that the others still show
    scaled = torch.where(torch.isfinite(scaled), scaled, torch.full_like(scaled, 0.38))
    unseen = torch.tensor(_UNSEEN).view(3, 1, 1).expand_as(scaled)
    return torch.where(seen.any(0, keepdim=True), scaled, unseen).permute(1, 2, 0)


def point_sheet(
    estimate: Any,
    path: str | Path,
    *,
    truth: Tensor | None = None,
    observations: int = 10,
    overwrite: bool = False,
) -> Path:
    """Write a PNG with a row per observation: measurement, truth (if given), estimate, and what it leaves (signed, if the
    truth is given). Vectors get one plot each. An existing file is kept, with FileExistsError, unless ``overwrite``.
    """
    from .report.payload import measured

    path = Path(path)
    store.refuse_existing(path, overwrite)
    shape, rows = tuple(estimate.shape), min(int(estimate.batch), observations)
    x = estimate.x[:rows].detach().float().cpu()
    known = None if truth is None else truth[:rows].detach().float().cpu()
    picture, observed = measured(estimate.problem, shape, rows)
    if len(shape) == 3:
        low, high = _range(estimate, x[None])
        columns: list[tuple[str, Tensor]] = []
        if picture is not None:
            columns.append(("measurement", picture))
        if known is not None:
            columns.append(("truth", known))
        columns.append(("estimate", x))
        if known is not None:
            columns.append(("|error|", low + (x - known).abs()))
        figure, axes = _figure(rows, len(columns), 1.25 * len(columns), 1.25 * rows + 0.35)
        figure.subplots_adjust(left=0.01, right=0.99, top=1 - 0.3 / figure.get_figheight(), bottom=0.02)
        for column, (name, images) in enumerate(columns):
            for row in range(rows):
                axes[row][column].set_axis_off()
                axes[row][column].imshow(_pixels(images[row], low, high).numpy(), interpolation="nearest")
            axes[0][column].set_title(name, fontsize=9)
    else:
        figure, axes = _figure(rows, 1, 8, 2.6 * rows + 0.4)
        for row in range(rows):
            axis = axes[row][0]
            axis.plot(x[row].flatten(), color="black", linewidth=1.4, label="estimate")
            if observed is not None:
                axis.plot(observed[row].flatten(), "v", color="#009E73", markersize=4, label="measured")
            if known is not None:
                axis.plot(known[row].flatten(), "D", color="#D55E00", markersize=3, label="truth")
        axes[0][0].legend(fontsize=7, ncol=3, frameon=False, loc="lower left", bbox_to_anchor=(0, 1))
        figure.set_layout_engine("tight")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=110)
    return path


def samples_sheet(
    images: Tensor,
    path: str | Path,
    *,
    columns: int | None = None,
    scale: int = 2,
    support: tuple[float, float] = (0.0, 1.0),
    overwrite: bool = False,
) -> Path:
    """Write images (N, C, H, W), C 1 or 3, as a grid in one PNG, each pixel a ``scale`` x ``scale`` square.

    ``support`` maps to black and white; values outside are cut. ``columns`` defaults to the smallest square that holds
    N.
    """
    from PIL import Image

    path = Path(path)
    store.refuse_existing(path, overwrite)
    if images.dim() != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise ValueError(f"images must have shape (N, 1 or 3, H, W), got {tuple(images.shape)}")
    n, _, height, width = images.shape
    across = min(n, columns or math.ceil(math.sqrt(n)))
    down, gap = math.ceil(n / across), 1
    low, high = support
    scaled = (
        ((images.detach().float().cpu() - low) / (high - low)).nan_to_num(0.0).clamp(0, 1).expand(n, 3, height, width)
    )
    sheet = torch.full((3, down * (height + gap) + gap, across * (width + gap) + gap), 0.5)
    for k in range(n):
        top, left = gap + (k // across) * (height + gap), gap + (k % across) * (width + gap)
        sheet[:, top : top + height, left : left + width] = scaled[k]
    pixels = (sheet * 255).round().byte().repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(path, format="PNG")
    return path
