"""The folder that `flowinv solve` writes: solving into it, and what it says of the result."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .progress import progress

if TYPE_CHECKING:
    from torch import Tensor

    from ..point_estimate import PointEstimate
    from ..posterior import Posterior
    from ..problem import InverseProblem
    from ..solvers import Amortizer

_POSTERIOR = ("posterior", "summary.json", "figure.png", "report.html")
_POINT = ("estimate", "summary.json", "figure.png")


def refuse(out: Path, overwrite: bool) -> None:
    """A folder may hold an unfinished run of ours, to be gone on with; anything else is never written over unasked."""
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; --out names a folder")
    if not out.exists() or overwrite:
        return
    # the checkpoint goes last, so beside one the other files are those of a run that was not finished
    ours = ("checkpoint", "amortizer", "last-good", *_POSTERIOR, *_POINT) if (out / "checkpoint").is_dir() else ()
    foreign = sorted(p.name for p in out.iterdir() if p.name not in ours)
    if foreign:
        raise FileExistsError(f"{out} already holds {foreign[0]}; choose another folder, or --overwrite")


@contextmanager
def _claimed(checkpoint: Path, identity: dict[str, Any], overwrite: bool) -> Iterator[None]:
    """Mark the checkpoint as this run's; what another run left there goes where --overwrite was asked for, else refuses.

    Where the block fails and nothing came of the run, the mark is taken away again: a refused problem leaves no folder.
    """
    from ..store import write_text

    mark, mine = checkpoint / "run.json", json.dumps(identity, sort_keys=True, indent=1) + "\n"
    if checkpoint.exists() and (not mark.exists() or mark.read_text(encoding="utf-8") != mine):
        if not mark.exists():
            raise FileExistsError(f"{checkpoint} was not made by flowinv solve; choose another folder")
        if not overwrite:
            raise ValueError(
                f"{checkpoint} holds an unfinished run of another problem, solver or settings; finish it, choose another "
                "folder, or --overwrite"
            )
        shutil.rmtree(checkpoint)
    checkpoint.mkdir(parents=True, exist_ok=True)
    write_text(mark, mine)
    ended_well = False
    try:
        yield
        ended_well = True
    finally:
        if not ended_well and [p.name for p in checkpoint.iterdir()] == ["run.json"]:
            shutil.rmtree(checkpoint)
            if not any(checkpoint.parent.iterdir()):
                checkpoint.parent.rmdir()


def solve_into(
    out: Path,
    solver: str,
    problem: InverseProblem,
    settings: Any,
    draws: int,
    truth: Tensor | None,
    about: dict[str, Any],
    overwrite: bool,
    title: str,
    amortizer: Amortizer | None = None,
) -> None:
    """Solve, then write everything the folder is to hold; the checkpoint goes once the result is safe."""
    from ..point_estimate import PointEstimate
    from ..solvers import Amortizer, Diverged, SolverProgress
    from ..solvers import solve as run
    from ..solvers.catalogue import TRAINED
    from ..store import write_text

    started = time.monotonic()
    checkpoint = out / "checkpoint"
    identity = {"solver": solver, "settings": asdict(settings), "problem": problem.fingerprint()}
    with _claimed(checkpoint, identity, overwrite), progress(f"solving ({solver})") as update:
        last = 0

        def show(p: SolverProgress) -> None:
            nonlocal last
            last = p.step
            update(p.step, p.total, f"{p.label} {p.value:.1f}")

        try:
            result = run(solver, problem, settings, amortizer=amortizer, checkpoint=checkpoint, report=show)
        except KeyboardInterrupt:
            kept = any(checkpoint.rglob("config.json"))
            raise KeyboardInterrupt(
                f"step {last} is kept in {checkpoint}; the same command goes on from there" if kept else ""
            ) from None
        except Diverged as error:
            if error.result is not None:
                with suppress(ValueError):  # an amortizer for Python code, which cannot be saved
                    error.result.save(out / "last-good", overwrite=True)
                    error.args = (f"{error} (it is in {out / 'last-good'})",)
            raise
    about = {"solver": solver, **about}
    result.provenance["problem"] = about
    fitted = time.monotonic() - started
    if isinstance(result, PointEstimate):
        written = _write_point(out, result, truth, about, fitted)
    else:
        written = _write_posterior(out, result, draws, truth, about, fitted, title)
    for stale in {"posterior", "estimate", "report.html", "last-good"}.difference(written):  # of what was written over
        path = out / stale
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if (checkpoint / TRAINED).is_dir():  # what took longest may serve again
        shutil.rmtree(out / "amortizer", ignore_errors=True)
        (checkpoint / TRAINED).rename(out / "amortizer")
        card = Amortizer.load(out / "amortizer").card(about["prior"], "flowinv solve")
        write_text(out / "amortizer" / "README.md", card)
        written = ("amortizer", *written)
    shutil.rmtree(checkpoint, ignore_errors=True)
    typer.echo(f"wrote {', '.join(written)} in {out} ({time.monotonic() - started:.0f} s); open {out / written[-1]}")


def _write_posterior(
    out: Path,
    posterior: Posterior,
    draws: int,
    truth: Tensor | None,
    about: dict[str, Any],
    seconds: float,
    title: str,
) -> tuple[str, ...]:
    from ..flow_posterior import FlowPosterior
    from ..plots import contact_sheet
    from ..randomness import keyed_generator
    from ..report import write_report
    from ..solvers import solver_info
    from ..store import to_json, write_text

    seed = int(about["seed"])
    if (
        isinstance(posterior, FlowPosterior) and posterior.elbo is None
    ):  # amortised: nothing was fitted, so none was measured
        posterior.measure_elbo(1024, keyed_generator(seed, 10**6))
    # what is written over here is an earlier result that --overwrite gave up, or this run's own, interrupted
    posterior.save(out / "posterior", overwrite=True)
    summary = _summary(posterior, draws, truth, seed)
    write_text(out / "summary.json", to_json({**about, **summary, "seconds": round(seconds, 2)}))
    contact_sheet(posterior, out / "figure.png", truth=truth, overwrite=True)
    write_report(posterior, out / "report.html", draws=draws, truth=truth, title=title, seed=seed, overwrite=True)
    typer.echo(repr(posterior))
    for line in _spoken(summary, solver_info(about["solver"]).uses_likelihood):
        typer.echo(f"  {line}")
    return _POSTERIOR


def _write_point(
    out: Path, estimate: PointEstimate, truth: Tensor | None, about: dict[str, Any], seconds: float
) -> tuple[str, ...]:
    from ..plots import point_sheet
    from ..store import to_json, write_text

    estimate.save(out / "estimate", overwrite=True)
    summary: dict[str, Any] = {
        "objective": estimate.objective.tolist(),
        "misfit": estimate.misfit.tolist(),
        "log_prior_nats": estimate.log_prior.tolist(),
        "steps": estimate.provenance.get("steps"),
    }
    if truth is not None:
        summary["squared_error"] = float((estimate.x - truth).square().flatten(1).sum(1).mean())
    write_text(out / "summary.json", to_json({**about, **summary, "seconds": round(seconds, 2)}))
    point_sheet(estimate, out / "figure.png", truth=truth, overwrite=True)
    typer.echo(repr(estimate))
    if truth is not None:
        typer.echo(f"  truth      summed squared error {summary['squared_error']:.1f}")
    return _POINT


def _summary(posterior: Posterior, draws: int, truth: Tensor | None, seed: int) -> dict[str, Any]:
    import torch

    from ..flow_posterior import FlowPosterior
    from ..randomness import keyed_generator
    from ..sampled_posterior import SampledPosterior
    from ..summaries import data_fit, moments

    source = posterior.source(draws, keyed_generator(seed, 9))
    found, fit = moments(source), data_fit(posterior.problem, source)
    result: dict[str, Any] = {}
    if isinstance(posterior, FlowPosterior):
        assert posterior.elbo is not None and posterior.elbo_se is not None
        result["elbo_nats"] = posterior.elbo.tolist()
        result["elbo_standard_error"] = posterior.elbo_se.tolist()
        result["elbo_draws"] = posterior.provenance.get("settings", {}).get("final_draws", 1024)
    if isinstance(posterior, SampledPosterior):
        result["exact_kernel"] = bool(posterior.provenance.get("exact"))
        for name in ("rhat", "ess"):
            result[name] = [_known(float(v)) for v in getattr(posterior, name)]
        result["acceptance"] = posterior.acceptance.mean(0).tolist()
    result |= {
        "normalised": posterior.problem.normalised,
        "data_fit": {"statistic": fit.statistic, "value": fit.value.tolist(), "measurements": fit.count.tolist()},
        "mean_pixel_std": float(found.std.mean()),
        "steps": posterior.provenance["steps"],
        "draws": min(draws, getattr(posterior, "count", draws)),
        "provenance": {k: posterior.provenance[k] for k in ("flowinv", "torch", "python", "prior")},
    }
    if truth is not None:
        single = torch.cat([(x - truth).square().flatten(2).sum(2) for x in source()])
        result["squared_error_single_draw"] = float(single.mean())
        result["squared_error_mean"] = float((found.mean - truth).square().sum() / len(truth))
    return result


def _known(value: float) -> float | str | None:
    """Of chains: "inf" where none of them ever moved, null where they are too short to tell; JSON has no word for either."""
    return value if math.isfinite(value) else None if math.isnan(value) else "inf"


def _spoken(summary: dict[str, Any], noisy: bool) -> list[str]:
    fit = summary["data_fit"]
    values = ", ".join(f"{v:.2f}" for v in fit["value"])
    expected = (
        " per measured value (near 1 where fit, prior and noise model are right)"
        if fit["statistic"] == "chi-squared"
        else ""
    )
    lines = [f"data fit   {fit['statistic']} {values}{expected}" if noisy else "data fit   exact, with no noise model"]
    if "squared_error_mean" in summary:
        lines.append(
            f"truth      summed squared error {summary['squared_error_single_draw']:.1f} (one draw), "
            f"{summary['squared_error_mean']:.1f} (mean)"
        )
    return lines
