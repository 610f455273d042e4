"""Markov chains: one loop for every kernel and every target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..checkpoint import fit_or_refuse
from ..flow_posterior import FlowPosterior
from ..problem import InverseProblem, require_problem
from ..sampled_posterior import SampledPosterior
from ..settings import check_positive, check_seed, check_types
from ..store import read_bundle, under, write_bundle
from .kernels import HMC, MALA, DualAveraging, Kernel, Langevin, Noise, RandomWalk, State, start
from .progress import Diverged, SolverProgress, drive, preset_or_settings
from .targets import LatentTarget, NoiseTarget, ProjectedTarget, Target

CHECKPOINT = "flowinv-chains"
_TRACE = 1000  # points at most
_START, _METRIC = 0, 10**9  # what noise is for, beside the steps 1, 2, ...
_OF_KERNELS = {"leapfrogs": "hmc", "jitter": "hmc", "refresh": "pl-mcmc", "sigma_a": "pl-mcmc"}


@dataclass(frozen=True)
class SamplingSettings:
    """Which chains are run, and which of their states are kept.

    ``chains`` chains of each observation take ``warmup`` steps, which are thrown away, and ``steps`` more, of which every
    ``thin``-th is kept (keep ``all``) or only the last (keep ``last``: one draw per chain).

    ``kernel``: ``lmc`` (Langevin without correction, biased by its step size), ``mala``, ``hmc`` with ``leapfrogs`` steps
    whose size is jittered by the share ``jitter``, or ``pl-mcmc``, for masks observed without noise, with the share
    ``refresh`` of its proposals drawn from N(0, I), and ``sigma_a``. ``space``: ``latent``, the prior's z, or ``noise``, that
    of the flow posterior given to ``solve``. ``initial``: chains start at N(0, I) of their space (``prior``), or in the latent
    at draws of the flow posterior (``pregenerator``). ``metric``: the same step size for every element (``unit``), or in
    proportion to the latent's standard deviation under the flow posterior (``pregenerator``, hmc alone).

    ``step_size``: eta of lmc and mala, epsilon of hmc, sigma_p of pl-mcmc. With ``adapt`` warm-up moves it, for each
    observation, to where proposals are accepted with probability ``target_acceptance`` (None: the kernel's own), and it is
    frozen afterwards; it starts afresh from what it found halfway. lmc has nothing to adapt to. ``bf16`` runs the prior's
    networks in bfloat16 while the chain moves, never for the draws that are kept: lmc alone, as no acceptance can be
    computed so.
    """

    kernel: Literal["lmc", "mala", "hmc", "pl-mcmc"] = "hmc"
    steps: int = 300
    warmup: int = 150
    thin: int = 1
    chains: int = 4
    step_size: float = 0.05
    leapfrogs: int = 8
    jitter: float = 0.2
    refresh: float = 0.0
    sigma_a: float = 1e-3
    adapt: bool = True
    target_acceptance: float | None = None
    space: Literal["latent", "noise"] = "latent"
    initial: Literal["prior", "pregenerator"] = "prior"
    metric: Literal["unit", "pregenerator"] = "unit"
    keep: Literal["all", "last"] = "all"
    bf16: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self, "sampling setting")
        check_positive(self, "sampling setting", "steps", "thin", "chains", "leapfrogs", "step_size", "sigma_a")
        if self.warmup < 0:
            raise ValueError(f"sampling setting warmup must be at least 0, got {self.warmup!r}")
        check_seed(self.seed, "sampling setting seed")
        for name, low, high in (("jitter", 0, 0.99), ("refresh", 0, 1)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"sampling setting {name} must lie in [{low}, {high}], got {getattr(self, name)!r}")
        if self.target_acceptance is not None and not 0 < self.target_acceptance < 1:
            raise ValueError(
                f"sampling setting target_acceptance must lie between 0 and 1, got {self.target_acceptance!r}"
            )
        if self.thin > self.steps:
            raise ValueError(f"of {self.steps} steps every {self.thin}-th cannot be kept: lower thin")
        self._refuse_what_does_not_fit()

    def _refuse_what_does_not_fit(self) -> None:
        if self.bf16 and self.kernel != "lmc":
            raise ValueError(
                f"bf16 is for lmc alone: the acceptance of {self.kernel} needs the potential in full precision"
            )
        if self.bf16 and self.space == "noise":
            raise ValueError("bf16 is for chains in the latent space alone")
        for name, kernel in _OF_KERNELS.items():
            if self.kernel != kernel and getattr(self, name) != getattr(SamplingSettings, name):
                raise ValueError(f"{name} is a setting of {kernel}, not of {self.kernel}")
        if self.target_acceptance is not None and (self.kernel == "lmc" or not self.adapt or self.warmup == 0):
            why = "there is no warm-up" if self.adapt else "adapt is off"
            raise ValueError(
                f"nothing is adapted to target_acceptance: {'lmc accepts every proposal' if self.kernel == 'lmc' else why}"
            )
        if self.keep == "last" and self.thin != 1:
            raise ValueError("keep 'last' keeps one state of each chain: there is nothing to thin, set thin to 1")
        if self.metric != "unit" and (self.kernel != "hmc" or self.space == "noise"):
            raise ValueError("metric 'pregenerator' is for hmc in the latent space alone")
        if self.space == "noise" and self.kernel == "pl-mcmc":
            raise ValueError("pl-mcmc runs in the latent space: its target is no posterior of the problem's likelihood")
        if self.space == "noise" and self.initial == "pregenerator":
            raise ValueError("in the noise space N(0, I) is the pre-generator's own draw: set initial to 'prior'")

    @property
    def needs_flow(self) -> bool:
        """Whether ``solve`` must be given a flow posterior."""
        return "pregenerator" in (self.initial, self.metric) or self.space == "noise"


def _lmc(steps: int, chains: int) -> SamplingSettings:
    return SamplingSettings("lmc", steps, warmup=0, chains=chains, step_size=5e-4, adapt=False, keep="last")


def _pl_mcmc(steps: int) -> SamplingSettings:
    return SamplingSettings("pl-mcmc", steps, 0, chains=6, step_size=0.05, sigma_a=1e-3, adapt=False, keep="last")


SAMPLING_PRESETS: dict[str, SamplingSettings] = {
    "lmc": _lmc(1000, 16),
    "mala": SamplingSettings("mala", steps=2000, warmup=1000, thin=10, step_size=1e-3),
    "hmc": SamplingSettings("hmc", steps=200, warmup=200, leapfrogs=10),
    "hmc-noise": SamplingSettings("hmc", steps=200, warmup=100, leapfrogs=8, space="noise", step_size=0.1),
    "pl-mcmc": SamplingSettings("pl-mcmc", steps=2000, warmup=1000, thin=10, step_size=0.05, sigma_a=0.05),
    "paper-lmc-cifar10": _lmc(1000, 8),
    "paper-lmc": _lmc(4000, 8),
    "paper-pl-mcmc": _pl_mcmc(2000),
    "paper-pl-mcmc-long": _pl_mcmc(20000),
}


class _Run:
    """One run: the chains, their step sizes and what was kept. The sampler itself holds no state."""

    def __init__(self, problem: InverseProblem, settings: SamplingSettings, through: FlowPosterior | None):
        self.problem, self.settings, self.through = problem, settings, through
        self.kernel, self.target = _kernel(settings, problem, through), _target(settings, problem, through)
        self.total = settings.warmup + settings.steps
        self.adapting = settings.adapt and settings.warmup > 0 and self.kernel.exact
        self.step, self.seconds = 0, 0.0
        self.adaptation = DualAveraging.at(torch.full((problem.batch,), settings.step_size, dtype=torch.float64))
        self.state = self._begin()
        kept = 1 if settings.keep == "last" else settings.steps // settings.thin
        like = self.state
        self.draws = like.x.new_zeros(settings.chains, kept, *like.x.shape[1:])
        self.lp, self.acceptance = (like.potential.new_zeros(settings.chains, kept, problem.batch) for _ in range(2))
        self.accepted = torch.zeros_like(like.potential)  # summed since the last draw that was kept
        self.since = 0
        self.kept = 0
        self.trace: dict[str, list[Any]] = {"step": [], "potential": [], "acceptance": [], "step_size": []}

    def _begin(self) -> State:
        settings, problem = self.settings, self.problem
        like = torch.empty(settings.chains, problem.batch, *problem.shape, dtype=self.target.dtype)
        position = Noise.keyed(like.to(problem.y.device), settings.seed, _START).normal()
        if settings.initial == "pregenerator":
            assert self.through is not None
            position = _latents(self.through, position)
        state = start(self.target, position, self.kernel)
        if not (torch.isfinite(state.potential).all() and _finite(state.gradient)):
            wrong = int((~torch.isfinite(state.potential)).sum())
            raise ValueError(
                f"the chains cannot start: {self.target.fault(position)} is not finite ({wrong} of "
                f"{state.potential.numel()} potentials); check y and the operator"
            )
        return state

    def step_size(self) -> Tensor:
        """Of the step to come, (B,)."""
        size = self.adaptation.step_size if self._warming else self.adaptation.average
        return size.to(self.state.potential)

    @property
    def _warming(self) -> bool:
        return self.adapting and self.step < self.settings.warmup

    def one_step(self) -> None:
        size, warming = self.step_size(), self._warming
        noise = Noise.keyed(self.state.position, self.settings.seed, self.step + 1)
        state, acceptance = self.kernel.step(self.target, self.state, size, noise)
        if not (torch.isfinite(state.potential).all() and _finite(state.gradient)):
            raise self.diverged(self.target.fault(state.position))
        self.state = state
        self.step += 1
        if warming:
            self.adaptation.update(acceptance, self.settings.target_acceptance or self.kernel.target_acceptance)
            if self.step == self.settings.warmup // 2:
                self.adaptation = DualAveraging.at(self.adaptation.average)
        if self.step > self.settings.warmup:
            self.accepted, self.since = self.accepted + acceptance, self.since + 1
        if self._due():
            self._keep(self._in_full_precision(state))
        if self.step % max(1, self.total // _TRACE) == 0:
            row = (self.step, state.potential.mean(0).tolist(), acceptance.mean(0).tolist(), size.tolist())
            for column, value in zip(self.trace.values(), row, strict=True):
                column.append(value)

    def _due(self) -> bool:
        past = self.step - self.settings.warmup
        if self.settings.keep == "last":
            return self.step == self.total
        return past > 0 and past % self.settings.thin == 0 and self.kept < self.draws.shape[1]

    def _in_full_precision(self, state: State) -> State:
        if not self.settings.bf16:
            return state
        return LatentTarget(self.problem).evaluate(state.position, gradient=False)

    def _keep(self, state: State) -> None:
        self.draws[:, self.kept], self.lp[:, self.kept] = state.x, -state.potential
        self.acceptance[:, self.kept] = self.accepted / max(1, self.since)
        self.accepted, self.since, self.kept = torch.zeros_like(self.accepted), 0, self.kept + 1

    def diverged(self, term: str) -> Diverged:
        if self.kept == 0:
            self._keep(self._in_full_precision(self.state))
        return Diverged(self.step + 1, term, self.posterior(), "Lower the step size")

    def prior_passes(self) -> int:
        """How often a chain's state has gone through the prior, with or without its gradient."""
        again = self.kept if self.settings.bf16 else 0
        return self.target.passes * (1 + self.step * self.kernel.evaluations) + again

    def posterior(self) -> SampledPosterior:
        provenance = {
            "solver": "sampling",
            "settings": asdict(self.settings),
            "target": self.target.name,
            "exact": self.kernel.exact,
            "seconds": self.seconds,
            "steps": self.step,
            "prior_passes": self.prior_passes(),
            "step_size": self.step_size().tolist(),
            "through": None if self.through is None else _about(self.through),
        }
        stats = {"lp": self.lp[:, : self.kept].clone(), "acceptance": self.acceptance[:, : self.kept].clone()}
        return SampledPosterior(self.problem, self.draws[:, : self.kept], stats, self.trace, provenance)

    # -- checkpoints ---------------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        through = None if self.through is None else self.through.family.fingerprint()
        return {"settings": asdict(self.settings), "problem": self.problem.fingerprint(), "through": through}

    def _tensors(self) -> dict[str, Tensor]:
        state = {f"state.{k}": t for k, t in self.state._asdict().items() if t is not None}
        kept = {name: getattr(self, name)[:, : self.kept] for name in ("draws", "lp", "acceptance")}
        adaptation = {f"adaptation.{k}": t for k, t in self.adaptation.state().items()}
        return {**state, **kept, **adaptation, "accepted": self.accepted}

    def save(self, folder: Path) -> None:
        numbers = {name: getattr(self, name) for name in ("step", "seconds", "since", "kept")}
        config = {"format": CHECKPOINT, **self._identity(), "state": numbers, "trace": self.trace}
        write_bundle(folder, config, self._tensors(), overwrite=True)

    def load(self, folder: Path) -> None:
        config, tensors = read_bundle(folder, CHECKPOINT)
        identity = self._identity()
        if {k: config.get(k) for k in identity} != identity:
            raise ValueError(
                f"{folder} is a checkpoint of another problem, of other settings or through another flow; use another folder"
            )
        for name in ("step", "seconds", "since", "kept"):
            setattr(self, name, config["state"][name])
        self.trace = config["trace"]
        fit_or_refuse(tensors, self._tensors(), f"{folder}: the chains")
        device = self.problem.y.device
        state = {k: t.to(device) for k, t in under("state", tensors).items()}
        self.state = State(state["position"], state["x"], state["potential"], state.get("gradient"))
        self.adaptation = DualAveraging(**under("adaptation", tensors))
        self.accepted = tensors["accepted"].to(device)
        for name in ("draws", "lp", "acceptance"):
            getattr(self, name)[:, : self.kept] = tensors[name].to(device)


def _finite(gradient: Tensor | None) -> bool:
    return gradient is None or bool(torch.isfinite(gradient).all())


def _kernel(settings: SamplingSettings, problem: InverseProblem, through: FlowPosterior | None) -> Kernel:
    if settings.kernel == "lmc":
        return Langevin()
    if settings.kernel == "mala":
        return MALA()
    if settings.kernel == "pl-mcmc":
        return RandomWalk(settings.refresh)
    scale = None
    if settings.metric == "pregenerator":
        assert through is not None
        like = torch.empty(256, problem.batch, *problem.shape, dtype=problem.y.dtype, device=problem.y.device)
        scale = _latents(through, Noise.keyed(like, settings.seed, _METRIC).normal()).std(0)
    return HMC(settings.leapfrogs, settings.jitter, scale)


def _target(settings: SamplingSettings, problem: InverseProblem, through: FlowPosterior | None) -> Target:
    if settings.kernel == "pl-mcmc":
        return ProjectedTarget(problem, settings.sigma_a)
    if settings.space == "noise":
        assert through is not None
        return NoiseTarget(problem, through)
    return LatentTarget(problem, problem.prior.frozen(bf16=True) if settings.bf16 else None)


@torch.no_grad()
def _latents(through: FlowPosterior, noise: Tensor) -> Tensor:
    """The prior's latents z at noise (m, B, *shape) of a flow posterior."""
    family, prior = through.family, through.problem.prior
    inner = family.map.push(noise.to(next(family.parameters()).dtype))[0]
    if family.space == "ambient":
        inner = prior.bijection.encode(inner.flatten(0, 1))[0].view(noise.shape)
    return inner.to(noise.dtype)


def _about(through: FlowPosterior) -> dict[str, Any]:
    """What a flow posterior is and what fitting it cost: chains through it have that cost too."""
    known = through.provenance
    draws = (known.get("settings") or {}).get("draws", 0)
    cost = {"prior_passes": draws * (known.get("steps") or 0), "seconds": known.get("seconds")}
    return {"sha256": through.family.fingerprint(), "steps": known.get("steps"), **cost}


class Sampler:
    r"""Markov chains on the posterior: every sampler is one loop with another kernel on another potential.

    .. math:: U(z) = -\log N(z; 0, I) - \log p(y | f(z)),\qquad x = f(z)

    over the latent (``LatentTarget``), over the noise of a fitted flow (``NoiseTarget``), or PL-MCMC's potential of the noise-free
    conditional (``ProjectedTarget``). Chains of all observations move together, one call of the prior for all of them; an
    observation's random numbers are its own: those of its place among them. ``hmc``, ``mala`` and ``pl-mcmc`` leave
    their target exactly invariant, ``lmc`` does not; whether they have reached it is what ``posterior.rhat`` and ``.ess`` tell.

    Exact kernels reject proposals at which the potential is not finite; ``lmc`` raises ``Diverged``.

    >>> posterior = Sampler("hmc").solve(problem)                                      # doctest: +SKIP
    >>> posterior = Sampler("hmc-noise").solve(problem, through=flow_posterior)        # doctest: +SKIP
    """

    def __init__(self, settings: SamplingSettings | str = "hmc"):
        self.settings = preset_or_settings(settings, SAMPLING_PRESETS)

    def solve(
        self,
        problem: InverseProblem,
        through: FlowPosterior | None = None,
        checkpoint: str | Path | None = None,
        report: Callable[[SolverProgress], None] | None = None,
        every: float = 20.0,
    ) -> SampledPosterior:
        """The posterior of every observation as stored draws of chains; the problem is left as it was.

        ``through``, a flow posterior over the same prior with as many observations, is what the settings call the
        pre-generator. With ``checkpoint`` (a folder) the chains are saved there every ``every`` seconds and when
        interrupted, and go on from there, bit for bit, if it holds chains of the same problem and settings. Raises
        ``Diverged`` where an unadjusted chain is no longer finite.
        """
        require_problem(problem)
        self._check(problem, through)
        run = _Run(problem, self.settings, through)

        def progress() -> SolverProgress:
            value = float(run.state.potential.mean())
            return SolverProgress(run.step, run.total, value, run.seconds, label="potential")

        drive(run, lambda: run.step < run.total, progress, checkpoint, report, every)
        return run.posterior()

    def _check(self, problem: InverseProblem, through: FlowPosterior | None) -> None:
        if through is None:
            if self.settings.needs_flow:
                raise ValueError("these settings need a flow posterior: solve(problem, through=posterior)")
            return
        if not isinstance(through, FlowPosterior):
            raise TypeError(f"through must be a FlowPosterior, got {type(through).__name__}")
        if not self.settings.needs_flow:
            raise ValueError(
                "these settings have no use for a flow posterior: set space to 'noise', or initial or metric to 'pregenerator'"
            )
        if through.problem.prior_fingerprint != problem.prior_fingerprint:
            raise ValueError("the flow posterior is over another prior than the problem's")
        if through.batch != problem.batch:
            raise ValueError(
                f"the flow posterior is of {through.batch} observations, the problem has {problem.batch} of them"
            )
