"""How a benchmark says by which command it was run, and how it ends."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


def command_of(module: str, arguments: Sequence[str] | None) -> str:
    """The command line of ``python -m module`` with arguments, or with those of this process.

    The folder with the data, which is another on every machine, is written as DATA.
    """
    said = [module]
    for argument in sys.argv[1:] if arguments is None else arguments:
        if argument.startswith("--data="):
            argument = "--data=DATA"
        said.append("DATA" if said[-1] == "--data" else argument)
    return shlex.join(["python", "-m", *said])


@contextmanager
def in_one_line(parser: argparse.ArgumentParser, what: str = "error") -> Iterator[None]:
    """Bad input ends the command with one line and exit code 1, an interrupt with 130: what was computed is kept."""
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        parser.exit(1, f"{what}: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "interrupted; the same command goes on from here\n")
