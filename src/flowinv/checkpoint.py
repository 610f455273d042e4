"""An optimiser's state as plain tensors, so that a checkpoint needs no pickle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from .store import BundleError


@contextmanager
def whole(folder: str | Path, what: str) -> Iterator[None]:
    """While a bundle is read into objects: what it misses, or holds of another kind, makes one line of its own."""
    try:
        yield
    except KeyError as error:
        raise BundleError(f"{folder} is not a whole {what}: it misses {error}") from None
    except (TypeError, AttributeError, IndexError, StopIteration, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BundleError(f"{folder} is not a whole {what}: {reason}") from None


def pack(prefix: str, module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The module's state and the optimiser's moments for it, under ``prefix``, for safetensors."""
    tensors = {f"{prefix}.state.{k}": v for k, v in module.state_dict().items()}
    for name, parameter in module.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{prefix}.optimizer.{key}.{name}"] = value
    return tensors


def fit_or_refuse(found: dict[str, Tensor], expected: dict[str, Tensor], what: str) -> None:
    """Refuse tensors that are missing, of another shape or type, left over, or not finite, naming the first."""
    wrong = [k for k, t in expected.items() if k not in found or found[k].shape != t.shape or found[k].dtype != t.dtype]
    wrong += [k for k in found if k not in expected]
    if wrong:
        raise BundleError(f"{what} do not fit: {len(wrong)} tensors differ, first {wrong[0]}")
    if bad := [k for k, t in found.items() if t.is_floating_point() and not torch.isfinite(t).all()]:
        raise BundleError(f"{what} hold NaN or infinite values in {bad[0]}")


def unpack(prefix: str, tensors: dict[str, Tensor], module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """The inverse of ``pack``: both module and optimiser go on where they were; what does not fit is refused."""
    state, moments = f"{prefix}.state.", f"{prefix}.optimizer."
    weights = {k.removeprefix(state): v for k, v in tensors.items() if k.startswith(state)}
    fit_or_refuse(weights, module.state_dict(), "the checkpoint's weights")
    parameters = dict(module.named_parameters())
    found: dict[str, dict[str, Tensor]] = {}
    for k, value in tensors.items():
        if k.startswith(moments):
            key, _, name = k.removeprefix(moments).partition(".")
            if name not in parameters or value.shape not in (parameters[name].shape, ()):
                raise BundleError(f"the checkpoint's optimiser state does not fit: {k}")
            found.setdefault(name, {})[key] = value
    if len({frozenset(values) for values in found.values()}) > 1:
        raise BundleError("the checkpoint's optimiser state is not whole")
    module.load_state_dict(weights)
    for name, values in found.items():
        optimizer.state[parameters[name]] = {
            key: value if key == "step" else value.to(parameters[name].device) for key, value in values.items()
        }
