"""Rows for the tables: methods on a case, image by image.

    python -m benchmarks.composing.run mnist-bottom --methods svi lmc --data DATA --images 100 --workers 2
    python -m benchmarks.composing.run faces-cs-250 --methods svi csgm-point ivom-point --draws 4 --data DATA
    python -m benchmarks.composing.run faces-top --data DATA --prior runs/faces/prior --budget paper --images 10

Rows are written as they come, to benchmarks/results/composing/CASE/METHOD.json (METHOD-paper.json): the same command goes on
where it stopped, and one with more ``--images`` adds to them. Every method sees the same observations. ``svi-mmse`` and ``asim``
are other names for the rows of svi (whose mean of 32 draws every row holds) and ivom. On a GPU: ``--device cuda --workers 1
--budget paper --precision float32 --images 900``, with a prior of the paper's size for its figures proper.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

import flowinv
from benchmarks.command import command_of, in_one_line
from benchmarks.composing.cases import CASES, Case, case_named
from benchmarks.composing.crew import in_processes
from benchmarks.composing.data import TEST, Images, load, order
from benchmarks.composing.engines import first_fit
from benchmarks.composing.methods import (
    AMORTIZED,
    METHODS,
    applies,
    asked_of,
    describe,
    method_named,
    settings_of,
    tuned,
)
from benchmarks.composing.perception import perception, reference, reference_path
from benchmarks.composing.store import Store
from benchmarks.composing.work import Job, solve_job
from benchmarks.machine import machine
from flowinv.solvers import Amortizer, find_amortizer

RESULTS = Path("benchmarks/results/composing")


def common(parser: argparse.ArgumentParser) -> None:
    """The options that every command with images and workers has."""
    parser.add_argument("--data", required=True, help="folder with the images, and the perceptual networks' weights")
    parser.add_argument("--prior", help="the prior's name or folder; the data set's own by default")
    parser.add_argument("--workers", type=int, default=2, help="images solved side by side (0: in this process)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each")
    parser.add_argument("--nice", type=int, default=5, help="how much the workers give way to other work")
    parser.add_argument("--out", type=Path, default=RESULTS)


def result_path(out: Path, case: str, method: str, budget: str = "equal", shrink: int = 1) -> Path:
    """Where a method's rows are."""
    name = method + ("-paper" if budget == "paper" else "") + (f"-shrunk{shrink}" if shrink > 1 else "")
    return out / case / f"{name}.json"


def identity(case: Case, method: str, settings: Any, first: Any, prior: str, amortizer: str | None) -> dict[str, Any]:
    """What rows must share to stand in one file. The number of images is no part of it."""
    experiment = {k: v for k, v in asdict(case).items() if k not in ("images", "tuned_as")}
    found: dict[str, Any] = {"case": experiment, "method": method, "prior": prior, "solver": describe(settings)}
    if method == "hmc-noise":
        found["through"] = describe(first)
    if method in AMORTIZED:
        found["amortizer"] = amortizer
    return found


def amortizer_name(given: str | None, case: Case, prior: flowinv.Flow, images: Images) -> str | None:
    """What tells one amortizer from another: when and how it was trained; None where there is none."""
    problem = case.problem(prior, images.truth(0), 0)
    found = Amortizer.load(given) if given is not None else find_amortizer(problem)
    if found is None:
        return None
    if (reason := found.refuses(problem)) is not None:
        raise ValueError(f"{given} does not fit {case.name}: {reason}")
    known = found.provenance
    return f"{known.get('steps')} steps, {known.get('seconds')} s, prior {found.prior_sha256[:12]}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", help=f"one of {', '.join(CASES)}")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help=f"of {', '.join(METHODS)}")
    parser.add_argument("--images", type=int, help="so many test images; the case's own number by default")
    parser.add_argument("--draws", type=int, help="of each; the case's own number by default")
    parser.add_argument("--budget", default="equal", choices=("equal", "paper"))
    parser.add_argument("--precision", default="bfloat16", choices=("bfloat16", "float32"), help="of inexact methods")
    parser.add_argument("--amortizer", help="folder; the shipped one by default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--together", type=int, help="images of one batch; what the method does best with by default")
    parser.add_argument("--shrink", type=int, default=1, help="so many times fewer steps, to try the harness")
    parser.add_argument("--restart", action="store_true", help="throw rows with other settings away")
    common(parser)
    options = parser.parse_args(arguments)
    for name in ("images", "draws", "together", "shrink"):
        if (given := getattr(options, name)) is not None and given < 1:
            parser.error(f"--{name} must be at least 1, got {given}")
    with in_one_line(parser):
        methods = list(dict.fromkeys(method_named(name) for name in options.methods))
        case = case_named(options.case)
        case = replace(case, images=options.images or case.images, draws=options.draws or case.draws)
        command = command_of("benchmarks.composing.run", arguments)
        _run(case, methods, options, command)


def _run(case: Case, methods: list[str], options: argparse.Namespace, command: str) -> None:
    name = options.prior or case.dataset.prior
    prior = flowinv.load_prior(name)
    images = load(case.dataset, options.data, name)
    case = replace(case, images=min(case.images, len(images.test)))
    reference(options.out, case.data, images, options.data)
    stores: dict[str, Store] = {}
    jobs: list[Job] = []
    for method in methods:
        if not applies(method, case):
            print(f"{method}: does not apply to {case.task}")
            continue
        known = amortizer_name(options.amortizer, case, prior, images) if method in AMORTIZED else None
        if method in AMORTIZED and known is None:
            print(f"{method}: no amortizer for {case.name}; give one with --amortizer")
            continue
        settings = settings_of(method, case, options.budget, options.precision, options.shrink)
        if options.budget == "equal" and settings is not None and not tuned(case, method):
            print(f"{method}: not tuned for {case.name}, the preset's settings are taken")
        first = first_fit(case, options.precision, options.shrink) if method == "hmc-noise" else None
        path = result_path(options.out, case.name, method, options.budget, options.shrink)
        asked = asked_of(method, case)
        stores[method] = Store(
            path, identity(asked, method, settings, first, prior.fingerprint(), known), options.restart
        )
        places = order(len(images.test), TEST)
        projection = str(reference_path(options.out, case.data, prior.shape))
        for group in together(stores[method].missing(case.images), options.together or METHODS[method].together):
            truth = torch.cat([images.truth(i) for i in group])
            sources = tuple(places[i] for i in group)
            jobs.append(
                Job(
                    asked,
                    method,
                    settings,
                    first,
                    group[0],
                    sources,
                    truth,
                    name,
                    options.data,
                    projection,
                    options.amortizer,
                    options.device,
                )
            )
    about = {
        "command": command,
        "budget": options.budget,
        "judges": perception(prior.shape[0] == 1, options.data).names,
        "machine": machine(),
        "workers": options.workers,
        "threads": options.threads,
        "device": options.device,
        "images": case.images,
        "reference": reference_path(options.out, case.data, prior.shape).name,
    }
    _solve(case, stores, jobs, about, options)


def together(places: list[int], most: int) -> list[list[int]]:
    """Places that follow one another in the list, at most so many in a group."""
    groups: list[list[int]] = []
    for place in places:
        if groups and place == groups[-1][-1] + 1 and len(groups[-1]) < most:
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups


def _solve(
    case: Case, stores: dict[str, Store], jobs: list[Job], about: dict[str, Any], options: argparse.Namespace
) -> None:
    started, done, wanted = time.perf_counter(), 0, sum(len(job.truth) for job in jobs)
    shown = ("squared_error", "squared_error_mean", "perceptual", "energy_score", "chi_squared", "seconds")
    for results in in_processes(solve_job, jobs, options.workers, options.threads, options.nice):
        store = stores[results[0].method]
        for result in results:
            store.add(result.row, result.features, result.sheet)
        store.write({**about, "exact": METHODS[results[0].method].exact})
        done += len(results)
        left = (time.perf_counter() - started) / done * (wanted - done) / 60
        for row in (result.row for result in results):
            values = "  ".join(f"{k} {row[k]:.4g}" for k in shown if row.get(k) is not None)
            place = f"{case.name} {results[0].method}  {len(store.rows)}/{case.images}  image {row['image']}"
            print(f"{place}  {row.get('failed', values)}  ({left:.0f} min left)", flush=True)
    for method, store in stores.items():
        print(f"{case.name} {method}: {len(store.rows)} of {case.images} images")


if __name__ == "__main__":
    main()
