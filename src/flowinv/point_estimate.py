"""A point estimate: what an optimiser returns, one image for each observation."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint import fit_or_refuse, whole
from .flows.flow import standard_normal_log_prob
from .operators import Operator
from .problem import InverseProblem
from .problem_store import pack_problem, unpack_problem
from .result import Result
from .store import read_bundle, write_bundle

FORMAT = "flowinv-point-estimate"
_VALUES = ("z", "objective", "misfit", "restarts", "trace")


class PointEstimate(Result):
    r"""One x = f(z) for each observation: the best that an optimiser found, with no uncertainty.

    ``z`` (B, \*shape); ``objective`` (B,) what was minimised there, in full precision, ``misfit`` (B,) its data term (the
    rest is the penalty); ``restarts`` (R, B) the objective at which every restart ended, of which the lowest was kept: a
    wide spread tells of local minima. ``trace["objective"]`` holds, for each step, (B,) values of the restart kept.
    ``log_prior`` (B,) is log p(x) in nats: compare it with that of the prior's own draws.

    The number says how well the optimiser did, not how far x is from the truth. For error bars, ask a posterior.
    """

    def __init__(
        self,
        problem: InverseProblem,
        z: Tensor,
        objective: Tensor,
        trace: dict[str, Any],
        provenance: dict[str, Any],
        *,
        misfit: Tensor,
        restarts: Tensor,
    ):
        if z.shape != (problem.batch, *problem.shape):
            wanted = ", ".join(map(str, (problem.batch, *problem.shape)))
            raise ValueError(f"z must have shape ({wanted}), got {tuple(z.shape)}")
        super().__init__(problem, trace, provenance)
        self.z, self.objective, self.misfit, self.restarts = z, objective, misfit, restarts

    @cached_property
    def _decoded(self) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return self.prior.decode(self.z)

    @property
    def x(self) -> Tensor:
        r"""The estimate f(z), (B, \*shape), in the prior's units."""
        return self._decoded[0]

    @property
    def log_prior(self) -> Tensor:
        """log p(x) = log N(z; 0, I) - log|det df/dz|, (B,), in nats."""
        return standard_normal_log_prob(self.z) - self._decoded[1]

    def save(self, folder: str | Path, overwrite: bool = False) -> Path:
        """Write problem, latents, objective, trace and provenance as config.json + model.safetensors."""
        packed, tensors = pack_problem(self.problem)
        trace = torch.tensor(self.trace["objective"], dtype=torch.float64).reshape(-1, self.batch)
        values = dict(zip(_VALUES, (self.z, self.objective, self.misfit, self.restarts, trace), strict=True))
        config = {"format": FORMAT, "problem": packed, "steps": self.trace["step"], "provenance": self.provenance}
        return write_bundle(folder, config, {**tensors, **{f"estimate.{k}": v for k, v in values.items()}}, overwrite)

    @classmethod
    def load(
        cls, folder: str | Path, operator: Operator | Callable[[Tensor], Tensor] | None = None, likelihood: Any = None
    ) -> PointEstimate:
        """Read what ``save`` wrote. An operator or likelihood that was Python code must be given again."""
        config, tensors = read_bundle(folder, FORMAT)
        with whole(folder, "point estimate"):
            problem = unpack_problem(config["problem"], tensors, folder, operator, likelihood)
            values = {name: tensors[f"estimate.{name}"] for name in _VALUES}
            like, (batch, shape) = problem.y, (problem.batch, problem.shape)
            expected = {
                "z": like.new_empty(batch, *shape),
                "objective": like.new_empty(batch),
                "misfit": like.new_empty(batch),
                "restarts": like.new_empty(len(values["restarts"]), batch),
                "trace": torch.empty(len(config["steps"]), batch, dtype=torch.float64),
            }
            fit_or_refuse(values, expected, f"{folder}: the estimate's values")
            trace = {"step": config["steps"], "objective": values["trace"].tolist()}
            return cls(
                problem,
                values["z"],
                values["objective"],
                trace,
                config["provenance"],
                misfit=values["misfit"],
                restarts=values["restarts"],
            )

    def __repr__(self) -> str:
        count = f"{self.batch} observation{'s' if self.batch > 1 else ''}"
        lines = [
            f"PointEstimate of {count}, x of shape {self.shape}: a point for each, with no uncertainty",
            f"  measured   {self.problem.operator!r}, {self.problem.likelihood!r}",
            f"  prior      {sum(p.numel() for p in self.prior.parameters())} weights, sha256 {self.problem.prior_fingerprint[:12]}",
            f"  minimised  {self.provenance.get('minimised', 'an objective')}, best of {len(self.restarts)}"
            f" start{'s' if len(self.restarts) > 1 else ''}, {self.provenance.get('steps')} steps"
            f" in {self.provenance.get('seconds', math.nan):.1f} s",
            f"  objective  {_few(self.objective)}: misfit {_few(self.misfit)}, penalty {_few(self.objective - self.misfit)}",
            f"  log p(x)   {_few(self.log_prior)} nats",
            "  ask        .x  .z  .misfit  .log_prior  .restarts  .save(folder); for error bars, a posterior",
        ]
        return "\n".join(lines)


def _few(values: Tensor) -> str:
    return ", ".join(f"{v:.4g}" for v in values[:3].tolist()) + (" ..." if len(values) > 3 else "")
