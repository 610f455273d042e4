"""Densities: closed forms, the door, fingerprints, sampling, bits/dim."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from flowinv.flows import (
    REALS,
    UNIT,
    Affine,
    Chain,
    DenseConfig,
    Elementwise,
    Flow,
    GlowConfig,
    Quantile,
    bits_per_dim,
    build,
    standard_normal_log_prob,
)
from flowinv.flows.flow import set_bf16
from flowinv.flows.layers.transforms import Gaussianize, Logit, Shift


def make(mixing: str = "lu", transform: str = "gaussianize") -> Flow:
    config = GlowConfig((1, 4, 4), steps=(2,), hidden=4, mixing=mixing)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        bijection = build(config)
    before = Gaussianize.from_counts(torch.arange(1, 257)) if transform == "gaussianize" else Logit()
    return Flow(bijection, (1, 4, 4), before, UNIT, 8)


@pytest.fixture
def flow(randomise: Callable[..., Any]) -> Flow:
    return randomise(make()).eval()


def test_standard_normal_known_answer(generator: torch.Generator) -> None:
    z = torch.randn(5, 2, 3, generator=generator)
    torch.testing.assert_close(
        standard_normal_log_prob(z), torch.distributions.Normal(0.0, 1.0).log_prob(z).sum((1, 2))
    )


def test_log_prob_integrates_to_one_in_two_dimensions(randomise: Callable[..., Any]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        flow = randomise(Flow(build(DenseConfig((2,), steps=3, hidden=8)), (2,)), 0.3).double().eval()
    side = torch.linspace(-12, 12, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    cell = float(side[1] - side[0]) ** 2
    assert (flow.log_prob(grid).exp().sum() * cell).item() == pytest.approx(1, abs=5e-3)
    z, log_det = flow.encode(grid)
    broken = (standard_normal_log_prob(z) - log_det).exp().sum() * cell
    assert broken.item() != pytest.approx(1, abs=5e-3)


def test_log_prob_u_is_the_density_before_the_transform(flow: Flow, generator: torch.Generator) -> None:
    x = flow.double().sample(3, generator)
    u, log_det = flow.transform.encode(x)
    torch.testing.assert_close(flow.log_prob(x), flow.log_prob_u(u) + log_det)


def test_unit_flows_sample_within_the_unit_interval(flow: Flow, generator: torch.Generator) -> None:
    x = flow.sample(200, generator, temperature=2.0)
    assert x.shape == (200, 1, 4, 4) and x.min() >= 0 and x.max() <= 1
    flow.check(x)


def test_sampling_follows_its_generator_and_leaves_the_global_one(flow: Flow) -> None:
    state = torch.random.get_rng_state()
    first, second, third = (flow.sample(3, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_temperature_zero_gives_the_image_of_zero(flow: Flow, generator: torch.Generator) -> None:
    x = flow.sample(2, generator, temperature=0.0)
    torch.testing.assert_close(x, flow.decode(torch.zeros(2, 1, 4, 4))[0])


def test_noise_has_any_leading_shape_and_the_dtype_of_the_flow(flow: Flow, generator: torch.Generator) -> None:
    assert flow.noise((5, 2), generator).shape == (5, 2, 1, 4, 4)
    assert flow.double().noise((1,), generator).dtype == torch.float64


class TestDoor:
    @pytest.mark.parametrize(
        ("value", "kind", "message"),
        [
            (torch.zeros(2, 1, 4, 5), ValueError, r"x must have shape \(B, 1, 4, 4\), got \(2, 1, 4, 5\)"),
            (torch.zeros(1, 4, 4), ValueError, r"x must have shape \(B, 1, 4, 4\), got \(1, 4, 4\)"),
            (torch.zeros(4), ValueError, r"got \(4,\)"),
            (torch.zeros(3, 2, 1, 4, 4), ValueError, r"x must have shape \(B, 1, 4, 4\), got \(3, 2, 1, 4, 4\)"),
            (torch.zeros(2, 1, 4, 4).byte(), TypeError, "x must be a floating-point tensor, got torch.uint8"),
            ([[0.0]], TypeError, "x must be a floating-point tensor, got list"),
            (torch.full((2, 1, 4, 4), math.nan), ValueError, "x has 32 values that are NaN or infinite"),
            (torch.full((1, 1, 4, 4), math.inf), ValueError, "x has 16 values that are NaN or infinite"),
            (torch.full((2, 1, 4, 4), 255.0), ValueError, r"x must lie in \[0, 1\], got values from 255 to 255"),
            (torch.full((2, 1, 4, 4), -0.1), ValueError, r"x must lie in \[0, 1\], got values from -0\.1 to -0\.1"),
        ],
    )
    def test_bad_data_is_refused_in_one_line(self, flow: Flow, value: object, kind: type, message: str) -> None:
        with pytest.raises(kind, match=message) as error:
            flow.log_prob(value)
        assert "\n" not in str(error.value)

    def test_the_name_of_the_offender_is_told(self, flow: Flow) -> None:
        with pytest.raises(ValueError, match="truth must have shape"):
            flow.check(torch.zeros(3), "truth")

    def test_leading_draws_are_not_mistaken_for_a_sample(self) -> None:
        flow = Flow(Elementwise((4,)), (4,))
        flow.check(torch.zeros(3, 2, 4))
        with pytest.raises(ValueError, match=r"x must have shape \(B, 4\), got \(3, 2, 4\)"):
            flow.log_prob(torch.zeros(3, 2, 4))

    def test_a_flow_without_a_transform_knows_its_own_draws(self) -> None:
        flow = Flow(Elementwise((4,)), (4,), support=(0.0, 1.0))
        z = torch.tensor([[-1.4, 3.4, 0.5, 0.0]])
        torch.testing.assert_close(flow.log_prob(z), standard_normal_log_prob(z))
        logit = Flow(Elementwise((4,)), (4,), Logit(), support=(0.0, 1.0))
        assert torch.isfinite(logit.log_prob(logit.decode(torch.tensor([[-9.0, 9.0, 0.0, 1.0]]))[0])).all()
        with pytest.raises(ValueError, match=r"x must lie in \[0, 1\]"):
            logit.log_prob(torch.full((1, 4), 1.2))
        with pytest.raises(ValueError, match=r"x must lie in \[0, 1\]"):  # a user's image is let in by its range alone
            flow.check(z)

    def test_the_reals_take_any_finite_number(self) -> None:
        flow = Flow(Elementwise((2,)), (2,))
        assert flow.support == REALS
        assert torch.isfinite(flow.log_prob(torch.tensor([[-1e6, 1e6]]))).all()

    def test_an_empty_batch_of_vectors_has_no_densities(self) -> None:
        assert Flow(Elementwise((2,)), (2,)).log_prob(torch.zeros(0, 2)).shape == (0,)


class TestFingerprint:
    def test_it_survives_files_copies_and_modes(self, flow: Flow, tmp_path) -> None:
        fingerprint = flow.fingerprint()
        save_file({k: t.contiguous() for k, t in flow.state_dict().items()}, tmp_path / "w.safetensors")
        loaded = make()
        assert loaded.fingerprint() != fingerprint
        loaded.load_state_dict(load_file(tmp_path / "w.safetensors"))
        assert loaded.fingerprint() == fingerprint
        assert copy.deepcopy(flow).train().requires_grad_(False).fingerprint() == fingerprint

    def test_use_does_not_change_it(self, flow: Flow, generator: torch.Generator) -> None:
        fingerprint = flow.requires_grad_(False).fingerprint()
        flow.log_prob(flow.sample(2, generator))
        assert flow.fingerprint() == fingerprint

    def test_in_a_precision_it_is_that_of_the_converted_flow(self, flow: Flow) -> None:
        flow, double = flow.float(), copy.deepcopy(flow).double()
        assert flow.fingerprint() == flow.fingerprint(torch.float32) == double.fingerprint(torch.float32)
        assert double.fingerprint() == flow.fingerprint(torch.float64) != flow.fingerprint()
        next(double.parameters()).data += 1e-3
        assert double.fingerprint(torch.float32) != flow.fingerprint()

    def test_every_weight_changes_it(self, flow: Flow) -> None:
        seen = {flow.fingerprint()}
        for tensor in flow.state_dict().values():
            first = (0,) * tensor.dim()
            tensor.detach()[first] = ~tensor[first] if tensor.dtype == torch.bool else tensor[first] + 0.25
            seen.add(flow.fingerprint())
        assert len(seen) == 1 + len(flow.state_dict())

    def test_settings_outside_the_weights_change_it(self) -> None:
        def normal(mean: float) -> Quantile:
            return Quantile(torch.distributions.Normal(torch.full((2,), mean), 1.0))

        flows = [
            Flow(Elementwise((2,)), (2,)),
            Flow(Elementwise((2,), clamp=1.0), (2,)),
            Flow(Elementwise((2,)), (2,), support=UNIT),
            Flow(Elementwise((2,)), (2,), bits=8),
            Flow(Elementwise((2,)), (2,), Logit(0.05), UNIT),
            Flow(Elementwise((2,)), (2,), Logit(0.1), UNIT),
            Flow(Elementwise((2,)), (2,), Shift(0.5, 1.0)),
            Flow(Elementwise((2,)), (2,), Shift(0.5, 2.0)),
            Flow(normal(0.0), (2,)),
            Flow(normal(1.0), (2,)),
            Flow(Quantile(torch.distributions.LogNormal(torch.zeros(2), 1.0)), (2,)),
            Flow(Quantile(torch.distributions.LogNormal(torch.ones(2), 1.0)), (2,)),
            Flow(Chain([]), (2,)),
        ]
        assert len({f.fingerprint() for f in flows}) == len(flows)
        assert Flow(normal(1.0), (2,)).fingerprint() == flows[-4].fingerprint()

    def test_bfloat16_networks_change_it_and_back(self, flow: Flow) -> None:
        fingerprint = flow.fingerprint()
        set_bf16(flow, True)
        assert flow.fingerprint() != fingerprint
        set_bf16(flow, False)
        assert flow.fingerprint() == fingerprint


class TestBitsPerDim:
    @pytest.mark.parametrize("bits", [1, 5, 8])
    def test_a_uniform_density_needs_exactly_the_bits(self, bits: int, generator: torch.Generator) -> None:
        uniform = torch.distributions.Uniform(torch.zeros(1, 2, 2).double(), torch.ones(1, 2, 2).double())
        flow = Flow(Quantile(uniform), (1, 2, 2), support=UNIT, bits=bits)
        images = torch.randint(0, 2**bits, (50, 1, 2, 2), generator=generator)
        found = bits_per_dim(flow.log_prob_of_integers(images, generator), 4)
        torch.testing.assert_close(found, torch.full((50,), float(bits)).double(), rtol=0, atol=1e-6)

    def test_a_histogram_needs_its_code_lengths(self, generator: torch.Generator) -> None:
        counts = torch.tensor([1.0, 2.0, 4.0, 1.0])
        flow = Flow(Chain([]), (1, 2, 2), Gaussianize.from_counts(counts, smoothing=0.0), UNIT, bits=2).double()
        images = torch.tensor([0, 1, 2, 3]).view(1, 1, 2, 2)
        found = bits_per_dim(flow.log_prob_of_integers(images, generator), 4)
        assert found.item() == pytest.approx((3 + 2 + 1 + 3) / 4, abs=1e-5)

    def test_flows_that_know_no_integers_say_so(self, generator: torch.Generator) -> None:
        with pytest.raises(ValueError, match="bits is None"):
            Flow(Chain([]), (2,)).log_prob_of_integers(torch.zeros(1, 2, dtype=torch.uint8), generator)


def test_repr_tells_shape_support_and_size(flow: Flow) -> None:
    count = sum(p.numel() for p in flow.parameters())
    assert f"shape=(1, 4, 4), support=(0.0, 1.0), bits=8, parameters={count}" in repr(flow)


def test_analytic_flows_freeze_too(generator: torch.Generator) -> None:
    flow = Flow(Affine(torch.zeros(3).double(), torch.eye(3).double()), (3,))
    x = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(flow.frozen().log_prob(x), flow.log_prob(x))


def test_importing_flows_brings_nothing_heavy_beside_torch() -> None:
    code = (
        "import torch, sys; before = set(sys.modules)\n"
        "import flowinv.flows, flowinv.store\n"
        "new = {m.split('.')[0] for m in set(sys.modules) - before}\n"
        "print(sorted(new - {'flowinv'} - set(sys.stdlib_module_names)))\n"
        "print(len(set(sys.modules) - before))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split("\n")
    assert found[0] == "[]"
    assert int(found[1]) < 80  # small files, one noun each
