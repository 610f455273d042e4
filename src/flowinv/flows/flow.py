"""A density over data: a bijection to N(0, I), the elementwise transform before it, and what data it accepts."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from .bijection import Bijection, Chain, event_sum
from .folding import fold
from .fused import fuse
from .layers.couplings import Coupling
from .layers.dequantization import Dequantizer, dequantize_with
from .networks import PatchNet

_LOG_2PI = math.log(2 * math.pi)
REALS = (-math.inf, math.inf)
UNIT = (0.0, 1.0)


def standard_normal_log_prob(z: Tensor) -> Tensor:
    """log N(z; 0, I), summed over all but the first dimension, shape (B,), in nats."""
    return -0.5 * (event_sum(z.square()) + z.shape[1:].numel() * _LOG_2PI)


class Flow(Bijection):
    r"""A normalizing flow as a density: log p(x) = log N(z; 0, I) + log|det dz/dx|, z = encode(x).

    Data pass first through ``transform`` (elementwise: pixels x to unbounded u), then through
    ``bijection`` (u to z). ``shape`` is the shape of one sample, of x, u and z alike; ``support`` is the
    interval its elements lie in: (0, 1) for images, the reals for vectors. ``bits`` tells that
    the flow was trained on dequantised integers, which bits/dim needs; ``dequantizer`` is the noise learned for that.

    Any bijection from N(0, I) makes a prior, an analytic one included::

        Flow(Affine(mean, cholesky), shape=(12,))
    """

    def __init__(
        self,
        bijection: Bijection,
        shape: Sequence[int],
        transform: Bijection | None = None,
        support: tuple[float, float] = REALS,
        bits: int | None = None,
        dequantizer: Dequantizer | None = None,
    ):
        super().__init__()
        self.bijection = bijection
        self.transform = transform if transform is not None else Chain([])
        self.shape = tuple(int(s) for s in shape)
        self.support = (float(support[0]), float(support[1]))
        self.bits = bits
        self.dequantizer = dequantizer
        self.architecture: dict[str, Any] | None = None  # what the bijection can be rebuilt from, if anything

    # -- the three spaces -------------------------------------------------------------------------

    def encode(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data x to latent z, with log|det dz/dx|, (B,)."""
        u, outer = self.transform.encode(x)
        z, inner = self.bijection.encode(u, context)
        return z, outer + inner

    def decode(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latent z to data x, with log|det dx/dz|, (B,)."""
        u, inner = self.bijection.decode(z, context)
        x, outer = self.transform.decode(u)
        return x, inner + outer

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density of data x (B, *shape), in nats, shape (B,).

        The support is where the data lie; x may be whatever the flow can make, which without an input transform is anything.
        x is continuous: of an image in whole grey levels k ask (k + u) / 2^bits with u uniform in (0, 1), not the ends of the
        levels, where a transform fitted to them has next to no density; or ``log_prob_of_integers``.
        """
        self.check(x, bounds=self.reach())
        if x.dim() != len(self.shape) + 1:
            raise ValueError(f"x must have shape (B, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}")
        z, log_det = self.encode(x.to(self._like(x).dtype), context)
        return standard_normal_log_prob(z) + log_det

    def log_prob_u(self, u: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density of u, the data before the last elementwise transform, in nats, shape (B,)."""
        z, log_det = self.bijection.encode(u, context)
        return standard_normal_log_prob(z) + log_det

    @torch.no_grad()
    def sample(
        self, n: int, generator: torch.Generator, context: Tensor | None = None, temperature: float = 1.0
    ) -> Tensor:
        """n draws x = decode(temperature * z), z ~ N(0, I), shape (n, *shape)."""
        if not isinstance(n, int) or n < 1:
            raise ValueError(f"the number of draws must be at least 1, got {n!r}")
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature must be a finite number of at least 0, got {temperature!r}")
        return self.decode(temperature * self.noise((n,), generator), context)[0]

    def noise(self, leading: Sequence[int], generator: torch.Generator) -> Tensor:
        """Standard normal latents of shape (*leading, *shape), drawn on the generator's device."""
        like = self._like()
        draw = torch.randn((*leading, *self.shape), generator=generator, device=generator.device, dtype=like.dtype)
        return draw.to(like.device)

    # -- the door ----------------------------------------------------------------------------------

    def _like(self, default: Tensor | None = None) -> Tensor:
        """A tensor of the flow's precision and device; the default where it holds none."""
        state = chain(self.parameters(), self.buffers())
        return next((t for t in state if t.is_floating_point()), torch.empty(0) if default is None else default)

    @torch.no_grad()
    def reach(self) -> tuple[float, float]:
        """Where the transform's values end: the support, or beyond it."""
        (low, high), like = self.support, self._like()
        far = torch.stack([like.new_full(self.shape, end) for end in (-math.inf, math.inf)])
        bottom, top = (float(end) for end in torch.aminmax(self.transform.decode(far)[0]))
        return min(low, bottom), max(high, top)

    def check(self, x: Tensor, name: str = "x", bounds: tuple[float, float] | None = None) -> None:
        """Refuse data of the wrong type, shape or range, saying what came and what was expected.

        The range is ``bounds``, by default the support.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(
                f"{name} must be a floating-point tensor, got {x.dtype if isinstance(x, Tensor) else type(x).__name__}"
            )
        if x.shape[x.dim() - len(self.shape) :] != self.shape or x.dim() <= len(self.shape):
            raise ValueError(f"{name} must have shape (B, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}")
        if not torch.isfinite(x).all():
            raise ValueError(f"{name} has {int((~torch.isfinite(x)).sum())} values that are NaN or infinite")
        low, high = self.support
        bottom, top = bounds or self.support
        if x.numel() and (x.min() < bottom or x.max() > top):
            raise ValueError(
                f"{name} must lie in [{low:g}, {high:g}], got values from {float(x.min()):.4g} to {float(x.max()):.4g}"
            )

    # -- integers ------------------------------------------------------------------------------------

    def log_prob_of_integers(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """A one-draw lower bound on the log-probability of integer images (B, C, H, W), in nats, shape (B,).

        E[log p(x) - log q(x | k)] - D bits log 2 over one dequantisation; an error where the flow has no ``bits``.
        """
        if self.bits is None:
            raise ValueError("this prior was not trained on quantised images (bits is None): it has no bits/dim")
        x, log_q = dequantize_with(self.dequantizer, images, self.bits, generator)
        z, log_det = self.encode(x)
        return standard_normal_log_prob(z) + log_det - log_q - math.prod(self.shape) * self.bits * math.log(2)

    # -- frozen copies -------------------------------------------------------------------------------

    def frozen(self, bf16: bool = False) -> Flow:
        """A copy for inference: no gradients to weights, ActNorm and 1x1 convolutions folded, matrices cached.

        With ``bf16`` the networks inside couplings run in bfloat16 (the state keeps its precision): for
        fitting, not for densities.
        """
        twin = copy.deepcopy(self).eval().requires_grad_(False)
        for part in twin.modules():
            if isinstance(part, PatchNet):
                part.fold()
        twin.bijection = fuse(fold(twin.bijection))
        set_bf16(twin, bf16)
        return twin

    def fingerprint(self, dtype: torch.dtype | None = None) -> str:
        """SHA-256 over the maps and their settings and every parameter and buffer: the identity of this density.

        With ``dtype`` that of the flow once it is converted to it.
        """
        digest = hashlib.sha256(repr((self.shape, self.support, self.bits)).encode())
        for name, part in self.named_modules():
            if isinstance(part, Bijection):
                digest.update(repr((name, type(part).__name__, *_settings(part))).encode())
        for name, tensor in sorted(self.state_dict().items()):
            if dtype is not None and tensor.is_floating_point():
                tensor = tensor.to(dtype)
            digest.update(name.encode())
            digest.update(repr((tuple(tensor.shape), tensor.dtype)).encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def extra_repr(self) -> str:
        count = sum(p.numel() for p in self.parameters())
        return f"shape={self.shape}, support={self.support}, bits={self.bits}, parameters={count}"


def _settings(part: object) -> Iterator[tuple[str, object]]:
    """The plain numbers that shape a map beside its tensors: a clamp, a margin, a distribution's parameters."""
    for name, value in sorted(vars(part).items()):
        if isinstance(value, torch.distributions.Distribution):
            yield name, (type(value).__name__, *_distribution_settings(value))
        elif isinstance(value, (bool, int, float)) and not name.startswith("_") and name not in ("training", "bf16"):
            yield name, value
    if getattr(part, "bf16", False):
        yield "bf16", True


def _distribution_settings(distribution: torch.distributions.Distribution) -> Iterator[tuple[str, object]]:
    for name, value in sorted(vars(distribution).items()):
        if isinstance(value, Tensor):
            yield name, (str(value.dtype), value.tolist())
        elif isinstance(value, torch.distributions.Distribution):
            yield name, (type(value).__name__, *_distribution_settings(value))


def set_bf16(module: nn.Module, enabled: bool) -> None:
    """Switch the networks inside every coupling below ``module`` to bfloat16, or back."""
    for part in module.modules():
        if isinstance(part, (Coupling, Dequantizer)):
            part.bf16 = enabled


def bits_per_dim(log_prob: Tensor, dims: int) -> Tensor:
    """Bits per dimension from the log-probability (nats) of integer images: -log2 P / D."""
    return -log_prob / (dims * math.log(2))
