"""Options of tasks, as they are written on a command line or given from Python."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from operator import index
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..settings import check_seed


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Options written name=value, as on a command line: numbers and true / false become what they look like."""
    options: dict[str, Any] = {}
    for written in pairs:
        name, equals, text = written.partition("=")
        name, text = name.strip(), text.strip()
        if not equals or not name or not text:
            raise ValueError(f"an option is written name=value, got {written!r}")
        if name in options:
            raise ValueError(f"option {name!r} is given twice")
        options[name] = _value(text)
    return options


def image_size(shape: Sequence[int], name: str) -> tuple[int, int]:
    if len(shape) != 3:
        raise ValueError(f"{name} is for images (C, H, W), got samples of shape {tuple(shape)}")
    return int(shape[1]), int(shape[2])


def generator_of(seed: int) -> torch.Generator:
    number = _integer(seed)
    if number is None:
        raise ValueError(f"seed must be an integer of at least 0, got {seed!r}")
    check_seed(number, "seed")
    return torch.Generator().manual_seed(number)


def _integer(value: Any) -> int | None:
    """An integer of any library as Python's; None for anything else, truth values included."""
    return None if isinstance(value, bool) or not hasattr(value, "__index__") else index(value)


def finite(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return float(value)


def positive(value: Any, name: str) -> float:
    if finite(value, name) <= 0:
        raise ValueError(f"{name} must be positive, got {value!r}")
    return float(value)


def whole(value: Any, name: str) -> int:
    number = _integer(value)
    if number is None or number < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
    return number


def pair(value: Any, name: str, check: Callable[[Any, str], Any]) -> tuple[Any, Any]:
    """One value for both axes, or two: a pair, or written AxB."""
    if isinstance(value, str):
        value = [_value(part) for part in value.split("x")]
    if not isinstance(value, list | tuple):
        value = (value, value)
    if len(value) != 2:
        raise ValueError(f"{name} must be one number, or two as HxW, got {value!r}")
    return check(value[0], name), check(value[1], name)


def span(value: Any, name: str, limit: int) -> tuple[int, int]:
    """The slice a:b of an axis, as text or as a pair."""
    parts = [_value(p) for p in value.split(":")] if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or len(parts) != 2 or not all(type(p) is int for p in parts):
        raise ValueError(f"{name} must be written a:b, got {value!r}")
    if not 0 <= parts[0] < parts[1] <= limit:
        raise ValueError(f"{name} must be a:b with 0 <= a < b <= {limit}, got {parts[0]}:{parts[1]}")
    return parts[0], parts[1]


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def jsonable(value: Any) -> Any:
    if isinstance(value, Tensor):
        return None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    number = _integer(value)
    if number is not None:
        return number
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else value
