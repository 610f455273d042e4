"""`flowinv priors`."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def priors(name: Annotated[str | None, typer.Argument(help="Print this prior's model card.")] = None) -> None:
    """List the priors that ship with flowinv, or print one's model card.

    [bold]Examples[/bold]

      flowinv priors

      flowinv priors mnist
    """
    from ..priors import shipped

    known = shipped()
    if name is not None:
        if name not in known:
            raise ValueError(f"no shipped prior {name!r}: expected one of {', '.join(known) or 'none'}")
        typer.echo((known[name] / "README.md").read_text(encoding="utf-8"))
        return
    for prior, folder in known.items():
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        size = (folder / "model.safetensors").stat().st_size / 2**20
        score = config.get("figures", {}).get("bits_per_dim", {}).get("test")
        shape = "x".join(map(str, config["shape"]))
        shown = f"{score:.3f} test bits/dim" if score is not None else "no test figure"
        typer.echo(f"{prior:<12} {shape:<10} {shown:<22} {size:.1f} MB")
