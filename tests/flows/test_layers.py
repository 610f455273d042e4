"""What every bijection owes, checked on one registry of all of them: inversion, log-determinants, state, gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowinv.flows import Affine, Chain, DenseConfig, Elementwise, Flow, GlowConfig, Inverse, Quantile, RealNVPConfig
from flowinv.flows.architectures import PRESETS, PatchFlowConfig, build, preset
from flowinv.flows.bijection import Bijection
from flowinv.flows.layers.actnorm import ActNorm
from flowinv.flows.layers.couplings import (
    AdditiveCoupling,
    AffineCoupling,
    MaskedAffineCoupling,
    SigmoidCoupling,
    channel_mask,
    checkerboard_mask,
)
from flowinv.flows.layers.mixing import ChannelAffine, LUConv1x1, Orthogonal, Permutation, Swap
from flowinv.flows.layers.reshaping import Split, Squeeze
from flowinv.flows.layers.transforms import Gaussianize, Logit, Shift
from flowinv.flows.networks import MLP, ConvNet, PatchNet, ResNet


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Case:
    """One bijection, the sample it takes, how exactly it inverts in float32, and how far its weights are moved."""

    name: str
    make: Callable[..., Bijection]
    shape: tuple[int, ...]
    context: tuple[int, ...] = ()
    unit: bool = False
    float32: float = 2e-5
    full_jacobian: bool = True
    latent: tuple[int, ...] = ()
    spread: float = 0.1


def counts(*shape: int) -> Tensor:
    return torch.randint(1, 50, (16, *shape), generator=seeded(3))


def covariance(size: int) -> Tensor:
    root = torch.randn(size, size, generator=seeded(4), dtype=torch.float64)
    return root @ root.T + torch.eye(size)


def networks(context: int) -> dict[str, Any]:
    return {
        "conv": lambda i, o: ConvNet(i, o, 8, context),
        "resnet": lambda i, o: ResNet(i, o, 8, 2, context),
    }


def coupling_cases() -> list[Case]:
    cases = []
    contexts: dict[str, tuple[tuple[int, ...], int]] = {
        "": ((), 0),
        "-vector-context": ((3,), 3),
        "-image-context": ((2, 8, 8), 8),
    }
    for suffix, (context, channels) in contexts.items():
        for name, net in networks(channels).items():
            cases += [
                Case(f"affine-{name}{suffix}", lambda net=net: AffineCoupling(5, net(3, 4)), (5, 4, 4), context),
                Case(f"additive-{name}{suffix}", lambda net=net: AdditiveCoupling(5, net(3, 2)), (5, 4, 4), context),
                Case(
                    f"checkerboard-{name}{suffix}",
                    lambda net=net: MaskedAffineCoupling(checkerboard_mask(4, 4), net(2, 4)),
                    (2, 4, 4),
                    context,
                ),
                Case(
                    f"channel-mask-{name}{suffix}",
                    lambda net=net: MaskedAffineCoupling(channel_mask(4, odd=True), net(4, 8)),
                    (4, 4, 4),
                    context,
                ),
            ]
    for suffix, (context, size) in {"": ((), 0), "-context": ((3,), 3), "-image-context": ((2, 2, 3), 12)}.items():
        cases += [
            Case(f"affine-mlp{suffix}", lambda size=size: AffineCoupling(7, MLP(4, 6, 16, 2, size)), (7,), context),
            Case(f"additive-mlp{suffix}", lambda size=size: AdditiveCoupling(7, MLP(4, 3, 16, 1, size)), (7,), context),
        ]
    return cases


LAYERS = [
    Case("actnorm-image", lambda: ActNorm(3), (3, 4, 4)),
    Case("actnorm-vector", lambda: ActNorm(5), (5,)),
    *coupling_cases(),
    Case("sigmoid-conv", lambda: SigmoidCoupling(5, ConvNet(3, 4, 8)), (5, 4, 4)),
    Case("sigmoid-mlp-context", lambda: SigmoidCoupling(7, MLP(4, 6, 16, 2, 3)), (7,), (3,)),
    *[Case(f"patch-net-{s}", lambda s=s: SigmoidCoupling(5, PatchNet(3, 4, 6, s)), (5, s, s)) for s in (1, 2, 4, 8)],
    Case("permutation-image", lambda: Permutation.random(5, seeded()), (5, 2, 2)),
    Case("permutation-vector", lambda: Permutation.random(6, seeded()), (6,)),
    Case("swap-even", lambda: Swap(4), (4, 2, 2)),
    Case("swap-odd", lambda: Swap(5), (5,)),
    Case("orthogonal-image", lambda: Orthogonal(6, seeded()), (6, 2, 2)),
    Case("orthogonal-vector", lambda: Orthogonal(6, seeded()), (6,)),
    Case("lu-image", lambda: LUConv1x1(6, seeded()), (6, 2, 2)),
    Case("lu-vector", lambda: LUConv1x1(6, seeded()), (6,)),
    Case("channel-affine", lambda: ChannelAffine(covariance(4).float(), torch.arange(4.0)), (4, 2, 2), float32=2e-4),
    Case("squeeze", Squeeze, (3, 4, 6), latent=(12, 2, 3)),
    Case("unsqueeze", lambda: Inverse(Squeeze()), (8, 2, 3), latent=(2, 4, 6)),
    Case("split", lambda: Split(AffineCoupling(4, ConvNet(2, 4, 8)), 4), (6, 4, 4)),
    Case("logit", Logit, (3, 4, 4), unit=True),
    Case("shift", lambda: Shift(0.3, 2.5), (3, 4, 4)),
    Case("gaussianize-shared", lambda: Gaussianize.from_counts(counts()), (1, 4, 4), unit=True),
    Case("gaussianize-per-pixel", lambda: Gaussianize.from_counts(counts(2, 3, 3)), (2, 3, 3), unit=True),
    Case("affine", lambda: Affine.from_covariance(torch.arange(6.0), covariance(6).float()), (6,), float32=1e-4),
    Case("affine-image", lambda: Affine.from_covariance(torch.ones(1, 2, 3), covariance(6).float()), (1, 2, 3)),
    Case("quantile", lambda: Quantile(torch.distributions.Laplace(torch.arange(4.0).double(), 0.7)), (4,)),
    Case("elementwise", lambda: Elementwise((2, 3, 3)), (2, 3, 3)),
    Case("inverse", lambda: Inverse(AffineCoupling(5, MLP(3, 4, 8))), (5,)),
    Case("empty-chain", lambda: Chain([]), (3,)),
    Case(
        "chain",
        lambda: Chain([ActNorm(4), LUConv1x1(4, seeded()), AffineCoupling(4, MLP(2, 4, 8)), Swap(4)]),
        (4,),
    ),
    Case(
        "flow",
        lambda: Flow(Elementwise((1, 3, 3)), (1, 3, 3), Gaussianize.from_counts(counts()), (0, 1), 4),
        (1, 3, 3),
        unit=True,
    ),
]


def reduced(name: str, shape: tuple[int, ...] | None = None) -> Bijection:
    config = preset(name, shape)
    if isinstance(config, RealNVPConfig):
        return build(replace(config, blocks=1, hidden=2))
    if isinstance(config, PatchFlowConfig):
        return build(replace(config, steps=(2,) * len(config.steps), hidden=3))
    assert isinstance(config, GlowConfig)
    return build(replace(config, steps=(2,) * len(config.steps), hidden=6))


PATCH = PatchFlowConfig((1, 8, 8), steps=(2, 2, 3), hidden=6, splits=(0, 1))  # sides 4, 2 and 1
GLOW, SMALL = GlowConfig((3, 8, 8), steps=(2, 2), hidden=8), (3, 8, 8)
ARCHITECTURES = [
    *[
        Case(
            f"preset-{n}",
            lambda n=n: reduced(n),
            c.shape,
            float32=1e-3,
            full_jacobian=False,
            spread=0.005 if "invertible" in n else 0.03,
        )
        for n, c in PRESETS.items()
    ],
    Case("preset-glow-small-28", lambda: reduced("glow-small"), (1, 28, 28), float32=1e-4),
    Case("preset-paper-mnist-16", lambda: reduced("paper-mnist", (1, 16, 16)), (1, 16, 16), float32=1e-3),
    Case("glow-32", lambda: reduced("glow-small", (3, 32, 32)), (3, 32, 32), float32=1e-4, full_jacobian=False),
    Case("glow-lu", lambda: build(replace(GLOW, mixing="lu")), SMALL, float32=1e-4),
    Case("glow-additive", lambda: build(replace(GLOW, coupling="additive")), SMALL, float32=1e-4),
    Case("glow-resnet", lambda: build(replace(GLOW, network="resnet")), SMALL, float32=1e-4),
    Case("glow-unsplit", lambda: build(replace(GLOW, split=False, hidden=(8, 6))), SMALL, float32=1e-4),
    Case("glow-image-context", lambda: build(replace(GLOW, context=(1, 8, 8))), SMALL, (1, 8, 8), float32=1e-4),
    Case("glow-vector-context", lambda: build(replace(GLOW, context=(5,))), SMALL, (5,), float32=1e-4),
    Case("realnvp", lambda: build(RealNVPConfig(SMALL, scales=3, blocks=1, hidden=4)), SMALL, float32=1e-3),
    Case("realnvp-bare", lambda: build(RealNVPConfig(SMALL, 2, 1, 4, actnorm=False)), SMALL, float32=1e-3),
    Case(
        "realnvp-context",
        lambda: build(RealNVPConfig(SMALL, scales=2, blocks=1, hidden=4, context=(1, 16, 16))),
        SMALL,
        (1, 16, 16),
        float32=1e-3,
    ),
    Case("patch", lambda: build(PATCH), PATCH.shape, float32=1e-4),
    Case("patch-lu", lambda: build(replace(PATCH, mixing="lu", splits=())), PATCH.shape, float32=1e-4, spread=0.02),
    Case("patch-one-scale", lambda: build(PatchFlowConfig((1, 16, 16), (2,), 4, ())), (1, 16, 16), float32=1e-4),
    Case("dense", lambda: build(DenseConfig((7,), steps=3, hidden=16)), (7,), float32=1e-4),
    Case("dense-lu", lambda: build(DenseConfig((7,), steps=3, hidden=16, mixing="lu")), (7,), float32=1e-4),
    Case("dense-additive", lambda: build(DenseConfig((6,), steps=3, coupling="additive")), (6,), float32=1e-4),
    Case("dense-scalar", lambda: build(DenseConfig((1,), steps=2, hidden=4)), (1,), float32=1e-4),
    Case("dense-context", lambda: build(DenseConfig((6,), steps=2, hidden=8, context=(3,))), (6,), (3,), float32=1e-4),
    Case("dense-image-context", lambda: build(DenseConfig((6,), steps=2, context=(1, 2, 3))), (6,), (1, 2, 3)),
]
CASES = [*LAYERS, *ARCHITECTURES]
JACOBIANS = [c for c in CASES if c.full_jacobian]
CONDITIONAL = [c for c in CASES if c.context]
ignore_empty_layers = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")


def by_name(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=[c.name for c in cases])


@pytest.fixture
def bijection(case: Case, randomise: Callable[..., Bijection]) -> Bijection:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return randomise(case.make(), case.spread).eval()


def inputs(case: Case, batch: int = 3, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor | None]:
    """Data x, latent z and context for a case."""
    generator = seeded(5)
    if case.unit:
        x = 0.02 + 0.96 * torch.rand(batch, *case.shape, generator=generator, dtype=torch.float64)
    else:
        x = torch.randn(batch, *case.shape, generator=generator, dtype=torch.float64)
    z = torch.randn(batch, *(case.latent or case.shape), generator=generator, dtype=torch.float64)
    context = torch.randn(batch, *case.context, generator=generator, dtype=torch.float64) if case.context else None
    return x.to(dtype), z.to(dtype), context if context is None else context.to(dtype)


@ignore_empty_layers
@by_name(CASES)
def test_both_directions_undo_each_other_in_float64(case: Case, bijection: Bijection) -> None:
    x, z, context = inputs(case)
    bijection.double()
    latent, forth = bijection.encode(x, context)
    again, back = bijection.decode(latent, context)
    torch.testing.assert_close(again, x, rtol=0, atol=1e-9)
    torch.testing.assert_close(forth, -back, rtol=1e-10, atol=1e-8)
    data, forth = bijection.decode(z, context)
    again, back = bijection.encode(data, context)
    torch.testing.assert_close(again, z, rtol=0, atol=1e-8)
    torch.testing.assert_close(forth, -back, rtol=1e-10, atol=1e-8)
    assert forth.shape == back.shape == (3,)
    assert latent.dtype == data.dtype == forth.dtype == torch.float64


@ignore_empty_layers
@by_name(CASES)
def test_both_directions_undo_each_other_in_float32(case: Case, bijection: Bijection) -> None:
    x, _, context = inputs(case, dtype=torch.float32)
    latent, forth = bijection.encode(x, context)
    again, back = bijection.decode(latent, context)
    torch.testing.assert_close(again.float(), x, rtol=0, atol=case.float32)
    torch.testing.assert_close(forth, -back, rtol=1e-4, atol=case.float32 * x[0].numel() ** 0.5 * 10)


def check_log_dets(bijection: Bijection, x: Tensor, z: Tensor, context: Tensor | None, jacobian: Callable) -> None:
    """Both log-determinants against slogdet of the Jacobian at one x and one z."""

    def at(batch: Tensor) -> Tensor | None:
        return None if context is None else context.expand(len(batch), *context.shape[1:])

    for direction, point in ((bijection.encode, x), (bijection.decode, z)):
        _, log_det = direction(point, context)
        truth = torch.linalg.slogdet(jacobian(lambda v, f=direction: f(v, at(v))[0], point))[1]
        torch.testing.assert_close(log_det[0], truth, rtol=1e-9, atol=1e-9 * max(10, x.numel()))


@ignore_empty_layers
@by_name(JACOBIANS)
def test_log_dets_are_those_of_the_jacobian(case: Case, bijection: Bijection, jacobian: Callable) -> None:
    x, z, context = inputs(case, batch=1)
    check_log_dets(bijection.double(), x, z, context, jacobian)


class Dropped(Elementwise):
    """A decode that forgets its log-determinant."""

    def decode(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, log_det = super().decode(z)
        return x, 0 * log_det


class Turned(Elementwise):
    """An encode that turns the sign of its log-determinant."""

    def encode(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z, log_det = super().encode(x)
        return z, -log_det


@pytest.mark.parametrize("broken", [Dropped, Turned])
def test_broken_log_dets_are_caught(broken: type[Elementwise], jacobian: Callable, randomise: Callable) -> None:
    x = torch.zeros(1, 4, dtype=torch.float64)
    check_log_dets(randomise(Elementwise((4,))).double(), x, x, None, jacobian)
    with pytest.raises(AssertionError):
        check_log_dets(randomise(broken((4,))).double(), x, x, None, jacobian)


def test_the_batched_jacobian_is_the_one_of_torch_func(jacobian: Callable[..., Tensor]) -> None:
    layer = Affine.from_covariance(torch.zeros(5).double(), covariance(5))
    x = torch.randn(1, 5, generator=seeded(), dtype=torch.float64)
    truth = torch.func.jacrev(lambda v: layer.encode(v[None])[0][0])(x[0])
    torch.testing.assert_close(jacobian(lambda v: layer.encode(v)[0], x), truth)


@ignore_empty_layers
@by_name(CASES)
def test_a_sample_does_not_depend_on_its_batch(case: Case, bijection: Bijection) -> None:
    x, z, context = inputs(case)
    bijection.double()
    for direction, whole in ((bijection.encode, x), (bijection.decode, z)):
        out, log_det = direction(whole, context)
        alone, log_det_alone = direction(whole[1:2], None if context is None else context[1:2])
        torch.testing.assert_close(alone[0], out[1], rtol=0, atol=1e-11)
        torch.testing.assert_close(log_det_alone[0], log_det[1], rtol=1e-11, atol=1e-10)


@ignore_empty_layers
@by_name([c for c in CASES if len(c.shape) == 1])
def test_an_empty_batch_of_vectors_goes_through(case: Case, bijection: Bijection) -> None:
    x, _, context = inputs(case, batch=0, dtype=torch.float32)
    z, log_det = bijection.encode(x, context)
    assert z.shape == x.shape
    assert log_det.shape == (0,)


@ignore_empty_layers
@by_name(ARCHITECTURES)
def test_the_latent_has_the_shape_of_the_data(case: Case, bijection: Bijection) -> None:
    x, z, context = inputs(case, batch=2, dtype=torch.float32)
    assert bijection.encode(x, context)[0].shape == x.shape
    assert bijection.decode(z, context)[0].shape == z.shape


@by_name(CONDITIONAL)
def test_the_context_matters_and_is_asked_for(case: Case, bijection: Bijection) -> None:
    x, _, context = inputs(case, dtype=torch.float32)
    assert context is not None
    assert not torch.allclose(bijection.encode(x, context)[0], bijection.encode(x, context + 1)[0])
    with pytest.raises(ValueError, match="pass context to encode and decode"):
        bijection.encode(x)
    with pytest.raises(ValueError, match=r"context of shape .* does not fit"):
        bijection.encode(x, context[:2])
    with pytest.raises(ValueError, match=r"context of shape .* does not fit"):
        bijection.encode(x, torch.cat([context, context], 1))


@ignore_empty_layers
@by_name(CASES)
def test_files_keep_the_map_and_loading_is_final(case: Case, bijection: Bijection, tmp_path) -> None:
    """In training mode too: an ActNorm that was loaded must not be set again by the first batch."""
    x, _, context = inputs(case, batch=4, dtype=torch.float32)
    bijection.train()
    bijection.encode(x, context)
    truth = bijection.eval().encode(x, context)
    save_file(
        {"placeholder": torch.zeros(1), **{k: v.contiguous() for k, v in bijection.state_dict().items()}},
        tmp_path / "w.safetensors",
    )
    fresh = case.make().train()
    state = load_file(tmp_path / "w.safetensors")
    state.pop("placeholder")
    fresh.load_state_dict(state)
    far_away = x if case.unit else 3 * x + 5
    fresh.encode(far_away, context)
    for found, expected in zip(fresh.encode(x, context), truth, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@ignore_empty_layers
@by_name(CASES)
def test_gradients_pass_through_a_frozen_copy_and_none_reach_its_weights(case: Case, bijection: Bijection) -> None:
    _, z, context = inputs(case)
    gradient = {}
    truth = copy.deepcopy(bijection).double()
    frozen = copy.deepcopy(bijection).double().requires_grad_(False)
    for name, one in (("free", truth), ("frozen", frozen)):
        for _ in range(2):  # a graph kept in a cache would fail the second time
            latent = z.clone().requires_grad_()
            x, log_det = one.decode(latent, context)
            (x.square().sum() + log_det.sum()).backward()
            gradient[name] = latent.grad
    torch.testing.assert_close(gradient["frozen"], gradient["free"], rtol=1e-8, atol=1e-8)
    assert all(p.grad is None for p in frozen.parameters())
    assert all(p.grad is not None for p in truth.parameters())


@pytest.mark.parametrize("kind", sorted({type(c.make()).__name__ for c in LAYERS}))
def test_bijections_refuse_to_be_called(kind: str) -> None:
    layer = next(m for c in LAYERS if type(m := c.make()).__name__ == kind)
    with pytest.raises(TypeError, match=f"{kind} is a bijection: call encode"):
        layer(torch.zeros(1))


def test_chain_runs_encode_first_to_last() -> None:
    chain = Chain([Shift(0.0, 2.0), Shift(-1.0, 1.0)])
    z, log_det = chain.encode(torch.tensor([[3.0]]))
    assert z.item() == 7.0
    assert log_det.item() == pytest.approx(0.6931472)


class TestActNorm:
    def test_first_training_batch_comes_out_standardised(self, generator: torch.Generator) -> None:
        layer = ActNorm(3).train()
        x = 4 * torch.randn(64, 3, 5, 5, generator=generator) + torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
        z, _ = layer.encode(x)
        torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(3), atol=1e-5, rtol=0)
        second, _ = layer.encode(10 * x)
        assert second.std() > 5

    def test_evaluation_never_initialises(self, generator: torch.Generator) -> None:
        layer = ActNorm(3).eval()
        x = torch.randn(8, 3, generator=generator) + 4
        assert torch.equal(layer.encode(x)[0], x)
        assert not layer.initialised

    def test_initialisation_is_saved_state(self, generator: torch.Generator) -> None:
        layer = ActNorm(3).train()
        layer.encode(torch.randn(8, 3, generator=generator))
        assert bool(layer.state_dict()["initialised"])

    def test_a_single_vector_is_centred_and_keeps_its_scale(self) -> None:
        z, log_det = ActNorm(3).train().encode(torch.tensor([[1.0, 2.0, 3.0]]))
        assert torch.equal(z, torch.zeros(1, 3))
        assert torch.equal(log_det, torch.zeros(1))

    def test_an_empty_batch_initialises_nothing(self) -> None:
        layer = ActNorm(3).train()
        layer.encode(torch.zeros(0, 3))
        assert not layer.initialised

    def test_a_constant_channel_stays_finite(self) -> None:
        z, log_det = ActNorm(2).train().encode(torch.ones(4, 2))
        assert torch.isfinite(z).all() and torch.isfinite(log_det).all()


class TestMixing:
    def test_random_rotations_are_rotations(self) -> None:
        for channels in (1, 2, 7):
            matrix = Orthogonal(channels, seeded()).double().rotation()
            torch.testing.assert_close(matrix @ matrix.T, torch.eye(channels).double(), atol=1e-13, rtol=0)

    def test_rotations_follow_their_generator(self) -> None:
        assert torch.equal(Orthogonal(5, seeded(1)).matrix, Orthogonal(5, seeded(1)).matrix)
        assert not torch.equal(Orthogonal(5, seeded(1)).matrix, Orthogonal(5, seeded(2)).matrix)

    def test_lu_starts_at_a_rotation(self) -> None:
        weight = LUConv1x1(6, seeded()).double().weight()
        torch.testing.assert_close(weight @ weight.T, torch.eye(6).double(), atol=1e-6, rtol=0)

    def test_a_permutation_lists_each_channel_once(self) -> None:
        with pytest.raises(ValueError, match=r"a permutation lists each of 0\.\.2 once"):
            Permutation(torch.tensor([0, 0, 2]))

    def test_swap_exchanges_halves(self) -> None:
        assert Swap(4).encode(torch.tensor([[0.0, 1.0, 2.0, 3.0]]))[0].tolist() == [[2.0, 3.0, 0.0, 1.0]]

    def test_squeeze_wants_even_sides(self) -> None:
        with pytest.raises(ValueError, match=r"both must be even; got shape \(1, 1, 3, 4\)"):
            Squeeze().encode(torch.zeros(1, 1, 3, 4))


def _write_through_data(layer: LUConv1x1) -> None:
    layer.upper.data.mul_(1.5)


def _copy_in_place(layer: LUConv1x1) -> None:
    with torch.no_grad():
        layer.log_diagonal.add_(0.3)


def _load(layer: LUConv1x1) -> None:
    layer.load_state_dict(LUConv1x1(4, seeded(9)).state_dict())


def _fused_step(layer: LUConv1x1) -> None:
    """Fused optimisers change parameters without raising their version counters."""
    layer.requires_grad_(True)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1, fused=True)
    layer.decode(torch.ones(1, 4))[0].square().sum().backward()
    optimizer.step()
    layer.zero_grad(set_to_none=True)
    layer.requires_grad_(False)


def _new_storage(layer: LUConv1x1) -> None:
    layer.lower.data = layer.lower.data * 2


def _to_double(layer: LUConv1x1) -> None:
    layer.double()


class TestLUCache:
    @pytest.fixture
    def layer(self) -> LUConv1x1:
        return LUConv1x1(4, seeded()).requires_grad_(False)

    def test_frozen_matrices_are_computed_once_and_without_a_graph(self, layer: LUConv1x1) -> None:
        z = torch.randn(2, 4, generator=seeded(1))
        layer.decode(z)
        first = layer._matrices()
        assert layer._matrices()[1] is first[1]
        assert not first[0].requires_grad and not first[1].requires_grad

    def test_trainable_matrices_are_not_cached(self) -> None:
        layer = LUConv1x1(4, seeded())
        layer.decode(torch.zeros(1, 4))
        assert layer._cache is None

    @pytest.mark.parametrize(
        "change", [_write_through_data, _copy_in_place, _load, _fused_step, _new_storage, _to_double]
    )
    def test_a_change_drops_the_cache(self, layer: LUConv1x1, change: Callable[[LUConv1x1], None]) -> None:
        z = torch.randn(2, 4, generator=seeded(1))
        before = layer.decode(z)[0]
        change(layer)
        z = z.to(layer.lower.dtype)
        after = layer.decode(z)[0]
        tolerance = 1e-5 if z.dtype == torch.float32 else 1e-12
        torch.testing.assert_close(after @ layer.weight().T, z, atol=tolerance, rtol=0)
        assert after.dtype == layer.lower.dtype
        assert change is _to_double or not torch.allclose(before, after)

    def test_a_meta_device_move_drops_the_cache(self, layer: LUConv1x1) -> None:
        layer.decode(torch.zeros(1, 4))
        assert layer.to("meta")._matrices()[1].device.type == "meta"

    def test_deepcopies_do_not_share(self, layer: LUConv1x1) -> None:
        z = torch.randn(2, 4, generator=seeded(1))
        before = layer.decode(z)[0]
        twin = copy.deepcopy(layer)
        _copy_in_place(twin)
        torch.testing.assert_close(twin.decode(z)[0] @ twin.weight().T, z, atol=1e-5, rtol=0)
        assert torch.equal(layer.decode(z)[0], before)

    def test_a_cache_filled_in_inference_mode_serves_gradients(self, layer: LUConv1x1) -> None:
        with torch.inference_mode():
            layer.decode(torch.zeros(1, 4))
        z = torch.zeros(1, 4, requires_grad=True)
        layer.decode(z)[0].sum().backward()
        assert z.grad is not None
        torch.testing.assert_close(z.grad[0], torch.linalg.inv(layer.weight()).sum(0))

    def test_a_layer_made_in_inference_mode_works(self) -> None:
        with torch.inference_mode():
            layer = LUConv1x1(4, seeded()).requires_grad_(False)
        assert layer.decode(torch.zeros(1, 4))[0].shape == (1, 4)

    def test_function_transforms_leave_nothing_behind(self, layer: LUConv1x1) -> None:
        z = torch.randn(3, 4, generator=seeded(1))
        found = torch.func.jacrev(lambda v: layer.decode(v[None])[0][0])(z[0])
        torch.testing.assert_close(found, torch.linalg.inv(layer.weight()))
        torch.func.vmap(lambda v: layer.decode(v[None])[0][0])(z)
        torch.testing.assert_close(layer.decode(z)[0] @ layer.weight().T, z, atol=1e-5, rtol=0)
