"""Forward operators: the noise-free map from data to measurement, for any number of draws of each observation."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

Self = TypeVar("Self", bound="Operator")


class Operator:
    r"""The map A of y = A(x) + noise, without the noise.

    Called on x of shape (..., B, \*shape) it gives (..., B, \*measurement): B observations, any leading draw
    axes. ``shape`` is the shape of one sample; an operator that was not told it (None) takes (B, \*shape) alone
    and learns it from the problem through :meth:`on`.

    ``observed`` marks the measured elements: bool, broadcastable to (B, \*measurement), None if all are; the
    others are exact zeros in y, and no likelihood counts them. ``spec`` is the JSON-ready description from which
    ``flowinv.tasks`` rebuilds the operator (None: it cannot), ``tensors()`` what the description needs beside it.
    ``in_image_units`` tells that a measurement of pixels in [0, 1] lies in [0, 1].

    A subclass writes ``apply``, from (S, B, \*shape) to (S, B, \*measurement).
    """

    observed: Tensor | None = None
    spec: dict[str, Any] | None = None
    in_image_units: bool = False

    def __init__(self, shape: Sequence[int] | None = None):
        self.shape = None if shape is None else tuple(int(s) for s in shape)

    def apply(self, x: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define apply")

    def __call__(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(
                f"{self!r} expects a floating-point tensor, got {x.dtype if isinstance(x, Tensor) else type(x).__name__}"
            )
        draws = self._draw_axes(x)
        y = self.apply(x.reshape(-1, *x.shape[draws:]))
        return y.reshape(*x.shape[:draws], *y.shape[1:])

    def _draw_axes(self, x: Tensor) -> int:
        """How many axes of x come before the observations."""
        if self.shape is None:
            return 0
        draws = x.dim() - 1 - len(self.shape)
        if draws < 0 or x.shape[draws + 1 :] != self.shape:
            raise ValueError(f"{self!r} expects (..., B, {_listed(self.shape)}), got {tuple(x.shape)}")
        return draws

    def on(self: Self, shape: Sequence[int]) -> Self:
        """This operator for samples of a known shape; refused where it was made for another one."""
        shape = tuple(int(s) for s in shape)
        if self.shape == shape:
            return self
        if self.shape is not None:
            raise ValueError(f"{self!r} is for samples of shape {self.shape}, got {shape}")
        twin = copy.copy(self)
        twin.shape = shape
        twin._check_shape(shape)
        return twin

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        """Refuse a sample shape that the operator cannot take."""

    def to_image(self, y: Tensor) -> Tensor | None:
        """A picture (B, C, H, W) of a measurement (B, ...) with one or three channels, or None where there is none."""
        return y if y.dim() == 4 and y.shape[1] in (1, 3) else None

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that ``spec`` needs beside it."""
        return {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._about()})"

    def _about(self) -> str:
        return "" if self.shape is None else f"shape={self.shape}"


class Identity(Operator):
    """A(x) = x: denoising."""

    in_image_units = True

    def __init__(self, shape: Sequence[int] | None = None):
        super().__init__(shape)
        self.spec = {"task": "denoise", "options": {}}

    def apply(self, x: Tensor) -> Tensor:
        return x


class Mask(Operator):
    r"""A(x)_i = x_i where the mask is 1, an exact 0 elsewhere.

    ``mask`` broadcasts to (B, \*shape) without enlarging a sample: one mask for all observations, or one for
    each. Its values are bool, or 0 and 1; anything else is refused.
    """

    in_image_units = True

    def __init__(self, mask: Tensor, shape: Sequence[int] | None = None):
        super().__init__(shape)
        self.mask = binary(mask, "mask")
        if not self.mask.any():
            raise ValueError(f"mask of shape {tuple(self.mask.shape)} is 0 everywhere: nothing is observed")
        self.spec = {"task": "inpaint-mask", "options": {"mask": None}}
        if self.shape is not None:
            self._check_shape(self.shape)

    @property
    def observed(self) -> Tensor:  # type: ignore[override]
        return self.mask

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        mask = self.mask
        mask = mask.reshape((1,) * (len(shape) + 1 - mask.dim()) + mask.shape)
        if mask.dim() != len(shape) + 1 or any(m not in (1, s) for m, s in zip(mask.shape[1:], shape, strict=True)):
            raise ValueError(f"mask of shape {tuple(self.mask.shape)} does not fit samples of shape {shape}")
        self.mask = mask

    def apply(self, x: Tensor) -> Tensor:
        try:
            fits = torch.broadcast_shapes(self.mask.shape, x.shape[1:]) == x.shape[1:]
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(f"mask of shape {tuple(self.mask.shape)} does not fit x of shape {tuple(x.shape[1:])}")
        return torch.where(self.mask.to(x.device), x, x.new_zeros(()))

    def tensors(self) -> dict[str, Tensor]:
        return {"mask": self.mask} if self.spec and self.spec["task"] == "inpaint-mask" else {}

    def _about(self) -> str:
        return f"mask={tuple(self.mask.shape)}, observed={self.mask.double().mean().item():.3g}"


class MatrixOperator(Operator):
    """A(x) = M x on the flattened sample: M is (m, D), the measurement (B, m)."""

    def __init__(self, matrix: Tensor, shape: Sequence[int] | None = None):
        super().__init__(shape)
        if not isinstance(matrix, Tensor) or not matrix.is_floating_point() or matrix.dim() != 2:
            raise ValueError(f"matrix must be a floating-point tensor (m, D), got {_described(matrix)}")
        if matrix.numel() == 0 or not torch.isfinite(matrix).all():
            raise ValueError(f"matrix of shape {tuple(matrix.shape)} is empty or holds NaN or infinite values")
        self.matrix = matrix.detach().clone()
        self._cast: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        self.spec = {"task": "matrix", "options": {}}
        if self.shape is not None:
            self._check_shape(self.shape)

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        if math.prod(shape) != self.matrix.shape[1]:
            raise ValueError(
                f"matrix of shape {tuple(self.matrix.shape)} does not fit samples of shape {shape}: "
                f"{math.prod(shape)} elements, expected {self.matrix.shape[1]}"
            )

    def apply(self, x: Tensor) -> Tensor:
        self._check_shape(tuple(x.shape[2:]))
        key = (x.dtype, x.device)
        if key not in self._cast:
            self._cast[key] = self.matrix.to(device=x.device, dtype=x.dtype)
        return x.flatten(2) @ self._cast[key].T

    def tensors(self) -> dict[str, Tensor]:
        return {"matrix": self.matrix} if self.spec and self.spec["task"] == "matrix" else {}

    def _about(self) -> str:
        return f"matrix={tuple(self.matrix.shape)}"


class Grey(Operator):
    """A(x) = sum_c w_c x_c: colour (B, 3, H, W) to grey (B, 1, H, W), by default the mean of the channels."""

    in_image_units = True

    def __init__(self, weights: Sequence[float] | None = None, shape: Sequence[int] | None = None):
        super().__init__(shape)
        self.weights = (1 / 3,) * 3 if weights is None else tuple(float(w) for w in weights)
        if len(self.weights) != 3 or min(self.weights) < 0 or not math.isclose(sum(self.weights), 1, abs_tol=1e-6):
            raise ValueError(f"grey weights must be 3 non-negative numbers that sum to 1, got {self.weights}")
        if self.shape is not None:
            self._check_shape(self.shape)

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 3 or shape[0] != 3:
            raise ValueError(f"grey is made of colour images (3, H, W), got samples of shape {shape}")

    def apply(self, x: Tensor) -> Tensor:
        self._check_shape(tuple(x.shape[2:]))
        return (x * x.new_tensor(self.weights).view(3, 1, 1)).sum(-3, keepdim=True)


class AveragePool(Operator):
    """A(x): the mean of each factor x factor block of pixels, (B, C, H, W) to (B, C, H / factor, W / factor)."""

    in_image_units = True

    def __init__(self, factor: int, shape: Sequence[int] | None = None):
        super().__init__(shape)
        if isinstance(factor, bool) or not isinstance(factor, int) or factor < 2:
            raise ValueError(f"factor must be an integer of at least 2, got {factor!r}")
        self.factor = factor
        if self.shape is not None:
            self._check_shape(self.shape)

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 3 or shape[1] % self.factor or shape[2] % self.factor:
            raise ValueError(f"pooling by {self.factor} needs images (C, H, W) with sides divisible by it, got {shape}")

    def apply(self, x: Tensor) -> Tensor:
        self._check_shape(tuple(x.shape[2:]))
        return F.avg_pool2d(x.flatten(0, 1), self.factor).unflatten(0, x.shape[:2])

    def _about(self) -> str:
        return f"factor={self.factor}"


class FunctionOperator(Operator):
    r"""Any callable as an operator.

    ``per_observation=False``: ``fn`` takes (N, \*shape) and acts on each item by itself, so that draws are
    flattened into the batch. ``per_observation=True``: ``fn`` holds something per observation (a mask, a kernel
    for each), takes (B, \*shape) and is mapped over draws by ``torch.func.vmap``, because flattened draws would
    meet the wrong observation's part. ``observed`` as in :class:`Operator`.
    """

    def __init__(
        self,
        fn: Callable[[Tensor], Tensor],
        per_observation: bool = False,
        observed: Tensor | None = None,
        shape: Sequence[int] | None = None,
        name: str | None = None,
    ):
        super().__init__(shape)
        if not callable(fn):
            raise TypeError(f"an operator must be callable, got {type(fn).__name__}")
        self.fn = fn
        self.per_observation = bool(per_observation)
        self.observed = None if observed is None else binary(observed, "observed")
        self.name = name or getattr(fn, "__name__", type(fn).__name__)

    def apply(self, x: Tensor) -> Tensor:
        if self.per_observation and x.shape[0] != 1:
            y = torch.func.vmap(self.fn)(x)
        elif self.per_observation:
            y = self._checked(self.fn(x[0]), x.shape[1]).unsqueeze(0)
        else:
            flat = x.flatten(0, 1)
            y = self._checked(self.fn(flat), len(flat)).unflatten(0, x.shape[:2])
        return y

    def _checked(self, y: Any, n: int) -> Tensor:
        if not isinstance(y, Tensor) or not y.is_floating_point() or y.dim() < 1 or y.shape[0] != n:
            raise ValueError(f"operator {self.name} must return a real tensor ({n}, ...), got {_described(y)}")
        return y

    def _about(self) -> str:
        return f"{self.name}, per_observation={self.per_observation}"


def as_operator(operator: Operator | Callable[[Tensor], Tensor]) -> Operator:
    """An operator as it is; any other callable, taken to act item by item, wrapped."""
    return operator if isinstance(operator, Operator) else FunctionOperator(operator)


def binary(mask: Tensor, name: str) -> Tensor:
    """A bool copy of a mask whose values are bool, or 0 and 1; anything else is refused."""
    if not isinstance(mask, Tensor) or mask.is_complex() or mask.numel() == 0:
        raise TypeError(f"{name} must be a non-empty tensor of 0 and 1, got {_described(mask)}")
    if mask.dtype != torch.bool and not ((mask == 0) | (mask == 1)).all():
        wrong = mask[(mask != 0) & (mask != 1)][0].item()
        raise ValueError(f"{name} must hold only 0 (not observed) and 1 (observed), got {wrong:g}")
    return mask.detach().to(torch.bool, copy=True)


def _listed(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape))


def _described(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
