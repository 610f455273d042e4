"""The pre-generator: a small flow from noise to the prior's latent that starts as the identity."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from ..flows.architectures import RealNVPConfig, build
from ..flows.bijection import Bijection, Chain, Inverse, constant_log_det
from ..flows.layers.analytic import Elementwise
from ..flows.layers.couplings import AffineCoupling, MaskedAffineCoupling, checkerboard_mask
from ..flows.layers.mixing import Orthogonal
from ..flows.layers.reshaping import Squeeze
from ..flows.networks import MLP, ConvNet
from ..settings import check_positive, check_types


@dataclass(frozen=True)
class PreGeneratorConfig:
    """The family that q(z) is sought in.

    ``coupling``: ``steps`` affine couplings between fixed rotations, convolutional where the latent is an
    image, which is squeezed up to ``squeezes`` times first, then a learned scale and shift per element; ``affine`` puts a
    full-rank affine map behind them. ``gaussian``: a full-rank affine map, exact where the
    posterior over z is Gaussian, for up to a few thousand elements. ``realnvp``: the paper's multiscale RealNVP with ``scales`` and
    ``blocks`` residual blocks per coupling.
    """

    family: Literal["coupling", "gaussian", "realnvp"] = "coupling"
    steps: int = 8
    hidden: int = 32
    squeezes: int = 2
    scales: int = 3
    blocks: int = 3
    affine: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self, "pre-generator setting")
        check_positive(self, "pre-generator setting", "steps", "hidden", "scales", "blocks")
        if self.squeezes < 0:
            raise ValueError(f"pre-generator setting squeezes must be at least 0, got {self.squeezes}")


class LowerTriangular(Bijection):
    r"""x = (D + N) z + b over the flattened sample, D = diag(exp(d)) and N strictly lower triangular; starts at the identity."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        size = math.prod(shape)
        self.log_diagonal = nn.Parameter(torch.zeros(size))
        self.lower = nn.Parameter(torch.zeros(size, size))
        self.shift = nn.Parameter(torch.zeros(size))
        self._is_strict = False

    def _strict(self) -> Tensor:
        """N; what ``set`` wrote has nothing else, and taking it apart again would cost as much as a product with it."""
        return self.lower if self._is_strict else self.lower.tril(-1)

    def matrix(self) -> Tensor:
        return self._strict() + torch.diag(self.log_diagonal.exp())

    @torch.no_grad()
    def set(self, shift: Tensor, factor: Tensor) -> None:
        """Make it x = factor z + shift, and leave N as it is from then on: of D^2 weights a short fit has no use."""
        self.lower.copy_(factor.tril(-1)).requires_grad_(False)
        self._is_strict = True
        self.log_diagonal.copy_(factor.diagonal().log())
        self.shift.copy_(shift.flatten())

    def encode(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        centred = (x.flatten(1) - self.shift).T
        z = torch.linalg.solve_triangular(self.matrix(), centred, upper=False).T
        return z.reshape(x.shape), constant_log_det(-self.log_diagonal.sum(), x)

    def decode(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        flat = z.flatten(1)
        x = flat @ self._strict().T + flat * self.log_diagonal.exp() + self.shift
        return x.reshape(z.shape), constant_log_det(self.log_diagonal.sum(), z)


def place_at(bijection: Bijection, z: Tensor, scale: float | Tensor) -> None:
    """Let a pre-generator that was just built send noise e to z + scale e, for a latent z of its shape.

    A lower triangular ``scale`` (D, D) is for those with a full-rank affine map.
    """
    layers = list(bijection.layers) if isinstance(bijection, Chain) else [bijection]
    with torch.no_grad():
        if isinstance(scale, Tensor):
            if not isinstance(layers[0], LowerTriangular):
                raise ValueError("only a pre-generator with a full-rank affine map can start at a full-rank Gaussian")
            layers[0].set(z, scale)
        elif isinstance(layers[0], LowerTriangular):
            layers[0].log_diagonal.fill_(math.log(scale))
            layers[0].shift.copy_(z.flatten())
        elif isinstance(layers[-1], Elementwise):
            layers[-1].set(-z / scale, 1 / scale)
        else:
            raise ValueError(
                "this pre-generator has no shift and scale of its own to start at a point; take coupling or gaussian"
            )


def rotated_couplings(
    channels: int, steps: int, hidden: int, seed: int, image: bool, context: int = 0
) -> list[Bijection]:
    """Couplings with a random rotation before each and one at the end that undoes them all.

    ``context`` counts the channels that the networks are told beside; their weights come from the global generator.
    """
    generator = torch.Generator().manual_seed(seed)
    total = torch.eye(channels, dtype=torch.float64)
    layers: list[Bijection] = []
    first, second = channels - channels // 2, channels // 2
    for _ in range(steps):
        rotation = Orthogonal(channels, generator)
        total = rotation.matrix.double() @ total
        net = (ConvNet if image else MLP)(first, 2 * second, hidden, context=context)
        layers += [rotation, AffineCoupling(channels, net)]
    closing = Orthogonal(channels)
    closing.matrix = total.T.float()
    return [*layers, closing]


def build_pregenerator(shape: tuple[int, ...], config: PreGeneratorConfig) -> Bijection:
    """A bijection z -> noise over latents of ``shape`` whose ``decode`` (noise to z) starts as the identity.

    An image latent (C, H, W) is squeezed as often as its sides and ``config.squeezes`` allow, so that convolutions see
    neighbouring latents, which govern neighbouring pixels; with odd sides checkerboard couplings take over. Weights are
    drawn from ``config.seed``; the global random state is untouched.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return _build(tuple(shape), config)


def _build(shape: tuple[int, ...], config: PreGeneratorConfig) -> Bijection:
    if config.affine and config.family != "gaussian":
        return Chain([LowerTriangular(shape), _build(shape, replace(config, affine=False))])
    if config.family == "gaussian":
        return LowerTriangular(shape)
    if config.family == "realnvp":
        if len(shape) != 3:
            raise ValueError(f"the realnvp family needs an image latent (C, H, W), got {shape}")
        return build(RealNVPConfig(shape, config.scales, config.blocks, config.hidden, actnorm=False, seed=config.seed))
    if len(shape) not in (1, 3):
        raise ValueError(
            f"the coupling family needs a vector (D,) or an image latent (C, H, W), got {shape}; try gaussian"
        )
    scale = Elementwise(shape)
    if len(shape) == 1:
        if shape[0] == 1:
            return Chain([scale])
        return Chain([*rotated_couplings(shape[0], config.steps, config.hidden, config.seed, image=False), scale])
    channels, height, width = shape
    squeezes = 0
    while squeezes < config.squeezes and height % 2 ** (squeezes + 1) == 0 and width % 2 ** (squeezes + 1) == 0:
        squeezes += 1
    if squeezes:
        inner = rotated_couplings(4**squeezes * channels, config.steps, config.hidden, config.seed, image=True)
        down = [Squeeze() for _ in range(squeezes)]
        return Chain([*down, *inner, *map(Inverse, down), scale])
    boards = [
        MaskedAffineCoupling(
            checkerboard_mask(height, width, bool(i % 2)), ConvNet(channels, 2 * channels, config.hidden)
        )
        for i in range(config.steps)
    ]
    return Chain([*boards, scale])
