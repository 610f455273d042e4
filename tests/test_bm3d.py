"""The BM3D baseline: that noise goes, and what it refuses."""

from __future__ import annotations

import sys

import pytest
import torch

from flowinv.adapters.bm3d import denoise


def smooth(channels: int) -> torch.Tensor:
    line = torch.linspace(0.2, 0.8, 32)
    return (0.5 * line[:, None] + 0.5 * line).expand(2, channels, 32, 32).clone()


@pytest.mark.parametrize("channels", [1, 3])
def test_noise_goes(channels: int) -> None:
    pytest.importorskip("bm3d")
    x = smooth(channels)
    y = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    found = denoise(y, 0.1)
    assert found.shape == x.shape and found.dtype == x.dtype
    errors = (found - x).square().flatten(1).mean(1)
    assert (errors < 0.1 * (y - x).square().flatten(1).mean(1)).all()
    torch.testing.assert_close(denoise(y[1:], 0.1), found[1:])


def test_sigma_is_the_noises_own_scale() -> None:
    """Of edges and noise the right sigma leaves less than one that is a third, or three times, as large."""
    pytest.importorskip("bm3d")
    x = 0.25 + 0.5 * ((torch.arange(32)[:, None] // 5 + torch.arange(32) // 5) % 2).expand(1, 1, 32, 32).float()
    y = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    errors = {s: float((denoise(y, s) - x).square().mean()) for s in (0.03, 0.1, 0.3)}
    assert errors[0.1] < 0.8 * errors[0.03] and errors[0.1] < 0.8 * errors[0.3]


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"takes images .* got \(2, 2, 32, 32\)"):
        denoise(torch.zeros(2, 2, 32, 32), 0.1)
    with pytest.raises(ValueError, match=r"at least 8 x 8 pixels, got \(1, 1, 4, 4\)"):
        denoise(torch.zeros(1, 1, 4, 4), 0.1)
    for sigma in (0, float("inf")):
        with pytest.raises(ValueError, match=f"sigma must be positive and finite, got {sigma}"):
            denoise(torch.zeros(1, 1, 8, 8), sigma)
    with pytest.raises(ValueError, match="sigma must be positive and finite, got 'a'"):
        denoise(torch.zeros(1, 1, 8, 8), "a")
    with pytest.raises(ValueError, match=r"got \(0, 3, 8, 8\)"):
        denoise(torch.zeros(0, 3, 8, 8), 0.1)
    with pytest.raises(ValueError, match="real floating-point images"):
        denoise(torch.zeros(1, 1, 8, 8, dtype=torch.complex64), 0.1)
    with pytest.raises(ValueError, match="y has 64 values that are NaN or infinite"):
        denoise(torch.full((1, 1, 8, 8), float("nan")), 0.1)


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm3d", None)
    with pytest.raises(ImportError, match=r"pip install flowinv\[bm3d\]"):
        denoise(torch.zeros(1, 1, 8, 8), 0.1)
