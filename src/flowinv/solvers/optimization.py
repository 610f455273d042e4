"""Point estimates by latent optimisation: misfit + penalty, minimised over z through the frozen prior."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import fit_or_refuse
from ..flows.flow import Flow, standard_normal_log_prob
from ..gradients import require_gradient
from ..likelihoods import Poisson, measurement_sum
from ..point_estimate import PointEstimate
from ..problem import InverseProblem, require_problem
from ..randomness import keyed_generator
from ..store import read_bundle, under, write_bundle
from .minimizers import LBFGS, Adam, Minimizer
from .optimization_settings import OPTIMIZATION_PRESETS, OptimizationSettings
from .progress import Diverged, SolverProgress, drive, preset_or_settings

CHECKPOINT = "flowinv-point-solver"
_STATE = ("z", "good", "best", "lowest", "running", "lost", "steps_taken", "overshot")
_HALVINGS = 30  # of a step of L-BFGS that left the finite numbers


class _Objective:
    """Misfit and weighted penalty of latents (R, B, *shape), each (R, B)."""

    def __init__(self, problem: InverseProblem, settings: OptimizationSettings, prior: Flow):
        self.problem, self.settings, self.prior = problem, settings, prior

    def terms(self, z: Tensor) -> dict[str, Tensor]:
        lead, flat = z.shape[:2], z.flatten(0, 1)
        u, inner = self.prior.bijection.decode(flat)
        x, outer = self.prior.transform.decode(u)
        return {
            "the misfit": self.misfit(x.unflatten(0, lead)),
            "the penalty": self.settings.weight * self.penalty(flat, inner, outer).unflatten(0, lead),
        }

    def misfit(self, x: Tensor) -> Tensor:
        problem, kind = self.problem, self.settings.misfit
        if kind == "likelihood":
            return -problem.log_likelihood(x)
        prediction = problem.operator(x)
        if problem.observed is not None:
            prediction = torch.where(problem.observed, prediction, prediction.new_zeros(()))
        residual = prediction - problem.y
        return measurement_sum(residual.abs() if kind == "l1" else residual.square(), problem.y)

    def penalty(self, z: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
        """(N,), from latents and the log-determinants of z -> u and u -> x."""
        kind = self.settings.penalty
        if kind == "none":
            return z.new_zeros(len(z))
        if kind == "latent-norm":
            return z.flatten(1).square().sum(1)
        log_det = inner if kind == "likelihood-u" else inner + outer
        return log_det - standard_normal_log_prob(z)


class _Run:
    """One optimisation: latents, minimiser and trace. The solver itself holds no state."""

    def __init__(self, problem: InverseProblem, settings: OptimizationSettings):
        self.problem, self.settings = problem, settings
        noise = problem.likelihood
        own = settings.misfit != "likelihood"
        if own and isinstance(noise, Poisson) and noise.counts and bool((torch.as_tensor(noise.gain) != 1).any()):
            raise ValueError(f"y holds counts and A(x) does not ({noise!r}): use misfit 'likelihood'")
        stepping = problem.prior.frozen(bf16=True) if settings.bf16 else problem.prior
        self.objective = _Objective(problem, settings, stepping)
        self.z = self._start()
        rows = self.z.flatten(0, 1).flatten(1)
        horizon = settings.steps if settings.optimizer == "adam-cosine" else None
        self.minimizer: Minimizer = (
            LBFGS(rows, settings.learning_rate, settings.history)
            if settings.optimizer == "lbfgs"
            else Adam(rows, settings.learning_rate, settings.betas, horizon)
        )
        self.good = self.z.clone()
        self.best = self.z.clone()
        lead = self.z.shape[:2]
        self.lowest = self.z.new_full(lead, torch.finfo(self.z.dtype).max)
        self.running = torch.ones(lead, dtype=torch.bool, device=self.z.device)
        self.lost = ~self.running  # runs that left the finite numbers, held at the step before
        self.steps_taken = torch.zeros(lead, dtype=torch.long, device=self.z.device)
        self.overshot = self.steps_taken.clone()  # trials in a row that were not finite
        self.values: list[Tensor] = []  # per step, the objective (R, B)
        self.step, self.seconds = 0, 0.0

    def _start(self) -> Tensor:
        s, problem = self.settings, self.problem
        if s.init_scale == 0:
            return problem.y.new_zeros(s.restarts, problem.batch, *problem.shape)
        starts = [
            torch.stack(
                [
                    torch.randn(problem.shape, generator=keyed_generator(s.seed, s.first + b, r), dtype=problem.y.dtype)
                    for b in range(problem.batch)
                ]
            )
            for r in range(s.restarts)
        ]
        return s.init_scale * torch.stack(starts).to(problem.y.device)

    def going(self) -> bool:
        return self.step < self.settings.steps and bool(self.running.any())

    def one_step(self) -> None:
        z = self.z.detach().requires_grad_()
        terms = self.objective.terms(z)
        require_gradient(terms["the misfit"], "the misfit")
        value = sum(terms.values(), z.new_zeros(()))
        (grad,) = torch.autograd.grad(value.sum(), z)
        found = {**terms, "the gradient": grad.flatten(2).sum(2)}
        wrong = {name: ~torch.isfinite(part.detach()) for name, part in found.items()}
        beyond = torch.stack(list(wrong.values())).any(0) & self._can_go_back()
        self.overshot = torch.where(beyond, self.overshot + 1, 0)
        for name, flags in wrong.items():
            self._lose(name, flags & ~beyond)
        held = self.lost | beyond
        value = torch.where(held, self.lowest, value.detach())
        self.values.append(value)
        lower = value < self.lowest
        self.best = torch.where(_over(lower, z), z.detach(), self.best)
        self.lowest = torch.where(lower, value, self.lowest)
        if self.settings.early_stop:
            self.running &= ~self._settled()
        grad = torch.where(_over(held, z), 0.0, grad)
        seen = torch.where(beyond, math.inf, value)  # which L-BFGS takes back
        moved = self.minimizer.step(z.detach().flatten(0, 1).flatten(1), grad.flatten(0, 1).flatten(1), seen.flatten())
        self.good = torch.where(_over(held, z), self.good, self.z)
        self.z = torch.where(_over(self.running, z), moved.view_as(z), self.good)
        self.steps_taken += self.running
        self.step += 1

    def _can_go_back(self) -> Tensor:
        """Which runs of L-BFGS have a point to take a step back to, and have not tried in vain too often, (R, B)."""
        if self.settings.optimizer != "lbfgs" or self.step == 0:
            return torch.zeros_like(self.running)
        return self.running & (self.overshot < _HALVINGS)

    def _settled(self) -> Tensor:
        """Which runs fell by less in the last window than ``tolerance`` times all that they fell since the first, (R, B)."""
        w = self.settings.window
        if len(self.values) < 2 * w or len(self.values) % w:
            return torch.zeros_like(self.running)
        before = torch.stack(self.values[-2 * w : -w]).mean(0)
        last = torch.stack(self.values[-w:]).mean(0)
        return before - last < self.settings.tolerance * (torch.stack(self.values[:w]).mean(0) - last)

    def _lose(self, name: str, wrong: Tensor) -> None:
        """Give up runs, (R, B); an observation without any other ends them all."""
        self.lost |= wrong
        self.running &= ~self.lost
        gone = self.lost.all(0)
        if gone.any():
            raise self.diverged(f"{name} of observation {int(gone.nonzero()[0, 0])}")

    def diverged(self, term: str) -> Diverged:
        return Diverged(self.step, term, self._estimate(self.good[None]) if self.step else None)

    def estimate(self) -> PointEstimate:
        trial = self.settings.optimizer == "lbfgs"  # whose last point may be one that raised the objective
        kept = [self.z, self.best] if self.settings.keep == "best" or trial else [self.z]
        estimate = self._estimate(torch.stack(kept))
        self._lose("the objective", ~torch.isfinite(estimate.restarts))
        return estimate

    @torch.no_grad()
    def _estimate(self, candidates: Tensor) -> PointEstimate:
        """From latents (K, R, B, *shape): of each restart the lowest of K, of each observation the lowest restart."""
        exact = _Objective(self.problem, self.settings, self.problem.prior)
        pairs = []
        for z in candidates:
            terms = exact.terms(z)
            pairs.append((sum(terms.values(), z.new_zeros(())), terms["the misfit"]))
        values, misfits = (torch.stack(parts) for parts in zip(*pairs, strict=True))
        ranks = values.nan_to_num(nan=math.inf)
        which = ranks.argmin(0)  # (R, B)
        values, misfits, ranks = (_pick(t, which) for t in (values, misfits, ranks))
        latents = _pick(candidates, which)
        restart = ranks.argmin(0)  # (B,)
        columns = torch.arange(len(restart), device=restart.device)
        trace = torch.stack(self.values)[:, restart, columns].tolist() if self.values else []
        provenance = {
            "solver": "optimization",
            "minimised": str(self.settings),
            "settings": asdict(self.settings),
            "seconds": self.seconds,
            "steps": self.step,
            "steps_of_each": _pick(self.steps_taken, restart).tolist(),
        }
        return PointEstimate(
            self.problem,
            _pick(latents, restart),
            _pick(values, restart),
            {"step": list(range(1, len(self.values) + 1)), "objective": trace},
            provenance,
            misfit=_pick(misfits, restart),
            restarts=values,
        )

    # -- checkpoints ---------------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        settings = json.loads(json.dumps(asdict(self.settings)))
        return {"settings": settings, "problem": self.problem.fingerprint()}

    def _state(self) -> dict[str, Tensor]:
        own = {name: getattr(self, name) for name in _STATE}
        return {**own, **{f"minimizer.{k}": v for k, v in self.minimizer.tensors.items()}}

    def save(self, folder: Path) -> None:
        config = {"format": CHECKPOINT, **self._identity(), "step": self.step, "seconds": self.seconds}
        values = torch.stack(self.values) if self.values else self.lowest[:0].new_zeros(0, *self.lowest.shape)
        write_bundle(folder, config, {**self._state(), "values": values}, overwrite=True)

    def load(self, folder: Path) -> None:
        config, tensors = read_bundle(folder, CHECKPOINT)
        if {k: config.get(k) for k in ("settings", "problem")} != self._identity():
            raise ValueError(f"{folder} is a checkpoint of another problem or of other settings; use another folder")
        expected = {**self._state(), "values": self.lowest.new_empty(config["step"], *self.lowest.shape)}
        fit_or_refuse(tensors, expected, f"{folder}: the checkpoint's values")
        tensors = {k: v.to(expected[k].device) for k, v in tensors.items()}
        self.values = list(tensors.pop("values"))
        self.minimizer.tensors = under("minimizer", tensors)
        for name in _STATE:
            setattr(self, name, tensors[name])
        self.step, self.seconds = config["step"], config["seconds"]


def _over(flags: Tensor, like: Tensor) -> Tensor:
    """(R, B) flags that broadcast over (R, B, *shape)."""
    return flags.view(*flags.shape, *([1] * (like.dim() - flags.dim())))


def _pick(t: Tensor, index: Tensor) -> Tensor:
    """Of t (K, *lead, ...), for each place of ``lead`` the entry that index (*lead,) names: (*lead, ...)."""
    wide = index.view(1, *index.shape, *([1] * (t.dim() - 1 - index.dim())))
    return t.gather(0, wide.expand(1, *t.shape[1:])).squeeze(0)


class PointSolver:
    r"""Finds one x = f(z) for each observation: latent optimisation through the frozen prior.

    .. math:: \hat z = \arg\min_z \; d(A(f(z)), y) + \lambda \, \mathrm{pen}(z)

    CSGM (Bora et al., eq. 3): squared error and ||z||^2; Asim et al. / IvOM: no penalty; the likelihood-regularised solver
    (Generative Flows as a General Purpose Solution for Inverse Problems, eq. 7): absolute error and -log p(u), u the image
    before the prior's last transform; MAP: -log p(y | x) - w log p(u). See :class:`OptimizationSettings`, and
    ``OPTIMIZATION_PRESETS`` for their published settings.

    >>> estimate = PointSolver("csgm-fast").solve(problem)                     # doctest: +SKIP
    """

    def __init__(self, settings: OptimizationSettings | str = "csgm-fast"):
        self.settings = preset_or_settings(settings, OPTIMIZATION_PRESETS)

    def solve(
        self,
        problem: InverseProblem,
        checkpoint: str | Path | None = None,
        report: Callable[[SolverProgress], None] | None = None,
        every: float = 20.0,
    ) -> PointEstimate:
        """A point estimate for every observation of the problem; the problem is left as it was.

        With ``checkpoint`` (a folder) the run is saved there every ``every`` seconds and when interrupted, and goes on from
        there if the folder holds a run of the same problem and settings. A restart whose objective is no longer finite is held
        at the step before; ``Diverged``, with the estimate from there, is raised where an observation has no other.
        """
        require_problem(problem)
        run = _Run(problem, self.settings)

        def progress() -> SolverProgress:
            value = float(run.values[-1].amin(0).mean())
            return SolverProgress(run.step, self.settings.steps, value, run.seconds, "objective")

        drive(run, run.going, progress, checkpoint, report, every)
        return run.estimate()
