"""A mask from a file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor


def read_mask(path: str | Path) -> Tensor:
    """Read a mask from a file: bool (H, W), or (C, H, W) of a picture whose channels differ; .npy keeps its shape.

    Values are 0 and 1, or 0 and 255 (white is observed); anything else is refused. A picture with transparency is
    refused too.
    """
    import numpy as np

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such mask file: {path}")
    if path.suffix.lower() == ".npy":
        try:
            array = np.load(path, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"{path} cannot be read as .npy: {error}") from None
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "buif":
            raise ValueError(f"{path} must hold one array of numbers")
    else:
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(path) as picture:
                transparent = "A" in picture.getbands() or "transparency" in picture.info
                array = np.asarray(picture.convert("RGB") if picture.mode in ("P", "RGB", "1") else picture)
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise ValueError(f"{path} cannot be read as a picture: {error}") from None
        if transparent:
            raise ValueError(f"{path} has transparency: a mask is black and white, without an alpha channel")
        if array.ndim == 3:
            array = np.moveaxis(array, -1, 0)
            array = array[0] if (array == array[:1]).all() else array
    values = np.unique(array)
    one = 255 if values.size and values[-1] == 255 else 1
    if values.size == 0 or not set(values.tolist()) <= {0, one}:
        shown = ", ".join(f"{v:g}" for v in values[:6].astype(float)) + (", ..." if values.size > 6 else "")
        raise ValueError(f"{path} must hold only 0 and 1, or only 0 and 255, got {shown or 'nothing'}")
    return torch.from_numpy(np.ascontiguousarray(array == one))
