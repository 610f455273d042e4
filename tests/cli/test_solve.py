"""``flowinv solve``, ``report`` and ``demo``: what they write, and what is in it."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import IMAGE, MEASURED, OUTPUTS, SHAPE, SOLVE, Run, contents, finished, with_operator
from PIL import Image

from flowinv import FlowPosterior, PointEstimate, Posterior, SampledPosterior, load_prior
from flowinv.images import read_image
from flowinv.priors import shipped
from flowinv.solvers import SOLVERS
from flowinv.store import read_bundle


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


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--task", "deblur", "-o", "kernel=box"), "weight is 0.003, chosen for exact measurements (--noiseless)\n"),
        (("--task", "deblur", "-o", "kernel=box", "--weight", ".01"), "weight is 0.01\n"),
        (("--task", "denoise"), "weight is 0.025\n"),
        (("--task", "deblur", "-o", "kernel=box", "--noiseless"), None),
    ],
)
def test_a_weight_that_noise_does_not_suit_is_said_to_be_so(run: Run, more: tuple[str, ...], said: str | None) -> None:
    code, out, err = run(*IMAGE, *more, "--solver", "solverip", "--steps", 1)
    assert (code, err) == (0, "")
    assert said in out if said else "does not see sigma" not in out


def test_a_weight_goes_to_the_preset_of_the_task(run: Run) -> None:
    code, out, err = run(*IMAGE, "--task", "denoise", "--solver", "glowip", "--weight", 0.03, "--steps", 1)
    assert (code, err) == (0, "") and "weight is 0.03\n" in out


def test_that_pl_mcmc_takes_noise_for_exact_is_said(run: Run) -> None:
    arguments = (*SOLVE, "--image", "in/image.png", "--task", "inpaint-bottom", "--solver", "pl-mcmc", "--steps", 4)
    code, out, err = run(*arguments, "--draws", 4, "--sigma", 0.2)
    assert (code, err) == (0, "")
    assert "pl-mcmc does not see sigma: noise of 0.2 is in y, what was observed is taken as exact\n" in out


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
    code, out, err = run(*arguments, "--draws", 8)
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
        assert "training one first, 3 steps of 4 draws (2 observations, 2 each)\n" in out
        rest = arguments[4:] if name == "semi-amortized" else arguments[8:]  # a fit has steps, an answer has none
        again = ("solve", "in/affine", "--out", "again", *rest, "--amortizer", "out/amortizer", "--draws", 8)
        assert run(*again)[0] == 0
    posterior = Posterior.load(place / "out" / "posterior")
    assert ("elbo_nats" in summary) == isinstance(posterior, FlowPosterior)
    assert ("rhat" in summary) == isinstance(posterior, SampledPosterior)
    assert posterior.sample(2, torch.Generator().manual_seed(0)).shape == (2, 1, *SHAPE)
    assert run("report", "out", "--out", "again.html")[0] == 0


def command_of(card: Path) -> list[str]:
    """The command that a card gives, with its folder, a measurement and a folder to write filled in."""
    (line,) = [line.strip() for line in card.read_text().splitlines() if line.startswith("    flowinv")]
    words = {"FOLDER": str(card.parent), "Y": "in/y.npy", "OUT": "answered"}
    return [words.get(word, word) for word in shlex.split(line)[1:]]


@pytest.mark.parametrize(
    "of",
    [
        ("--task", "inpaint-bottom", "--sigma", ".2"),
        ("--task", "inpaint-pixels", "-o", "fraction=.3", "-o", "seed=2"),
        ("--task", "inpaint-box", "-o", "size=2x1", "--likelihood", "laplace", "--sigma", ".05"),
    ],
)
def test_the_command_on_an_amortizers_card_uses_it(
    run: Run, place: Path, monkeypatch: pytest.MonkeyPatch, of: tuple[str, ...]
) -> None:
    from flowinv.solvers import AMORTIZED_PRESETS

    monkeypatch.setitem(AMORTIZED_PRESETS, "fast", replace(AMORTIZED_PRESETS["fast"], **TINY["avi"]))
    code, out, _ = run(*IMAGE, *of, "--solver", "avi", "--preset", "fast")
    assert code == 0 and "training one first, 3 steps of 4 draws (2 observations, 2 each)\n" in out
    amortizer = place / "out" / "amortizer"
    code, out, err = run(*command_of(amortizer / "README.md"))
    assert (code, err) == (0, "") and "training" not in out
    posterior = Posterior.load(place / "answered" / "posterior")
    trained = read_bundle(amortizer, "flowinv-amortizer")[0]["provenance"]
    assert posterior.provenance["steps"] == 0 and posterior.provenance["amortizer"] == trained


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
        arguments = [f"out-{name}" if a == "out" else a for a in with_operator(f"myops_for_test:{name}")]
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


def test_chains_of_fewer_steps_warm_up_less(run: Run, place: Path) -> None:
    arguments = [6 if a == 3 else a for a in IMAGE]
    assert run(*arguments, "--task", "denoise", "--solver", "mala")[0] == 0
    settings = read_bundle(place / "out" / "posterior", "flowinv-posterior")[0]["provenance"]["settings"]
    assert (settings["steps"], settings["warmup"], settings["thin"]) == (6, 3, 1)


def test_a_diverging_fit_is_one_line(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flowinv.solvers import PRESETS

    monkeypatch.setitem(PRESETS, "fast", replace(PRESETS["fast"], learning_rate=1e30, clip=1e30, warmup=0))
    code, out, err = run(*[20 if a == 3 else a for a in IMAGE], "--task", "denoise")
    assert (code, out) == (2, "") and len(err.splitlines()) == 1 and "not finite" in err
    assert not (place / "out" / "posterior").exists()


@pytest.mark.skipif(not shipped(), reason="no prior ships with this build")
def test_the_demo(run: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
