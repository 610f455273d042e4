"""How a family is fitted, and from where: the settings of variational inference, and those of the papers by name."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from ..families import PreGeneratorConfig
from ..settings import check_positive, check_seed, check_types


@dataclass(frozen=True)
class VariationalSettings:
    """How the family is fitted.

    In space ``latent`` the ``pregenerator`` feeds the prior; in ``ambient`` it is a flow over u, the image before the
    prior's last elementwise transform, and every step needs the prior's density.
    ``draws`` draws per observation and step, at most ``steps`` Adam steps at ``learning_rate``. With ``early_stop`` the
    run goes to its cool-down (the last ``cooldown`` of the steps, learning rate falling linearly to zero) as soon as the
    ELBO, averaged over ``window`` steps, is sure (to two standard errors) to rise by less than ``tolerance`` nats per
    window. ``final_draws`` fresh draws give the ELBO that is reported. ``path_gradient`` leaves the score term, of zero
    mean, out of the gradient, which then has no variance where q is exact (Roeder et al., Sticking the Landing), for one
    pass through the map's inverse. ``bf16`` runs the prior's coupling networks in bfloat16 while fitting, never for what
    is reported. ``anneal`` above 1 starts with a noise scale so many times wider, which falls geometrically to the
    problem's own over the first half of the steps; until then the trace shows that wider problem's ELBO.

    ``start`` "prior" begins with q(z) = N(0, I); "point" with N(z*, .5^2 I), z* the mode of p(z | y) as latent optimisation
    finds it in ``start_steps`` steps, where a fit from the prior would spend most of its own on the way there; "laplace" with
    N(z*, .7^2 (I + J^T W J)^-1), the Laplace approximation there (``laplace_factor``), narrowed since f bends. That one puts a
    full-rank affine map behind the couplings, of which shift and diagonal are fitted. It is for up to 4096 latents, and for
    measurements that bind combinations of many latents, not latents one by one: those of images do. Where noise is so weak
    that latent optimisation sticks, ``start_widening`` above 1 seeks the mode with a noise scale so many times wider.
    """

    pregenerator: PreGeneratorConfig = field(default_factory=PreGeneratorConfig)
    space: Literal["latent", "ambient"] = "latent"
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
    anneal: float = 1.0
    start: Literal["prior", "point", "laplace"] = "prior"
    start_steps: int = 200
    start_widening: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self, "solver setting")
        check_positive(
            self, "solver setting", "draws", "steps", "learning_rate", "clip", "window", "final_draws", "start_steps"
        )
        for name in ("warmup", "tolerance"):
            if getattr(self, name) < 0:
                raise ValueError(f"solver setting {name} must be at least 0, got {getattr(self, name)!r}")
        check_seed(self.seed, "solver setting seed")
        if not 0 <= self.cooldown <= 1:
            raise ValueError(f"solver setting cooldown must lie in [0, 1], got {self.cooldown!r}")
        if not (self.anneal >= 1 and math.isfinite(self.anneal)):
            raise ValueError(f"solver setting anneal must be at least 1, got {self.anneal!r}")
        if not (self.start_widening >= 1 and math.isfinite(self.start_widening)):
            raise ValueError(f"solver setting start_widening must be at least 1, got {self.start_widening!r}")
        if self.start != "prior" and (self.space != "latent" or self.pregenerator.family == "realnvp"):
            raise ValueError(f"start = {self.start!r} is for a coupling or gaussian pre-generator in the latent space")


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
    "ambient": VariationalSettings(space="ambient", learning_rate=3e-3),
    "from-point": VariationalSettings(start="point", start_steps=500, learning_rate=5e-3),
    "from-laplace": VariationalSettings(start="laplace", start_steps=500, learning_rate=5e-3),
    "semi-amortized": VariationalSettings(steps=50, early_stop=False),
    "paper-mnist": _paper(32, 3, 3, draws=64, steps=1000, learning_rate=1e-3),
    "paper-cifar10": _paper(48, 4, 4, draws=32, steps=1000, learning_rate=5e-4),
    "paper-celebahq": _paper(48, 3, 3, draws=8, steps=4000, learning_rate=5e-4),
}
