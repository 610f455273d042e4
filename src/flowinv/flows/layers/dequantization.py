"""From integers to continuous pixels: uniform noise, or noise whose shape is learned with the flow."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..bijection import event_sum
from ..networks import ConvNet
from .transforms import dequantize, within_level


class Dequantizer(nn.Module):
    r"""x = (k + v) / 2^bits with v = Phi(m(k) + s(k) e), e ~ N(0, I): noise within a grey level, shaped by a network.

    A flow pays for uniform noise: a background pixel is then uniform over its grey level, which after
    Gaussianisation is a *truncated* Gaussian, a shape affine couplings cannot make. Learned noise takes that
    burden off the flow and costs nothing once the flow is trained. m = 0, s = 1, where it starts, is uniform.

    ``sample`` returns x and log q(v | k); then log2 P(k) >= E[log2 p(x) - log2 q(v | k)] - D bits is the bound
    that bits/dim reports.

    Source: Ho et al., Flow++, section 3.1 (variational dequantization).
    """

    def __init__(self, channels: int, bits: int, hidden: int = 32):
        super().__init__()
        self.bits = bits
        self.hidden = hidden
        self.net = ConvNet(8 * channels, 8 * channels, hidden)
        self.bf16 = False

    def _mean_and_log_scale(self, images: Tensor) -> tuple[Tensor, Tensor]:
        levels = nn.functional.pixel_unshuffle(images.float() / (2**self.bits - 1), 2)
        features = torch.cat([levels * 2 - 1, (levels > 0).float() * 2 - 1], 1)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            out = self.net(features.to(self.net.enter.weight.dtype))
        mean, raw = nn.functional.pixel_shuffle(out.to(self.net.enter.weight.dtype), 2).chunk(2, 1)
        return mean, 2 * torch.tanh(raw / 2)

    def sample(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Dequantised pixels in (0, 1), shape (B, C, H, W), and log q(v | k) in nats, shape (B,)."""
        mean, log_scale = self._mean_and_log_scale(images)
        noise = torch.randn(images.shape, generator=generator, dtype=mean.dtype)
        w = mean + log_scale.exp() * noise
        v = torch.special.ndtr(w).clamp(1e-6, 1 - 1e-6)
        log_q = event_sum(0.5 * w.square() - 0.5 * noise.square() - log_scale)
        return within_level(images, v) / 2**self.bits, log_q


def dequantize_with(
    dequantizer: Dequantizer | None, images: Tensor, bits: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Learned noise where there is a dequantizer, uniform noise (log q = 0) where there is none."""
    if dequantizer is None:
        x = dequantize(images, bits, generator)
        return x, x.new_zeros(len(x))
    return dequantizer.sample(images, generator)
