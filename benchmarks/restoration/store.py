"""Rows of a method on a case, and pictures of the first faces."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.composing.store import dump, save_arrays
from flowinv.store import write_text

SHOWN = 8
Key = tuple[float, int]


class Store:
    """``<method>.json`` with one row for each weight and image; ``<method>.npz`` with bytes of the first SHOWN of the tests."""

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path, self.settings = path, json.loads(json.dumps(settings))
        self.rows: dict[Key, dict[str, Any]] = {}
        self.pictures: dict[str, np.ndarray] = {}
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["settings"] != self.settings:
                raise ValueError(f"{path} holds rows made with other settings or another prior; move it away")
            self.rows = {(row["weight"], row["image"]): row for row in found["rows"]}
            beside = path.with_suffix(".npz")
            if beside.is_file():
                with np.load(beside, allow_pickle=False) as file:
                    self.pictures = {name: file[name] for name in file.files}

    def missing(self, weight: float, images: int) -> list[int]:
        return [i for i in range(images) if (weight, i) not in self.rows]

    def add(self, row: dict[str, Any], pictures: dict[str, np.ndarray]) -> None:
        self.rows[row["weight"], row["image"]] = row
        if row["image"] < SHOWN:
            self.pictures |= {f"{row['weight']:g}:{row['image']}:{name}": value for name, value in pictures.items()}

    def write(self, about: dict[str, Any]) -> None:
        """Everything, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.pictures:
            save_arrays(self.path.with_suffix(".npz"), self.pictures)
        rows = [self.rows[key] for key in sorted(self.rows)]
        write_text(self.path, dump({**about, "settings": self.settings}, rows))


def mean_psnr(rows: Iterable[dict[str, Any]], weight: float) -> float | None:
    """Over a weight's images; None where one failed or none was done."""
    values = [row.get("psnr") for row in rows if row["weight"] == weight]
    return None if not values or None in values else sum(v for v in values if v is not None) / len(values)


def best_weight(rows: Iterable[dict[str, Any]], weights: Iterable[float]) -> tuple[float, float] | None:
    """The weight with the highest mean PSNR, and that; None where every one failed."""
    rows = list(rows)
    scores = {w: s for w in weights if (s := mean_psnr(rows, w)) is not None}
    return max(scores.items(), key=lambda pair: pair[1]) if scores else None
