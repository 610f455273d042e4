"""One progress bar, on a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Update = Callable[[int, int, str], None]


@contextmanager
def progress(label: str) -> Iterator[Update]:
    """Yields update(step, total, note): a bar with the note and the time left on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda step, total, note: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None, note="")

        def update(step: int, total: int, note: str) -> None:
            bar.update(task, completed=step, total=total, note=note)

        yield update
