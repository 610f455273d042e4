"""``flowinv solve`` goes on after an interrupt, and writes over nothing unasked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import IMAGE, OUTPUTS, Run, contents, finished, stopping

from flowinv.store import read_bundle


def test_solve_goes_on_after_an_interrupt(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (*[20 if a == 3 else a for a in IMAGE], "--task", "denoise")
    assert run(*["whole" if a == "out" else a for a in arguments])[0] == 0
    for at, extra in ((6, ()), (13, ("--overwrite",))):
        with monkeypatch.context() as patch:
            patch.setattr("flowinv.cli.outcome.progress", lambda label, at=at: stopping(at, label))
            code, out, err = run(*arguments, *extra)
        assert (code, out) == (130, "")
        assert (
            err == f"flowinv: interrupted: step {at} is kept in out/checkpoint; the same command goes on from there\n"
        )
        assert sorted(p.name for p in (place / "out").iterdir()) == ["checkpoint"]
        assert read_bundle(place / "out" / "checkpoint" / "fit", "flowinv-solver")[0]["state"]["step"] == at
    before = contents(place)
    code, _, err = run(*arguments, "--sigma", 0.2)
    assert code == 2 and "unfinished run of another problem, solver or settings" in err and contents(place) == before

    def stop(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # after the fit, while the folder is being written
        patch.setattr("flowinv.report.write_report", stop)
        assert run(*arguments)[0] == 130
    assert {"checkpoint", "posterior", "summary.json"} <= {p.name for p in (place / "out").iterdir()}
    code, _, err = run(*arguments)
    assert (code, err) == (0, "")
    (resumed, summary), (whole, expected) = finished(place / "out"), finished(place / "whole")
    assert torch.equal(resumed.mean(16), whole.mean(16)) and resumed.trace == whole.trace
    assert {**summary, "seconds": 0} == {**expected, "seconds": 0}


def test_overwriting_drops_the_checkpoint_of_another_run(
    run: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (*[20 if a == 3 else a for a in IMAGE], "--task", "denoise")
    with monkeypatch.context() as patch:
        patch.setattr("flowinv.cli.outcome.progress", lambda label: stopping(6, label))
        assert run(*arguments)[0] == 130
    code, _, err = run(*arguments, "--sigma", 0.3, "--overwrite")
    assert (code, err) == (0, "") and finished(place / "out")[1]["sigma"] == 0.3


def test_an_old_result_stays_until_the_new_one_is_there(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(*IMAGE, "--task", "denoise")[0] == 0
    before = {p: p.read_bytes() for p in (place / "out").rglob("*") if p.is_file()}
    code, _, _ = run(
        *["in/nothing.png" if a == "in/image.png" else a for a in IMAGE], "--task", "denoise", "--overwrite"
    )
    assert code == 2
    with monkeypatch.context() as patch:
        patch.setattr("flowinv.cli.outcome.progress", lambda label: stopping(2, label))
        assert run(*IMAGE, "--task", "denoise", "--overwrite", "--sigma", 0.3)[0] == 130
    assert {p: p.read_bytes() for p in before} == before
    code, _, err = run(*IMAGE, "--task", "denoise", "--overwrite", "--sigma", 0.3)
    assert (code, err) == (0, "") and finished(place / "out")[1]["sigma"] == 0.3


def test_overwriting_with_another_kind_of_solver_leaves_nothing_of_the_old_result(run: Run, place: Path) -> None:
    assert run(*IMAGE, "--task", "denoise")[0] == 0
    again = (*IMAGE, "--task", "denoise", "--overwrite", "--solver")
    assert run(*again, "csgm")[0] == 0
    assert sorted(p.name for p in (place / "out").iterdir()) == ["estimate", "figure.png", "summary.json"]
    assert run(*again, "svi")[0] == 0
    assert sorted(p.name for p in (place / "out").iterdir()) == OUTPUTS


def test_a_training_checkpoint_is_not_taken_for_an_own_one(run: Run, place: Path) -> None:
    assert run("amortize", "in/amortize.toml", "--out", "out", "--stop-after", 2)[0] == 0
    before = contents(place)
    for extra in ((), ("--overwrite",)):
        code, _, err = run(*IMAGE, "--task", "denoise", *extra)
        assert code == 2 and ("was not made by flowinv solve" in err or "already holds" in err), err
        assert contents(place) == before


def test_a_checkpoint_that_lacks_something_is_one_line(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for solver, part, lost in (("svi", "fit", "state"), ("csgm", "point", "step"), ("lmc", "chains", "trace")):
        arguments = (*[20 if a == 3 else a for a in IMAGE], "--task", "denoise", "--solver", solver, "--overwrite")
        with monkeypatch.context() as patch:
            patch.setattr("flowinv.cli.outcome.progress", lambda label: stopping(6, label))
            assert run(*arguments)[0] == 130
        config = place / "out" / "checkpoint" / part / "config.json"
        values = json.loads(config.read_text())
        del values[lost]
        config.write_text(json.dumps(values))
        code, _, err = run(*arguments[:-1])
        assert code == 2 and f"is not a whole checkpoint: it misses '{lost}'" in err and len(err.splitlines()) == 1
