"""Maps that move elements without changing them: squeeze, and the split of a multiscale flow."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..bijection import Bijection, constant_log_det


class Squeeze(Bijection):
    """Trade space for channels: (B, C, H, W) <-> (B, 4C, H/2, W/2); log-determinant 0."""

    def encode(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if x.shape[-1] % 2 or x.shape[-2] % 2:
            raise ValueError(f"squeeze halves height and width, so both must be even; got shape {tuple(x.shape)}")
        return F.pixel_unshuffle(x, 2), constant_log_det(0.0, x)

    def decode(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return F.pixel_shuffle(z, 2), constant_log_det(0.0, z)


class Split(Bijection):
    """Send the first ``keep`` channels on through ``inner``; the rest are latent already.

    ``inner`` must return what it was given in shape, so the latent keeps the layout of the image: a
    latent element lies where the pixels it governs lie, at every scale, and later convolutions over
    the latent see neighbours.

    Source: Dinh et al., Density estimation using Real NVP, section 3.6.
    """

    def __init__(self, inner: Bijection, keep: int):
        super().__init__()
        self.inner = inner
        self.keep = keep

    def encode(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        kept, log_det = self.inner.encode(x[:, : self.keep], context)
        return torch.cat([kept, x[:, self.keep :]], 1), log_det

    def decode(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        kept, log_det = self.inner.decode(z[:, : self.keep], context)
        return torch.cat([kept, z[:, self.keep :]], 1), log_det
