"""The posterior as a flow: any number of independent draws, each with its density."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint import fit_or_refuse
from .families import Draw, Family, family_from_description
from .flows.flow import Flow, set_bf16
from .posterior import Posterior
from .problem import InverseProblem
from .store import under

_TOGETHER = 2**18  # numbers in a piece of draws, unless it is told how many


class FlowPosterior(Posterior):
    r"""q(x | y) of a variational family: x = f(fhat(eps)), eps ~ N(0, I), with its log-density.

    ``elbo`` (nats, one per observation, with standard error ``elbo_se``) bounds log p(y) from below; the gap is
    KL(q || posterior).
    """

    kind = "flow"

    def __init__(self, problem: InverseProblem, family: Family, trace: dict[str, Any], provenance: dict[str, Any]):
        super().__init__(problem, trace, provenance)
        if family.batch != problem.batch:
            raise ValueError(f"the family is for {family.batch} observations, the problem has {problem.batch}")
        self.family = copy.deepcopy(family).requires_grad_(False).eval()

    @torch.no_grad()
    def _chunks(
        self, n: int, generator: torch.Generator, chunk: int | None = None, bf16: bool = False
    ) -> Iterator[Draw]:
        if n < 1:
            raise ValueError(f"the number of draws must be at least 1, got {n}")
        per_chunk = max(1, (chunk or max(16, _TOGETHER // math.prod(self.shape))) // self.batch)
        family, prior = self._in_bf16() if bf16 else (self.family, self.prior)
        like = next(self.family.parameters())
        shape, dtype, device = (self.batch, *self.shape), like.dtype, like.device
        for start in range(0, n, per_chunk):
            size = min(per_chunk, n - start)
            # draw by draw: what is drawn must not depend on how many are drawn at a time
            noise = [torch.randn(shape, generator=generator, device=generator.device, dtype=dtype) for _ in range(size)]
            yield family.draw(torch.stack(noise).to(device), prior)

    def _in_bf16(self) -> tuple[Family, Flow]:
        if self.problem.y.dtype != torch.float32:
            raise ValueError(f"bf16 is for posteriors in float32, this one is in {self.problem.y.dtype}")
        twin = copy.deepcopy(self.family)
        set_bf16(twin, True)
        return twin, self.prior.frozen(bf16=True)

    def draws(
        self, n: int, generator: torch.Generator, chunk: int | None = None, bf16: bool = False
    ) -> Iterator[Tensor]:
        """n draws of every observation in pieces (s, B, *shape) of at most ``chunk`` images: bounded memory for any n.

        ``bf16`` runs the networks in bfloat16: up to twice as fast in large pieces, each draw off by some rounding, so for
        pictures and summaries of many draws, never for densities. A piece has some 300 digits unless ``chunk`` says otherwise.
        """
        for part in self._chunks(n, generator, chunk, bf16):
            yield part.x

    def sample(self, n: int, generator: torch.Generator, bf16: bool = False) -> Tensor:
        """n draws of x for every observation, shape (n, B, *shape), in the prior's units; ``bf16`` as in ``draws``."""
        return torch.cat(list(self.draws(n, generator, bf16=bf16)))

    def draws_with_log_prob(
        self, n: int, generator: torch.Generator, chunk: int | None = None
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
        """log q(x | y) of images x (..., B, *shape), in nats, shape (..., B): through the prior's and fhat's inverses.

        Of an image that q did not draw it may be extremely low: a fit narrower than the posterior in some directions has next to
        no mass beside its own draws. It is no measure of calibration.
        """
        (low, high), (bottom, top) = self.prior.support, self.prior.reach()
        if math.isfinite(high - low):  # a draw may lie beyond the support, by rounding or by the flow's making
            low, high = min(bottom, 2 * low - high), max(top, 2 * high - low)
        self.prior.check(x, bounds=(low, high))
        lead = x.shape[: x.dim() - len(self.shape)]
        if lead[-1] != self.batch:
            raise ValueError(
                f"x must have shape (..., {self.batch}, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}"
            )
        flat = x.reshape(-1, *self.shape)
        outside = self._unreachable(flat).view(lead)
        found = self.family.log_prob(flat.view(-1, self.batch, *self.shape), self.prior)
        return found.reshape(lead).masked_fill(outside, -math.inf)

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
        # log q and log p are both taken inside: the log-determinant to x would cancel, its rounding would not
        prior = self.prior
        terms = [self.problem.log_likelihood(p.x) + self.family.log_prior(p.inner, prior) - p.log_q for p in parts]
        elbo = torch.cat(terms).double()
        self.elbo = elbo.mean(0)
        self.elbo_se = elbo.std(0) / math.sqrt(n) if n > 1 else torch.full_like(self.elbo, math.nan)
        return self.elbo

    def _pack(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        config = {
            "family": self.family.description,
            "elbo": None if self.elbo is None else self.elbo.tolist(),
            "elbo_se": None if self.elbo_se is None else self.elbo_se.tolist(),
        }
        return config, {f"family.{k}": v for k, v in self.family.state_dict().items()}

    @classmethod
    def _unpack(
        cls, problem: InverseProblem, config: dict[str, Any], tensors: dict[str, Tensor], folder: str | Path
    ) -> FlowPosterior:
        family = family_from_description(config["family"], problem.shape, problem.batch, problem.y.dtype)
        fit_or_refuse(under("family", tensors), family.state_dict(), f"{folder}: the family's weights")
        family.load_state_dict(under("family", tensors))
        posterior = cls(problem, family, config["trace"], config["provenance"])
        for name in ("elbo", "elbo_se"):
            if config[name] is not None:
                values = [math.nan if v is None else v for v in config[name]]  # JSON has no word for NaN
                setattr(posterior, name, torch.tensor(values, dtype=torch.float64))
        return posterior

    def __repr__(self) -> str:
        bound = "generalised objective" if not self.problem.normalised else "ELBO"
        steps, seconds = self.provenance.get("steps"), self.provenance.get("seconds", math.nan)
        lines = [
            *self._about(),
            f"  fitted     {steps} steps in {seconds:.1f} s" if steps != 0 else "  amortised  nothing was fitted",
        ]
        if self.elbo is not None and self.elbo_se is not None:
            pairs = zip(self.elbo[:3].tolist(), self.elbo_se[:3].tolist(), strict=True)
            shown = ", ".join(f"{e:.1f} +- {s:.1f}" for e, s in pairs) + (" ..." if self.batch > 3 else "")
            lines.append(f"  {bound:<10} {shown} nats{'' if self.problem.normalised else ' (unnormalised)'}")
        lines.append(
            "  ask        .sample(n, generator)  .mean()  .std()  .credible_interval(.9)  .log_prob(x)  .save(folder)"
        )
        return "\n".join(lines)
