"""Fewer layers for the same map: frozen ActNorms and channel mixings become one matrix."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .bijection import Bijection, Chain, Inverse
from .layers.actnorm import ActNorm
from .layers.mixing import ChannelAffine, LUConv1x1, Orthogonal, Permutation
from .layers.reshaping import Split

_LINEAR = (ActNorm, Orthogonal, LUConv1x1, Permutation)


def _as_matrix(layer: Bijection) -> tuple[torch.Tensor, torch.Tensor]:
    """The layer as z = W x + b, in float64."""
    if isinstance(layer, ActNorm):
        scale = layer.log_scale.double().exp()
        return torch.diag(scale), scale * layer.shift.double()
    if isinstance(layer, LUConv1x1):
        weight = layer.weight().double()
    elif isinstance(layer, Orthogonal):
        weight = layer.rotation().double()
    elif isinstance(layer, Permutation):
        weight = torch.eye(len(layer.order), dtype=torch.float64, device=layer.order.device)[layer.order]
    else:
        raise TypeError(f"{type(layer).__name__} is not linear across channels")
    return weight, torch.zeros(len(weight), dtype=torch.float64, device=weight.device)


@torch.no_grad()
def _merge(run: list[Bijection]) -> Bijection:
    if all(isinstance(layer, Permutation) for layer in run):
        return Chain(run)
    matrix, bias = _as_matrix(run[0])
    for layer in run[1:]:
        w, b = _as_matrix(layer)
        matrix, bias = w @ matrix, w @ bias + b
    dtype = next(t.dtype for layer in run for t in layer.state_dict().values() if t.is_floating_point())
    return ChannelAffine(matrix.to(dtype), bias.to(dtype))


def _flattened(chain: Chain) -> Iterator[Bijection]:
    """The layers of a chain and of the chains in it, in order; what is not linear is folded inside."""
    for layer in chain.layers:
        if isinstance(layer, Chain):
            yield from _flattened(layer)
        else:
            yield fold(layer)  # type: ignore[arg-type]


def fold(bijection: Bijection) -> Bijection:
    """The same map with each run of ActNorms and 1x1 convolutions replaced by one matrix; weights are fixed."""
    if isinstance(bijection, Split):
        return Split(fold(bijection.inner), bijection.keep)
    if isinstance(bijection, Inverse):
        return Inverse(fold(bijection.inner))
    if not isinstance(bijection, Chain):
        return bijection
    folded: list[Bijection] = []
    run: list[Bijection] = []
    for part in _flattened(bijection):
        if isinstance(part, _LINEAR):
            run.append(part)
            continue
        if run:
            folded.append(_merge(run))
            run = []
        folded.append(part)
    if run:
        folded.append(_merge(run))
    return Chain(folded)
