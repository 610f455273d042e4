"""The command line: what each command writes, that it goes on after an interrupt, and one line for every bad input."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exact_posterior import Exact, affine_flow
from PIL import Image

from flowinv import Flow, FlowPosterior, PointEstimate, Posterior, SampledPosterior, load_prior, save_prior
from flowinv.cli import main
from flowinv.flows.flow import UNIT
from flowinv.flows.layers.transforms import Gaussianize
from flowinv.images import read_image
from flowinv.priors import shipped
from flowinv.solvers import SOLVERS
from flowinv.store import read_bundle, write_bundle
from flowinv.tasks import TASKS

SHAPE = (1, 4, 4)
TRAINING = """epochs = 4
batch = 8
warmup = 2
holdout = 8
learning_rate = 5e-3
[flow]
architecture = "glow"
shape = [1, 4, 4]
steps = [1]
hidden = 4
"""
AMORTIZING = """prior = "{}"
task = "inpaint-bottom"
sigma = 0.1
steps = 4
observations = 2
draws = 2
couplings = 2
hidden = 4
features = 4
blocks = 1
squeezes = 1
"""
OPERATORS = """
import torch
def forward(x): return 2 * x[..., :2, :]
class forwards:
    inner = staticmethod(forward)
number = 3
def fails(x): return x.reshape(7, 7)
def divides(x): return 1 / 0
def looks_up(x): return {}["a"]
def text(x): return "y"
def noisy(x): return x + torch.randn_like(x)
def mixes(x): return x - x.mean(0)
def rounds(x): return x.round()
"""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], place: Path) -> Run:
    """Runs ``flowinv`` with arguments in the test's folder: exit code, standard output, standard error."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("FLOWINV_TRACEBACK", raising=False)

    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["flowinv", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        return (int(stop.value.code or 0), *capfd.readouterr())

    return command


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands are given: priors, images, measurements, masks, operators, data, configs."""
    folder = tmp_path_factory.mktemp("made")
    random = np.random.default_rng(0)
    save_prior(affine_flow(SHAPE, dtype=torch.float32, support=UNIT), folder / "affine", "# affine\n")
    histogram = Gaussianize.from_counts(torch.ones(256))
    save_prior(affine_flow(SHAPE, dtype=torch.float32, support=UNIT, transform=histogram, bits=8), folder / "bits")
    config, tensors = read_bundle(folder / "affine", "flowinv-prior")
    write_bundle(folder / "foreign", {**config, "format": "another"}, tensors)
    name = "bijection.mean"
    write_bundle(folder / "nan", config, {**tensors, name: tensors[name] * float("nan")})
    write_bundle(folder / "short", config, {name: tensors[name]})
    write_bundle(folder / "corrupt", config, tensors)
    (folder / "corrupt" / "model.safetensors").write_bytes(b"\x80\x04pickle")
    grey = random.integers(90, 170, (4, 4), dtype=np.uint8)
    Image.fromarray(grey).save(folder / "image.png")
    Image.fromarray(random.integers(0, 255, (9, 9, 3), dtype=np.uint8)).save(folder / "large.png")
    (folder / "broken.png").write_bytes((folder / "image.png").read_bytes()[:40])
    y = (grey / 255).astype(np.float32)
    np.save(folder / "y.npy", y[None])
    np.save(folder / "two.npy", np.stack([y[None]] * 2))
    np.save(folder / "half.npy", 2 * y[None, :2])
    np.save(folder / "nan.npy", np.where(y[None] == y.max(), np.nan, y[None]))
    np.save(folder / "bytes.npy", 255 * y[None])
    np.save(folder / "int.npy", (255 * y[None]).astype(np.int64))
    np.save(folder / "flat.npy", y.ravel())
    Image.fromarray(np.eye(4, dtype=np.uint8) * 255).save(folder / "mask.png")
    Image.fromarray(grey).save(folder / "nomask.png")
    np.save(folder / "zero.npy", np.zeros((4, 4)))
    np.save(folder / "big.npy", np.ones((5, 5)))
    images = random.integers(0, 256, (60, 4, 4), dtype=np.uint8)
    np.savez(folder / "data.npz", train_x=images[:40], test_x=images[40:])
    np.savez(folder / "large.npz", train_x=np.zeros((40, 6, 6), np.uint8))
    np.savez(folder / "float.npz", train_x=np.zeros((40, 4, 4), np.float32))
    np.savez(folder / "none.npz", train_x=images[:0], test_x=images[:0])
    (folder / "torn.npz").write_bytes((folder / "data.npz").read_bytes()[:300])
    (folder / "train.toml").write_text(TRAINING)
    (folder / "typo.toml").write_text("epoch = 3\n" + TRAINING)
    (folder / "word.toml").write_text(TRAINING.replace("epochs = 4", "epochs = 'four'"))
    (folder / "amortize.toml").write_text(AMORTIZING.format(folder / "affine"))
    (folder / "amortize-typo.toml").write_text("stepz = 3\n" + AMORTIZING.format(folder / "affine"))
    amortizing = AMORTIZING.format(folder / "affine")
    (folder / "amortize-half.toml").write_text(amortizing.replace("steps = 4", "steps = 4.5"))
    (folder / "amortize-word.toml").write_text(amortizing + 'noise = "no"\n')
    (folder / "amortize-flat.toml").write_text(amortizing.replace("squeezes = 1", "squeezes = 0"))
    (folder / "amortize-beta.toml").write_text(amortizing + "beta = 3\n")
    (folder / "untoml.toml").write_text("epochs == 4")
    (folder / "myops_for_test.py").write_text(OPERATORS)
    (folder / "mybad_for_test.py").write_text("def forward(x) return x")
    (folder / "mymiss_for_test.py").write_text("import no_such_module_at_all")
    (folder / "myname_for_test.py").write_text("undefined_name")
    exact = Exact(SHAPE, dtype=torch.float32)
    exact.posterior().save(folder / "posterior")
    (folder / "text.txt").write_text("x")
    (folder / "full").mkdir()
    (folder / "full" / "precious.txt").write_text("keep me")
    return folder


@pytest.fixture
def place(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own working folder, in which ``in`` leads to what was made."""
    (tmp_path / "in").symlink_to(made)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(made))
    return tmp_path


def contents(folder: Path) -> dict[str, bytes | None]:
    paths = [p for root in (folder, folder / "in") for p in root.rglob("*") if "__pycache__" not in p.parts]
    return {str(p): p.read_bytes() if p.is_file() else None for p in paths}


SOLVE = ("solve", "in/affine", "--out", "out", "--steps", 3, "--draws", 8)
IMAGE = (*SOLVE, "--image", "in/image.png")
MEASURED = (*SOLVE, "--measurement", "in/y.npy")
TRAIN = ("train", "in/train.toml", "--data", "in/data.npz", "--out", "out")
OUTPUTS = ["figure.png", "posterior", "report.html", "summary.json"]


# -- bad input ---------------------------------------------------------------------------------------


def _operator(name: str) -> tuple[object, ...]:
    return (*SOLVE, "--measurement", "in/half.npy", "--operator", name)


BAD: list[tuple[tuple[object, ...], str]] = [
    (("slove",), "No such command 'slove'"),
    (("solve",), "Missing argument"),
    (("solve", "in/affine"), "Missing option '--out'"),
    ((*IMAGE, "--task", "denoise", "--bogus", 1), "No such option: --bogus"),
    ((*IMAGE, "--task", "denoise", "--sigma", "big"), "'--sigma'"),
    ((*IMAGE, "--task", "denoise", "--steps", "1.5"), "'--steps'"),
    ((*IMAGE, "--task", "denoise", "--draws", 1), "'--draws'"),
    ((*IMAGE, "--task", "denoise", "--seed", -1), "'--seed'"),
    ((*IMAGE, "--task", "denoise", "--seed", 2**64), "'--seed'"),
    ((*SOLVE, "--task", "denoise"), "give either --image .* or --measurement"),
    ((*IMAGE, "--measurement", "in/y.npy", "--task", "denoise"), "give either --image .* or --measurement"),
    (IMAGE, "by --task or by --operator"),
    ((*IMAGE, "--task", "denoise", "--operator", "a:b"), "by --task or by --operator"),
    ((*IMAGE, "--task", "deniose"), "unknown task 'deniose'; known: inpaint-bottom"),
    ((*IMAGE, "--task", "denoise", "-o", "size=3"), "task denoise has no option 'size'"),
    ((*IMAGE, "--task", "deblur", "-o", "width"), "an option is written name=value, got 'width'"),
    ((*IMAGE, "--task", "deblur", "-o", "width=-1"), "width must be positive"),
    ((*IMAGE, "--task", "inpaint-pixels", "-o", "fraction=2"), r"fraction must lie in \(0, 1\], got 2"),
    ((*IMAGE, "--task", "inpaint-box", "-o", "size=9"), "size must lie within the image's 4x4"),
    ((*IMAGE, "--task", "superres", "-o", "factor=3"), "pooling by 3 needs images"),
    ((*IMAGE, "--task", "colorize"), "grey is made of colour images"),
    ((*IMAGE, "--task", "compressed-sensing", "-o", "measurements=0"), "measurements must be an integer of at least 1"),
    ((*IMAGE, "--task", "inpaint-mask"), "task inpaint-mask needs the option 'mask'"),
    ((*IMAGE, "--task", "inpaint-mask", "-o", "mask=in/nothing.png"), "no such mask file: in/nothing.png"),
    ((*IMAGE, "--task", "inpaint-mask", "-o", "mask=in/nomask.png"), "must hold only 0 and 1, or only 0 and 255"),
    ((*IMAGE, "--task", "inpaint-mask", "-o", "mask=in/zero.npy"), "0 everywhere: nothing is observed"),
    ((*IMAGE, "--task", "inpaint-mask", "-o", "mask=in/big.npy"), "does not fit samples of shape"),
    ((*IMAGE, "--task", "inpaint-mask", "-o", "mask=in/broken.png"), "cannot be read as a picture"),
    ((*IMAGE, "--task", "denoise", "--sigma", 0), "sigma must be positive"),
    ((*IMAGE, "--task", "denoise", "--sigma", -1), "sigma must be positive"),
    ((*IMAGE, "--task", "denoise", "--sigma", "nan"), "sigma must be"),
    ((*IMAGE, "--task", "denoise", "--sigma", "inf"), "sigma must be"),
    ((*IMAGE, "--task", "denoise", "--likelihood", "cauchy"), "unknown likelihood 'cauchy': expected one of gaussian"),
    ((*IMAGE, "--task", "denoise", "--preset", "slow"), "svi has no preset 'slow': expected one of fast"),
    ((*IMAGE, "--task", "denoise", "--steps", 0), "steps must be positive"),
    ((*IMAGE, "--task", "denoise", "--beta", 3), "beta and weights belong to a distance, not to the gaussian"),
    ((*IMAGE, "--task", "denoise", "--likelihood", "digits"), "the distance digits needs beta"),
    ((*IMAGE, "--task", "denoise", "--likelihood", "stlpips", "--beta", 3), "stlpips distance needs the path of its"),
    ((*IMAGE, "--task", "denoise", "--solver", "magic"), "unknown solver 'magic': expected one of svi, avi"),
    ((*IMAGE, "--task", "denoise", "--chains", 3), "svi has no setting 'chains'"),
    ((*IMAGE, "--task", "denoise", "--solver", "hmc", "--chains", 0), "chains must be positive"),
    ((*IMAGE, "--task", "denoise", "--solver", "hmc", "--bf16"), "bf16 is for lmc alone"),
    ((*IMAGE, "--task", "denoise", "--amortizer", "in/full"), "--amortizer is for avi and semi-amortized, not for svi"),
    ((*IMAGE, "--task", "denoise", "--solver", "avi", "--amortizer", "in/full"), r"in/full has no config\.json"),
    ((*IMAGE, "--task", "denoise", "--solver", "avi", "--amortizer", "in/affine"), "expected 'flowinv-amortizer'"),
    (
        (*IMAGE, "--task", "denoise", "--solver", "csgm", "--likelihood", "digits", "--beta", 3),
        "csgm has a misfit of its own",
    ),
    ((*IMAGE, "--task", "denoise", "--weight", 3), "svi has no setting 'weight'"),
    ((*IMAGE, "--task", "denoise", "--solver", "solverip", "--weight", -1), "weight must be at least 0, got -1"),
    (
        (*IMAGE, "--task", "denoise", "--solver", "solverip", "--likelihood", "laplace"),
        "cannot use --likelihood laplace",
    ),
    ((*IMAGE, "--task", "denoise", "-o", "sigma=.2"), "task denoise has no option 'sigma': --sigma sets it"),
    ((*IMAGE, "--task", "denoise", "-o", "likelihood=laplace"), "has no option 'likelihood': --likelihood sets it"),
    ((*MEASURED, "--task", "denoise", "--noiseless"), "--noiseless is for --image"),
    ((*MEASURED, "--task", "denoise", "--fit"), "--fit is for --image"),
    (("amortize", "in/amortize-half.toml", "--out", "out"), "amortizer setting steps = 4.5 is not valid: expected int"),
    (
        ("amortize", "in/amortize-word.toml", "--out", "out"),
        "amortizer setting noise = 'no' is not valid: expected bool",
    ),
    (("amortize", "in/amortize-flat.toml", "--out", "out"), r"has 1 after 0 squeezes: set squeezes to 1 or more"),
    (("amortize", "in/amortize-beta.toml", "--out", "out"), "beta and weights belong to a distance"),
    ((*IMAGE, "--steps", 20, "--task", "superres", "--solver", "pl-mcmc"), "mask"),
    (("amortize", "in/nothing.toml", "--out", "out"), "no such config: in/nothing.toml"),
    (("amortize", "in/train.toml", "--out", "out"), "needs prior = a name"),
    (("amortize", "in/amortize.toml", "--out", "in/full"), "in/full is not empty and holds no run to go on with"),
    (("amortize", "in/amortize-typo.toml", "--out", "out"), "avi has no setting 'stepz'"),
    ((*SOLVE, "--image", "in/nothing.png", "--task", "denoise"), "no such file: in/nothing.png"),
    ((*SOLVE, "--image", "in", "--task", "denoise"), "no such file: in"),
    ((*SOLVE, "--image", "in/text.txt", "--task", "denoise"), "text.txt: expected one of"),
    ((*SOLVE, "--image", "in/broken.png", "--task", "denoise"), "broken.png cannot be read as an image"),
    ((*SOLVE, "--image", "in/large.png", "--task", "denoise"), r"has shape \(3, 9, 9\), the prior's .*--fit resizes"),
    ((*SOLVE, "--image", "in/nan.npy", "--task", "denoise"), "in/nan.npy has 1 values that are NaN"),
    ((*SOLVE, "--image", "in/bytes.npy", "--task", "denoise"), r"in/bytes.npy must lie in \[0, 1\], got values from"),
    ((*SOLVE, "--image", "in/int.npy", "--task", "denoise"), "must hold bytes or floating-point values, got int64"),
    ((*SOLVE, "--measurement", "in/nan.npy", "--task", "denoise"), "y has 1 observed values that are NaN"),
    ((*SOLVE, "--measurement", "in/bytes.npy", "--task", "denoise"), "bring y to the same units"),
    ((*SOLVE, "--measurement", "in/int.npy", "--task", "denoise"), "must hold bytes or floating-point values"),
    ((*SOLVE, "--measurement", "in/flat.npy", "--task", "denoise"), r"y must have shape \(B, 1, 4, 4\), got \(16,\)"),
    ((*SOLVE, "--measurement", "in/half.npy", "--task", "denoise"), r"y must have shape \(B, 1, 4, 4\)"),
    ((*MEASURED, "--operator", "nocolon"), "--operator takes module:function, got 'nocolon'"),
    ((*MEASURED, "--operator", "myops_for_test:"), "--operator takes module:function"),
    ((*MEASURED, "--operator", "myops_for_test:forward", "-o", "a=1"), "--option belongs to --task"),
    (_operator("no_such_module_at_all:f"), "cannot be imported: ModuleNotFoundError: No module named"),
    (_operator("mymiss_for_test:forward"), "cannot be imported: ModuleNotFoundError"),
    (_operator("mybad_for_test:forward"), "cannot be imported: SyntaxError"),
    (_operator("myname_for_test:forward"), "cannot be imported: NameError"),
    (_operator("myops_for_test:nothing"), "module myops_for_test has no nothing"),
    (_operator("myops_for_test:forwards.nothing"), "module myops_for_test has no forwards.nothing"),
    (_operator("myops_for_test:number"), "is a int, expected a function"),
    (_operator("myops_for_test:fails"), r"myops_for_test:fails fails on images of shape \(1, 1, 4, 4\): RuntimeError"),
    (_operator("myops_for_test:divides"), "ZeroDivisionError"),
    (_operator("myops_for_test:looks_up"), "KeyError"),
    (_operator("myops_for_test:text"), "must return a real tensor"),
    (_operator("myops_for_test:rounds"), "myops_for_test:rounds has a gradient of zero everywhere"),
    (_operator("myops_for_test:noisy"), "gives two results for the same x"),
    (_operator("myops_for_test:mixes"), "treats an image differently among several draws"),
    (("solve", "nosuch", *IMAGE[2:], "--task", "denoise"), "no prior 'nosuch': expected a shipped one"),
    (("solve", "in/foreign", *IMAGE[2:], "--task", "denoise"), "has format 'another', expected 'flowinv-prior'"),
    (("solve", "in/corrupt", *IMAGE[2:], "--task", "denoise"), "cannot be read as safetensors"),
    (("solve", "in/nan", *IMAGE[2:], "--task", "denoise"), "weights hold NaN or infinite values"),
    (("solve", "in/short", *IMAGE[2:], "--task", "denoise"), "weights do not fit: 1 tensors differ"),
    (("solve", "in/full", *IMAGE[2:], "--task", "denoise"), r"in/full has no config\.json"),
    (("solve", "in/text.txt", *IMAGE[2:], "--task", "denoise"), "no such folder: in/text.txt"),
    (("solve", "in/affine", "--out", "in/full", *IMAGE[4:], "--task", "denoise"), "in/full already holds precious.txt"),
    (("solve", "in/affine", "--out", "in/text.txt", *IMAGE[4:], "--task", "denoise"), "in/text.txt is a file"),
    (("demo", "--out", "in/full"), "in/full already holds precious.txt"),
    (("demo", "--digit", 10), "'--digit'"),
    (("train",), "Missing argument"),
    (("train", "in/nothing.toml", *TRAIN[2:]), "no such config: in/nothing.toml"),
    (("train", "in/untoml.toml", *TRAIN[2:]), "untoml.toml is not TOML"),
    (("train", "in/typo.toml", *TRAIN[2:]), r"typo.toml: unknown training settings \['epoch'\]"),
    (("train", "in/word.toml", *TRAIN[2:]), "epochs = 'four' is not valid: expected float"),
    (("train", "in/train.toml", "--data", "in/nothing.npz", "--out", "out"), "no such data: in/nothing.npz"),
    (("train", "in/train.toml", "--data", "in/torn.npz", "--out", "out"), "torn.npz cannot be read as .npz"),
    (("train", "in/train.toml", "--data", "in/float.npz", "--out", "out"), "must hold bytes .uint8., got float32"),
    (
        ("train", "in/train.toml", "--data", "in/large.npz", "--out", "out"),
        r"takes images of shape \(1, 4, 4\), the data",
    ),
    (("train", "in/train.toml", "--data", "in/none.npz", "--out", "out"), "0 training images leave none"),
    (("train", "in/train.toml", "--data", "in/full", "--out", "out"), "in/full holds no images"),
    (("train", "in/train.toml", "--data", "torchvision:Nothing", "--out", "out"), "torchvision"),
    ((*TRAIN, "--stop-after", -1), "'--stop-after'"),
    ((*TRAIN[:-1], "in/full"), "in/full is not empty and holds no run to go on with"),
    ((*TRAIN[:-1], "in/text.txt"), "in/text.txt is a file"),
    (("evaluate", "nosuch", "--data", "in/data.npz"), "no prior 'nosuch'"),
    (("evaluate", "in/bits", "--data", "in/nothing"), "no such data: in/nothing"),
    (("evaluate", "in/bits", "--data", "in/torn.npz"), "cannot be read as .npz"),
    (("evaluate", "in/bits", "--data", "in/large.npz"), "the data have"),
    (("evaluate", "in/bits", "--data", "in/none.npz"), "in/none.npz holds no images"),
    (("evaluate", "in/affine", "--data", "in/data.npz"), "bits = None"),
    (("evaluate", "in/bits", "--data", "in/data.npz", "--limit", 0), "'--limit'"),
    (("report", "in/nothing"), "no such folder: in/nothing"),
    (("report", "in/affine"), "has format 'flowinv-prior', expected 'flowinv-posterior'"),
    (("report", "in/posterior", "--out", "in/text.txt"), "in/text.txt exists already"),
    (("report", "in/posterior", "--out", "in/full"), "in/full"),
    (("report", "in/posterior", "--draws", 1), "'--draws'"),
    (("report", "in/posterior", "--truth", "in/nothing.png"), "no such file"),
    (("report", "in/posterior", "--truth", "in/nan.npy"), "in/nan.npy has 1 values that are NaN"),
    (("report", "in/posterior", "--truth", "in/two.npy"), r"truth must have shape \(1, 1, 4, 4\)"),
    (("report", "in/posterior", "--operator", "no_such_module_at_all:f"), "cannot be imported"),
    (("priors", "nosuch"), "no shipped prior 'nosuch': expected one of"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[m[:40] for _, m in BAD])
def test_bad_input_is_one_line_and_exit_code_2(
    run: Run, place: Path, arguments: tuple[object, ...], message: str
) -> None:
    before = contents(place)
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("flowinv: error: "), err
    assert re.search(message, lines[0]), err
    assert contents(place) == before, "nothing is written, nothing is written over"


def test_without_a_network_the_hub_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    code, out, err = run("evaluate", "hub:nobody/nothing", "--data", "in/data.npz")
    assert code == 2 and out == "" and len(err.splitlines()) == 1 and "could not be fetched" in err


def test_a_traceback_for_those_who_ask(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWINV_TRACEBACK", "1")
    monkeypatch.setattr(sys, "argv", ["flowinv", "priors", "nosuch"])
    with pytest.raises(ValueError, match="no shipped prior"):
        main()


# -- help --------------------------------------------------------------------------------------------


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


# -- priors ------------------------------------------------------------------------------------------


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


# -- train and evaluate ------------------------------------------------------------------------------


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


# -- solve and report --------------------------------------------------------------------------------


def finished(folder: Path) -> tuple[Posterior, dict[str, Any]]:
    assert sorted(p.name for p in folder.iterdir()) == OUTPUTS
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!") and "http://" not in re.sub(r"http://www\.w3\.org\S*", "", page)
    with Image.open(folder / "figure.png") as picture:
        assert min(picture.size) > 50
    return Posterior.load(folder / "posterior"), json.loads((folder / "summary.json").read_text())


def test_solve_an_image_and_report_again(run: Run, place: Path) -> None:
    arguments = (*IMAGE, "--task", "inpaint-pixels", "-o", "fraction=.5", "-o", "seed=2", "--sigma", ".05")
    code, out, err = run(*arguments)
    assert (code, err) == (0, "")
    assert "Posterior of 1 observation" in out and "ELBO" in out and "truth" in out and "out/report.html" in out
    posterior, summary = finished(place / "out")
    assert posterior.shape == SHAPE and int(posterior.problem.operator.observed.sum()) == 8
    assert summary["task"] == "inpaint-pixels" and summary["sigma"] == 0.05 and summary["steps"] == 3
    assert summary["provenance"]["prior"] == load_prior("in/affine").fingerprint()
    truth = torch.from_numpy(np.asarray(Image.open("in/image.png"))).float().add(0.5).div(256).view(1, *SHAPE)
    mean = posterior.sample(400, torch.Generator().manual_seed(1)).mean(0)
    assert summary["squared_error_mean"] == pytest.approx(float((mean - truth).square().sum()), rel=0.6)
    assert summary["elbo_nats"] == posterior.elbo.tolist()
    assert posterior.provenance["problem"]["options"] == ["fraction=.5", "seed=2"]

    before = contents(place)
    code, out, err = run(*arguments)
    assert code == 2 and "already holds figure.png; choose another folder, or --overwrite" in err
    assert contents(place) == before
    code, _, err = run(*arguments, "--overwrite", "--seed", 4)
    assert (code, err) == (0, "") and finished(place / "out")[1]["seed"] == 4

    code, out, err = run(
        "report", "out", "--truth", "in/image.png", "--draws", 20, "--out", "page.html", "--title", "Hi"
    )
    assert (code, err, out) == (0, "", "wrote page.html\n") and "Hi" in (place / "page.html").read_text()
    code, _, err = run("report", "out/posterior", "--out", "page.html")
    assert code == 2 and "page.html exists already" in err
    assert run("report", "out/posterior", "--out", "page.html", "--draws", 20, "--overwrite")[0] == 0


TINY = {
    "svi": {"steps": 3, "draws": 2, "final_draws": 8},
    "ambient": {"steps": 3, "draws": 2, "final_draws": 8},
    "semi-amortized": {"steps": 3, "draws": 2, "final_draws": 8},
    "avi": {"steps": 3, "observations": 2, "draws": 2, "squeezes": 1, "couplings": 2, "hidden": 4, "features": 4},
    "lmc": {"steps": 5, "chains": 3},
    "mala": {"steps": 8, "warmup": 4, "thin": 2},
    "hmc": {"steps": 8, "warmup": 4, "leapfrogs": 2},
    "hmc-noise": {"steps": 8, "warmup": 4, "leapfrogs": 2},
    "pl-mcmc": {"steps": 8, "warmup": 4, "thin": 2},
    "csgm": {"steps": 4},
    "ivom": {"steps": 4},
    "solverip": {"steps": 4},
    "glowip": {"steps": 4},
    "map": {"steps": 4},
}


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_writes_its_folder(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from flowinv.solvers import catalogue

    real = catalogue.settings_for

    def tiny(solver: str, preset: str | None = None, **changes: Any) -> Any:
        return real(solver, preset, **{**TINY[solver], **changes})

    monkeypatch.setattr(catalogue, "settings_for", tiny)
    monkeypatch.setattr("flowinv.solvers.settings_for", tiny)
    arguments = (*SOLVE, "--image", "in/image.png", "--task", "inpaint-bottom", "--noiseless", "--solver", name)
    code, _, err = run(*arguments, "--draws", 8)
    assert (code, err) == (0, "")
    summary = json.loads((place / "out" / "summary.json").read_text())
    assert summary["solver"] == name and "checkpoint" not in {p.name for p in (place / "out").iterdir()}
    if SOLVERS[name].engine == "optimization":
        assert sorted(p.name for p in (place / "out").iterdir()) == ["estimate", "figure.png", "summary.json"]
        x = PointEstimate.load(place / "out" / "estimate").x
        truth = read_image("in/image.png", SHAPE)
        assert summary["squared_error"] == pytest.approx(float((x - truth).square().sum()), rel=1e-4)
        code, _, err = run("report", "out", "--out", "again.html")
        assert code == 2 and "out/estimate is a point estimate, which has no uncertainty to report on" in err
        return
    trained = ["amortizer"] if name in ("avi", "semi-amortized") else []  # none ships for this prior
    assert sorted(p.name for p in (place / "out").iterdir()) == [*trained, *OUTPUTS]
    if trained:
        rest = arguments[4:] if name == "semi-amortized" else arguments[8:]  # a fit has steps, an answer has none
        again = ("solve", "in/affine", "--out", "again", *rest, "--amortizer", "out/amortizer", "--draws", 8)
        assert run(*again)[0] == 0
    posterior = Posterior.load(place / "out" / "posterior")
    assert ("elbo_nats" in summary) == isinstance(posterior, FlowPosterior)
    assert ("rhat" in summary) == isinstance(posterior, SampledPosterior)
    assert posterior.sample(2, torch.Generator().manual_seed(0)).shape == (2, 1, *SHAPE)
    assert run("report", "out", "--out", "again.html")[0] == 0


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


def test_amortize_then_solve_with_it(run: Run, place: Path) -> None:
    code, out, err = run("amortize", "in/amortize.toml", "--out", "run", "--stop-after", 2)
    assert (code, err) == (0, "") and "stopped at step 2 of 4" in out
    code, out, err = run("amortize", "in/amortize.toml", "--out", "run")
    assert (code, err) == (0, "") and "resuming at step 2 of 4" in out
    assert "inpaint-bottom" in (place / "run" / "amortizer" / "README.md").read_text()
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


def test_the_same_command_gives_the_same_result(run: Run, place: Path) -> None:
    states = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        arguments = [name if a == "out" else a for a in IMAGE]
        assert run(*arguments, "--task", "denoise", "--seed", seed)[0] == 0
        posterior, summary = finished(place / name)
        states.append((posterior.problem.y, posterior.mean(8), summary["elbo_nats"]))
    assert torch.equal(states[0][0], states[1][0]) and torch.equal(states[0][1], states[1][1])
    assert states[0][2] == states[1][2]
    assert not torch.equal(states[0][0], states[2][0])


def test_solve_reaches_the_closed_form(run: Run, place: Path) -> None:
    """`--preset gaussian` can hold the exact posterior: its ELBO is the log evidence, up to what is left to fit."""
    options = ("--task", "denoise", "--preset", "gaussian", "--steps", 300, "--sigma", 0.1)
    assert run(*[300 if a == 3 else a for a in MEASURED], *options[2:], "--task", "denoise")[0] == 0
    _, summary = finished(place / "out")
    prior = load_prior("in/affine").bijection
    root = prior.cholesky.double()
    covariance = root @ root.T + 0.01 * torch.eye(16)
    y = torch.from_numpy(np.load("in/y.npy")).double().flatten()
    mean = prior.mean.double().flatten()
    evidence = float(torch.distributions.MultivariateNormal(mean, covariance).log_prob(y))
    elbo, error = summary["elbo_nats"][0], summary["elbo_standard_error"][0]
    assert evidence - 0.5 < elbo < evidence + 4 * error
    assert summary["data_fit"]["statistic"] == "chi-squared"


def test_solve_a_measurement_with_a_function(run: Run, place: Path) -> None:
    for name in ("forward", "forwards.inner"):
        arguments = [f"out-{name}" if a == "out" else a for a in _operator(f"myops_for_test:{name}")]
        code, out, err = run(*arguments)
        assert (code, err) == (0, "") and "truth" not in out
    folder = place / "out-forward"
    assert sorted(p.name for p in folder.iterdir()) == OUTPUTS
    code, _, err = run("report", folder, "--out", "page.html", "--draws", 20)
    assert code == 2 and "give it again (operator=, --operator)" in err and not Path("page.html").exists()
    code, _, err = run("report", folder, "--out", "page.html", "--draws", 20, "--operator", "myops_for_test:forward")
    assert (code, err) == (0, "") and Path("page.html").exists()


def test_solve_several_observations_a_mask_file_and_a_large_picture(run: Run, place: Path) -> None:
    arguments = ["in/two.npy" if a == "in/y.npy" else a for a in MEASURED]
    assert run(*arguments, "--task", "inpaint-mask", "-o", "mask=in/mask.png")[0] == 0
    posterior, summary = finished(place / "out")
    assert posterior.batch == 2 and len(summary["elbo_nats"]) == 2
    masks = np.stack([np.eye(4), 1 - np.eye(4)])[:, None]
    np.save(place / "masks.npy", masks)
    arguments = ["second" if a == "out" else a for a in arguments]
    assert run(*arguments, "--task", "inpaint-mask", "-o", "mask=masks.npy")[0] == 0
    observed = finished(place / "second")[0].problem.operator.observed
    assert torch.equal(observed, torch.from_numpy(masks).bool())
    arguments = ["third" if a == "out" else "in/large.png" if a == "in/image.png" else a for a in IMAGE]
    code, _, err = run(*arguments, "--task", "denoise", "--fit", "--noiseless", "--likelihood", "laplace")
    assert (code, err) == (0, "") and "Laplace" in repr(finished(place / "third")[0])


@contextlib.contextmanager
def _stopping(at: int, label: str) -> Iterator[Any]:
    def update(step: int, total: int, note: str) -> None:
        if step == at:
            raise KeyboardInterrupt

    yield update


def test_solve_goes_on_after_an_interrupt(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (*[20 if a == 3 else a for a in IMAGE], "--task", "denoise")
    assert run(*["whole" if a == "out" else a for a in arguments])[0] == 0
    for at, extra in ((6, ()), (13, ("--overwrite",))):
        with monkeypatch.context() as patch:
            patch.setattr("flowinv.cli.outcome.progress", lambda label, at=at: _stopping(at, label))
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
        patch.setattr("flowinv.cli.outcome.progress", lambda label: _stopping(6, label))
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
        patch.setattr("flowinv.cli.outcome.progress", lambda label: _stopping(2, label))
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


def test_chains_of_fewer_steps_warm_up_less(run: Run, place: Path) -> None:
    arguments = [6 if a == 3 else a for a in IMAGE]
    assert run(*arguments, "--task", "denoise", "--solver", "mala")[0] == 0
    settings = read_bundle(place / "out" / "posterior", "flowinv-posterior")[0]["provenance"]["settings"]
    assert (settings["steps"], settings["warmup"], settings["thin"]) == (6, 3, 1)


def test_a_checkpoint_that_lacks_something_is_one_line(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for solver, part, lost in (("svi", "fit", "state"), ("csgm", "point", "step"), ("lmc", "chains", "trace")):
        arguments = (*[20 if a == 3 else a for a in IMAGE], "--task", "denoise", "--solver", solver, "--overwrite")
        with monkeypatch.context() as patch:
            patch.setattr("flowinv.cli.outcome.progress", lambda label: _stopping(6, label))
            assert run(*arguments)[0] == 130
        config = place / "out" / "checkpoint" / part / "config.json"
        values = json.loads(config.read_text())
        del values[lost]
        config.write_text(json.dumps(values))
        code, _, err = run(*arguments[:-1])
        assert code == 2 and f"is not a whole checkpoint: it misses '{lost}'" in err and len(err.splitlines()) == 1


def test_a_diverging_fit_is_one_line(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from flowinv.solvers import PRESETS

    monkeypatch.setitem(PRESETS, "fast", replace(PRESETS["fast"], learning_rate=1e30, clip=1e30, warmup=0))
    code, out, err = run(*[20 if a == 3 else a for a in IMAGE], "--task", "denoise")
    assert (code, out) == (2, "") and len(err.splitlines()) == 1 and "not finite" in err
    assert not (place / "out" / "posterior").exists()


@pytest.mark.skipif(not shipped(), reason="no prior ships with this build")
def test_the_demo(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from flowinv.solvers import PRESETS

    if "mnist" not in shipped():
        pytest.skip("the mnist prior does not ship with this build")
    monkeypatch.setitem(PRESETS, "fast", replace(PRESETS["fast"], steps=1, draws=2, final_draws=4))
    write, draws = sys.modules["flowinv.cli.demo"].solve_into, 8
    monkeypatch.setattr(
        "flowinv.cli.demo.solve_into",
        lambda out, solver, problem, settings, _, *rest: write(out, solver, problem, settings, draws, *rest),
    )
    code, out, err = run("demo", "--digit", 4)
    assert (code, err) == (0, "") and "demo/report.html" in out
    assert finished(place / "demo")[0].shape == (1, 28, 28)
    assert run("demo", "--digit", 4)[0] == 2


# -- a process of its own ----------------------------------------------------------------------------

COMMAND = [sys.executable, "-c", "from flowinv.cli import main; main()"]


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
    out, err = process.communicate(timeout=60)
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
