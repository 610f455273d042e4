"""What squared error a calibrated draw has: a regression network's error bounds the least possible one.

    python -m benchmarks.composing.ideal --data DATA

For draws of the true posterior E|draw - x|^2 = 2 E|E[x|y] - x|^2 = 2 MMSE. The MMSE is not known, but no estimator beats it: a
convolutional network trained to give the whole digit from its bottom half, by squared error on MNIST's training images, has at
least it. So calibrated draws have, on the hidden half, at most about twice the network's error, and draws that have clearly less
are over-confident. It is close to the bound only as far as the network is good: its error on validation images, still falling
or not, is reported for every epoch. Writes ideal.json; twenty minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.command import command_of, in_one_line
from benchmarks.composing.bootstrap import mean_interval
from benchmarks.composing.cases import CASES, truth_of
from benchmarks.composing.data import load, order
from benchmarks.composing.run import RESULTS
from benchmarks.machine import machine
from flowinv.randomness import keyed_generator
from flowinv.store import write_text

CASE = "mnist-bottom"


@dataclass(frozen=True)
class RegressionSettings:
    """Adam with a linear rise and a cosine to zero, networks in bfloat16 if ``bf16``; weights averaged over the last steps."""

    epochs: int = 8
    batch: int = 128
    learning_rate: float = 1e-3
    width: int = 48
    average: float = 0.998
    bf16: bool = True
    seed: int = 0


class Regression(nn.Module):
    """The whole digit (N, 1, 28, 28) from one whose top half is blank: residual convolutions at 14x14 and 7x7, and back."""

    def __init__(self, width: int = 48):
        super().__init__()
        self.enter = nn.Conv2d(4, width, 3, padding=1)
        self.fine = nn.ModuleList(_Block(width) for _ in range(2))
        self.down = nn.Conv2d(4 * width, 2 * width, 1)
        self.coarse = nn.ModuleList(_Block(2 * width) for _ in range(4))
        self.across = nn.Linear(49, 49)  # every place of the 7x7 sees every other
        self.up = nn.Conv2d(2 * width, 4 * width, 1)
        self.again = nn.ModuleList(_Block(width) for _ in range(2))
        self.leave = nn.Conv2d(width, 4, 3, padding=1)
        self.to(memory_format=torch.channels_last)

    def forward(self, seen: Tensor) -> Tensor:
        h = self.enter(functional.pixel_unshuffle(2 * seen - 1, 2))
        for block in self.fine:
            h = block(h)
        g = self.down(functional.pixel_unshuffle(h, 2))
        for i, block in enumerate(self.coarse):
            g = block(g)
            if i == 1:
                g = g + self.across(g.flatten(2)).view_as(g)
        h = h + functional.pixel_shuffle(self.up(g), 2)
        for block in self.again:
            h = block(h)
        return functional.pixel_shuffle(self.leave(functional.relu(h)), 2)  # a sigmoid would saturate at black


class _Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(functional.relu(self.first(functional.relu(x))))


def bottom(images: Tensor) -> Tensor:
    """What is seen of images (N, 1, H, W): the top half is 0."""
    seen = images.clone()
    seen[:, :, : images.shape[2] // 2] = 0
    return seen


def hidden_error(network: nn.Module, images: Tensor, chunk: int = 500) -> Tensor:
    """Squared error summed over the hidden half, (N,)."""
    found = []
    with torch.no_grad():
        for part in images.split(chunk):
            difference = (network(bottom(part)).clamp(0, 1) - part)[:, :, : part.shape[2] // 2]
            found.append(difference.double().square().flatten(1).sum(1))
    return torch.cat(found)


def train(images: Tensor, validation: Tensor, settings: RegressionSettings) -> tuple[Regression, list[float]]:
    """Fit the network to images (N, 1, 28, 28) in [0, 1]; with it its mean validation error after every epoch.

    The weights are those of the epoch with the least of them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = Regression(settings.width)
    averaged = Regression(settings.width)
    averaged.load_state_dict(network.state_dict())
    optimizer = torch.optim.Adam(network.parameters(), settings.learning_rate)
    total = settings.epochs * math.ceil(len(images) / settings.batch)
    step, errors = 0, []
    best = averaged.state_dict()
    for epoch in range(settings.epochs):
        shuffled = torch.randperm(len(images), generator=keyed_generator(settings.seed, epoch))
        for chosen in shuffled.split(settings.batch):
            warm = min(1.0, (step + 1) / 200)
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / total))
            x = images[chosen]
            with torch.autocast(x.device.type, torch.bfloat16, enabled=settings.bf16):
                guess = network(bottom(x))
            loss = (guess.float() - x)[:, :, :14].square().flatten(1).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay = min(settings.average, (1 + step) / (10 + step))
            with torch.no_grad():
                for mine, theirs in zip(averaged.parameters(), network.parameters(), strict=True):
                    mine.lerp_(theirs, 1 - decay)
            step += 1
        errors.append(float(hidden_error(averaged, validation).mean()))
        if errors[-1] == min(errors):
            best = {name: value.clone() for name, value in averaged.state_dict().items()}
        print(f"epoch {epoch + 1}: squared error {errors[-1]:.3f} on validation images", flush=True)
    averaged.load_state_dict(best)
    return averaged.eval(), errors


def study(errors: Tensor, places: tuple[int, ...], images: int) -> dict[str, Any]:
    """The figures from the test images' errors (N,): of all, of the case's first ``images``, and twice these."""
    case = errors[list(places[:images])].tolist()
    return {
        "tested": len(errors),
        "all": asdict(mean_interval(errors.tolist())),
        "case": asdict(mean_interval(case)),
        "twice_all": asdict(mean_interval((2 * errors).tolist())),
        "twice_case": asdict(mean_interval([2 * e for e in case])),
        "errors_of_case": [round(e, 4) for e in case],
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with mnist.npz")
    parser.add_argument("--prior", help="whose test images these are; the shipped one by default")
    parser.add_argument("--epochs", type=int, default=RegressionSettings.epochs)
    parser.add_argument("--few", type=int, help="train on so many images only, to try the harness")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with in_one_line(parser):
        _run(options, command_of("benchmarks.composing.ideal", arguments))


def _run(options: argparse.Namespace, command: str) -> None:
    case, settings = CASES[CASE], RegressionSettings(epochs=options.epochs)
    images = load(case.dataset, options.data, options.prior)
    train_on, validation, test = (
        truth_of(part, images.bits) for part in (images.train, images.validation, images.test)
    )
    train_on = train_on[: options.few or len(train_on)]
    started = time.perf_counter()
    network, history = train(train_on, validation, settings)
    found = {
        "command": command,
        "machine": machine(),
        "settings": asdict(settings),
        "seconds": round(time.perf_counter() - started, 1),
        "images": len(train_on),
        "weights": sum(p.numel() for p in network.parameters()),
        "validation_by_epoch": [round(e, 4) for e in history],
        **study(hidden_error(network, test), order(len(test)), case.images),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    write_text(options.out / "ideal.json", json.dumps(found, indent=1) + "\n")
    for name in ("all", "case", "twice_case"):
        print(f"{name:10s} {found[name]['value']:.2f} ({found[name]['low']:.2f} - {found[name]['high']:.2f})")


if __name__ == "__main__":
    main()
