"""Linear maps across channels: fixed permutations, swaps, orthogonal and LU-parametrised 1x1 convolutions."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..bijection import Bijection, constant_log_det, frozen, random_orthogonal


class Permutation(Bijection):
    """A fixed reordering of dimension 1; log-determinant 0."""

    order: Tensor
    inverse_order: Tensor

    def __init__(self, order: Tensor, persistent: bool = True):
        super().__init__()
        if sorted(order.tolist()) != list(range(order.numel())):
            raise ValueError(f"a permutation lists each of 0..{order.numel() - 1} once, got {order.tolist()}")
        self.register_buffer("order", order, persistent)
        self.register_buffer("inverse_order", order.argsort(), persistent)

    @classmethod
    def random(cls, channels: int, generator: torch.Generator | None = None) -> Permutation:
        return cls(torch.randperm(channels, generator=generator))

    def encode(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x.index_select(1, self.order), constant_log_det(0.0, x)

    def decode(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return z.index_select(1, self.inverse_order), constant_log_det(0.0, z)


class Swap(Permutation):
    """The first half of dimension 1 changes places with the second; its order follows from the size and is not saved."""

    def __init__(self, channels: int):
        super().__init__(torch.arange(channels).roll(channels // 2), persistent=False)


def mix_channels(x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply dimension 1 of (B, C, H, W) or (B, D) by a matrix (C, C)."""
    if x.dim() == 2:
        return F.linear(x, matrix, bias)
    return F.conv2d(x, matrix[:, :, None, None], bias)


class Orthogonal(Bijection):
    """A fixed random rotation of the channels: a 1x1 convolution whose inverse is its transpose, log-determinant 0."""

    matrix: Tensor

    def __init__(self, channels: int, generator: torch.Generator | None = None):
        super().__init__()
        self.register_buffer("matrix", random_orthogonal(channels, generator).float())

    def rotation(self) -> Tensor:
        """The matrix (C, C), orthogonal to its own precision.

        What was rounded to float32 is a rotation to 1e-7 only; in float64 one Newton step Q (3 - Q^T Q) / 2
        towards the nearest rotation squares that error.
        """
        q = self.matrix
        if q.dtype != torch.float64:
            return q
        return 1.5 * q - 0.5 * q @ q.T @ q

    def encode(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return mix_channels(x, self.rotation()), constant_log_det(0.0, x)

    def decode(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return mix_channels(z, self.rotation().T), constant_log_det(0.0, z)


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors agree in dtype, device and every value."""
    return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)


class LUConv1x1(Bijection):
    r"""A learned 1x1 convolution W = P L (U + diag(sign * exp(log_d))) started at a random rotation.

    :math:`\log|\det| = H W \sum \log d`. While the parameters are frozen the matrix and its inverse are
    computed once and cached without a graph; a change of parameters, dtype or device drops the cache.

    Source: Kingma and Dhariwal, Glow, section 3.2 (LU decomposition).
    """

    permutation: Tensor
    sign: Tensor

    def __init__(self, channels: int, generator: torch.Generator | None = None):
        super().__init__()
        p, lower, upper = torch.linalg.lu(random_orthogonal(channels, generator))
        diagonal = upper.diagonal()
        self.register_buffer("permutation", p.float())
        self.register_buffer("sign", diagonal.sign().float())
        self.lower = nn.Parameter(lower.tril(-1).float())
        self.upper = nn.Parameter(upper.triu(1).float())
        self.log_diagonal = nn.Parameter(diagonal.abs().log().float())
        self._cache: tuple[list[Tensor], Tensor, Tensor] | None = None

    def weight(self) -> Tensor:
        """The matrix W, shape (C, C)."""
        eye = torch.eye(len(self.sign), dtype=self.lower.dtype, device=self.lower.device)
        diagonal = torch.diag(self.sign * self.log_diagonal.exp())
        return self.permutation @ (self.lower.tril(-1) + eye) @ (self.upper.triu(1) + diagonal)

    def _matrices(self) -> tuple[Tensor, Tensor]:
        if not frozen(self) or torch.compiler.is_compiling():
            weight = self.weight()
            return weight, torch.linalg.inv(weight)
        # Keyed by value: version counters miss fused optimisers and writes through .data.
        state = [t.detach() for t in (*self.parameters(), *self.buffers())]
        if self._cache is not None and all(map(_same, self._cache[0], state)):
            return self._cache[1], self._cache[2]
        # Tensors made in inference mode or inside a torch.func transform must not outlive it.
        with torch.inference_mode(False), torch.no_grad():
            weight = self.weight()
            inverse = torch.linalg.inv(weight.double()).to(weight.dtype)
            if not torch._C._functorch.is_functorch_wrapped_tensor(weight):
                self._cache = ([t.clone() for t in state], weight, inverse)
        return weight, inverse

    def _log_det(self, like: Tensor) -> Tensor:
        return constant_log_det(self.log_diagonal.sum() * (like.shape[1:].numel() // like.shape[1]), like)

    def encode(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        weight = self._matrices()[0] if frozen(self) else self.weight()
        return mix_channels(x, weight), self._log_det(x)

    def decode(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return mix_channels(z, self._matrices()[1]), -self._log_det(z)


class ChannelAffine(Bijection):
    r"""z = W x + b across channels with fixed W and b: what a frozen ActNorm and 1x1 convolution fold into."""

    matrix: Tensor
    inverse: Tensor
    bias: Tensor
    log_scale: Tensor

    def __init__(self, matrix: Tensor, bias: Tensor):
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.register_buffer("bias", bias)
        self._derive()

    def _derive(self) -> None:
        """What follows from matrix and bias, computed in float64."""
        dtype, m64 = self.matrix.dtype, self.matrix.double()
        inverse = torch.linalg.inv(m64)
        self.register_buffer("inverse", inverse.to(dtype))
        self.register_buffer("inverse_bias", -(inverse @ self.bias.double()).to(dtype))
        self.register_buffer("log_scale", torch.linalg.slogdet(m64)[1].to(dtype))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ChannelAffine:
        before = self.matrix.dtype
        super()._apply(fn, recurse)
        if self.matrix.dtype != before:  # the inverse of the matrix as rounded now, to the new precision
            self._derive()
        return self

    def _log_det(self, like: Tensor) -> Tensor:
        return constant_log_det(self.log_scale * (like.shape[1:].numel() // like.shape[1]), like)

    def encode(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return mix_channels(x, self.matrix, self.bias), self._log_det(x)

    def decode(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return mix_channels(z, self.inverse, self.get_buffer("inverse_bias")), -self._log_det(z)
