"""ActNorm: per-channel scale and shift, set from the first batch seen in training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..bijection import Bijection, constant_log_det


class ActNorm(Bijection):
    r"""z = exp(s) (x + b) per channel, initialised so that the first training batch has zero mean and unit variance.

    Shapes (B, C, H, W) or (B, D). Whether it has been initialised is part of the saved state, so a
    loaded flow is never re-initialised by the first batch it meets.

    Source: Kingma and Dhariwal, Glow, section 3.1.
    """

    initialised: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(torch.zeros(channels))
        self.register_buffer("initialised", torch.tensor(False))
        self._ready = False  # mirrors the buffer once true: reading a tensor would break a compiled graph

    def _shaped(self, t: Tensor, like: Tensor) -> Tensor:
        return t.view(1, -1, *([1] * (like.dim() - 2)))

    @torch.no_grad()
    def _initialise(self, x: Tensor) -> None:
        dims = [d for d in range(x.dim()) if d != 1]
        self.shift.copy_(-x.mean(dims))
        if x.numel() > x.shape[1]:  # one value per channel has no spread: keep its scale
            self.log_scale.copy_(-x.std(dims).clamp_min(1e-3).log())
        self.initialised.fill_(True)

    def _log_det(self, like: Tensor) -> Tensor:
        return constant_log_det(self.log_scale.sum() * (like.shape[1:].numel() // like.shape[1]), like)

    def encode(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.training and not self._ready and len(x):
            if not self.initialised:
                self._initialise(x)
            self._ready = True
        scale, shift = self._shaped(self.log_scale.exp(), x), self._shaped(self.shift, x)
        return (x + shift) * scale, self._log_det(x)

    def decode(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        scale, shift = self._shaped((-self.log_scale).exp(), z), self._shaped(self.shift, z)
        return z * scale - shift, -self._log_det(z)
