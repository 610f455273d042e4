"""Every solver by name: what it gives, what it costs, when to use it, and how it is run with its presets."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..point_estimate import PointEstimate
from ..posterior import Posterior
from ..problem import InverseProblem, require_problem
from ..tasks import Task
from .amortized import AMORTIZED_PRESETS, AmortizedSettings, AmortizedTrainer, Amortizer, find_amortizer
from .laplace import LARGEST, no_laplace
from .optimization import PointSolver
from .optimization_settings import OPTIMIZATION_PRESETS
from .progress import SolverProgress, has_checkpoint
from .sampling import SAMPLING_PRESETS, Sampler, SamplingSettings
from .variational import VariationalSolver
from .variational_settings import PRESETS

USE_AMORTIZER = ("avi", "semi-amortized")
LARGE = 1024  # elements of an image, above which a fit from the prior ends far below one from the mode
TRAINED = "trained"  # within a checkpoint: the amortizer that was trained on the way, to be kept
Report = Callable[[SolverProgress], None]
Result = Posterior | PointEstimate
Engine = Literal["variational", "amortized", "sampling", "optimization"]


@dataclass(frozen=True)
class SolverInfo:
    """A solver's entry: the engine, its presets (the first is the default), and a line each on use.

    ``uses_likelihood`` is False where a misfit of the solver's own takes the place of the problem's noise model.
    """

    engine: Engine
    presets: tuple[str, ...]
    gives: str
    costs: str
    when: str
    uses_likelihood: bool = True


_POSTERIOR, _CHAINS, _POINT = "posterior with density and ELBO", "draws of Markov chains", "one point, no uncertainty"

SOLVERS: dict[str, SolverInfo] = {
    "svi": SolverInfo(
        "variational",
        (
            "fast",
            "from-point",
            "from-laplace",
            "thorough",
            "gaussian",
            "paper-mnist",
            "paper-cifar10",
            "paper-celebahq",
        ),
        _POSTERIOR,
        "4,800 prior passes with gradient for each observation (large images: 500 and one per measured element more), "
        "then one per draw",
        "by default: the composed flow; draws near the truth, a density and a bound on the evidence",
    ),
    "avi": SolverInfo(
        "amortized",
        ("thorough", "fast"),
        _POSTERIOR,
        "one training for each prior, task and noise (mnist, inpaint-bottom, sigma .1 ships); then a pass per draw",
        "when many measurements of one task come: instant, somewhat less exact",
    ),
    "semi-amortized": SolverInfo(
        "variational",
        ("semi-amortized",),
        _POSTERIOR,
        "as avi, and 50 steps of fitting for each observation",
        "when an amortizer is at hand and its answer is not sharp enough",
    ),
    "ambient": SolverInfo(
        "variational",
        ("ambient", "paper-mnist", "paper-cifar10", "paper-celebahq"),
        _POSTERIOR,
        "4,800 passes as of svi, with the prior's density and its gradient in every one: about twice",
        "as a baseline: a flow over pixels has to learn again what the prior knows",
    ),
    "lmc": SolverInfo(
        "sampling",
        ("lmc", "paper-lmc-cifar10", "paper-lmc"),
        _CHAINS,
        "a chain of 1,000 prior passes with gradient for every draw",
        "as a baseline: Langevin without correction, biased by its step size",
    ),
    "mala": SolverInfo(
        "sampling",
        ("mala",),
        _CHAINS,
        "thousands of prior passes with gradient for each chain; R-hat and ESS tell whether enough",
        "for exact draws where the posterior is easy; hmc mixes faster",
    ),
    "hmc": SolverInfo(
        "sampling",
        ("hmc",),
        _CHAINS,
        "4,000 prior passes with gradient for each chain: warm-up and steps, times leapfrogs",
        "for exact draws in the latent, checked by R-hat; slow on sharp posteriors",
    ),
    "hmc-noise": SolverInfo(
        "sampling",
        ("hmc-noise",),
        _CHAINS,
        "an svi fit, then hmc over its noise, where the posterior is rounder",
        "for exact draws at the least cost: corrects what svi got wrong",
    ),
    "pl-mcmc": SolverInfo(
        "sampling",
        ("pl-mcmc", "paper-pl-mcmc", "paper-pl-mcmc-long"),
        _CHAINS,
        "two prior passes per step, without gradients",
        "for masks alone, observed without noise; mixes slowly beyond some dozen pixels",
        uses_likelihood=False,
    ),
    "csgm": SolverInfo(
        "optimization",
        (
            "csgm-fast",
            *(f"solverip-csgm-{task}-fast" for task in ("deblur", "denoise", "inpaint", "colorize")),
            *("csgm", "solverip-csgm", "solverip-csgm-denoise", "solverip-csgm-colorize"),
        ),
        _POINT,
        "three restarts of 333 prior passes with gradient; those named after a task one of 500",
        "as a baseline: the latent of least misfit and norm (Bora et al.)",
        uses_likelihood=False,
    ),
    "ivom": SolverInfo(
        "optimization",
        ("ivom-fast", "ivom"),
        _POINT,
        "1,000 prior passes with gradient",
        "as a baseline: the least misfit over the latent, no penalty (Asim et al.; IvOM)",
        uses_likelihood=False,
    ),
    "solverip": SolverInfo(
        "optimization",
        (
            *(f"solverip-{task}-fast" for task in ("deblur", "denoise", "inpaint", "colorize")),
            *(f"solverip-{task}" for task in ("deblur", "denoise", "inpaint", "colorize")),
        ),
        _POINT,
        "500 prior passes with gradient",
        "for one sharp image: absolute misfit, the image's own log-likelihood as penalty",
        uses_likelihood=False,
    ),
    "glowip": SolverInfo(
        "optimization",
        (
            *("glowip-fast", "glowip-denoise-fast", "glowip-inpaint-fast", "glowip-colorize-fast"),
            *("glowip", "glowip-denoise", "glowip-lbfgs", "glowip-lbfgs-cs"),
        ),
        _POINT,
        "500 prior passes with gradient",
        "as a baseline: the least misfit from z = 0 (Asim et al., GlowIP)",
        uses_likelihood=False,
    ),
    "map": SolverInfo(
        "optimization",
        ("map-fast", "map"),
        _POINT,
        "500 prior passes with gradient",
        "as a baseline: the noise model and a part of the image's log-likelihood (Helminger et al.)",
    ),
}

# what tells the solvers of one engine apart: settings have it in common with one of the solver's presets
_DEFINING: dict[Engine, tuple[str, ...]] = {
    "sampling": ("kernel", "space"),
    "variational": ("space",),
    "optimization": ("misfit", "penalty"),
}

_OF_TASKS = {
    "csgm": {
        "denoise": "solverip-csgm-denoise-fast",
        "deblur": "solverip-csgm-deblur-fast",
        "inpaint-box": "solverip-csgm-inpaint-fast",
        "colorize": "solverip-csgm-colorize-fast",
    },
    "solverip": {task: f"solverip-{task}-fast" for task in ("denoise", "deblur", "inpaint", "colorize")},
    "glowip": {
        "denoise": "glowip-denoise-fast",
        "inpaint-box": "glowip-inpaint-fast",
        "colorize": "glowip-colorize-fast",
    },
}


def solver_info(name: str) -> SolverInfo:
    """The entry of a solver; an unknown name is refused with the known ones."""
    if name not in SOLVERS:
        raise ValueError(f"unknown solver {name!r}: expected one of {', '.join(SOLVERS)}")
    return SOLVERS[name]


def preset_for(name: str, task: str | None = None, problem: InverseProblem | None = None) -> str:
    """The preset a solver is run with unless another is named: the one for a task where it has one, else its first.

    For a ``problem`` the task is its operator's, and svi of images of more than 1,024 elements starts at the posterior's Laplace
    approximation, or at its mode where that cannot be had: from the prior its steps do not suffice.
    """
    if problem is not None:
        task = task or (problem.operator.spec or {}).get("task")
        if name == "svi" and math.prod(problem.shape) > LARGE:
            return "from-laplace" if _has_laplace(problem) else "from-point"
    fitting = (
        preset for start, preset in _OF_TASKS.get(name, {}).items() if task is not None and task.startswith(start)
    )
    return next(fitting, solver_info(name).presets[0])


def _has_laplace(problem: InverseProblem) -> bool:
    """Whether the Laplace approximation takes a matrix and a number of passes that can be afforded."""
    return problem.y[0].numel() <= LARGEST and no_laplace(problem) is None


def settings_for(name: str, preset: str | None = None, **changes: Any) -> Any:
    """A preset's settings with changes (steps, seed, bf16, chains ...); what a solver has no setting for is refused.

    Chains of another number of ``steps`` have their warm-up changed in proportion, shorter ones their thinning too, unless
    these are given.
    """
    info = solver_info(name)
    preset = preset or info.presets[0]
    if preset not in info.presets:
        raise ValueError(f"{name} has no preset {preset!r}: expected one of {', '.join(info.presets)}")
    settings = _preset(name, preset)
    if unknown := [key for key in changes if not hasattr(settings, key)]:
        raise ValueError(f"{name} has no setting {unknown[0]!r}")
    if info.engine == "sampling" and "steps" in changes:
        changes = {**_in_proportion(settings, changes["steps"]), **changes}
    return replace(settings, **changes)


def _preset(name: str, preset: str) -> Any:
    engine = solver_info(name).engine
    if engine == "amortized":
        return AMORTIZED_PRESETS[preset]
    if engine == "sampling":
        return SAMPLING_PRESETS[preset]
    if engine == "optimization":
        return OPTIMIZATION_PRESETS[preset]
    # the paper's runs in the ambient space have its SVI's settings
    return replace(PRESETS[preset], space="ambient") if name == "ambient" else PRESETS[preset]


def _in_proportion(settings: SamplingSettings, steps: Any) -> dict[str, int]:
    """Warm-up and thinning of a chain of so many steps."""
    if type(steps) is not int or steps < 1:
        return {}  # refused where the settings are made
    share = steps / settings.steps
    return {"warmup": round(share * settings.warmup), "thin": max(1, min(settings.thin, round(share * settings.thin)))}


def _checked(name: str, settings: Any) -> Any:
    """Settings of the solver of that name, given or by a preset's name; another solver's are refused."""
    if isinstance(settings, str):
        return settings_for(name, settings)
    info = solver_info(name)
    own = [_preset(name, preset) for preset in info.presets]
    if type(settings) is not type(own[0]):
        raise TypeError(f"{name} takes {type(own[0]).__name__}, or a preset's name, got {type(settings).__name__}")
    for field in _DEFINING.get(info.engine, ()):
        if getattr(settings, field) not in {getattr(preset, field) for preset in own}:
            raise ValueError(
                f"these settings are not {name}'s: {field} is {getattr(settings, field)!r}; engines take any settings"
            )
    return settings


def solve(
    name: str,
    problem: InverseProblem,
    settings: Any = None,
    *,
    amortizer: Amortizer | None = None,
    checkpoint: str | Path | None = None,
    report: Report | None = None,
) -> Result:
    """Solve a problem with the solver of that name: a posterior, or a point estimate.

    ``settings`` are its own, or the name of one of its presets (default: what ``preset_for`` gives). ``avi`` and
    ``semi-amortized`` take ``amortizer``, or the shipped one that fits, or train one; avi's settings are those of that
    training, and refused where there is none. ``hmc-noise`` fits svi first.
    ``checkpoint`` is a folder, in which a run that was interrupted goes on; there is one sub-folder for each part of it.
    """
    info = solver_info(name)
    require_problem(problem)
    settings = _checked(name, settings if settings is not None else preset_for(name, problem=problem))
    if amortizer is not None and name not in USE_AMORTIZER:
        raise ValueError(f"an amortizer is for {' and '.join(USE_AMORTIZER)}, not for {name}")
    folder = Path(checkpoint) if checkpoint is not None else None

    def part(kind: str) -> Path | None:
        return None if folder is None else folder / kind

    if info.engine == "optimization":
        return PointSolver(settings).solve(problem, part("point"), report)
    if info.engine == "sampling":
        through = None
        if settings.needs_flow:
            first = settings_for("svi", preset_for("svi", problem=problem), seed=settings.seed)
            through = VariationalSolver(first).solve(problem, part("svi"), report)
        return Sampler(settings).solve(problem, through, part("chains"), report)
    if name in USE_AMORTIZER:
        found = amortizer if amortizer is not None else find_amortizer(problem)
        if name == "avi" and found is not None and settings != settings_for(name, seed=settings.seed):
            raise ValueError("avi's settings are for training, and an amortizer that fits needs none: leave them out")
        found = found or _trained(problem, training_for(name, settings), part("amortizer"), report)
        if name == "avi":
            return found.posterior(problem)
        return VariationalSolver(settings).solve(
            problem, part("fit"), report, start=found.start(problem, settings.pregenerator)
        )
    return VariationalSolver(settings).solve(problem, part("fit"), report)


def training_for(name: str, settings: Any) -> AmortizedSettings:
    """What avi or semi-amortized, run with these settings, trains an amortizer with where none fits."""
    return settings if name == "avi" else settings_for("avi", "fast", seed=settings.seed)


def _trained(
    problem: InverseProblem, settings: AmortizedSettings, folder: Path | None, report: Report | None
) -> Amortizer:
    """An amortizer trained for this problem's prior, operator and noise."""
    operator, likelihood = problem.operator, problem.likelihood
    task = Task(operator, likelihood, {**(operator.spec or {}), "likelihood": likelihood.spec})
    trainer = AmortizedTrainer(problem.given_prior, task, settings)
    if folder is not None and has_checkpoint(folder):
        trainer.load(folder)
    trained = trainer.run(folder, report)
    if folder is not None and operator.spec is not None and likelihood.spec is not None:
        trained.save(folder.with_name(TRAINED), trained.card("PRIOR", "flowinv solve"), overwrite=True)
    return trained
