"""`flowinv amortize`: train what `flowinv solve --solver avi` answers with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .progress import progress

_KEYS = ("prior", "task", "options", "sigma", "likelihood", "preset")


def amortize(
    config: Annotated[Path, typer.Argument(help="A TOML config: prior, task, options, sigma, training settings.")],
    out: Annotated[Path, typer.Option(help="Folder for the run: checkpoint/, then amortizer/.")],
    stop_after: Annotated[int | None, typer.Option(min=0, help="Stop at this step, keeping the checkpoint.")] = None,
) -> None:
    """Train an amortizer: posteriors of one task under one prior with no fit. The same command goes on after an interrupt.

    The config names prior, task, options, sigma, likelihood and preset, and any training setting beside them.

    [bold]Examples[/bold]

      flowinv amortize configs/avi-mnist-bottom.toml --out runs/avi

      flowinv solve mnist --image seven.png --task inpaint-bottom --solver avi --amortizer runs/avi/amortizer --out seven
    """
    from ..priors import load_prior
    from ..solvers import AmortizedTrainer, SolverProgress, settings_for
    from ..tasks import task as named_task
    from ..training.config import read_toml
    from .forward import named_likelihood

    values = read_toml(config)
    if missing := [key for key in ("prior", "task") if not isinstance(values.get(key), str)]:
        raise ValueError(f"{config} needs {missing[0]} = a name")
    folder, checkpoint = out / "amortizer", out / "checkpoint"
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; --out names a folder")
    if (folder / "config.json").exists():
        raise FileExistsError(f"{folder} exists: this run is finished; train into another folder")
    if out.exists() and any(out.iterdir()) and not checkpoint.exists():
        raise FileExistsError(f"{out} is not empty and holds no run to go on with; choose another folder")
    chosen: dict[str, Any] = {k: v for k, v in values.items() if k not in _KEYS}
    settings = settings_for("avi", values.get("preset"), **chosen)
    prior = load_prior(values["prior"])
    noise = named_likelihood(values.get("likelihood", "gaussian"), values.get("sigma", 0.1))
    task = named_task(values["task"], prior.shape, likelihood=noise, **values.get("options", {}))
    trainer = AmortizedTrainer(prior, task, settings)
    if checkpoint.exists():
        trainer.load(checkpoint)
        typer.echo(f"resuming at step {trainer.step} of {settings.steps}")
    with progress("training") as update:

        def show(p: SolverProgress) -> None:
            update(p.step, p.total, f"{p.label} {p.value:.1f}")

        try:
            amortizer = trainer.run(checkpoint, show, until=stop_after)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"step {trainer.step} of {settings.steps} is kept in {checkpoint}; the same command goes on from there"
            ) from None
    if trainer.step < settings.steps:
        typer.echo(f"stopped at step {trainer.step} of {settings.steps}; the same command goes on")
        return
    command = f"flowinv amortize {config} --out {out}"
    amortizer.save(folder, amortizer.card(values["prior"], command), overwrite=True)
    typer.echo(f"wrote {folder}")
