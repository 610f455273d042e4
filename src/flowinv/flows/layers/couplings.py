"""Coupling layers: one part of the input, read by a network, moves the other part."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..bijection import Bijection, constant_log_det, event_sum


def clamped(raw: Tensor, limit: float) -> Tensor:
    """limit * tanh(raw / limit): log-scales stay within (-limit, limit), which keeps exp() tame."""
    return limit * torch.tanh(raw / limit)


class Coupling(Bijection):
    """What every coupling shares: the call to its network, optionally in bfloat16.

    With ``bf16`` set, only the network runs in bfloat16; the state, the scale and the log-determinant
    keep their precision. Meant for fitting, not for log-densities that decide an acceptance.
    """

    bf16 = False

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def parameters_from(self, conditioner: Tensor, context: Tensor | None) -> Tensor:
        if not self.bf16:
            return self.net(conditioner, context)
        with torch.autocast(conditioner.device.type, torch.bfloat16):
            out = self.net(conditioner, context)
        return out.to(conditioner.dtype)


class ScalingCoupling(Coupling):
    """(x1, x2) -> (x1, exp(s(x1)) (x2 + t(x1))); a subclass says what log-scale s comes of the network's raw one.

    x1 is the first ``size // 2`` of the ``size`` channels (rounded up where odd); ``net`` returns twice the channels of x2.
    """

    def __init__(self, size: int, net: nn.Module):
        super().__init__(net)
        self.first = size - size // 2

    def log_scale(self, raw: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define log_scale")

    def _split(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x1, x2 = x[:, : self.first], x[:, self.first :]
        raw_scale, shift = self.parameters_from(x1, context).chunk(2, 1)
        return x1, x2, self.log_scale(raw_scale), shift

    def encode(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x1, x2, s, t = self._split(x, context)
        return torch.cat([x1, (x2 + t) * s.exp()], 1), event_sum(s)

    def decode(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if not self.net.training:
            z1, z2, s, t = self._split(z, context)
        else:  # a norm in the network takes its start from encoded data, not from noise
            self.net.eval()
            z1, z2, s, t = self._split(z, context)
            self.net.train()
        return torch.cat([z1, z2 * (-s).exp() - t], 1), -event_sum(s)


class AffineCoupling(ScalingCoupling):
    r"""(x1, x2) -> (x1, exp(s(x1)) (x2 + t(x1))), with s clamped to (-clamp, clamp).

    x1 is the first ``size // 2`` of the ``size`` channels (rounded up where odd), s and t come from ``net``,
    which returns twice the channels of x2. :math:`\log|\det| = \sum s`.

    Source: Dinh et al., Real NVP, eq. 7-8.
    """

    def __init__(self, size: int, net: nn.Module, clamp: float = 2.0):
        super().__init__(size, net)
        self.clamp = clamp

    def log_scale(self, raw: Tensor) -> Tensor:
        return clamped(raw, self.clamp)


class SigmoidCoupling(ScalingCoupling):
    r"""(x1, x2) -> (x1, sigmoid(s(x1) + 2) (x2 + t(x1))): scales lie in (0, 1), and start at sigmoid(2) = .88.

    x1 is the first ``size // 2`` channels (rounded up where odd). :math:`\log|\det| = \sum \log\mathrm{sigmoid}(s + 2)`.
    Shift, then scale, as both public codes do; the paper's eq. 11 is written the other way round. With ``clamp`` s stays within
    (-clamp, clamp). Without, as published, nothing keeps the inverse's 1 / scale from blowing up: a draw in some hundred
    leaves all bounds.

    Source: Kingma and Dhariwal, Glow, public code; Generative Flows as a General Purpose Solution for Inverse Problems.
    """

    def __init__(self, size: int, net: nn.Module, clamp: float | None = None):
        super().__init__(size, net)
        self.clamp = clamp

    def log_scale(self, raw: Tensor) -> Tensor:
        return F.logsigmoid((raw if self.clamp is None else clamped(raw, self.clamp)) + 2)


class AdditiveCoupling(Coupling):
    """(x1, x2) -> (x1, x2 + t(x1)): volume-preserving. Source: Dinh et al., NICE, section 3.2."""

    def __init__(self, size: int, net: nn.Module):
        super().__init__(net)
        self.first = size - size // 2

    def encode(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x1, x2 = x[:, : self.first], x[:, self.first :]
        return torch.cat([x1, x2 + self.parameters_from(x1, context)], 1), constant_log_det(0.0, x)

    def decode(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z1, z2 = z[:, : self.first], z[:, self.first :]
        return torch.cat([z1, z2 - self.parameters_from(z1, context)], 1), constant_log_det(0.0, z)


def checkerboard_mask(height: int, width: int, odd: bool = False) -> Tensor:
    """Ones where row + column is even (odd, if asked), shape (1, H, W)."""
    grid = torch.arange(height)[:, None] + torch.arange(width)
    return ((grid + odd) % 2 == 0).float()[None]


def channel_mask(channels: int, odd: bool = False) -> Tensor:
    """Ones on the first half of the channels (the second, if odd), shape (C, 1, 1)."""
    mask = torch.zeros(channels)
    mask[: channels // 2] = 1
    return (1 - mask if odd else mask)[:, None, None]


class MaskedAffineCoupling(Coupling):
    r"""z = m x + (1 - m) exp(s(m x)) (x + t(m x)): elements where the mask m is 1 pass and move the others.

    ``net`` takes the masked input (B, C, H, W) and returns twice its channels; s is clamped to (-clamp, clamp).

    Source: Dinh et al., Real NVP, eq. 9 (checkerboard and channel-wise masks).
    """

    mask: Tensor

    def __init__(self, mask: Tensor, net: nn.Module, clamp: float = 2.0):
        super().__init__(net)
        self.register_buffer("mask", mask)
        self.clamp = clamp

    def _scale_shift(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        raw_scale, shift = self.parameters_from(x * self.mask, context).chunk(2, 1)
        free = 1 - self.mask
        return clamped(raw_scale, self.clamp) * free, shift * free

    def encode(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        s, t = self._scale_shift(x, context)
        return (x + t) * s.exp(), event_sum(s)

    def decode(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        s, t = self._scale_shift(z, context)
        return z * (-s).exp() - t, -event_sum(s)
