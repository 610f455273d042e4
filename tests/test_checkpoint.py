"""Checkpoints of modules with their optimiser, and of the solver: what was interrupted goes on as if it had not been."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_posterior import Exact
from torch import nn

from flowinv import BundleError, Gaussian, InverseProblem, Posterior, VariationalSettings, VariationalSolver
from flowinv.checkpoint import pack, unpack
from flowinv.families.pregenerator import PreGeneratorConfig
from flowinv.randomness import keyed_generator
from flowinv.solvers import SolverProgress
from flowinv.store import read_bundle, write_bundle

QUICK = VariationalSettings(PreGeneratorConfig(steps=2, hidden=8), draws=4, steps=24, warmup=3, final_draws=16, seed=5)
FULL_RANK = replace(QUICK, pregenerator=PreGeneratorConfig("gaussian"))


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


def steps(module: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for i in range(first, last):
        x = torch.randn(8, 3, generator=keyed_generator(1, i))
        optimizer.zero_grad()
        (module(x) - x.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()


def run(*pieces: int) -> dict[str, torch.Tensor]:
    """Adam for the steps between the pieces' ends, through pack and unpack at each."""
    tensors: dict[str, torch.Tensor] | None = None
    done = 0
    for end in pieces:
        module = net()
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
        if tensors is not None:
            unpack("net", tensors, module, optimizer)
        steps(module, optimizer, done, end)
        tensors, done = {k: v.detach().clone() for k, v in pack("net", module, optimizer).items()}, end
    assert tensors is not None
    return tensors


def test_pack_and_unpack_leave_no_seam() -> None:
    whole, parts = run(20), run(3, 11, 20)
    assert whole.keys() == parts.keys() and all(torch.equal(whole[k], parts[k]) for k in whole)
    assert any(k.startswith("net.optimizer.exp_avg_sq.") for k in whole)


def test_unpacking_before_the_first_step() -> None:
    assert all(torch.equal(a, b) for a, b in zip(run(0, 5).values(), run(5).values(), strict=True))


@pytest.mark.parametrize("fault", ["missing", "extra", "shape", "dtype", "nan", "moment", "foreign"])
def test_what_does_not_fit_is_refused_and_nothing_is_changed(fault: str) -> None:
    tensors = run(3)
    weight = "net.state.0.weight"
    if fault == "missing":
        del tensors[weight]
    elif fault == "extra":
        tensors["net.state.9.weight"] = torch.zeros(1)
    elif fault == "shape":
        tensors[weight] = torch.zeros(4, 4)
    elif fault == "dtype":
        tensors[weight] = tensors[weight].double()
    elif fault == "nan":
        tensors[weight][0, 0] = math.nan
    elif fault == "moment":
        tensors["net.optimizer.exp_avg.0.weight"] = torch.zeros(2)
    else:
        tensors["net.optimizer.exp_avg.other"] = torch.zeros(2)
    module = net()
    optimizer = torch.optim.Adam(module.parameters())
    before = pack("net", module, optimizer)
    before = {k: v.clone() for k, v in before.items()}
    with pytest.raises(BundleError, match=r"do not fit|does not fit|hold NaN") as error:
        unpack("net", tensors, module, optimizer)
    after = pack("net", module, optimizer)
    assert "\n" not in str(error.value)
    assert after.keys() == before.keys() and all(torch.equal(after[k], before[k]) for k in before)


def test_keyed_generators_differ_by_every_part_of_their_key() -> None:
    keys = [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (1, 2, 3), (3, 2, 1), (2**62, 5)]
    draws = {torch.randn(4, generator=keyed_generator(*key)).numpy().tobytes() for key in keys}
    assert len(draws) == len(keys)
    again = keyed_generator(1, 2, 3)
    assert torch.equal(torch.randn(4, generator=again), torch.randn(4, generator=keyed_generator(1, 2, 3)))


# -- the solver --------------------------------------------------------------------------------------


class Stop:
    """Interrupts the fit at a step, as Ctrl-C does."""

    def __init__(self, *at: int):
        self.at = at
        self.seen: list[int] = []

    def __call__(self, p: SolverProgress) -> None:
        self.seen.append(p.step)
        if p.step in self.at:
            raise KeyboardInterrupt


def same(a: Posterior, b: Posterior) -> bool:
    states = zip(a.family.state_dict().values(), b.family.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in states) and a.trace == b.trace and torch.equal(a.elbo, b.elbo)


@pytest.mark.parametrize("settings", [QUICK, FULL_RANK])
@pytest.mark.parametrize("batch", [1, 3])
def test_an_interrupted_fit_goes_on_as_if_it_had_not_been(
    tmp_path: Path, settings: VariationalSettings, batch: int
) -> None:
    problem = Exact((6,), batch=batch).problem
    whole = VariationalSolver(settings).solve(problem)
    for at in (7, 18):
        stop = Stop(at)
        with pytest.raises(KeyboardInterrupt):
            VariationalSolver(settings).solve(problem, tmp_path, stop)
        assert stop.seen[-1] == at and stop.seen[0] == {7: 1, 18: 8}[at], "it went on where it had stopped"
    resumed = VariationalSolver(settings).solve(problem, tmp_path)
    assert same(resumed, whole)
    other = VariationalSolver(replace(settings, seed=6)).solve(problem)
    assert not same(other, whole)


def test_an_early_stop_is_remembered(tmp_path: Path) -> None:
    settings = replace(FULL_RANK, steps=400, window=20, learning_rate=3e-2, tolerance=1e6)
    problem = Exact((6,)).problem
    whole = VariationalSolver(settings).solve(problem)
    end = whole.provenance["steps"]
    assert end < 300, "the settings are such that the fit stops early"
    with pytest.raises(KeyboardInterrupt):
        VariationalSolver(settings).solve(problem, tmp_path, Stop(end - 5))
    assert same(VariationalSolver(settings).solve(problem, tmp_path), whole)


def test_a_finished_fit_is_read_and_not_repeated(tmp_path: Path) -> None:
    problem = Exact((6,)).problem
    first = VariationalSolver(QUICK).solve(problem, tmp_path)
    stop = Stop()
    assert same(VariationalSolver(QUICK).solve(problem, tmp_path, stop), first) and stop.seen == []


def test_checkpoints_of_other_fits_are_refused(tmp_path: Path) -> None:
    exact = Exact((6,))
    VariationalSolver(QUICK).solve(exact.problem, tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    other = InverseProblem(exact.prior, exact.problem.operator, Gaussian(0.2), exact.y)
    for settings, problem in ((replace(QUICK, draws=5), exact.problem), (QUICK, other)):
        with pytest.raises(ValueError, match="checkpoint of another problem or of other settings"):
            VariationalSolver(settings).solve(problem, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("fault", ["weight", "nan", "truncated", "foreign"])
def test_damaged_checkpoints_are_refused(tmp_path: Path, fault: str) -> None:
    problem = Exact((6,)).problem
    with pytest.raises(KeyboardInterrupt):
        VariationalSolver(QUICK).solve(problem, tmp_path, Stop(3))
    config, tensors = read_bundle(tmp_path, "flowinv-solver")
    name = next(k for k in tensors if k.startswith("family.state.") and tensors[k].is_floating_point())
    changed: dict[str, Any] = dict(tensors)
    if fault == "weight":
        del changed[name]
    elif fault == "nan":
        changed[name] = torch.full_like(tensors[name], math.nan)
    elif fault == "foreign":
        config["format"] = "flowinv-training"
    write_bundle(tmp_path, config, changed, overwrite=True)
    if fault == "truncated":
        (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(BundleError) as error:
        VariationalSolver(QUICK).solve(problem, tmp_path)
    assert "\n" not in str(error.value)
