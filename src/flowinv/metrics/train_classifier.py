"""Train the digit classifier that ships with the package.

    python -m flowinv.metrics.train_classifier --data mnist.npz --out digits

``--data`` is an .npz with train_x (N, 28, 28) bytes and train_y (N,), and test_x and test_y for the accuracy. A run with
the same data, settings and thread count gives the same weights.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from ..images import UNREADABLE
from ..randomness import keyed_generator
from ..store import WEIGHTS, write_text
from .digits import CLASSES, SHAPE, DigitClassifier


@dataclass(frozen=True)
class ClassifierSettings:
    """Adam with one cosine from ``learning_rate`` to 0 after a linear rise over the first tenth; digits moved by up to
    ``shift`` pixels."""

    epochs: int = 8
    batch: int = 128
    learning_rate: float = 4e-3
    shift: int = 2
    seed: int = 0


@dataclass(frozen=True)
class LabelledDigits:
    """Digits (N, 28, 28) as bytes, and their labels (N,)."""

    images: Tensor
    labels: Tensor


def read_digits(path: str | Path, part: str) -> LabelledDigits:
    """The ``part`` ("train" or "test") of an .npz of labelled digits."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            images, labels = file[f"{part}_x"], file[f"{part}_y"]
    except KeyError:
        raise ValueError(f"{path} must hold {part}_x and {part}_y") from None
    except (*UNREADABLE, TypeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read as .npz: {error}") from None
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != SHAPE[1:] or not len(images):
        raise ValueError(f"{path}: {part}_x must be bytes (N, 28, 28), got {images.dtype} {images.shape}")
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= CLASSES:
        raise ValueError(f"{path}: {part}_y must hold one digit 0 to 9 per image, got {labels.dtype} {labels.shape}")
    return LabelledDigits(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)))


def _as_input(images: Tensor) -> Tensor:
    return ((images.float() + 0.5) / 256)[:, None]


def _moved(images: Tensor, reach: int, generator: torch.Generator) -> Tensor:
    """Each digit (N, 28, 28) moved by its own 0 to ``reach`` pixels along both axes, black coming in."""
    n, height, width = images.shape
    padded = pad(images, (reach,) * 4)
    row, column = (torch.randint(2 * reach + 1, (n, 1, 1), generator=generator) for _ in range(2))
    rows, columns = torch.arange(height)[:, None] + row, torch.arange(width)[None, :] + column
    return padded[torch.arange(n)[:, None, None], rows, columns]


def train(
    data: LabelledDigits, settings: ClassifierSettings, report: Callable[[int, float], None] | None = None
) -> DigitClassifier:
    """Fit a classifier by cross-entropy; ``report(epoch, mean loss)`` is called after every epoch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = DigitClassifier()
    network = network.to(memory_format=torch.channels_last)  # halves the time on a CPU
    optimizer = torch.optim.Adam(network.parameters(), settings.learning_rate)
    per_epoch = math.ceil(len(data.images) / settings.batch)
    total = settings.epochs * per_epoch
    warm = max(1, total // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min((i + 1) / warm, 0.5 * (1 + math.cos(math.pi * i / total)))
    )
    for epoch in range(settings.epochs):
        generator = keyed_generator(settings.seed, epoch)
        losses = []
        for index in torch.randperm(len(data.images), generator=generator).split(settings.batch):
            images = _as_input(_moved(data.images[index], settings.shift, generator))
            loss = cross_entropy(network(images), data.labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
        if report is not None:
            report(epoch + 1, sum(losses) / len(losses))
    return network.requires_grad_(False).eval()


def accuracy(network: DigitClassifier, data: LabelledDigits) -> float:
    """The fraction of digits whose likeliest class is their label; higher is better."""
    with torch.no_grad():
        right = [
            int((network(_as_input(x)).argmax(1) == y).sum())
            for x, y in zip(data.images.split(1000), data.labels.split(1000), strict=True)
        ]
    return sum(right) / len(data.images)


def card(settings: ClassifierSettings, found: float, tested: int, trained: int, weights: int, size: int) -> str:
    """The model card."""
    return f"""# digits

A classifier of handwritten digits (images (1, 28, 28), pixels in [0, 1]) for flowinv's metrics:
`flowinv.metrics.DigitClassifier.shipped()`. {weights} weights, {size / 1000:.0f} kB.

- **Test accuracy**: {found:.2%} of {tested} MNIST test digits.
- **Data**: {trained} MNIST training digits. Licence of the data: CC BY-SA 3.0 (Yann LeCun and Corinna Cortes).
- **Made by**: `python -m flowinv.metrics.train_classifier --data mnist.npz --out digits`
- **Settings**: {settings.epochs} epochs in batches of {settings.batch}, Adam at {settings.learning_rate:g} with cosine decay,
  digits moved by up to {settings.shift} pixels, seed {settings.seed}.
- **Used for**: a Fréchet distance on its 64 features, an inception-type score on its class probabilities, and a
  perceptual distance on its activations. These are scores of the kind of FID, IS and LPIPS, not those: their values are
  never to be compared with published ones.
- **Limits**: it knows MNIST's digits and nothing else, and answers for any image as if it were one.
"""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m flowinv.metrics.train_classifier", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--data", required=True, help=".npz with train_x, train_y, test_x, test_y")
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    parser.add_argument("--epochs", type=int, default=ClassifierSettings.epochs)
    parser.add_argument("--seed", type=int, default=ClassifierSettings.seed)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--overwrite", action="store_true")
    options = parser.parse_args(arguments)
    try:
        digits, test = read_digits(options.data, "train"), read_digits(options.data, "test")
        settings = ClassifierSettings(epochs=options.epochs, seed=options.seed)
        torch.set_num_threads(options.threads)
        network = train(digits, settings, lambda epoch, loss: print(f"epoch {epoch}: loss {loss:.4f}", flush=True))
        found = accuracy(network, test)
        extra = {
            "training": asdict(settings) | {"threads": options.threads},
            "test_accuracy": found,
            "training_digits": len(digits.images),
        }
        folder = network.save(options.out, extra, options.overwrite)
    except (OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")
    weights = sum(p.numel() for p in network.parameters())
    size = (folder / WEIGHTS).stat().st_size
    text = card(settings, found, len(test.images), len(digits.images), weights, size)
    write_text(folder / "README.md", text)
    print(f"test accuracy {found:.2%}, {weights} weights; written to {folder}")


if __name__ == "__main__":
    main()
