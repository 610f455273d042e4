"""Architectures: configs as dictionaries, presets with the published sizes, refusals, memory format, compilation."""

from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from flowinv.flows.architectures import (
    PRESETS,
    Config,
    DenseConfig,
    GlowConfig,
    PatchFlowConfig,
    RealNVPConfig,
    build,
    config_from_dict,
    config_to_dict,
    preset,
)
from flowinv.flows.flow import Flow
from flowinv.flows.layers.couplings import MaskedAffineCoupling
from flowinv.flows.layers.mixing import LUConv1x1, Orthogonal
from flowinv.flows.networks import PatchNet

CONFIGS: dict[str, Config] = {
    **PRESETS,
    "glow-odd": GlowConfig((3, 8, 8), (1, 2), hidden=(8, 4), mixing="lu", coupling="additive", context=(2, 8, 8)),
    "dense": DenseConfig((5,), steps=2, mixing="lu", context=(3,)),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_survive_json(name: str) -> None:
    assert config_from_dict(json.loads(json.dumps(config_to_dict(CONFIGS[name])))) == CONFIGS[name]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"architecture": "nice", "shape": [4]},
            "unknown architecture 'nice': expected one of glow, patch, realnvp, dense",
        ),
        ({"shape": [1, 8, 8]}, "unknown architecture None"),
        ({"architecture": "glow", "shape": [1, 8, 8], "width": 3}, r"unknown fields for glow: \['width'\]; known:"),
        ({"architecture": "glow"}, "the config of glow has no shape"),
    ],
)
def test_foreign_dictionaries_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        config_from_dict(values)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (GlowConfig((1, 10, 10)), "H and W divisible by 4"),
        (GlowConfig((4,)), "expected an image shape"),
        (GlowConfig((1, 8, 8), steps=()), "steps is empty"),
        (GlowConfig((1, 8, 8), mixing="qr"), "mixing is 'orthogonal' or 'lu', got 'qr'"),
        (GlowConfig((1, 8, 8), coupling="spline"), "coupling is 'affine' or 'additive', got 'spline'"),
        (GlowConfig((1, 8, 8), network="unet"), "network is 'conv' or 'resnet', got 'unet'"),
        (GlowConfig((1, 8, 8), hidden=(8, 8, 8)), "hidden needs one width per scale: got 3 for 2 scales"),
        (GlowConfig((1, 8, 8), context=(1, 2, 2)), "H a multiple of 4, got"),
        (GlowConfig((1, 8, 8), context=(2, 3)), "the context of an image flow is"),
        (PatchFlowConfig((1, 48, 48), (2,) * 5), "H and W divisible by 32"),
        (PatchFlowConfig((1, 8, 16), (2, 2), splits=()), r"square images, got \(1, 8, 16\)"),
        (PatchFlowConfig((1, 8, 8), (2, 2), splits=(1,)), "nothing follows scale 1 of 2"),
        (PatchFlowConfig((1, 8, 8), (2, 2), splits=(), context=(3,)), r"takes no context, got \(3,\)"),
        (PatchFlowConfig((1, 8, 8), (), splits=()), r"at least one scale, got steps=\(\)"),
        (
            PatchFlowConfig((1, 8, 8), (2, 2), splits=(), mixing="orthogonal"),
            "mixing is 'swap' or 'lu', got 'orthogonal'",
        ),
        (PatchFlowConfig((1, 12, 12), (2, 2), splits=()), "maps have side 1, 2, 4, 8 or more, got 6"),
        (RealNVPConfig((1, 6, 6), scales=3), "H and W divisible by 4"),
        (RealNVPConfig((1, 8, 8), scales=0), "at least one scale, got scales=0"),
        (DenseConfig((1, 8, 8)), r"needs a vector shape \(D,\), got \(1, 8, 8\)"),
        (DenseConfig((4,), mixing="qr"), "mixing is 'orthogonal' or 'lu'"),
    ],
)
def test_impossible_configs_are_refused(config: Config, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(config)


def test_build_wants_a_config() -> None:
    with pytest.raises(
        TypeError, match="expected one of GlowConfig, PatchFlowConfig, RealNVPConfig, DenseConfig, got 'glow'"
    ):
        build("glow")


def test_presets_carry_the_published_settings() -> None:
    table = {n: (c.scales, c.blocks, c.hidden) for n, c in PRESETS.items() if isinstance(c, RealNVPConfig)}
    assert table == {
        "paper-mnist": (3, 8, 32),
        "paper-cifar10": (6, 12, 64),
        "paper-celebahq": (6, 10, 80),
        "paper-mnist-pregenerator": (3, 3, 32),
        "paper-cifar10-pregenerator": (4, 4, 48),
        "paper-celebahq-pregenerator": (3, 3, 48),
    }


def test_preset_takes_another_shape_and_refuses_unknown_names() -> None:
    assert preset("paper-cifar10", (1, 32, 32)) == replace(PRESETS["paper-cifar10"], shape=(1, 32, 32))
    assert preset("paper-cifar10") is PRESETS["paper-cifar10"]
    with pytest.raises(ValueError, match="unknown preset 'glow-huge': expected one of glow-small, paper-mnist"):
        preset("glow-huge")


def _used(name: str) -> int:
    """Weights of a preset that its map depends on: of a factorised 1x1 convolution's two matrices the halves below and above."""
    flow = build(PRESETS[name])
    unused = sum(len(m.sign) * (len(m.sign) + 1) for m in flow.modules() if isinstance(m, LUConv1x1))
    return sum(p.numel() for p in flow.parameters()) - unused


def test_the_1x1_coupling_flow_has_the_published_size() -> None:
    """32.7 and 33.8 million weights; the couplings at 4x4, 2x2 and 1x1 hold nearly all of them."""
    assert _used("paper-1x1-coupling") == 32_720_480 == pytest.approx(32.7e6, rel=1e-3)
    assert _used("paper-invertible-1x1") == 33_763_712 == pytest.approx(33.8e6, rel=2e-3)
    flow = build(PRESETS["paper-1x1-coupling"])
    nets = [m for m in flow.modules() if isinstance(m, PatchNet)]
    assert len(nets) == 14 and [n.enter.kernel_size[0] for n in nets] == [3] * 6 + [2] * 4 + [1] * 4
    assert [n.enter.in_channels for n in nets] == [6] * 2 + [24] * 2 + [96] * 2 + [192] * 4 + [384] * 4


def test_a_new_1x1_coupling_flow_only_scales(generator: torch.Generator) -> None:
    """Networks start at zero, so that each coupling multiplies one half by sigmoid(2)."""
    config = PatchFlowConfig((1, 8, 8), steps=(2, 2, 4), hidden=4, splits=())
    flow = Flow(build(config).eval(), config.shape)
    x = flow.noise((3,), generator)
    z, log_det = flow.encode(x)
    torch.testing.assert_close(z, x * torch.sigmoid(torch.tensor(2.0)) ** 4)  # each half in every second of eight
    torch.testing.assert_close(log_det, torch.full((3,), 4 * 64 * math.log(1 / (1 + math.exp(-2)))))


def test_configs_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        PRESETS["glow-small"].clamp = 3.0


def test_realnvp_has_the_couplings_of_the_paper() -> None:
    """3 checkerboard and 3 channel-wise couplings at each scale but the last, 4 checkerboard ones there."""
    flow = build(RealNVPConfig((1, 8, 8), scales=3, blocks=1, hidden=2))
    masks = [tuple(m.mask.shape) for m in flow.modules() if isinstance(m, MaskedAffineCoupling)]
    board = {8: (1, 8, 8), 4: (1, 4, 4), 2: (1, 2, 2)}
    assert masks == [board[8]] * 3 + [(4, 1, 1)] * 3 + [board[4]] * 3 + [(8, 1, 1)] * 3 + [board[2]] * 4


@pytest.mark.parametrize(
    "config",
    [
        GlowConfig((1, 8, 8), steps=(1, 1), hidden=4),
        RealNVPConfig((1, 8, 8), scales=2, blocks=1, hidden=4),
        DenseConfig((6,), steps=2, hidden=4),
    ],
)
def test_a_new_flow_keeps_volume(config: Config, generator: torch.Generator) -> None:
    """Last layers start at zero, so couplings start at the identity and what is left is a rotation."""
    flow = Flow(build(config).eval(), config.shape)
    x = flow.noise((3,), generator)
    z, log_det = flow.encode(x)
    torch.testing.assert_close(log_det, torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.flatten(1).norm(dim=1), x.flatten(1).norm(dim=1))


def test_rotations_follow_the_seed_of_the_config() -> None:
    def first(seed: int) -> torch.Tensor:
        flow = build(GlowConfig((1, 4, 4), steps=(1,), hidden=2, seed=seed))
        return next(m.matrix for m in flow.modules() if isinstance(m, Orthogonal))

    assert torch.equal(first(0), first(0))
    assert not torch.equal(first(0), first(1))


@pytest.mark.parametrize("mixing", ["orthogonal", "lu"])
def test_glow_has_no_graph_breaks(mixing: str, generator: torch.Generator) -> None:
    flow = Flow(build(GlowConfig((1, 4, 4), steps=(1,), hidden=2, mixing=mixing)), (1, 4, 4)).eval()
    z = flow.noise((2,), generator)
    torch._dynamo.reset()
    for part in (flow.frozen().decode, flow.requires_grad_(False).decode, flow.encode):
        compiled = torch.compile(part, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(z), part(z), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [n for n, c in PRESETS.items() if isinstance(c, RealNVPConfig)])
def test_the_papers_presets_can_be_built_on_one_gpu(name: str) -> None:
    """Weights counted without memory: 34 ResNet couplings of 12 blocks at 64 channels are tens of millions, not billions."""
    with torch.device("meta"):
        count = sum(p.numel() for p in build(PRESETS[name]).parameters())
    assert 1e5 < count < 1e8
