"""`flowinv tasks`."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def tasks(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the tasks, the forward operators by name, each with its options (`--option name=value` of solve)."""
    from ..tasks import TASKS

    if as_json:
        found = {name: {"description": info.description, "options": dict(info.options)} for name, info in TASKS.items()}
        typer.echo(json.dumps(found, indent=1))
        return
    for name, info in TASKS.items():
        typer.echo(f"{name}: {info.description}")
        for option, meaning in info.options.items():
            typer.echo(f"    {option:<12} {meaning}")
