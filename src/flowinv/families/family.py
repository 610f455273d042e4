"""The variational family: q(x | y) for B observations as a map from noise and the space that it ends in."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..flows.flow import Flow, standard_normal_log_prob
from ..store import BundleError, hash_tensors
from . import spaces
from .conditional import Conditional, ConditionalConfig
from .maps import After, Generators, Shared
from .pregenerator import PreGeneratorConfig, build_pregenerator, place_at


class Draw(NamedTuple):
    """Draws x (m, B, *shape), the inner points they come from, and, each (m, B), log q there and log|det dx/d inner|."""

    x: Tensor
    inner: Tensor
    log_q: Tensor
    log_det: Tensor


class Family(nn.Module):
    r"""q(x | y): noise goes through ``map`` into ``space``, the prior's latent z or u, and from there to x.

    .. math:: \log q(x|y) = \log N(\epsilon; 0, I) - \log|\det \partial i/\partial\epsilon| - \log|\det \partial x/\partial i|

    The parts make the papers' families: *composed* (a pre-generator per observation, latent), *amortized* (one conditional
    pre-generator, latent), *semi-amortized* (a pre-generator per observation before that), *ambient* (a flow per observation, u).
    ``description`` is what it is rebuilt from.
    """

    def __init__(self, map: Generators | Shared | After, space: spaces.Space, description: dict[str, Any]):
        super().__init__()
        self.map, self.space, self.description = map, space, description

    @property
    def batch(self) -> int:
        return self.map.batch

    def fingerprint(self) -> str:
        """SHA-256 over what it is, its weights, and which of them may be trained."""
        trainable = [name for name, p in self.named_parameters() if p.requires_grad]
        digest = hashlib.sha256(json.dumps([self.space, self.description, trainable], sort_keys=True).encode())
        hash_tensors(digest, self.state_dict())
        return digest.hexdigest()

    def inner(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Noise (m, B, *shape) to the inner point and its log q, (m, B)."""
        inner, log_det = self.map.push(noise)
        return inner, standard_normal_log_prob(noise.flatten(0, 1)).view(noise.shape[:2]) - log_det

    def log_q(self, inner: Tensor) -> Tensor:
        """log q of inner points (m, B, *shape), (m, B), through the map's inverse."""
        noise, log_det = self.map.pull(inner)
        return standard_normal_log_prob(noise.flatten(0, 1)).view(inner.shape[:2]) + log_det

    def log_prior(self, inner: Tensor, prior: Flow) -> Tensor:
        """log p of inner points, (m, B)."""
        return spaces.log_prior(self.space, inner.flatten(0, 1), prior).view(inner.shape[:2])

    def to_x(self, inner: Tensor, prior: Flow) -> tuple[Tensor, Tensor]:
        """x at inner points, and log|det dx/d inner|, (m, B)."""
        x, log_det = spaces.to_x(self.space, inner.flatten(0, 1), prior)
        return x.unflatten(0, inner.shape[:2]), log_det.view(inner.shape[:2])

    def draw(self, noise: Tensor, prior: Flow) -> Draw:
        """Noise (m, B, *shape) to draws with their densities."""
        inner, log_q = self.inner(noise)
        x, log_det = self.to_x(inner, prior)
        return Draw(x, inner, log_q, log_det)

    def log_prob(self, x: Tensor, prior: Flow) -> Tensor:
        """log q(x | y) of x (m, B, *shape), (m, B)."""
        inner, outer = spaces.from_x(self.space, x.flatten(0, 1), prior)
        return self.log_q(inner.unflatten(0, x.shape[:2])) + outer.view(x.shape[:2])


def composed(shape: tuple[int, ...], batch: int, config: PreGeneratorConfig, space: spaces.Space = "latent") -> Family:
    """A pre-generator for each of ``batch`` observations, seeded apart; in space ``ambient`` a flow over u for each."""
    description = {"kind": "composed", "space": space, "pregenerator": asdict(config)}
    bijections = []
    for b in range(batch):
        bijections.append(build_pregenerator(shape, replace(config, seed=config.seed + b)))
    return Family(Generators(bijections), space, description)


def composed_at(z: Tensor, config: PreGeneratorConfig, scale: float | Tensor) -> Family:
    """Pre-generators that begin at N(z, scale^2 I) instead of N(0, I), for latents z (B, *shape).

    With lower triangular factors ``scale`` (B, D, D) at N(z, scale scale^T).
    """
    family = composed(tuple(z.shape[1:]), len(z), config)
    assert isinstance(family.map, Generators)
    for b, bijection in enumerate(family.map.bijections):
        place_at(bijection, z[b], scale[b] if isinstance(scale, Tensor) else scale)  # type: ignore[arg-type]
    return family


def amortized(conditional: Conditional, context: Tensor) -> Family:
    """One conditional pre-generator for all the observations that ``context`` (B, ...) tells of."""
    description = {"kind": "amortized", "space": "latent", "conditional": asdict(conditional.config)}
    return Family(Shared(conditional, context), "latent", description)


def semi_amortized(conditional: Conditional, context: Tensor, config: PreGeneratorConfig) -> Family:
    """A pre-generator for each observation, from the identity, before the amortized family's map, which stays as it is."""
    description = {
        "kind": "semi-amortized",
        "space": "latent",
        "conditional": asdict(conditional.config),
        "pregenerator": asdict(config),
    }
    own = composed(conditional.config.shape, len(context), config).map.to(context)
    shared = Shared(copy.deepcopy(conditional).to(context), context.clone()).requires_grad_(False)
    return Family(After(own, shared), "latent", description)  # type: ignore[arg-type]


def family_from_description(
    description: dict[str, Any], shape: tuple[int, ...], batch: int, dtype: torch.dtype
) -> Family:
    """A family of the kind described, its weights still to be loaded."""
    try:
        kind, space = description["kind"], description["space"]
        if kind == "composed":
            family = composed(shape, batch, PreGeneratorConfig(**description["pregenerator"]), space)
        elif kind in ("amortized", "semi-amortized"):
            config = ConditionalConfig.from_dict(description["conditional"])
            conditional, context = Conditional(config), torch.zeros(batch, *config.context)
            if kind == "amortized":
                family = amortized(conditional, context)
            else:
                family = semi_amortized(conditional, context, PreGeneratorConfig(**description["pregenerator"]))
        else:
            raise BundleError(f"unknown family {kind!r}: expected composed, amortized or semi-amortized")
    except KeyError as error:
        raise BundleError(f"the family's description misses {error}") from None
    return family.to(dtype)
