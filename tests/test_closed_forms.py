"""The benchmark where the posterior is known: point solvers on small images, and the page against the rows."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import closed_forms
from benchmarks.gaussian_images import MODE, GaussianImages, point
from flowinv.solvers import OPTIMIZATION_PRESETS


def test_map_with_all_of_the_prior_is_the_posterior_mean() -> None:
    row = point(GaussianImages(side=6), MODE)
    assert row["mean_error"] < 1e-3 and row["objective"] == pytest.approx(row["objective_least"])


@pytest.mark.parametrize("name", ["map", "csgm", "ivom"])
def test_every_point_solver_has_its_own_minimiser(name: str) -> None:
    images, settings = GaussianImages(side=4), OPTIMIZATION_PRESETS[name]
    row = point(images, settings)
    assert row["objective"] >= row["objective_least"] - 1e-9
    if name == "csgm":  # which comes to its own: c = 1, w = .1 in the normal equations
        root = images.root[images.observed]
        residual = (images.problem.y.flatten().double() - 0.5)[images.observed]
        z = torch.linalg.solve(root.T @ root + 0.1 * torch.eye(16).double(), root.T @ residual)
        least = float((root @ z - residual).square().sum() + 0.1 * z.square().sum())
        assert row["objective_least"] == pytest.approx(least) == pytest.approx(row["objective"], rel=1e-4)


def test_the_page_is_that_of_the_rows(tmp_path: Path) -> None:
    shutil.copy(closed_forms.PAGE, tmp_path / "page.md")
    closed_forms.main(["--page", str(tmp_path / "page.md")])
    text = (tmp_path / "page.md").read_text()
    assert text == closed_forms.PAGE.read_text(), "run python -m benchmarks.closed_forms"
    assert "| hmc through svi |" in text and "| d 20, m 91 |" in text and "| uf20-91 |" not in text
