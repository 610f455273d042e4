"""Weights from a .npz file: arrays by name, without pickle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..checkpoint import fit_or_refuse
from ..images import UNREADABLE
from ..store import BundleError


def read_weights(path: str | Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The float32 tensors that ``shapes`` names, from a .npz that holds them and nothing else.

    FileNotFoundError for a file that is not there, BundleError for one that holds something else.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            tensors = {name: torch.from_numpy(np.array(file[name])) for name in file.files}
    except (*UNREADABLE, TypeError, AttributeError) as error:
        raise BundleError(f"{path} cannot be read as an .npz of weights: {error}") from None
    fit_or_refuse(tensors, {name: torch.empty(shape) for name, shape in shapes.items()}, f"{path}: weights")
    return tensors
