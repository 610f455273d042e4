"""`flowinv demo`: a real problem, start to finish."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .outcome import refuse, solve_into


def demo(
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("demo"),
    digit: Annotated[int, typer.Option(min=0, max=9, help="Which of the ten shipped test digits.")] = 7,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier demo in the folder.")] = False,
) -> None:
    """Solve a real problem in under a minute: an MNIST test digit of which only the lower half was seen, with noise.

    [bold]Examples[/bold]

      flowinv demo

      flowinv demo --digit 4 --out four
    """
    from importlib.resources import as_file, files

    import numpy as np
    import torch

    from ..priors import load_prior
    from ..problem import InverseProblem
    from ..solvers import settings_for
    from ..tasks import task

    refuse(out, overwrite)
    flow = load_prior("mnist")
    with as_file(files("flowinv") / "demo" / "digits.npz") as path, np.load(path, allow_pickle=False) as file:
        truth = (torch.from_numpy(file["test_x"][digit])[None, None].float() + 0.5) / 256
    chosen = task("inpaint-bottom", flow.shape, sigma=0.1)
    y = chosen.observe(truth, torch.Generator().manual_seed(0))
    problem = InverseProblem.from_task(flow, chosen, y)
    about = {
        "prior": "mnist",
        "task": "inpaint-bottom",
        "options": [],
        "likelihood": "gaussian",
        "sigma": 0.1,
        "seed": 0,
    }
    title = f"An MNIST {digit} of which the lower half was seen"
    solve_into(out, "svi", problem, settings_for("svi"), 512, truth, about, overwrite, title)
