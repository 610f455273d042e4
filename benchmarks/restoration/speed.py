"""Table 2: an inverse and an iteration of the point solver, on the 1x1-coupling flow and on its twin.

    python -m benchmarks.restoration.speed

Batches of 32 images of 3x32x32, weights as initialised plus noise (time does not depend on them). ``plain``: trainable weights,
default memory format, as published codes run; ``frozen``: no gradients to weights, norms and mixings folded, channels last;
``bf16``: coupling networks in bfloat16. The twin runs at the paper's 4/4/6 steps, which is twice the arithmetic, and at 2/2/3,
which is equal arithmetic. Medians over interleaved rounds, processor milliseconds of one thread for a batch; memory is what
an iteration keeps for its backward pass, in bfloat16 with the copies of the weights that are made for it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.command import command_of, in_one_line
from benchmarks.machine import machine
from flowinv.flows.architectures import PRESETS, PatchFlowConfig, build
from flowinv.flows.flow import Flow, standard_normal_log_prob
from flowinv.flows.layers.mixing import LUConv1x1
from flowinv.randomness import keyed_generator
from flowinv.store import write_text

OUT = Path("benchmarks/results/restoration/speed.json")
_TWIN = PRESETS["paper-invertible-1x1"]
assert isinstance(_TWIN, PatchFlowConfig)
FLOWS: dict[str, Any] = {
    "1x1-coupling": PRESETS["paper-1x1-coupling"],
    "invertible-1x1": _TWIN,
    "invertible-1x1, equal work": replace(_TWIN, steps=(2, 2, 3)),
}
VARIANTS = ("plain", "frozen", "bf16")


def flow_of(config: PatchFlowConfig) -> Flow:
    """With weights a little off their start, where nothing is zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        flow = Flow(build(config).eval(), config.shape)
    generator = keyed_generator(96)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.003 * torch.randn(parameter.shape, generator=generator))
    return flow


def variant(flow: Flow, name: str) -> Flow:
    if name == "plain":
        return flow.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return flow.frozen(bf16=name == "bf16")


def iteration(flow: Flow, z: Tensor, y: Tensor) -> None:
    """Misfit, penalty and their gradient: what a step of the point solver costs."""
    leaf = z.clone().requires_grad_()
    x, log_det = flow.decode(leaf)
    value = (x - y).abs().sum() + 0.01 * (log_det - standard_normal_log_prob(leaf)).sum()
    if any(p.requires_grad for p in flow.parameters()):
        value.backward()  # into the weights as well, which nobody asked for
        flow.zero_grad(set_to_none=True)
    else:
        torch.autograd.grad(value, leaf)


def kept_for_backward(flow: Flow, z: Tensor, y: Tensor) -> float:
    """Megabytes that autograd holds when an iteration turns round, the weights left out."""
    weights = {t.untyped_storage().data_ptr() for t in (*flow.parameters(), *flow.buffers())}
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        iteration(flow, z, y)
    return sum(held.values()) / 2**20


def used_weights(flow: Flow) -> int:
    """Those that the map depends on: of a factorised 1x1 convolution's two matrices the halves below and above."""
    unused = sum(len(m.sign) * (len(m.sign) + 1) for m in flow.modules() if isinstance(m, LUConv1x1))
    return sum(p.numel() for p in flow.parameters()) - unused


def timed(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return 1000 * (time.process_time() - start)


def flops(flow: Flow, z: Tensor) -> float:
    """Multiply-adds of decoding, in 1e9 for the batch, counted twice as usual."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        flow.decode(z)
    return counter.get_total_flops() / 1e9


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    command = command_of("benchmarks.restoration.speed", arguments)
    torch.set_num_threads(1)
    with in_one_line(parser):
        found = measure(options.batch, options.rounds)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    about = {"command": command, "machine": machine(), "batch": options.batch, "rounds": options.rounds, "flows": found}
    write_text(options.out, json.dumps(about, indent=1) + "\n")
    print(f"written to {options.out}")


def measure(batch: int, rounds: int) -> dict[str, Any]:
    shape = (3, 32, 32)
    z = torch.randn(batch, *shape, generator=keyed_generator(97))
    y = torch.zeros(batch, *shape)
    found: dict[str, Any] = {}
    for name, config in FLOWS.items():
        base = flow_of(config)
        variants = {v: variant(flow_of(config), v) for v in VARIANTS}
        entry: dict[str, Any] = {"weights": used_weights(base), "gflop": flops(base, z)}
        times: dict[str, dict[str, list[float]]] = {v: {"inverse": [], "iteration": []} for v in VARIANTS}
        for flow in variants.values():
            iteration(flow, z, y)
        for _ in range(rounds):
            for v, flow in variants.items():
                with torch.no_grad():
                    times[v]["inverse"].append(timed(lambda flow=flow: flow.decode(z)))  # type: ignore[misc]
                times[v]["iteration"].append(timed(lambda flow=flow: iteration(flow, z, y)))  # type: ignore[misc]
        for v in VARIANTS:
            entry[v] = {k: {"median": statistics.median(t), "least": min(t)} for k, t in times[v].items()}
        plain = times["plain"]["iteration"]
        entry["speed_up"] = {
            v: statistics.median(a / b for a, b in zip(plain, times[v]["iteration"], strict=True)) for v in VARIANTS[1:]
        }
        entry["kept_mb"] = {v: kept_for_backward(flow, z, y) for v, flow in variants.items()}
        found[name] = entry
        print(name, {v: round(entry[v]["iteration"]["median"]) for v in VARIANTS}, entry["speed_up"], flush=True)
    return found


if __name__ == "__main__":
    main()
