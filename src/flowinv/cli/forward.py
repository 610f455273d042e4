"""What the command line makes of its words for an operator and a noise model."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..flows import Flow
    from ..operators import Operator


def import_operator(name: str) -> Operator:
    from ..operators import as_operator

    module, _, function = name.partition(":")
    if not module or not function:
        raise ValueError(f"--operator takes module:function, got {name!r}")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module)
        for part in function.split("."):
            found = getattr(found, part)
    except (ImportError, SyntaxError, OSError, *_FAULTS) as error:
        if isinstance(error, AttributeError) and module in sys.modules:
            raise ValueError(f"--operator {name}: module {module} has no {function}") from None
        raise ValueError(f"--operator {name} cannot be imported: {type(error).__name__}: {error}") from None
    if not callable(found):
        raise ValueError(f"--operator {name} is a {type(found).__name__}, expected a function")
    return as_operator(found)


# what a user's code raises where it is wrong or is given what it does not expect
_FAULTS = (RuntimeError, ArithmeticError, LookupError, AttributeError, TypeError, ValueError, NameError, AssertionError)


def try_operator(operator: Operator, name: str, flow: Flow) -> None:
    """Call a user's function once, so that what is wrong with it is told in its name."""
    import torch

    with torch.no_grad():
        x = flow.decode(flow.noise((2,), torch.Generator().manual_seed(0)))[0]
    try:
        operator(x[:1])
        y = operator(x.requires_grad_())
        gradient = torch.autograd.grad((y + 1).sin().sum(), x)[0] if y.requires_grad else None
    except _FAULTS as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"--operator {name} fails on images of shape (1, {', '.join(map(str, flow.shape))}): {reason}"
        ) from None
    if gradient is not None and not gradient.any():
        raise ValueError(f"--operator {name} has a gradient of zero everywhere: nothing can be inferred through it")


def observations(operator: Operator) -> int:
    """For how many observations an operator was made: more than one where it has a mask for each."""
    mask = operator.observed
    return len(mask) if mask is not None and operator.shape and mask.dim() > len(operator.shape) else 1


def named_likelihood(kind: str, scale: float, beta: float | None = None, weights: str | Path | None = None) -> Any:
    """The noise model of a name; of a perceptual distance, the generalised one with ``beta``."""
    from ..likelihoods import Distance, Gaussian, Laplace, Poisson

    kinds = {"gaussian": Gaussian, "laplace": Laplace, "poisson": Poisson}
    if kind in kinds:
        if beta is not None or weights is not None:
            raise ValueError(f"beta and weights belong to a distance, not to the {kind} likelihood")
        return kinds[kind](scale)
    from ..metrics import distance_from_spec
    from ..metrics.named import NAMES

    if kind not in NAMES:
        raise ValueError(f"unknown likelihood {kind!r}: expected one of {', '.join((*kinds, *NAMES))}")
    if beta is None:
        raise ValueError(f"the distance {kind} needs beta, the weight of exp(-beta d(y, A(x)))")
    return Distance(distance_from_spec({"name": kind, "weights": None if weights is None else str(weights)}), beta)
