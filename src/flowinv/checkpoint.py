"""An optimiser's state as plain tensors, so that a checkpoint needs no pickle."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def pack(prefix: str, module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The module's state and the optimiser's moments for it, under ``prefix``, for safetensors."""
    tensors = {f"{prefix}.state.{k}": v for k, v in module.state_dict().items()}
    for name, parameter in module.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{prefix}.optimizer.{key}.{name}"] = value
    return tensors


def unpack(prefix: str, tensors: dict[str, Tensor], module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """The inverse of ``pack``: both module and optimiser go on where they were."""
    state, moments = f"{prefix}.state.", f"{prefix}.optimizer."
    module.load_state_dict({k.removeprefix(state): v for k, v in tensors.items() if k.startswith(state)})
    found: dict[str, dict[str, Tensor]] = {}
    for k, value in tensors.items():
        if k.startswith(moments):
            key, name = k.removeprefix(moments).split(".", 1)
            found.setdefault(name, {})[key] = value
    for name, parameter in module.named_parameters():
        if name in found:
            optimizer.state[parameter] = found[name]
