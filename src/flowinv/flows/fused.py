"""Frozen Glow steps decoded as one operation: the same numbers as layer by layer, fewer copies and a lean backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from .bijection import Bijection, Chain, Inverse
from .layers.couplings import AffineCoupling
from .layers.mixing import ChannelAffine
from .layers.reshaping import Split
from .networks import ConvNet

_CL = torch.channels_last
_ONES = [1, 1]


def _mkldnn(dtype: torch.dtype) -> bool:
    """Whether oneDNN's convolution with packed weights and a fused ReLU can be called."""
    packer = hasattr(torch.ops.mkldnn, "_reorder_convolution_weight")
    caller = hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    if not (packer and caller and torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    return dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


class _Convolution:
    """A convolution with fixed weights, packed once for the input it will see; ReLU on request."""

    def __init__(self, weight: Tensor, bias: Tensor | None, padding: int, stride: tuple[int, int], like: Sequence[int]):
        self.bias, self.padding, self.stride = bias, [padding, padding], list(stride)
        self.packed = _mkldnn(weight.dtype)
        self.weight = weight.contiguous(memory_format=_CL)
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_convolution_weight(
                self.weight, self.padding, self.stride, _ONES, 1, list(like)
            )

    def __call__(self, x: Tensor, relu: bool = False) -> Tensor:
        if self.packed:
            return torch.ops.mkldnn._convolution_pointwise(
                x, self.weight, self.bias, self.padding, self.stride, _ONES, 1, "relu" if relu else "none", [], ""
            )
        y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding)
        return y.relu_() if relu else y


def _transposed(weight: Tensor) -> Tensor:
    """The weight of the convolution that carries gradients from outputs to inputs."""
    return weight.flip(2, 3).transpose(0, 1)


def _pairwise(weight: Tensor) -> Tensor:
    """A 3x3 convolution with few outputs as a 3x4 one with stride (1, 2) that gives two neighbouring pixels at once.

    Vector units are 16 lanes wide: with 6 output channels most would idle.
    """
    outputs, inputs = weight.shape[:2]
    pair = weight.new_zeros(2 * outputs, inputs, 3, 4)
    pair[:outputs, :, :, :3] = weight
    pair[outputs:, :, :, 1:] = weight
    return pair


def _widened(weight: Tensor, outputs: int, inputs: int) -> Tensor:
    """The weight with output and input channels of zeros added."""
    return F.pad(weight, (0, 0, 0, 0, 0, inputs - weight.shape[1], 0, outputs - weight.shape[0]))


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


class _Coupling:
    """An affine coupling's network with its weights laid out for decode and its backward pass.

    Odd channel counts cost oneDNN dearly, so channels of zeros are added where that was measured to pay: 6 inputs as 8
    in bfloat16 take half the time.
    """

    def __init__(self, layer: AffineCoupling, batch: int, height: int, width: int):
        net = layer.net
        assert isinstance(net, ConvNet)
        like = net.enter.weight.detach()
        self.dtype = torch.bfloat16 if layer.bf16 else like.dtype
        self.bf16 = self.dtype == torch.bfloat16
        self.first, self.clamp = layer.first, layer.clamp
        parameters = dict(net.named_parameters())
        names = ("enter", "middle", "leave")
        w1, w2, w3 = (parameters[f"{name}.weight"].detach().to(self.dtype) for name in names)
        b1, b2, b3 = (parameters[f"{name}.bias"].detach().to(self.dtype) for name in names)
        hidden, self.outputs = w1.shape[0], w3.shape[0]
        first, outputs = (_up(self.first, 8), _up(self.outputs, 8)) if self.bf16 else (self.first, self.outputs)
        wide = [batch, hidden, height, width]
        self.enter = _Convolution(_widened(w1, hidden, first), b1, 1, (1, 1), [batch, first, height, width])
        self.middle = _Convolution(w2, b2, 0, (1, 1), wide)
        self.leave = _Convolution(w3, b3, 1, (1, 1), wide)
        # decode subtracts scale and shift, so the sign of their gradients sits in the weights
        w3_back = _widened(-_transposed(w3), hidden, outputs)
        self.leave_back = _Convolution(w3_back, None, 1, (1, 1), [batch, outputs, height, width])
        self.middle_back = w2[:, :, 0, 0].contiguous()
        w1_back, self.pairs = _transposed(w1), self.first <= 8 and width % 2 == 0
        if self.pairs:
            w1_back = _pairwise(w1_back)
        elif self.first > 16 and not self.bf16:
            w1_back = _widened(w1_back, _up(self.first, 16), hidden)
        self.enter_back = _Convolution(w1_back, None, 1, (1, 1 + self.pairs), wide)
        options = {"dtype": like.dtype, "device": like.device}
        self.eye = torch.eye(self.first, **options)  # type: ignore[call-overload]
        self.to_inputs = torch.eye(self.first, first, **options)  # type: ignore[call-overload]
        self.from_outputs = torch.eye(self.outputs, **options)  # type: ignore[call-overload]
        self.to_outputs = torch.eye(self.outputs, outputs, **options)  # type: ignore[call-overload]

    def raw(self, h: Tensor) -> Tensor:
        """Raw log-scales and shifts, (2 C2, N), from the hidden layer."""
        rows = _rows(self.leave(h), self.outputs)
        if self.bf16:
            return rows.new_empty((self.outputs, len(rows)), dtype=self.eye.dtype).copy_(rows.t())
        return torch.mm(self.from_outputs, rows.t())

    def gate(self, h: Tensor) -> Tensor:
        """What the backward pass needs of a ReLU's output, which is used up."""
        return h.view(torch.int16).clamp_(0, 1) if h.dtype == torch.bfloat16 else h

    def through_gate(self, g: Tensor, gate: Tensor) -> Tensor:
        """The gradient g where the ReLU was open, zero elsewhere; g is used up."""
        if gate.dtype == torch.int16:  # times 1 or 0 as integers: bfloat16 arithmetic is emulated and slow
            g.view(torch.int16).mul_(gate)
            return g
        return torch.ops.aten.threshold_backward.grad_input(g, gate, 0, grad_input=g)

    def pull_back(self, grads: Tensor, gate1: Tensor, gate2: Tensor, plan: _Plan) -> Tensor:
        """Gradients of ``raw`` with their sign turned, (2 C2, N), to gradients of the input, (N, C1)."""
        g = self.leave_back(plan.to_image(torch.mm(grads.t(), self.to_outputs).to(self.dtype)))
        g = _rows(self.through_gate(g, gate2), len(self.middle_back))
        g = self.enter_back(self.through_gate(plan.to_image(torch.mm(g, self.middle_back)), gate1))
        if self.pairs:
            return _rows(g, self.first).to(self.eye.dtype)
        return _rows(g, g.shape[1])[:, : self.first].to(self.eye.dtype)


class _Mixing:
    """The decode direction of a ``ChannelAffine``."""

    def __init__(self, layer: ChannelAffine):
        self.matrix = layer.inverse.detach()
        self.transpose = self.matrix.T.contiguous()
        self.bias = layer.get_buffer("inverse_bias").detach()[:, None]
        self.log_det = -layer.log_scale.detach()


@dataclass(frozen=True)
class _Plan:
    """The steps of a run in decode order, prepared for one image size."""

    steps: list[_Coupling | _Mixing]
    size: tuple[int, int, int]  # batch, height, width

    def to_image(self, rows: Tensor) -> Tensor:
        """(N, C) pixel by pixel -> (B, C, H, W) in channels_last, without a copy."""
        return rows.view(*self.size, -1).permute(0, 3, 1, 2)


def _rows(image: Tensor, channels: int) -> Tensor:
    """(B, C', H, W') in channels_last -> (N, C) pixel by pixel, without a copy."""
    return image.permute(0, 2, 3, 1).reshape(-1, channels)


# The state is held channels first, (C, N) with N = B H W: halves are contiguous slabs and mixing is one matrix product.
# A small matrix product with the identity turns it pixels first, several times faster than a transposing copy.


def _decode(plan: _Plan, z: Tensor, keep: list[Tensor] | None) -> tuple[Tensor, Tensor]:
    batch, height, width = plan.size
    state = z.transpose(0, 1).reshape(z.shape[1], -1)
    owned = False
    total: Tensor | None = None
    constant = z.new_zeros(())
    clamp = 0.0
    for step in plan.steps:
        if isinstance(step, _Mixing):
            state = torch.addmm(step.bias, step.matrix, state)
            constant = constant + step.log_det
            owned = True
            continue
        if not owned:
            state, owned = state.clone(), True
        first, half, clamp = step.first, step.outputs // 2, step.clamp
        x = torch.mm(state[:first].t(), step.to_inputs)
        h1 = step.enter(plan.to_image(x.to(step.dtype)), relu=True)
        h2 = step.middle(h1, relu=True)
        raw = step.raw(h2)
        tanh, shift = raw[:half].div_(clamp).tanh_(), raw[half:]
        scale = torch.mul(tanh, -clamp).exp_()
        moved = state[first:]
        if keep is None:
            moved.mul_(scale).sub_(shift)
            total = tanh.mul_(clamp) if total is None else total.add_(tanh, alpha=clamp)
            continue
        product = moved * scale
        torch.sub(product, shift, out=moved)
        total = tanh * clamp if total is None else total.add_(tanh, alpha=clamp)
        keep += [step.gate(h1), step.gate(h2), tanh, scale, product]
    log_det = (constant * (height * width)).expand(batch)
    if total is not None:
        log_det = log_det - total.view(-1, batch, height * width).sum((0, 2))
    return state.view(-1, batch, height, width).transpose(0, 1), log_det


def _backward(
    plan: _Plan, kept: Sequence[Tensor], grad: Tensor | None, grad_log_det: Tensor | None, z: Tensor
) -> Tensor:
    batch, height, width = plan.size
    like = z if grad is None else grad
    state = like.transpose(0, 1).reshape(like.shape[1], -1)
    state = torch.zeros_like(state) if grad is None else state
    owned = grad is None
    end = len(kept)
    for step in reversed(plan.steps):
        if isinstance(step, _Mixing):
            state, owned = torch.mm(step.transpose, state), True
            continue
        if not owned:
            state, owned = state.clone(), True
        gate1, gate2, tanh, scale, product = kept[end - 5 : end]
        end -= 5
        first, half = step.first, step.outputs // 2
        moved = state[first:]
        grads = torch.empty((step.outputs, moved.shape[1]), dtype=state.dtype)
        d_scale, d_shift = grads[:half], grads[half:]
        torch.mul(moved, product, out=d_scale)
        if grad_log_det is not None:
            d_scale.view(half, batch, -1).add_(grad_log_det[:, None])
        torch.ops.aten.tanh_backward.grad_input(d_scale, tanh, grad_input=d_scale)
        d_shift.copy_(moved)
        moved.mul_(scale)
        state[:first].addmm_(step.eye, step.pull_back(grads, gate1, gate2, plan).t())
    return state.view(-1, batch, height, width).transpose(0, 1)


class _FusedDecode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, run: FusedSteps) -> tuple[Tensor, Tensor]:
        keep: list[Tensor] = []
        plan = run.plan(z)
        x, log_det = _decode(plan, z, keep)
        ctx.run, ctx.plan = run, plan
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(z, *keep)
        return x, log_det

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_log_det: Tensor | None) -> tuple[Tensor | None, None]:
        z, *kept = ctx.saved_tensors
        if grad is None and grad_log_det is None:
            return None, None
        if not torch.is_grad_enabled() and not _transformed(grad, grad_log_det):
            return _backward(ctx.plan, kept, grad, grad_log_det, z), None
        # a gradient of the gradient is wanted: go through the layers, which autograd knows how to differentiate twice
        with torch.enable_grad():
            again = z if z.requires_grad else z.detach().requires_grad_()
            outputs = ctx.run.plain.decode(again)
        pairs = [
            (o, g) for o, g in zip(outputs, (grad, grad_log_det), strict=True) if g is not None and o.requires_grad
        ]
        (result,) = torch.autograd.grad(
            [o for o, _ in pairs], again, [g for _, g in pairs], create_graph=torch.is_grad_enabled()
        )
        return result, None


def _transformed(*tensors: Tensor | None) -> bool:
    """Whether a ``torch.func`` transform or a batched gradient is at work: its tensors cannot be written in place."""
    batched = torch._C._functorch.is_legacy_batchedtensor
    return torch._C._are_functorch_transforms_active() or any(t is not None and batched(t) for t in tensors)


class FusedSteps(Bijection):
    """A run of frozen ``ChannelAffine`` and ``AffineCoupling`` layers with 3-layer conv nets.

    Decoding float32 images on a CPU takes the fused path; everything else (encode, other dtypes and
    devices, contexts, weights that ask for gradients, ``torch.func``, forward-mode derivatives, autocast, compilation)
    goes through ``plain``, layer by layer. Both give the same numbers up to rounding.
    """

    def __init__(self, layers: Sequence[Bijection]):
        super().__init__()
        self.plain = Chain(layers)
        self._prepared: tuple[object, list[_Coupling | _Mixing]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles prepare their own weights."""
        return {**self.__dict__, "_prepared": None}

    @staticmethod
    def accepts(layer: Bijection) -> bool:
        """Whether a layer can be part of a fused run."""
        if isinstance(layer, ChannelAffine):
            return True
        return type(layer) is AffineCoupling and type(layer.net) is ConvNet and not layer.net.context

    def plan(self, z: Tensor) -> _Plan:
        """The run prepared for images of this height and width; again when they, weights or precision change."""
        couplings = [layer for layer in self.plain.layers if isinstance(layer, AffineCoupling)]
        batch, _, height, width = z.shape
        key = (
            (height, width),
            tuple((c.bf16, c.clamp) for c in couplings),
            torch.backends.mkldnn.enabled,
            tuple((t.data_ptr(), t._version) for t in [*self.parameters(), *self.buffers()]),
        )
        if self._prepared is None or self._prepared[0] != key:
            with torch.no_grad():
                steps = [
                    _Coupling(layer, batch, height, width) if isinstance(layer, AffineCoupling) else _Mixing(layer)  # type: ignore[arg-type]
                    for layer in reversed(self.plain.layers)
                ]
            self._prepared = (key, steps)
        return _Plan(self._prepared[1], (batch, height, width))

    def _fusable(self, z: Tensor) -> bool:
        return (
            not torch.compiler.is_compiling()
            and z.dim() == 4
            and z.dtype == torch.float32
            and z.device.type == "cpu"
            and z.numel() > 0
            and not any(p.requires_grad or p.dtype != torch.float32 or p.device != z.device for p in self.parameters())
            and not _transformed(z)
            and not torch.is_autocast_enabled("cpu")
            and torch.get_float32_matmul_precision() == "highest"
            and forward_ad.unpack_dual(z).tangent is None
        )

    def encode(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.plain.encode(x, context)

    def decode(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if not self._fusable(z):
            return self.plain.decode(z, context)
        if torch.is_grad_enabled() and z.requires_grad:
            return _FusedDecode.apply(z, self)
        return _decode(self.plan(z), z, None)


def fuse(bijection: Bijection) -> Bijection:
    """The same map with each run of layers that can be decoded as one held in a ``FusedSteps``."""
    if isinstance(bijection, Split):
        return Split(fuse(bijection.inner), bijection.keep)
    if isinstance(bijection, Inverse):
        return Inverse(fuse(bijection.inner))
    if not isinstance(bijection, Chain):
        return bijection
    fused: list[Bijection] = []
    run: list[Bijection] = []
    for layer in [*bijection.layers, None]:
        if layer is not None and FusedSteps.accepts(layer):
            run.append(layer)
            continue
        fused += [FusedSteps(run)] if any(isinstance(part, AffineCoupling) for part in run) else run
        run = []
        if layer is not None:
            fused.append(fuse(layer))
    return Chain(fused)
