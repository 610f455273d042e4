"""`flowinv solve` and `flowinv demo`: from a measurement to a folder with the posterior."""

from __future__ import annotations

import importlib
import shutil
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .progress import progress

if TYPE_CHECKING:
    from torch import Tensor

    from ..flows import Flow
    from ..operators import Operator
    from ..posterior import Posterior
    from ..problem import InverseProblem
    from ..solvers import VariationalSettings

_FILES = ("posterior", "summary.json", "figure.png", "report.html")


def solve(
    prior: Annotated[str, typer.Argument(help="A shipped prior's name, a folder, or hub:owner/name.")],
    out: Annotated[Path, typer.Option(help="Folder to write: posterior/, summary.json, figure.png, report.html.")],
    image: Annotated[
        Path | None, typer.Option(help="An image to degrade by the task: a test with known truth.")
    ] = None,
    measurement: Annotated[Path | None, typer.Option(help="A measurement y (.npy, .npz or a picture).")] = None,
    task: Annotated[str | None, typer.Option(help="The forward operator by name; see the list below.")] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", "-o", help="An option of the task, name=value.")
    ] = None,
    operator: Annotated[
        str | None, typer.Option(help="The forward operator as module:function, x (N, *shape) -> A(x).")
    ] = None,
    likelihood: Annotated[str, typer.Option(help="gaussian, laplace or poisson.")] = "gaussian",
    sigma: Annotated[
        float, typer.Option(help="Noise scale in the image's units (gaussian: std; poisson: gain).")
    ] = 0.1,
    noiseless: Annotated[
        bool, typer.Option(help="Degrade --image without adding noise; sigma then only smooths.")
    ] = False,
    preset: Annotated[
        str, typer.Option(help="fast, thorough, gaussian, paper-mnist, paper-cifar10, paper-celebahq.")
    ] = "fast",
    steps: Annotated[int | None, typer.Option(help="At most so many steps.")] = None,
    draws: Annotated[int, typer.Option(min=2, help="Draws in summary, figure and report.")] = 512,
    bf16: Annotated[bool, typer.Option(help="Run the prior's networks in bfloat16 while fitting.")] = False,
    fit: Annotated[bool, typer.Option("--fit", help="Resize --image to the prior's size.")] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of noise, fit and draws.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result in the folder.")] = False,
) -> None:
    """Infer the posterior of an image from a measurement, or from an image degraded by a task.

    [bold]Tasks[/bold]: inpaint-bottom, -top, -left, -right (the named half is observed), inpaint-box, inpaint-pixels,
    inpaint-subpixels, inpaint-mask, denoise, deblur, superres, colorize, compressed-sensing.
    An unknown option names the ones a task has.

    [bold]Examples[/bold]

      flowinv solve mnist --image seven.png --task inpaint-bottom --out seven

      flowinv solve mnist --image seven.png --task inpaint-pixels -o fraction=.2 -o seed=1 --sigma .05 --out seven

      flowinv solve mnist --measurement y.npy --task inpaint-mask -o mask=mask.png --out result

      flowinv solve mnist --measurement y.npy --operator mylab.physics:forward --sigma .02 --out result
    """
    import torch

    from ..images import read_image, read_measurement
    from ..priors import load_prior
    from ..problem import InverseProblem
    from ..solvers import PRESETS
    from ..tasks import Task, parse_options
    from ..tasks import task as named_task

    if (image is None) == (measurement is None):
        raise ValueError("give either --image (to degrade) or --measurement, not both or neither")
    if (task is None) == (operator is None):
        raise ValueError("give the forward operator either by --task or by --operator module:function")
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}: expected one of {', '.join(PRESETS)}")
    _refuse(out, overwrite)
    flow = load_prior(prior)
    noise = _likelihood(likelihood, sigma)
    if task is not None:
        chosen = named_task(task, flow.shape, likelihood=noise, **parse_options(option or []))
    else:
        if option:
            raise ValueError("--option belongs to --task; an --operator takes none")
        assert operator is not None
        forward = _import_operator(operator).on(flow.shape)
        _try_operator(forward, operator, flow)
        chosen = Task(forward, noise, {"operator": operator})
    truth = None
    if image is not None:
        truth = read_image(image, flow.shape, fit)
        flow.check(truth, str(image))
        y = chosen.observe(truth, torch.Generator().manual_seed(seed), noise=not noiseless)
    else:
        assert measurement is not None
        y = read_measurement(measurement)
        probe = flow.noise((_observations(chosen.operator),), torch.Generator().manual_seed(0))
        expected = chosen.operator(flow.decode(probe)[0]).dim()
        y = y[None] if y.dim() == expected - 1 else y
    problem = InverseProblem(flow, chosen.operator, noise, y)
    settings = replace(PRESETS[preset], bf16=bf16, seed=seed)
    if steps is not None:
        settings = replace(settings, steps=steps)
    about: dict[str, Any] = {"prior": prior, "task": task or operator, "options": option or []}
    about |= {"likelihood": likelihood, "sigma": sigma, "noiseless": noiseless, "preset": preset, "seed": seed}
    _solve_into(out, problem, settings, draws, truth, about, overwrite, title=f"{task or operator}, {prior} prior")


def demo(
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("demo"),
    digit: Annotated[int, typer.Option(min=0, max=9, help="Which of the ten shipped test digits.")] = 7,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier demo in the folder.")] = False,
) -> None:
    """Solve a real problem in under a minute: an MNIST test digit of which only the lower half was seen, with noise.

    [bold]Examples[/bold]

      flowinv demo

      flowinv demo --digit 4 --out four
    """
    from importlib.resources import as_file, files

    import numpy as np
    import torch

    from ..priors import load_prior
    from ..problem import InverseProblem
    from ..solvers import PRESETS
    from ..tasks import task

    _refuse(out, overwrite)
    flow = load_prior("mnist")
    with as_file(files("flowinv") / "demo" / "digits.npz") as path, np.load(path, allow_pickle=False) as file:
        truth = (torch.from_numpy(file["test_x"][digit])[None, None].float() + 0.5) / 256
    chosen = task("inpaint-bottom", flow.shape, sigma=0.1)
    y = chosen.observe(truth, torch.Generator().manual_seed(0))
    problem = InverseProblem.from_task(flow, chosen, y)
    about = {
        "prior": "mnist",
        "task": "inpaint-bottom",
        "options": [],
        "likelihood": "gaussian",
        "sigma": 0.1,
        "seed": 0,
    }
    title = f"An MNIST {digit} of which the lower half was seen"
    _solve_into(out, problem, PRESETS["fast"], 512, truth, about, overwrite, title)


def _refuse(out: Path, overwrite: bool) -> None:
    """A folder may hold an unfinished run of ours, to be gone on with; anything else is never written over unasked."""
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; --out names a folder")
    if not out.exists() or overwrite:
        return
    # the checkpoint goes last, so beside one the other files are those of a run that was not finished
    ours = ("checkpoint", *_FILES) if (out / "checkpoint").is_dir() else ()
    foreign = sorted(p.name for p in out.iterdir() if p.name not in ours)
    if foreign:
        raise FileExistsError(f"{out} already holds {foreign[0]}; choose another folder, or --overwrite")


def _discard_other_run(checkpoint: Path, problem: InverseProblem, settings: VariationalSettings) -> None:
    """Where --overwrite was asked for: keep the checkpoint of this very run, to go on with it, and no other."""
    from ..store import BundleError, read_bundle

    try:
        config, _ = read_bundle(checkpoint, "flowinv-solver")
        same = (config.get("problem"), config.get("settings")) == (problem.fingerprint(), asdict(settings))
    except (BundleError, FileNotFoundError):
        same = False
    if not same:
        shutil.rmtree(checkpoint, ignore_errors=True)


def _import_operator(name: str) -> Operator:
    from ..operators import as_operator

    module, _, function = name.partition(":")
    if not module or not function:
        raise ValueError(f"--operator takes module:function, got {name!r}")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module)
        for part in function.split("."):
            found = getattr(found, part)
    except (ImportError, SyntaxError, OSError, *_FAULTS) as error:
        if isinstance(error, AttributeError) and module in sys.modules:
            raise ValueError(f"--operator {name}: module {module} has no {function}") from None
        raise ValueError(f"--operator {name} cannot be imported: {type(error).__name__}: {error}") from None
    if not callable(found):
        raise ValueError(f"--operator {name} is a {type(found).__name__}, expected a function")
    return as_operator(found)


# what a user's code raises where it is wrong or is given what it does not expect
_FAULTS = (RuntimeError, ArithmeticError, LookupError, AttributeError, TypeError, ValueError, NameError, AssertionError)


def _try_operator(operator: Operator, name: str, flow: Flow) -> None:
    """Call a user's function once, so that what is wrong with it is told in its name."""
    import torch

    try:
        with torch.no_grad():
            operator(flow.decode(flow.noise((1,), torch.Generator().manual_seed(0)))[0])
    except _FAULTS as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"--operator {name} fails on images of shape (1, {', '.join(map(str, flow.shape))}): {reason}"
        ) from None


def _observations(operator: Operator) -> int:
    """For how many observations an operator was made: more than one where it has a mask for each."""
    mask = operator.observed
    return len(mask) if mask is not None and operator.shape and mask.dim() > len(operator.shape) else 1


def _likelihood(kind: str, scale: float) -> Any:
    from ..likelihoods import Gaussian, Laplace, Poisson

    kinds = {"gaussian": Gaussian, "laplace": Laplace, "poisson": Poisson}
    if kind not in kinds:
        raise ValueError(f"unknown likelihood {kind!r}: expected one of {', '.join(kinds)}")
    return kinds[kind](scale)


def _solve_into(
    out: Path,
    problem: InverseProblem,
    settings: VariationalSettings,
    draws: int,
    truth: Tensor | None,
    about: dict[str, Any],
    overwrite: bool,
    title: str,
) -> None:
    """Fit, then write everything the folder is to hold; the checkpoint goes once the posterior is safe."""
    from ..plots import contact_sheet
    from ..report import write_report
    from ..solvers import Diverged, SolverProgress, VariationalSolver
    from ..store import to_json, write_text

    started = time.monotonic()
    checkpoint = out / "checkpoint"
    if overwrite:
        _discard_other_run(checkpoint, problem, settings)
    with progress("fitting") as update:
        last = 0

        def show(p: SolverProgress) -> None:
            nonlocal last
            last = p.step
            update(p.step, p.total, f"ELBO {p.elbo:.1f} nats")

        try:
            posterior = VariationalSolver(settings).solve(problem, checkpoint, show)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"step {last} is kept in {checkpoint}; the same command goes on from there"
            ) from None
        except Diverged as error:
            error.posterior.save(out / "last-good", overwrite=True)
            raise
    posterior.provenance["problem"] = about
    fitted = time.monotonic() - started
    # what is written over here is an earlier result that --overwrite gave up, or this run's own, interrupted
    posterior.save(out / "posterior", overwrite=True)
    summary = _summary(problem.given_prior, posterior, draws, truth)
    write_text(out / "summary.json", to_json({**about, **summary, "seconds": round(fitted, 2)}))
    contact_sheet(posterior, out / "figure.png", truth=truth, overwrite=True)
    page = out / "report.html"
    write_report(posterior, page, draws=draws, truth=truth, title=title, seed=settings.seed, overwrite=True)
    shutil.rmtree(checkpoint, ignore_errors=True)
    typer.echo(repr(posterior))
    for line in _spoken(summary):
        typer.echo(f"  {line}")
    typer.echo(f"wrote {', '.join(_FILES)} in {out} ({time.monotonic() - started:.0f} s); open {out / 'report.html'}")


def _summary(flow: Flow, posterior: Posterior, draws: int, truth: Tensor | None) -> dict[str, Any]:
    import torch

    from ..randomness import keyed_generator
    from ..summaries import data_fit, moments

    source = posterior.source(draws, keyed_generator(posterior.provenance["settings"]["seed"], 9))
    found, fit = moments(source), data_fit(posterior.problem, source)
    assert posterior.elbo is not None and posterior.elbo_se is not None
    result: dict[str, Any] = {
        "elbo_nats": posterior.elbo.tolist(),
        "elbo_standard_error": posterior.elbo_se.tolist(),
        "elbo_draws": posterior.provenance["settings"]["final_draws"],
        "normalised": posterior.problem.normalised,
        "data_fit": {"statistic": fit.statistic, "value": fit.value.tolist(), "measurements": fit.count.tolist()},
        "mean_pixel_std": float(found.std.mean()),
        "steps": posterior.provenance["steps"],
        "draws": draws,
        "provenance": {k: posterior.provenance[k] for k in ("flowinv", "torch", "python", "prior")},
    }
    if truth is not None:
        single = torch.cat([(x - truth).square().flatten(2).sum(2) for x in source()])
        result["squared_error_single_draw"] = float(single.mean())
        result["squared_error_mean"] = float((found.mean - truth).square().sum() / len(truth))
    return result


def _spoken(summary: dict[str, Any]) -> list[str]:
    fit = summary["data_fit"]
    values = ", ".join(f"{v:.2f}" for v in fit["value"])
    expected = (
        " per measured value (near 1 where prior and noise model are right)"
        if fit["statistic"] == "chi-squared"
        else ""
    )
    lines = [f"data fit   {fit['statistic']} {values}{expected}"]
    if "squared_error_mean" in summary:
        lines.append(
            f"truth      summed squared error {summary['squared_error_single_draw']:.1f} (one draw), "
            f"{summary['squared_error_mean']:.1f} (mean)"
        )
    return lines
