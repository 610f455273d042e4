"""What an amortised posterior draw costs: milliseconds per 28x28 image, in batches, in float32 and with bfloat16 networks.

    python -m benchmarks.composing.avi_speed --threads 1 2

Two kinds of batch: many draws of one observation, which its encoder reads once, and one draw of each of many observations.
All contenders take turns in every round, in an order that rotates; medians and quartiles over rounds. The time of a draw does
not depend on the weights: without an amortizer an untrained one of the shipped size is measured, and the result says so.
Writes avi_speed.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import flowinv
from benchmarks.command import command_of, in_one_line
from benchmarks.composing.cases import case_named
from benchmarks.composing.run import RESULTS
from benchmarks.machine import machine
from benchmarks.speed import interleaved
from flowinv.randomness import keyed_generator
from flowinv.solvers import AmortizedTrainer, Amortizer, find_amortizer
from flowinv.store import write_text


def contender(amortizer: Amortizer, problem: flowinv.InverseProblem, draws: int, bf16: bool) -> Callable[[], object]:
    """Draws of every observation of the problem, (draws, B, *shape), as a user asks for them."""
    posterior = amortizer.posterior(problem)
    return lambda: posterior.sample(draws, keyed_generator(94), bf16=bf16)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="mnist-bottom")
    parser.add_argument("--prior")
    parser.add_argument("--amortizer", help="folder; the shipped one by default")
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if options.rounds < 2:
        parser.error("--rounds must be at least 2")
    with in_one_line(parser):
        _run(options, command_of("benchmarks.composing.avi_speed", arguments))


def _run(options: argparse.Namespace, command: str) -> None:
    case = case_named(options.case)
    prior = flowinv.load_prior(options.prior or case.dataset.prior)
    truths = prior.sample(max(options.batches), keyed_generator(95)).clamp(*prior.support)
    one = case.problem(prior, truths[:1], 0)
    found = Amortizer.load(options.amortizer) if options.amortizer else find_amortizer(one)
    trained = found is not None
    if found is None:
        found = AmortizedTrainer(prior, case.task_of(prior.shape, 0)).result()
    jobs: dict[str, tuple[Callable[[], object], str, str, int]] = {}
    for batch in options.batches:
        many = case.problem(prior, truths[:batch], 0)
        for bf16 in (False, True):
            networks = "bfloat16" if bf16 else "float32"
            for what, problem, draws in ((f"{batch} draws of 1 y", one, batch), (f"1 draw of {batch} y", many, 1)):
                jobs[f"{networks} {what}"] = (contender(found, problem, draws, bf16), networks, what, batch)
    rows: list[dict[str, Any]] = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        seconds = interleaved({name: job[0] for name, job in jobs.items()}, options.rounds)
        for name, (_, networks, what, batch) in jobs.items():
            low, middle, high = (1e3 * v / batch for v in statistics.quantiles(seconds[name], n=4, method="inclusive"))
            values = {k: round(v, 3) for k, v in (("ms", middle), ("lower", low), ("upper", high))}
            rows.append({"threads": threads, "networks": networks, "what": what, **values})
            print(
                f"{threads} thread(s)  {networks:9s} {what:22s} {middle:.2f} ms per draw ({low:.2f} - {high:.2f})",
                flush=True,
            )
    about = {"command": command, "machine": machine(), "trained": trained, "rounds": options.rounds, "rows": rows}
    options.out.mkdir(parents=True, exist_ok=True)
    write_text(options.out / "avi_speed.json", json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
