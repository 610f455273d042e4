"""A folder with what the commands are given, and a way to run them in it."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import SHAPE, TRAINING, Run
from exact_posterior import Exact, affine_flow
from PIL import Image

from flowinv import save_prior
from flowinv.cli import main
from flowinv.flows.flow import UNIT
from flowinv.flows.layers.transforms import Gaussianize
from flowinv.store import read_bundle, write_bundle

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


@pytest.fixture(scope="session")
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
    (folder / "amortize-wide.toml").write_text(amortizing.replace("hidden = 4", f"hidden = {10**13}"))
    (folder / "amortize-beta.toml").write_text(amortizing + "beta = 3\n")
    (folder / "amortize-text.toml").write_text('options = "x"\n' + amortizing)
    (folder / "amortize-sigma.toml").write_text(amortizing + "[options]\nsigma = 3\n")
    (folder / "amortize-seed.toml").write_text(amortizing + "seed = -3\n")
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
