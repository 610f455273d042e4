"""Learning rates and step sizes, chosen on validation images by the energy score of the draws, of a point by its error.

    python -m benchmarks.composing.tune mnist-bottom --data DATA --images 4

Every setting of a method's grid is run, within the "equal" budget, on the same few validation images, which no table uses; the
one with the least mean energy score (strictly proper, so that over-confidence does not pay; squared error of a point) goes to
benchmarks/composing/tuned.json, which ``run`` reads. All that was tried goes to benchmarks/results/composing/tuning/CASE.json,
row by row: the same command goes on where it stopped. Settings under which a run diverges lose.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

import flowinv
from benchmarks.command import command_of, in_one_line
from benchmarks.composing.cases import Case, case_named
from benchmarks.composing.crew import in_processes
from benchmarks.composing.data import VALIDATION, load, order
from benchmarks.composing.engines import first_fit
from benchmarks.composing.methods import (
    AMORTIZED,
    METHODS,
    TUNED,
    applies,
    asked_of,
    describe,
    method_named,
    settings_of,
)
from benchmarks.composing.perception import perception
from benchmarks.composing.run import amortizer_name, common, together
from benchmarks.composing.store import Row, dump
from benchmarks.composing.work import Job, solve_job
from benchmarks.machine import machine
from flowinv.store import write_text

Grid = dict[str, tuple[Any, ...]]
GRIDS: dict[str, Grid | tuple[Grid, ...]] = {
    "svi": (
        {"learning_rate": (1e-2, 2e-2, 4e-2, 8e-2), "start": ("prior",)},
        {"learning_rate": (1e-2, 2e-2), "start": ("laplace",)},
        {"learning_rate": (1e-2, 2e-2), "start": ("laplace",), "start_steps": (1000,)},
    ),
    "semi-amortized": {"learning_rate": (3e-3, 1e-2, 2e-2)},
    "ambient": {"learning_rate": (1e-4, 3e-4, 1e-3, 3e-3)},
    "lmc": {"step_size": (5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 4e-3)},
    "hmc": {"leapfrogs": (2, 5, 10, 20)},
    "hmc-noise": {"leapfrogs": (4, 8, 16)},
    "pl-mcmc": {"sigma_a": (1e-3, 1e-2, 5e-2, 0.1, 0.2)},
    "csgm": {"learning_rate": (0.01, 0.02, 0.05, 0.1), "weight": (1e-5, 1e-4, 1e-3, 1e-2)},
    "ivom": {"learning_rate": (5e-4, 2e-3, 1e-2, 3e-2), "init_scale": (0.1, 1.0)},
    "csgm-point": {"learning_rate": (0.02, 0.05, 0.1), "weight": (1e-4, 1e-3, 1e-2, 0.1)},
    "ivom-point": {"learning_rate": (2e-3, 1e-2, 3e-2, 0.1), "init_scale": (0.1, 1.0)},
}


def settings_in(*grids: Grid) -> list[dict[str, Any]]:
    """Every combination of the values of each grid."""
    return [dict(zip(grid, values, strict=True)) for grid in grids for values in product(*grid.values())]


def tried(method: str) -> list[dict[str, Any]]:
    """The changes to a method's settings that tuning tries."""
    grids = GRIDS[method]
    return settings_in(*(grids if isinstance(grids, tuple) else (grids,)))


def best(rows: Iterable[Row], images: int, criterion: str = "energy_score") -> tuple[dict[str, Any], float] | None:
    """The changes with the least mean criterion among those tried on all images; None where there are none."""
    by_changes: dict[str, list[Row]] = {}
    for row in rows:
        if row["image"] < images:
            by_changes.setdefault(json.dumps(row["changes"]), []).append(row)
    scores = {
        key: sum(row[criterion] for row in found) / len(found)
        for key, found in by_changes.items()
        if len(found) >= images and all(row.get(criterion) is not None for row in found)
    }
    if not scores:
        return None
    key = min(scores, key=lambda k: scores[k])
    return json.loads(key), scores[key]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case")
    parser.add_argument("--methods", nargs="+", default=list(GRIDS), help=f"of {', '.join(GRIDS)}")
    parser.add_argument("--images", type=int, default=4, help="validation images")
    parser.add_argument("--amortizer", help="folder; the shipped one by default")
    parser.add_argument("--shrink", type=int, default=1, help="so many times fewer steps, to try the harness")
    parser.add_argument("--tuned", type=Path, default=TUNED, help="where the choice is written")
    common(parser)
    options = parser.parse_args(arguments)
    command = command_of("benchmarks.composing.tune", arguments)
    with in_one_line(parser):
        _tune(case_named(options.case), [method_named(m) for m in options.methods], options, command)


def _tune(case: Case, methods: list[str], options: argparse.Namespace, command: str) -> None:
    name = options.prior or case.dataset.prior
    prior = flowinv.load_prior(name)
    images = load(case.dataset, options.data, name)
    perception(prior.shape[0] == 1, options.data)
    path = options.out / "tuning" / f"{case.name}{f'-shrunk{options.shrink}' if options.shrink > 1 else ''}.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    identity = {"prior": prior.fingerprint(), "case": case.name, "draws": case.draws}
    if known and known["identity"] != identity:
        raise ValueError(f"{path} was made with another prior or number of draws; move it away")
    rows: list[Row] = known.get("rows", [])
    done = {(_key(row["method"], row["solver"]), row["image"]) for row in rows}
    for method in methods:
        if method not in GRIDS or not applies(method, case):
            continue
        amortizer = amortizer_name(options.amortizer, case, prior, images) if method in AMORTIZED else None
        if method in AMORTIZED and amortizer is None:
            print(f"{method}: no amortizer for {case.name}")
            continue
        jobs, changes = [], {}
        first = first_fit(case, shrink=options.shrink) if method == "hmc-noise" else None
        places = order(len(images.validation), VALIDATION)
        few, criterion = replace(asked_of(method, case), images=options.images), METHODS[method].criterion
        for changed in tried(method):
            settings = settings_of(method, case, shrink=options.shrink, changes=changed)
            rests_on = (
                {"through": describe(first)} if first is not None else {"amortizer": amortizer} if amortizer else {}
            )
            key = _key(method, describe(settings) | rests_on)
            changes[key] = changed
            missing = [i for i in range(options.images) if (key, i) not in done]
            for group in together(missing, METHODS[method].together):
                truth = torch.cat([images.truth(i, VALIDATION) for i in group])
                taken = tuple(places[i] for i in group)
                job = Job(
                    few, method, settings, first, group[0], taken, truth, name, options.data, None, options.amortizer
                )
                jobs.append((key, job))
        for key, found_rows in in_processes(_keyed, jobs, options.workers, options.threads, options.nice):
            rows += [
                {"method": method, "changes": changes[key], "solver": json.loads(key)[1], **row} for row in found_rows
            ]
            path.parent.mkdir(parents=True, exist_ok=True)
            about = {"command": command, "machine": machine(), "identity": identity}
            write_text(path, dump(about, rows))
            for row in found_rows:
                score = row.get(criterion, row.get("failed"))
                print(f"{case.name} {method} {changes[key]} image {row['image']}: {score}", flush=True)
        found = best([row for row in rows if _key(row["method"], row["solver"]) in changes], options.images, criterion)
        if found is not None:
            _write(options.tuned, case.name, method, found[0], {criterion: round(found[1], 4)}, options.images)
            print(f"{case.name} {method}: {found[0]} with {criterion} {found[1]:.4g}")


def _key(method: str, solver: dict[str, Any]) -> str:
    return json.dumps([method, solver], sort_keys=True)


def _keyed(pair: tuple[str, Job]) -> tuple[str, list[Row]]:
    return pair[0], [result.row for result in solve_job(pair[1])]


def _write(path: Path, case: str, method: str, changes: dict[str, Any], score: dict[str, float], images: int) -> None:
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    entry = {"settings": changes, **score, "validation_images": images}
    known.setdefault(case, {})[method] = entry
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
