"""Bundles on disk: a folder with config.json and model.safetensors, the layout of the Hugging Face hub."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class BundleError(ValueError):
    """A folder that is not the bundle it should be; the message says which file and why."""


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one part of a bundle, without its prefix."""
    return {k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")}


def hash_tensors(digest: Any, tensors: Mapping[str, Tensor]) -> None:
    """Add names and values to a hashlib digest, whatever order and device they come in."""
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())


@contextmanager
def replacing(*paths: Path) -> Iterator[list[Path]]:
    """Temporary neighbours to write to; renamed over ``paths`` when the block ends well, removed when it does not."""
    temporaries: list[Path] = []
    try:
        for path in paths:
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            os.close(handle)
            temporaries.append(Path(name))
        yield temporaries
        for temporary, path in zip(temporaries, paths, strict=True):
            temporary.chmod(0o644)
            temporary.replace(path)
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: to a temporary neighbour, then renamed over the target."""
    with replacing(path) as (temporary,):
        temporary.write_text(text, encoding="utf-8")


def to_json(value: Any) -> str:
    """Indented JSON; numbers that JSON has no word for, NaN and the infinities, become null."""

    def clean(part: Any) -> Any:
        if isinstance(part, float) and not math.isfinite(part):
            return None
        if isinstance(part, dict):
            return {k: clean(v) for k, v in part.items()}
        return [clean(v) for v in part] if isinstance(part, list | tuple) else part

    return json.dumps(clean(value), indent=2, allow_nan=False) + "\n"


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise FileExistsError where something would be written over unasked."""
    if not overwrite and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists already; choose another path or ask to overwrite")


def write_bundle(
    folder: str | Path, config: dict[str, Any], tensors: dict[str, Tensor], overwrite: bool = False
) -> Path:
    """Save tensors and a JSON config; an existing bundle is kept unless ``overwrite``, and until both are written."""
    from safetensors.torch import save_file

    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; a bundle is a folder")
    if not overwrite and any((folder / name).exists() for name in (CONFIG, WEIGHTS)):
        raise FileExistsError(f"{folder} already holds a bundle; choose another path or ask to overwrite")
    text = to_json(config)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / WEIGHTS, folder / CONFIG) as (weights, description):
        save_file({k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}, weights)
        description.write_text(text, encoding="utf-8")
    return folder


def bundle_format(folder: str | Path) -> str | None:
    """The format that a folder's config names, None where there is no such config."""
    try:
        config = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config.get("format") if isinstance(config, dict) else None


def read_bundle(folder: str | Path, expected_format: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and tensors of a bundle, refused with one clear line if missing, corrupt or of another kind."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise BundleError(f"{folder} has no {name}: expected a folder with {CONFIG} and {WEIGHTS}")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{folder / CONFIG} is not JSON: {error}") from None
    found = config.get("format") if isinstance(config, dict) else None
    if found != expected_format:
        raise BundleError(f"{folder / CONFIG} has format {found!r}, expected {expected_format!r}")
    try:
        return config, load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{folder / WEIGHTS} cannot be read as safetensors: {error}") from None
