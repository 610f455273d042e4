"""How fast a frozen Glow-type prior decodes, beside FrEIA, normflows and nflows, and what a pre-generator adds.

The job is the inner loop of every latent-space solver: decode a batch of latents and bring the gradient of the images
back to the latents, the flow's weights frozen. All contenders take turns in every round, in an order that rotates, and
what is quoted is the median over rounds of the ratio within a round, so that other work on the machine hits all alike.
Peers run as shipped and with channels_last weights; "fastest peer" is the fastest of all these.

    python -m benchmarks.speed --threads 1 2 --json benchmarks/results/speed.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.command import command_of
from benchmarks.machine import machine
from benchmarks.peers import PEERS, Architecture, Contender, available, build_peer, randomise
from flowinv.families.pregenerator import PreGeneratorConfig, build_pregenerator
from flowinv.flows import Flow, GlowConfig, build
from flowinv.flows.bijection import Bijection
from flowinv.flows.fused import FusedSteps

FP32, BF16, LAYERS, PREGENERATOR = "flowinv", "flowinv bf16 nets", "flowinv layer by layer", "pre-generator step"


def _unfused(flow: Flow) -> Flow:
    """The frozen flow with its fused runs replaced by their layers, to see what fusing brings."""

    def undo(module: nn.Module) -> None:
        for name, child in module.named_children():
            if isinstance(child, FusedSteps):
                setattr(module, name, child.plain)
            else:
                undo(child)

    undo(flow)
    return flow


def _decoder(flow: Flow) -> Callable[[list[Tensor]], Tensor]:
    return lambda latents: flow.decode(latents[0])[0]


def flowinv_contenders(arch: Architecture, generator: torch.Generator) -> list[Contender]:
    """This library's flow: frozen, frozen with bfloat16 networks, and frozen but not fused."""
    config = GlowConfig(arch.shape, steps=(arch.steps,) * arch.levels, hidden=arch.hidden)
    flow = Flow(build(config), arch.shape)
    randomise(flow, generator)
    frozen = {FP32: flow.frozen(), BF16: flow.frozen(bf16=True), LAYERS: _unfused(flow.frozen())}
    return [Contender(name, part, _decoder(part), [arch.shape]) for name, part in frozen.items()]


def channels_last(contender: Contender) -> Contender:
    """The same contender with its weights stored channels last."""
    module = contender.module.to(memory_format=torch.channels_last)
    return Contender(f"{contender.name} channels_last", module, contender.decode, contender.latent_shapes)


def contenders(arch: Architecture, seed: int = 0) -> list[Contender]:
    """Every contender that can be built here, checked to be the same flow in size and to decode to finite images."""
    found: list[Contender] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the libraries draw their initial weights from the global state
        for name, present in available().items():
            if present:
                found.append(build_peer(name, arch, torch.Generator().manual_seed(seed)))
                found.append(channels_last(build_peer(name, arch, torch.Generator().manual_seed(seed))))
        found += flowinv_contenders(arch, torch.Generator().manual_seed(seed))
    expected = found[-1].coupling_parameters()
    for contender in found:
        count = contender.coupling_parameters()
        if abs(count - expected) > 0.02 * expected:
            raise SystemExit(
                f"{contender.name} has {count} parameters in its couplings, expected {expected} within 2 %"
            )
        with torch.no_grad():
            x = contender.decode(contender.latents(2, torch.Generator().manual_seed(seed)))
        if x.shape != (2, *arch.shape) or not torch.isfinite(x).all():
            raise SystemExit(f"{contender.name} decodes to shape {tuple(x.shape)}, finite: {bool(x.isfinite().all())}")
    return found


def _decode_and_backward(contender: Contender, latents: list[Tensor], weights: Tensor) -> Callable[[], None]:
    def job() -> None:
        torch.autograd.grad((contender.decode(latents) * weights).sum(), latents)

    return job


def _decode(contender: Contender, latents: list[Tensor]) -> Callable[[], None]:
    @torch.no_grad()
    def job() -> None:
        contender.decode(latents)

    return job


def _pregenerator_step(pregenerator: Bijection, noise: Tensor, weights: Tensor) -> Callable[[], None]:
    """Noise to latents, and the gradient that the prior hands down on to the pre-generator's weights."""
    parameters = list(pregenerator.parameters())

    def job() -> None:
        z, log_det = pregenerator.decode(noise)
        torch.autograd.grad((z * weights).sum() - log_det.sum(), parameters)

    return job


def interleaved(jobs: dict[str, Callable[[], object]], rounds: int, warm_up: int = 2) -> dict[str, list[float]]:
    """Seconds per call of each job in each round; the order rotates from round to round."""
    names = list(jobs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for i in range(-warm_up, rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            start = time.perf_counter()
            jobs[name]()
            if i >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def summarise(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Median and quartiles in milliseconds, and the fastest round."""
    rows = {}
    for name, values in seconds.items():
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        rows[name] = {"median": middle, "lower": low, "upper": high, "fastest": min(values)}
    return {name: {k: round(1e3 * v, 2) for k, v in row.items()} for name, row in rows.items()}


def paired_ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> float:
    """How many times faster ``fast`` is than ``slow``: the median over rounds of the ratio within a round."""
    return round(statistics.median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)), 3)


def peer_versions() -> dict[str, str]:
    """The version of each peer, or "absent"."""
    return {name: metadata.version(PEERS[name][0]) if there else "absent" for name, there in available().items()}


def run(arch: Architecture, batch: int, rounds: int, threads: int) -> dict[str, Any]:
    """All measurements with one number of threads."""
    torch.set_num_threads(threads)
    entries = contenders(arch)
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(batch, *arch.shape, generator=generator)
    latents = {c.name: c.latents(batch, generator) for c in entries}
    backward = {c.name: _decode_and_backward(c, latents[c.name], weights) for c in entries}
    pregenerator = build_pregenerator(arch.shape, PreGeneratorConfig())
    backward[PREGENERATOR] = _pregenerator_step(pregenerator, weights.clone(), weights)
    both = interleaved(backward, rounds)
    decode = interleaved({c.name: _decode(c, latents[c.name]) for c in entries}, rounds)
    result: dict[str, Any] = {
        "threads": threads,
        "decode_backward_ms": summarise(both),
        "decode_ms": summarise(decode),
        "coupling_parameters": {c.name: c.coupling_parameters() for c in entries},
        "pregenerator_over_prior": paired_ratio(both, PREGENERATOR, FP32),
        "pregenerator_over_prior_bf16": paired_ratio(both, PREGENERATOR, BF16),
    }
    ours = (FP32, BF16, LAYERS)
    peers = [c.name for c in entries if c.name not in ours]
    for label, seconds in (("decode_backward", both), ("decode", decode)):
        if not peers:
            break
        fastest = min(peers, key=lambda name: statistics.median(seconds[name]))
        result[f"{label}_fastest_peer"] = fastest
        result[f"{label}_speedup"] = {name: paired_ratio(seconds, fastest, name) for name in ours}
    return result


def report(result: dict[str, Any]) -> str:
    """The measurements as a table to read."""
    lines = [f"{result['threads']} thread(s), milliseconds per batch: median (quartiles)"]
    lines.append(f"  {'':32}{'decode + backward to z':>28}{'decode':>28}")
    for name, row in result["decode_backward_ms"].items():
        cells = [row, result["decode_ms"].get(name)]
        texts = [f"{c['median']:.1f} ({c['lower']:.1f} - {c['upper']:.1f})" if c else "" for c in cells]
        lines.append(f"  {name:32}" + "".join(f"{t:>28}" for t in texts))
    for label, words in (("decode_backward", "decode + backward"), ("decode", "decode")):
        if f"{label}_fastest_peer" in result:
            ratios = ", ".join(f"{name} {ratio:.2f}x" for name, ratio in result[f"{label}_speedup"].items())
            lines.append(f"  {words} against {result[f'{label}_fastest_peer']}, the fastest peer: {ratios}")
        else:
            lines.append(f"  {words}: no peer installed, nothing to compare with")
    lines.append(
        f"  a pre-generator step costs {result['pregenerator_over_prior']:.2f} of the frozen prior's decode + backward "
        f"({result['pregenerator_over_prior_bf16']:.2f} with bf16 nets)"
    )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and, if asked, write the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rounds", type=int, default=21, help="rounds in which every contender has one turn (2 or more)"
    )
    parser.add_argument("--batch", type=int, default=32, help="images per call")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="numbers of threads to measure with")
    parser.add_argument("--hidden", type=int, default=64, help="hidden channels of the couplings")
    parser.add_argument("--steps", type=int, default=8, help="flow steps per level (K)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args(arguments)
    if options.rounds < 2 or options.batch < 1 or min(options.threads) < 1:
        parser.error("--rounds must be at least 2, --batch and --threads at least 1")
    arch = Architecture(hidden=options.hidden, steps=options.steps)
    command = command_of("benchmarks.speed", arguments)
    figures: dict[str, Any] = {
        "command": command,
        "machine": machine(),
        "peers": peer_versions(),
        "architecture": asdict(arch),
        "batch": options.batch,
        "rounds": options.rounds,
        "runs": [],
    }
    for name, version in figures["peers"].items():
        print(f"{name}: {version}")
    for threads in options.threads:
        result = run(arch, options.batch, options.rounds, threads)
        figures["runs"].append(result)
        print(report(result))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        print(f"written to {options.json}")


if __name__ == "__main__":
    main()
