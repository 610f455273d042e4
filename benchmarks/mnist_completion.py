"""MNIST completion: the bottom half observed, sigma .1, the pre-generator on the first test digits.

    python -m benchmarks.mnist_completion --data mnist.npz

The counterpart of the MNIST rows of Table 1 of Whang, Lindgren and Dimakis: summed squared error per image in [0, 1] units,
of single draws (theirs: 22.13, on a GPU-trained prior) and of the mean of 32. As in their protocol y = A(x) exactly and sigma only
smooths; ``--noisy`` adds the noise, and then chi-squared per observed pixel should be near 1. Rows are written as they
come: the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

import flowinv
from benchmarks.machine import machine
from flowinv.plots import contact_sheet
from flowinv.randomness import keyed_generator
from flowinv.solvers import PRESETS
from flowinv.store import write_text
from flowinv.summaries import data_fit
from flowinv.training.data import load_images

MEAN_OF = 32


def solve_one(image: torch.Tensor, index: int, arguments: argparse.Namespace) -> dict[str, float]:
    """One posterior's row."""
    torch.set_num_threads(arguments.threads)
    prior = flowinv.load_prior(arguments.prior)
    truth = (image[None].float() + 0.5) / 256
    task = flowinv.task("inpaint-bottom", prior.shape, sigma=0.1)
    y = task.observe(truth, keyed_generator(1, index), noise=arguments.noisy)
    problem = flowinv.InverseProblem.from_task(prior, task, y)
    settings = replace(PRESETS[arguments.preset], seed=index, bf16=arguments.bf16)
    started = time.perf_counter()
    posterior = flowinv.VariationalSolver(settings).solve(problem)
    seconds = time.perf_counter() - started
    draws = posterior.sample(MEAN_OF, keyed_generator(2, index))
    fit = data_fit(problem, posterior.source(256, keyed_generator(3, index)))
    assert posterior.elbo is not None and posterior.elbo_se is not None
    return {
        "image": index,
        "squared_error_single": float((draws - truth).square().flatten(2).sum(2).mean()),
        "squared_error_mean": float((draws.mean(0) - truth).square().sum()),
        "chi_squared": float(fit.value[0]),
        "elbo": float(posterior.elbo[0]),
        "elbo_se": float(posterior.elbo_se[0]),
        "steps": posterior.provenance["steps"],
        "seconds": seconds,
    }


def summarise(rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean, standard error over images, and median of every column."""
    table = {}
    for key in rows[0]:
        if key != "image":
            column = torch.tensor([row[key] for row in rows], dtype=torch.float64)
            error = float(column.std() / math.sqrt(len(rows))) if len(rows) > 1 else math.nan
            table[key] = {"mean": float(column.mean()), "standard_error": error, "median": float(column.median())}
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="MNIST as .npz, or torchvision:MNIST")
    parser.add_argument("--prior", default="mnist")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--preset", default="fast", choices=sorted(PRESETS))
    parser.add_argument("--bf16", action="store_true", help="the prior's networks in bfloat16 while fitting")
    parser.add_argument("--noisy", action="store_true", help="y = A(x) + noise instead of A(x)")
    parser.add_argument("--workers", type=int, default=2, help="posteriors fitted side by side")
    parser.add_argument("--threads", type=int, default=1, help="threads of each")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    prior = flowinv.load_prior(arguments.prior)
    name = f"mnist_completion{'_noisy' if arguments.noisy else ''}{'_bf16' if arguments.bf16 else ''}"
    path = arguments.out / f"{name}.json"
    settings = {"preset": arguments.preset, "prior": prior.fingerprint(), "solver": asdict(PRESETS[arguments.preset])}
    settings = json.loads(json.dumps(settings))
    done: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    rows: list[dict[str, float]] = done["rows"] if done.get("settings") == settings else []
    images = load_images(arguments.data).test
    arguments.out.mkdir(parents=True, exist_ok=True)
    flags = " --noisy" * arguments.noisy + " --bf16" * arguments.bf16
    about = {
        "command": f"python -m benchmarks.mnist_completion --images {arguments.images}{flags}",
        "machine": machine(),
        "workers": arguments.workers,
        "threads": arguments.threads,
        "settings": settings,
    }
    todo = range(len(rows), min(arguments.images, len(images)))
    started = time.perf_counter()
    with ProcessPoolExecutor(arguments.workers, multiprocessing.get_context("spawn")) as pool:
        jobs = ((images[i], i, arguments) for i in todo)
        for row in pool.map(solve_one, *zip(*jobs, strict=True)) if todo else ():
            rows.append(row)
            wall = (time.perf_counter() - started) / (len(rows) - todo.start)
            summary = {**summarise(rows), "wall_seconds_per_posterior": wall}
            write_text(path, json.dumps({**about, "summary": summary, "rows": rows}, indent=1) + "\n")
            print(f"{len(rows):4d}  " + "  ".join(f"{k} {v:.4g}" for k, v in row.items() if k != "image"), flush=True)
    if todo:
        print(f"{wall:.1f} s of wall time per posterior, {arguments.workers} side by side")
    sheet = arguments.out / f"{name}.png"
    draw_sheet(prior, images, arguments, sheet)
    for key, value in summarise(rows).items():
        print(f"{key:22s} {value['mean']:9.2f} +- {value['standard_error']:.2f}   median {value['median']:.2f}")


def draw_sheet(
    prior: flowinv.Flow, images: torch.Tensor, arguments: argparse.Namespace, path: Path, count: int = 6
) -> None:
    """The first digits in one picture: measurement, truth, mean, standard deviation, draws."""
    count = min(count, arguments.images)
    truth = (images[:count].float() + 0.5) / 256
    task = flowinv.task("inpaint-bottom", prior.shape, sigma=0.1)
    ys = [task.observe(truth[i : i + 1], keyed_generator(1, i), noise=arguments.noisy) for i in range(count)]
    problem = flowinv.InverseProblem.from_task(prior, task, torch.cat(ys))
    settings = replace(PRESETS[arguments.preset], bf16=arguments.bf16)
    posterior = flowinv.VariationalSolver(settings).solve(problem)
    contact_sheet(posterior, path, truth=truth, overwrite=True)


if __name__ == "__main__":
    main()
