"""Priors as files: the shipped ones, and saving and loading your own (the Hugging Face hub's layout)."""

from __future__ import annotations

import math
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..checkpoint import fit_or_refuse
from ..flows.architectures import build, config_from_dict
from ..flows.bijection import Bijection, Chain
from ..flows.flow import Flow
from ..flows.layers.analytic import Affine
from ..flows.layers.dequantization import Dequantizer
from ..flows.layers.transforms import Gaussianize, Logit, Shift
from ..store import BundleError, read_bundle, write_bundle, write_text

FORMAT = "flowinv-prior"


def shipped() -> dict[str, Path]:
    """The priors that come with the package: name and folder."""
    here = Path(str(files(__package__)))
    return {p.parent.name: p.parent for p in sorted(here.glob("*/config.json"))}


def _describe_transform(transform: Bijection) -> dict[str, Any]:
    if isinstance(transform, Gaussianize):
        return {"kind": "gaussianize", "cdf_shape": list(transform.cdf.shape)}
    if isinstance(transform, Logit):
        return {"kind": "logit", "margin": transform.margin}
    if isinstance(transform, Shift):
        return {"kind": "shift", "centre": transform.centre, "scale": transform.scale}
    if isinstance(transform, Chain) and not len(transform.layers):
        return {"kind": "none"}
    raise TypeError(
        f"cannot describe a {type(transform).__name__} transform in a config; keep the flow in Python instead"
    )


def _make_transform(values: dict[str, Any]) -> Bijection | None:
    kind = values.get("kind")
    if kind == "gaussianize":
        shape = values["cdf_shape"]
        ramp = torch.linspace(0, 1, shape[0]).view(-1, *([1] * (len(shape) - 1)))
        return Gaussianize(ramp.expand(shape).clone())
    if kind == "logit":
        return Logit(values["margin"])
    if kind == "shift":
        return Shift(values["centre"], values["scale"])
    if kind == "none":
        return None
    raise BundleError(f"unknown transform {kind!r}: expected gaussianize, logit, shift or none")


def _make_bijection(values: dict[str, Any], shape: tuple[int, ...]) -> Bijection:
    if values.get("architecture") == "affine":
        return Affine(torch.zeros(shape), torch.eye(math.prod(shape)))
    return build(config_from_dict(values))


def describe(flow: Flow) -> dict[str, Any]:
    """The JSON config from which ``from_description`` rebuilds the flow, weights aside."""
    values = {"architecture": "affine"} if isinstance(flow.bijection, Affine) else flow.architecture
    if values is None:
        raise TypeError(
            f"a {type(flow.bijection).__name__} bijection without an architecture cannot be rebuilt from a file; "
            "set flow.architecture to its config, or keep the flow in Python"
        )
    low, high = flow.support
    dtype = next((t.dtype for t in flow.state_dict().values() if t.is_floating_point()), torch.float32)
    return {
        "format": FORMAT,
        "flowinv": __version__,
        "shape": list(flow.shape),
        "support": [low if math.isfinite(low) else None, high if math.isfinite(high) else None],
        "bits": flow.bits,
        "dtype": str(dtype).removeprefix("torch."),
        "dequantizer": None if flow.dequantizer is None else {"hidden": flow.dequantizer.hidden},
        "transform": _describe_transform(flow.transform),
        "bijection": values,
    }


def from_description(config: dict[str, Any], tensors: dict[str, Tensor], where: str = "prior") -> Flow:
    """Rebuild a flow from its config and weights; what does not fit is refused with one line."""
    try:
        shape = tuple(config["shape"])
        low, high = config["support"]
        support = (-math.inf if low is None else low, math.inf if high is None else high)
        learned, bits = config.get("dequantizer"), config["bits"]
        with torch.random.fork_rng(devices=[]):  # initial weights are overwritten; the caller's random state is not
            bijection = _make_bijection(config["bijection"], shape)
            noise = Dequantizer(shape[0], bits, learned["hidden"]) if learned else None
        flow = Flow(bijection, shape, _make_transform(config["transform"]), support, bits, noise)
        flow = flow.to(getattr(torch, config.get("dtype", "float32")))
    except KeyError as error:
        raise BundleError(f"{where}: config does not describe a prior: it misses {error}") from None
    except (TypeError, ValueError, AttributeError, IndexError, ArithmeticError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BundleError(f"{where}: config does not describe a prior: {reason}") from None
    flow.architecture = config["bijection"]
    fit_or_refuse(tensors, flow.state_dict(), f"{where}: weights")
    flow.load_state_dict(tensors)
    try:  # what their constructors demand, weights from a file must meet too
        if isinstance(flow.bijection, Affine):
            Affine(flow.bijection.mean, flow.bijection.cholesky)
        if isinstance(flow.transform, Gaussianize):
            Gaussianize(flow.transform.cdf)
    except ValueError as error:
        raise BundleError(f"{where}: weights do not make a prior: {error}") from None
    return flow.eval()


def save_prior(
    flow: Flow,
    folder: str | Path,
    card: str | None = None,
    extra: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a flow as config.json + model.safetensors (+ README.md, its model card)."""
    if card is not None and not overwrite and (Path(folder) / "README.md").exists():
        raise FileExistsError(f"{folder} already has a README.md; choose another folder or ask to overwrite")
    path = write_bundle(folder, {**describe(flow), **(extra or {})}, flow.state_dict(), overwrite)
    if card is not None:
        write_text(path / "README.md", card)
    return path


def load_prior(name: str | Path) -> Flow:
    """A prior by name (``mnist``), by folder, or by Hugging Face hub id (``hub:owner/name``).

    Raises FileNotFoundError for what is not there, BundleError for what is not a prior.
    """
    folder = _folder(name)
    config, tensors = read_bundle(folder, FORMAT)
    return from_description(config, tensors, str(folder))


def training_settings(name: str | Path) -> dict[str, Any] | None:
    """The settings of the run that made a prior, as ``TrainingConfig.from_dict`` takes them; None where it does not tell."""
    return read_bundle(_folder(name), FORMAT)[0].get("training")


def _folder(name: str | Path) -> Path:
    text = str(name)
    known = shipped()
    if text.startswith("hub:"):
        return _from_hub(text.removeprefix("hub:"))
    if text in known:
        return known[text]
    if Path(text).expanduser().exists():
        return Path(text).expanduser()
    names = ", ".join(known) or "none"
    raise FileNotFoundError(f"no prior {text!r}: expected a shipped one ({names}), a folder, or hub:owner/name")


def _from_hub(repository: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise ImportError("priors from the hub need huggingface_hub: pip install 'flowinv[hub]'") from None
    try:
        return Path(snapshot_download(repository, allow_patterns=["config.json", "model.safetensors", "README.md"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise FileNotFoundError(f"hub:{repository} could not be fetched: {str(error).splitlines()[0]}") from None
