"""deepinv's physics as operators and likelihoods; the only module that imports deepinv, and only when called."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..likelihoods import Gaussian, Laplace, Likelihood, Poisson
from ..operators import FunctionOperator, Operator, binary

PADDINGS = ("reflect", "circular", "replicate", "constant", "valid", "grey")
FILTERS = ("gaussian", "bilinear", "bicubic", "sinc", "none")


def is_physics(candidate: object) -> bool:
    """Whether an object is deepinv physics, found out without importing deepinv."""
    return any(c.__name__ == "Physics" and c.__module__.split(".")[0] == "deepinv" for c in type(candidate).__mro__)


class PhysicsOperator(FunctionOperator):
    r"""The noise-free A of a deepinv physics, from (..., B, \*shape).

    The physics is cloned once, so that nothing done to the original later, or to this one, reaches the other, and is
    called without parameters, because deepinv keeps those for good. Physics with one mask or kernel per image
    (``per_observation``) are mapped over draws by ``torch.func.vmap``.
    """

    def __init__(
        self,
        physics: Any,
        per_observation: bool,
        observed: Tensor | None = None,
        shape: Sequence[int] | None = None,
    ):
        self._physics = _clone(physics)
        self._cast: dict[tuple[torch.dtype, torch.device], Any] = {}
        super().__init__(self._call, per_observation, observed, shape, name=f"deepinv {type(physics).__name__}")

    def _call(self, x: Tensor) -> Tensor:
        key = (x.dtype, x.device)
        if key not in self._cast:
            self._cast[key] = _converted(_clone(self._physics), *key)
        return self._cast[key].A(x)


class GreyPadded(PhysicsOperator):
    """A convolution that sees mid-grey (.5) beyond the border: that of x - .5 with zeros there, and .5 again."""

    def _call(self, x: Tensor) -> Tensor:
        return super()._call(x - 0.5) + 0.5


def from_deepinv(
    physics: Any, likelihood: Likelihood | None = None, per_observation: bool | None = None
) -> tuple[Operator, Likelihood | None]:
    r"""The operator and the likelihood of a deepinv physics.

    The noise model becomes the likelihood: GaussianNoise, LaplaceNoise, PoissonNoise; ZeroNoise gives None. For any
    other, and where a sensor follows the noise, pass ``likelihood``, which is then returned as it is.
    ``per_observation`` says whether the physics holds a mask or kernel for each observation; by default it is so
    if a buffer of three or more axes has more than one entry along the first.

    Masks of Inpainting, Demosaicing and MRI become ``observed``, and must be 0 or 1. Stacked physics,
    whose measurement is a list, are refused.
    """
    deepinv = _import()
    if not isinstance(physics, deepinv.physics.Physics):
        raise TypeError(f"from_deepinv expects a deepinv physics, got {type(physics).__name__}")
    name = type(physics).__name__
    if isinstance(physics, deepinv.physics.StackedPhysics):
        raise TypeError(f"{name} measures a list; pass a function that concatenates its parts as one tensor")
    observed = _observed(physics, deepinv)
    if per_observation is None:
        buffers = [b for n, b in physics.named_buffers() if not n.startswith("noise_model.")]
        per_observation = any(b.dim() >= 3 and b.shape[0] > 1 for b in buffers)
    size = getattr(physics, "img_size", None)
    inpainting = isinstance(physics, deepinv.physics.Inpainting)
    shape = tuple(size) if inpainting and isinstance(size, tuple | list | torch.Size) else None
    operator = PhysicsOperator(physics, per_observation, observed, shape)
    operator.in_image_units = inpainting or isinstance(physics, deepinv.physics.Denoising)
    if likelihood is None:
        likelihood = _likelihood(physics, operator, deepinv)
    return operator, likelihood


def blur(kernel: Tensor, shape: Sequence[int], padding: str = "reflect") -> Operator:
    """Convolution of every channel with one kernel (h, w) of sum 1, through deepinv's Blur; ``padding`` is one of PADDINGS."""
    shape = tuple(int(s) for s in shape)
    if padding not in PADDINGS:
        raise ValueError(f"unknown padding {padding!r}; known: {', '.join(PADDINGS)}")
    reach = [k if padding == "valid" else k // 2 + 1 for k in kernel.shape]
    if len(shape) != 3 or reach[0] > shape[1] or reach[1] > shape[2]:
        raise ValueError(f"a kernel of {tuple(kernel.shape)} pixels needs larger images (C, H, W) than {shape}")
    grey = padding == "grey"
    physics = _import().physics.Blur(filter=kernel[None, None], padding="constant" if grey else padding)
    operator = (GreyPadded if grey else PhysicsOperator)(physics, per_observation=False, shape=shape)
    operator.in_image_units = True
    return operator


def gaussian_kernel(width: tuple[float, float]) -> Tensor:
    """A Gaussian kernel (h, w) that sums to 1, of standard deviations ``width`` in rows and columns."""
    from importlib import import_module

    _import()
    functional = import_module("deepinv.physics.functional")
    # A pair always: a single number makes a kernel along one axis only.
    kernel = functional.gaussian_blur(sigma=tuple(float(w) for w in width), dtype=torch.float64)[0, 0]
    return kernel / kernel.sum()


def downsampling(factor: int, filter: str, shape: Sequence[int]) -> Operator:
    """Filter, then keep every ``factor``-th pixel, through deepinv's Downsampling with circular borders."""
    shape = tuple(int(s) for s in shape)
    if filter not in FILTERS:
        raise ValueError(f"unknown filter {filter!r}; known: average, {', '.join(FILTERS)}")
    if len(shape) != 3 or shape[1] % factor or shape[2] % factor:
        raise ValueError(f"downsampling by {factor} needs images (C, H, W) with sides divisible by it, got {shape}")
    physics = _import().physics.Downsampling(
        img_size=shape, filter=None if filter == "none" else filter, factor=factor, padding="circular"
    )
    return PhysicsOperator(physics, per_observation=False, shape=shape)


def _import() -> Any:
    try:
        import deepinv
    except ModuleNotFoundError as error:
        if error.name != "deepinv":
            raise
        raise ModuleNotFoundError("this operator needs deepinv: pip install 'deepinv>=0.5,<0.6'") from None
    return deepinv


def _clone(physics: Any) -> Any:
    """A copy for calling A. ``physics.clone()`` does the same, but walks every object it can reach: .6 s a call."""
    memo: dict[int, Any] = {}
    for module in physics.modules():
        for value in vars(module).values():
            if isinstance(value, torch.Generator):  # deepcopy cannot copy one
                memo[id(value)] = torch.Generator(value.device).set_state(value.get_state())
    try:
        twin = copy.deepcopy(physics, memo)
    except TypeError:  # a generator deeper down
        twin = physics.clone()
    return twin.eval().requires_grad_(False)


def _converted(physics: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """The physics on a device with buffers of a precision; complex ones stay complex, which ``.to(dtype)`` forgets."""
    physics.to(device)
    for module in physics.modules():
        for name, tensor in [*module.named_buffers(recurse=False), *module.named_parameters(recurse=False)]:
            if tensor.is_complex():
                new = tensor.data.to(dtype.to_complex())
            elif tensor.is_floating_point():
                new = tensor.data.to(dtype)
            else:
                continue
            if isinstance(tensor, torch.nn.Parameter):
                tensor.data = new
            else:
                setattr(module, name, new)
    return physics


def _observed(physics: Any, deepinv: Any) -> Tensor | None:
    """The mask over measurements of the physics that set unmeasured elements to zero."""
    known = deepinv.physics
    inpainting, mri = isinstance(physics, known.Inpainting), isinstance(physics, known.MRI)
    coils = isinstance(physics, known.MultiCoilMRI) and type(physics).__name__ != "NonCartesianMRI"
    if not (inpainting or mri or coils):
        return None
    name, mask = type(physics).__name__, physics.mask
    if mask is None:
        raise ValueError(f"{name} has no mask: give it one before, as {name}(mask=...) or physics.update(mask=...)")
    if inpainting:
        size = tuple(physics.img_size)
        if mask.dim() != len(size) + 1 or any(m not in (1, s) for m, s in zip(mask.shape[1:], size, strict=True)):
            raise ValueError(f"{name}'s mask of shape {tuple(mask.shape)} does not fit its img_size {size}")
    mask = binary(mask, f"{name}'s mask")
    return mask[:, :, None] if coils else mask


def _likelihood(physics: Any, operator: PhysicsOperator, deepinv: Any) -> Likelihood | None:
    noise, kinds = physics.noise_model, deepinv.physics
    probe = torch.linspace(-3.3, 3.3, 16).view(1, 1, 4, 4)
    name = f"{type(physics).__name__} with {type(noise).__name__}"
    if not _is_identity(physics.sensor_model, probe):
        raise ValueError(f"{name} passes measurements through a sensor after the noise; give an explicit likelihood")
    if noise is None or type(noise) is kinds.ZeroNoise:
        return None
    if type(noise) is kinds.GaussianNoise:
        return Gaussian(_per_image(noise.sigma, operator, f"{name}: sigma"))
    if type(noise) is kinds.LaplaceNoise:
        return Laplace(noise.b if noise.b.dim() else float(noise.b))  # deepinv broadcasts b over y as it is
    if type(noise) is kinds.PoissonNoise:
        return Poisson(_per_image(noise.gain, operator, f"{name}: gain"), counts=not bool(noise.normalize))
    raise ValueError(
        f"{name}: only GaussianNoise, LaplaceNoise and PoissonNoise become a likelihood; give an explicit likelihood"
    )


def _is_identity(sensor: Any, probe: Tensor) -> bool:
    found = sensor(probe.clone())
    return isinstance(found, Tensor) and torch.equal(found, probe)


def _per_image(value: Tensor, operator: PhysicsOperator, name: str) -> float | Tensor:
    """A noise level as deepinv reads it, () for all images or (B,) for each, made to broadcast over measurements.

    How many axes a measurement has is asked of the operator where it knows its image size; it is four otherwise.
    """
    if value.numel() == 1:
        return float(value)
    if any(s != 1 for s in value.shape[1:]):
        raise ValueError(f"{name} of shape {tuple(value.shape)} is neither one number nor one per image")
    axes = 4
    if operator.shape is not None:
        axes = operator(torch.zeros(len(value), *operator.shape)).dim()
    return value.detach().reshape(-1, *(1,) * (axes - 1))
