"""Sheets of pictures, read back pixel by pixel."""

import numpy as np
import pytest
import torch
from gaussian_posterior import GaussianPosterior, upper_half

from flowinv.flows.flow import UNIT
from flowinv.plots import contact_sheet, samples_sheet

matplotlib = pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")


def pixels(path) -> torch.Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB")))


def test_samples_sheet_holds_every_image_in_its_place(tmp_path):
    images = torch.rand(5, 1, 4, 6, generator=torch.Generator().manual_seed(0))
    sheet = pixels(samples_sheet(images, tmp_path / "s.png", columns=3, scale=2))
    assert sheet.shape == (2 * (2 * 5 + 1), 2 * (3 * 7 + 1), 3)
    for k in range(5):
        top, left = 2 * (1 + (k // 3) * 5), 2 * (1 + (k % 3) * 7)
        cell = sheet[top : top + 8 : 2, left : left + 12 : 2]
        assert torch.equal(cell[..., 0], (images[k, 0] * 255).round().byte()) and torch.equal(
            cell[..., 0], cell[..., 2]
        )


def test_samples_sheet_in_colour_with_another_support(tmp_path):
    images = torch.stack([torch.full((2, 2), v) for v in (-3.0, -1.0, 1.0)])[None]
    sheet = pixels(samples_sheet(images, tmp_path / "s.png", scale=1, support=(-1.0, 1.0)))
    assert sheet[1, 1].tolist() == [0, 0, 255] and sheet.shape == (4, 4, 3)


@pytest.mark.parametrize("shape", [(4, 6), (3, 2, 4, 6), (0, 1, 4, 6)])
def test_samples_sheet_refuses_what_is_no_image(shape, tmp_path):
    with pytest.raises(ValueError, match=r"images must have shape \(N, 1 or 3, H, W\)"):
        samples_sheet(torch.zeros(shape), tmp_path / "s.png")


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (12,)])
def test_contact_sheets_of_every_kind(shape, tmp_path):
    backend, state = matplotlib.rcParams["backend"], torch.get_rng_state()
    posterior = GaussianPosterior(
        shape, upper_half(shape), 2, support=UNIT if len(shape) == 3 else (-torch.inf, torch.inf)
    )
    sheet = pixels(contact_sheet(posterior, tmp_path / "c.png", draws=40, shown=3, truth=posterior.truth))
    assert sheet.shape[0] > 200 and sheet.shape[1] > 600
    assert matplotlib.rcParams["backend"] == backend and torch.equal(torch.get_rng_state(), state)
    again = pixels(contact_sheet(posterior, tmp_path / "d.png", draws=40, shown=3, truth=posterior.truth))
    other = pixels(contact_sheet(posterior, tmp_path / "e.png", draws=40, shown=3, truth=posterior.truth, seed=1))
    assert torch.equal(sheet, again) and not torch.equal(sheet, other)


def test_contact_sheet_shows_the_truth_and_the_unmeasured(tmp_path):
    posterior = GaussianPosterior((1, 4, 4), upper_half((1, 4, 4)), 1, support=UNIT)
    truth = torch.tensor([0.2, 0.8]).repeat(8).view(1, 1, 4, 4)
    posterior.truth = truth
    sheet = pixels(contact_sheet(posterior, tmp_path / "c.png", draws=40, shown=1, truth=truth))
    found = {tuple(c) for c in sheet.reshape(-1, 3).tolist()}
    assert {(51, 51, 51), (204, 204, 204), (214, 222, 232)} <= found


def test_existing_files_are_kept_and_wrong_truths_refused(tmp_path):
    posterior = GaussianPosterior((1, 4, 4), upper_half((1, 4, 4)), 1, support=UNIT)
    path = tmp_path / "c.png"
    path.write_text("mine")
    for write in (lambda: contact_sheet(posterior, path), lambda: samples_sheet(torch.zeros(1, 1, 4, 4), path)):
        with pytest.raises(FileExistsError, match="exists already"):
            write()
    with pytest.raises(ValueError, match=r"truth must have shape \(1, 1, 4, 4\)"):
        contact_sheet(posterior, tmp_path / "d.png", truth=torch.zeros(4, 4))
    assert path.read_text() == "mine" and not (tmp_path / "d.png").exists()
    samples_sheet(torch.zeros(1, 1, 4, 4), path, overwrite=True)
    assert pixels(path).shape == (12, 12, 3)
