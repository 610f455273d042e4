"""The networks inside couplings: what they read is never inverted, so they may be anything."""

from __future__ import annotations

from itertools import pairwise
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers.actnorm import ActNorm

M = TypeVar("M", bound=nn.Module)


def fit_context(context: Tensor, like: Tensor) -> Tensor:
    """Bring a context to the spatial size of ``like``: images by pixel-unshuffling, vectors by repetition."""
    if context.dim() == like.dim() == 4:
        ratio, rest = divmod(context.shape[-1], like.shape[-1])
        fits = ratio > 1 and not rest and not context.shape[-2] % ratio
        return F.pixel_unshuffle(context, ratio) if fits else context
    if like.dim() == 4:
        return context[:, :, None, None].expand(-1, -1, *like.shape[-2:]) if context.dim() == 2 else context
    return context.flatten(1)


def with_context(x: Tensor, context: Tensor | None, expected: int) -> Tensor:
    """Concatenate the fitted context of ``expected`` channels to x, refusing one that is missing or misshapen."""
    if not expected:
        return x
    if context is None:
        raise ValueError("this flow is conditional: pass context to encode and decode")
    fitted = fit_context(context, x)
    if fitted.shape[1] != expected or fitted.shape[2:] != x.shape[2:] or fitted.shape[0] != x.shape[0]:
        raise ValueError(
            f"context of shape {tuple(context.shape)} does not fit features of shape {tuple(x.shape)}: "
            f"expected {expected} channels at that size after rearranging, got {tuple(fitted.shape)}"
        )
    return torch.cat([x, fitted.to(x.dtype)], 1)


def zero_init(layer: M) -> M:
    """Start a last layer at zero, so that its coupling starts at the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class ConvNet(nn.Module):
    """conv 3x3 - ReLU - conv 1x1 - ReLU - conv 3x3, the last one zero: (B, in, H, W) -> (B, out, H, W)."""

    def __init__(self, inputs: int, outputs: int, hidden: int, context: int = 0):
        super().__init__()
        self.context = context
        self.enter = nn.Conv2d(inputs + context, hidden, 3, padding=1)
        self.middle = nn.Conv2d(hidden, hidden, 1)
        self.leave = zero_init(nn.Conv2d(hidden, outputs, 3, padding=1))
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        h = with_context(x, context, self.context)
        h = F.relu(self.enter(h.contiguous(memory_format=torch.channels_last)), inplace=True)
        return self.leave(F.relu(self.middle(h), inplace=True))


def _rescale(layer: nn.Conv2d, factor: Tensor, shift: Tensor | None = None) -> None:
    """Multiply a convolution's outputs, channel by channel, and shift them."""
    weight = layer.weight
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias
    moved = bias * factor if shift is None else bias * factor + shift
    layer.weight = nn.Parameter((weight * factor[:, None, None, None]).to(weight), weight.requires_grad)
    layer.bias = nn.Parameter(moved.to(weight), weight.requires_grad)


def _unpadded(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """An unpadded convolution as one matrix product over its patches, for channels-last maps of few places.

    There the weights outweigh the map, and a convolution spends its time rearranging them.
    """
    kernel = conv.kernel_size[0]
    patches = x.permute(0, 2, 3, 1).unfold(1, kernel, 1).unfold(2, kernel, 1).permute(0, 1, 2, 4, 5, 3)
    weight = conv.weight.permute(0, 2, 3, 1)
    return F.linear(patches.flatten(3), weight.flatten(1), conv.bias).permute(0, 3, 1, 2)


class PatchNet(nn.Module):
    """conv - ActNorm - ReLU - conv, the last one zero and times exp(3 g): (B, in, S, S) -> (B, out, S, S), S = ``side``.

    Kernels are 3x3, padded where S is 8 or more. Maps of side 4 and 2 are read unpadded, by kernels of 3 and 2, which leaves
    side S / 2, with four times the channels, rearranged to side S: so each weight sees pixels, never padding. At side 1 the
    kernels are 1x1. ``g`` is learned per output channel.

    Source: Generative Flows as a General Purpose Solution for Inverse Problems, section 3 and public code.
    """

    def __init__(self, inputs: int, outputs: int, hidden: int, side: int):
        super().__init__()
        if side not in (1, 2, 4) and side < 8:
            raise ValueError(f"maps have side 1, 2, 4, 8 or more, got {side}")
        kernel = {1: 1, 2: 2}.get(side, 3)
        self.factor = 2 if side in (2, 4) else 1
        padding = 1 if side >= 8 else 0
        self.enter = nn.Conv2d(inputs, hidden * self.factor**2, kernel, padding=padding, bias=False)
        self.norm: nn.Module = ActNorm(hidden)
        self.leave = zero_init(nn.Conv2d(hidden, outputs * self.factor**2, kernel, padding=padding))
        self.gains = nn.Parameter(torch.zeros(outputs))
        with torch.no_grad():
            self.enter.weight.normal_(0, 0.05)
        self.to(memory_format=torch.channels_last)

    def _convolved(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        """As the weights lie: channels last, unless they were moved to the default format."""
        if conv.kernel_size[0] > 1 and conv.weight.is_contiguous():
            return conv(x.contiguous())
        return conv(x.contiguous(memory_format=torch.channels_last)) if conv.padding[0] else _unpadded(conv, x)

    def _spread(self, h: Tensor) -> Tensor:
        return F.pixel_shuffle(h, self.factor) if self.factor > 1 else h

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        h = self._spread(self._convolved(self.enter, x))
        if isinstance(self.norm, ActNorm):
            h = self.norm.encode(h)[0]
        h = self._spread(self._convolved(self.leave, F.relu(h, inplace=True)))
        return h * (3 * self.gains).exp()[:, None, None] if len(self.gains) else h

    @torch.no_grad()
    def fold(self) -> None:
        """Put the ActNorm into the first convolution and the gains into the second, for good."""
        if not isinstance(self.norm, ActNorm):
            return
        wide = self.factor**2
        scale = self.norm.log_scale.double().exp()
        _rescale(self.enter, scale.repeat_interleave(wide), (scale * self.norm.shift).repeat_interleave(wide))
        _rescale(self.leave, (3 * self.gains.double()).exp().repeat_interleave(wide))
        self.norm, self.gains = nn.Identity(), nn.Parameter(self.gains[:0], False)
        self.to(memory_format=torch.channels_last)


class ResNet(nn.Module):
    """conv 3x3 - residual blocks of (LayerNorm-free) ReLU-conv-ReLU-conv - conv 1x1, the last one zero.

    The residual couplings of Real NVP with a learned per-channel gain on each block in place of batch
    normalisation, so that a sample's density never depends on its batch.
    """

    def __init__(self, inputs: int, outputs: int, hidden: int, blocks: int, context: int = 0):
        super().__init__()
        self.context = context
        self.enter = nn.Conv2d(inputs + context, hidden, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(), nn.Conv2d(hidden, hidden, 3, padding=1), nn.ReLU(), nn.Conv2d(hidden, hidden, 3, padding=1)
            )
            for _ in range(blocks)
        )
        self.gains = nn.Parameter(torch.full((blocks, hidden), blocks**-0.5))
        self.leave = zero_init(nn.Conv2d(hidden, outputs, 1))
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        h = with_context(x, context, self.context)
        h = self.enter(h.contiguous(memory_format=torch.channels_last))
        for block, gain in zip(self.blocks, self.gains, strict=True):
            h = h + gain[:, None, None] * block(h)
        return self.leave(F.relu(h))


class MLP(nn.Module):
    """Fully connected layers with ReLU, the last one zero: (B, in) -> (B, out)."""

    def __init__(self, inputs: int, outputs: int, hidden: int, depth: int = 2, context: int = 0):
        super().__init__()
        self.context = context
        sizes = [inputs + context] + [hidden] * depth
        layers: list[nn.Module] = []
        for a, b in pairwise(sizes):
            layers += [nn.Linear(a, b), nn.ReLU()]
        self.body = nn.Sequential(*layers, zero_init(nn.Linear(sizes[-1], outputs)))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.body(with_context(x, context, self.context))
