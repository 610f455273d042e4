"""Variational inference: a family is fitted to one problem's posterior, the prior stays frozen."""

from __future__ import annotations

import copy
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import pack, unpack
from ..families import After, Family, Generators
from ..families.family import composed
from ..flow_posterior import FlowPosterior
from ..gradients import require_gradient
from ..point_estimate import PointEstimate
from ..problem import InverseProblem, require_problem
from ..randomness import keyed_generator
from ..store import read_bundle, write_bundle
from .progress import Diverged, SolverProgress, drive, has_checkpoint, preset_or_settings
from .starts import SEARCH, family_at, family_to_fill, origin_of, own_latents
from .variational_settings import PRESETS, VariationalSettings

CHECKPOINT = "flowinv-solver"


class _Run:
    """One fit: the family, the optimiser and the trace. The solver itself holds no state."""

    def __init__(
        self,
        problem: InverseProblem,
        settings: VariationalSettings,
        start: Family | None = None,
        made_from: str | None = None,
        seconds: float = 0.0,
    ):
        """``made_from``: what the solver made ``start`` from, in ``seconds``; a start that it was given goes by its weights."""
        self.problem, self.settings = problem, settings
        if start is not None and start.space != settings.space:
            raise ValueError(
                f"the family to start from is over space {start.space!r}, the settings' is {settings.space!r}"
            )
        family = (
            start
            if start is not None
            else composed(problem.shape, problem.batch, settings.pregenerator, settings.space)
        )
        if family.batch != problem.batch:
            raise ValueError(
                f"the family to start from is for {family.batch} observations, the problem has {problem.batch}"
            )
        dtype = problem.y.dtype if problem.y.dtype == torch.float64 else torch.float32
        self.family = copy.deepcopy(family).to(problem.y.device, dtype).train()
        self.prior = problem.prior.frozen(bf16=True) if settings.bf16 else problem.prior
        self.shadow = _shadow(self.family) if settings.path_gradient else None
        self.weights = [p for p in self.family.parameters() if p.requires_grad]
        if not self.weights:
            raise ValueError("the family to start from has no weights that may be trained")
        self.optimizer = torch.optim.Adam(self.weights, lr=settings.learning_rate)
        self.started_from = self.family.fingerprint() if start is not None and made_from is None else made_from
        self.step, self.seconds = 0, seconds
        self.cooldown_from = round(settings.steps * (1 - settings.cooldown))
        self.total = settings.steps
        self.trace: list[list[float]] = []  # per step, the ELBO of each observation
        self.good = self._snapshot()

    def _snapshot(self) -> dict[str, Tensor]:
        """What the next step changes."""
        return {k: p.detach().clone() for k, p in self.family.named_parameters() if p.requires_grad}

    def learning_rate(self) -> float:
        s = self.settings
        warm = min(1.0, (self.step + 1) / max(1, s.warmup))
        left = (self.total - self.step) / max(1, self.total - self.cooldown_from)
        return s.learning_rate * warm * min(1.0, left)

    def widening(self) -> float:
        """By how much this step's noise scale exceeds the problem's own."""
        half = max(1, self.settings.steps // 2)
        return float(self.settings.anneal ** max(0.0, 1 - self.step / half))

    def terms(self) -> dict[str, Tensor]:
        """The summands of the per-draw ELBO, each (m, B), for this step's noise."""
        problem, m = self.problem, self.settings.draws
        like = self.weights[0]
        noise = [
            torch.randn(
                m, *problem.shape, generator=keyed_generator(self.settings.seed, self.step, b), dtype=like.dtype
            )
            for b in range(problem.batch)
        ]
        inner, log_q = self.family.inner(torch.stack(noise, 1).to(like.device))
        if self.shadow is not None:
            log_q = self.shadow.log_q(inner)
        x, _ = self.family.to_x(inner, self.prior)
        widening = self.widening()
        likelihood = problem.likelihood if widening == 1 else problem.likelihood.widened(widening)
        log_likelihood = likelihood.log_prob(problem.y, problem.operator(x), problem.observed)
        at = "z" if self.family.space == "latent" else "u"
        log_prior = self.family.log_prior(inner, self.prior)
        return {f"log p({at})": log_prior, f"-log q({at})": -log_q, "log p(y|x)": log_likelihood}

    def one_step(self) -> None:
        terms = self.terms()
        for name, value in terms.items():
            if not torch.isfinite(value).all():
                raise self.diverged(name)  # at weights that the last step led to: those before it are restored
        require_gradient(terms["log p(y|x)"], "log p(y|x)")
        elbo = torch.stack(list(terms.values())).sum(0).mean(0)
        self.optimizer.zero_grad()
        (-elbo.sum()).backward(inputs=self.weights)  # and into nothing else: an operator may hold weights of its own
        norms = [nn.utils.clip_grad_norm_(part, self.settings.clip) for part in self._parts()]
        if not all(math.isfinite(n) for n in norms):
            raise self.diverged("the gradient")
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.good = self._snapshot()
        self.optimizer.step()
        self.trace.append(elbo.tolist())
        self.step += 1
        if self.settings.early_stop and self.step < self.cooldown_from and self.settled():
            length = self.total - self.cooldown_from
            self.cooldown_from, self.total = self.step, self.step + min(length, self.step)

    def _parts(self) -> list[list[nn.Parameter]]:
        """The weights of each observation, so that clipping one's gradient leaves the others' alone."""
        found = self.family.map.first if isinstance(self.family.map, After) else self.family.map
        parts = found.bijections if isinstance(found, Generators) else [found]
        return [[p for p in part.parameters() if p.requires_grad] for part in parts]

    def settled(self) -> bool:
        """Whether the last window's mean ELBO exceeds the one before it, two standard errors added, by less than tolerance."""
        w = self.settings.window
        annealed = (
            self.settings.steps // 2 if self.settings.anneal > 1 else 0
        )  # before that another objective was fitted
        if self.step < annealed + 2 * w or self.step % 10:
            return False
        recent = torch.tensor(self.trace[-2 * w :], dtype=torch.float64)
        before, last = recent[:w], recent[w:]
        noise = ((before.var(0) + last.var(0)) / w).sqrt()
        return bool((last.mean(0) - before.mean(0) + 2 * noise < self.settings.tolerance).all())

    def diverged(self, term: str) -> Diverged:
        at = self.step
        self.family.load_state_dict(self.good, strict=False)
        self.step = max(0, at - 1)  # what is handed over is the state before the step that led here
        self.trace = self.trace[: self.step]
        return Diverged(at, term, self.posterior() if at else None)

    def posterior(self) -> FlowPosterior:
        provenance = {
            "solver": "variational",
            "settings": asdict(self.settings),
            "family": self.family.description,
            "started_from": self.started_from,
            "seconds": self.seconds,
            "steps": self.step,
        }
        trace = {"step": list(range(1, self.step + 1)), "elbo": self.trace}
        return FlowPosterior(self.problem, self.family, trace, provenance)

    # -- checkpoints ---------------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        return {"settings": asdict(self.settings), "problem": self.problem.fingerprint(), "start": self.started_from}

    def save(self, folder: Path) -> None:
        state = {"step": self.step, "seconds": self.seconds, "cooldown_from": self.cooldown_from, "total": self.total}
        config = {"format": CHECKPOINT, **self._identity(), "state": state, "trace": self.trace}
        write_bundle(folder, config, pack("family", self.family, self.optimizer), overwrite=True)

    def load(self, folder: Path) -> None:
        config, tensors = read_bundle(folder, CHECKPOINT)
        if {k: config.get(k) for k in self._identity()} != self._identity():
            raise ValueError(f"{folder} is a checkpoint of another problem or of other settings; use another folder")
        unpack("family", tensors, self.family, self.optimizer)
        for name in ("step", "seconds", "cooldown_from", "total"):
            setattr(self, name, config["state"][name])
        self.trace = config["trace"]
        self.good = self._snapshot()


def _shadow(module: Family) -> Family:
    """A copy that shares the module's weights, and follows their updates, but passes them no gradient."""
    twin = copy.deepcopy(module).requires_grad_(False)
    for mine, theirs in zip(twin.parameters(), module.parameters(), strict=True):
        mine.data = theirs.data
    return twin


class VariationalSolver:
    r"""Fits q(z), a pre-generator fhat in front of the frozen prior f, so that f o fhat samples the posterior (SVI).

    .. math:: \mathrm{ELBO} = E_{\epsilon\sim N(0,I)}[\log p(y|f(z)) + \log N(z;0,I) - \log q(z)],\quad z = \hat f(\epsilon)

    is maximised: the negative of eq. 4 of Whang, Lindgren and Dimakis (Composing Normalizing Flows for
    Inverse Problems), with the likelihood's normaliser kept so that the ELBO bounds log p(y) from below;
    log p(y) - ELBO is KL(q || posterior). f's log-determinant cancels. fhat starts at the identity, where q is the prior.
    In space ``ambient`` the flow fitted is over u and log N(z; 0, I) becomes log p(u) (Ambient VI, section 5 there).

    >>> posterior = VariationalSolver("fast").solve(problem)                     # doctest: +SKIP
    """

    def __init__(self, settings: VariationalSettings | str = "fast"):
        self.settings = preset_or_settings(settings, PRESETS)

    def solve(
        self,
        problem: InverseProblem,
        checkpoint: str | Path | None = None,
        report: Callable[[SolverProgress], None] | None = None,
        every: float = 20.0,
        start: Family | PointEstimate | None = None,
    ) -> FlowPosterior:
        """The posterior of every observation of the problem; problem and ``start`` are left as they were.

        ``start`` is a family to go on from in place of a new one, such as ``Amortizer.start(problem)`` gives, or a point
        estimate of the same observations, whose z takes the place of the mode that settings with ``start`` "point" or
        "laplace" seek by themselves. With
        ``checkpoint`` (a folder) the fit is saved there every ``every`` seconds and when interrupted, and goes on from
        there if the folder holds a fit of the same problem and settings. Raises ``Diverged`` where a term is no longer
        finite.
        """
        require_problem(problem)
        if start is not None and not isinstance(start, Family | PointEstimate):
            raise TypeError(f"start is a Family or a PointEstimate, got {type(start).__name__}")
        if isinstance(start, Family) and self.settings.start != "prior":
            raise ValueError(f"a family to start from was given, and start = {self.settings.start!r} asks for another")
        given = own_latents(problem, start, self.settings) if isinstance(start, PointEstimate) else None
        if isinstance(start, Family) or self.settings.start == "prior":
            run = _Run(problem, self.settings, start if isinstance(start, Family) else None)
        else:
            begun = has_checkpoint(checkpoint)
            if begun:
                family, seconds = family_to_fill(problem, self.settings), 0.0
            else:
                family, seconds = family_at(problem, given, self.settings, checkpoint, report, every)
            run = _Run(problem, self.settings, family, origin_of(given, self.settings), seconds)
            if checkpoint is not None and not begun:
                run.save(Path(checkpoint))  # what took the longest
                shutil.rmtree(Path(checkpoint) / SEARCH, ignore_errors=True)

        def progress() -> SolverProgress:
            return SolverProgress(run.step, run.total, sum(run.trace[-1]) / problem.batch, run.seconds, "ELBO")

        drive(run, lambda: run.step < run.total, progress, checkpoint, report, every)
        fitted = time.monotonic()
        posterior = run.posterior()
        posterior.measure_elbo(self.settings.final_draws, keyed_generator(self.settings.seed, 10**6))
        posterior.provenance["seconds"] = run.seconds + time.monotonic() - fitted
        return posterior
