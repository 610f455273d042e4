"""Rows on disk: a JSON file with one row per image, and beside it features of all draws and the first images' draws."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from flowinv.store import replacing, to_json, write_text

Row = dict[str, Any]
SHOWN = 8  # images of which the draws are kept


def dump(about: dict[str, Any], rows: Iterable[Row]) -> str:
    """JSON that reads line by line: one for each row. What is no number becomes null."""
    head = json.dumps(json.loads(to_json(about)), indent=1)[:-2]
    lines = ",\n  ".join(json.dumps(row, allow_nan=False) for row in rows)
    return f'{head},\n "rows": [\n  {lines}\n ]\n}}\n'


class Store:
    """The rows of one method on one case; what an earlier run with the same settings left is kept and added to.

    Files: ``<method>.json``; ``<method>.features.npz`` (image (N,), features (N, S, K), float16); ``<method>.draws.npz`` (image;
    truth, draws (n, S, C, H, W), mean and the observed picture (n, H, W, 3) in bytes; std (n, H, W) in float16) of the first
    SHOWN images.
    """

    def __init__(self, path: Path, settings: dict[str, Any], restart: bool = False):
        self.path, self.settings = path, json.loads(json.dumps(settings))
        self.rows: dict[int, Row] = {}
        self.features: dict[int, np.ndarray] = {}
        self.sheets: dict[int, dict[str, np.ndarray]] = {}
        if path.is_file() and not restart:
            self._read()

    def _beside(self, what: str) -> Path:
        return self.path.with_name(f"{self.path.stem}.{what}.npz")

    def _read(self) -> None:
        found = json.loads(self.path.read_text(encoding="utf-8"))
        if found["settings"] != self.settings:
            changed = sorted(
                k for k in {*found["settings"], *self.settings} if found["settings"].get(k) != self.settings.get(k)
            )
            raise ValueError(
                f"{self.path} holds rows made with other settings ({', '.join(changed)}); move it away, or start "
                "afresh with --restart"
            )
        if self._beside("features").is_file():
            with np.load(self._beside("features"), allow_pickle=False) as file:
                self.features = dict(zip(file["image"].tolist(), file["features"], strict=True))
        if self._beside("draws").is_file():
            with np.load(self._beside("draws"), allow_pickle=False) as file:
                names = [name for name in file.files if name != "image"]
                arrays = {name: file[name] for name in names}
                for i, image in enumerate(file["image"].tolist()):
                    self.sheets[image] = {name: arrays[name][i] for name in names}
        # rows are written last: one without its features is from a run that was killed in between
        self.rows = {row["image"]: row for row in found["rows"] if "failed" in row or row["image"] in self.features}

    def missing(self, images: int) -> list[int]:
        """Places of the first ``images`` images that are still to be done."""
        return [i for i in range(images) if i not in self.rows]

    def add(self, row: Row, features: np.ndarray | None, sheet: dict[str, np.ndarray] | None) -> None:
        self.rows[row["image"]] = row
        if features is not None:
            self.features[row["image"]] = features
        if sheet is not None and row["image"] < SHOWN:
            self.sheets[row["image"]] = sheet

    def write(self, about: dict[str, Any]) -> None:
        """Everything, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.features:
            _save(self._beside("features"), sorted(self.features), {"features": self.features})
        if self.sheets:
            names = next(iter(self.sheets.values()))
            parts = {name: {i: sheet[name] for i, sheet in self.sheets.items()} for name in names}
            _save(self._beside("draws"), sorted(self.sheets), parts)
        rows = [self.rows[i] for i in sorted(self.rows)]
        text = dump({**about, "host": platform.machine(), "settings": self.settings}, rows)
        write_text(self.path, text)


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """An .npz, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as (temporary,), open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _save(path: Path, images: list[int], parts: dict[str, dict[int, np.ndarray]]) -> None:
    arrays = {name: np.stack([values[i] for i in images]) for name, values in parts.items()}
    save_arrays(path, {"image": np.array(images), **arrays})


def read_rows(path: Path) -> dict[str, Any] | None:
    """A method's file, rows included; None where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def read_features(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Places of images (N,) and features (N, S, K) beside a method's file."""
    beside = path.with_name(f"{path.stem}.features.npz")
    if not beside.is_file():
        return None
    with np.load(beside, allow_pickle=False) as file:
        return file["image"], file["features"]


def read_draws(path: Path) -> dict[str, np.ndarray] | None:
    """The first images' draws beside a method's file."""
    beside = path.with_name(f"{path.stem}.draws.npz")
    if not beside.is_file():
        return None
    with np.load(beside, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
