"""Where a solver stands, and how it stops when it must."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ..checkpoint import whole
from ..interrupts import Resumable, keep_stepping

S = TypeVar("S")


@dataclass(frozen=True)
class SolverProgress:
    """Step of at most ``total``; ``value``, noisy, of what ``label`` names, averaged over observations; seconds so far."""

    step: int
    total: int
    value: float
    seconds: float
    label: str = "ELBO"


class Diverged(RuntimeError):
    """A term of the objective left the finite numbers; ``result`` holds the last good state, None where there was none."""

    def __init__(self, step: int, term: str, result: Any, advice: str = "Lower the learning rate"):
        what_next = " at the start: check" if result is None else f". {advice}, or check"
        super().__init__(f"step {step}: {term} is not finite{what_next} y and the operator")
        self.step, self.term, self.result, self.advice = step, term, result, advice

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled with its result, as exceptions are not by themselves."""
        return type(self), (self.step, self.term, self.result, self.advice)


def preset_or_settings(given: S | str, presets: Mapping[str, S]) -> S:
    """Settings as they are, or by the name of a preset; an unknown name is refused with the known ones."""
    if not isinstance(given, str):
        kind = type(next(iter(presets.values())))
        if not isinstance(given, kind):
            raise TypeError(f"settings are {kind.__name__} or a preset's name, got {type(given).__name__}")
        return given
    if given not in presets:
        raise ValueError(f"unknown preset {given!r}: expected one of {', '.join(presets)}")
    return presets[given]


class SolverRun(Resumable, Protocol):
    """One run of a solver."""

    def one_step(self) -> None: ...

    def load(self, folder: Path) -> None: ...


def has_checkpoint(folder: str | Path | None) -> bool:
    """Whether there is a run to go on with."""
    return folder is not None and (Path(folder) / "config.json").exists()


def drive(
    run: SolverRun,
    running: Callable[[], bool],
    progress: Callable[[], SolverProgress],
    checkpoint: str | Path | None,
    report: Callable[[SolverProgress], None] | None,
    every: float,
) -> None:
    """Step while ``running``, from the checkpoint on if there is one, reporting and saving on the way."""
    folder = Path(checkpoint) if checkpoint is not None else None
    if folder is not None and has_checkpoint(folder):
        with whole(folder, "checkpoint"):
            run.load(folder)

    def show() -> None:
        if report is not None:
            report(progress())

    keep_stepping(run, running, run.one_step, show, folder, every)
