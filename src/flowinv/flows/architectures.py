"""Flows built from frozen configs: a lean Glow, the papers' multiscale RealNVP, and dense flows for vectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import nn

from .bijection import Bijection, Chain, Inverse
from .layers.actnorm import ActNorm
from .layers.couplings import (
    AdditiveCoupling,
    AffineCoupling,
    MaskedAffineCoupling,
    SigmoidCoupling,
    channel_mask,
    checkerboard_mask,
)
from .layers.mixing import LUConv1x1, Orthogonal, Swap
from .layers.reshaping import Split, Squeeze
from .networks import MLP, ConvNet, PatchNet, ResNet


@dataclass(frozen=True)
class GlowConfig:
    """A lean Glow-type flow on images: squeeze first, then steps of ActNorm, 1x1 convolution and coupling.

    ``steps[i]`` steps run at scale i (each scale halves height and width), with ``hidden`` channels in their
    networks, or ``hidden[i]``. Between scales half of the channels become latent where ``split`` holds.
    The latent has the shape of the image.
    """

    shape: tuple[int, int, int]
    steps: tuple[int, ...] = (8, 8)
    hidden: int | tuple[int, ...] = 64
    split: bool = True
    mixing: Literal["orthogonal", "lu"] = "orthogonal"
    coupling: Literal["affine", "additive"] = "affine"
    network: Literal["conv", "resnet"] = "conv"
    blocks: int = 2
    clamp: float = 2.0
    context: tuple[int, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class PatchFlowConfig:
    """The 1x1-coupling flow on square images: scales down to a single pixel, whose couplings read 1x1 maps.

    ``steps[i]`` steps of ActNorm and a sigmoid coupling at scale i, with ``hidden`` channels in their networks
    (``PatchNet``), their scales bounded where ``clamp`` is set (``SigmoidCoupling``); half of the channels become latent after
    each scale in ``splits``. With ``mixing`` "swap" the halves change places at every step; with "lu" an invertible 1x1
    convolution comes before every coupling, as in Glow.

    Source: Generative Flows as a General Purpose Solution for Inverse Problems, section 3 and public code.
    """

    shape: tuple[int, int, int]
    steps: tuple[int, ...] = (2, 2, 2, 4, 4)
    hidden: int = 512
    splits: tuple[int, ...] = (2, 3)
    mixing: Literal["swap", "lu"] = "swap"
    clamp: float | None = None
    context: tuple[int, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class RealNVPConfig:
    """The papers' multiscale RealNVP: checkerboard couplings, squeeze, channel couplings, split; ResNet couplings.

    At every scale but the last: 3 checkerboard couplings, squeeze, 3 channel-wise couplings, half of the
    channels leave; at the last, 4 checkerboard couplings. Networks have ``hidden`` channels at every scale: doubled with each,
    as Dinh et al. do at two or three scales, the six of the CIFAR-10 flow would have 8e9 weights.

    Source: Dinh et al., Real NVP, section 3.6; Whang et al., Tables 3 and 4.
    """

    shape: tuple[int, int, int]
    scales: int = 3
    blocks: int = 8
    hidden: int = 32
    clamp: float = 2.0
    actnorm: bool = True
    context: tuple[int, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class DenseConfig:
    """A flow on vectors: steps of ActNorm, rotation and an affine coupling with an MLP."""

    shape: tuple[int]
    steps: int = 8
    hidden: int = 64
    depth: int = 2
    mixing: Literal["orthogonal", "lu"] = "orthogonal"
    coupling: Literal["affine", "additive"] = "affine"
    clamp: float = 2.0
    context: tuple[int, ...] = ()
    seed: int = 0


Config = GlowConfig | PatchFlowConfig | RealNVPConfig | DenseConfig


def _context_channels(context: tuple[int, ...], height: int) -> int:
    """Channels a context (C, H, W) has once unshuffled to ``height``; a vector's length otherwise."""
    if not context:
        return 0
    if len(context) == 1:
        return context[0]
    if len(context) != 3 or context[1] % height:
        raise ValueError(
            f"the context of an image flow is a vector (L,) or an image (C, H, W) with H a multiple of {height}, "
            f"got {context}"
        )
    return context[0] * (context[1] // height) ** 2


def _mixing(kind: str, channels: int, generator: torch.Generator) -> Bijection:
    if kind == "orthogonal":
        return Orthogonal(channels, generator)
    if kind == "lu":
        return LUConv1x1(channels, generator)
    raise ValueError(f"mixing is 'orthogonal' or 'lu', got {kind!r}")


def _coupling(kind: str, size: int, net: Callable[[int, int], nn.Module], clamp: float) -> Bijection:
    first, second = size - size // 2, size // 2
    if kind == "affine":
        return AffineCoupling(size, net(first, 2 * second), clamp)
    if kind == "additive":
        return AdditiveCoupling(size, net(first, second))
    raise ValueError(f"coupling is 'affine' or 'additive', got {kind!r}")


def _check_halvings(shape: tuple[int, int, int], halvings: int) -> None:
    if len(shape) != 3 or shape[1] % 2**halvings or shape[2] % 2**halvings:
        raise ValueError(
            f"expected an image shape (C, H, W) with H and W divisible by {2**halvings} to halve {halvings} times, "
            f"got {shape}"
        )


def _multiscale(
    shape: tuple[int, int, int],
    scales: int,
    steps: Callable[[int, int, int], list[Bijection]],
    split: Callable[[int], bool],
) -> Bijection:
    """Scale within scale: squeeze, ``steps(level, channels, height)``, the next scale on half of the channels or all, unsqueeze."""

    def scale(channels: int, height: int, level: int) -> Bijection:
        channels, height = 4 * channels, height // 2
        layers = [Squeeze(), *steps(level, channels, height)]
        if level + 1 < scales:
            keep = channels // 2 if split(level) else channels
            inner = scale(keep, height, level + 1)
            layers.append(Split(inner, keep) if split(level) else inner)
        return Chain([*layers, Inverse(Squeeze())])

    return scale(shape[0], shape[1], 0)


def build_glow(config: GlowConfig) -> Bijection:
    """A Glow-type bijection from its config; its coupling networks start at zero."""
    if not config.steps:
        raise ValueError("a Glow flow needs at least one scale: steps is empty")
    _check_halvings(config.shape, len(config.steps))
    generator = torch.Generator().manual_seed(config.seed)
    widths = config.hidden if isinstance(config.hidden, tuple) else (config.hidden,) * len(config.steps)
    if len(widths) != len(config.steps):
        raise ValueError(f"hidden needs one width per scale: got {len(widths)} for {len(config.steps)} scales")

    def steps(level: int, channels: int, height: int) -> list[Bijection]:
        hidden, extra = widths[level], _context_channels(config.context, height)

        def net(inputs: int, outputs: int) -> nn.Module:
            if config.network == "conv":
                return ConvNet(inputs, outputs, hidden, extra)
            if config.network == "resnet":
                return ResNet(inputs, outputs, hidden, config.blocks, extra)
            raise ValueError(f"network is 'conv' or 'resnet', got {config.network!r}")

        layers: list[Bijection] = []
        for _ in range(config.steps[level]):
            layers += [
                ActNorm(channels),
                _mixing(config.mixing, channels, generator),
                _coupling(config.coupling, channels, net, config.clamp),
            ]
        return [*layers, ActNorm(channels)]

    return _multiscale(config.shape, len(config.steps), steps, lambda level: config.split)


def build_patch_flow(config: PatchFlowConfig) -> Bijection:
    """The 1x1-coupling flow, or its twin with invertible 1x1 convolutions, from its config."""
    _check_halvings(config.shape, len(config.steps))
    if config.context:
        raise ValueError(f"this flow takes no context, got {config.context}")
    if config.shape[1] != config.shape[2]:
        raise ValueError(f"this flow is for square images, got {config.shape}")
    if not config.steps:
        raise ValueError("a multiscale flow needs at least one scale, got steps=()")
    if config.mixing not in ("swap", "lu"):
        raise ValueError(f"mixing is 'swap' or 'lu', got {config.mixing!r}")
    if outside := [level for level in config.splits if not 0 <= level < len(config.steps) - 1]:
        raise ValueError(f"nothing follows scale {outside[0]} of {len(config.steps)}: it cannot be split")
    generator = torch.Generator().manual_seed(config.seed)

    def steps(level: int, channels: int, side: int) -> list[Bijection]:
        layers: list[Bijection] = []
        for _ in range(config.steps[level]):
            first, second = channels - channels // 2, channels // 2
            coupling = SigmoidCoupling(channels, PatchNet(first, 2 * second, config.hidden, side), config.clamp)
            if config.mixing == "lu":
                layers += [ActNorm(channels), LUConv1x1(channels, generator), coupling]
            else:
                layers += [ActNorm(channels), coupling, Swap(channels)]
        return layers

    return _multiscale(config.shape, len(config.steps), steps, lambda level: level in config.splits)


def build_realnvp(config: RealNVPConfig) -> Bijection:
    """The papers' RealNVP from its config; masks alternate within each group of couplings."""
    if config.scales < 1:
        raise ValueError(f"a RealNVP flow needs at least one scale, got scales={config.scales}")
    _check_halvings(config.shape, config.scales - 1)

    def couplings(count: int, channels: int, height: int, width: int, hidden: int, board: bool) -> Iterator[Bijection]:
        extra = _context_channels(config.context, height)
        for i in range(count):
            odd = bool(i % 2)
            mask = checkerboard_mask(height, width, odd) if board else channel_mask(channels, odd)
            if config.actnorm:
                yield ActNorm(channels)
            net = ResNet(channels, 2 * channels, hidden, config.blocks, extra)
            yield MaskedAffineCoupling(mask, net, config.clamp)

    def scale(channels: int, height: int, width: int, hidden: int, remaining: int) -> Bijection:
        if remaining == 1:
            return Chain(couplings(4, channels, height, width, hidden, board=True))
        layers = list(couplings(3, channels, height, width, hidden, board=True))
        layers.append(Squeeze())
        layers += couplings(3, 4 * channels, height // 2, width // 2, hidden, board=False)
        inner = scale(2 * channels, height // 2, width // 2, hidden, remaining - 1)
        return Chain([*layers, Split(inner, 2 * channels), Inverse(Squeeze())])

    channels, height, width = config.shape
    return scale(channels, height, width, config.hidden, config.scales)


def build_dense(config: DenseConfig) -> Bijection:
    """A dense flow on vectors from its config."""
    if len(config.shape) != 1:
        raise ValueError(f"a dense flow needs a vector shape (D,), got {config.shape}")
    (size,) = config.shape
    generator = torch.Generator().manual_seed(config.seed)
    extra = math.prod(config.context) if config.context else 0
    layers: list[Bijection] = []
    for _ in range(config.steps):

        def net(inputs: int, outputs: int) -> nn.Module:
            return MLP(inputs, outputs, config.hidden, config.depth, extra)

        layers += [
            ActNorm(size),
            _mixing(config.mixing, size, generator),
            _coupling(config.coupling, size, net, config.clamp),
        ]
    return Chain([*layers, ActNorm(size)])


_BUILDERS: dict[str, tuple[type, Callable[[Any], Bijection]]] = {
    "glow": (GlowConfig, build_glow),
    "patch": (PatchFlowConfig, build_patch_flow),
    "realnvp": (RealNVPConfig, build_realnvp),
    "dense": (DenseConfig, build_dense),
}


def build(config: Config) -> Bijection:
    """The bijection a config describes. The global random state is read by weight initialisation only."""
    for kind, builder in _BUILDERS.values():
        if isinstance(config, kind):
            return builder(config)
    raise TypeError(f"expected one of {', '.join(k.__name__ for k, _ in _BUILDERS.values())}, got {config!r}")


def config_to_dict(config: Config) -> dict[str, Any]:
    """A JSON-ready dictionary with the architecture's name."""
    name = next(n for n, (kind, _) in _BUILDERS.items() if isinstance(config, kind))
    return {"architecture": name, **asdict(config)}


def config_from_dict(values: dict[str, Any]) -> Config:
    """The config that ``config_to_dict`` wrote; unknown architectures and fields are refused by name."""
    values = dict(values)
    name = values.pop("architecture", None)
    if name not in _BUILDERS:
        raise ValueError(f"unknown architecture {name!r}: expected one of {', '.join(_BUILDERS)}")
    kind = _BUILDERS[name][0]
    known = {f.name for f in fields(kind)}
    if unknown := set(values) - known:
        raise ValueError(f"unknown fields for {name}: {sorted(unknown)}; known: {sorted(known)}")
    if "shape" not in values:
        raise ValueError(f"the config of {name} has no shape")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


_MNIST, _CIFAR, _FACES = (1, 28, 28), (3, 32, 32), (3, 64, 64)

PRESETS: dict[str, Config] = {
    "glow-small": GlowConfig(_MNIST, steps=(8, 8), hidden=64),
    "paper-mnist": RealNVPConfig(_MNIST, scales=3, blocks=8, hidden=32),
    "paper-cifar10": RealNVPConfig(_CIFAR, scales=6, blocks=12, hidden=64),
    "paper-celebahq": RealNVPConfig(_FACES, scales=6, blocks=10, hidden=80),
    "paper-1x1-coupling": PatchFlowConfig(_CIFAR),
    "paper-invertible-1x1": PatchFlowConfig(_CIFAR, steps=(4, 4, 6), splits=(), mixing="lu"),
    "1x1-coupling-small": PatchFlowConfig(_CIFAR, hidden=32, clamp=4.0),
    "paper-mnist-pregenerator": RealNVPConfig(_MNIST, scales=3, blocks=3, hidden=32),
    "paper-cifar10-pregenerator": RealNVPConfig(_CIFAR, scales=4, blocks=4, hidden=48),
    "paper-celebahq-pregenerator": RealNVPConfig(_FACES, scales=3, blocks=3, hidden=48),
}


def preset(name: str, shape: tuple[int, ...] | None = None) -> Config:
    """A named configuration, for another image shape if one is given."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: expected one of {', '.join(PRESETS)}")
    config: Any = PRESETS[name]
    return replace(config, shape=tuple(shape)) if shape else config
