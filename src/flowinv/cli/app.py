"""The application and its one exception handler."""

from __future__ import annotations

import functools
import os
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

# read by the OpenMP runtime when torch is imported: threads that spin while idle make busy cores many times slower
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import typer

from .. import __version__
from . import amortize, demo, priors, report, solve, solvers, tasks, train

# typer carries its own copy of click since 0.26: the class is found by way of one that typer exports
_ClickException: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


class _Interrupted(Exception):
    """Ctrl-C, on its way past typer, which would end the process without a word."""


app = typer.Typer(
    name="flowinv",
    help="Posteriors of inverse problems with normalizing flows: a prior, a measurement, a posterior, a report.",
    epilog="Start with: flowinv demo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _command(function: Callable[..., None]) -> None:
    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> None:
        try:
            function(*args, **options)
        except KeyboardInterrupt as stop:
            raise _Interrupted(str(stop)) from None

    app.command()(run)


_COMMANDS = (
    demo.demo,
    solve.solve,
    solvers.solvers,
    tasks.tasks,
    report.report,
    priors.priors,
    train.train,
    train.evaluate,
    amortize.amortize,
)
for _function in _COMMANDS:
    _command(_function)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"flowinv {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def _one_line(message: Warning | str, category: type[Warning], *_: object) -> None:
    print(f"flowinv: warning: {message}", file=sys.stderr)


def main() -> None:
    """Run the command line: bad input and failed runs end with one line and exit code 2, an interrupt with 130."""
    warnings.showwarning = _one_line  # type: ignore[assignment]
    from ..solvers import Diverged
    from ..training import TrainingDiverged

    try:
        code = app(prog_name="flowinv", standalone_mode=False)
    except (_Interrupted, KeyboardInterrupt) as stop:
        print(f"flowinv: interrupted{f': {stop}' if str(stop) else ''}", file=sys.stderr)
        sys.exit(130)
    except _ClickException as error:
        if not error.format_message():  # no arguments at all: the help was printed
            sys.exit(2)
        where = getattr(getattr(error, "ctx", None), "command_path", "flowinv")
        _fail(f"{error.format_message()} (see {where} --help)")
    except (ValueError, TypeError, OSError, ImportError, Diverged, TrainingDiverged) as error:
        if os.environ.get("FLOWINV_TRACEBACK"):
            raise
        _fail(str(error))
    except (MemoryError, RuntimeError) as error:
        if os.environ.get("FLOWINV_TRACEBACK") or not _out_of_memory(error):
            raise
        asked = re.search(r"tried to allocate (\d+) bytes", str(error))
        size = f" ({int(asked[1]) / 1e9:,.1f} GB at once)" if asked else ""
        _fail(
            f"more memory was asked for than there is{size}: run with fewer or smaller images, fewer chains, kept steps, draws "
            "or measurements, or a smaller network (FLOWINV_TRACEBACK=1 shows where)"
        )
    sys.exit(code if isinstance(code, int) else 0)


def _out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Whether an allocation failed: torch has a class for that on GPUs alone, on the CPU only words."""
    from torch import OutOfMemoryError

    if isinstance(error, (MemoryError, OutOfMemoryError)):
        return True
    return "DefaultCPUAllocator" in str(error) or "Storage size calculation overflowed" in str(error)


def _fail(message: str) -> NoReturn:
    print(f"flowinv: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)
