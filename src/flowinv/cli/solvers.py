"""`flowinv solvers`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer


def solvers(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the solvers: what each gives, what it costs, when to use it, and its presets (the first is the default)."""
    from ..solvers import SOLVERS

    if as_json:
        typer.echo(json.dumps({name: asdict(info) for name, info in SOLVERS.items()}, indent=1))
        return
    width = max(map(len, SOLVERS))
    for name, info in SOLVERS.items():
        typer.echo(f"{name:<{width}}  {info.gives}; {info.costs}; {info.when}. Presets: {', '.join(info.presets)}")
