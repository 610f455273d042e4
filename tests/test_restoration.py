"""The restoration benchmark's own arithmetic: settings, measurements, the paper's decibels."""

from __future__ import annotations

import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.composing.data import Images
from benchmarks.restoration import figures, page, run, speed, work
from benchmarks.restoration.cases import CASES, Case
from benchmarks.restoration.methods import METHODS, applies, point_settings
from benchmarks.restoration.page import ahead, pooled
from benchmarks.restoration.run import RESULTS, settings_of
from benchmarks.restoration.store import best_weight
from flowinv import Affine, Flow, InverseProblem
from flowinv.flows import Elementwise
from flowinv.flows.architectures import PatchFlowConfig
from flowinv.metrics import pooled_psnr
from flowinv.metrics.errors import quantised
from flowinv.priors import save_prior
from flowinv.solvers import OPTIMIZATION_PRESETS, Diverged


def normal_images() -> Flow:
    return Flow(Elementwise((3, 32, 32)), (3, 32, 32))


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_every_method_has_settings_for_every_weight(case: Case) -> None:
    for name, method in METHODS.items():
        if not applies(method, case) or name == "mean":
            continue
        solver = settings_of(case, name, "prior")["solver"]
        assert "weight" not in solver and (name == "bm3d" or (solver["steps"], solver["learning_rate"]) == (500, 0.05))
        for weight in method.weights(case):
            found, third = (point_settings(name, case, weight, pace) for pace in ("paper", "third"))
            if found is not None and third is not None:
                assert found.weight == (0 if "none" in name else weight) and found.steps == 1500
                assert found.learning_rate == (1.5e-3 if name == "map" else 5e-3)
                long = point_settings(name, case, weight, "long")
                assert long == replace(found, steps=1500, learning_rate=0.05, optimizer="adam-cosine")
                assert third == replace(found, steps=500, learning_rate=3 * found.learning_rate)


def test_the_mean_is_that_of_a_flow_started_at_a_laplace_approximation() -> None:
    solver = settings_of(CASES["denoise"], "mean", "prior")["solver"]
    assert (solver["start"], solver["space"], solver["mean_of"]) == ("laplace", "latent", 256)
    assert METHODS["mean"].weights(CASES["denoise"]) == (0.1,) and METHODS["mean"].weights(CASES["deblur"]) == (
        0.01,
        0.02,
        0.05,
    )


@pytest.mark.parametrize("case", [name for name in CASES if "1x1" not in name])
def test_the_fast_presets_have_the_weights_that_validation_faces_chose(case: str) -> None:
    names = {
        "csgm": "solverip-csgm-{}-fast",
        "glowip": "glowip-{}-fast",
        "solverip": "solverip-{}-fast",
        "map": "map-fast",
    }
    for method, name in names.items():
        if not applies(METHODS[method], CASES[case]):
            continue
        preset = OPTIMIZATION_PRESETS.get(
            name.format(case), OPTIMIZATION_PRESETS.get(name.format(case).replace(f"-{case}", ""))
        )
        rows = json.loads((RESULTS / case / "tuning" / f"{method}.json").read_text(encoding="utf-8"))["rows"]
        best = best_weight(rows, {row["weight"] for row in rows})
        assert preset is not None and best is not None and preset.weight == pytest.approx(best[0], rel=0.02), (
            case,
            method,
        )


def test_the_hole_and_the_noise_are_the_papers() -> None:
    prior, x = normal_images(), torch.full((2, 3, 32, 32), 0.5)
    hole = CASES["inpaint"].problem(prior, x, 0)
    assert int((~hole.operator.mask[0, 0]).sum()) == 169 and not hole.operator.mask[..., 9:22, 9:22].any()
    noisy = CASES["denoise"].problem(prior, x, 3)
    assert float((noisy.y - x).std()) == pytest.approx(0.1, rel=0.05)
    assert torch.equal(noisy.y[1:], CASES["denoise"].problem(prior, x[1:], 4).y)


def test_pooled_decibels_by_hand() -> None:
    rows = [{"image": i, "squared_error_5bit": 64.0 if i < 32 else 256.0} for i in range(64)]
    expected = 20 * math.log10(255) - 10 * (math.log10(64) + math.log10(256)) / 2
    assert pooled(rows).value == pytest.approx(expected)


def test_pooled_decibels_are_the_metrics() -> None:
    """Floored to 5 bits in one place: at x = 1 as well, which is level 31."""
    generator = torch.Generator().manual_seed(0)
    truth, x = (torch.rand(2, 32, 3, 8, 8, generator=generator) * 1.2 - 0.1).clamp(0, 1)
    errors = (quantised(x, 5) - quantised(truth, 5)).square().flatten(1).mean(1)
    rows = [{"image": i, "squared_error_5bit": float(e)} for i, e in enumerate(errors)]
    assert pooled(rows).value == pytest.approx(float(pooled_psnr(x, truth, 5)))
    assert quantised(torch.tensor([0.0, 0.031, 0.032, 1.0]), 5).tolist() == [0, 0, 8, 248]


def test_methods_are_compared_on_the_same_images() -> None:
    rows = [{"image": i, "psnr": 20.0 + i} for i in range(3)]
    others = [{"image": i, "psnr": 19.0 + 2 * i} for i in range(1, 9)]
    gain = ahead(rows, others)
    assert gain is not None and gain.count == 2 and gain.value == pytest.approx((0.0 - 1.0) / 2)
    assert ahead(rows, others[3:]) is None


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Flat pictures for data, and in a folder a prior N(.5, .2^2) of them."""
    flat = torch.randint(32, (40, 1, 1, 1), generator=torch.Generator().manual_seed(0)).expand(40, 3, 32, 32)
    monkeypatch.setattr(run, "load", lambda *_: Images(flat, flat, flat, 5))
    prior = Affine(torch.full((3, 32, 32), 0.5), 0.2 * torch.eye(3072))
    save_prior(Flow(prior, (3, 32, 32)), tmp_path / "prior")
    return tmp_path


def test_from_tuning_to_the_page(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "rows"

    def command(*more: str) -> str:
        common = [
            "--data",
            "none",
            "--prior",
            str(folder / "prior"),
            "--out",
            str(out),
            "--workers",
            "0",
            "--steps",
            "3",
        ]
        run.main([*common, "--cases", "colorize", "--methods", "csgm", "solverip", *more])
        return capsys.readouterr().out

    with pytest.raises(SystemExit):
        command()
    assert "colorize csgm was not tuned yet on 32 faces" in capsys.readouterr().err
    assert len(command("--split", "validation").splitlines()) == 2 * 4
    assert command("--split", "validation") == "", "nothing is left to do"
    command("--images", "2")
    command("--images", "3")  # goes on where it stopped
    with pytest.raises(SystemExit):
        command("--split", "validation", "--pace", "long")
    assert "there is nothing to tune" in capsys.readouterr().err
    command("--images", "2", "--pace", "long")
    for name in ("csgm", "solverip"):
        found = json.loads((out / "colorize" / f"{name}.json").read_text())
        long = json.loads((out / "colorize" / f"{name}-long.json").read_text())["settings"]
        assert long["weight"] == found["settings"]["weight"] and long["solver"]["optimizer"] == "adam-cosine"
        tuning = json.loads((out / "colorize" / "tuning" / f"{name}.json").read_text())["rows"]
        score = {w: sum(r["psnr"] for r in tuning if r["weight"] == w) for w in {r["weight"] for r in tuning}}
        assert [r["image"] for r in found["rows"]] == [0, 1, 2] and found["settings"]["weight"] == max(
            score, key=score.get
        )
        assert {r["weight"] for r in found["rows"]} == {found["settings"]["weight"]}
    page.main(["--out", str(out), "--page", str(folder / "page.md")])
    text = (folder / "page.md").read_text()
    assert (
        "| CSGM (pace long) | 2 |" in text
        and "| CSGM | 3 |" in text
        and "| likelihood-regularised, L1 | 3 |" in text
        and "not run" in text
    )
    figures.main(["6", "--out", str(out), "--figures", str(folder / "figures")])
    assert (folder / "figures" / "figure-6.png").read_bytes().startswith(b"\x89PNG")
    path = out / "colorize" / "csgm.json"
    path.write_text(path.read_text().replace(found["settings"]["prior"], "another"))
    with pytest.raises(ValueError, match="rows of colorize were made with more than one prior"):
        page.main(["--out", str(out), "--page", str(folder / "page.md")])
    with pytest.raises(SystemExit):
        command("--images", "4")
    assert "holds rows made with other settings or another prior" in capsys.readouterr().err


def test_the_page_is_that_of_the_rows(tmp_path: Path) -> None:
    shutil.copy(page.PAGE, tmp_path / "restoration.md")
    (tmp_path / "restoration").mkdir()
    for picture in (page.PAGE.parent / "restoration").glob("figure-*.png"):
        (tmp_path / "restoration" / picture.name).touch()
    page.main(["--page", str(tmp_path / "restoration.md")])
    assert (tmp_path / "restoration.md").read_text() == page.PAGE.read_text(), (
        "run python -m benchmarks.restoration.page"
    )


def test_the_posterior_mean_is_the_closed_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under N(.5, .2^2 I), y = x + .1 n: .5 + .8 (y - .5), to within the spread of 256 draws, a sixteenth of one's."""
    size = (3, 4, 4)
    monkeypatch.setattr(work, "_prior", lambda name: Flow(Affine(torch.full(size, 0.5), 0.2 * torch.eye(48)), size))
    truth = 0.5 + 0.2 * torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    truth = truth.clamp(0.2, 0.8)
    job = work.Job(CASES["denoise"], "mean", 0.1, 3, truth, "none")
    problem = job.case.problem(work._prior("none"), truth, 3, 0.1)
    x, about = work._restored(job, problem)
    expected = 0.5 + 0.8 * (problem.y - 0.5)
    assert float((x - expected).square().mean().sqrt()) < 0.01 < 0.2 * 0.1 / math.hypot(0.2, 0.1) / 4
    assert 0 < int(about["steps"][0]) <= 300


@pytest.mark.parametrize("method", ["csgm", "mean"])
def test_a_face_starts_where_it_does_in_its_batch(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []

    class Spy:
        def __init__(self, settings: Any):
            found.append(settings.first)
            raise Diverged(0, "the misfit", None)

    monkeypatch.setattr(work, "PointSolver", Spy)
    monkeypatch.setattr(work, "_prior", lambda name: normal_images())
    job = work.Job(CASES["denoise"], method, 0.1, 7, torch.full((2, 3, 32, 32), 0.5), "none")
    assert ["failed" in row for row, _ in work.solve_job(job)] == [True, True]
    assert found == [7, 7, 8], "the batch of two, then each of them alone"


def test_bm3d_is_told_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    def identity(y: torch.Tensor, sigma: float) -> torch.Tensor:
        assert sigma == 0.1
        return y

    monkeypatch.setattr(work, "denoise", identity)
    monkeypatch.setattr(work, "_prior", lambda name: normal_images())
    ((row, _),) = work.solve_job(work.Job(CASES["denoise"], "bm3d", 0.0, 0, torch.full((1, 3, 32, 32), 0.5), "none"))
    assert row["psnr"] == pytest.approx(20, abs=0.3), "noise of .1, left as it is"


def test_what_an_iteration_keeps_and_what_the_twin_weighs(monkeypatch: pytest.MonkeyPatch) -> None:
    small = PatchFlowConfig((3, 32, 32), hidden=8, steps=(1, 1), splits=())
    monkeypatch.setattr(speed, "FLOWS", {"small": small})
    found = speed.measure(batch=2, rounds=1)["small"]
    z = torch.zeros(2, 3, 32, 32)
    frozen, plain = (speed.variant(speed.flow_of(small), name) for name in ("frozen", "plain"))
    for flow in (frozen, plain):
        torch.testing.assert_close(flow.decode(z)[0], speed.flow_of(small).decode(z)[0], atol=1e-5, rtol=1e-5)
    assert not any(p.requires_grad for p in frozen.parameters()) and all(p.requires_grad for p in plain.parameters())
    assert found["kept_mb"]["frozen"] < found["kept_mb"]["plain"]
    linear = Flow(Elementwise((4,)), (4,)).frozen()
    assert speed.kept_for_backward(linear, torch.ones(8, 4), torch.zeros(8, 4)) * 2**20 <= 4 * 8 * 4 * 4


def test_a_diverged_face_does_not_take_its_batch_along(monkeypatch: pytest.MonkeyPatch) -> None:
    def restored(job: work.Job, problem: InverseProblem) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if 5 in range(job.place, job.place + len(job.truth)):
            raise Diverged(1, "the misfit of observation 0", None)
        return job.truth, {}

    monkeypatch.setattr(work, "_restored", restored)
    monkeypatch.setattr(work, "_prior", lambda name: normal_images())
    job = work.Job(CASES["colorize"], "solverip", 0.01, 4, torch.full((3, 3, 32, 32), 0.25), "none")
    rows = [row for row, _ in work.solve_job(job)]
    assert [row["image"] for row in rows] == [4, 5, 6] and ["failed" in row for row in rows] == [False, True, False]
    assert len(page.whole(rows)) == 2 and rows[0]["together"] == 1
