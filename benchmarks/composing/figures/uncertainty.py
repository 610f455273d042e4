"""Figure 1: what the posterior says of single pixels: samples, densities over 3200 draws, and their entropy everywhere.

The fit (``svi``, the settings of the tables) is made here, its 3200 draws are summarised by ``flowinv.summaries.density`` as in the
paper (a kernel density over 256 grey levels, entropy in bits, at most 8), and what the figure shows is kept beside the rows.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import flowinv
from benchmarks.composing.cases import Case, case_named
from benchmarks.composing.data import load
from benchmarks.composing.figures.canvas import BLUE, GREEN, RED, canvas, save, tidy
from benchmarks.composing.measure import hidden
from benchmarks.composing.methods import describe, settings_of
from benchmarks.composing.picture import as_bytes, as_rgb, measurement
from benchmarks.composing.store import save_arrays
from flowinv.randomness import keyed_generator
from flowinv.solvers import VariationalSettings

DRAWS, SHOWN = 3200, 6
COLOURS = (BLUE, GREEN, RED)


def main(options: argparse.Namespace) -> Path:
    case = case_named(options.case or "faces-top")
    kept = options.out / "uncertainty" / f"{case.name}-{options.image}.npz"
    prior = flowinv.load_prior(options.prior or case.dataset.prior)
    settings = fit_settings(case, options.image, options.shrink)
    identity = identity_of(prior, settings, options.draws or DRAWS)
    if not kept.is_file():
        save_arrays(kept, {**compute(case, prior, settings, options), "identity": np.array(identity)})
    with np.load(kept, allow_pickle=False) as file:
        found = {name: file[name] for name in file.files}
    if str(found.get("identity")) != identity:
        raise ValueError(f"{kept} was made with other settings; move it away")
    return draw(found, options.figures / f"figure-1-{case.name}.png")


def fit_settings(case: Case, image: int, shrink: int = 1) -> VariationalSettings:
    """Those of the tables."""
    settings = settings_of("svi", case, shrink=shrink)
    assert isinstance(settings, VariationalSettings)
    return replace(settings, seed=image, final_draws=2)


def identity_of(prior: flowinv.Flow, settings: VariationalSettings, draws: int) -> str:
    """What a picture that was kept must have been made with."""
    made_with = {"prior": prior.fingerprint(), "solver": describe(settings), "draws": draws}
    return json.dumps(made_with, sort_keys=True)


def compute(
    case: Case, prior: flowinv.Flow, settings: VariationalSettings, options: argparse.Namespace
) -> dict[str, np.ndarray]:
    """Fit one observation and summarise its draws."""
    truth = load(case.dataset, options.data, options.prior).truth(options.image)
    problem = case.problem(prior, truth, options.image)
    posterior = flowinv.VariationalSolver(settings).solve(problem)
    grey = posterior.source(options.draws or DRAWS, keyed_generator(options.image, 2))
    source = flowinv.summaries.mapped(grey, lambda x: x.mean(2, keepdim=True))  # one intensity per pixel
    density = flowinv.summaries.density(source, prior.support)
    entropy = density.entropy()[0, 0]
    unseen = hidden(problem)
    mask = torch.zeros_like(entropy, dtype=torch.bool) if unseen is None else unseen[0].any(0)
    places = pixels(entropy, mask)
    few = posterior.sample(SHOWN, keyed_generator(options.image, 4))[:, 0]
    masses = torch.stack([density.masses()[0, 0, r, c] for r, c in places])
    return {
        "truth": as_bytes(truth[0]),
        "observed": measurement(problem),
        "draws": as_bytes(few),
        "entropy": entropy.float().numpy(),
        "std": flowinv.summaries.std(source)[0, 0].numpy(),
        "places": np.array(places),
        "masses": masses.float().numpy(),
        "value": np.array([float(truth[0, :, r, c].mean()) for r, c in places]),
        "count": np.array(options.draws or DRAWS),
    }


def pixels(entropy: Tensor, unseen: Tensor) -> list[tuple[int, int]]:
    """An observed pixel in the middle of those, a hidden one of about half the greatest entropy, and the one of that."""
    height, width = entropy.shape
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    seen = ~unseen if (~unseen).any() else torch.ones_like(unseen)
    rest = unseen if unseen.any() else torch.ones_like(unseen)
    far = (columns - width / 2).abs() + (rows - rows[seen].float().mean()).abs()
    first = int(torch.where(seen, far, far.new_tensor(float("inf"))).argmin())
    hidden_only = torch.where(rest, entropy, entropy.new_tensor(-99.0)).flatten()
    most = int(hidden_only.argmax())
    chosen = (first, int((hidden_only - hidden_only[most] / 2).abs().argmin()), most)
    return [(i // width, i % width) for i in chosen]


def draw(found: dict[str, Any], path: Path) -> Path:
    """Samples above; entropy with the three pixels marked and their densities below."""
    figure = canvas(11, 5.2)
    layout = figure.add_gridspec(2, 8, height_ratios=(1, 1.6), hspace=0.25, wspace=0.12)
    shown = [("original", as_rgb(found["truth"])), ("observed", found["observed"])]
    shown += [(f"draw {i + 1}", as_rgb(x)) for i, x in enumerate(found["draws"])]
    for j, (name, picture) in enumerate(shown):
        axis = figure.add_subplot(layout[0, j])
        axis.imshow(picture, interpolation="nearest")
        axis.set_title(name, fontsize=9)
        axis.set_axis_off()
    lower = layout[1, :].subgridspec(1, 4, width_ratios=(1.25, 1, 1, 1), wspace=0.38)
    axis = figure.add_subplot(lower[0, 0])
    mapped = axis.imshow(found["entropy"], cmap="viridis", vmin=0, vmax=8, interpolation="nearest")
    axis.set_title("entropy of each pixel", fontsize=9)
    axis.set_axis_off()
    bar = figure.colorbar(mapped, ax=axis, shrink=0.8)
    bar.set_label("bits (at most 8)", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    for k, (place, mass) in enumerate(zip(found["places"], found["masses"], strict=True)):
        axis.plot(
            place[1], place[0], "o", markerfacecolor="none", markeredgecolor=COLOURS[k], markeredgewidth=2, markersize=9
        )
        part = figure.add_subplot(lower[0, k + 1])
        levels = (np.arange(len(mass)) + 0.5) / len(mass)
        part.fill_between(levels, mass * len(mass), color=COLOURS[k], alpha=0.3, linewidth=0)
        part.plot(levels, mass * len(mass), color=COLOURS[k], linewidth=1.2)
        part.axvline(found["value"][k], color="black", linewidth=1, linestyle="--", label="truth")
        tidy(part, "intensity", "density" if k == 0 else "")
        bits = found["entropy"][place[0], place[1]]
        kind = ("observed pixel", "hidden pixel", "hidden pixel of most entropy")[k]
        part.set_title(f"{kind}\nrow {place[0]}, column {place[1]}: {bits:.2f} bits", fontsize=9, color=COLOURS[k])
        part.set_xlim(0, 1)
        part.set_ylim(bottom=0)
        if k == 0:
            part.legend(fontsize=7, frameon=False)
    figure.suptitle(f"Densities over {int(found['count'])} draws of one posterior", fontsize=10, y=0.98)
    return save(figure, path)
