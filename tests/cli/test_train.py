"""``flowinv train``, ``evaluate`` and ``amortize``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import IMAGE, SHAPE, SOLVE, TRAIN, TRAINING, Run, contents
from exact_posterior import affine_flow
from PIL import Image

from flowinv import Flow, load_prior, save_prior
from flowinv.flows.flow import UNIT
from flowinv.flows.layers.transforms import Gaussianize


def test_train_stop_resume_and_what_is_written(run: Run, place: Path) -> None:
    code, out, err = run(*TRAIN, "--stop-after", 5)
    assert (code, err) == (0, "") and out == "stopped at step 5 of 16; the same command goes on\n"
    assert sorted(p.name for p in (place / "out").iterdir()) == ["checkpoint"]
    code, out, err = run(*TRAIN, "--name", "tiny", "--licence", "CC0")
    assert (code, err) == (0, "")
    assert "resuming at step 5 of 16" in out and "wrote out/prior" in out
    validation, test = re.findall(r"(?:validation|test) bits/dim (\d\.\d{4}) \+- \d\.\d{4} \((?:8|20) images\)", out)
    prior = place / "out" / "prior"
    assert sorted(p.name for p in prior.iterdir()) == ["README.md", "config.json", "model.safetensors", "samples.png"]
    card = (prior / "README.md").read_text()
    assert card.startswith("# tiny\n") and "CC0" in card and "samples.png" in card
    assert "flowinv train in/train.toml --data data.npz --out out" in card
    assert f"| validation | {validation} |" in card and f"| test | {test} |" in card
    with Image.open(prior / "samples.png") as picture:
        assert min(picture.size) >= 8 * 4
    figures = json.loads((prior / "config.json").read_text())["figures"]
    assert figures["steps"] == 16 and f"{figures['bits_per_dim']['test']:.4f}" == test

    code, whole, _ = run(*TRAIN[:-1], "whole")
    assert code == 0 and load_prior(place / "whole" / "prior").fingerprint() == load_prior(prior).fingerprint()
    assert f"test bits/dim {test}" in whole

    before = contents(place)
    code, out, err = run(*TRAIN)
    assert code == 2 and "this run is finished" in err and contents(place) == before

    code, out, err = run("evaluate", prior, "--data", "in/data.npz")
    assert (code, err) == (0, "") and out.startswith(f"{prior}: test bits/dim {test} +- ")

    (place / "other.toml").write_text(TRAINING.replace("5e-3", "1e-3"))
    run(*TRAIN[:-1], "third", "--stop-after", 2)
    before = contents(place)
    code, _, err = run("train", "other.toml", *TRAIN[2:-1], "third")
    assert code == 2 and "other settings (learning_rate)" in err and len(err.splitlines()) == 1
    assert contents(place) == before


def test_an_end_that_was_interrupted_is_written_again(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("flowinv.priors.save_prior", stop)
        code, _, err = run(*TRAIN)
    assert code == 130 and err == "flowinv: interrupted\n"
    assert (place / "out" / "prior" / "samples.png").exists()
    code, _, err = run(*TRAIN)
    assert (code, err) == (0, "") and load_prior(place / "out" / "prior").shape == SHAPE


def test_evaluate_prints_the_figure_of_an_analytic_flow(run: Run, place: Path) -> None:
    """A histogram alone costs each pixel its -log2 P(k): of random images under P(k) = 1/256, 8 bits."""
    flow = Flow(affine_flow(SHAPE, dtype=torch.float32).bijection, SHAPE, support=UNIT, bits=8)
    flow.bijection.mean.zero_()
    flow.bijection.cholesky.copy_(torch.eye(16))
    flow.transform = Gaussianize(torch.linspace(0, 1, 257))
    save_prior(flow, place / "uniform")
    code, out, err = run("evaluate", "uniform", "--data", "in/data.npz", "--json")
    result = json.loads(out)
    assert (code, err) == (0, "") and result["bits_per_dim"] == pytest.approx(8, abs=1e-4)
    assert {k: result[k] for k in ("images", "split", "bits", "dequantization", "prior")} == {
        "images": 20,
        "split": "test",
        "bits": 8,
        "dequantization": "uniform",
        "prior": "uniform",
    }
    code, out, _ = run("evaluate", "uniform", "--data", "in/data.npz", "--limit", 1, "--json")
    assert json.loads(out)["images"] == 1 and json.loads(out)["standard_error"] is None
    assert "NaN" not in out


def test_evaluate_without_test_images_says_so(run: Run, made: Path, place: Path) -> None:
    with np.load(made / "data.npz") as file:
        np.savez(place / "train.npz", train_x=file["train_x"])
    code, out, _ = run("evaluate", "in/bits", "--data", "train.npz")
    assert code == 0 and "training bits/dim" in out and "over 40 images" in out


def test_amortize_then_solve_with_it(run: Run, place: Path) -> None:
    code, out, err = run("amortize", "in/amortize.toml", "--out", "run", "--stop-after", 2)
    assert (code, err) == (0, "") and "stopped at step 2 of 4" in out
    code, out, err = run("amortize", "in/amortize.toml", "--out", "run")
    assert (code, err) == (0, "") and "resuming at step 2 of 4" in out
    card = (place / "run" / "amortizer" / "README.md").read_text()
    told = f"    flowinv solve {(place / 'in' / 'affine').resolve()} --measurement Y --task inpaint-bottom --sigma 0.1 --solver avi"
    assert f"{told} --amortizer FOLDER --out OUT\n" in card
    assert run("amortize", "in/amortize.toml", "--out", "run")[0] == 2
    arguments = (*SOLVE[:4], *IMAGE[8:], "--task", "inpaint-bottom", "--solver", "avi", "--amortizer", "run/amortizer")
    for training in (("--steps", 5), ("--preset", "fast"), ("--bf16",)):
        code, _, err = run(*arguments, *training)
        assert code == 2 and "are for training, and an amortizer that fits needs none" in err
    code, out, err = run(*arguments)
    assert (code, err) == (0, "") and "ELBO" in out
    code, _, err = run(*["other" if a == "out" else a for a in arguments], "--sigma", 0.2)
    assert code == 2 and "the amortizer does not fit the problem: it was trained for Gaussian(sigma=0.1)" in err
    assert not (place / "other").exists()
