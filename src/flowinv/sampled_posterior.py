"""The posterior as the stored draws of Markov chains, with what tells whether they have mixed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import summaries
from .checkpoint import fit_or_refuse
from .diagnostics.chains import ess, rhat, standard_error
from .posterior import Posterior
from .problem import InverseProblem
from .store import under

if TYPE_CHECKING:
    import xarray

_STATS = ("lp", "acceptance")


class SampledPosterior(Posterior):
    r"""p(x | y) as what C chains of each observation visited: S kept draws of each, one after another.

    ``chains`` (C, S, B, \*shape) holds the draws x; ``stats``, each (C, S, B): ``lp``, minus the chain's potential (the log
    joint density of latent and y, in nats, for chains over the latent), and ``acceptance``, the mean acceptance
    probability since the draw before. Draws of a chain depend on each other: the C S of them are worth ``ess`` independent
    ones. ``provenance["exact"]`` tells whether the chains' kernel leaves their target invariant: the posterior, or
    for PL-MCMC the prior given y without noise.
    """

    kind = "sampled"

    def __init__(
        self,
        problem: InverseProblem,
        chains: Tensor,
        stats: dict[str, Tensor],
        trace: dict[str, Any],
        provenance: dict[str, Any],
    ):
        super().__init__(problem, trace, provenance)
        if chains.dim() < 3 or chains.shape[2:] != (problem.batch, *problem.shape) or 0 in chains.shape:
            wanted = ", ".join(map(str, (problem.batch, *problem.shape)))
            raise ValueError(f"chains must have shape (C, S, {wanted}), got {tuple(chains.shape)}")
        for name, value in stats.items():
            if value.shape != chains.shape[:3]:
                raise ValueError(f"stats[{name!r}] must have shape {tuple(chains.shape[:3])}, got {tuple(value.shape)}")
        if missing := [name for name in _STATS if name not in stats]:
            raise ValueError(f"stats must hold {' and '.join(_STATS)}, got none of {', '.join(missing)}")
        self.chains, self.stats = chains, stats

    @property
    def count(self) -> int:
        """Draws that are stored of each observation, C S."""
        return self.chains.shape[0] * self.chains.shape[1]

    # -- draws ---------------------------------------------------------------------------------------

    def draws(self, n: int, generator: torch.Generator, chunk: int | None = None) -> Iterator[Tensor]:
        """n of the stored draws in pieces (s, B, *shape) of at most ``chunk`` images.

        All of them come step by step, the chains in turn; fewer are drawn without replacement. More raise ValueError.
        """
        if not 1 <= n <= self.count:
            raise ValueError(
                f"{n} draws asked for, but these chains hold {self.count} of each observation "
                f"({self.chains.shape[0]} chains of {self.chains.shape[1]}): ask for 1 to {self.count}, or run more steps"
            )
        order = torch.arange(self.count)
        if n < self.count:
            order = torch.randperm(self.count, generator=generator, device=generator.device)[:n].cpu()
        order = order.to(self.chains.device)
        for part in order.split(max(1, (chunk or 64) // self.batch)):
            yield self.chains[part % len(self.chains), part // len(self.chains)]

    def source(self, n: int = 1024, generator: torch.Generator | None = None) -> summaries.Source:
        """Restartable draws for ``flowinv.summaries``: n of the stored ones, or all there are if these are fewer."""
        return super().source(min(n, self.count), generator)

    def expectation(
        self,
        function: Callable[[Tensor], Tensor],
        n: int | None = None,
        generator: torch.Generator | None = None,
        mass: float = 0.9,
    ) -> summaries.Expectation:
        """Mean, interval and Monte-Carlo error of any function of draws (s, B, *shape) -> (s, B, ...).

        Over all draws, in which case the error counts how they depend on each other (``diagnostics.standard_error``); with
        ``n`` over that many, the error as if they were independent, too small by the root of draws over ESS.
        """
        found = super().expectation(function, self.count if n is None else n, generator, mass)
        if n is not None and n < self.count:
            return found
        return replace(found, standard_error=standard_error(self._of(function)).to(found.mean.dtype))

    def exceedance(
        self,
        threshold: float | Tensor,
        function: Callable[[Tensor], Tensor] | None = None,
        n: int | None = None,
        generator: torch.Generator | None = None,
    ) -> summaries.Probability:
        """Posterior probability that x, or a function of it (s, B, *shape) -> (s, B, ...), exceeds a threshold.

        Over all draws, in which case ``count`` and the errors are those of as many independent draws as the hits are worth
        (as lp is, where every draw or none is one; one to a chain, where chains are too short to tell); with ``n`` over
        that many, the errors as if they were independent.
        """
        found = super().exceedance(threshold, function, self.count if n is None else n, generator)
        if n is not None and n < self.count:
            return found
        hits = self._of(lambda x: ((x if function is None else function(x)) > threshold).double())
        p, error = found.probability, standard_error(hits)
        known = self.ess.nan_to_num(nan=float(len(self.chains))).clamp(1, self.count).to(p)
        fallback = known.view(-1, *(1,) * (p.dim() - 1)).expand(p.shape)
        worth = p * (1 - p) / error.square()
        worth = torch.where(torch.isnan(worth), fallback, worth).clamp(1, self.count)
        lower, upper = summaries.wilson_interval(p, worth)
        return summaries.Probability(p, (p * (1 - p) / worth).sqrt(), lower, upper, round(float(worth.min())))

    # -- how far to trust them -----------------------------------------------------------------------

    @property
    def rhat(self) -> Tensor:
        """Rank-normalised split R-hat of lp, (B,): near 1 where the chains agree; above 1.05 do not trust the draws."""
        return rhat(self.stats["lp"])

    @property
    def ess(self) -> Tensor:
        """Bulk effective sample size by lp, (B,): the independent draws that these are worth."""
        return ess(self.stats["lp"])

    def rhat_of(self, function: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
        """R-hat of a function of draws (s, B, *shape) -> (s, B, ...), shape (B, ...); of every element of x without one."""
        return rhat(self._of(function))

    def ess_of(self, function: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
        """Bulk ESS of a function of draws, (B, ...); of every element of x without one."""
        return ess(self._of(function))

    @property
    def acceptance(self) -> Tensor:
        """Mean acceptance probability of every chain after warm-up, (C, B); one for unadjusted chains."""
        return self.stats["acceptance"].mean(1)

    def _of(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """The function's values along the chains, (C, S, B, ...)."""
        along = [summaries.mapped(summaries.from_tensor(chain), function) for chain in self.chains]
        return torch.stack([torch.cat(list(values())) for values in along])

    # -- handing over --------------------------------------------------------------------------------

    def to_datatree(self, n: int | None = None, generator: torch.Generator | None = None) -> xarray.DataTree:
        """The chains as an xarray.DataTree that ArviZ reads; ``.to_netcdf(path)`` and ``.to_zarr(path)`` store it.

        Groups: posterior (image or vector), sample_stats (lp, acceptance_rate, log_likelihood), posterior_predictive,
        observed_data, and constant_data where not everything was observed. Dimensions (chain, draw, observation,
        channel, row, col), float32. With n, n // C draws evenly spaced along each chain. No generator is used.
        """
        from .datatree import chains_to_datatree

        return chains_to_datatree(self, n)

    def _pack(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        tensors = {"chains": self.chains, **{f"stats.{k}": v for k, v in self.stats.items()}}
        return {"chains": len(self.chains), "draws": self.chains.shape[1], "stats": sorted(self.stats)}, tensors

    @classmethod
    def _unpack(
        cls, problem: InverseProblem, config: dict[str, Any], tensors: dict[str, Tensor], folder: str | Path
    ) -> SampledPosterior:
        like = problem.y.new_empty(())
        lead = (config["chains"], config["draws"], problem.batch)
        expected = {f"stats.{name}": like.expand(lead) for name in config["stats"]}
        expected["chains"] = like.expand(*lead, *problem.shape)
        found = {k: v for k, v in tensors.items() if k == "chains" or k.startswith("stats.")}
        fit_or_refuse(found, expected, f"{folder}: the chains")
        return cls(problem, tensors["chains"], under("stats", tensors), config["trace"], config["provenance"])

    def __repr__(self) -> str:
        settings = self.provenance.get("settings") or {}
        steps, seconds = self.provenance.get("steps"), self.provenance.get("seconds", math.nan)
        exact = "exact kernel" if self.provenance.get("exact") else "kernel with a bias: its step is not corrected"
        over = {"noise": " over a flow's noise", "projected": " on the noise-free conditional"}
        where = over.get(self.provenance.get("target", ""), "")
        number, length = self.chains.shape[:2]
        return "\n".join(
            [
                *self._about(),
                f"  sampled    {number} chains by {settings.get('kernel')}{where}, {steps} steps in {seconds:.1f} s ({exact})",
                f"  kept       {length} draws of each chain, {self.count} of each observation",
                f"  mixing     {self._mixing()}",
                "  ask        .sample(n, generator)  .mean()  .std()  .credible_interval(.9)  .rhat_of()  .ess_of()  .save(folder)",
            ]
        )

    def _mixing(self) -> str:
        acceptance = f"acceptance {_range(self.acceptance, '.2f')}"
        worst = self.rhat
        if worst.isnan().all():
            return f"R-hat unknown: it needs chains of 4 draws that vary; {acceptance}"
        verdict = "" if bool((worst[~worst.isnan()] <= 1.05).all()) else ": the chains disagree, run more steps"
        return f"R-hat {_range(worst, '.3f')}, ESS {_range(self.ess, '.0f')} (of lp), {acceptance}{verdict}"


def _range(values: Tensor, spec: str) -> str:
    """Least to greatest of the values that are known, as text."""
    known = values[~values.isnan()]
    if not len(known):
        return "unknown"
    low, high = format(float(known.min()), spec), format(float(known.max()), spec)
    return low if low == high else f"{low} to {high}"
