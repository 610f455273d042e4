"""How many steps an amortised start saves: fits of growing length from scratch and from the amortizer.

    python -m benchmarks.composing.semi --data DATA --workers 2

For each observation, SVI from scratch, which is from a Laplace approximation (the start of the highest ELBO, see tune.py), takes
``--steps`` (1000) steps; its ELBO, less ``--within`` (1) nat, is the mark. Then, from each start, fits of 0, 10, 20, 30, 50, ...
steps, each with a schedule of its own (a fit of n steps is what a user would run), until one reaches the mark; what 50 steps give
is measured always. Starts: ``amortized``, and with ``--scratch`` the Laplace approximation.
ELBOs are measured with ``--evaluate`` (2048) fresh draws, the same noise for all: their standard error, some .7 nats, is in the
rows. Resumable, observation by observation.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

import flowinv
from benchmarks.command import command_of, in_one_line
from benchmarks.composing.bootstrap import mean_interval
from benchmarks.composing.cases import Case, case_named
from benchmarks.composing.crew import in_processes
from benchmarks.composing.data import load
from benchmarks.composing.methods import describe, settings_of
from benchmarks.composing.run import amortizer_name, common
from benchmarks.composing.store import dump
from benchmarks.machine import machine
from flowinv.families import Family
from flowinv.randomness import keyed_generator
from flowinv.solvers import Amortizer, Diverged, VariationalSettings, VariationalSolver, find_amortizer
from flowinv.store import write_text

LENGTHS = (0, 10, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1000)
VARIANTS = ("amortized", "scratch")
ALWAYS = 50  # steps


@dataclass(frozen=True)
class SemiJob:
    """One observation's fits. ``variants`` maps each start to its settings."""

    case: Case
    index: int
    truth: Tensor
    prior: str
    amortizer: str | None
    reference: VariationalSettings
    variants: tuple[tuple[str, VariationalSettings], ...]
    lengths: tuple[int, ...]
    within: float
    evaluate: int


def solve_semi(job: SemiJob) -> dict[str, Any]:
    """The ELBO from scratch, and for each start the ELBO of every length that was tried; a fit that diverged ends the row."""
    try:
        return _solve(job)
    except Diverged as error:
        return {"image": job.index, "failed": str(error).splitlines()[0]}


def _solve(job: SemiJob) -> dict[str, Any]:
    prior = flowinv.load_prior(job.prior)
    problem = job.case.problem(prior, job.truth, job.index)
    amortizer = Amortizer.load(job.amortizer) if job.amortizer is not None else find_amortizer(problem)
    assert amortizer is not None

    def start(variant: str) -> Family | None:
        return None if variant == "scratch" else amortizer.start(problem, job.reference.pregenerator)

    def elbo(settings: VariationalSettings, variant: str, length: int) -> tuple[float, float]:
        if length == 0:
            posterior = amortizer.posterior(problem)
        else:
            fit = replace(settings, steps=length, seed=job.index, final_draws=2)
            posterior = VariationalSolver(fit).solve(problem, start=start(variant))
        posterior.measure_elbo(job.evaluate, keyed_generator(93, job.index))
        assert posterior.elbo is not None and posterior.elbo_se is not None
        return float(posterior.elbo), float(posterior.elbo_se)

    best, error = elbo(job.reference, "scratch", job.reference.steps)
    row: dict[str, Any] = {"image": job.index, "reference": round(best, 3), "reference_se": round(error, 3)}
    for variant, settings in job.variants:
        tried: dict[str, float] = {}
        for length in job.lengths:
            if length == 0 and variant == "scratch":
                continue
            reached = any(value >= best - job.within for value in tried.values())
            if reached and length != ALWAYS:
                continue
            tried[str(length)] = round(elbo(settings, variant, length)[0], 3)
        lengths = [int(n) for n, found in tried.items() if found >= best - job.within]
        row[variant] = {"elbo": tried, "steps": min(lengths, default=None)}
    return row


def summarise(rows: list[dict[str, Any]], longest: int) -> dict[str, Any]:
    """Per start: the median number of steps, how many reached the mark, and how far short 0 and 50 steps are."""
    found = {}
    for variant in VARIANTS:
        entries = [(row["reference"], row[variant]) for row in rows if variant in row]
        if not entries:
            continue
        steps = [longest if e["steps"] is None else e["steps"] for _, e in entries]
        gaps = {n: [best - e["elbo"][str(n)] for best, e in entries if str(n) in e["elbo"]] for n in (0, ALWAYS)}
        found[variant] = {
            "median": statistics.median(steps),
            "reached": sum(e["steps"] is not None for _, e in entries),
            "of": len(entries),
            **{f"gap_at_{n}": asdict(mean_interval(values)) if values else None for n, values in gaps.items()},
        }
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="mnist-bottom")
    parser.add_argument("--amortizer", help="folder; the shipped one by default")
    parser.add_argument("--observations", type=int, default=20)
    parser.add_argument("--steps", type=int, default=1000, help="of the fit from scratch that sets the mark")
    parser.add_argument("--within", type=float, default=1.0, help="nats")
    parser.add_argument("--evaluate", type=int, default=2048, help="draws for each ELBO")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--scratch", action="store_true", help="the lengths from scratch as well, to compare")
    common(parser)
    options = parser.parse_args(arguments)
    command = command_of("benchmarks.composing.semi", arguments)
    with in_one_line(parser):
        _run(options, command)


def _run(options: argparse.Namespace, command: str) -> None:
    case = case_named(options.case)
    name = options.prior or case.dataset.prior
    prior, images = flowinv.load_prior(name), load(case.dataset, options.data, options.prior)
    known = amortizer_name(options.amortizer, case, prior, images)
    if known is None:
        raise ValueError(f"no amortizer for {case.name}: give one with --amortizer")
    scratch = settings_of("svi", case)
    amortized = settings_of("semi-amortized", case)
    assert isinstance(scratch, VariationalSettings) and isinstance(amortized, VariationalSettings)
    scratch = replace(scratch, start="laplace", early_stop=False)
    variants = {"amortized": replace(amortized, early_stop=False)}
    variants |= {"scratch": scratch} if options.scratch else {}
    reference = replace(scratch, steps=options.steps)
    lengths = tuple(sorted({0, ALWAYS, *options.lengths}))
    identity = {
        "case": case.name,
        "prior": prior.fingerprint(),
        "amortizer": known,
        "reference": describe(reference),
        "variants": {k: describe(v) for k, v in variants.items()},
        "lengths": list(lengths),
        "within": options.within,
        "evaluate": options.evaluate,
    }
    path = options.out / "semi.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if before and before["settings"] != identity:
        raise ValueError(f"{path} was made with other settings; move it away")
    rows: list[dict[str, Any]] = before.get("rows", [])
    done = {row["image"] for row in rows}
    jobs = [
        SemiJob(
            case,
            i,
            images.truth(i),
            name,
            options.amortizer,
            reference,
            tuple(variants.items()),
            lengths,
            options.within,
            options.evaluate,
        )
        for i in range(options.observations)
        if i not in done
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    for row in in_processes(solve_semi, jobs, options.workers, options.threads, options.nice):
        rows.append(row)
        about = {
            "command": command,
            "machine": machine(),
            "case": case.name,
            "settings": identity,
            "within": options.within,
            "reference_steps": options.steps,
            "observations": len(rows),
            "variants": summarise(rows, lengths[-1]),
        }
        write_text(path, dump(about, sorted(rows, key=lambda r: r["image"])))
        print({k: v["steps"] if isinstance(v, dict) else v for k, v in row.items()}, flush=True)
    print(json.dumps(summarise(rows, lengths[-1]), indent=1) if rows else "no observations")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
