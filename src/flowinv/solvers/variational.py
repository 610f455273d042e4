"""Variational inference with a composed flow: the pre-generator is fitted, the prior stays frozen."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import pack, unpack
from ..flows.flow import standard_normal_log_prob
from ..interrupts import keep_stepping
from ..posterior import Posterior
from ..problem import InverseProblem
from ..randomness import keyed_generator
from ..store import read_bundle, write_bundle
from .pregenerator import PreGeneratorConfig, build_pregenerator

CHECKPOINT = "flowinv-solver"


@dataclass(frozen=True)
class VariationalSettings:
    """How the pre-generator is fitted.

    ``draws`` draws per observation and step, at most ``steps`` Adam steps at ``learning_rate``. With ``early_stop`` the
    run goes to its cool-down (the last ``cooldown`` of the steps, learning rate falling linearly to zero) as soon as the
    ELBO, averaged over ``window`` steps, is sure (to two standard errors) to rise by less than ``tolerance`` nats per
    window. ``final_draws`` fresh draws give the ELBO that is reported. ``path_gradient`` leaves the score term, of zero
    mean, out of the gradient, which then has no variance where q is exact (Roeder et al., Sticking the Landing), for one
    pass through the pre-generator's inverse. ``bf16`` runs the prior's coupling networks in bfloat16 while fitting, never
    for what is reported.
    """

    pregenerator: PreGeneratorConfig = field(default_factory=PreGeneratorConfig)
    draws: int = 16
    steps: int = 300
    learning_rate: float = 1e-2
    warmup: int = 10
    cooldown: float = 0.3
    clip: float = 100.0
    early_stop: bool = True
    window: int = 40
    tolerance: float = 2.0
    final_draws: int = 1024
    path_gradient: bool = False
    bf16: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("draws", "steps", "learning_rate", "clip", "window", "final_draws"):
            if not getattr(self, name) > 0:
                raise ValueError(f"solver setting {name} must be positive, got {getattr(self, name)!r}")
        if not 0 <= self.cooldown <= 1:
            raise ValueError(f"solver setting cooldown must lie in [0, 1], got {self.cooldown!r}")


def _paper(hidden: int, scales: int, blocks: int, **settings: Any) -> VariationalSettings:
    family = PreGeneratorConfig("realnvp", hidden=hidden, scales=scales, blocks=blocks)
    return VariationalSettings(family, cooldown=0.0, warmup=0, early_stop=False, **settings)


PRESETS: dict[str, VariationalSettings] = {
    "fast": VariationalSettings(),
    "thorough": VariationalSettings(PreGeneratorConfig(steps=12, hidden=48), draws=32, steps=1000),
    "gaussian": VariationalSettings(
        PreGeneratorConfig("gaussian"),
        draws=32,
        steps=2000,
        learning_rate=1e-2,
        cooldown=0.6,
        path_gradient=True,
        early_stop=False,
    ),
    "paper-mnist": _paper(32, 3, 3, draws=64, steps=1000, learning_rate=1e-3),
    "paper-cifar10": _paper(48, 4, 4, draws=32, steps=1000, learning_rate=5e-4),
    "paper-celebahq": _paper(48, 3, 3, draws=8, steps=4000, learning_rate=5e-4),
}


class Diverged(RuntimeError):
    """A term of the objective left the finite numbers; ``posterior`` holds the last good state."""

    def __init__(self, step: int, term: str, posterior: Posterior):
        super().__init__(
            f"step {step}: {term} is not finite; the state before it is kept. Lower the learning rate, or check y and the operator"
        )
        self.step, self.term, self.posterior = step, term, posterior


@dataclass(frozen=True)
class SolverProgress:
    """Where a fit stands: step of at most ``total``, the ELBO per observation (noisy, nats), seconds so far."""

    step: int
    total: int
    elbo: float
    seconds: float


class _Run:
    """One fit: the pre-generators, the optimiser and the trace. The solver itself holds no state."""

    def __init__(self, problem: InverseProblem, settings: VariationalSettings):
        self.problem, self.settings = problem, settings
        family = settings.pregenerator
        self.generators = nn.ModuleList(
            build_pregenerator(problem.shape, replace(family, seed=family.seed + b)) for b in range(problem.batch)
        ).to(problem.y.device, problem.y.dtype if problem.y.dtype == torch.float64 else torch.float32)
        self.prior = problem.prior.frozen(bf16=True) if settings.bf16 else problem.prior
        self.shadows = [_shadow(g) for g in self.generators] if settings.path_gradient else []
        self.weights = list(self.generators.parameters())
        self.optimizer = torch.optim.Adam(self.weights, lr=settings.learning_rate)
        self.step, self.seconds = 0, 0.0
        self.cooldown_from = round(settings.steps * (1 - settings.cooldown))
        self.total = settings.steps
        self.trace: list[list[float]] = []  # per step, the ELBO of each observation
        self.good = self._snapshot()

    def _snapshot(self) -> dict[str, Tensor]:
        return {k: v.detach().clone() for k, v in self.generators.state_dict().items()}

    def learning_rate(self) -> float:
        s = self.settings
        warm = min(1.0, (self.step + 1) / max(1, s.warmup))
        left = (self.total - self.step) / max(1, self.total - self.cooldown_from)
        return s.learning_rate * warm * min(1.0, left)

    def terms(self) -> dict[str, Tensor]:
        """The summands of the per-draw ELBO, each (m, B), for this step's noise."""
        problem, m = self.problem, self.settings.draws
        dtype = next(self.generators.parameters()).dtype
        pairs = []
        for b, generator in enumerate(self.generators):
            noise = torch.randn(
                m, *problem.shape, generator=keyed_generator(self.settings.seed, self.step, b), dtype=dtype
            )
            noise = noise.to(problem.y.device)
            z, log_det = generator.decode(noise)  # type: ignore[operator]
            if self.shadows:
                back, inner = self.shadows[b].encode(z)  # type: ignore[operator]
                log_q = standard_normal_log_prob(back) + inner
            else:
                log_q = standard_normal_log_prob(noise) - log_det
            pairs.append((z, standard_normal_log_prob(z), -log_q))
        z, log_prior, entropy = (torch.stack(parts, 1) for parts in zip(*pairs, strict=True))
        x = self.prior.decode(z.flatten(0, 1))[0].unflatten(0, z.shape[:2])
        return {"log p(z)": log_prior, "-log q(z)": entropy, "log p(y|x)": problem.log_likelihood(x)}

    def one_step(self) -> None:
        terms = self.terms()
        for name, value in terms.items():
            if not torch.isfinite(value).all():
                raise self.diverged(name)
        if not terms["log p(y|x)"].requires_grad:
            raise ValueError(
                "log p(y|x) passes no gradient to x: write operator and likelihood in differentiable torch code"
            )
        elbo = torch.stack(list(terms.values())).sum(0).mean(0)
        self.optimizer.zero_grad()
        (-elbo.sum()).backward(inputs=self.weights)  # and into nothing else: an operator may hold weights of its own
        norms = [nn.utils.clip_grad_norm_(g.parameters(), self.settings.clip) for g in self.generators]
        if not all(math.isfinite(n) for n in norms):
            raise self.diverged("the gradient")
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        if self.step % 25 == 0:
            self.good = self._snapshot()
        self.optimizer.step()
        self.trace.append(elbo.tolist())
        self.step += 1
        if self.settings.early_stop and self.step < self.cooldown_from and self.settled():
            length = self.total - self.cooldown_from
            self.cooldown_from, self.total = self.step, self.step + min(length, self.step)

    def settled(self) -> bool:
        """Whether the last window's mean ELBO exceeds the one before it, two standard errors added, by less than tolerance."""
        w = self.settings.window
        if self.step < 2 * w or self.step % 10:
            return False
        recent = torch.tensor(self.trace[-2 * w :], dtype=torch.float64)
        before, last = recent[:w], recent[w:]
        noise = ((before.var(0) + last.var(0)) / w).sqrt()
        return bool((last.mean(0) - before.mean(0) + 2 * noise < self.settings.tolerance).all())

    def diverged(self, term: str) -> Diverged:
        self.generators.load_state_dict(self.good)
        return Diverged(self.step, term, self.posterior())

    def posterior(self) -> Posterior:
        provenance = {
            "solver": "variational",
            "settings": asdict(self.settings),
            "seconds": self.seconds,
            "steps": self.step,
        }
        trace = {"step": list(range(1, self.step + 1)), "elbo": self.trace}
        generators = self.generators.requires_grad_(False).eval()
        return Posterior(self.problem, generators, trace, provenance)

    # -- checkpoints ---------------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        return {"settings": asdict(self.settings), "problem": self.problem.fingerprint()}

    def save(self, folder: Path) -> None:
        state = {"step": self.step, "seconds": self.seconds, "cooldown_from": self.cooldown_from, "total": self.total}
        config = {"format": CHECKPOINT, **self._identity(), "state": state, "trace": self.trace}
        write_bundle(folder, config, pack("pregenerator", self.generators, self.optimizer), overwrite=True)

    def load(self, folder: Path) -> None:
        config, tensors = read_bundle(folder, CHECKPOINT)
        if {k: config.get(k) for k in ("settings", "problem")} != self._identity():
            raise ValueError(f"{folder} is a checkpoint of another problem or of other settings; use another folder")
        unpack("pregenerator", tensors, self.generators, self.optimizer)
        for name, value in config["state"].items():
            setattr(self, name, value)
        self.trace = config["trace"]
        self.good = self._snapshot()


def _shadow(module: nn.Module) -> nn.Module:
    """A copy that shares the module's weights, and follows their updates, but passes them no gradient."""
    twin = copy.deepcopy(module).requires_grad_(False)
    for mine, theirs in zip(twin.parameters(), module.parameters(), strict=True):
        mine.data = theirs.data
    return twin


class VariationalSolver:
    r"""Fits q(z), a pre-generator fhat in front of the frozen prior f, so that f o fhat samples the posterior.

    .. math:: \mathrm{ELBO} = E_{\epsilon\sim N(0,I)}[\log p(y|f(z)) + \log N(z;0,I) - \log q(z)],\quad z = \hat f(\epsilon)

    is maximised: the negative of eq. 4 of Whang, Lindgren and Dimakis (Composing Normalizing Flows for
    Inverse Problems), with the likelihood's normaliser kept so that the ELBO bounds log p(y) from below;
    log p(y) - ELBO is KL(q || posterior). f's log-determinant cancels. fhat starts at the identity, where q is the prior.

    >>> posterior = VariationalSolver("fast").solve(problem)                     # doctest: +SKIP
    """

    def __init__(self, settings: VariationalSettings | str = "fast"):
        if isinstance(settings, str):
            if settings not in PRESETS:
                raise ValueError(f"unknown preset {settings!r}: expected one of {', '.join(PRESETS)}")
            settings = PRESETS[settings]
        self.settings = settings

    def solve(
        self,
        problem: InverseProblem,
        checkpoint: str | Path | None = None,
        report: Callable[[SolverProgress], None] | None = None,
        every: float = 20.0,
    ) -> Posterior:
        """The posterior of every observation of the problem; the problem is left as it was.

        With ``checkpoint`` (a folder) the fit is saved there every ``every`` seconds and when interrupted, and goes on from
        there if the folder holds a fit of the same problem and settings. Raises ``Diverged`` where a term is no longer finite.
        """
        run = _Run(problem, self.settings)
        folder = Path(checkpoint) if checkpoint is not None else None
        if folder is not None and (folder / "config.json").exists():
            run.load(folder)
        started, before = time.monotonic(), run.seconds

        def step() -> None:
            run.one_step()
            run.seconds = before + time.monotonic() - started

        def show() -> None:
            if report is not None:
                report(SolverProgress(run.step, run.total, sum(run.trace[-1]) / problem.batch, run.seconds))

        save = partial(run.save, folder) if folder is not None else None
        keep_stepping(lambda: run.step < run.total, step, show, save, every)
        posterior = run.posterior()
        posterior.measure_elbo(self.settings.final_draws, keyed_generator(self.settings.seed, 10**6))
        posterior.provenance["seconds"] = before + time.monotonic() - started
        return posterior
