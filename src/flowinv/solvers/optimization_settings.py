"""What is minimised over the latent, and how: the settings of latent optimisation, and those of the papers by name."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from ..settings import check_positive, check_seed, check_types

MISFITS = {"l2": "||A(x) - y||^2", "l1": "||A(x) - y||_1", "likelihood": "-log p(y | x)"}
PENALTIES = {
    "none": "",
    "latent-norm": "||z||^2",
    "likelihood": "[-log p(x)]",
    "likelihood-u": "[-log p(u)]",
}


@dataclass(frozen=True)
class OptimizationSettings:
    r"""What is minimised over z, x = f(z), for each observation by itself, and how.

    ``misfit``: "l2" (sum over observed elements of (A(x) - y)^2), "l1" (of \|A(x) - y\|) or "likelihood" (-log p(y | x),
    nats). ``penalty``, times ``weight``: "none"; "latent-norm", ||z||^2; "likelihood", -log p(x) = -log N(z; 0, I) +
    log|det df/dz|; "likelihood-u", the same for u, the image before the prior's last elementwise transform. Take that one
    where the transform dequantises (``Gaussianize``): there p(x) jumps between grey levels, which no gradient sees.

    ``restarts`` starts ``init_scale`` * N(0, I), all in one batch; the one with the lowest objective is kept, at its last
    iterate or its best (``keep``; of lbfgs always the best, its last being a trial). ``optimizer`` "adam" (``betas``),
    "adam-cosine" (the same, its rate falling to 0 over ``steps``) or "lbfgs" (``history`` pairs; a step that raises the
    objective, or leaves the finite numbers, is halved), ``steps`` steps of one prior pass each. With ``early_stop`` an
    observation's run ends once the objective's mean over ``window`` steps falls from one window to the next by less than
    ``tolerance`` times its whole fall since the first; it stays where it is, and time is saved once all of the batch have
    ended. ``bf16`` runs the prior's networks in bfloat16 while stepping, never for what is reported or for the choice among
    restarts.
    The start of observation b, restart r depends on (``seed``, ``first`` + b, r) alone: set ``first`` where observations of
    a larger set are solved apart. They then agree with the whole to the rounding of the prior's matrix products.
    """

    misfit: str = "l2"
    penalty: str = "none"
    weight: float = 0.0
    init_scale: float = 1.0
    restarts: int = 1
    optimizer: str = "adam"
    learning_rate: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)
    history: int = 10
    steps: int = 1000
    keep: str = "last"
    early_stop: bool = False
    window: int = 50
    tolerance: float = 1e-3
    bf16: bool = False
    first: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.betas, list):  # as JSON has it
            object.__setattr__(self, "betas", tuple(self.betas))
        check_types(self, "solver setting")
        choices = {
            "misfit": MISFITS,
            "penalty": PENALTIES,
            "optimizer": ("adam", "adam-cosine", "lbfgs"),
            "keep": ("last", "best"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"solver setting {name} must be one of {', '.join(known)}; got {getattr(self, name)!r}"
                )
        counted = ("restarts", "history", "steps", "window")
        check_positive(self, "solver setting", *counted, "learning_rate", "tolerance")
        check_seed(self.seed, "solver setting seed")
        for name in ("weight", "init_scale", "first"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"solver setting {name} must be at least 0, got {getattr(self, name)!r}")
        if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas):
            raise ValueError(f"solver setting betas must be two numbers in [0, 1), got {self.betas!r}")
        if (self.penalty == "none") != (self.weight == 0):
            raise ValueError(
                f"penalty {self.penalty!r} does not go with weight {self.weight:g}: without a penalty the weight is 0, with one it "
                "is positive; where a preset has none, take another"
            )
        if self.init_scale == 0 and self.restarts > 1:
            raise ValueError(f"{self.restarts} restarts from z = 0 are the same run: init_scale 0 goes with restarts 1")

    def __str__(self) -> str:
        """The objective, as a formula."""
        return MISFITS[self.misfit] + (f" + {self.weight:g} {PENALTIES[self.penalty]}" if self.weight else "")


def _solverip(**settings: Any) -> OptimizationSettings:
    return OptimizationSettings(learning_rate=5e-3, steps=1500, **settings)


def _faster(settings: OptimizationSettings, weight: float) -> OptimizationSettings:
    """A third of the steps, at a rate at which they converge on faces and come as near as the paper's on digits."""
    return replace(settings, steps=500, learning_rate=0.05, weight=weight)


def _regularised(alpha: float) -> OptimizationSettings:
    return _solverip(misfit="l1", penalty="likelihood-u", weight=alpha, init_scale=0.1)


# Units are [0, 1] pixels, one grey channel. "choice" marks what the papers leave open.
_ASIM = OptimizationSettings(init_scale=0.0, learning_rate=5e-4, steps=4000)

OPTIMIZATION_PRESETS: dict[str, OptimizationSettings] = {
    # Bora et al. as run by Whang, Lindgren and Dimakis, appendix C.4. Choice: Adam, as many steps as theirs, last iterate.
    "csgm": OptimizationSettings(
        penalty="latent-norm", weight=0.1, init_scale=0.1, restarts=3, learning_rate=0.02, steps=4000
    ),
    # Asim et al., who are also labelled IvOM there. Choice: z0 = 0, which Asim et al. found best without a penalty.
    "asim": _ASIM,
    "ivom": _ASIM,
    # The same on a CPU, both within 1000 prior passes for each observation (choice: a rate at which z can go as far).
    # Choice: CSGM from N(0, I). Through a ``Gaussianize`` transform, that of the shipped digits, z = 0 is a black image whose
    # gradient is next to nothing: from .1 N(0, I) the penalty wins, and the run ends there (MNIST completion: misfit 38, not .4).
    "csgm-fast": OptimizationSettings(
        penalty="latent-norm", weight=0.1, init_scale=1.0, restarts=3, learning_rate=0.02, steps=333
    ),
    "ivom-fast": OptimizationSettings(init_scale=0.0, learning_rate=2e-3, steps=1000),
    # Generative Flows as a General Purpose Solution for Inverse Problems, eq. 7, and its baselines. Their alpha is for
    # pixels in [-1, 1]: halved here, and by 6 where their grey comes three times. Their flow has no transform, so that x is u.
    "solverip-denoise": _regularised(0.025),
    "solverip-deblur": _regularised(0.01),
    "solverip-inpaint": _regularised(0.001),
    "solverip-colorize": _regularised(0.02 / 6),
    "solverip-csgm-denoise": _solverip(penalty="latent-norm", weight=0.1 / 4),
    "solverip-csgm": _solverip(penalty="latent-norm", weight=0.01 / 4),
    "solverip-csgm-colorize": _solverip(penalty="latent-norm", weight=0.01 / 12),
    "glowip-denoise": _solverip(penalty="latent-norm", weight=0.1 / 4, init_scale=0.0),
    "glowip": _solverip(init_scale=0.0),
    # Asim et al.'s own optimiser: 20 (compressed sensing: 30) calls of torch's L-BFGS, of 20 iterations each.
    "glowip-lbfgs": OptimizationSettings(
        init_scale=0.0, optimizer="lbfgs", learning_rate=1.0, history=100, steps=400, keep="best"
    ),
    "glowip-lbfgs-cs": OptimizationSettings(
        init_scale=0.0, optimizer="lbfgs", learning_rate=0.1, history=100, steps=600, keep="best"
    ),
    # Helminger et al. as run there, eq. 2; a weight of 1 makes it the mode of p(u | y). Choice: 1500 steps.
    "map": OptimizationSettings(
        misfit="likelihood", penalty="likelihood-u", weight=0.5, init_scale=0.1, learning_rate=1.5e-3, steps=1500
    ),
}
# The same at a pace at which they converge on a CPU, with weights by the PSNR of 32 validation faces
# (docs/benchmarks/restoration.md).
_FASTER = {
    "solverip-denoise": 0.025,
    "solverip-deblur": 0.003,
    "solverip-inpaint": 0.001,
    "solverip-colorize": 0.02 / 6,
    "glowip-denoise": 0.01,
    "glowip": 0.0,
    "map": 0.25,
}
OPTIMIZATION_PRESETS |= {f"{name}-fast": _faster(OPTIMIZATION_PRESETS[name], w) for name, w in _FASTER.items()}
# and of tasks for which the papers have no weight of their own
OPTIMIZATION_PRESETS |= {
    f"{name}-{task}-fast": _faster(_solverip(penalty="latent-norm", weight=w, init_scale=scale), w)
    for name, scale, weights in (
        ("glowip", 0.0, {"inpaint": 0.0003, "colorize": 0.01 / 12}),
        ("solverip-csgm", 1.0, {"denoise": 0.01, "deblur": 0.0003, "inpaint": 0.0025, "colorize": 0.0025}),
    )
    for task, w in weights.items()
}
