"""A training into a folder, from the command line: what it may be given, and how it is run, interrupted and gone on with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from .progress import progress


def run_folder(out: Path, name: str) -> tuple[Path, Path]:
    """The folders of a run's result, ``name``, and of its checkpoint; a finished run's or a foreign folder is refused."""
    folder, checkpoint = out / name, out / "checkpoint"
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; --out names a folder")
    if (folder / "config.json").exists():
        raise FileExistsError(f"{folder} exists: this run is finished; train into another folder")
    if out.exists() and any(out.iterdir()) and not checkpoint.exists():
        raise FileExistsError(f"{out} is not empty and holds no run to go on with; choose another folder")
    return folder, checkpoint


def run_training(trainer: Any, checkpoint: Path, said: Callable[[Any], str], stop_after: int | None) -> Any | None:
    """What the trainer makes, under a bar that says ``said(progress)``; None where it was told to stop before the end."""
    if checkpoint.exists():
        trainer.load(checkpoint)
        typer.echo(f"resuming at step {trainer.step} of {trainer.total}")
    with progress("training") as update:
        try:
            made = trainer.run(checkpoint, lambda p: update(p.step, p.total, said(p)), until=stop_after)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"step {trainer.step} of {trainer.total} is kept in {checkpoint}; the same command goes on from there"
            ) from None
    if trainer.step < trainer.total:
        typer.echo(f"stopped at step {trainer.step} of {trainer.total}; the same command goes on")
        return None
    return made
