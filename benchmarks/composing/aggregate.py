"""From rows to the cells of tables: every column a mean over images with its 95 % bootstrap interval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.composing.bootstrap import Interval, mean_interval
from benchmarks.composing.cases import Case
from benchmarks.composing.engines import MEAN_OF
from benchmarks.composing.perception import Reference
from benchmarks.composing.scores import frechet, frechet_difference, inception_type, of_truths
from benchmarks.composing.store import Row, read_features, read_rows
from flowinv.metrics import DigitClassifier

COLUMNS = (
    "squared_error",
    "squared_error_mean",
    "squared_error_hidden",
    "squared_error_mean_hidden",
    "psnr",
    "psnr_mean",
    "ssim",
    "ssim_mean",
    "perceptual",
    "perceptual_mean",
    "diversity",
    "diversity_std",
    "energy_score",
    "chi_squared",
    "elbo",
    "acceptance",
    "rhat",
    "passes",
)
PAIRED = ("squared_error", "squared_error_mean", "perceptual", "energy_score")
TIMES = ("seconds", "cpu_seconds", "seconds_per_draw")


def rows_at(path: Path) -> dict[str, Any] | None:
    """A file of rows whose means of few draws are brought to the number that the others have."""
    found = read_rows(path)
    return None if found is None else {**found, "rows": [mean_of_as_many(row) for row in found["rows"]]}


def mean_of_as_many(row: Row) -> Row:
    """A row with the squared error that the mean of MEAN_OF independent draws would have, where it has the mean of fewer.

    The error of the mean of k draws is that of the posterior mean and V / k, that of a draw the same and V: with two of them
    known, so is any other. A single point stays as it is, and so does what is over more, as the states of chains are.
    """
    k = row.get("mean_of", MEAN_OF)
    if not 1 < k < MEAN_OF:
        return row
    changed = dict(row)
    for name in ("squared_error", "squared_error_hidden"):
        of_mean = name.replace("squared_error", "squared_error_mean", 1)
        if row.get(name) is not None and row.get(of_mean) is not None:
            spread = (row[name] - row[of_mean]) * k / (k - 1)
            changed[of_mean] = row[name] - spread * (1 - 1 / MEAN_OF)
    return changed


def column(rows: list[Row], name: str) -> list[float]:
    """One value for each image that has one."""
    return [row[name] for row in rows if row.get(name) is not None]


def columns_of(rows: list[Row]) -> dict[str, Interval]:
    """Every column that rows have values for; times are of the images that were solved in the batch size met most often."""
    sizes = Counter(row.get("together", 1) for row in rows)
    timed = [row for row in rows if row.get("together", 1) == max(sizes, key=lambda size: sizes[size])]
    found = {name: column(rows, name) for name in COLUMNS} | {name: column(timed, name) for name in TIMES}
    return {name: mean_interval(values) for name, values in found.items() if values}


def common_images(paths: Iterable[Path]) -> set[int] | None:
    """The images that every one of the files has a row of, diverged or not; None where there are no files."""
    done = [{row["image"] for row in found["rows"]} for path in paths if (found := read_rows(path)) is not None]
    return set.intersection(*done) if done else None


def paired(path: Path, base: Path, references: Path) -> dict[str, Interval]:
    """What a method's scores exceed those of another by, on the images that both have: what images differ in cancels.

    ``psnr_of_mean`` is the PSNR of the other's mean less that of this one's single draws.
    """
    stored, others = rows_at(path), rows_at(base)
    if stored is None or others is None:
        return {}
    mine, theirs = ({row["image"]: row for row in found["rows"] if "failed" not in row} for found in (stored, others))
    both = sorted(set(mine) & set(theirs))
    if not both:
        return {}
    found = {
        name: mean_interval([mine[i][name] - theirs[i][name] for i in both])
        for name in PAIRED
        if all(rows[i].get(name) is not None for rows in (mine, theirs) for i in both)
    }
    found["psnr_of_mean"] = mean_interval([theirs[i]["psnr_mean"] - mine[i]["psnr"] for i in both])
    first, second = _features(path, both), _features(base, both)
    if first is not None and second is not None:
        found["frechet"] = frechet_difference(first, second, Reference.load(references / stored["reference"]))
    return found


def _features(path: Path, images: list[int]) -> Tensor | None:
    """Features of all draws (N, S, K) of some images, in their order."""
    stored = read_features(path)
    if stored is None:
        return None
    places = {image: i for i, image in enumerate(stored[0].tolist())}
    return torch.from_numpy(stored[1][[places[i] for i in images]]).float() if images else None


def summary(path: Path, case: Case, out: Path, only: set[int] | None = None) -> dict[str, Any] | None:
    """All cells of one method on one case, of all images or of those in ``only``, JSON-ready; None where it was never run.

    ``images`` and ``planned`` count images, ``failed`` those on which it diverged, ``frechet`` and ``inception_type`` are of all
    draws together.
    """
    found = rows_at(path)
    if found is None:
        return None
    taken = [row for row in found["rows"] if only is None or row["image"] in only]
    rows = [row for row in taken if "failed" not in row]
    cells = {name: asdict(interval) for name, interval in columns_of(rows).items()}
    real = out / "reference" / found["reference"]
    cells |= {name: asdict(interval) for name, interval in _set_scores(path, case, rows, real).items()}
    draws = rows[0]["draws"] if rows else case.draws
    return {
        "images": len(rows),
        "planned": max(case.images, found["images"]) if found["budget"] == "equal" else found["images"],
        "failed": len(taken) - len(rows),
        "draws": draws,
        "mean_of": rows[0]["mean_of"] if rows else None,
        "squared_error_mean_of": max(MEAN_OF, rows[0]["mean_of"]) if rows and rows[0]["mean_of"] > 1 else 1,
        "frechet_of_truths": of_truths(Reference.load(real), [row["image"] for row in rows], draws)
        if real.is_file()
        else None,
        "settings": found["settings"],
        "machine": found["machine"]["cpu"],
        "budget": found["budget"],
        "judges": found["judges"],
        "cells": cells,
    }


def _set_scores(path: Path, case: Case, rows: list[Row], real: Path) -> dict[str, Interval]:
    kept = _features(path, sorted(row["image"] for row in rows))
    if kept is None or not real.is_file():
        return {}
    found = {"frechet": frechet(kept, Reference.load(real))}
    if case.data == "mnist":
        head = DigitClassifier.shipped().head
        with torch.no_grad():
            found["inception_type"] = inception_type(head(kept).softmax(-1))
    return found
