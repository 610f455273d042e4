"""In a process of its own: a signal while training, a bar on a terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import TRAINING, Run

from flowinv.store import read_bundle

COMMAND = [sys.executable, "-c", "from flowinv.cli import main; main()"]


def test_the_package_runs_as_a_module() -> None:
    for arguments, code in ((["--version"], 0), (["solve"], 2)):
        results = [
            subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120)
            for command in (COMMAND, [sys.executable, "-m", "flowinv"])
        ]
        by_function, by_module = ((r.returncode, r.stdout, r.stderr) for r in results)
        assert by_module == by_function and by_module[0] == code


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc to tell when training has begun")
def test_ctrl_c_in_training_keeps_it(place: Path, run: Run) -> None:
    text = TRAINING.replace("epochs = 4", "epochs = 100000")
    (place / "long.toml").write_text(text)
    arguments = ["train", "long.toml", "--data", "in/data.npz", "--out", "out"]
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    handled = Path(f"/proc/{process.pid}/status")
    limit = time.monotonic() + 60
    # SIGTERM is caught from the first step on, and from then on only
    while time.monotonic() < limit and process.poll() is None:
        caught = int(re.findall(r"SigCgt:\s*([0-9a-f]+)", handled.read_text())[0], 16) if handled.exists() else 0
        if caught >> (signal.SIGTERM - 1) & 1:
            break
        time.sleep(0.05)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()  # where signals are ignored it would train for days
    assert process.returncode == 130, err
    step = int(re.fullmatch(r"flowinv: interrupted: step (\d+) of 400000 is kept in out/checkpoint; .*\n", err)[1])
    assert read_bundle(place / "out" / "checkpoint", "flowinv-training")[0]["step"] == step > 0
    code, out, _ = run(*arguments, "--stop-after", step + 1)
    assert code == 0 and f"resuming at step {step} of 400000" in out


def test_a_bar_on_a_terminal_and_none_elsewhere(place: Path) -> None:
    arguments = ["evaluate", "in/bits", "--data", "in/data.npz"]
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=slave, text=True, env=environment)
    os.close(slave)
    drawn = b""
    with contextlib.suppress(OSError):
        while piece := os.read(master, 4096):
            drawn += piece
    os.close(master)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and out.startswith("in/bits: test bits/dim")
    assert b"evaluating" in drawn and b"bits/dim" in drawn and b"20/20" in drawn
