"""The paper's figures.

    python -m benchmarks.restoration.figures 1            # draws of the prior at temperatures, log-likelihood against ||z||
    python -m benchmarks.restoration.figures 3 4 5 6      # denoised, deblurred, filled and coloured faces, from the rows

PNG files in docs/benchmarks/restoration.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch

import flowinv
from benchmarks.command import in_one_line
from benchmarks.composing.figures.canvas import BLUE, GREY, ORANGE, canvas, grid, save, tidy
from benchmarks.composing.picture import as_bytes, as_rgb
from benchmarks.restoration.cases import CASES, FACES
from benchmarks.restoration.methods import METHODS, PICTURED
from benchmarks.restoration.run import RESULTS, path_of
from flowinv.randomness import keyed_generator

TEMPERATURES = (0.0, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1, 1.2)
RESTORED = {3: "denoise", 4: "deblur", 5: "inpaint", 6: "colorize"}

_SHORT = {"solverip": "regularised", "mean": "posterior mean", "map": "MAP"}  # labels as wide as a face


def figure_1(options: argparse.Namespace) -> Path:
    """Above: the same latents at rising temperature. Below: what the flow thinks of them, against the length of z."""
    prior = flowinv.load_prior(options.prior or FACES.prior).frozen()
    z = prior.noise((256,), keyed_generator(98))
    size = math.prod(prior.shape)
    rows, norms, likelihoods = [], [], []
    with torch.no_grad():
        for temperature in TEMPERATURES:
            x = prior.decode(temperature * z[:5])[0].clamp(0, 1)
            rows.append(as_rgb(as_bytes(x)))
            norms.append((temperature * z).flatten(1).norm(dim=1))
            log_det = prior.bijection.decode(temperature * z)[1]
            likelihoods.append(
                (flowinv.flows.standard_normal_log_prob(temperature * z) - log_det) / (size * math.log(2))
            )
    columns = [f"{t:g}" for t in TEMPERATURES]
    pictures = [("", [row[k] for row in rows]) for k in range(5)]
    grid(options.figures / "figure-1-draws.png", columns, pictures, title="draws at temperature")
    figure = canvas(5.2, 3.4)
    axis = figure.subplots()
    for norm, value, temperature in zip(norms, likelihoods, TEMPERATURES, strict=True):
        axis.plot(norm, value, ".", markersize=3, color=BLUE if temperature < 1 else ORANGE)
        axis.annotate(
            f"{temperature:g}",
            (float(norm.mean()), float(value.mean())),
            xytext=(4, 6),
            textcoords="offset points",
            fontsize=7,
        )
    axis.axvline(math.sqrt(size), color=GREY, linewidth=0.8, linestyle=":")
    tidy(axis, "||z|| (dotted: the square root of the dimension)", "log p(u), bits per dimension")
    return save(figure, options.figures / "figure-1-likelihood.png")


def restored(options: argparse.Namespace, number: int) -> Path:
    """Truth, measurement and every method's answer for the first faces."""
    case = CASES[RESTORED[number]]
    columns, pictures = ["truth", "measured"], {}
    for name in PICTURED:
        path = path_of(options.out, case, name, "test")
        beside = path.with_suffix(".npz")
        if not beside.is_file():
            continue
        weight = json.loads(path.read_text(encoding="utf-8"))["rows"][0]["weight"]
        with np.load(beside, allow_pickle=False) as file:
            pictures[name] = {k.split(":", 1)[1]: file[k] for k in file.files if k.startswith(f"{weight:g}:")}
        columns.append(_SHORT.get(name, METHODS[name].label))
    if not pictures:
        raise FileNotFoundError(
            f"no restored faces of {case.name} in {options.out}: run python -m benchmarks.restoration.run"
        )
    first = next(iter(pictures.values()))
    faces = sorted({int(k.split(":")[0]) for k in first})[: options.rows]
    rows = []
    for face in faces:
        cells = [as_rgb(first[f"{face}:truth"]), first[f"{face}:observed"]]
        blank = np.full_like(cells[1], 255)
        cells += [as_rgb(p[f"{face}:restored"]) if f"{face}:restored" in p else blank for p in pictures.values()]
        rows.append(("", cells))
    return grid(options.figures / f"figure-{number}.png", columns, rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", type=int, nargs="*", help="of 1, 3, 4, 5, 6; all by default")
    parser.add_argument("--prior")
    parser.add_argument("--rows", type=int, default=6)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the rows are")
    parser.add_argument("--figures", type=Path, default=Path("docs/benchmarks/restoration"), help="where pictures go")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if unknown := set(options.numbers) - {1, *RESTORED}:
        parser.error(f"there is no figure {min(unknown)}: expected 1, 3, 4, 5 or 6")
    for number in options.numbers or [1, *RESTORED]:
        with in_one_line(parser, f"figure {number}"):
            figure_1(options) if number == 1 else restored(options, number)


if __name__ == "__main__":
    main()
