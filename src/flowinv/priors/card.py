"""A prior's model card, written by the run that made it."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

import torch

from .. import __version__
from ..flows.flow import Flow

if TYPE_CHECKING:
    from ..training import Trainer, TrainingConfig


def _epochs(config: TrainingConfig) -> str:
    more = ", restarted for ".join(f"{length:g}" for length in config.restarts)
    return f"{config.epochs:g} epochs{f', restarted for {more} more' if more else ''}"


def _restriction(licence: str) -> str:
    only = "\n**For research only**: the licence of the images that it was trained on allows no commercial use.\n"
    return only if "research" in licence or "non-commercial" in licence else ""


Scores = dict[str, tuple[float, float, int]]


def model_card(
    name: str, flow: Flow, trainer: Trainer, scores: Scores, *, source: str, licence: str, command: str
) -> str:
    """Markdown: what it is, the data and their licence, the command, the figures, the limits."""
    config = trainer.config
    inside = sum(p.numel() for p in flow.bijection.parameters())
    beside = sum(p.numel() for p in flow.parameters()) - inside
    rows = "\n".join(
        f"| {split} | {mean:.4f} | {error:.4f} | {count} |" for split, (mean, error, count) in scores.items()
    )
    noise = "learned (variational) dequantisation" if config.dequantization == "learned" else "uniform dequantisation"
    return f"""# {name}

A normalizing-flow prior for images of shape {flow.shape}, pixels in [{flow.support[0]:g}, {flow.support[1]:g}], made by
flowinv {__version__}. Use it with `flowinv.load_prior("{name}")`, or this folder in place of the name.
{_restriction(licence)}
![64 samples](samples.png)

| split | bits/dim | standard error | images |
|---|---|---|---|
{rows}

Bits/dim count the quantisation ({config.bits} bits) and are an upper bound, with {noise}, one draw per image.

- **Flow**: `{type(config.flow).__name__}`, {inside} weights; input transform `{config.transform}`; the dequantiser has
  {beside} weights more and is used by training and bits/dim only.
- **Data**: {source}: {len(trainer.train_images)} images to train, {len(trainer.validation_images)} held out.
  Licence of the data: {licence}.
- **Made by**: `{command}`
- **Settings**: {trainer.step} steps of {config.batch} images ({_epochs(config)}), Adam at {config.learning_rate:g}
  with cosine decay, weights averaged (decay {config.average:g}), seed {config.seed},
  coupling networks in {"bfloat16" if config.bf16 else "float32"} while training.
- **Cost**: {trainer.seconds / 60:.0f} minutes on {torch.get_num_threads()} thread(s) of a {platform.machine()} CPU,
  torch {torch.__version__}.

What a posterior under this prior says is no better than the prior: it knows the images it was trained on and nothing else.
"""
