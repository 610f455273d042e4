"""The posterior: what a solver returns, and what everything a user looks at is asked of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import summaries
from .checkpoint import whole
from .operators import Operator
from .problem import InverseProblem
from .problem_store import pack_problem, unpack_problem
from .randomness import keyed_generator
from .result import Result
from .store import BundleError, read_bundle, write_bundle

if TYPE_CHECKING:
    import xarray

FORMAT = "flowinv-posterior"
_KEPT = 2**26  # numbers


class Posterior(Result):
    r"""p(x | y) as draws: everything a user looks at is asked of them. Draws have shape (S, B, \*shape).

    The two kinds: :class:`~flowinv.FlowPosterior`, a flow that gives any number of draws and their density, and
    :class:`~flowinv.SampledPosterior`, the draws of Markov chains. What is approximated is the posterior *under the
    learned prior*: it is as right about the world as the prior is.
    """

    kind: str = ""
    elbo: Tensor | None = None  # nats, (B,), where there is one
    elbo_se: Tensor | None = None
    _kept: tuple[int, Tensor] | None = None

    def draws(self, n: int, generator: torch.Generator, chunk: int | None = None) -> Iterator[Tensor]:
        """n draws of every observation in pieces (s, B, *shape) of at most ``chunk`` images: bounded memory for any n."""
        raise NotImplementedError

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n draws of x for every observation, shape (n, B, *shape), in the prior's units."""
        return torch.cat(list(self.draws(n, generator)))

    # -- summaries -----------------------------------------------------------------------------------

    def source(self, n: int = 1024, generator: torch.Generator | None = None) -> summaries.Source:
        """Restartable draws for ``flowinv.summaries``; without a generator, a fixed one, so that repeated calls agree.

        The draws of the fixed one are kept between calls, up to 256 MB of them: the first summary pays for the next.
        """
        if generator is not None:
            return summaries.restartable(self, n, generator)
        count = n * self.batch * math.prod(self.shape)
        if isinstance(n, bool) or not isinstance(n, int) or n < 1 or count > _KEPT:
            return summaries.restartable(self, n, keyed_generator(0, 7))
        if self._kept is None or self._kept[0] != n:
            self._kept = (n, self.sample(n, keyed_generator(0, 7)))
        return summaries.from_tensor(self._kept[1])

    def mean(self, n: int = 1024, generator: torch.Generator | None = None) -> Tensor:
        """Posterior mean from n draws, (B, *shape): the estimate of least expected squared error."""
        return summaries.mean(self.source(n, generator))

    def std(self, n: int = 1024, generator: torch.Generator | None = None) -> Tensor:
        """Posterior standard deviation of every element from n draws, (B, *shape)."""
        return summaries.std(self.source(n, generator))

    def quantiles(
        self, probabilities: Sequence[float], n: int = 1024, generator: torch.Generator | None = None
    ) -> Tensor:
        """Quantiles of every element, (len(probabilities), B, *shape)."""
        return summaries.quantiles(self.source(n, generator), probabilities)

    def credible_interval(
        self, mass: float = 0.9, n: int = 1024, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """The central interval of every element that holds ``mass`` of its posterior: two tensors (B, *shape)."""
        return summaries.credible_interval(self.source(n, generator), mass)

    def expectation(
        self,
        function: Callable[[Tensor], Tensor],
        n: int = 1024,
        generator: torch.Generator | None = None,
        mass: float = 0.9,
    ) -> summaries.Expectation:
        """Mean, interval and Monte-Carlo error of any function of draws (s, B, *shape) -> (s, B, ...)."""
        return summaries.expectation(self.source(n, generator), function, mass)

    def exceedance(
        self,
        threshold: float | Tensor,
        function: Callable[[Tensor], Tensor] | None = None,
        n: int = 1024,
        generator: torch.Generator | None = None,
    ) -> summaries.Probability:
        """Posterior probability that x, or a function of it (s, B, *shape) -> (s, B, ...), exceeds a threshold."""
        return summaries.exceedance(self.source(n, generator), threshold, function)

    # -- handing over --------------------------------------------------------------------------------

    def to_datatree(self, n: int = 256, generator: torch.Generator | None = None) -> xarray.DataTree:
        """Draws as an xarray.DataTree that ArviZ reads; ``.to_netcdf(path)`` and ``.to_zarr(path)`` store it.

        Groups: posterior (image or vector), sample_stats (lp = log p(x, y), log_q, log_likelihood, log_weight),
        posterior_predictive, observed_data, and constant_data where not everything was observed.
        Dimensions (chain, draw, observation, channel, row, col), float32; chain is 1, since the draws are independent.
        """
        from .datatree import posterior_to_datatree

        return posterior_to_datatree(self, n, generator if generator is not None else keyed_generator(0, 8))

    def save(self, folder: str | Path, overwrite: bool = False) -> Path:
        """Write prior, measurement, task, provenance and what the draws come from as config.json + model.safetensors."""
        config, tensors = pack_problem(self.problem)
        mine, state = self._pack()
        about = {"format": FORMAT, "kind": self.kind, "provenance": self.provenance, "trace": self.trace}
        return write_bundle(folder, {**about, **config, **mine}, {**tensors, **state}, overwrite)

    @classmethod
    def load(
        cls, folder: str | Path, operator: Operator | Callable[[Tensor], Tensor] | None = None, likelihood: Any = None
    ) -> Posterior:
        """Read what ``save`` wrote, of either kind. An operator or likelihood that was Python code must be given again."""
        from .flow_posterior import FlowPosterior
        from .sampled_posterior import SampledPosterior

        config, tensors = read_bundle(folder, FORMAT)
        kinds: dict[str, type[Posterior]] = {kind.kind: kind for kind in (FlowPosterior, SampledPosterior)}
        with whole(folder, "posterior"):
            if config["kind"] not in kinds:
                raise BundleError(f"{folder}: unknown kind {config['kind']!r}: expected {' or '.join(kinds)}")
            problem = unpack_problem(config, tensors, folder, operator, likelihood)
            return kinds[config["kind"]]._unpack(problem, config, tensors, folder)

    def _pack(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What this kind adds to the bundle: config and tensors."""
        raise NotImplementedError

    @classmethod
    def _unpack(
        cls, problem: InverseProblem, config: dict[str, Any], tensors: dict[str, Tensor], folder: str | Path
    ) -> Posterior:
        """The inverse of ``_pack``."""
        raise NotImplementedError

    def _about(self) -> list[str]:
        """The lines that every kind says of itself."""
        return [
            f"{type(self).__name__} of {self.batch} observation{'s' if self.batch > 1 else ''}, draws of shape {self.shape}",
            f"  measured   {self.problem.operator!r}, {self.problem.likelihood!r}",
            f"  prior      {sum(p.numel() for p in self.prior.parameters())} weights, sha256 {self.problem.prior_fingerprint[:12]}",
        ]
