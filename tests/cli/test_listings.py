"""What the commands say of themselves."""

from __future__ import annotations

import json
import re

import pytest
from commands import Run

from flowinv import load_prior
from flowinv.priors import shipped
from flowinv.solvers import SOLVERS
from flowinv.tasks import TASKS


@pytest.mark.parametrize("command", ["demo", "solve", "report", "priors", "train", "evaluate"])
def test_help_shows_examples(run: Run, command: str) -> None:
    code, out, err = run(command, "--help")
    assert code == 0 and err == ""
    examples = out.split("Examples")[1]
    assert examples.count(f"flowinv {command}") >= 2


def test_the_top(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0 and all(c in out for c in ("demo", "solve", "report", "priors", "train", "evaluate"))
    code, out, _ = run("--version")
    assert code == 0 and re.fullmatch(r"flowinv \d+\.\d+\.\d+\n", out)
    code, out, err = run()
    assert code == 2 and "flowinv demo" in out + err


def test_priors_are_listed_and_their_cards_shown(run: Run) -> None:
    code, out, err = run("priors")
    assert code == 0 and err == ""
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == list(shipped())
    for name, folder in shipped().items():
        line = next(line for line in lines if line.startswith(name))
        assert "MB" in line and "x".join(map(str, load_prior(name).shape)) in line
        code, out, _ = run("priors", name)
        assert code == 0 and out.strip() == (folder / "README.md").read_text(encoding="utf-8").strip()


def test_solvers_are_listed_with_one_line_each(run: Run) -> None:
    code, out, err = run("solvers")
    lines = out.splitlines()
    assert (code, err) == (0, "") and [line.split()[0] for line in lines] == list(SOLVERS)
    for line, info in zip(lines, SOLVERS.values(), strict=True):
        assert info.gives in line and info.costs in line and info.when in line
    assert json.loads(run("solvers", "--json")[1]).keys() == SOLVERS.keys()


def test_tasks_are_listed_with_their_options(run: Run) -> None:
    code, out, err = run("tasks")
    assert code == 0 and not err and "    padding      reflect (default)" in out
    assert all(f"{name}: {info.description}\n" in out for name, info in TASKS.items())
    found = json.loads(run("tasks", "--json")[1])
    assert found == {name: {"description": i.description, "options": i.options} for name, i in TASKS.items()}
