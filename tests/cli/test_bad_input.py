"""Bad input of any kind is one line and exit code 2, and nothing is written."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from commands import IMAGE, MEASURED, SOLVE, TRAIN, Run, contents, with_operator

from flowinv.cli import main

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
    (
        (*IMAGE, "--task", "denoise", "--solver", "glowip", "--preset", "glowip-fast", "--weight", 3),
        "penalty 'none' does",
    ),
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
    ((*IMAGE, "--steps", 20, "--task", "superres", "--noiseless", "--solver", "pl-mcmc"), "mask"),
    (("amortize", "in/amortize-text.toml", "--out", "out"), "options are a table of the task's, got 'x'"),
    (
        ("amortize", "in/amortize-sigma.toml", "--out", "out"),
        "the task has no option 'sigma'; sigma stands beside the task",
    ),
    (("amortize", "in/amortize-seed.toml", "--out", "out"), r"seed must lie in \[0, 2\^63\), got -3"),
    (("amortize", "in/nothing.toml", "--out", "out"), "no such config: in/nothing.toml"),
    (("amortize", "in/train.toml", "--out", "out"), "needs prior = a name"),
    (("amortize", "in/amortize.toml", "--out", "in/full"), "in/full is not empty and holds no run to go on with"),
    (("amortize", "in/amortize-typo.toml", "--out", "out"), "avi has no setting 'stepz'"),
    ((*SOLVE, "--image", "in/nothing.png", "--task", "denoise"), "no such file: in/nothing.png"),
    ((*SOLVE, "--image", "in", "--task", "denoise"), "in is a folder: expected a picture or an array"),
    ((*SOLVE, "--image", "in/text.txt", "--task", "denoise"), "text.txt: expected one of"),
    ((*SOLVE, "--image", "in/broken.png", "--task", "denoise"), "broken.png cannot be read as an image"),
    ((*SOLVE, "--image", "in/large.png", "--task", "denoise"), r"has shape \(3, 9, 9\), the prior's .*--fit resizes"),
    ((*SOLVE, "--image", "in/nan.npy", "--task", "denoise"), "in/nan.npy has 1 values that are NaN"),
    ((*SOLVE, "--image", "in/bytes.npy", "--task", "denoise"), r"in/bytes.npy must lie in \[0, 1\], got values from"),
    ((*SOLVE, "--image", "in/int.npy", "--task", "denoise"), "must hold bytes or floating-point values, got int64"),
    (
        (*SOLVE, "--measurement", "in/nan.npy", "--task", "denoise"),
        "y has 1 observed value that is NaN",
    ),
    ((*SOLVE, "--measurement", "in/bytes.npy", "--task", "denoise"), "bring y to the same units"),
    ((*SOLVE, "--measurement", "in/int.npy", "--task", "denoise"), "must hold bytes or floating-point values"),
    ((*SOLVE, "--measurement", "in/flat.npy", "--task", "denoise"), r"y must have shape \(B, 1, 4, 4\), got \(16,\)"),
    ((*SOLVE, "--measurement", "in/half.npy", "--task", "denoise"), r"y must have shape \(B, 1, 4, 4\)"),
    ((*MEASURED, "--operator", "nocolon"), "--operator takes module:function, got 'nocolon'"),
    ((*MEASURED, "--operator", "myops_for_test:"), "--operator takes module:function"),
    ((*MEASURED, "--operator", "myops_for_test:forward", "-o", "a=1"), "--option belongs to --task"),
    (with_operator("no_such_module_at_all:f"), "cannot be imported: ModuleNotFoundError: No module named"),
    (with_operator("mymiss_for_test:forward"), "cannot be imported: ModuleNotFoundError"),
    (with_operator("mybad_for_test:forward"), "cannot be imported: SyntaxError"),
    (with_operator("myname_for_test:forward"), "cannot be imported: NameError"),
    (with_operator("myops_for_test:nothing"), "module myops_for_test has no nothing"),
    (with_operator("myops_for_test:forwards.nothing"), "module myops_for_test has no forwards.nothing"),
    (with_operator("myops_for_test:number"), "is a int, expected a function"),
    (
        with_operator("myops_for_test:fails"),
        r"myops_for_test:fails fails on images of shape \(1, 1, 4, 4\): RuntimeError",
    ),
    (with_operator("myops_for_test:divides"), "ZeroDivisionError"),
    (with_operator("myops_for_test:looks_up"), "KeyError"),
    (with_operator("myops_for_test:text"), "must return a real tensor"),
    (with_operator("myops_for_test:rounds"), "myops_for_test:rounds has a gradient of zero everywhere"),
    (with_operator("myops_for_test:noisy"), "gives two results for the same x"),
    (with_operator("myops_for_test:mixes"), "treats an image differently among several draws"),
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
    (
        (*IMAGE, "--task", "denoise", "--solver", "lmc", "--chains", 10**14),
        r"more memory was asked for than there is \(6,400,000.0 GB at once\): run with fewer or smaller images, fewer chains",
    ),
    ((*IMAGE, "--task", "denoise", "--solver", "lmc", "--chains", 2**63 - 1), "more memory was asked for"),
    ((*IMAGE, "--task", "denoise", "--solver", "hmc", "--steps", 10**15), "more memory was asked for"),
    ((*IMAGE, "--task", "compressed-sensing", "-o", f"measurements={10**14}"), "more memory was asked for"),
    (("amortize", "in/amortize-wide.toml", "--out", "out"), "more memory was asked for"),
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


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")]
)
def test_other_ways_to_be_short_of_memory(run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr("flowinv.solvers.solve", lambda *_, **__: (_ for _ in ()).throw(error))
    code, _, err = run(*IMAGE, "--task", "denoise")
    assert code == 2 and len(err.splitlines()) == 1 and "more memory was asked for than there is: run" in err


def test_other_errors_of_torch_keep_their_traceback(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    wrong = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    monkeypatch.setattr("flowinv.solvers.solve", lambda *_, **__: (_ for _ in ()).throw(wrong))
    monkeypatch.setattr(sys, "argv", ["flowinv", *map(str, IMAGE), "--task", "denoise"])
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        main()


def test_a_traceback_for_those_who_ask(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWINV_TRACEBACK", "1")
    monkeypatch.setattr(sys, "argv", ["flowinv", "priors", "nosuch"])
    with pytest.raises(ValueError, match="no shipped prior"):
        main()
