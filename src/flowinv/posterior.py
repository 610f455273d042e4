"""The posterior: what a solver returns, and what everything a user looks at is asked of."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from . import __version__, summaries
from .checkpoint import fit_or_refuse
from .flows.flow import Flow, standard_normal_log_prob
from .likelihoods import likelihood_from_spec
from .operators import Operator
from .priors import describe, from_description
from .problem import InverseProblem
from .randomness import keyed_generator
from .store import BundleError, read_bundle, write_bundle
from .tasks import operator_from_spec

if TYPE_CHECKING:
    import xarray

FORMAT = "flowinv-posterior"


class _Draws(NamedTuple):
    """Draws x (s, B, *shape) with, each (s, B): log q(z), log N(z; 0, I) and log|det dx/dz|."""

    x: Tensor
    log_q: Tensor
    log_prior: Tensor
    log_det: Tensor


class Posterior:
    r"""q(x | y) = the prior flow applied to a fitted pre-generator: x = f(fhat(eps)), eps ~ N(0, I).

    One pre-generator per observation; draws have shape (S, B, *shape). ``elbo`` (nats, one per observation,
    with standard error ``elbo_se``) bounds log p(y) from below; the gap is KL(q || posterior). What is approximated is
    the posterior *under the learned prior*: it is as right about the world as the prior is.
    """

    def __init__(
        self, problem: InverseProblem, generators: nn.ModuleList, trace: dict[str, Any], provenance: dict[str, Any]
    ):
        self.problem, self.generators, self.trace = problem, generators, trace
        self.provenance: dict[str, Any] = {
            "flowinv": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "prior": problem.prior_fingerprint,
            **provenance,
        }
        self.elbo: Tensor | None = None
        self.elbo_se: Tensor | None = None

    @property
    def prior(self) -> Flow:
        return self.problem.prior

    @property
    def batch(self) -> int:
        return self.problem.batch

    @property
    def shape(self) -> tuple[int, ...]:
        return self.problem.shape

    # -- draws and densities -------------------------------------------------------------------------

    @torch.no_grad()
    def _push(self, noise: Tensor) -> _Draws:
        """Noise (s, B, *shape) through the pre-generators and the prior."""
        latents, densities = [], []
        for b, generator in enumerate(self.generators):
            z, log_det = generator.decode(noise[:, b])  # type: ignore[operator]
            latents.append(z)
            densities.append(standard_normal_log_prob(noise[:, b]) - log_det)
        z = torch.stack(latents, 1)
        x, log_det = self.prior.decode(z.flatten(0, 1))
        log_prior = standard_normal_log_prob(z.flatten(0, 1)).view(z.shape[:2])
        return _Draws(x.unflatten(0, z.shape[:2]), torch.stack(densities, 1), log_prior, log_det.view(z.shape[:2]))

    def _chunks(self, n: int, generator: torch.Generator, chunk: int = 64) -> Iterator[_Draws]:
        if n < 1:
            raise ValueError(f"the number of draws must be at least 1, got {n}")
        per_chunk = max(1, chunk // self.batch)
        like = next(self.generators.parameters())
        shape, dtype, device = (self.batch, *self.shape), like.dtype, like.device
        for start in range(0, n, per_chunk):
            size = min(per_chunk, n - start)
            # draw by draw: what is drawn must not depend on how many are drawn at a time
            noise = [torch.randn(shape, generator=generator, device=generator.device, dtype=dtype) for _ in range(size)]
            yield self._push(torch.stack(noise).to(device))

    def draws(self, n: int, generator: torch.Generator, chunk: int = 64) -> Iterator[Tensor]:
        """n draws of every observation in pieces (s, B, *shape) of at most ``chunk`` images: bounded memory for any n."""
        for part in self._chunks(n, generator, chunk):
            yield part.x

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n draws of x for every observation, shape (n, B, *shape), in the prior's units."""
        return torch.cat(list(self.draws(n, generator)))

    def draws_with_log_prob(
        self, n: int, generator: torch.Generator, chunk: int = 64
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """As ``draws``, in pieces of (s, B, *shape) and their log q(x), (s, B), in nats."""
        for part in self._chunks(n, generator, chunk):
            yield part.x, part.log_q - part.log_det

    def sample_with_log_prob(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws (n, B, *shape) and their log q(x), (n, B), in nats."""
        x, log_q = zip(*self.draws_with_log_prob(n, generator), strict=True)
        return torch.cat(x), torch.cat(log_q)

    @torch.no_grad()
    def log_prob(self, x: Tensor) -> Tensor:
        """log q(x | y) of images x (..., B, *shape), in nats, shape (..., B): through the prior's and fhat's inverses."""
        self._check_units(x)
        lead = x.shape[: x.dim() - len(self.shape)]
        if lead[-1] != self.batch:
            raise ValueError(
                f"x must have shape (..., {self.batch}, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}"
            )
        flat = x.reshape(-1, *self.shape)
        outside = self._unreachable(flat).view(lead)
        z, outer = self.prior.encode(flat)
        z, outer = z.reshape(-1, self.batch, *self.shape), outer.reshape(-1, self.batch)
        result = []
        for b, generator in enumerate(self.generators):
            noise, inner = generator.encode(z[:, b])  # type: ignore[operator]
            result.append(standard_normal_log_prob(noise) + inner + outer[:, b])
        return torch.stack(result, 1).reshape(lead).masked_fill(outside, -math.inf)

    def _check_units(self, x: Tensor) -> None:
        """The prior's door, open a little wider: a draw may lie beyond the support, by rounding or by the flow's making."""
        low, high = self.prior.support
        if isinstance(x, Tensor) and x.is_floating_point() and math.isfinite(high - low):
            x = torch.where((x >= 2 * low - high) & (x <= 2 * high - low), x.clamp(low, high), x)
        self.prior.check(x)

    def _unreachable(self, x: Tensor) -> Tensor:
        """Which of x (N, *shape) no latent is mapped to, because the prior's transform has bounds, (N,)."""
        far = x.new_full((2, *self.shape), math.inf)
        far[0] = -math.inf
        bottom, top = self.prior.transform.decode(far)[0]
        slack = 4 * torch.finfo(x.dtype).eps * (top - bottom)
        return ((x < bottom - slack) | (x > top + slack)).flatten(1).any(1)

    @torch.no_grad()
    def measure_elbo(self, n: int, generator: torch.Generator) -> Tensor:
        """The ELBO (B,) in nats from ``n`` fresh draws; kept in ``elbo``, its standard error in ``elbo_se``."""
        parts = self._chunks(n, generator)
        # log q and log p are both taken over z: the prior's log-determinant would cancel, its rounding would not
        elbo = torch.cat([self.problem.log_likelihood(p.x) + p.log_prior - p.log_q for p in parts]).double()
        self.elbo = elbo.mean(0)
        self.elbo_se = elbo.std(0) / math.sqrt(n) if n > 1 else torch.full_like(self.elbo, math.nan)
        return self.elbo

    # -- summaries -----------------------------------------------------------------------------------

    def source(self, n: int = 1024, generator: torch.Generator | None = None) -> summaries.Source:
        """Restartable draws for ``flowinv.summaries``; without a generator, a fixed one, so that repeated calls agree."""
        return summaries.restartable(self, n, generator if generator is not None else keyed_generator(0, 7))

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
        """Write prior, pre-generators, measurement, task and provenance as config.json + model.safetensors."""
        likelihood, operator = self.problem.likelihood, self.problem.operator
        if self.problem.given_prior.fingerprint() != self.problem.prior_fingerprint:
            raise ValueError("the prior has changed since the posterior was fitted: it cannot be saved with it")
        if "settings" not in self.provenance:
            raise ValueError("a posterior without its solver's settings in provenance cannot be rebuilt from a file")
        config = {
            "format": FORMAT,
            "batch": self.batch,
            "family": self.provenance["settings"]["pregenerator"],
            "prior": describe(self.problem.given_prior),
            "operator": operator.spec,
            "likelihood": likelihood.spec,
            "elbo": None if self.elbo is None else self.elbo.tolist(),
            "elbo_se": None if self.elbo_se is None else self.elbo_se.tolist(),
            "provenance": self.provenance,
            "trace": self.trace,
        }
        tensors = {f"prior.{k}": v for k, v in self.problem.given_prior.state_dict().items()}
        tensors |= {f"pregenerator.{k}": v for k, v in self.generators.state_dict().items()}
        tensors |= {f"operator.{k}": v for k, v in operator.tensors().items()}
        tensors |= {f"likelihood.{k}": v for k, v in likelihood.tensors().items()}
        return write_bundle(folder, config, {**tensors, "y": self.problem.y}, overwrite)

    @classmethod
    def load(
        cls, folder: str | Path, operator: Operator | Callable[[Tensor], Tensor] | None = None, likelihood: Any = None
    ) -> Posterior:
        """Read what ``save`` wrote. An operator or likelihood that was Python code must be given again."""
        from .solvers.pregenerator import PreGeneratorConfig, build_pregenerator

        config, tensors = read_bundle(folder, FORMAT)

        def group(name: str) -> dict[str, Tensor]:
            return {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}

        try:
            prior = from_description(config["prior"], group("prior"), str(folder))
            if operator is None:
                if config["operator"] is None:
                    raise BundleError(f"{folder}: its operator was Python code; give it again (operator=, --operator)")
                operator = operator_from_spec(config["operator"], prior.shape, group("operator"))
            if likelihood is None:
                if config["likelihood"] is None:
                    raise BundleError(f"{folder}: its likelihood was Python code; give it again (likelihood=)")
                likelihood = likelihood_from_spec(config["likelihood"], group("likelihood"))
            problem = InverseProblem(prior, operator, likelihood, tensors["y"])
            if config["batch"] != problem.batch:
                raise BundleError(
                    f"{folder}: its config tells of {config['batch']} observations, y has {problem.batch}"
                )
            if config["provenance"]["prior"] != problem.prior_fingerprint:
                raise BundleError(f"{folder}: the prior's weights are not those the posterior was fitted with")
            family = PreGeneratorConfig(**config["family"])
            generators = nn.ModuleList(build_pregenerator(prior.shape, family) for _ in range(problem.batch))
            generators.to(tensors["y"].dtype)
            fit_or_refuse(group("pregenerator"), generators.state_dict(), f"{folder}: the pre-generator's weights")
            generators.load_state_dict(group("pregenerator"))
            posterior = cls(problem, generators.requires_grad_(False).eval(), config["trace"], config["provenance"])
            for name in ("elbo", "elbo_se"):
                if config[name] is not None:
                    values = [math.nan if v is None else v for v in config[name]]  # JSON has no word for NaN
                    setattr(posterior, name, torch.tensor(values, dtype=torch.float64))
        except KeyError as error:
            raise BundleError(f"{folder} is not a whole posterior: it misses {error}") from None
        except (TypeError, AttributeError, IndexError, RuntimeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise BundleError(f"{folder} is not a whole posterior: {reason}") from None
        return posterior

    def __repr__(self) -> str:
        bound = "generalised objective" if not self.problem.normalised else "ELBO"
        lines = [
            f"Posterior of {self.batch} observation{'s' if self.batch > 1 else ''}, draws of shape {self.shape}",
            f"  measured   {self.problem.operator!r}, {self.problem.likelihood!r}",
            f"  prior      {sum(p.numel() for p in self.prior.parameters())} weights, sha256 {self.problem.prior_fingerprint[:12]}",
            f"  fitted     {self.provenance.get('steps')} steps in {self.provenance.get('seconds', math.nan):.1f} s",
        ]
        if self.elbo is not None and self.elbo_se is not None:
            pairs = zip(self.elbo[:3].tolist(), self.elbo_se[:3].tolist(), strict=True)
            shown = ", ".join(f"{e:.1f} +- {s:.1f}" for e, s in pairs) + (" ..." if self.batch > 3 else "")
            lines.append(f"  {bound:<10} {shown} nats{'' if self.problem.normalised else ' (unnormalised)'}")
        lines.append(
            "  ask        .sample(n, generator)  .mean()  .std()  .credible_interval(.9)  .log_prob(x)  .save(folder)"
        )
        return "\n".join(lines)
