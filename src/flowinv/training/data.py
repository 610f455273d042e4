"""Images to train on and to be tested on, as integers (N, C, H, W): from .npz, a folder, or torchvision."""

from __future__ import annotations

import contextlib
import inspect
import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..images import UNREADABLE, open_picture

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class ImageData:
    """Training and test images, uint8, each (N, C, H, W); ``test`` may be empty."""

    train: Tensor
    test: Tensor
    source: str


def _as_images(array: np.ndarray, what: str) -> Tensor:
    """(N, H, W) or (N, H, W, C) bytes to (N, C, H, W)."""
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8:
        raise ValueError(f"{what} must hold bytes (uint8), got {getattr(array, 'dtype', 'no array')}")
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[-1] not in (1, 3):
        raise ValueError(f"{what} must have shape (N, H, W) or (N, H, W, C) with C 1 or 3, got {array.shape}")
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def _from_npz(path: Path) -> ImageData:
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise ValueError(f"it holds one array {loaded.shape}")
        with loaded as file:
            arrays = {name: file[name] for name in ("train_x", "test_x") if name in file.files}
            names = file.files
    except UNREADABLE as error:
        raise ValueError(f"{path} cannot be read as .npz: {error}") from None
    if "train_x" not in arrays and "test_x" not in arrays:
        raise ValueError(f"{path} must hold train_x and/or test_x (uint8), got {names}")
    found = {name: _as_images(array, f"{path}: {name}") for name, array in arrays.items()}
    shape = next(iter(found.values())).shape[1:]
    if any(images.shape[1:] != shape for images in found.values()):
        shapes = " and ".join(f"{name} {tuple(images.shape)}" for name, images in found.items())
        raise ValueError(f"{path}: training and test images must have one shape (C, H, W), got {shapes}")
    empty = torch.empty((0, *shape), dtype=torch.uint8)
    return ImageData(found.get("train_x", empty), found.get("test_x", empty), path.name)


def _from_folder(path: Path) -> ImageData:
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in _SUFFIXES)
    if not files:
        raise ValueError(f"{path} holds no images ({', '.join(sorted(_SUFFIXES))})")
    groups: dict[bool, list[np.ndarray]] = {True: [], False: []}
    first: tuple[int, ...] | None = None
    for file in files:
        array = np.asarray(open_picture(file))
        first = first or array.shape
        if array.shape != first:
            raise ValueError(f"all images must have one shape: {file} has {array.shape}, {files[0]} has {first}")
        groups["test" in file.relative_to(path).parts[:-1]].append(array)
    assert first is not None
    empty = np.empty((0, *first), np.uint8)
    train = np.stack(groups[False]) if groups[False] else empty
    test = np.stack(groups[True]) if groups[True] else empty
    return ImageData(_as_images(train, str(path)), _as_images(test, str(path)), path.name)


def _from_torchvision(name: str, root: Path) -> ImageData:
    try:
        from torchvision import datasets
    except ImportError:
        raise ImportError("torchvision data sets need torchvision: pip install torchvision") from None

    kind = getattr(datasets, name, None)
    if not isinstance(kind, type):
        raise ValueError(f"torchvision has no data set {name!r}; for example MNIST, FashionMNIST, CIFAR10")
    parts = [_torchvision_part(kind, name, root, train) for train in (True, False)]
    return ImageData(parts[0], parts[1], f"torchvision:{name}")


def _torchvision_part(kind: Any, name: str, root: Path, train: bool) -> Tensor:
    """Training or test images of a torchvision data set that keeps them in memory, downloaded if need be."""
    known = inspect.signature(kind).parameters
    options: dict[str, Any] = {"download": True} if "download" in known else {}
    if "train" in known:
        options["train"] = train
    elif "split" in known:
        options["split"] = "train" if train else "test"
    quiet = io.StringIO()
    with contextlib.ExitStack() as stack:
        if not sys.stderr.isatty():  # torchvision draws its own bar, on files too
            stack.enter_context(contextlib.redirect_stdout(quiet))
            stack.enter_context(contextlib.redirect_stderr(quiet))
        try:
            array = np.asarray(kind(root, **options).data)
        except (RuntimeError, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"torchvision could not provide {name} in {root}: {reason}") from None
        except (TypeError, ValueError, AttributeError, ImportError) as error:
            raise ValueError(f"torchvision's {name} is not a plain set of training and test images: {error}") from None
    if array.ndim == 4 and array.shape[1] in (1, 3) and array.shape[3] not in (1, 3):
        array = array.transpose(0, 2, 3, 1)
    return _as_images(array, f"torchvision's {name}")


def load_images(source: str | Path, root: str | Path = "~/.cache/flowinv") -> ImageData:
    """Images from ``source``: an .npz with train_x / test_x, a folder (files below a ``test`` folder are test
    images), or ``torchvision:NAME``, downloaded to ``root`` where there is a network."""
    text = str(source)
    if text.startswith("torchvision:"):
        return _from_torchvision(text.removeprefix("torchvision:"), Path(root).expanduser())
    path = Path(source).expanduser()
    if path.is_dir():
        return _from_folder(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such data: {path} (expected an .npz, a folder of images, or torchvision:NAME)")
    return _from_npz(path)


def floor_bits(images: Tensor, bits: int) -> Tensor:
    """Keep the ``bits`` highest bits of bytes: grey levels 0 .. 2^bits - 1."""
    return images if bits == 8 else torch.bitwise_right_shift(images, 8 - bits)
