"""What a training run is told: the flow, its input transform, the optimiser; read from TOML."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from ..flows.architectures import Config, config_from_dict, config_to_dict
from ..settings import check_seed, check_types
from .data import Preparation


@dataclass(frozen=True)
class TrainingConfig:
    """Maximum-likelihood training of an image prior.

    ``epochs`` passes over the training images in batches of ``batch``; Adam at ``learning_rate`` after
    ``warmup`` steps, decayed by a cosine to zero; gradients clipped at norm ``clip``. Each of ``restarts`` adds that many epochs,
    decayed in the same way from half the learning rate: how a finished run is made longer. The weights kept are a running
    average with decay ``average`` (0: the last ones). ``bits`` is the grey-level depth trained on: images
    of more bits are floored to it. ``holdout`` images at the end of the training set are for validation. Of pictures read
    from files ``crop`` (left, upper, right, lower) is cut out and resized to the flow's shape; of data that name no test
    images the last ``test`` are kept for it.
    """

    flow: Config
    transform: Literal["gaussianize", "logit", "none"] = "gaussianize"
    dequantization: Literal["learned", "uniform"] = "learned"
    bits: int = 8
    epochs: float = 8.0
    restarts: tuple[float, ...] = ()
    batch: int = 64
    learning_rate: float = 1e-3
    warmup: int = 200
    clip: float = 1.0
    average: float = 0.999
    flip: bool = False
    bf16: bool = False
    holdout: int = 2000
    crop: tuple[int, int, int, int] | None = None
    test: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self, "training setting")
        check_seed(self.seed, "training setting seed")
        check_types(self.flow, "flow setting", positive_but=("seed", "splits"))
        checks = {
            "epochs": self.epochs > 0,
            "restarts": all(length > 0 for length in self.restarts),
            "batch": self.batch > 0,
            "learning_rate": self.learning_rate > 0,
            "clip": self.clip > 0,
            "average": 0 <= self.average < 1,
            "bits": 1 <= self.bits <= 8,
            "warmup": self.warmup >= 0,
            "holdout": self.holdout >= 0,
            "test": self.test >= 0,
            "dequantization": self.dequantization in ("learned", "uniform"),
            "transform": self.transform in ("gaussianize", "logit", "none"),
        }
        for name, right in checks.items():
            if not right:
                raise ValueError(f"training setting {name} = {getattr(self, name)!r} is out of range")
        if self.flow.context:
            raise ValueError(f"a prior has no context, the flow's is {self.flow.context}")
        if self.dequantization == "learned" and len(self.flow.shape) == 3 and any(s % 2 for s in self.flow.shape[1:]):
            raise ValueError(f"learned dequantization needs even sides, got {self.flow.shape}; use uniform")

    @property
    def preparation(self) -> Preparation:
        """How the images are to be read."""
        shape = tuple(self.flow.shape)
        return Preparation(self.crop, (shape[-2], shape[-1]) if self.crop else None, self.test)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with the flow's architecture by name."""
        return {**asdict(self), "flow": config_to_dict(self.flow)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainingConfig:
        """The inverse of ``to_dict``; unknown settings are refused by name."""
        known = {f.name for f in fields(cls)}
        if unknown := set(values) - known:
            raise ValueError(f"unknown training settings {sorted(unknown)}; known: {sorted(known)}")
        if not isinstance(values.get("flow"), dict):
            raise ValueError("a training config needs a [flow] table with an architecture")
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**{**values, "flow": config_from_dict(values["flow"])})


def read_toml(path: str | Path) -> dict[str, Any]:
    """The tables of a TOML file, refused with one line where it is not one."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such config: {path}")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


def read_config(path: str | Path) -> TrainingConfig:
    """A training config from a TOML file, refused with one line where it is not one."""
    values = read_toml(path)
    try:
        return TrainingConfig.from_dict(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
