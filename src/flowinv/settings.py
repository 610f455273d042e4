"""Settings are dataclasses; here is what all of them refuse."""

from __future__ import annotations

import math
import types
from dataclasses import fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def _is(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type: number, text, one of several words, tuple, or a union of those."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Literal:
        return value in parts
    if kind in (Union, types.UnionType):
        return any(_is(value, part) for part in parts)
    if kind is tuple:
        if not isinstance(value, tuple):
            return False
        expected = parts[:1] * len(value) if len(parts) == 2 and parts[1] is ... else parts
        return len(value) == len(expected) and all(map(_is, value, expected))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return type(value) is int if hint is int else isinstance(value, hint)


def check_types(config: Any, what: str, positive_but: tuple[str, ...] | None = None) -> None:
    """Refuse a setting of the wrong type by name; given ``positive_but``, any number beside these that is not positive as well."""
    hints = get_type_hints(type(config))
    for setting in fields(config):
        value, hint = getattr(config, setting.name), hints[setting.name]
        if not _is(value, hint):
            expected = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
            if get_origin(hint) is Literal:
                expected = f"one of {', '.join(map(str, get_args(hint)))}"
            raise ValueError(f"{what} {setting.name} = {value!r} is not valid: expected {expected}")
        counted = value if isinstance(value, tuple) else (value,)
        free = positive_but is None or setting.name in positive_but
        if not free and any(_is(v, float) and v <= 0 for v in counted):
            raise ValueError(f"{what} {setting.name} = {value!r} must be positive")


def check_seed(seed: int, name: str) -> None:
    """Refuse a seed that a generator does not take, or takes for another one."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"{name} must lie in [0, 2^63), got {seed!r}")


def check_positive(config: Any, what: str, *names: str) -> None:
    """Refuse a setting that is not a positive, finite number, by name."""
    for name in names:
        if not 0 < getattr(config, name) < math.inf:
            raise ValueError(f"{what} {name} must be positive, got {getattr(config, name)!r}")
