"""What sigma does (figures 7 and 8): fits at sigma 1 ... 1e-5, annealed or not, and with a perceptual distance instead.

    python -m benchmarks.composing.smoothing --data DATA --images 8 --workers 2

Variants: ``l2``, the squared error at sigma all along; ``annealed``, from sigma 1 down to it over the first half of the steps;
``perceptual``, exp(-beta d(y, A(x))) with a perceptual distance d of the masked images, at several beta. The paper found that
neither of the last two gains anything. Steps per fit as in budget "equal" (``--steps``; the paper's settings: ``--paper``). Rows go
to smoothing.json, the first image's draws to smoothing.draws.npz; resumable, fit by fit.
"""

from __future__ import annotations

import argparse
import json
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import flowinv
from benchmarks.command import command_of, in_one_line
from benchmarks.composing.bootstrap import mean_interval
from benchmarks.composing.cases import Case, case_named
from benchmarks.composing.crew import in_processes
from benchmarks.composing.data import load
from benchmarks.composing.engines import solve
from benchmarks.composing.measure import number, rows_of
from benchmarks.composing.methods import describe, settings_of
from benchmarks.composing.perception import perception
from benchmarks.composing.picture import as_bytes, measurement
from benchmarks.composing.run import common
from benchmarks.composing.store import dump, save_arrays
from benchmarks.machine import machine
from flowinv.solvers import Diverged, VariationalSettings
from flowinv.store import write_text

SIGMAS = (1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5)
BETAS = (30.0, 100.0, 300.0, 1000.0, 3000.0)
BEST = 0.1  # the sigma of least energy score
SCORES = ("observed", "squared_error", "squared_error_hidden", "perceptual", "energy_score")
SCALES = {"l2": SIGMAS, "annealed": tuple(s for s in SIGMAS if s < 1), "perceptual": BETAS}


@dataclass(frozen=True)
class SmoothingJob:
    """One fit; ``scale`` is sigma, or beta of the perceptual distance."""

    case: Case
    variant: str
    scale: float
    index: int
    truth: Tensor
    prior: str
    data: str
    settings: VariationalSettings


def fit(job: SmoothingJob) -> tuple[dict[str, Any], dict[str, np.ndarray] | None]:
    """A row, and pictures of the first image's draws."""
    sigma = job.scale if job.variant != "perceptual" else job.case.sigma
    case = replace(job.case, sigma=sigma)
    problem = case.problem(flowinv.load_prior(job.prior), job.truth, job.index)
    eyes = perception(job.truth.shape[1] == 1, job.data)
    settings = job.settings
    measured = problem
    if job.variant == "perceptual":
        with warnings.catch_warnings():  # that it is a generalised posterior is the point here
            warnings.simplefilter("ignore")
            likelihood = flowinv.Distance(eyes.distance, job.scale)
            problem = flowinv.InverseProblem(problem.given_prior, problem.operator, likelihood, problem.y)
    if job.variant == "annealed":
        settings = replace(settings, anneal=1 / sigma)
    row: dict[str, Any] = {"variant": job.variant, "scale": job.scale, "image": job.index}
    try:
        outcome = solve("svi", problem, settings, case.draws, job.index)
    except Diverged as error:
        return {**row, "failed": str(error).splitlines()[0]}, None
    (values,) = rows_of(measured, job.truth, outcome, eyes)
    # chi-squared is in units of the sigma that this fit had
    row["observed"] = number(values["chi_squared"] * sigma**2)
    names = ("squared_error", "squared_error_mean", "squared_error_hidden", "perceptual", "diversity", "energy_score")
    row |= {name: values.get(name) for name in (*names, "elbo", "seconds")}
    spread = outcome.std[0].mean(0).half().numpy()
    if job.index != 0:
        return row, None
    shown = {"truth": as_bytes(job.truth[0]), "observed": measurement(measured)}
    return row, {**shown, "draws": as_bytes(outcome.draws[:, 0]), "std": spread}


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each variant and scale, in their order, over the images that all of them were run on."""
    done: dict[tuple[str, float], set[int]] = {}
    for row in rows:
        done.setdefault((row["variant"], row["scale"]), set()).add(row["image"])
    fitted = {(row["variant"], row["scale"]) for row in rows if "failed" not in row}
    common = set.intersection(*(done[key] for key in fitted)) if fitted else set()
    rows = [row for row in rows if row["image"] in common]
    found = []
    for variant, scales in SCALES.items():
        for scale in scales:
            group = [r for r in rows if r["variant"] == variant and r["scale"] == scale and "failed" not in r]
            if not group:
                continue
            entry: dict[str, Any] = {"variant": variant, "scale": scale, "images": len(group)}
            for name in SCORES:
                values = [row[name] for row in group if row.get(name) is not None]
                entry[name] = asdict(mean_interval(values)) if values else None
            found.append(entry)
    return found


def gains(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By how much other fits exceed the plain ones, image by image (negative is better).

    Annealed fits are compared with those at the same sigma, fits of a perceptual distance with those at ``BEST``.
    """
    by_fit = {(r["variant"], r["scale"], r["image"]): r for r in rows if "failed" not in r}
    found = []
    for variant in ("annealed", "perceptual"):
        for scale in SCALES[variant]:
            plain = scale if variant == "annealed" else BEST
            pairs = [
                (row, by_fit["l2", plain, image])
                for (kind, at, image), row in by_fit.items()
                if (kind, at) == (variant, scale) and ("l2", plain, image) in by_fit
            ]
            if pairs:
                more = {name: asdict(mean_interval([a[name] - b[name] for a, b in pairs])) for name in SCORES}
                found.append({"variant": variant, "scale": scale, "images": len(pairs), **more})
    return found


def compute(options: argparse.Namespace, command: str) -> None:
    """Whatever fits are not done yet."""
    case = case_named(options.case)
    name = options.prior or case.dataset.prior
    images = load(case.dataset, options.data, options.prior)
    settings = settings_of("svi", case, "paper" if options.paper else "equal")
    assert isinstance(settings, VariationalSettings)
    settings = replace(settings, early_stop=False, steps=options.steps or settings.steps)
    path, pictures = options.out / "smoothing.json", options.out / "smoothing.draws.npz"
    identity = {"case": case.name, "prior": flowinv.load_prior(name).fingerprint(), "solver": describe(settings)}
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if before and before["settings"] != identity:
        raise ValueError(f"{path} was made with other settings; move it away")
    rows: list[dict[str, Any]] = before.get("rows", [])
    sheets = _read(pictures)
    done = {(row["variant"], row["scale"], row["image"]) for row in rows}
    jobs = [
        SmoothingJob(case, variant, scale, i, images.truth(i), name, options.data, settings)
        for i in range(options.images)
        for variant in options.variants
        for scale in SCALES[variant]
        if (variant, scale, i) not in done
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    for row, sheet in in_processes(fit, jobs, options.workers, options.threads, options.nice):
        rows.append(row)
        if sheet is not None:
            sheets |= {f"{row['variant']}:{row['scale']:g}:{name}": value for name, value in sheet.items()}
            save_arrays(pictures, sheets)
        about = {"command": command, "machine": machine(), "settings": identity, "summary": summarise(rows)}
        write_text(path, dump(about, rows))
        place = f"{row['variant']} {row['scale']:g} image {row['image']}"
        print(f"{len(rows)}  {place}: observed {row.get('observed')}  {row.get('failed', '')}", flush=True)


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def arguments_of(parser: argparse.ArgumentParser) -> None:
    """The study's options, which figures 7 and 8 have too."""
    parser.add_argument("--case", default="mnist-bottom")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--variants", nargs="+", default=list(SCALES), choices=list(SCALES))
    parser.add_argument("--steps", type=int, help="of each fit")
    parser.add_argument("--paper", action="store_true", help="the paper's architecture, rate and number of steps")
    common(parser)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments_of(parser)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    command = command_of("benchmarks.composing.smoothing", arguments)
    with in_one_line(parser):
        compute(options, command)


if __name__ == "__main__":
    main()
