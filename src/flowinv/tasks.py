"""Inverse problems by name: the operator, the noise, and a description from which both are rebuilt."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from operator import index
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .adapters import deepinv as adapter
from .likelihoods import Gaussian, Likelihood, likelihood_from_spec
from .operators import AveragePool, Grey, Identity, Mask, MatrixOperator, Operator
from .store import under

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


# -- the operators, as functions ---------------------------------------------------------------------


def inpaint_half(shape: Sequence[int], half: str) -> Operator:
    """Completion from one half: the *observed* one is top, bottom, left or right; of an odd side the larger part."""
    height, width = _image(shape, f"inpaint-{half}")
    mask = torch.zeros(1, 1, height, width, dtype=torch.bool)
    if half == "top":
        mask[..., : (height + 1) // 2, :] = True
    elif half == "bottom":
        mask[..., height // 2 :, :] = True
    elif half == "left":
        mask[..., : (width + 1) // 2] = True
    elif half == "right":
        mask[..., width // 2 :] = True
    else:
        raise ValueError(f"half must be top, bottom, left or right, got {half!r}")
    return Mask(mask, shape)


def inpaint_box(shape: Sequence[int], size: Any = None, rows: Any = None, columns: Any = None) -> Operator:
    """A hidden box: ``size`` (one number, or height x width) in the centre, by default half of each side.

    ``rows`` and ``columns``, written a:b as a slice (b not included), place it elsewhere.
    """
    height, width = _image(shape, "inpaint-box")
    tall, wide = (height // 2, width // 2) if size is None else _pair(size, "size", _whole)
    if not (1 <= tall <= height and 1 <= wide <= width):
        raise ValueError(f"size must lie within the image's {height}x{width}, got {tall}x{wide}")
    if size is not None and rows is not None and columns is not None:
        raise ValueError("inpaint-box takes a size, or rows and columns, not all three")
    top, left = (height - tall) // 2, (width - wide) // 2
    first, last = (top, top + tall) if rows is None else _span(rows, "rows", height)
    start, end = (left, left + wide) if columns is None else _span(columns, "columns", width)
    mask = torch.ones(1, 1, height, width, dtype=torch.bool)
    mask[..., first:last, start:end] = False
    if not mask.any():
        raise ValueError("the box hides the whole image: nothing is observed")
    return Mask(mask, shape)


def inpaint_pixels(shape: Sequence[int], fraction: float = 0.5, seed: int = 0) -> Operator:
    """Random pixels observed, all channels of a pixel together: exactly round(fraction x pixels), at least one."""
    shape = tuple(shape)
    return Mask(_random_mask((1, *shape[1:]) if len(shape) == 3 else shape, fraction, seed), shape)


def inpaint_subpixels(shape: Sequence[int], fraction: float = 0.5, seed: int = 0) -> Operator:
    """Random sub-pixels observed, each channel by itself: exactly round(fraction x elements), at least one."""
    return Mask(_random_mask(tuple(shape), fraction, seed), shape)


def inpaint_mask(shape: Sequence[int], mask: Tensor | str | Path) -> Operator:
    """Elements where a mask is 1 are observed: a tensor broadcastable to (B, *shape), or the path of a file."""
    if not isinstance(mask, Tensor):
        if not isinstance(mask, str | Path):
            raise TypeError(f"mask must be a tensor or a path, got {type(mask).__name__}")
        mask = read_mask(mask)
    return Mask(mask, shape)


def denoise(shape: Sequence[int]) -> Operator:
    """Everything is observed, with noise."""
    return Identity(shape)


def deblur(
    shape: Sequence[int],
    kernel: str = "gaussian",
    width: Any = None,
    size: Any = None,
    angle: float | None = None,
    padding: str = "reflect",
) -> Operator:
    """Blurred images, through deepinv's Blur.

    ``kernel``: gaussian, of standard deviation ``width`` (1; one number for both axes, or rows x columns); box, the
    mean over ``size`` (3; or height x width) pixels; motion, a straight line of ``size`` (7) pixels at ``angle`` (0)
    degrees, anticlockwise from the row. ``padding``: reflect, circular, replicate, constant (zeros), grey (.5)
    or valid (a smaller measurement).
    """
    _image(shape, "deblur")
    uses = {"gaussian": ("width",), "box": ("size",), "motion": ("size", "angle")}
    if kernel not in uses:
        raise ValueError(f"unknown kernel {kernel!r}; known: {', '.join(uses)}")
    for name, value in {"width": width, "size": size, "angle": angle}.items():
        if value is not None and name not in uses[kernel]:
            raise ValueError(f"option {name!r} does not go with kernel={kernel}, which takes {', '.join(uses[kernel])}")
    if kernel == "gaussian":
        weights = adapter.gaussian_kernel(_pair(1.0 if width is None else width, "width", _positive))
    elif kernel == "box":
        tall, wide = _pair(3 if size is None else size, "size", _whole)
        weights = torch.full((tall, wide), 1 / (tall * wide), dtype=torch.float64)
    else:
        degrees = 0.0 if angle is None else _number(angle, "angle")
        weights = motion_kernel(_positive(7 if size is None else size, "size"), degrees)
    return adapter.blur(weights, shape, padding)


def motion_kernel(length: float, angle: float) -> Tensor:
    """A straight motion blur (h, w) that sums to 1: ``length`` pixels along ``angle`` degrees.

    The angle is anticlockwise from the row. Each pixel is weighted by max(0, 1 - its distance to the segment
    that joins the two end pixels' centres).
    """
    half = max(length - 1, 0) / 2
    reach = math.ceil(half) + 1
    grid = torch.arange(-reach, reach + 1, dtype=torch.float64)
    rows, columns = torch.meshgrid(grid, grid, indexing="ij")
    direction = math.radians(angle)
    along = columns * math.cos(direction) - rows * math.sin(direction)
    across = columns * math.sin(direction) + rows * math.cos(direction)
    beyond = (along.abs() - half).clamp_min(0)
    weights = (1 - (across.square() + beyond.square()).sqrt()).clamp_min(0)
    tall, wide = (int((weights.sum(d) > 1e-9).nonzero().sub(reach).abs().max()) for d in (1, 0))
    weights = weights[reach - tall : reach + tall + 1, reach - wide : reach + wide + 1]
    return weights / weights.sum()


def superres(shape: Sequence[int], factor: int = 2, filter: str = "average") -> Operator:
    """Images smaller by ``factor``.

    ``filter=average`` is the mean of each block, as a coarser sensor measures and without borders; gaussian,
    bilinear, bicubic, sinc and none are deepinv's Downsampling (filter, then keep every factor-th pixel).
    """
    _image(shape, "superres")
    factor = _whole(factor, "factor")
    if factor < 2:
        raise ValueError(f"factor must be an integer of at least 2, got {factor}")
    if filter == "average":
        return AveragePool(factor, shape)
    return adapter.downsampling(factor, filter, shape)


def colorize(shape: Sequence[int], weights: str = "mean") -> Operator:
    """Grey observed of a colour image: the channels' mean, or ``weights=luma`` (.299, .587, .114; ITU-R BT.601)."""
    known = {"mean": None, "luma": LUMA}
    if weights not in known:
        raise ValueError(f"unknown weights {weights!r}; known: {', '.join(known)}")
    return Grey(known[weights], shape)


def compressed_sensing(shape: Sequence[int], measurements: int | None = None, seed: int = 0) -> Operator:
    """``measurements`` = m random projections (a sixth of the elements by default), A_ij ~ N(0, 1/m)."""
    size = math.prod(shape)
    m = max(1, size // 6) if measurements is None else _whole(measurements, "measurements")
    matrix = torch.randn(m, size, generator=_generator(seed)) / math.sqrt(m)
    return MatrixOperator(matrix, shape)


# -- by name -----------------------------------------------------------------------------------------


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


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Options written name=value, as on a command line: numbers and true / false become what they look like."""
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        name, text = name.strip(), text.strip()
        if not equals or not name or not text:
            raise ValueError(f"an option is written name=value, got {pair!r}")
        if name in options:
            raise ValueError(f"option {name!r} is given twice")
        options[name] = _value(text)
    return options


def read_mask(path: str | Path) -> Tensor:
    """Read a mask from a file: bool (H, W), or (C, H, W) of a picture whose channels differ; .npy keeps its shape.

    Values are 0 and 1, or 0 and 255 (white is observed); anything else is refused. A picture with transparency is
    refused too.
    """
    import numpy as np

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such mask file: {path}")
    if path.suffix.lower() == ".npy":
        try:
            array = np.load(path, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"{path} cannot be read as .npy: {error}") from None
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "buif":
            raise ValueError(f"{path} must hold one array of numbers")
    else:
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(path) as picture:
                transparent = "A" in picture.getbands() or "transparency" in picture.info
                array = np.asarray(picture.convert("RGB") if picture.mode in ("P", "RGB", "1") else picture)
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise ValueError(f"{path} cannot be read as a picture: {error}") from None
        if transparent:
            raise ValueError(f"{path} has transparency: a mask is black and white, without an alpha channel")
        if array.ndim == 3:
            array = np.moveaxis(array, -1, 0)
            array = array[0] if (array == array[:1]).all() else array
    values = np.unique(array)
    one = 255 if values.size and values[-1] == 255 else 1
    if values.size == 0 or not set(values.tolist()) <= {0, one}:
        shown = ", ".join(f"{v:g}" for v in values[:6].astype(float)) + (", ..." if values.size > 6 else "")
        raise ValueError(f"{path} must hold only 0 and 1, or only 0 and 255, got {shown or 'nothing'}")
    return torch.from_numpy(np.ascontiguousarray(array == one))


# -- small parts -------------------------------------------------------------------------------------


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
    settled = {o: _jsonable(options.get(o, parameters[o].default)) for o in known}
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


def _image(shape: Sequence[int], name: str) -> tuple[int, int]:
    if len(shape) != 3:
        raise ValueError(f"{name} is for images (C, H, W), got samples of shape {tuple(shape)}")
    return int(shape[1]), int(shape[2])


def _random_mask(shape: tuple[int, ...], fraction: float, seed: int) -> Tensor:
    fraction, size = _number(fraction, "fraction"), math.prod(shape)
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], got {fraction:g}")
    mask = torch.zeros(size, dtype=torch.bool)
    mask[torch.randperm(size, generator=_generator(seed))[: max(1, round(fraction * size))]] = True
    return mask.view(1, *shape)


def _generator(seed: int) -> torch.Generator:
    number = _integer(seed)
    if number is None or not 0 <= number < 2**63:
        raise ValueError(f"seed must be an integer of at least 0, got {seed!r}")
    return torch.Generator().manual_seed(number)


def _integer(value: Any) -> int | None:
    """An integer of any library as Python's; None for anything else, truth values included."""
    return None if isinstance(value, bool) or not hasattr(value, "__index__") else index(value)


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    return float(value)


def _positive(value: Any, name: str) -> float:
    if _number(value, name) <= 0:
        raise ValueError(f"{name} must be positive, got {value!r}")
    return float(value)


def _whole(value: Any, name: str) -> int:
    number = _integer(value)
    if number is None or number < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
    return number


def _pair(value: Any, name: str, check: Callable[[Any, str], Any]) -> tuple[Any, Any]:
    """One value for both axes, or two: a pair, or written AxB."""
    if isinstance(value, str):
        value = [_value(part) for part in value.split("x")]
    if not isinstance(value, list | tuple):
        value = (value, value)
    if len(value) != 2:
        raise ValueError(f"{name} must be one number, or two as HxW, got {value!r}")
    return check(value[0], name), check(value[1], name)


def _span(value: Any, name: str, limit: int) -> tuple[int, int]:
    """The slice a:b of an axis, as text or as a pair."""
    parts = [_value(p) for p in value.split(":")] if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or len(parts) != 2 or not all(type(p) is int for p in parts):
        raise ValueError(f"{name} must be written a:b, got {value!r}")
    if not 0 <= parts[0] < parts[1] <= limit:
        raise ValueError(f"{name} must be a:b with 0 <= a < b <= {limit}, got {parts[0]}:{parts[1]}")
    return parts[0], parts[1]


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _jsonable(value: Any) -> Any:
    if isinstance(value, Tensor):
        return None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [_jsonable(v) for v in value]
    number = _integer(value)
    if number is not None:
        return number
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else value
