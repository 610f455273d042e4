"""Maximum-likelihood training of a flow prior on images: deterministic, resumable, quiet."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import fit_or_refuse, pack, unpack
from ..flows.architectures import build, config_to_dict
from ..flows.bijection import Bijection
from ..flows.flow import UNIT, Flow, bits_per_dim, set_bf16
from ..flows.layers.dequantization import Dequantizer
from ..flows.layers.transforms import Gaussianize, Logit
from ..interrupts import keep_stepping
from ..randomness import keyed_generator
from ..store import BundleError, read_bundle, write_bundle
from .config import TrainingConfig
from .data import floor_bits

CHECKPOINT = "flowinv-training"


@dataclass(frozen=True)
class Progress:
    """Where a run stands: step of total, the last batch's bits/dim, seconds over all its runs."""

    step: int
    total: int
    bits_per_dim: float
    seconds: float


class TrainingDiverged(RuntimeError):
    """The loss or a gradient left the finite numbers; the last checkpoint holds the last good state."""


def _transform(kind: str, images: Tensor, bits: int) -> Bijection | None:
    if kind == "gaussianize":
        counts = torch.bincount(floor_bits(images, bits).flatten().long(), minlength=2**bits)
        return Gaussianize.from_counts(counts)
    return Logit() if kind == "logit" else None


def _seeded_flow(config: TrainingConfig, images: Tensor) -> Flow:
    """A freshly initialised flow; the global random state, which layers initialise from, is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        bijection = build(config.flow)
        noise = Dequantizer(config.flow.shape[0], config.bits) if config.dequantization == "learned" else None
    transform = _transform(config.transform, images, config.bits)
    flow = Flow(bijection, config.flow.shape, transform, UNIT, config.bits, noise)
    flow.architecture = config_to_dict(config.flow)
    return flow


def _check_bytes(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.dim() != 4:
        raise ValueError(
            f"images must be bytes (uint8) of shape (N, C, H, W), got {images.dtype} {tuple(images.shape)}"
        )


@torch.no_grad()
def evaluate(flow: Flow, images: Tensor, batch: int = 100, seed: int = 0, samples: int = 1) -> Iterator[Tensor]:
    r"""Bits/dim of byte images, batch by batch, each (batch,): -log2 P / D, from ``samples`` dequantisations per image.

    .. math:: -\log_2 P(k) \le -E \log_2 \tfrac1K \sum_{j\le K} p(x_j) / q(x_j | k)

    An upper bound, whatever K, on the bits per pixel that an ideal code built on the flow needs, the tighter the larger K
    (Burda et al., Importance Weighted Autoencoders): lower is better, 8 is no model at all for 8-bit images.
    """
    if samples < 1:
        raise ValueError(f"the number of dequantisations must be at least 1, got {samples}")
    if flow.bits is None:
        raise ValueError("bits/dim needs a prior trained on quantised images; this one has bits = None")
    _check_bytes(images)
    if images.shape[1:] != flow.shape:
        raise ValueError(f"the prior takes images of shape {flow.shape}, the data have {tuple(images.shape[1:])}")
    dims = math.prod(flow.shape)
    for i in range(0, len(images), batch):
        part = floor_bits(images[i : i + batch], flow.bits)
        generator = keyed_generator(seed, i)
        draws = torch.stack([flow.log_prob_of_integers(part, generator) for _ in range(samples)])
        yield bits_per_dim(draws.logsumexp(0) - math.log(samples), dims)


class Trainer:
    """Fits a flow to images by maximum likelihood: minimise E[-log p(x)] over dequantised training images.

    Every random number is a function of (seed, step), so a run that was killed and resumed from its
    checkpoint ends with the same weights, bit for bit on the same machine, as one that was not. Checkpoints
    are safetensors: weights, running average, both Adam moments.
    """

    def __init__(self, config: TrainingConfig, images: Tensor):
        _check_bytes(images)
        if images.shape[1:] != tuple(config.flow.shape):
            raise ValueError(
                f"the flow takes images of shape {config.flow.shape}, the data have {tuple(images.shape[1:])}"
            )
        if len(images) <= config.holdout:
            raise ValueError(f"{len(images)} training images leave none after a holdout of {config.holdout}")
        self.config = config
        cut = len(images) - config.holdout
        self.train_images, self.validation_images = images[:cut], images[cut:]
        self.flow = _seeded_flow(config, self.train_images)
        self.flow.train()
        set_bf16(self.flow, config.bf16)
        self.average = {k: v.detach().clone() for k, v in self.flow.named_parameters()}
        self.optimizer = torch.optim.Adam(self.flow.parameters(), lr=config.learning_rate)
        self.steps_per_epoch = max(1, cut // config.batch)
        lengths = [max(1, round(e * self.steps_per_epoch)) for e in (config.epochs, *config.restarts)]
        self.cycles = list(itertools.accumulate(lengths))  # the step each cosine ends at
        self.total = self.cycles[-1]
        self.step = 0
        self.seconds = 0.0
        self.history: list[tuple[int, float]] = []
        self._order: tuple[int, Tensor] | None = None
        self._digest: str | None = None

    # -- one step ------------------------------------------------------------------------------------

    def _batch(self, step: int) -> Tensor:
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            order = torch.randperm(len(self.train_images), generator=keyed_generator(self.config.seed, 1, epoch))
            self._order = (epoch, order)
        index = self._order[1][position * self.config.batch : (position + 1) * self.config.batch]
        images = floor_bits(self.train_images[index], self.config.bits)
        if self.config.flip:
            turn = torch.rand(len(images), generator=keyed_generator(self.config.seed, 2, step)) < 0.5
            images = torch.where(turn[:, None, None, None], images.flip(-1), images)
        return images

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to zero; a restart goes through another one from half the height."""
        cycle = min(bisect.bisect_right(self.cycles, step), len(self.cycles) - 1)
        start = self.cycles[cycle - 1] if cycle else 0
        done = (step - start) / (self.cycles[cycle] - start)
        height = 0.5 if cycle else 1.0
        warm = min(1.0, (step - start + 1) / max(1, self.config.warmup))
        return self.config.learning_rate * height * warm * 0.5 * (1 + math.cos(math.pi * done))

    def _one_step(self) -> float:
        generator = keyed_generator(self.config.seed, 3, self.step)
        log_prob = self.flow.log_prob_of_integers(self._batch(self.step), generator)
        loss = bits_per_dim(log_prob, math.prod(self.flow.shape)).mean()
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.flow.parameters(), self.config.clip)
        if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
            raise TrainingDiverged(
                f"step {self.step}: bits/dim {loss.item():.4g}, gradient norm {norm.item():.4g}; lower the learning rate"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        self.optimizer.step()
        # a short memory at first: the average must not be held back by the initial weights
        decay = min(self.config.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, parameter in self.flow.named_parameters():
                self.average[name].lerp_(parameter, 1 - decay)
        self.step += 1
        return loss.item()

    def run(
        self,
        folder: Path | None = None,
        report: Callable[[Progress], None] | None = None,
        every: float = 60.0,
        until: int | None = None,
    ) -> Flow:
        """Train to the end, or to step ``until``, saving to ``folder`` every ``every`` seconds and when interrupted.

        An interrupt waits for the end of the step: what is saved goes on as an unbroken run does. Returns the flow
        with averaged weights.
        """
        last = self.total if until is None else min(until, self.total)
        loss = math.nan

        def step() -> None:
            nonlocal loss
            loss = self._one_step()
            if self.step % 50 == 0 or self.step == self.total:
                self.history.append((self.step, loss))

        def show() -> None:
            if report is not None:
                report(Progress(self.step, self.total, loss, self.seconds))

        keep_stepping(self, lambda: self.step < last, step, show, folder, every)
        return self.result()

    def result(self) -> Flow:
        """The flow with averaged weights, in evaluation mode."""
        flow = _seeded_flow(self.config, self.train_images)
        flow.load_state_dict({**self.flow.state_dict(), **self.average})
        return flow.eval()

    # -- checkpoints ---------------------------------------------------------------------------------

    def _tensors(self) -> dict[str, Tensor]:
        averages = {f"average.{k}": v for k, v in self.average.items()}
        return averages | pack("flow", self.flow, self.optimizer)

    def _fingerprint(self) -> str:
        """SHA-256 of the images trained on."""
        if self._digest is None:
            self._digest = hashlib.sha256(self.train_images.contiguous().numpy().tobytes()).hexdigest()
        return self._digest

    def save(self, folder: Path) -> None:
        """Write a checkpoint, replacing the one before."""
        config: dict[str, Any] = {
            "format": CHECKPOINT,
            "training": self.config.to_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
            "images": len(self.train_images),
            "data": self._fingerprint(),
        }
        write_bundle(folder, config, self._tensors(), overwrite=True)

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint of the same config and data; anything else is refused."""
        config, tensors = read_bundle(folder, CHECKPOINT)
        if missing := [k for k in ("training", "step", "seconds", "history", "images") if k not in config]:
            raise BundleError(f"{folder}: the checkpoint's config misses {', '.join(missing)}")
        mine, theirs = json.loads(json.dumps(self.config.to_dict())), config["training"]
        if isinstance(theirs, dict):  # settings that came after the checkpoint had their defaults when it was written
            unset = {f.name: f.default for f in fields(TrainingConfig) if f.name not in theirs}
            theirs = {**json.loads(json.dumps({k: v for k, v in unset.items() if v is not MISSING})), **theirs}
        if theirs != mine:
            keys = sorted(k for k in mine if not isinstance(theirs, dict) or mine.get(k) != theirs.get(k))
            raise ValueError(f"{folder} holds a run with other settings ({', '.join(keys)}); train in another folder")
        if config["images"] != len(self.train_images):
            raise ValueError(f"{folder} was trained on {config['images']} images, these are {len(self.train_images)}")
        if config.get("data", self._fingerprint()) != self._fingerprint():  # a checkpoint may lack it
            raise ValueError(f"{folder} was trained on other images than these; train in another folder")
        average = {k.removeprefix("average."): v for k, v in tensors.items() if k.startswith("average.")}
        fit_or_refuse(average, self.average, f"{folder}: the averaged weights")
        unpack("flow", tensors, self.flow, self.optimizer)
        self.average = average
        self.step, self.seconds = config["step"], config["seconds"]
        self.history = [tuple(row) for row in config["history"]]
