"""Rows for table 1: every method on every task, batch by batch.

    python -m benchmarks.restoration.run --data DATA --split validation --workers 2
    python -m benchmarks.restoration.run --data DATA --workers 2 --images 192

With ``--split validation`` each method's weights are all tried on 32 validation faces (the claims' on 16, the posterior
mean's on 4); on the test faces it is run with the one that had the highest mean PSNR there. Rows go to
benchmarks/results/restoration/CASE/METHOD.json (validation: CASE/tuning), and the same command goes on where it stopped. The
posterior mean and the paper's claims on misfit and penalty are run on 32 test faces.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import flowinv
from benchmarks.command import command_of, in_one_line
from benchmarks.composing.crew import in_processes
from benchmarks.composing.data import TEST, VALIDATION, load
from benchmarks.composing.run import common, together
from benchmarks.machine import machine
from benchmarks.restoration.cases import BATCH, CASES, FACES, Case, case_named
from benchmarks.restoration.methods import (
    MEAN_OF,
    METHODS,
    PACE,
    PACES,
    PICTURED,
    TUNED_AT,
    applies,
    mean_settings,
    mean_start,
    method_named,
    point_settings,
)
from benchmarks.restoration.store import Store, best_weight
from benchmarks.restoration.work import Job, solve_job

RESULTS = Path("benchmarks/results/restoration")
FEW = 32  # test images of what is not in the paper's table
# validation images, fewer where a fit takes long and where a method is not in the paper's table
TUNED_ON = {"mean": 4, "l1-norm": 16, "l2-norm": 16, "l2-full": 16}


def images_for(method: str, split: str, wanted: int | None = None) -> int:
    """How many images a method gets."""
    if split == "validation":
        return min(wanted or BATCH, TUNED_ON.get(method, BATCH))
    return min(wanted or 192, 192 if METHODS[method].published else FEW)


def settings_of(case: Case, method: str, prior: str, pace: str = PACE, steps: int | None = None) -> dict[str, Any]:
    """What rows must share to stand in one file; those of test images share the weight as well."""
    shared = mean_settings() if method == "mean" else point_settings(method, case, 0.01, pace, steps)
    solver = {} if shared is None else {k: v for k, v in asdict(shared).items() if k not in ("weight", "first", "seed")}
    if method == "mean":
        solver |= {"mean_of": MEAN_OF, "around": asdict(mean_start(case))}
    return {
        "task": case.task,
        "options": dict(case.options),
        "noise": case.noise,
        "prior": prior,
        "solver": solver,
        "together": at_once(method),
    }


def at_once(method: str) -> int:
    """Images of one batch."""
    return 4 if method == "mean" else BATCH


def path_of(out: Path, case: Case, method: str, split: str, pace: str = PACE) -> Path:
    name = method if pace == PACE or METHODS[method].settings is None else f"{method}-{pace}"
    return out / case.name / ("tuning" if split == "validation" else "") / f"{name}.json"


def chosen(out: Path, case: Case, method: str, prior: str, pace: str = PACE, steps: int | None = None) -> float:
    """The weight with the highest mean PSNR on validation faces; refused where none was tried."""
    pace = TUNED_AT.get(pace, pace)
    settings = settings_of(case, method, prior, pace, steps)
    weights = METHODS[method].weights(case)
    if len(weights) == 1:
        return weights[0]
    store = Store(path_of(out, case, method, "validation", pace), settings)
    count = images_for(method, "validation")
    if any(store.missing(w, count) for w in weights):
        raise ValueError(f"{case.name} {method} was not tuned yet on {count} faces: run with --split validation first")
    tried = {w for w, _ in store.rows if not store.missing(w, count)}  # an earlier grid's as well
    best = best_weight(store.rows.values(), tried)
    if best is None:
        raise ValueError(f"{case.name} {method} failed with every weight")
    return best[0]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), help=f"of {', '.join(CASES)}")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help=f"of {', '.join(METHODS)}")
    parser.add_argument("--split", default="test", choices=("test", "validation"))
    parser.add_argument("--images", type=int, help="192 test or 32 validation faces by default")
    parser.add_argument(
        "--pace",
        default=PACE,
        choices=PACES,
        help="of point solvers: 500 steps at 5e-2, or at thrice the paper's rate; the paper's 1,500; 1,500 or 4,500 from 5e-2",
    )
    parser.add_argument("--steps", type=int, help="of every point solver, to try the harness")
    common(parser)
    parser.set_defaults(out=RESULTS)
    options = parser.parse_args(arguments)
    command = command_of("benchmarks.restoration.run", arguments)
    with in_one_line(parser):
        for name in options.methods:
            method_named(name)
        _run([case_named(name) for name in options.cases], options, command)


def _run(cases: list[Case], options: argparse.Namespace, command: str) -> None:
    own = [case.name for case in cases if case.prior != FACES.prior]
    if options.prior and own:
        raise ValueError(f"{own[0]} has a prior of its own: leave --prior out, or name other cases")
    if options.images is not None and options.images < 1:
        raise ValueError(f"--images must be at least 1, got {options.images}")
    images = load(FACES, options.data, options.prior or FACES.prior)
    if options.pace in TUNED_AT and options.split == "validation":
        raise ValueError(
            f"pace {options.pace} takes the weights of pace {TUNED_AT[options.pace]}: there is nothing to tune"
        )
    stores: dict[tuple[str, str], Store] = {}
    jobs: list[tuple[str, Job]] = []
    for case in cases:
        name = options.prior or case.prior
        prior = flowinv.load_prior(name).fingerprint()
        for method in options.methods:
            if not applies(METHODS[method], case):
                continue
            if method == "bm3d" and find_spec("bm3d") is None:
                print("bm3d: left out, its package is not installed (pip install flowinv[bm3d])")
                continue
            settings = settings_of(case, method, prior, options.pace, options.steps)
            tuning = options.split == "validation"
            weights = (
                METHODS[method].weights(case)
                if tuning
                else (chosen(options.out, case, method, prior, options.pace, options.steps),)
            )
            if not tuning:
                settings["weight"] = weights[0]
            store = Store(path_of(options.out, case, method, options.split, options.pace), settings)
            stores[case.name, method] = store
            count = images_for(method, options.split, options.images)
            for weight in weights:
                for group in together(store.missing(weight, count), at_once(method)):
                    truth = torch.cat([images.truth(i, VALIDATION if tuning else TEST) for i in group])
                    job = Job(case, method, weight, group[0], truth, name, options.pace, options.steps)
                    jobs.append((case.name, job))
    about = {"command": command, "machine": machine(), "split": options.split}
    started = time.perf_counter()
    for done, (case_name, method, found) in enumerate(
        in_processes(_solved, jobs, options.workers, options.threads, options.nice), 1
    ):
        store = stores[case_name, method]
        for row, pictures in found:
            store.add(row, pictures if options.split == "test" and method in PICTURED else {})
        store.write(about)
        rows = [row for row, _ in found if "failed" not in row]
        score = sum(row["psnr"] for row in rows) / max(1, len(rows))
        left = (time.perf_counter() - started) / done * (len(jobs) - done) / 60
        print(
            f"{case_name} {method} {found[0][0]['weight']:g}: {len(rows)} images, {score:.2f} dB  ({left:.0f} min left)",
            flush=True,
        )


def _solved(pair: tuple[str, Job]) -> tuple[str, str, list[Any]]:
    return pair[0], pair[1].method, solve_job(pair[1])


if __name__ == "__main__":
    main()
