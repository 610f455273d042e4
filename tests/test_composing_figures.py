"""The composing benchmark's figures, drawn from small rows and draws made up here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.composing.cases import case_named
from benchmarks.composing.figures import __main__ as command
from benchmarks.composing.figures import bump, completions, sensing, sigma, uncertainty
from benchmarks.composing.run import result_path
from benchmarks.composing.store import Store, save_arrays
from flowinv import load_prior
from flowinv.images import open_picture

SIDE = 4


def _sheet(seed: int, channels: int, draws: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "truth": random.integers(0, 256, (channels, SIDE, SIDE), dtype=np.uint8),
        "observed": random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8),
        "draws": random.integers(0, 256, (draws, channels, SIDE, SIDE), dtype=np.uint8),
        "mean": random.integers(0, 256, (channels, SIDE, SIDE), dtype=np.uint8),
        "std": random.random((SIDE, SIDE)).astype(np.float16),
    }


def _rows(
    out: Path, case: str, method: str, values: dict[int, dict[str, Any]], channels: int = 3, draws: int = 2
) -> None:
    store = Store(result_path(out, case, method), {"of": method})
    for image, row in values.items():
        sheet = None if "failed" in row else _sheet(image, channels, draws)
        features = None if "failed" in row else np.zeros((draws, 2), np.float16)
        store.add({"image": image, **row}, features, sheet)
    store.write({"command": "made up"})


def _drawn(path: Path) -> np.ndarray:
    """The picture in a file that was just written, which must show something."""
    picture = np.asarray(open_picture(path))
    assert picture.std() > 5
    return picture


@pytest.fixture
def grids(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What figures hand to the grid of pictures, which still draws it."""
    taken: list[tuple[Any, ...]] = []
    real = completions.grid

    def spy(path: Path, columns: list[str], rows: list[Any], maps: tuple[int, ...] = ()) -> Path:
        taken.append((columns, rows, maps))
        return real(path, columns, rows, maps)

    monkeypatch.setattr(completions, "grid", spy)
    monkeypatch.setattr(sigma, "grid", spy)
    return taken


def _figure(number: int, out: Path, *more: str) -> Path:
    command.main([str(number), "--out", str(out), "--figures", str(out / "figures"), *more])
    (path,) = (out / "figures").glob(f"figure-{number}*.png")
    return path


def test_completions_stand_between_the_measurement_and_the_deviation(tmp_path: Path, grids: list[Any]) -> None:
    _rows(tmp_path, "faces-top", "svi", {0: {}, 1: {"failed": "step 3"}, 2: {}})
    _drawn(_figure(3, tmp_path))
    ((columns, rows, maps),) = grids
    assert columns == ["original", "observed", "draw 1", "draw 2", "deviation"] and maps == (4,)
    assert len(rows) == 2  # the image that diverged has no draws
    for (_, pictures), image in zip(rows, (0, 2), strict=True):
        sheet = _sheet(image, 3, 2)
        *shown, deviation = pictures
        chw = [sheet["truth"], sheet["observed"].transpose(2, 0, 1), *sheet["draws"]]
        for picture, expected in zip(shown, chw, strict=True):
            assert np.array_equal(picture, expected.transpose(1, 2, 0))
        assert np.array_equal(deviation, sheet["std"])


def test_amortized_draws_stand_beside_the_fitted_ones_of_the_same_image(tmp_path: Path, grids: list[Any]) -> None:
    _rows(tmp_path, "mnist-bottom", "avi", {0: {}, 1: {}}, channels=1)
    _rows(tmp_path, "mnist-bottom", "svi", {1: {}}, channels=1)  # image 0 is not fitted yet
    _drawn(_figure(5, tmp_path))
    ((columns, rows, _),) = grids
    assert columns == ["observed", "AVI 1", "AVI 2", "SVI 1", "SVI 2", "original"]
    assert all((picture == 255).all() for picture in rows[0][1][3:5])
    fitted = _sheet(1, 1, 2)["draws"]
    assert all(np.array_equal(rows[1][1][3 + k][..., 0], fitted[k, 0]) for k in range(2))


def test_tasks_without_rows_are_named_and_left_out(
    tmp_path: Path, grids: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    _rows(tmp_path, "faces-superres", "svi", {0: {}})
    _drawn(_figure(6, tmp_path))
    ((_, rows, _),) = grids
    assert [name for name, _ in rows] == ["super-resolution 2x"]
    assert "run faces-colorize --methods svi" in capsys.readouterr().out


def test_sensing_shows_the_mean_over_images_of_every_number_of_measurements(tmp_path: Path) -> None:
    for m, shift in ((25, 0.0), (250, 6.0)):
        values = {i: {"psnr": 20 + shift + i, "psnr_mean": 22 + shift + i} for i in range(3)}
        _rows(tmp_path, f"faces-cs-{m}", "svi", values | {3: {"failed": "step 3"}})
    assert sensing.points(tmp_path, "csgm-point", "psnr") == {}
    _rows(tmp_path, "faces-cs-250", "csgm-point", {0: {"psnr": 25.0}, 5: {"psnr": 99.0}})
    found = sensing.points(tmp_path, "svi", "psnr_mean")
    assert {m: v.value for m, v in found.items()} == {25: 23.0, 250: 28.0}  # at 250 both have image 0 alone
    assert sensing.points(tmp_path, "csgm-point", "psnr")[250].value == 25.0
    _drawn(_figure(4, tmp_path))


def test_figures_7_and_8_show_what_smoothing_left(tmp_path: Path, grids: list[Any]) -> None:
    rows, arrays = [], {}
    for variant, scale in (("l2", 1.0), ("l2", 0.1), ("annealed", 0.1), ("perceptual", 30.0)):
        sheet = _sheet(int(scale * 10), 1, 4)
        arrays |= {f"{variant}:{scale:g}:{name}": sheet[name] for name in ("truth", "observed", "draws", "std")}
        for image in range(2):
            scores = {"observed": 0.01 * scale, "squared_error": 30.0, "perceptual": 1.0, "energy_score": 3.0 + image}
            rows.append({"variant": variant, "scale": scale, "image": image, **scores})
    save_arrays(tmp_path / "smoothing.draws.npz", arrays)
    (tmp_path / "smoothing.json").write_text(json.dumps({"rows": rows}))
    _drawn(_figure(7, tmp_path))
    _drawn(_figure(8, tmp_path))
    ((columns, shown, _),) = grids
    assert columns == ["", "sigma\n1", "sigma\n0.1"]
    assert len(shown) == 5 and shown[-1][0] == "deviation\n(own scale)"


def test_the_bump_is_a_tent() -> None:
    x = np.linspace(0, 2, 41)
    for epsilon in bump.EPSILONS:
        assert np.allclose(bump.bump(x, epsilon), np.maximum(0, 1 - np.abs(x - 1) / epsilon))


def test_the_network_of_a_clause_and_the_priors_are_drawn(tmp_path: Path) -> None:
    _drawn(_figure(9, tmp_path))
    assert _drawn(_figure(10, tmp_path, "--prior", "mnist")).shape[0] > 300


def test_pixels_are_chosen_by_entropy() -> None:
    entropy = torch.tensor([[8.0, 1.0, 1.0], [2.0, 6.0, 3.5], [0.0, 5.0, 1.0]])
    unseen = torch.tensor([[False] * 3, [True] * 3, [True] * 3])
    observed, middling, most = uncertainty.pixels(entropy, unseen)
    assert observed[0] == 0 and most == (1, 1) and middling == (1, 2)  # 3.5 is nearest to half of 6


def test_densities_are_drawn_with_the_truth_if_they_are_those_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = _sheet(3, 3, 6)
    found = {
        **{name: sheet[name] for name in ("truth", "observed", "draws")},
        "entropy": np.linspace(0, 8, SIDE * SIDE).reshape(SIDE, SIDE),
        "places": np.array([(0, 0), (1, 2), (3, 3)]),
        "masses": np.full((3, 16), 1 / 16),
        "value": np.array([0.2, 0.5, 0.9]),
        "count": np.array(3200),
    }
    kept = tmp_path / "uncertainty" / "faces-top-0.npz"
    settings = uncertainty.fit_settings(case_named("faces-top"), 0)
    identity = uncertainty.identity_of(load_prior("faces"), settings, 3200)
    save_arrays(kept, {**found, "identity": np.array(identity)})
    _drawn(_figure(1, tmp_path, "--data", str(tmp_path)))
    with pytest.raises(SystemExit):
        _figure(1, tmp_path, "--data", str(tmp_path), "--draws", "16")
    assert "was made with other settings; move it away" in capsys.readouterr().err


@pytest.mark.parametrize("number", [3, 4, 5, 6, 7, 8])
def test_a_figure_without_rows_says_what_to_run(
    tmp_path: Path, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        _figure(number, tmp_path)
    assert stop.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith(f"figure {number}: ") and "python -m benchmarks.composing" in said
