"""Conditioning is hard: approximate solvers on flows that encode random 3-SAT, beside the sampler that knows the answer.

    python -m benchmarks.hardness --json benchmarks/results/hardness.json

The flow is (x, z) -> (x, z + f_M(x)), its last element observed as M, of Theorem 1 of Whang, Lindgren and Dimakis. M is the
height at which their proof puts the exact posterior on satisfying assignments. A draw succeeds where its rounding,
sign(x), satisfies the formula. A solver that does no better than the toss of a coin for each variable has learned nothing of
the formula: its gradient is 0 outside of small cores around the assignments, which are too little of N(0, I) to be met by
chance. Instances are uniform random 3-SAT in SATLIB's manner (the size of its uf20-91 among them): the first satisfiable
ones from seed 0 on.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.command import command_of
from benchmarks.machine import machine
from flowinv import VariationalSolver
from flowinv.hardness import Formula, Oracle, SatNetwork, enough_height, random_formula, rounded, sat_problem
from flowinv.randomness import keyed_generator
from flowinv.solvers import OPTIMIZATION_PRESETS, PRESETS, SAMPLING_PRESETS, PointSolver, Sampler
from flowinv.store import write_text

SIZES = {"d 6, m 18": (6, 18), "uf20-91": (20, 91)}
SIGMA = 0.1
HEIGHTS = (0.25, 0.5, 0.7, 0.8, 0.9, 1.0)  # of the bound's
VARIATIONAL = replace(PRESETS["fast"], final_draws=4096)
CSGM = replace(OPTIMIZATION_PRESETS["csgm-fast"], learning_rate=0.2)  # the last element has to travel as far as M
CHAINS = {
    "LMC": replace(SAMPLING_PRESETS["lmc"], chains=64),
    "HMC": replace(SAMPLING_PRESETS["hmc"], chains=16),
}


def instances(variables: int, clauses: int, count: int) -> list[tuple[int, Formula]]:
    """The first satisfiable formulas that use all their variables, with their seeds."""
    found: list[tuple[int, Formula]] = []
    seed = 0
    while len(found) < count:
        formula = random_formula(variables, clauses, torch.Generator().manual_seed(seed))
        if not formula.unused and len(formula.solutions()):
            found.append((seed, formula))
        seed += 1
    return found


def count_by_solver(formula: Formula) -> int | None:
    """The number of satisfying assignments by a SAT solver, None without python-sat."""
    try:
        from pysat.solvers import Minisat22
    except ImportError:
        return None
    with Minisat22(bootstrap_with=[list(clause) for clause in formula.clauses]) as solver:
        return sum(1 for _ in solver.enum_models())


def svi(formula: Formula, height: float, seed: int) -> tuple[Tensor, dict[str, float]]:
    posterior = VariationalSolver(replace(VARIATIONAL, seed=seed)).solve(sat_problem(formula, height, sigma=SIGMA))
    assert posterior.elbo is not None
    return posterior.sample(4096, keyed_generator(2, seed))[:, 0], {"elbo": float(posterior.elbo[0])}


def csgm(formula: Formula, height: float, seed: int) -> tuple[Tensor, dict[str, float]]:
    problem = sat_problem(formula, height, sigma=SIGMA, observations=256)
    return PointSolver(replace(CSGM, seed=seed)).solve(problem).x, {}


def chains(name: str) -> Callable[[Formula, float, int], tuple[Tensor, dict[str, float]]]:
    def run(formula: Formula, height: float, seed: int) -> tuple[Tensor, dict[str, float]]:
        problem = sat_problem(formula, height, sigma=SIGMA)
        posterior = Sampler(replace(CHAINS[name], seed=seed)).solve(problem)
        return posterior.chains[:, :, 0].flatten(0, 1), {"acceptance": float(posterior.stats["acceptance"].mean())}

    return run


SOLVERS: dict[str, Callable[[Formula, float, int], tuple[Tensor, dict[str, float]]]] = {
    "SVI": svi,
    "CSGM": csgm,
    "LMC": chains("LMC"),
    "HMC": chains("HMC"),
}


def score(draws: Tensor, formula: Formula, network: SatNetwork) -> dict[str, Any]:
    """How many draws round to a satisfying assignment, and how many lie where f_M > 0."""
    good = formula.satisfied_by(rounded(draws)).double()
    error = float((good.mean() * (1 - good.mean()) / len(good)).sqrt())
    inside = float((network(draws[:, :-1].double()) > 0).double().mean())
    return {
        "draws": len(draws),
        "satisfied": float(good.mean()),
        "standard_error_if_independent": error,
        "in_a_core": inside,
        "mean_last_element": float(draws[:, -1].mean()),
    }


def run(name: str, seed: int, formula: Formula) -> dict[str, Any]:
    """All figures of one instance."""
    solutions = formula.solutions()
    counted = count_by_solver(formula)
    if counted is not None and counted != len(solutions):
        raise SystemExit(f"{name}, seed {seed}: {len(solutions)} assignments by trial, {counted} by the SAT solver")
    bound = enough_height(formula.variables, len(formula.clauses), failure=0.01, sigma=SIGMA)
    network = SatNetwork(formula, bound)
    oracle = Oracle(network, solutions, SIGMA)
    chance = len(solutions) / 2**formula.variables
    by_height = {}
    for share in HEIGHTS:
        at = Oracle(SatNetwork(formula, share * bound), solutions, SIGMA)
        by_height[f"{share * bound:.3f}"] = at.success(500, keyed_generator(0, seed))[0]
    rows: dict[str, Any] = {
        "size": name,
        "seed": seed,
        "solutions": len(solutions),
        "solutions_by_sat_solver": counted,
        "height": bound,
        "exact_mass_in_cores_by_height": by_height,
        "log10_prior_mass_of_cores": oracle.log_prior_mass(500, keyed_generator(4, seed)) / math.log(10),
        "log_evidence": oracle.log_evidence(500, keyed_generator(5, seed)),
        "coin": {"satisfied": chance},
        "oracle": score(oracle.sample(4096, keyed_generator(1, seed)), formula, network),
        "solvers": {},
    }
    print(f"{name}, seed {seed}: {len(solutions)} solutions, M {bound:.2f}", flush=True)
    print(f"  {'oracle':8} {rows['oracle']['satisfied']:8.4f}   {'coin':8} {chance:.2e}", flush=True)
    for solver, solve in SOLVERS.items():
        started = time.perf_counter()
        draws, more = solve(formula, bound, seed)
        row = {**score(draws, formula, network), **more, "seconds": round(time.perf_counter() - started, 1)}
        rows["solvers"][solver] = row
        print(
            f"  {solver:8} {row['satisfied']:8.4f}   in a core {row['in_a_core']:.4f}   {row['seconds']} s", flush=True
        )
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Run, print and, if asked, write the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=2, help="formulas of each size")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args(arguments)
    if options.instances < 1:
        parser.error("--instances must be at least 1")
    torch.set_num_threads(options.threads)
    command = command_of("benchmarks.hardness", arguments)
    settings = {"SVI": asdict(VARIATIONAL), "CSGM": asdict(CSGM), **{k: asdict(v) for k, v in CHAINS.items()}}
    figures: dict[str, Any] = {
        "command": command,
        "machine": machine(),
        "threads": options.threads,
        "sigma": SIGMA,
        "settings": settings,
        "rows": [],
    }
    for name, (variables, clauses) in SIZES.items():
        for seed, formula in instances(variables, clauses, options.instances):
            figures["rows"].append(run(name, seed, formula))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_text(options.json, json.dumps(figures, indent=1) + "\n")
        print(f"written to {options.json}")


if __name__ == "__main__":
    main()
