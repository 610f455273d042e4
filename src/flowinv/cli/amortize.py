"""`flowinv amortize`: train what `flowinv solve --solver avi` answers with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .running import run_folder, run_training

_KEYS = ("prior", "task", "options", "sigma", "likelihood", "beta", "weights", "preset")


def amortize(
    config: Annotated[Path, typer.Argument(help="A TOML config: prior, task, options, sigma, training settings.")],
    out: Annotated[Path, typer.Option(help="Folder for the run: checkpoint/, then amortizer/.")],
    stop_after: Annotated[int | None, typer.Option(min=0, help="Stop at this step, keeping the checkpoint.")] = None,
) -> None:
    """Train an amortizer: posteriors of one task under one prior with no fit. The same command goes on after an interrupt.

    The config names prior, task, options, sigma, likelihood (of a distance: beta, weights) and preset, and any training
    setting beside them.

    [bold]Examples[/bold]

      flowinv amortize configs/avi-mnist-bottom.toml --out runs/avi

      flowinv solve mnist --image seven.png --task inpaint-bottom --solver avi --amortizer runs/avi/amortizer --out seven
    """
    from ..priors import load_prior
    from ..solvers import AmortizedTrainer, settings_for
    from ..tasks import task as named_task
    from ..training.config import read_toml
    from .forward import named_likelihood

    values = read_toml(config)
    if missing := [key for key in ("prior", "task") if not isinstance(values.get(key), str)]:
        raise ValueError(f"{config} needs {missing[0]} = a name")
    folder, checkpoint = run_folder(out, "amortizer")
    chosen: dict[str, Any] = {k: v for k, v in values.items() if k not in _KEYS}
    settings = settings_for("avi", values.get("preset"), **chosen)
    options = values.get("options", {})
    if not isinstance(options, dict):
        raise ValueError(f"{config}: options are a table of the task's, got {options!r}")
    if wrong := [name for name in ("sigma", "likelihood") if name in options]:
        raise ValueError(f"{config}: the task has no option {wrong[0]!r}; {wrong[0]} stands beside the task")
    prior = load_prior(values["prior"])
    kind, beta = values.get("likelihood", "gaussian"), values.get("beta")
    noise = named_likelihood(kind, values.get("sigma", 0.1), beta, values.get("weights"))
    task = named_task(values["task"], prior.shape, likelihood=noise, **options)
    trainer = AmortizedTrainer(prior, task, settings)
    amortizer = run_training(trainer, checkpoint, lambda p: f"{p.label} {p.value:.1f}", stop_after)
    if amortizer is None:
        return
    command = f"flowinv amortize {config} --out {out}"
    amortizer.save(folder, amortizer.card(values["prior"], command), overwrite=True)
    typer.echo(f"wrote {folder}")
