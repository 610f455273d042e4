"""R-hat and effective sample size against closed forms, an independent library, and chains that have not mixed."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor

from flowinv.diagnostics import chains as module
from flowinv.diagnostics import ess, rhat, standard_error


def autoregressive(rho: float, chains: int, draws: int, columns: int, seed: int = 0) -> Tensor:
    """x_t = rho x_{t-1} + sqrt(1 - rho^2) n_t in equilibrium, (C, S, k): its ESS is C S (1 - rho) / (1 + rho)."""
    noise = torch.randn(chains, draws, columns, generator=torch.Generator().manual_seed(seed)).double()
    x = noise.clone()
    for t in range(1, draws):
        x[:, t] = rho * x[:, t - 1] + math.sqrt(1 - rho**2) * noise[:, t]
    return x


@pytest.mark.parametrize("rho", [-0.5, 0.0, 0.5, 0.9])
def test_ess_of_an_autoregression(rho: float) -> None:
    x = autoregressive(rho, 4, 2000, 50)
    expected = 8000 * (1 - rho) / (1 + rho)
    found = ess(x)
    assert found.shape == (50,) and found.dtype == torch.float64
    # one estimate scatters by a tenth or so; the mean of 50 has no more bias than a few per cent
    assert abs(float(found.mean()) / expected - 1) < 0.06
    error = standard_error(x)
    assert abs(float((error * math.sqrt(expected)).mean()) - 1) < 0.05
    # and it is the error: of x's mean, whose truth is 0
    assert 0.8 < float((x.mean((0, 1)) / error).std()) < 1.25
    assert (rhat(x) - 1).abs().max() < 0.05


def test_an_ess_that_is_off_by_one_lag_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    x, right = autoregressive(0.5, 4, 2000, 20), module._autocovariance
    monkeypatch.setattr(module, "_autocovariance", lambda t: right(t).roll(-1, 1))
    assert float(ess(x).mean()) / (8000 / 3) > 1.2


def test_rhat_sees_chains_in_other_places_of_other_widths_and_that_drift() -> None:
    x = torch.randn(4, 500, 3, generator=torch.Generator().manual_seed(1))
    shifted, wide, drifting = x.clone(), x.clone(), x.clone()
    shifted[0, :, 1] += 1
    wide[0, :, 1] *= 3
    drifting[:, :, 1] += torch.linspace(-1, 1, 500)
    for wrong in (shifted, wide, drifting):
        found = rhat(wrong)
        assert found[1] > 1.05 and (found[[0, 2]] < 1.02).all()
    # the plain statistic, without folding, is blind to widths
    assert float(module._split_rhat(module._normal_scores(module._halves(wide.double())))[1]) < 1.01


def test_ranks_do_not_mind_heavy_tails_nor_monotone_maps() -> None:
    x = autoregressive(0.5, 4, 500, 5)
    torch.testing.assert_close(ess(x.exp()), ess(x), rtol=1e-12, atol=0)
    cauchy = torch.tan(math.pi * (torch.special.ndtr(x) - 0.5))
    torch.testing.assert_close(ess(cauchy), ess(x), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("chains", "draws"), [(4, 100), (2, 9), (3, 4), (2, 8), (4, 12), (4, 301)])
def test_agrees_with_arviz_where_the_sum_ends_and_tells_of_less_where_it_does_not(chains: int, draws: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arviz = pytest.importorskip("arviz")
    for rho in (-0.6, 0.0, 0.95):
        x = autoregressive(rho, chains, draws, 4)
        x = torch.cat([x, (2 * x).round()], 2)  # with ties
        x[0, :, 0] += 0.7
        ends = torch.tensor([draws >= 100 and rho < 0.5 and i > 0 for i in range(x.shape[2])])
        columns = [x[..., i].numpy() for i in range(x.shape[2])]
        theirs = torch.tensor([[arviz.rhat(c), arviz.ess(c), arviz.mcse(c)] for c in columns]).double().T
        torch.testing.assert_close(rhat(x), theirs[0], rtol=1e-10, atol=0, equal_nan=True)
        torch.testing.assert_close(ess(x)[ends], theirs[1][ends], rtol=1e-10, atol=0)
        torch.testing.assert_close(standard_error(x)[ends], theirs[2][ends], rtol=1e-10, atol=0)
        assert (ess(x) <= theirs[1] * 1.02).all()
        assert (standard_error(x) >= theirs[2] * 0.99).all()


@pytest.mark.parametrize("draws", [*range(4, 16), 40])
def test_chains_far_apart_are_worth_about_one_draw_each_however_short(draws: int) -> None:
    for chains in (2, 4, 10):
        inside = torch.rand(chains, draws, 5, generator=torch.Generator().manual_seed(draws))
        x = torch.arange(float(chains))[:, None, None] * 100 + inside
        assert ((ess(x) > 0.8 * chains) & (ess(x) < 2.5 * chains)).all()
        known = x.mean(1).std(0) / math.sqrt(chains)  # of the mean of so many independent values
        assert ((standard_error(x) / known - 1).abs() < 0.4).all()


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_the_standard_error_of_short_chains_covers_the_truth(rho: float) -> None:
    for draws in (4, 6, 8, 9, 10, 13):
        x = autoregressive(rho, 10, draws, 2000)
        beyond = float((x.mean((0, 1)).abs() > 2 * standard_error(x)).double().mean())
        assert 0.02 < beyond < 0.15  # 0.05, had the error itself none; without the last lags it is up to 0.6


def test_trailing_dimensions_in_bounded_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    x = autoregressive(0.3, 3, 50, 24).float()
    image = x.view(3, 50, 2, 3, 4)
    for of in (rhat, ess, standard_error):
        whole = of(x)
        assert torch.equal(of(image), whole.view(2, 3, 4))
        monkeypatch.setattr(module, "_ELEMENTS", 1000)
        torch.testing.assert_close(of(x), whole, rtol=1e-12, atol=0)
        monkeypatch.undo()
        assert of(x[..., 0]).shape == ()


def test_what_never_varies_or_is_too_short_has_no_value() -> None:
    x = torch.randn(4, 100, 2, generator=torch.Generator().manual_seed(0))
    x[..., 1] = 0.1
    for of in (rhat, ess, standard_error):
        found = of(x)
        assert torch.isfinite(found[0]) and torch.isnan(found[1])
        assert torch.isnan(of(x[:, :3])).all()
    stuck = torch.arange(4.0)[:, None].expand(4, 100)
    assert rhat(stuck) == math.inf and ess(stuck) < 10


@pytest.mark.parametrize(
    ("draws", "error", "message"),
    [
        (torch.zeros(5), ValueError, r"\(C, S, ...\)"),
        (torch.zeros(2, 0), ValueError, r"\(2, 0\)"),
        (torch.zeros(2, 10, dtype=torch.int64), TypeError, "int64"),
        (torch.full((2, 10), math.nan), ValueError, "20 values that are NaN"),
    ],
)
def test_refuses_what_is_no_set_of_chains(draws: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        rhat(draws)
