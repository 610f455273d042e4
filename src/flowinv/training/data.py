"""Images to train on and to be tested on, as integers (N, C, H, W): from .npz, a folder, JPEG bytes, or torchvision."""

from __future__ import annotations

import contextlib
import inspect
import io
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..images import UNREADABLE, open_picture

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}


Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Preparation:
    """What is done to pictures as they are read, and which of them are for the test.

    ``crop`` (left, upper, right, lower) is cut out and resized (Lanczos) to ``size`` (height, width). Of data that
    name no test images the last ``test`` are kept for it.
    """

    crop: Box | None = None
    size: tuple[int, int] | None = None
    test: int = 0

    def picture(self, image: Image.Image) -> Image.Image:
        if self.crop is None or self.size is None:
            return image
        left, upper, right, lower = self.crop
        if not (0 <= left < right <= image.width and 0 <= upper < lower <= image.height):
            raise ValueError(f"crop {self.crop} does not lie inside a picture of {image.width} x {image.height}")
        return image.crop(self.crop).resize(self.size[::-1], Image.Resampling.LANCZOS)

    def split(self, data: ImageData) -> ImageData:
        if len(data.test) or not self.test:
            return data
        if len(data.train) <= self.test:
            raise ValueError(f"{data.source} holds {len(data.train)} images, no more than the {self.test} for the test")
        return ImageData(data.train[: -self.test], data.train[-self.test :], data.source)


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


def _from_jpeg(
    blob: np.ndarray, offsets: np.ndarray, labels: dict[str, np.ndarray], path: Path, prepare: Preparation
) -> ImageData:
    """Pictures as bytes end to end: the i-th is blob[offsets[i] : offsets[i + 1]]; ``is_train`` tells their use."""
    ends = offsets.astype(np.int64) if offsets.ndim == 1 and np.issubdtype(offsets.dtype, np.integer) else None
    if blob.dtype != np.uint8 or blob.ndim != 1 or ends is None or len(ends) < 2:
        raise ValueError(f"{path}: blob must be bytes (N,) and offsets whole numbers (images + 1,)")
    if ends[0] < 0 or ends[-1] > len(blob) or (np.diff(ends) <= 0).any():
        raise ValueError(f"{path}: offsets must rise from 0 to at most the {len(blob)} bytes of blob")
    arrays: list[np.ndarray] = []
    for i, (start, stop) in enumerate(pairwise(ends.tolist())):
        try:
            with Image.open(io.BytesIO(blob[start:stop].tobytes())) as picture:
                array = np.asarray(prepare.picture(picture.convert("L" if picture.mode == "L" else "RGB")))
        except UNREADABLE as error:
            raise ValueError(f"{path}: picture {i} cannot be read: {error}") from None
        if arrays and array.shape != arrays[0].shape:
            raise ValueError(
                f"{path}: all pictures must have one shape, number {i} has {array.shape}, not {arrays[0].shape}"
            )
        arrays.append(array)
    images = _as_images(np.stack(arrays), str(path))
    is_train = labels.get("is_train", np.ones(len(images), bool))
    if is_train.shape != (len(images),) or is_train.dtype != bool:
        raise ValueError(f"{path}: is_train must hold one bool for each of the {len(images)} pictures")
    chosen = torch.from_numpy(is_train)
    return ImageData(images[chosen], images[~chosen], path.name)


def _from_npz(path: Path, prepare: Preparation) -> ImageData:
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise ValueError(f"it holds one array {loaded.shape}")
        with loaded as file:
            known = ("train_x", "test_x", "blob", "offsets", "is_train")
            arrays = {name: file[name] for name in known if name in file.files}
            names = file.files
    except UNREADABLE as error:
        raise ValueError(f"{path} cannot be read as .npz: {error}") from None
    if "blob" in arrays and "offsets" in arrays:
        return _from_jpeg(arrays.pop("blob"), arrays.pop("offsets"), arrays, path, prepare)
    arrays = {name: array for name, array in arrays.items() if name in ("train_x", "test_x")}
    if not arrays:
        raise ValueError(f"{path} must hold train_x and/or test_x (uint8), or blob and offsets, got {names}")
    found = {name: _as_images(array, f"{path}: {name}") for name, array in arrays.items()}
    shape = next(iter(found.values())).shape[1:]
    if any(images.shape[1:] != shape for images in found.values()):
        shapes = " and ".join(f"{name} {tuple(images.shape)}" for name, images in found.items())
        raise ValueError(f"{path}: training and test images must have one shape (C, H, W), got {shapes}")
    empty = torch.empty((0, *shape), dtype=torch.uint8)
    return ImageData(found.get("train_x", empty), found.get("test_x", empty), path.name)


def _from_folder(path: Path, prepare: Preparation) -> ImageData:
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in _SUFFIXES)
    if not files:
        raise ValueError(f"{path} holds no images ({', '.join(sorted(_SUFFIXES))})")
    groups: dict[bool, list[np.ndarray]] = {True: [], False: []}
    first: tuple[int, ...] | None = None
    for file in files:
        array = np.asarray(prepare.picture(open_picture(file)))
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


def load_images(
    source: str | Path, root: str | Path = "~/.cache/flowinv", prepare: Preparation | None = None
) -> ImageData:
    """Images from ``source``: an .npz with train_x / test_x, or with pictures as bytes (blob, offsets and perhaps
    is_train), a folder (files below a ``test`` folder are test images), or ``torchvision:NAME``, downloaded to ``root``
    where there is a network. ``prepare`` crops and resizes pictures and sets test images apart."""
    prepare = prepare or Preparation()
    text = str(source)
    path = Path(source).expanduser()
    if text.startswith("torchvision:"):
        data = _from_torchvision(text.removeprefix("torchvision:"), Path(root).expanduser())
    elif path.is_dir():
        data = _from_folder(path, prepare)
    elif path.is_file():
        data = _from_npz(path, prepare)
    else:
        raise FileNotFoundError(f"no such data: {path} (expected an .npz, a folder of images, or torchvision:NAME)")
    return prepare.split(data)


def floor_bits(images: Tensor, bits: int) -> Tensor:
    """Keep the ``bits`` highest bits of bytes: grey levels 0 .. 2^bits - 1."""
    return images if bits == 8 else torch.bitwise_right_shift(images, 8 - bits)
