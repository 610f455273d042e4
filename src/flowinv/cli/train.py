"""`flowinv train` and `flowinv evaluate`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .progress import progress
from .running import run_folder, run_training

if TYPE_CHECKING:
    from torch import Tensor


def train(
    config: Annotated[Path, typer.Argument(help="A TOML config: the flow, its input transform, the optimiser.")],
    data: Annotated[
        str, typer.Option(help="An .npz with train_x (and test_x), a folder of images, or torchvision:NAME.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the run: checkpoint/, then prior/.")],
    name: Annotated[str | None, typer.Option(help="The prior's name on its card (default: the config's).")] = None,
    licence: Annotated[str, typer.Option(help="Licence of the data, for the model card.")] = "not stated",
    stop_after: Annotated[int | None, typer.Option(min=0, help="Stop at this step, keeping the checkpoint.")] = None,
) -> None:
    """Train a flow prior; run the same command again to go on after an interruption.

    [bold]Examples[/bold]

      flowinv train configs/mnist.toml --data torchvision:MNIST --out runs/mnist

      flowinv train configs/mnist.toml --data mnist.npz --out runs/mnist

      flowinv train mine.toml --data photos/ --out runs/photos
    """
    from ..priors import save_prior
    from ..priors.card import model_card
    from ..training import Trainer, evaluate, read_config
    from ..training.data import load_images

    settings = read_config(config)
    prior_folder, checkpoint = run_folder(out, "prior")
    images = load_images(data, prepare=settings.preparation)
    trainer = Trainer(settings, images.train)
    flow = run_training(trainer, checkpoint, lambda p: f"{p.bits_per_dim:.3f} bits/dim", stop_after)
    if flow is None:
        return
    scores = {}
    for split, part in (("validation", trainer.validation_images), ("test", images.test)):
        if len(part):
            scores[split] = _mean_and_error(_bits(evaluate(flow, part), len(part)))
            typer.echo(f"{split} bits/dim {scores[split][0]:.4f} +- {scores[split][1]:.4f} ({len(part)} images)")
    from ..plots import samples_sheet
    from ..randomness import keyed_generator

    command = f"flowinv train {config} --data {Path(data).name if Path(data).exists() else data} --out {out}"
    card = model_card(
        name or config.stem, flow, trainer, scores, source=images.source, licence=licence, command=command
    )
    figures = {
        "bits_per_dim": {k: v[0] for k, v in scores.items()},
        "seconds": round(trainer.seconds),
        "steps": trainer.step,
    }
    # config.json tells that the run is finished: it comes last, and what an interrupted end left is written again
    samples_sheet(flow.sample(64, keyed_generator(settings.seed, 4)), prior_folder / "samples.png", overwrite=True)
    save_prior(flow, prior_folder, card, {"training": settings.to_dict(), "figures": figures}, overwrite=True)
    typer.echo(f"wrote {prior_folder}")


def evaluate(
    prior: Annotated[str, typer.Argument(help="A shipped prior's name, a folder, or hub:owner/name.")],
    data: Annotated[str, typer.Option(help="An .npz with test_x, a folder of images, or torchvision:NAME.")],
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many test images.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Dequantisations per image; more make the bound tighter.")] = 1,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the dequantisation.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Test bits/dim of a prior: -log2 P(image) / dimensions, the quantisation accounted for; lower is better.

    [bold]Examples[/bold]

      flowinv evaluate mnist --data mnist.npz

      flowinv evaluate mnist --data mnist.npz --samples 16

      flowinv evaluate runs/photos/prior --data photos/ --limit 500 --json
    """
    from ..priors import load_prior, training_settings
    from ..training import TrainingConfig
    from ..training import evaluate as batches
    from ..training.data import load_images

    flow = load_prior(prior).requires_grad_(False)
    made_by = training_settings(prior)
    images = load_images(data, prepare=TrainingConfig.from_dict(made_by).preparation if made_by else None)
    test = images.test if len(images.test) else images.train
    if not len(test):
        raise ValueError(f"{data} holds no images")
    test = test[:limit]
    mean, error, count = _mean_and_error(_bits(batches(flow, test, seed=seed, samples=samples), len(test)))
    split = "test" if len(images.test) else "training"
    if as_json:
        noise = "learned" if flow.dequantizer is not None else "uniform"
        known = error if math.isfinite(error) else None
        result = {"prior": prior, "bits_per_dim": mean, "standard_error": known, "images": count, "split": split}
        typer.echo(json.dumps({**result, "dequantization": noise, "samples": samples, "bits": flow.bits}))
    else:
        each = f", {samples} dequantisations each" if samples > 1 else ""
        typer.echo(f"{prior}: {split} bits/dim {mean:.4f} +- {error:.4f} over {count} images{each}")


def _bits(parts: Iterator[Tensor], total: int) -> Tensor:
    """The bits/dim of every image, under a progress bar."""
    import torch

    values: list[Tensor] = []
    done, sum_so_far = 0, 0.0
    with progress("evaluating") as update:
        for part in parts:
            values.append(part)
            done, sum_so_far = done + len(part), sum_so_far + float(part.sum())
            update(done, total, f"{sum_so_far / done:.4f} bits/dim")
    return torch.cat(values)


def _mean_and_error(value: Tensor) -> tuple[float, float, int]:
    """Mean, standard error (NaN of a single value) and count."""
    n = len(value)
    return float(value.mean()), float(value.std() / math.sqrt(n)) if n > 1 else math.nan, n
