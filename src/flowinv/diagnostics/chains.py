"""Whether Markov chains have mixed, and how many independent draws they are worth.

Source: Vehtari, Gelman, Simpson, Carpenter and Buerkner, Rank-normalization, folding, and localization: an improved R-hat
(Bayesian Analysis, 2021). Draws come as (C, S, ...), C chains of S draws; results are (...), in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

_ELEMENTS = 2**22  # in one piece: bounded memory for whole images


def rhat(draws: Tensor) -> Tensor:
    r"""Rank-normalised split R-hat of draws (C, S, ...), shape (...): how much wider all chains are than each one.

    .. math:: \hat R = \sqrt{\left(\tfrac{n-1}{n} W + B/n\right) / W}

    over the halves of the chains (n draws each; W within, B between them), of the ranks' normal scores; the larger of
    that of the values and that of their distances from the median, which sees chains of unequal width. Below 1.01 the
    chains agree; above 1.05 do not use the draws; infinite where each chain is stuck at a value of its own. NaN with fewer
    than four draws to a chain, or where nothing varies.
    """

    def of(x: Tensor) -> Tensor:
        halves = _halves(x)
        folded = (halves - _median(halves)).abs()
        return torch.maximum(_split_rhat(_normal_scores(halves)), _split_rhat(_normal_scores(folded)))

    return _by_pieces(draws, of)


def ess(draws: Tensor) -> Tensor:
    r"""Bulk effective sample size of draws (C, S, ...), shape (...): the independent draws that tell as much.

    .. math:: C S / \tau, \qquad \tau = 1 + 2 \sum_t \rho_t

    of the ranks' normal scores in split chains, the sum ended by Geyer's initial monotone sequence. Ask for 100 per chain
    before trusting R-hat itself; at most C S log10(C S). A sum that does not end counts to the last lag: chains far apart
    are worth about C draws, however short they are, where other libraries leave the longest lags out and tell of more.
    NaN with fewer than four draws to a chain, or where nothing varies.
    """
    return _by_pieces(draws, lambda x: _ess(_normal_scores(_halves(x))))


def standard_error(draws: Tensor) -> Tensor:
    """Monte-Carlo standard error of the mean of draws (C, S, ...), shape (...): their sd over the root of their ESS.

    The ESS here is that of the values themselves, not of their ranks.
    """
    return _by_pieces(draws, lambda x: x.flatten(0, 1).std(0) / _ess(_halves(x)).sqrt())


def _by_pieces(draws: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
    """``of`` applied to columns (C, S, k) in float64, a bounded number at a time."""
    if not isinstance(draws, Tensor) or not draws.is_floating_point():
        raise TypeError(
            f"draws must be a floating-point tensor, got {draws.dtype if isinstance(draws, Tensor) else type(draws).__name__}"
        )
    if draws.dim() < 2 or 0 in draws.shape:
        raise ValueError(f"draws must have shape (C, S, ...), C chains of S draws, got {tuple(draws.shape)}")
    if not torch.isfinite(draws).all():
        raise ValueError(f"draws hold {int((~torch.isfinite(draws)).sum())} values that are NaN or infinite")
    chains, steps, event = draws.shape[0], draws.shape[1], draws.shape[2:]
    columns = draws.detach().reshape(chains, steps, -1)
    if steps < 4:
        return columns.new_full((columns.shape[2],), math.nan, dtype=torch.float64).reshape(event)
    parts = columns.split(max(1, _ELEMENTS // (chains * steps)), 2)
    return torch.cat([of(part.double()) for part in parts]).reshape(event)


def _halves(x: Tensor) -> Tensor:
    """First and last half of every chain (C, S, k) as chains of their own, (2C, S // 2, k)."""
    half = x.shape[1] // 2
    return torch.cat([x[:, :half], x[:, -half:]])


def _median(x: Tensor) -> Tensor:
    """Over chains and draws, the two middle values averaged."""
    ordered = x.flatten(0, 1).sort(0).values
    return 0.5 * (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2])


def _normal_scores(x: Tensor) -> Tensor:
    """Phi^-1((rank - 3/8) / (N + 1/4)) over the N draws of all chains (C, S, k); ties share their average rank."""
    rows = x.flatten(0, 1).T.contiguous()
    ordered = rows.sort(1).values
    below = torch.searchsorted(ordered, rows)
    up_to = torch.searchsorted(ordered, rows, right=True)
    rank = 0.5 * (below + 1 + up_to).to(x.dtype)
    return torch.special.ndtri((rank - 0.375) / (rows.shape[1] + 0.25)).T.reshape(x.shape)


def _varies(x: Tensor) -> Tensor:
    """Whether not all draws are one value: rounding must not pass for a variance."""
    return x.amax((0, 1)) > x.amin((0, 1))


def _variances(x: Tensor) -> tuple[Tensor, Tensor]:
    """Within-chain variance, and the estimate of the whole that counts the spread of the chains' means, each (k,)."""
    draws = x.shape[1]
    within = x.var(1).mean(0)
    return within, within * (draws - 1) / draws + x.mean(1).var(0)


def _split_rhat(x: Tensor) -> Tensor:
    within, whole = _variances(x)
    return torch.where(_varies(x), (whole / within).sqrt(), math.nan)


def _autocovariance(x: Tensor) -> Tensor:
    """Biased autocovariances of chains (C, S, k) at every lag, (C, S, k)."""
    draws = x.shape[1]
    centred = x - x.mean(1, keepdim=True)
    length = 2 ** math.ceil(math.log2(2 * draws))
    power = torch.fft.rfft(centred, n=length, dim=1).abs().square()
    return torch.fft.irfft(power, n=length, dim=1)[:, :draws] / draws


def _ess(x: Tensor) -> Tensor:
    """C S / tau of chains (C, S, k), (k,); lags in pairs, as a reversible chain's pair sums are positive and fall."""
    chains, draws, _ = x.shape
    within, whole = _variances(x)
    rho = 1 - (within - _autocovariance(x).mean(0)) / whole  # (S, k)
    rho[0] = 1
    rho = torch.cat([rho, rho.new_zeros(2 + draws % 2, rho.shape[1])])  # past the last lag: every sum ends
    even, odd = rho[::2], rho[1::2]
    sums = even + odd
    positive = (sums > 0).cumprod(0)
    length = positive.sum(0)
    tau = -1 + 2 * (sums.cummin(0).values * positive).sum(0)
    # the even lag at which the sum ends still counts where it is positive: it lessens the variance of the estimate
    tau = tau + even.gather(0, length[None])[0].clamp_min(0)
    total = chains * draws
    tau = tau.clamp_min(1 / math.log10(total))
    return torch.where(_varies(x), total / tau, math.nan)
