"""Interrupts that wait for the end of a step, so that what is saved is whole."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch


@contextmanager
def between_steps() -> Iterator[Callable[[], None]]:
    """Yields check(), to be called between two steps: it raises the KeyboardInterrupt that came meanwhile.

    An optimiser stopped in the middle of a step has moved some weights and not others, and nothing that is saved
    then goes on as an unbroken run would have. SIGTERM counts as an interrupt; a second one is not held back.
    Handlers that the caller installed are left alone, and so is everything outside of the main thread.
    """
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    def check() -> None:
        if caught:
            raise KeyboardInterrupt

    replaced: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for kind, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
            if signal.getsignal(kind) == usual:
                replaced[kind] = signal.signal(kind, note)
    try:
        yield check
        check()
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)


class Resumable(Protocol):
    """What steps for long: ``seconds`` counts all its runs, ``save`` writes what a later one goes on from."""

    seconds: float

    def save(self, folder: Path) -> None: ...


def keep_stepping(
    run: Resumable,
    running: Callable[[], bool],
    step: Callable[[], None],
    report: Callable[[], None],
    folder: Path | None,
    every: float,
) -> None:
    """Step, with the clock, and report while ``running``; save to ``folder`` every ``every`` seconds, when interrupted, and
    at the end.

    After half a step nothing is saved: the checkpoint before it is better than that.
    """
    started, before = time.monotonic(), run.seconds
    saved, whole = started, True
    with between_steps() as check, torch.enable_grad():  # the caller may have turned it off
        try:
            while running():
                whole = False
                step()
                run.seconds = before + time.monotonic() - started
                whole = True
                report()
                check()
                if folder is not None and time.monotonic() - saved > every:
                    run.save(folder)
                    saved = time.monotonic()
        except KeyboardInterrupt:
            if folder is not None and whole:
                run.save(folder)
            raise
        if folder is not None:
            run.save(folder)
