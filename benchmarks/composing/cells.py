"""Cells and tables in Markdown."""

from __future__ import annotations

from typing import Any

from benchmarks.composing.bootstrap import Interval, number

NONE = "–"


def interval_of(cell: dict[str, Any] | None) -> Interval | None:
    """A cell read from JSON, where nulls stand for what is no number; None where there is no value."""
    if cell is None or cell["value"] is None or cell["value"] != cell["value"]:
        return None
    low, high = (float("nan") if cell[k] is None else cell[k] for k in ("low", "high"))
    return Interval(cell["value"], low, high, cell["count"])


def text(cell: dict[str, Any] | None, digits: int = 3) -> str:
    """Value and interval, a dash where there is none."""
    interval = interval_of(cell)
    return interval.text(digits) if interval is not None else NONE


def value(cell: dict[str, Any] | None, digits: int = 3) -> str:
    """The value alone, a dash where there is none."""
    interval = interval_of(cell)
    return number(interval.value, digits) if interval is not None else NONE


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows]) + "\n"
