"""Architectures: configs as dictionaries, presets with the published sizes, refusals, memory format, compilation."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from flowinv.flows.architectures import (
    PRESETS,
    Config,
    DenseConfig,
    GlowConfig,
    RealNVPConfig,
    build,
    config_from_dict,
    config_to_dict,
    preset,
)
from flowinv.flows.flow import Flow
from flowinv.flows.layers.couplings import MaskedAffineCoupling
from flowinv.flows.layers.mixing import Orthogonal

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
        ({"architecture": "nice", "shape": [4]}, "unknown architecture 'nice': expected one of glow, realnvp, dense"),
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
    with pytest.raises(TypeError, match="expected one of GlowConfig, RealNVPConfig, DenseConfig, got 'glow'"):
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
