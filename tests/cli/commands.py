"""Command lines that the tests share, and what they look at afterwards."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from flowinv import Posterior

SHAPE = (1, 4, 4)

TRAINING = """epochs = 4
batch = 8
warmup = 2
holdout = 8
learning_rate = 5e-3
[flow]
architecture = "glow"
shape = [1, 4, 4]
steps = [1]
hidden = 4
"""

Run = Callable[..., tuple[int, str, str]]

SOLVE = ("solve", "in/affine", "--out", "out", "--steps", 3, "--draws", 8)

IMAGE = (*SOLVE, "--image", "in/image.png")

MEASURED = (*SOLVE, "--measurement", "in/y.npy")

TRAIN = ("train", "in/train.toml", "--data", "in/data.npz", "--out", "out")

OUTPUTS = ["figure.png", "posterior", "report.html", "summary.json"]


def with_operator(name: str) -> tuple[object, ...]:
    return (*SOLVE, "--measurement", "in/half.npy", "--operator", name)


def contents(folder: Path) -> dict[str, bytes | None]:
    paths = [p for root in (folder, folder / "in") for p in root.rglob("*") if "__pycache__" not in p.parts]
    return {str(p): p.read_bytes() if p.is_file() else None for p in paths}


def finished(folder: Path) -> tuple[Posterior, dict[str, Any]]:
    assert sorted(p.name for p in folder.iterdir()) == OUTPUTS
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!") and "http://" not in re.sub(r"http://www\.w3\.org\S*", "", page)
    with Image.open(folder / "figure.png") as picture:
        assert min(picture.size) > 50
    return Posterior.load(folder / "posterior"), json.loads((folder / "summary.json").read_text())


@contextlib.contextmanager
def stopping(at: int, label: str) -> Iterator[Any]:
    def update(step: int, total: int, note: str) -> None:
        if step == at:
            raise KeyboardInterrupt

    yield update
