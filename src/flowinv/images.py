"""Images and measurements from files, in the prior's units."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

UNREADABLE = (zipfile.BadZipFile, zlib.error, OSError, ValueError, EOFError, NotImplementedError)
_ARRAYS, _PICTURES = {".npy", ".npz"}, {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}


def in_other_units(images: Tensor, low: float, high: float) -> bool:
    r"""Whether an image (N, \*shape) lies outside of [low, high] by more than a tenth of its width on average.

    Draws of a flow overshoot by less, single values by any amount.
    """
    outside = (images - images.clamp(low, high)).abs().flatten(1).mean(1)
    return bool((outside > 0.1 * (high - low)).any())


def _read_array(path: Path, key: str | None = None) -> np.ndarray:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            names = loaded.files
            name = key if key in names else names[0] if len(names) == 1 else None
            array = None if name is None else loaded[name]
    except UNREADABLE as error:
        raise ValueError(f"{path} cannot be read as an array: {error}") from None
    if not isinstance(array, np.ndarray):  # a zip's entries that are not arrays come as bytes
        raise ValueError(f"{path} holds {names}; expected one array{f' or one named {key!r}' if key else ''}")
    return array


def open_picture(path: Path) -> Image.Image:
    """A picture with 8 bits per channel as PIL has it, mode L or RGB; what would lose something on the way is refused."""
    from PIL import Image

    try:
        with Image.open(path) as file:
            file.load()
            if file.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"):
                raise ValueError(f"its mode is {file.mode}, expected 8 bits per channel")
            see_through = "A" in file.getbands() or "transparency" in file.info
            if see_through and file.convert("RGBA").getchannel("A").getextrema() != (255, 255):
                raise ValueError("it has transparency")
            return file.convert("L" if file.mode in ("1", "L", "LA") else "RGB")
    except (*UNREADABLE, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from None


def _read_picture(path: Path, channels: int | None, fit: tuple[int, int] | None) -> np.ndarray:
    from PIL import Image

    image = open_picture(path)
    if fit is not None:
        image = image.convert("L" if channels == 1 else "RGB").resize(fit[::-1], Image.Resampling.LANCZOS)
    array = np.asarray(image)
    if array.ndim == 3 and channels == 1 and (array == array[..., :1]).all():
        array = array[..., 0]  # grey, stored as colour
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _to_float(array: np.ndarray, path: Path) -> Tensor:
    """Bytes k become (k + .5) / 256; floating-point values stay as they are."""
    if array.dtype == np.uint8:
        return (torch.from_numpy(np.array(array)).float() + 0.5) / 256
    if array.dtype.kind != "f":
        raise ValueError(f"{path} must hold bytes or floating-point values, got {array.dtype}")
    return torch.from_numpy(np.array(array)).float()


def _existing(path: str | Path) -> Path:
    path = Path(path).expanduser()
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: expected a picture or an array")
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    if path.suffix.lower() not in _ARRAYS | _PICTURES:
        raise ValueError(f"{path}: expected one of {', '.join(sorted(_ARRAYS | _PICTURES))}")
    return path


def read_image(path: str | Path, shape: tuple[int, ...], fit: bool = False) -> Tensor:
    """Samples (B, *shape) from a picture (B = 1) or a .npy / .npz array; bytes k become (k + .5) / 256.

    An array holds one sample, or several along a leading axis. The size must be the prior's, unless ``fit`` asks for
    a picture to be resized and turned to grey or colour.
    """
    path = _existing(path)
    if path.suffix.lower() in _PICTURES:
        size = (shape[1], shape[2]) if len(shape) == 3 else None
        array = _read_picture(path, shape[0] if len(shape) == 3 else None, size if fit else None)
    else:
        array = _read_array(path, "x")
    if shape[0] == 1 and array.shape == shape[1:]:
        array = array[None]
    if array.shape == shape:
        array = array[None]
    if array.shape[1:] != shape or not len(array):
        hint = "; flowinv solve --fit resizes a picture" if path.suffix.lower() in _PICTURES and not fit else ""
        raise ValueError(f"{path} has shape {array.shape}, the prior's samples have {shape}{hint}")
    return _to_float(array, path)


def read_measurement(path: str | Path) -> Tensor:
    """A measurement y as it was recorded: an array of any shape, or a picture (C, H, W) with bytes as (k + .5) / 256."""
    path = _existing(path)
    array = _read_picture(path, None, None) if path.suffix.lower() in _PICTURES else _read_array(path, "y")
    return _to_float(array, path)
