"""The same Glow-type flow built from each library's own components, for the speed comparison.

Every contender has ``levels`` scales of ``steps`` steps (actnorm, 1x1 convolution, affine coupling whose network is
conv 3x3 - ReLU - conv 1x1 - ReLU - conv 3x3 with ``hidden`` channels), squeezes before each scale and splits off half
of the channels after each but the last. Weights are frozen and the modules in eval mode, as a careful user would
have them, and each library's own caches are on.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Architecture:
    """The flow that every contender builds."""

    shape: tuple[int, int, int] = (3, 32, 32)
    levels: int = 3
    steps: int = 8
    hidden: int = 64

    def latent_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the latents that a multiscale flow emits, shallowest first."""
        channels, height, width = self.shape
        shapes: list[tuple[int, ...]] = []
        for level in range(self.levels):
            channels, height, width = 4 * channels, height // 2, width // 2
            channels //= 2 if level < self.levels - 1 else 1
            shapes.append((channels, height, width))
        return shapes


@dataclass(frozen=True)
class Contender:
    """A flow and how to decode with it: ``decode`` maps latents (B, *latent_shapes[i]) to images (B, C, H, W)."""

    name: str
    module: nn.Module
    decode: Callable[[list[Tensor]], Tensor]
    latent_shapes: list[tuple[int, ...]]

    def latents(self, batch: int, generator: torch.Generator) -> list[Tensor]:
        """Standard normal latents that ask for gradients."""
        return [torch.randn(batch, *s, generator=generator).requires_grad_() for s in self.latent_shapes]

    def coupling_parameters(self) -> int:
        """The number of parameters in the convolutions inside couplings."""
        return sum(p.numel() for m in self.module.modules() if isinstance(m, nn.Conv2d) for p in m.parameters())


@torch.no_grad()
def randomise(module: nn.Module, generator: torch.Generator) -> None:
    """Small random weights in every convolution: networks that start at zero are not what a trained prior holds."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            weight = torch.randn(part.weight.shape, generator=generator) * part.weight[0].numel() ** -0.5
            part.weight.copy_(weight * 0.5)
            if part.bias is not None:
                part.bias.zero_()


class _Network(nn.Module):
    """The coupling network for the libraries that leave it to the user; nflows passes a context, which is None here."""

    def __init__(self, inputs: int, outputs: int, hidden: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, hidden, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, outputs, 3, padding=1),
        )

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.body(x)


def freia(arch: Architecture) -> Contender:
    """FrEIA: AllInOneBlock (actnorm, fixed random rotation, affine coupling) in a GraphINN, without Jacobians."""
    import FrEIA.framework as framework
    import FrEIA.modules as modules

    options: dict[str, Any] = {
        "subnet_constructor": lambda inputs, outputs: _Network(inputs, outputs, arch.hidden),
        "permute_soft": True,
    }
    nodes: list[Any] = [framework.InputNode(*arch.shape, name="x")]
    outputs: list[Any] = []
    source: Any = nodes[0]
    for level in range(arch.levels):
        nodes.append(framework.Node(source, modules.IRevNetDownsampling, {}))
        for _ in range(arch.steps):
            nodes.append(framework.Node(nodes[-1], modules.AllInOneBlock, options))
        if level == arch.levels - 1:
            outputs.append(framework.OutputNode(nodes[-1]))
            continue
        half = nodes[-1].output_dims[0][0] // 2
        nodes.append(framework.Node(nodes[-1], modules.Split, {"section_sizes": [half, half]}))
        outputs.append(framework.OutputNode(nodes[-1].out1))
        source = nodes[-1].out0
    inn = framework.GraphINN([*nodes, *outputs])
    return Contender("FrEIA", inn, lambda z: inn(tuple(z), rev=True, jac=False)[0], arch.latent_shapes())


def normflows(arch: Architecture) -> Contender:
    """normflows: GlowBlock, Squeeze and Merge in a MultiscaleFlow."""
    import normflows as nf

    shapes = arch.latent_shapes()
    flows: list[list[nn.Module]] = []
    merges: list[nn.Module] = []
    channels = 4 * arch.shape[0]
    for level in range(arch.levels):
        steps = [nf.flows.GlowBlock(channels, arch.hidden, init_zeros=False) for _ in range(arch.steps)]
        flows.insert(0, [*steps, nf.flows.Squeeze()])  # its lists run from the deepest level up
        if level < arch.levels - 1:
            merges.insert(0, nf.flows.Merge())
        channels *= 2
    bases = [nf.distributions.DiagGaussian(s, trainable=False) for s in reversed(shapes)]
    model = nf.MultiscaleFlow(bases, flows, merges, class_cond=False)
    return Contender("normflows", model, lambda z: model.forward_and_log_det(z)[0], shapes[::-1])


def nflows(arch: Architecture) -> Contender:
    """nflows: ActNorm, OneByOneConvolution with its cache and AffineCouplingTransform, multiscale."""
    from nflows import transforms

    model = transforms.MultiscaleCompositeTransform(arch.levels)
    shape: tuple[int, ...] = arch.shape
    for _ in range(arch.levels):
        channels, height, width = 4 * shape[0], shape[1] // 2, shape[2] // 2
        mask = [-1] * (channels - channels // 2) + [1] * (channels // 2)
        layers: list[nn.Module] = [transforms.SqueezeTransform()]
        for _ in range(arch.steps):
            layers += [
                transforms.ActNorm(channels),
                transforms.OneByOneConvolution(channels, using_cache=True),
                transforms.AffineCouplingTransform(mask, lambda a, b: _Network(a, b, arch.hidden)),
            ]
        shape = model.add_transform(transforms.CompositeTransform(layers), (channels, height, width))

    def decode(z: list[Tensor]) -> Tensor:
        return model.inverse(torch.cat([part.flatten(1) for part in z], 1))[0]

    return Contender("nflows", model, decode, arch.latent_shapes())


PEERS: dict[str, tuple[str, Callable[[Architecture], Contender]]] = {
    "FrEIA": ("FrEIA", freia),
    "normflows": ("normflows", normflows),
    "nflows": ("nflows", nflows),
}


def available() -> dict[str, bool]:
    """Which of the peers are installed."""
    return {name: importlib.util.find_spec(module) is not None for name, (module, _) in PEERS.items()}


def build_peer(name: str, arch: Architecture, generator: torch.Generator) -> Contender:
    """The named peer with small random weights, frozen and in eval mode."""
    contender = PEERS[name][1](arch)
    randomise(contender.module, generator)
    contender.module.eval().requires_grad_(False)
    return contender
