"""Amortised inference: one conditional pre-generator trained over simulated observations, zero-shot for a new one."""

from __future__ import annotations

import copy
import hashlib
import math
import platform
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import __version__
from ..checkpoint import fit_or_refuse, pack, unpack, whole
from ..families import Conditional, ConditionalConfig, Family, PreGeneratorConfig, context_of
from ..families.family import amortized, semi_amortized
from ..flow_posterior import FlowPosterior
from ..flows.flow import Flow
from ..gradients import require_gradient
from ..interrupts import keep_stepping
from ..operators import FunctionOperator
from ..problem import InverseProblem
from ..randomness import keyed_generator
from ..settings import check_positive, check_seed, check_types
from ..store import hash_tensors, read_bundle, under, write_bundle, write_text
from ..summaries import can_sample
from ..tasks import TASKS, Task, task_from_spec
from .progress import Diverged, SolverProgress, preset_or_settings

FORMAT, CHECKPOINT = "flowinv-amortizer", "flowinv-amortized-training"


@dataclass(frozen=True)
class AmortizedSettings:
    """How the conditional pre-generator is trained.

    Each of ``steps`` Adam steps simulates ``observations`` new ones, x from the prior and y from the task (with its noise
    where ``noise``), and takes ``draws`` draws for each. The learning rate warms up over ``warmup`` steps and falls by a
    cosine to zero; gradients are clipped at norm ``clip``; the weights kept are a running average with decay ``average``.
    The conditional pre-generator has ``couplings`` of ``hidden`` channels, told of y by an encoder with ``features``
    channels and ``blocks`` residual blocks; ``bf16`` runs the prior's networks in bfloat16 while training.
    """

    steps: int = 4000
    observations: int = 16
    draws: int = 4
    learning_rate: float = 2e-3
    warmup: int = 100
    clip: float = 50.0
    average: float = 0.995
    noise: bool = True
    bf16: bool = True
    couplings: int = 10
    hidden: int = 64
    features: int = 64
    blocks: int = 3
    squeezes: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        what = "amortizer setting"
        counted = ("steps", "observations", "draws", "couplings", "hidden", "features", "blocks")
        check_types(self, what)
        check_positive(self, what, *counted, "learning_rate", "clip")
        if self.squeezes < 0 or self.warmup < 0:
            raise ValueError(f"{what}s squeezes and warmup are at least 0, got {self.squeezes} and {self.warmup}")
        check_seed(self.seed, f"{what} seed")
        if not 0 <= self.average < 1:
            raise ValueError(f"amortizer setting average must lie in [0, 1), got {self.average!r}")


AMORTIZED_PRESETS: dict[str, AmortizedSettings] = {
    "fast": AmortizedSettings(steps=600, couplings=8, hidden=48, features=32, blocks=2),
    "thorough": AmortizedSettings(),
}


class Amortizer:
    r"""q(z | y) for any y of one task under one prior: posteriors without a fit.

    .. math:: \min_\phi E_y E_{q_\phi(z|y)}[\log q_\phi(z|y) - \log p_z(z) - \log p(y|f(z))]

    over simulated y: the variational objective, averaged (Whang, Lindgren and Dimakis, AVI). ``posterior(problem)`` is
    zero-shot; ``start(problem)`` is where ``VariationalSolver.solve(problem, start=...)`` goes on from: semi-amortised.
    """

    def __init__(self, conditional: Conditional, task: Task, prior_sha256: str, provenance: dict[str, Any]):
        self.conditional = conditional.requires_grad_(False).eval()
        self.task, self.prior_sha256, self.provenance = task, prior_sha256, provenance

    def refuses(self, problem: InverseProblem) -> str | None:
        """Why it cannot answer a problem, or None where it can: it knows one prior, one operator, one noise."""
        if self.prior_sha256 not in _names(problem):
            return "it was trained under another prior"
        operator = self.task.operator.on(problem.shape)
        for mine, theirs in ((operator, problem.operator), (self.task.likelihood, problem.likelihood)):
            if mine is theirs or _same_code(mine, theirs):
                continue
            if mine.spec is None or mine.spec != theirs.spec or not _same(mine.tensors(), theirs.tensors()):
                if repr(mine) == repr(theirs):
                    return f"it was trained for another {mine!r}, with other values"
                return f"it was trained for {mine!r}, this is {theirs!r}"
        return None

    def _context(self, problem: InverseProblem) -> Tensor:
        if (reason := self.refuses(problem)) is not None:
            raise ValueError(f"the amortizer does not fit the problem: {reason}")
        return context_of(problem)

    def posterior(self, problem: InverseProblem) -> FlowPosterior:
        """The posterior of every observation at once, with no fitting; its ``elbo`` is measured when asked for."""
        context = self._context(problem)
        conditional = copy.deepcopy(self.conditional).to(context.device, context.dtype)
        family = amortized(conditional, context)
        provenance = {"solver": "amortized", "steps": 0, "seconds": 0.0, "amortizer": self.provenance}
        return FlowPosterior(problem, family, {"step": [], "elbo": []}, provenance)

    def start(self, problem: InverseProblem, config: PreGeneratorConfig | None = None) -> Family:
        """A family that begins as ``posterior`` and may be fitted: its map, frozen, after a pre-generator per observation."""
        return semi_amortized(self.conditional, self._context(problem), config or PreGeneratorConfig())

    def card(self, prior: str, command: str) -> str:
        """Markdown: what it is, what it was trained for, the command, the limits."""
        weights = sum(p.numel() for p in self.conditional.parameters())
        spec, settings = self.task.spec, self.provenance["settings"]
        return f"""# An amortizer for {spec["task"]} under the prior {prior}

Zero-shot posteriors: q(z | y), trained over simulated observations of one task under one prior, made by flowinv {__version__}.
{_use(prior, spec)}

- **Task**: `{spec["task"]}`, options {spec["options"]}, {self.task.likelihood!r}, and no other.
- **Map**: {weights} weights, {settings["couplings"]} couplings of {settings["hidden"]} channels.
- **Made by**: `{command}`
- **Settings**: {self.provenance["steps"]} steps of {settings["observations"]} simulated observations with {settings["draws"]} draws
  each, Adam at {settings["learning_rate"]:g} with cosine decay, weights averaged (decay {settings["average"]:g}), seed
  {settings["seed"]}.
- **Cost**: {self.provenance["seconds"] / 60:.0f} minutes on {torch.get_num_threads()} thread(s) of a {platform.machine()} CPU,
  torch {torch.__version__}.

Its posteriors fit the prior's own images best; on others, ask for the ELBO, and fit on from it where that is poor.
"""

    def save(self, folder: str | Path, card: str | None = None, overwrite: bool = False) -> Path:
        """Write weights, task and provenance as config.json + model.safetensors (+ README.md)."""
        if self.task.spec.get("likelihood") is None:
            raise ValueError("an amortizer whose operator or likelihood is Python code cannot be saved")
        config = {
            "format": FORMAT,
            "conditional": asdict(self.conditional.config),
            "task": self.task.spec,
            "prior_sha256": self.prior_sha256,
            "provenance": self.provenance,
        }
        tensors = {f"conditional.{k}": v for k, v in self.conditional.state_dict().items()}
        tensors |= {f"task.{k}": v for k, v in self.task.tensors().items()}
        path = write_bundle(folder, config, tensors, overwrite)
        if card is not None:
            write_text(path / "README.md", card)
        return path

    @classmethod
    def load(cls, folder: str | Path) -> Amortizer:
        """Read what ``save`` wrote."""
        config, tensors = read_bundle(folder, FORMAT)
        with whole(folder, "amortizer"):
            weights = under("conditional", tensors)
            dtype = next(t.dtype for t in weights.values() if t.is_floating_point())
            conditional = Conditional(ConditionalConfig.from_dict(config["conditional"])).to(dtype)
            fit_or_refuse(weights, conditional.state_dict(), f"{folder}: the amortizer's weights")
            conditional.load_state_dict(weights)
            task = task_from_spec(config["task"], conditional.config.shape, under("task", tensors))
            provenance = config["provenance"]
            AmortizedSettings(**provenance["settings"])
            if missing := {"steps", "seconds"} - provenance.keys():
                raise KeyError(min(missing))
            return cls(conditional, task, config["prior_sha256"], provenance)


def _use(prior: str, spec: dict[str, Any]) -> str:
    """How a card says to use its amortizer: the whole command, or Python where no command makes this operator and noise."""
    noise, options = spec["likelihood"] or {}, {k: v for k, v in spec["options"].items() if v is not None}
    kind, distance = noise.get("kind"), noise.get("distance", {})
    if kind == "distance":
        flags = ["--likelihood", distance["name"], "--beta", noise["beta"]]
        flags += ["--weights", distance["weights"]] if "weights" in distance else []
    else:
        flags = [] if kind == "gaussian" else ["--likelihood", kind]
        flags += ["--sigma", next((noise[name] for name in ("sigma", "scale", "gain") if name in noise), None)]
    unsaid = spec["task"] not in TASKS or (spec["task"] == "inpaint-mask" and "mask" not in options)
    unsaid |= None in flags or any(isinstance(v, (list, dict)) for v in options.values())
    if unsaid or distance.get("size", 64) != 64 or noise.get("counts") or noise.get("background"):
        return "Use it from Python, `Amortizer.load(FOLDER).posterior(problem)`, where FOLDER is the one of this file."
    words = ["flowinv", "solve", prior, "--measurement", "Y", "--task", spec["task"]]
    words += [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
    words += [*map(str, flags), "--solver", "avi", "--amortizer", "FOLDER", "--out", "OUT"]
    return f"""Use it with

    {shlex.join(words)}

where FOLDER is the one of this file and Y a measurement (or `--image` with a picture to degrade, in place of
`--measurement`); with `--solver semi-amortized` to fit on from it."""


def shipped_amortizers() -> dict[str, Path]:
    """The amortizers that come with the package: name and folder."""
    here = Path(str(files("flowinv"))) / "amortizers"
    return {p.parent.name: p.parent for p in sorted(here.glob("*/config.json"))}


def find_amortizer(problem: InverseProblem) -> Amortizer | None:
    """The shipped amortizer that was trained for a problem's prior, operator and noise, if there is one."""
    names = _names(problem)
    for folder in shipped_amortizers().values():
        config, _ = read_bundle(folder, FORMAT)
        if config.get("prior_sha256") in names:
            found = Amortizer.load(folder)
            if found.refuses(problem) is None:
                return found
    return None


def _names(problem: InverseProblem) -> set[str]:
    """The prior's fingerprint as it is and in single precision: the same weights in float64 are the same density."""
    if problem.y.dtype == torch.float32:
        return {problem.prior_fingerprint}
    return {problem.prior_fingerprint, problem.given_prior.fingerprint(torch.float32)}


def _same_code(a: Any, b: Any) -> bool:
    """Whether two operators call the same function: nothing else tells code apart."""
    if not (isinstance(a, FunctionOperator) and isinstance(b, FunctionOperator)):
        return False
    return a.fn is b.fn and a.per_observation == b.per_observation and a.observed is b.observed


def _same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].shape == b[k].shape and bool((a[k] == b[k].to(a[k])).all()) for k in a)


class AmortizedTrainer:
    """Trains an amortizer for one prior and task; deterministic, resumable, quiet.

    Every random number is a function of (seed, step), so that a run that was interrupted ends as an unbroken one does.
    """

    def __init__(self, prior: Flow, task: Task, settings: AmortizedSettings | str = "thorough"):
        settings = preset_or_settings(settings, AMORTIZED_PRESETS)
        task = replace(task, operator=task.operator.on(prior.shape))
        observed = task.operator.observed
        if observed is not None and observed.dim() > len(prior.shape) and len(observed) > 1:
            raise ValueError(
                f"the operator has a mask for each of {len(observed)} observations; an amortizer is trained for one that "
                "all observations share"
            )
        self.settings, self.task = settings, task
        self.noise = settings.noise and can_sample(task.likelihood)  # a distance has no noise to draw
        self.prior = prior.frozen()
        self.inner = prior.frozen(bf16=True) if settings.bf16 else self.prior
        self.prior_sha256 = prior.fingerprint()
        like = next(t for t in self.prior.state_dict().values() if t.is_floating_point())
        self.dtype, self.device = like.dtype, like.device
        context = tuple(context_of(self._simulated(0)).shape[1:])
        config = ConditionalConfig(
            prior.shape,
            context,
            settings.couplings,
            settings.hidden,
            settings.features,
            settings.blocks,
            settings.squeezes if len(prior.shape) == 3 else 0,
            settings.seed,
        )
        self.conditional = Conditional(config).to(self.device, self.dtype)
        self.average = {k: v.detach().clone() for k, v in self.conditional.named_parameters()}
        self.optimizer = torch.optim.Adam(self.conditional.parameters(), lr=settings.learning_rate)
        self.step, self.seconds, self.total = 0, 0.0, settings.steps
        self.trace: list[float] = []

    def _simulated(self, step: int) -> InverseProblem:
        """The problem of new images' observations."""
        s = self.settings
        generator = keyed_generator(s.seed, 11, step)
        z = self.prior.noise((s.observations,), generator)
        with torch.no_grad():
            x = self.inner.decode(z)[0].to(self.dtype)
        y = self.task.observe(x.clamp(*self.prior.support), generator, noise=self.noise)
        problem = getattr(self, "_problem", None)
        if problem is None:
            problem = self._problem = InverseProblem(self.prior, self.task.operator, self.task.likelihood, y)
        else:  # the same problem at another y: what its construction checks was checked once
            problem.y = y if problem.observed is None else torch.where(problem.observed, y, y.new_zeros(()))
        return problem

    def learning_rate(self) -> float:
        """Linear warm-up, then half a cosine down to zero."""
        s = self.settings
        warm = min(1.0, (self.step + 1) / max(1, s.warmup))
        return s.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * self.step / s.steps))

    def loss(self) -> Tensor:
        """Minus the ELBO, averaged over the step's observations and draws, nats."""
        s = self.settings
        problem = self._simulated(self.step)
        family = amortized(self.conditional, context_of(problem))
        noise = torch.randn(
            s.draws,
            s.observations,
            *self.prior.shape,
            generator=keyed_generator(s.seed, 12, self.step),
            dtype=self.dtype,
        ).to(self.device)
        inner, log_q = family.inner(noise)
        x, _ = family.to_x(inner, self.inner)
        fit = problem.log_likelihood(x)
        require_gradient(fit, "log p(y|x)")
        return (log_q - family.log_prior(inner, self.prior) - fit).mean()

    def _one_step(self) -> float:
        loss = self.loss()
        self.optimizer.zero_grad()
        loss.backward(inputs=list(self.conditional.parameters()))  # and into nothing else: an operator may hold weights
        norm = nn.utils.clip_grad_norm_(self.conditional.parameters(), self.settings.clip)
        if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
            raise Diverged(self.step, "the loss" if not math.isfinite(loss.item()) else "the gradient", self.result())
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.step()
        decay = min(self.settings.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, parameter in self.conditional.named_parameters():
                self.average[name].lerp_(parameter, 1 - decay)
        self.step += 1
        return float(loss.item())

    def run(
        self,
        folder: Path | None = None,
        report: Callable[[SolverProgress], None] | None = None,
        every: float = 60.0,
        until: int | None = None,
    ) -> Amortizer:
        """Train to the end, or to step ``until``, saving to ``folder`` every ``every`` seconds and when interrupted."""
        last = self.total if until is None else min(until, self.total)

        def step() -> None:
            self.trace.append(-self._one_step())

        def show() -> None:
            if report is not None:
                report(SolverProgress(self.step, self.total, self.trace[-1], self.seconds, "ELBO"))

        keep_stepping(self, lambda: self.step < last, step, show, folder, every)
        return self.result()

    def result(self) -> Amortizer:
        """The amortizer with averaged weights."""
        conditional = copy.deepcopy(self.conditional)
        conditional.load_state_dict({**self.conditional.state_dict(), **self.average})
        provenance = {"settings": asdict(self.settings), "steps": self.step, "seconds": round(self.seconds, 1)}
        return Amortizer(conditional, self.task, self.prior_sha256, provenance)

    # -- checkpoints ---------------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        digest = hashlib.sha256(repr((self.task.operator, self.task.likelihood)).encode())
        hash_tensors(digest, self.task.tensors())
        task = {"spec": self.task.spec, "sha256": digest.hexdigest()}
        return {"settings": asdict(self.settings), "prior": self.prior_sha256, "task": task}

    def save(self, folder: Path) -> None:
        """Write a checkpoint, replacing the one before."""
        state = {"step": self.step, "seconds": self.seconds, "trace": self.trace}
        tensors = {f"average.{k}": v for k, v in self.average.items()}
        tensors |= pack("conditional", self.conditional, self.optimizer)
        write_bundle(folder, {"format": CHECKPOINT, **self._identity(), "state": state}, tensors, overwrite=True)

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint of the same prior, task and settings; anything else is refused."""
        config, tensors = read_bundle(folder, CHECKPOINT)
        if any(config.get(k) != v for k, v in self._identity().items()):
            raise ValueError(f"{folder} is a checkpoint of another prior, task or settings; use another folder")
        with whole(folder, "checkpoint"):
            average = under("average", tensors)
            fit_or_refuse(average, self.average, f"{folder}: the averaged weights")
            unpack("conditional", tensors, self.conditional, self.optimizer)
            self.average = {k: v.to(self.device) for k, v in average.items()}
            for name in ("step", "seconds", "trace"):
                setattr(self, name, config["state"][name])
