"""`flowinv solve`: from a measurement to a folder with the posterior."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .forward import import_operator, named_likelihood, observations, try_operator
from .outcome import refuse, solve_into

if TYPE_CHECKING:
    from torch import Tensor

    from ..flows.flow import Flow
    from ..likelihoods import Likelihood
    from ..tasks import Task


def solve(
    prior: Annotated[str, typer.Argument(help="A shipped prior's name, a folder, or hub:owner/name.")],
    out: Annotated[
        Path, typer.Option(help="Folder to write: posterior/ (or estimate/), summary.json, figure.png, report.html.")
    ],
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
    likelihood: Annotated[
        str, typer.Option(help="gaussian, laplace, poisson, or a perceptual distance: stlpips, digits.")
    ] = "gaussian",
    sigma: Annotated[
        float, typer.Option(help="Noise scale in the image's units (gaussian: std; poisson: gain).")
    ] = 0.1,
    beta: Annotated[float | None, typer.Option(help="Weight of a distance: exp(-beta d(y, A(x))).")] = None,
    weights: Annotated[Path | None, typer.Option(help="Weights of the distance stlpips (.npz).")] = None,
    noiseless: Annotated[
        bool, typer.Option(help="Degrade --image without adding noise; sigma then only smooths.")
    ] = False,
    solver: Annotated[str, typer.Option(help="What solves it; `flowinv solvers` lists them.")] = "svi",
    preset: Annotated[
        str | None,
        typer.Option(
            help="One of the solver's presets (default: the task's, or its first; svi of colour images: from-laplace)."
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            help="At most so many steps of the fit; of chains so many are kept, with warm-up in proportion. hmc-noise fits svi "
            "before, and semi-amortized trains where no amortizer fits: these keep their lengths."
        ),
    ] = None,
    weight: Annotated[
        float | None, typer.Option(help="Weight of a point solver's penalty (default: its preset's).")
    ] = None,
    chains: Annotated[int | None, typer.Option(help="So many chains, of the solvers that run chains.")] = None,
    amortizer: Annotated[
        Path | None, typer.Option(help="For avi and semi-amortized: what `flowinv amortize` wrote.")
    ] = None,
    draws: Annotated[
        int,
        typer.Option(min=2, max=100_000, help="Draws in summary, figure and report, of solvers that give a posterior."),
    ] = 512,
    bf16: Annotated[bool, typer.Option("--bf16", help="Run the prior's networks in bfloat16 while fitting.")] = False,
    fit: Annotated[bool, typer.Option("--fit", help="Resize --image to the prior's size.")] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of noise, fit and draws.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result in the folder.")] = False,
) -> None:
    """Infer the posterior of an image from a measurement, or from an image degraded by a task.

    [bold]Tasks[/bold]: inpaint-bottom, -top, -left, -right (the named half is observed), inpaint-box, inpaint-pixels,
    inpaint-subpixels, inpaint-mask, denoise, deblur, superres, colorize, compressed-sensing.
    `flowinv tasks` lists them with their options.

    [bold]Examples[/bold]

      flowinv solve mnist --image seven.png --task inpaint-bottom --out seven

      flowinv solve mnist --image seven.png --task inpaint-pixels -o fraction=.2 -o seed=1 --sigma .05 --out seven

      flowinv solve mnist --measurement y.npy --task inpaint-mask -o mask=mask.png --out result

      flowinv solve mnist --image seven.png --task inpaint-bottom --solver avi --out instant

      flowinv solve faces --image face.png --task deblur -o kernel=box -o padding=grey --noiseless --solver solverip --out sharp

      flowinv solve mnist --measurement y.npy --operator mylab.physics:forward --sigma .02 --out result
    """
    import torch

    from ..priors import load_prior
    from ..problem import InverseProblem
    from ..solvers import Amortizer, find_amortizer, preset_for, settings_for, solver_info
    from ..solvers.catalogue import USE_AMORTIZER, training_for

    if (image is None) == (measurement is None):
        raise ValueError("give either --image (to degrade) or --measurement, not both or neither")
    if (task is None) == (operator is None):
        raise ValueError("give the forward operator either by --task or by --operator module:function")
    if measurement is not None and (fit or noiseless):
        raise ValueError(f"--{'fit' if fit else 'noiseless'} is for --image: a measurement is taken as it is")
    info = solver_info(solver)
    changes = {"steps": steps, "weight": weight, "chains": chains, "bf16": bf16 or None}
    changes = {k: v for k, v in changes.items() if v is not None}
    # what is wrong with them is said before anything is loaded
    settings_for(solver, preset or preset_for(solver, task), seed=seed, **changes)
    if likelihood != "gaussian" and not info.uses_likelihood:
        raise ValueError(f"{solver} has a misfit of its own: it cannot use --likelihood {likelihood}")
    if amortizer is not None and solver not in USE_AMORTIZER:
        raise ValueError(f"--amortizer is for {' and '.join(USE_AMORTIZER)}, not for {solver}")
    trained = Amortizer.load(amortizer) if amortizer is not None else None
    refuse(out, overwrite)
    flow = load_prior(prior)
    noise = named_likelihood(likelihood, sigma, beta, weights)
    chosen = _forward(flow, noise, task, option or [], operator)
    truth = None if image is None else _truth(flow, image, fit)
    if truth is None:
        assert measurement is not None
        y = _measured(flow, chosen, measurement)
    else:
        y = chosen.observe(truth, torch.Generator().manual_seed(seed), noise=not noiseless)
    problem = InverseProblem(flow, chosen.operator, noise, y)
    chosen_preset = preset or preset_for(solver, task, problem)
    settings = settings_for(solver, chosen_preset, seed=seed, **changes)
    if not info.uses_likelihood and not noiseless:
        noisy = f"noise of {sigma:g} is in y, " if truth is not None else ""
        typer.echo(_blind_to_noise(solver, settings, None if weight is not None else chosen_preset, noisy))
    if solver in USE_AMORTIZER:
        trained = trained or find_amortizer(problem)
        if trained is None:
            training = training_for(solver, settings)
            typer.echo(
                f"no amortizer fits this prior, task and noise: training one first, {training.steps:,} steps of "
                f"{training.observations * training.draws} draws ({training.observations} observations, {training.draws} each)"
            )
        elif solver == "avi" and (preset is not None or steps is not None or bf16):
            raise ValueError("--preset, --steps and --bf16 are for training, and an amortizer that fits needs none")
    if getattr(settings, "needs_flow", False):
        typer.echo("fitting svi first, in whose noise the chains then run")
    about: dict[str, Any] = {"prior": prior, "task": task or operator, "options": option or []}
    about |= {"likelihood": likelihood, "sigma": sigma, "beta": beta, "noiseless": noiseless, "seed": seed}
    about["preset"] = chosen_preset
    title = f"{task or operator}, {prior} prior"
    solve_into(out, solver, problem, settings, draws, truth, about, overwrite, title, trained)


def _blind_to_noise(solver: str, settings: Any, preset: str | None, noisy: str) -> str:
    """What to say where the solver is not told of the noise scale; ``preset`` is None where the weight was given."""
    if not hasattr(settings, "weight"):
        return f"{solver} does not see sigma: {noisy}what was observed is taken as exact"
    exact = preset is not None and any(kind in preset for kind in ("deblur", "inpaint", "colorize"))
    return f"{solver} does not see sigma: {noisy}the penalty's weight is {settings.weight:g}" + (
        ", chosen for exact measurements (--noiseless)" if exact else ""
    )


def _forward(flow: Flow, noise: Likelihood, task: str | None, options: list[str], operator: str | None) -> Task:
    """The forward operator with its noise, by the task's name or as the user's function, which is tried."""
    from ..tasks import Task, parse_options
    from ..tasks import task as named_task

    if task is not None:
        given = parse_options(options)
        for name in ("sigma", "likelihood"):
            if name in given:
                raise ValueError(f"task {task} has no option {name!r}: --{name} sets it")
        return named_task(task, flow.shape, likelihood=noise, **given)
    if options:
        raise ValueError("--option belongs to --task; an --operator takes none")
    assert operator is not None
    forward = import_operator(operator).on(flow.shape)
    try_operator(forward, operator, flow)
    return Task(forward, noise, {"operator": operator})


def _truth(flow: Flow, image: Path, fit: bool) -> Tensor:
    """The image to degrade, refused where the prior cannot take it."""
    from ..images import read_image

    truth = read_image(image, flow.shape, fit)
    flow.check(truth, str(image))
    return truth


def _measured(flow: Flow, chosen: Task, measurement: Path) -> Tensor:
    """The measurement y, with a batch dimension where the file has none."""
    import torch

    from ..images import read_measurement

    y = read_measurement(measurement)
    probe = flow.noise((observations(chosen.operator),), torch.Generator().manual_seed(0))
    expected = chosen.operator(flow.decode(probe)[0]).dim()
    return y[None] if y.dim() == expected - 1 else y
