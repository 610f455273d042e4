"""Inverse problems by name: the operator, the noise, and a description from which both are rebuilt."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..likelihoods import Gaussian, Likelihood, likelihood_from_spec
from ..operators import MatrixOperator, Operator
from ..store import under
from .degradations import colorize, compressed_sensing, deblur, denoise, superres
from .inpainting import inpaint_box, inpaint_half, inpaint_mask, inpaint_pixels, inpaint_subpixels
from .options import jsonable


@dataclass(frozen=True)
class TaskInfo:
    """One line about a task, and one about each of its options."""

    description: str
    options: Mapping[str, str]


_FRACTION = "the part that is observed, in (0, 1]; .5 by default"

_SEED = "which random operator; 0 by default"

_BUILDERS: dict[str, Callable[..., Operator]] = {
    **{f"inpaint-{half}": partial(inpaint_half, half=half) for half in ("bottom", "top", "left", "right")},
    "inpaint-box": inpaint_box,
    "inpaint-pixels": inpaint_pixels,
    "inpaint-subpixels": inpaint_subpixels,
    "inpaint-mask": inpaint_mask,
    "denoise": denoise,
    "deblur": deblur,
    "superres": superres,
    "colorize": colorize,
    "compressed-sensing": compressed_sensing,
}

TASKS: dict[str, TaskInfo] = {
    "inpaint-bottom": TaskInfo("complete an image of which the bottom half is observed", {}),
    "inpaint-top": TaskInfo("complete an image of which the top half is observed", {}),
    "inpaint-left": TaskInfo("complete an image of which the left half is observed", {}),
    "inpaint-right": TaskInfo("complete an image of which the right half is observed", {}),
    "inpaint-box": TaskInfo(
        "fill a hidden box",
        {
            "size": "side of the centred box in pixels, or HxW; half of each side by default",
            "rows": "hidden rows a:b, b not included, instead of the centre",
            "columns": "hidden columns a:b, b not included, instead of the centre",
        },
    ),
    "inpaint-pixels": TaskInfo("complete an image from random pixels", {"fraction": _FRACTION, "seed": _SEED}),
    "inpaint-subpixels": TaskInfo(
        "complete an image from random sub-pixels, each channel by itself", {"fraction": _FRACTION, "seed": _SEED}
    ),
    "inpaint-mask": TaskInfo(
        "complete an image from the pixels where a mask is white",
        {"mask": "a picture (0 and 255) or an .npy of 0 and 1"},
    ),
    "denoise": TaskInfo("remove noise", {}),
    "deblur": TaskInfo(
        "sharpen a blurred image",
        {
            "kernel": "gaussian (default), box or motion",
            "width": "standard deviation of the gaussian in pixels, or HxW; 1 by default",
            "size": "side of the box (3), or length of the motion (7), in pixels",
            "angle": "direction of the motion in degrees, anticlockwise from the row; 0 by default",
            "padding": "reflect (default), circular, replicate, constant, grey or valid",
        },
    ),
    "superres": TaskInfo(
        "enlarge an image",
        {
            "factor": "how many times smaller the measurement is; 2 by default",
            "filter": "average (default: block means), gaussian, bilinear, bicubic, sinc or none",
        },
    ),
    "colorize": TaskInfo("colour a grey image", {"weights": "mean (default) or luma"}),
    "compressed-sensing": TaskInfo(
        "recover an image from random projections, A ~ N(0, 1/m)",
        {"measurements": "m; a sixth of the image's elements by default", "seed": _SEED},
    ),
}


@dataclass(frozen=True)
class Task:
    """An operator and a likelihood with the description (JSON-ready) that :func:`task_from_spec` rebuilds them from."""

    operator: Operator
    likelihood: Likelihood
    spec: dict[str, Any]

    def observe(self, x: Tensor, generator: torch.Generator, noise: bool = True) -> Tensor:
        r"""A measurement of images x (B, \*shape): y ~ p(y | A(x)), or A(x) itself; unobserved elements are 0."""
        shape = self.operator.shape or ()
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(
                f"x must be a floating-point tensor, got {x.dtype if isinstance(x, Tensor) else type(x).__name__}"
            )
        if x.dim() != 1 + len(shape) or x.shape[1:] != shape:
            raise ValueError(f"x must have shape (B, {', '.join(map(str, shape))}), got {tuple(x.shape)}")
        if not torch.isfinite(x).all():
            raise ValueError(f"x has {int((~torch.isfinite(x)).sum())} values that are NaN or infinite")
        with torch.no_grad():
            y = self.operator(x)
            y = self.likelihood.sample(y, generator) if noise else y.clone()
            observed = self.operator.observed
            return y if observed is None else torch.where(observed.to(y.device), y, y.new_zeros(()))

    def tensors(self) -> dict[str, Tensor]:
        """The tensors to keep beside ``spec``."""
        return {
            **{f"operator.{k}": t for k, t in self.operator.tensors().items()},
            **{f"likelihood.{k}": t for k, t in self.likelihood.tensors().items()},
        }


def task(
    name: str,
    shape: Sequence[int],
    /,
    sigma: float | Tensor = 0.1,
    likelihood: Likelihood | None = None,
    **options: Any,
) -> Task:
    """The task of that name for samples of a shape, with Gaussian noise of standard deviation ``sigma``.

    ``likelihood`` replaces the Gaussian. ``TASKS`` lists names and options; randomness depends on the option
    ``seed`` alone.
    """
    operator = _build(name, shape, options)
    if likelihood is None:
        likelihood = Gaussian(sigma)
    if not isinstance(likelihood, Likelihood):
        raise TypeError(f"likelihood must be a Likelihood, got {likelihood!r}")
    assert operator.spec is not None
    return Task(operator, likelihood, {**operator.spec, "likelihood": likelihood.spec})


def task_from_spec(spec: Mapping[str, Any], shape: Sequence[int], tensors: Mapping[str, Tensor] | None = None) -> Task:
    """The task whose ``spec`` and ``tensors()`` these are, with an identical operator."""
    if not isinstance(spec, Mapping) or not isinstance(spec.get("options"), Mapping) or "task" not in spec:
        raise ValueError(f"a task's description needs 'task' and 'options', got {spec!r}")
    if spec.get("likelihood") is None:
        raise ValueError(f"the likelihood of this {spec['task']} task was code and is not in its description")
    saved = dict(tensors or {})
    operator = operator_from_spec(spec, shape, under("operator", saved))
    likelihood = likelihood_from_spec(spec["likelihood"], under("likelihood", saved))
    return Task(operator, likelihood, {**(operator.spec or {}), "likelihood": likelihood.spec})


def operator_from_spec(
    spec: Mapping[str, Any], shape: Sequence[int], tensors: Mapping[str, Tensor] | None = None
) -> Operator:
    """The operator whose ``spec`` and ``tensors()`` these are."""
    options = dict(spec["options"])
    if spec["task"] == "matrix":  # a MatrixOperator that was made by hand and so has no name among TASKS
        if not tensors or "matrix" not in tensors:
            raise ValueError("the matrix of this operator was saved as a tensor, which is missing")
        return MatrixOperator(tensors["matrix"], _checked_shape(shape))
    if spec["task"] == "inpaint-mask":
        path = options.get("mask")
        if tensors and "mask" in tensors:
            options["mask"] = tensors["mask"]
        elif path is None:
            raise ValueError("the mask of this inpaint-mask task was saved as a tensor, which is missing")
        operator = _build("inpaint-mask", shape, options)
        operator.spec = {"task": "inpaint-mask", "options": {"mask": path}}
        return operator
    return _build(spec["task"], shape, options)


def _build(name: str, shape: Sequence[int], options: Mapping[str, Any]) -> Operator:
    """The operator of a task, with its spec: the options given and the defaults of the others."""
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; known: {', '.join(TASKS)}")
    shape = _checked_shape(shape)
    known = TASKS[name].options
    for option in options:
        if option not in known:
            raise ValueError(f"task {name} has no option {option!r}; known: {', '.join(known) or 'none'}")
    parameters = inspect.signature(_BUILDERS[name]).parameters
    missing = [o for o in known if parameters[o].default is inspect.Parameter.empty and o not in options]
    if missing:
        raise ValueError(f"task {name} needs the option {missing[0]!r}: {known[missing[0]]}")
    operator = _BUILDERS[name](shape, **options)
    settled = {o: jsonable(options.get(o, parameters[o].default)) for o in known}
    operator.spec = {"task": name, "options": settled}
    return operator


def _checked_shape(shape: Sequence[int]) -> tuple[int, ...]:
    try:
        checked = tuple(int(s) for s in shape)
    except (TypeError, ValueError):
        raise TypeError(f"shape must be the shape of one sample, such as (1, 28, 28), got {shape!r}") from None
    if not checked or min(checked) < 1:
        raise ValueError(f"shape must be the shape of one sample, such as (1, 28, 28), got {checked}")
    return checked
