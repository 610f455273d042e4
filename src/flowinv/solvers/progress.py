"""Where a solver stands, and how it stops when it must."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SolverProgress:
    """Step of at most ``total``; ``value``, noisy, of what ``label`` names, averaged over observations; seconds so far."""

    step: int
    total: int
    value: float
    seconds: float
    label: str = "ELBO"


class Diverged(RuntimeError):
    """A term of the objective left the finite numbers; ``result`` holds the last good state."""

    def __init__(self, step: int, term: str, result: Any, advice: str = "Lower the learning rate"):
        super().__init__(
            f"step {step}: {term} is not finite; the state before it is kept. {advice}, or check y and the operator"
        )
        self.step, self.term, self.result = step, term, result
