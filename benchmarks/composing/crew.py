"""Processes that do jobs side by side, and end when they are told to."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any, TypeVar

import torch

J = TypeVar("J")
R = TypeVar("R")
_PATIENCE = 20.0  # seconds that a process has to end by itself


def in_processes(
    function: Callable[[J], R], jobs: Iterable[J], workers: int, threads: int = 1, nice: int = 5
) -> Iterator[R]:
    """``function(job)`` of every job, as they end, in ``workers`` processes; 0 workers: here, one after another.

    An interrupt, or SIGTERM, ends the processes with the jobs they are at. What a job raises is raised here.
    """
    if workers == 0:
        yield from map(function, jobs)
        return
    queue = iter(jobs)
    crew: dict[Connection, Any] = {}
    with _sigterm_as_interrupt():
        try:
            for job in islice(queue, workers):
                mine, process = _hire(function, threads, nice)
                crew[mine] = process
                mine.send_bytes(pickle.dumps(job))
            busy = list(crew)
            while busy:
                for ready in wait(busy):
                    assert isinstance(ready, Connection)
                    found = _received(ready, crew[ready])
                    job_or_none = next(queue, None)
                    if job_or_none is None:
                        busy.remove(ready)
                    else:
                        ready.send_bytes(pickle.dumps(job_or_none))
                    yield found
        except BaseException:
            for process in crew.values():
                process.terminate()
            raise
        finally:
            for mine, process in crew.items():
                mine.close()  # an idle process ends when its line is cut
                process.join(_PATIENCE)
                if process.is_alive():
                    process.kill()


def _hire(function: Callable[[J], R], threads: int, nice: int) -> tuple[Connection, Any]:
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(function, theirs, threads, nice), daemon=True)
    process.start()
    theirs.close()
    return mine, process


def _received(line: Connection, process: Any) -> Any:
    try:
        went_well, found = pickle.loads(line.recv_bytes())
    except EOFError:
        process.join(_PATIENCE)
        raise RuntimeError(f"a worker process died (exit code {process.exitcode})") from None
    if not went_well:
        raise found
    return found


def _serve(function: Callable[[J], R], line: Connection, threads: int, nice: int) -> None:
    """A worker's life: a job in, its result or its exception out, until the line is cut."""
    torch.set_num_threads(threads)
    os.nice(nice)
    try:
        while True:
            job = pickle.loads(line.recv_bytes())
            line.send_bytes(_answered(function, job))
    except (EOFError, OSError, KeyboardInterrupt):
        return


def _answered(function: Callable[[J], R], job: J) -> bytes:
    """The result, or what is to be raised again where the job came from, an exception that does not pickle by its text."""
    try:
        return pickle.dumps((True, function(job)))
    except Exception as error:
        try:
            return pickle.dumps((False, error))
        except Exception:
            return pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}")))


class _sigterm_as_interrupt:
    """SIGTERM raises KeyboardInterrupt inside; nothing is changed outside of the main thread."""

    def __enter__(self) -> None:
        self.main = threading.current_thread() is threading.main_thread()
        if self.main:
            self.before = signal.signal(signal.SIGTERM, _interrupt)

    def __exit__(self, *_: object) -> None:
        if self.main:
            signal.signal(signal.SIGTERM, self.before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
