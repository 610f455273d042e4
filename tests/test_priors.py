"""Priors as files: the same density comes back, and what is not a prior is refused in one line."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_posterior import affine_flow
from torch import Tensor

from flowinv import BundleError, Flow, Quantile, load_prior, save_prior
from flowinv.flows.architectures import DenseConfig, GlowConfig, RealNVPConfig, build, config_to_dict
from flowinv.flows.flow import REALS, UNIT
from flowinv.flows.layers.analytic import Elementwise
from flowinv.flows.layers.dequantization import Dequantizer
from flowinv.flows.layers.transforms import Gaussianize, Logit, Shift
from flowinv.priors import describe, shipped
from flowinv.store import read_bundle, write_bundle

SHAPE = (1, 4, 4)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def learned(
    config: Any, transform: Any = None, support: Any = REALS, bits: int | None = None, noise: Any = None
) -> Flow:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        flow = Flow(build(config), config.shape, transform, support, bits, noise)
    with torch.no_grad():
        for p in flow.parameters():
            p += 0.05 * torch.randn(p.shape, generator=seeded(1))
    flow.architecture = config_to_dict(config)
    return flow.eval()


def histogram(shape: tuple[int, ...] = ()) -> Gaussianize:
    return Gaussianize.from_counts(torch.randint(1, 99, (8, *shape), generator=seeded(3)))


GLOW = GlowConfig(SHAPE, steps=(1, 1), hidden=8)
FLOWS: dict[str, Callable[[], Flow]] = {
    "glow": lambda: learned(GLOW, histogram(), UNIT, 3, Dequantizer(1, 3, hidden=4)),
    "glow per pixel": lambda: learned(GLOW, histogram(SHAPE), UNIT, 3),
    "glow lu": lambda: learned(GlowConfig(SHAPE, steps=(1,), hidden=(8,), mixing="lu"), Logit(0.1), UNIT, 8),
    "realnvp": lambda: learned(RealNVPConfig(SHAPE, 2, 1, 4), Shift(0.4, 2.0), UNIT),
    "dense": lambda: learned(DenseConfig((6,), 2, 8)),
    "affine": lambda: affine_flow(SHAPE),
    "affine float32": lambda: affine_flow((5,), dtype=torch.float32, support=(0.0, math.inf)),
}


@pytest.mark.parametrize("name", FLOWS)
def test_round_trip(name: str, tmp_path: Path) -> None:
    flow = FLOWS[name]()
    assert save_prior(flow, tmp_path / "p") == tmp_path / "p"
    before = torch.get_rng_state()
    back = load_prior(tmp_path / "p")
    assert torch.equal(torch.get_rng_state(), before) and not back.training
    assert back.fingerprint() == flow.fingerprint() and back.shape == flow.shape
    assert (back.support, back.bits) == (flow.support, flow.bits)
    x = flow.sample(5, seeded(2))
    assert torch.equal(back.sample(5, seeded(2)), x)
    assert torch.equal(back.encode(x)[1], flow.encode(x)[1])
    if flow.bits is not None:
        images = torch.randint(0, 2**flow.bits, (4, *SHAPE), generator=seeded(4), dtype=torch.uint8)
        found = back.log_prob_of_integers(images, seeded(5))
        assert torch.equal(found, flow.log_prob_of_integers(images, seeded(5)))
    assert load_prior(str(tmp_path / "p")).fingerprint() == flow.fingerprint()


def test_card_and_extra_are_kept(tmp_path: Path) -> None:
    save_prior(affine_flow(SHAPE), tmp_path, "# A card\n", {"figures": {"bits_per_dim": {"test": 1.5}}})
    assert (tmp_path / "README.md").read_text() == "# A card\n"
    assert json.loads((tmp_path / "config.json").read_text())["figures"]["bits_per_dim"]["test"] == 1.5
    load_prior(tmp_path)


def test_nothing_is_written_over_unasked(tmp_path: Path) -> None:
    save_prior(affine_flow(SHAPE), tmp_path / "p", "old")
    with pytest.raises(FileExistsError):
        save_prior(affine_flow(SHAPE, seed=1), tmp_path / "p", "new")
    assert load_prior(tmp_path / "p").fingerprint() == affine_flow(SHAPE).fingerprint()
    assert (tmp_path / "p" / "README.md").read_text() == "old"
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "README.md").write_text("mine")
    with pytest.raises(FileExistsError, match=r"already has a README\.md"):
        save_prior(affine_flow(SHAPE), tmp_path / "notes", "new")
    assert [p.name for p in (tmp_path / "notes").iterdir()] == ["README.md"]
    assert (tmp_path / "notes" / "README.md").read_text() == "mine"
    save_prior(affine_flow(SHAPE, seed=1), tmp_path / "p", "new", overwrite=True)
    assert load_prior(tmp_path / "p").fingerprint() == affine_flow(SHAPE, seed=1).fingerprint()


def test_flows_that_no_file_can_hold(tmp_path: Path) -> None:
    normal = torch.distributions.Normal(torch.zeros(4), 1.0)
    nameless = learned(DenseConfig((6,), 1, 4))
    nameless.architecture = None
    for flow, what in (
        (Flow(Quantile(normal), (4,)), "a Quantile bijection without an architecture"),
        (nameless, "a Chain bijection without an architecture"),
        (affine_flow((4,), transform=Quantile(normal)), "cannot describe a Quantile transform"),
        (affine_flow((4,), transform=Elementwise((4,))), "cannot describe a Elementwise transform"),
    ):
        with pytest.raises(TypeError, match=what):
            save_prior(flow, tmp_path / "p")
        assert not (tmp_path / "p").exists()


# -- names -------------------------------------------------------------------------------------------


def test_an_unknown_name_is_told_the_known_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"no prior 'minst': expected a shipped one .*, a folder, or hub:owner/name"
    ):
        load_prior("minst")
    with pytest.raises(FileNotFoundError, match="no prior"):
        load_prior(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match=r"has no config\.json"):
        load_prior("empty")
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_prior("file")


def test_every_shipped_prior_loads_with_its_card() -> None:
    for name, folder in shipped().items():
        flow = load_prior(name)
        assert flow.support == UNIT and flow.bits is not None and (folder / "README.md").is_file()
        x = flow.sample(2, seeded())
        assert x.shape == (2, *flow.shape) and torch.isfinite(flow.log_prob(x.clamp(0, 1))).all()
        assert (folder / "model.safetensors").stat().st_size <= 8 * 2**20


def test_the_hub_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="hub:nobody/nothing-here could not be fetched: ") as error:
        load_prior("hub:nobody/nothing-here")
    assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="hub:a//b could not be fetched"):
        load_prior("hub:a//b")
    assert hub is not None


def test_the_hub_brings_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    save_prior(affine_flow(SHAPE), tmp_path)
    asked: list[str] = []

    def fetch(repository: str, **options: Any) -> str:
        asked.append(repository)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert load_prior("hub:owner/name").fingerprint() == affine_flow(SHAPE).fingerprint() and asked == ["owner/name"]


def test_without_the_hubs_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"need huggingface_hub: pip install 'flowinv\[hub\]'"):
        load_prior("hub:a/b")


# -- foreign and damaged files -----------------------------------------------------------------------


def _config(**values: Any) -> Callable[[dict, dict], None]:
    return lambda config, tensors: config.update(values)


def _weights(name: str, value: Callable[[Tensor], Tensor]) -> Callable[[dict, dict], None]:
    return lambda config, tensors: tensors.update({name: value(tensors[name])})


MEAN, ROOT, CDF = "bijection.mean", "bijection.cholesky", "transform.cdf"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, t: c.pop("shape"), "misses 'shape'"),
        (lambda c, t: c.pop("bijection"), "misses 'bijection'"),
        (lambda c, t: c.pop("support"), "misses 'support'"),
        (_config(shape="abc"), "does not describe a prior"),
        (_config(shape=4), "does not describe a prior"),
        (_config(shape=[1, 4, 5]), "weights do not fit"),
        (_config(shape=[-4]), "does not describe a prior"),
        (_config(support=None), "does not describe a prior"),
        (_config(support=["a", "b"]), "does not describe a prior"),
        (_config(dtype="load"), "does not describe a prior"),
        (_config(dtype="int64"), "does not describe a prior"),
        (_config(transform={"kind": "sigmoid"}), "unknown transform 'sigmoid'"),
        (_config(transform={"kind": "gaussianize", "cdf_shape": []}), "does not describe a prior"),
        (_config(transform={"kind": "logit"}), "misses 'margin'"),
        (_config(transform=None), "does not describe a prior"),
        (_config(bijection={"architecture": "vae"}), "unknown architecture 'vae'"),
        (_config(bijection={"architecture": "glow", "shape": [1, 4, 4], "hidden": -3}), "does not describe a prior"),
        (_config(bijection={"architecture": "glow", "shape": [1, 4, 4], "steps": 3}), "does not describe a prior"),
        (_config(bijection="glow"), "does not describe a prior"),
        (_config(format="safetensors"), "has format 'safetensors', expected 'flowinv-prior'"),
        (lambda c, t: t.pop(MEAN), f"weights do not fit: 1 tensors differ, first {MEAN}"),
        (lambda c, t: t.update(other=torch.zeros(2)), "first other"),
        (lambda c, t: t.clear(), "weights do not fit: 3 tensors differ"),
        (_weights(MEAN, lambda t: t[..., :2]), f"first {MEAN}"),
        (_weights(MEAN, lambda t: t.float()), f"first {MEAN}"),
        (_weights(MEAN, lambda t: torch.where(t == t.max(), math.nan, t)), f"hold NaN or infinite values in {MEAN}"),
        (_weights(ROOT, lambda t: t / 0), "hold NaN or infinite"),
        (_weights(ROOT, lambda t: -t), "do not make a prior: cholesky must be lower triangular"),
        (_weights(CDF, lambda t: t.flip(0)), "do not make a prior: cdf must rise strictly"),
    ],
)
def test_files_that_are_no_prior(tmp_path: Path, change: Callable[[dict, dict], None], message: str) -> None:
    save_prior(affine_flow(SHAPE, transform=histogram(), support=UNIT), tmp_path)
    config, tensors = read_bundle(tmp_path, "flowinv-prior")
    if CDF in tensors:
        tensors[CDF] = tensors[CDF].double()
    change(config, tensors)
    write_bundle(tmp_path, config, tensors, overwrite=True)
    with pytest.raises(BundleError, match=message) as error:
        load_prior(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize("damage", ["truncated", "pickle", "json"])
def test_damaged_files(tmp_path: Path, damage: str) -> None:
    save_prior(affine_flow(SHAPE), tmp_path)
    weights = tmp_path / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-20])
    elif damage == "pickle":
        torch.save({"a": torch.zeros(2)}, weights)
    else:
        (tmp_path / "config.json").write_text("{")
    with pytest.raises(BundleError, match="is not JSON" if damage == "json" else "cannot be read as safetensors"):
        load_prior(tmp_path)


def test_a_posterior_is_no_prior(tmp_path: Path) -> None:
    from exact_posterior import Exact

    Exact((6,)).posterior().save(tmp_path)
    with pytest.raises(BundleError, match="has format 'flowinv-posterior', expected 'flowinv-prior'"):
        load_prior(tmp_path)


def test_a_description_is_json(tmp_path: Path) -> None:
    for make in FLOWS.values():
        description = describe(make())
        assert json.loads(json.dumps(description)) == json.loads(json.dumps(description, allow_nan=False))
