"""Who restores: point solvers with the weights that are tried, BM3D, and the posterior mean.

Every point solver has its own start. The paper runs 1,500 steps of Adam at 5e-3 (MAP: 1.5e-3), pace "paper"; pace "third" runs a
third of them at three times the rate, with whose weights it is run. Neither converges under the shipped prior: pace
"converging", the default, takes 500 steps at 5e-2, "long" and "longer" 1,500 and 4,500 whose rate falls from there to 0, with
the weights tuned for "converging". The weight (alpha of the likelihood, gamma of ||z||^2) is chosen for each task by the PSNR of
validation faces; for the posterior mean it is sigma. Its composed flow starts at a Laplace approximation around a point
estimate. The last five are the paper's claims: the same start, misfit L1 or L2, with and without each penalty.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from benchmarks.restoration.cases import FACES, Case
from flowinv.solvers import OPTIMIZATION_PRESETS, PRESETS, OptimizationSettings, VariationalSettings

MEAN_OF = 256  # draws: of 32, what is left of their spread would cost a quarter of a decibel
_FAST = OPTIMIZATION_PRESETS["solverip-deblur-fast"]
PACES: dict[str, Callable[[OptimizationSettings], OptimizationSettings]] = {
    "converging": lambda paper: replace(paper, steps=_FAST.steps, learning_rate=_FAST.learning_rate),
    "third": lambda paper: replace(paper, steps=paper.steps // 3, learning_rate=3 * paper.learning_rate),
    "paper": lambda paper: paper,
    "long": lambda paper: replace(paper, optimizer="adam-cosine", learning_rate=_FAST.learning_rate),
    "longer": lambda paper: replace(PACES["long"](paper), steps=3 * paper.steps),
}
PACE = "converging"
TUNED_AT = {"long": PACE, "longer": PACE, "paper": "third"}  # whose weights the longer runs take


@dataclass(frozen=True)
class Method:
    """Name in tables, the weights that are tried on a task (none: there is no weight), and settings with a weight.

    ``settings`` is None for what is no latent optimisation; ``tasks`` None means all.
    """

    label: str
    weights: Callable[[Case], tuple[float, ...]]
    settings: Callable[[float], OptimizationSettings] | None = None
    tasks: tuple[str, ...] | None = None
    published: bool = True


def _point(penalty: str, misfit: str = "l1", init_scale: float = 0.1) -> Callable[[float], OptimizationSettings]:
    base = OPTIMIZATION_PRESETS["solverip-denoise"]

    def settings(weight: float) -> OptimizationSettings:
        kind, times = (penalty, weight) if weight and penalty != "none" else ("none", 0.0)
        return replace(base, misfit=misfit, penalty=kind, weight=times, init_scale=init_scale)

    return settings


def _map(weight: float) -> OptimizationSettings:
    return replace(OPTIMIZATION_PRESETS["map"], weight=weight)


_ALPHA = {
    "denoise": (0.0125, 0.025, 0.05, 0.1),
    "deblur": (0.0003, 0.001, 0.003, 0.01),
    "inpaint": (0.0003, 0.001, 0.003, 0.01),
    "colorize": (0.001, 0.0033, 0.01, 0.03),
}
_MAP = (0.125, 0.25, 0.5, 1.0)
_ALPHA_L2 = {"denoise": tuple(0.02 * weight for weight in _MAP)}  # else 2 sigma^2 of sigma .003 to .05
_GAMMA_L1 = {
    "denoise": (0.0125, 0.025, 0.05, 0.1),
    "deblur": (0.00005, 0.00015, 0.0005, 0.0015),
    "inpaint": (0.0015, 0.005, 0.015, 0.05),
    "colorize": (0.005, 0.015, 0.05, 0.15),
}
_GAMMA = {
    "denoise": (0.000625, 0.0025, 0.01, 0.025),
    "denoise-1x1": (0.0625, 0.15, 0.4, 1.0),
    "colorize": (0.0003, 0.01 / 12, 0.0025, 0.01),
}


def _plain(case: Case) -> str:
    return case.name.removesuffix("-1x1")


def _alpha(case: Case) -> tuple[float, ...]:
    return _ALPHA[_plain(case)]


def _alpha_l2(case: Case) -> tuple[float, ...]:
    return _ALPHA_L2.get(_plain(case), (2e-5, 2e-4, 8e-4, 5e-3))


def _gamma_l1(case: Case) -> tuple[float, ...]:
    return _GAMMA_L1[_plain(case)]


def _gamma_or_none(case: Case) -> tuple[float, ...]:
    """None at all first; under noise, where that loses, the larger ones."""
    return (0.0, *(_gamma(case)[1:] if case.noise else _gamma(case)[:3]))


def _gamma(case: Case) -> tuple[float, ...]:
    return _GAMMA.get(case.name, (0.0003, 0.0025, 0.01, 0.03))


def _none(case: Case) -> tuple[float, ...]:
    return (0.0,)


METHODS: dict[str, Method] = {
    "csgm": Method("CSGM", _gamma, _point("latent-norm", "l2", 1.0)),
    "glowip": Method("GlowIP", _gamma_or_none, _point("latent-norm", "l2", 0.0)),
    "map": Method("MAP (Helminger)", lambda c: _MAP, _map, ("denoise", "denoise-1x1")),
    "bm3d": Method("BM3D", _none, None, ("denoise",)),
    "solverip": Method("likelihood-regularised, L1", _alpha, _point("likelihood-u")),
    "mean": Method(
        f"posterior mean of {MEAN_OF}", lambda c: (0.1,) if c.noise else (0.01, 0.02, 0.05), None, published=False
    ),
    "l1-none": Method("L1, no penalty", _none, _point("none"), published=False),
    "l1-norm": Method("L1, squared norm of z", _gamma_l1, _point("latent-norm"), published=False),
    "l2-none": Method("L2, no penalty", _none, _point("none", "l2"), published=False),
    "l2-norm": Method("L2, squared norm of z", _gamma, _point("latent-norm", "l2"), published=False),
    "l2-full": Method("likelihood-regularised, L2", _alpha_l2, _point("likelihood-u", "l2"), published=False),
}


PICTURED = ("csgm", "glowip", "map", "bm3d", "solverip", "mean")  # in the figures


def method_named(name: str) -> Method:
    """A method; an unknown name is refused with the known ones."""
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}: expected one of {', '.join(METHODS)}")
    return METHODS[name]


def mean_settings() -> VariationalSettings:
    """Of the composed flow whose draws are averaged. It starts around the estimate of ``mean_start``."""
    kept = VariationalSettings.start_steps  # of no effect: the start is given
    return replace(PRESETS["from-laplace"], start_steps=kept, draws=8, cooldown=0.7, final_draws=64, bf16=True)


def mean_start(case: Case) -> OptimizationSettings:
    """The estimate that the composed flow starts at: with noise the mode of p(z | y), else that of the L1 solver.

    Where y is exact, the mode under the sigma that only smooths is hard to come to; its weight is that of the library's preset.
    """
    name = "csgm" if case.noise else "solverip"
    weight = 0.01 if case.noise else OPTIMIZATION_PRESETS[f"solverip-{case.name}-fast"].weight
    found = point_settings(name, case, weight)
    assert found is not None
    return found


def applies(method: Method, case: Case) -> bool:
    if case.prior != FACES.prior and not (method.published and method.settings):
        return False
    return method.tasks is None or case.name in method.tasks


def point_settings(
    name: str, case: Case, weight: float, pace: str = PACE, steps: int | None = None
) -> OptimizationSettings | None:
    """What a method is run with on a case; None for what is no latent optimisation.

    The networks of the shipped ``faces`` prior run in bfloat16 while stepping; those of the 1x1-coupling flow are too small to
    gain by it.
    """
    if pace not in PACES:
        raise ValueError(f"unknown pace {pace!r}: expected one of {', '.join(PACES)}")
    make = METHODS[name].settings
    if make is None:
        return None
    settings = replace(PACES[pace](make(weight)), bf16=case.prior == FACES.prior)
    return settings if steps is None else replace(settings, steps=steps)
