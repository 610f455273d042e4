"""The solvers that are compared, their budgets and settings, and how each is asked for draws.

Budget "equal": at most 1,000 prior passes for every chain or point, and 5,000 draw-steps for every fit, its draws aside; rates as
tuned on validation images (``tune.py``, ``tuned.json``). Budget "paper": lengths, rates, draws per step and
architectures of the paper's appendix C, nothing tuned; what the paper has no figures for (mala, hmc) gets chains as long as its
LMC. Networks run in bfloat16 in methods that are not exact anyway, unless ``precision`` is float32.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.composing.cases import Case
from flowinv.solvers import OPTIMIZATION_PRESETS, PRESETS, OptimizationSettings, SamplingSettings, VariationalSettings

Settings = VariationalSettings | SamplingSettings | OptimizationSettings
TUNED = Path(__file__).with_name("tuned.json")
PASSES = 1000  # of the prior, for each chain or point
FIT_PASSES = 5000  # for each fit
ALIASES = {"svi-mmse": "svi", "asim": "ivom"}


@dataclass(frozen=True)
class Method:
    """Name in tables, whether the result is exact in the limit, the settings of both budgets, and images to a batch.

    A chain or a point costs a third as much among sixty as among six; fits gain little, and amortized ones are timed alone.
    ``draws`` of each image, None for as many as the case has; ``criterion`` is the score whose least value settings are tuned to.
    """

    label: str
    exact: bool
    equal: Callable[[Case], Settings | None]
    paper: Callable[[Case], Settings | None]
    together: int = 10
    draws: int | None = None
    criterion: str = "energy_score"


def _svi(case: Case) -> VariationalSettings:
    return replace(PRESETS["fast"], bf16=True)


def _paper_svi(case: Case) -> VariationalSettings:
    return replace(PRESETS[case.paper], steps=case.paper_steps, bf16=True)


def _ambient(case: Case) -> VariationalSettings:
    return PRESETS["ambient"]


def _paper_ambient(case: Case) -> VariationalSettings:
    return replace(_paper_svi(case), space="ambient", bf16=False)


def _semi(case: Case) -> VariationalSettings:
    return replace(PRESETS["semi-amortized"], bf16=True)


def _none(case: Case) -> None:
    return None


def _chain(kernel: Any, leapfrogs: int = 1, **settings: Any) -> SamplingSettings:
    """A chain of at most PASSES prior passes: half warm-up, half kept, some 50 states of it, the last of them the draw."""
    passes = {"lmc": 1, "mala": 1, "hmc": leapfrogs, "pl-mcmc": 2}[kernel]
    again = 50 if settings.get("bf16") else 0  # kept states are decoded once more, in full precision
    steps = (PASSES - again) // passes - 1
    kept = (steps + 1) // 2
    more: dict[str, Any] = {"leapfrogs": leapfrogs} if kernel == "hmc" else {}
    return SamplingSettings(kernel, kept, steps - kept, thin=max(1, -(-kept // 50)), **more, **settings)


def _lmc(case: Case) -> SamplingSettings:
    return _chain("lmc", adapt=False, bf16=True, step_size=5e-4)


def _paper_chain(kernel: Any, case: Case, passes: int = 1, **settings: Any) -> SamplingSettings:
    steps = case.paper_chain // passes
    return SamplingSettings(kernel, steps - steps // 2, steps // 2, thin=max(1, steps // 100), **settings)


def _paper_lmc(case: Case) -> SamplingSettings:
    return SamplingSettings("lmc", case.paper_chain, 0, step_size=5e-4, adapt=False, keep="last", bf16=True)


def _paper_plmcmc(case: Case) -> SamplingSettings:
    return SamplingSettings("pl-mcmc", 2000, 0, step_size=0.05, sigma_a=1e-3, adapt=False, keep="last")


def _csgm(case: Case) -> OptimizationSettings:
    base = OPTIMIZATION_PRESETS["csgm-fast"]
    return replace(base, steps=PASSES // base.restarts - 1, bf16=True)


def _ivom(case: Case) -> OptimizationSettings:
    # The paper's point has one start; draws need starts of their own.
    return replace(OPTIMIZATION_PRESETS["ivom-fast"], init_scale=1.0, steps=PASSES - 1, bf16=True)


def _point(label: str, equal: Callable[[Case], OptimizationSettings], preset: str) -> Method:
    """The estimate that the baseline was made for: a point with settings of least error, not a draw with those of best spread."""
    return Method(
        label, False, equal, lambda c: OPTIMIZATION_PRESETS[preset], together=10, draws=1, criterion="squared_error"
    )


METHODS: dict[str, Method] = {
    "svi": Method("SVI", False, _svi, _paper_svi, together=4),
    "avi": Method("AVI, zero-shot", False, _none, _none, together=1),
    "semi-amortized": Method("semi-amortized SVI, 50 steps", False, _semi, _semi, together=1),
    "ambient": Method("Ambient VI", False, _ambient, _paper_ambient, together=4),
    "lmc": Method("LMC", False, _lmc, _paper_lmc),
    "mala": Method(
        "MALA", True, lambda c: _chain("mala", step_size=1e-3), lambda c: _paper_chain("mala", c, step_size=1e-3)
    ),
    "hmc": Method("HMC", True, lambda c: _chain("hmc", 10), lambda c: _paper_chain("hmc", c, passes=10, leapfrogs=10)),
    "hmc-noise": Method(
        "HMC through SVI",
        True,
        lambda c: _chain("hmc", 8, space="noise", step_size=0.1),
        lambda c: _paper_chain("hmc", c, passes=8, leapfrogs=8, space="noise", step_size=0.1),
    ),
    "pl-mcmc": Method("PL-MCMC", True, lambda c: _chain("pl-mcmc", sigma_a=0.05), _paper_plmcmc),
    "csgm": Method("CSGM", False, _csgm, lambda c: OPTIMIZATION_PRESETS["csgm"]),
    "ivom": Method("IvOM / Asim", False, _ivom, lambda c: replace(OPTIMIZATION_PRESETS["ivom"], init_scale=1.0)),
    "csgm-point": _point("CSGM, one point", _csgm, "csgm"),
    "ivom-point": _point("IvOM / Asim, one point", _ivom, "ivom"),
}
MASKS_ONLY = ("pl-mcmc",)
AMORTIZED = ("avi", "semi-amortized")


def method_named(name: str) -> str:
    """A method's name, aliases resolved; an unknown one is refused with the known ones."""
    found = ALIASES.get(name, name)
    if found not in METHODS:
        raise ValueError(f"unknown method {name!r}: expected one of {', '.join([*METHODS, *ALIASES])}")
    return found


def asked_of(method: str, case: Case) -> Case:
    """The case with the number of draws that a method gives."""
    draws = METHODS[method].draws
    return case if draws is None else replace(case, draws=draws)


def applies(method: str, case: Case) -> bool:
    """Whether a method can be run on a case at all."""
    return method not in MASKS_ONLY or case.task.startswith("inpaint")


def tuned(case: Case, method: str, path: Path = TUNED) -> dict[str, Any]:
    """What tuning chose for a case, or for the one that it is tuned as; empty where nothing was tuned."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for name in (case.name, case.tuned_as):
        if method in known.get(name, {}):
            return dict(known[name][method]["settings"])
    return {}


def with_changes(settings: Settings, changes: dict[str, Any]) -> Settings:
    """Settings with some replaced; a chain of another number of leapfrogs keeps its budget."""
    if isinstance(settings, SamplingSettings) and changes.get("leapfrogs", settings.leapfrogs) != settings.leapfrogs:
        kept = {k: getattr(settings, k) for k in ("step_size", "space")}
        settings = _chain(settings.kernel, changes["leapfrogs"], **kept)
    return replace(settings, **changes)


def _within_budget(settings: Settings, case: Case) -> Settings:
    """A fit from a Laplace start pays for it with steps."""
    if not isinstance(settings, VariationalSettings) or settings.start != "laplace":
        return settings
    left = FIT_PASSES - settings.start_steps - case.measured
    return replace(settings, steps=min(settings.steps, left // settings.draws))


def settings_of(
    method: str,
    case: Case,
    budget: str = "equal",
    precision: str = "bfloat16",
    shrink: int = 1,
    changes: dict[str, Any] | None = None,
) -> Settings | None:
    """What a method is run with, None for zero-shot. ``changes`` takes the place of what tuning chose (budget "equal")."""
    if budget not in ("equal", "paper"):
        raise ValueError(f"budget is equal or paper, got {budget!r}")
    if precision not in ("bfloat16", "float32"):
        raise ValueError(f"precision is bfloat16 or float32, got {precision!r}")
    settings = getattr(METHODS[method], budget)(case)
    if settings is None:
        return None
    if budget == "equal":
        settings = with_changes(settings, tuned(case, method) if changes is None else changes)
        settings = _within_budget(settings, case)
    if precision == "float32":
        settings = replace(settings, bf16=False)
    return _shrunk(settings, shrink) if shrink > 1 else settings


def _shrunk(settings: Settings, by: int) -> Settings:
    """A run so many times shorter, to try the harness: its figures mean nothing."""
    steps = max(4, settings.steps // by)
    if isinstance(settings, SamplingSettings):
        return replace(settings, steps=steps, warmup=settings.warmup // by, thin=min(settings.thin, steps // 4))
    return replace(settings, steps=steps)


def describe(settings: Settings | None) -> dict[str, Any]:
    """JSON-ready."""
    return {} if settings is None else json.loads(json.dumps(asdict(settings)))
