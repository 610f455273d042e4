"""`flowinv report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    posterior: Annotated[Path, typer.Argument(help="A saved posterior, or the folder `flowinv solve` wrote.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    truth: Annotated[
        Path | None, typer.Option(help="The true image, where known, to show beside the posterior.")
    ] = None,
    operator: Annotated[str | None, typer.Option(help="module:function, where the operator was one.")] = None,
    draws: Annotated[int, typer.Option(min=2, max=100_000, help="Posterior draws behind the page.")] = 512,
    title: Annotated[str | None, typer.Option(help="The page's title.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the draws.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing page.")] = False,
) -> None:
    """Write the report on a saved posterior: one HTML page that needs no network, with a pixel explorer.

    [bold]Examples[/bold]

      flowinv report seven --out seven.html

      flowinv report seven/posterior --truth seven.png --draws 2000 --out seven.html
    """
    from ..images import read_image
    from ..point_estimate import FORMAT as POINT
    from ..posterior import Posterior
    from ..report import write_report
    from ..store import bundle_format, refuse_existing
    from .forward import import_operator

    refuse_existing(out, overwrite)
    for place in (posterior, posterior / "estimate"):
        if bundle_format(place) == POINT:
            raise ValueError(f"{place} is a point estimate, which has no uncertainty to report on; see its figure.png")
    folder = posterior / "posterior" if (posterior / "posterior").is_dir() else posterior
    loaded = Posterior.load(folder, operator=import_operator(operator) if operator is not None else None)
    true = read_image(truth, loaded.shape) if truth is not None else None
    if true is not None:
        loaded.prior.check(true, str(truth))
    write_report(loaded, out, draws=draws, truth=true, title=title, seed=seed, overwrite=overwrite)
    typer.echo(f"wrote {out}")
