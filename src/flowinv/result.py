"""What every solver returns has this: the problem, the trace of the run, and where it came from."""

from __future__ import annotations

import platform
from typing import Any

import torch

from . import __version__
from .flows.flow import Flow
from .problem import InverseProblem


class Result:
    """A problem's answer, of whatever kind, with its provenance: versions, the prior's fingerprint, what the solver adds."""

    def __init__(self, problem: InverseProblem, trace: dict[str, Any], provenance: dict[str, Any]):
        self.problem, self.trace = problem, trace
        self.provenance: dict[str, Any] = {
            "flowinv": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "prior": problem.prior_fingerprint,
            **provenance,
        }

    @property
    def prior(self) -> Flow:
        return self.problem.prior

    @property
    def batch(self) -> int:
        return self.problem.batch

    @property
    def shape(self) -> tuple[int, ...]:
        return self.problem.shape
