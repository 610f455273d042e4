"""Every solver on 784-pixel images whose posterior is known in closed form.

    python -m benchmarks.gaussian_images

Images of 28x28 pixels, x ~ N(1/2, C), C = .04 exp(-d^2 / 18) at a distance of d pixels plus 1e-4 at d = 0; the upper half is
observed with sigma .1 (for PL-MCMC, which conditions on pixels without noise, exactly). The prior is an affine flow, so that
the posterior of latent and image is Gaussian.

How to read a row: ``mean_error`` is the root mean square over pixels of the error of the posterior mean, in posterior
standard deviations, ``monte_carlo`` what that would be for exact draws of the same effective number, and ``sd_ratio`` the mean
ratio of pixel standard deviations to the exact ones. ``law_*`` are of an exact computation of where the method tends, free of
Monte-Carlo error: for SVI from the weights that were fitted, for LMC from its recursion. For SVI they hold the Kullback-Leibler
divergence from the posterior of the whole image (``law_kl``), and of its unobserved half alone (``law_kl_unobserved``), which
Whang, Lindgren and Dimakis bound by it (appendix B.2). Rows are written as they come: the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import machine
from flowinv import Affine, Flow, Gaussian, InverseProblem, Mask, VariationalSolver
from flowinv.diagnostics import standard_error
from flowinv.families.pregenerator import LowerTriangular
from flowinv.flow_posterior import FlowPosterior
from flowinv.randomness import keyed_generator
from flowinv.sampled_posterior import SampledPosterior
from flowinv.solvers import (
    OPTIMIZATION_PRESETS,
    PRESETS,
    SAMPLING_PRESETS,
    OptimizationSettings,
    PointSolver,
    Sampler,
    SamplingSettings,
)
from flowinv.store import write_text

SIGMA = 0.1
# with the whole of -log p(x): the posterior's mode, which is its mean
MODE = replace(OPTIMIZATION_PRESETS["map"], weight=1.0, optimizer="lbfgs", learning_rate=1.0, steps=400)


class GaussianImages:
    """The problem and its posterior in closed form, float64; images flattened, ``hidden`` the pixels nobody observed."""

    def __init__(self, side: int = 28, length: float = 3.0, noisy: bool = True, seed: int = 0):
        size = side * side
        grid = torch.cartesian_prod(torch.arange(side).double(), torch.arange(side).double())
        covariance = 0.04 * torch.exp(-torch.cdist(grid, grid).square() / (2 * length**2))
        covariance += 1e-4 * torch.eye(size, dtype=torch.float64)
        shape, mask = (1, side, side), torch.zeros(1, side, side)
        mask[:, : side // 2] = 1
        affine = Affine.from_covariance(torch.full(shape, 0.5), covariance.float())
        prior, g = Flow(affine, shape), keyed_generator(seed)
        truth = prior.sample(1, g)
        noise = SIGMA * torch.randn(truth.shape, generator=g)
        self.problem = InverseProblem(prior, Mask(mask), Gaussian(SIGMA), (truth + noisy * noise) * mask)
        self.variance = SIGMA**2 if noisy else 0.0
        self.root = affine.cholesky.double()
        self.observed = mask.flatten().bool()
        self.hidden = ~self.observed
        rows = self.root[self.observed]
        residual = (self.problem.y.flatten().double() - 0.5)[self.observed]
        evidence = rows @ rows.T + self.variance * torch.eye(len(rows)).double()
        gain = rows.T @ torch.linalg.inv(evidence)
        self.latent_mean = gain @ residual
        self.latent_covariance = torch.eye(size).double() - gain @ rows
        self.mean = 0.5 + self.root @ self.latent_mean
        self.covariance = self.root @ self.latent_covariance @ self.root.T
        self.sd = self.covariance.diagonal().clamp_min(0).sqrt()

    @cached_property
    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues and eigenvectors of the latent's posterior precision, where there is noise."""
        rows = self.root[self.observed]
        return torch.linalg.eigh(torch.eye(len(self.root)).double() + rows.T @ rows / self.variance)

    def divergence(self, mean: Tensor, covariance: Tensor, pixels: Tensor | None = None) -> float:
        """KL(N || posterior) of a Gaussian over the latent, nats; of its image at some pixels alone where these are given."""
        if pixels is None:
            return gaussian_kl(mean, covariance, self.latent_mean, self.latent_covariance)
        rows = self.root[pixels]
        marginals = [(rows @ m, rows @ c @ rows.T) for m, c in ((mean, covariance), self._latent)]
        return gaussian_kl(*marginals[0], *marginals[1])

    @property
    def _latent(self) -> tuple[Tensor, Tensor]:
        return self.latent_mean, self.latent_covariance

    def errors(self, mean: Tensor, sd: Tensor | None = None, monte_carlo: Tensor | None = None) -> dict[str, float]:
        """How far a posterior mean and standard deviations (D,) are from the exact ones, over pixels that vary."""
        some = self.sd > 1e-6
        found = {"mean_error": float(((mean - self.mean) / self.sd)[some].square().mean().sqrt())}
        if monte_carlo is not None:
            found["monte_carlo"] = float((monte_carlo / self.sd)[some].square().mean().sqrt())
        if sd is not None:
            found["sd_ratio"] = float((sd / self.sd)[some].mean())
        return found


def gaussian_kl(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> float:
    """KL(N(mean, covariance) || N(other_mean, other_covariance)), nats."""
    first, second = (torch.linalg.cholesky(0.5 * (c + c.T)) for c in (covariance, other_covariance))
    scaled = torch.linalg.solve_triangular(second, first, upper=False)
    shift = torch.linalg.solve_triangular(second, (other_mean - mean)[:, None], upper=False)
    log_det = 2 * (second.diagonal().log().sum() - first.diagonal().log().sum())
    return float(0.5 * (scaled.square().sum() + shift.square().sum() - len(mean) + log_det))


def fitted_latent(posterior: FlowPosterior) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the latent that a fitted ``gaussian`` family stands for, float64."""
    layer = posterior.family.map.bijections[0]  # type: ignore[union-attr, index]
    if not isinstance(layer, LowerTriangular):
        raise TypeError(f"expected the gaussian family, got {type(layer).__name__}")
    matrix = layer.matrix().detach().double()
    return layer.shift.detach().double(), matrix @ matrix.T


def langevin_law(images: GaussianImages, eta: float, steps: int) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the latent after so many steps of the Langevin recursion from N(0, I)."""
    precision, axes = images.spectrum
    shrink = 1 - eta * precision
    mean = (1 - shrink**steps) * (axes.T @ images.latent_mean)
    power = shrink ** (2 * steps)
    variance = power + (1 - power) / (precision * (1 - eta * precision / 2))
    return axes @ mean, axes @ torch.diag(variance) @ axes.T


# -- rows ----------------------------------------------------------------------------------------------------------------

Row = dict[str, Any]


def svi(images: GaussianImages, draws: int = 4096) -> tuple[Row, FlowPosterior]:
    """The full-rank Gaussian family: its fit in closed form, and what its draws say of it."""
    posterior = VariationalSolver("gaussian").solve(images.problem)
    mean, covariance = fitted_latent(posterior)
    x = posterior.sample(draws, keyed_generator(1)).flatten(1).double()
    joint, marginal = images.divergence(mean, covariance), images.divergence(mean, covariance, images.hidden)
    if joint < marginal:
        raise AssertionError(f"the joint KL {joint} lies below the marginal KL {marginal}")
    law = images.errors(0.5 + images.root @ mean, (images.root @ covariance @ images.root.T).diagonal().sqrt())
    assert posterior.elbo is not None
    row = {
        "seconds": posterior.provenance["seconds"],
        "prior_passes": posterior.provenance["steps"] * PRESETS["gaussian"].draws,
        "draws": draws,
        **images.errors(x.mean(0), x.std(0), images.sd / math.sqrt(draws)),
        **{f"law_{k}": v for k, v in law.items()},
        "law_kl": joint,
        "law_kl_unobserved": marginal,
        "law_kl_observed_given_unobserved": joint - marginal,
        "elbo": float(posterior.elbo[0]),
        "settings": asdict(PRESETS["gaussian"]),
    }
    return row, posterior


def chains(images: GaussianImages, settings: SamplingSettings, through: FlowPosterior | None = None) -> Row:
    """What a sampler's draws say."""
    found = Sampler(settings).solve(images.problem, through)
    row = {
        **_of_chains(images, found),
        "seconds": found.provenance["seconds"],
        "prior_passes_per_chain": found.provenance["prior_passes"],
        "settings": asdict(settings),
    }
    if settings.kernel == "lmc" and images.variance:
        mean, covariance = langevin_law(images, settings.step_size, settings.steps)
        law = images.errors(0.5 + images.root @ mean, (images.root @ covariance @ images.root.T).diagonal().sqrt())
        row |= {f"law_{k}": v for k, v in law.items()} | {"law_kl": images.divergence(mean, covariance)}
    return row


def _of_chains(images: GaussianImages, found: SampledPosterior) -> Row:
    x = found.chains.flatten(2).double()
    several = x.shape[1] >= 4
    # chains of one draw each are independent: the error of their mean needs no autocorrelation
    error = standard_error(x).nan_to_num() if several else x.flatten(0, 1).std(0) / math.sqrt(found.count)
    row: Row = {"draws": found.count, "chains": len(found.chains), "acceptance": float(found.acceptance.mean())}
    row |= images.errors(x.mean((0, 1)), x.flatten(0, 1).std(0), error)
    if several:
        pixels = found.ess_of().flatten()[images.sd > 1e-6], found.rhat_of().flatten()[images.sd > 1e-6]
        row |= {"rhat_lp": float(found.rhat[0]), "ess_lp": float(found.ess[0])}
        row |= {"ess_pixels": float(pixels[0].median()), "rhat_pixels": float(pixels[1].max())}
    return {**row, "exact_kernel": found.provenance["exact"], "step_size": found.provenance["step_size"][0]}


def point(images: GaussianImages, settings: OptimizationSettings) -> Row:
    """A point solver against the minimiser of its own objective, which is quadratic, and against the posterior."""
    started = time.perf_counter()
    found = PointSolver(settings).solve(images.problem)
    z = found.z.flatten().double()
    rows, residual = images.root[images.observed], (images.problem.y.flatten().double() - 0.5)[images.observed]
    # misfit c |rows z - r|^2 and penalty w |z|^2; without a penalty the least of all minimisers, where z0 = 0 leads
    c = 1 / (2 * SIGMA**2) if settings.misfit == "likelihood" else 1.0
    # -log p(x) and -log p(u), the same here, are |z|^2 / 2 and a constant
    w = {"none": 0.0, "latent-norm": settings.weight}.get(settings.penalty, settings.weight / 2)
    gram = c * rows @ rows.T + w * torch.eye(len(rows)).double()
    best = rows.T @ torch.linalg.solve(gram, c * residual)

    def objective(point: Tensor) -> float:
        return float(c * (rows @ point - residual).square().sum() + w * point.square().sum())

    return {
        "seconds": time.perf_counter() - started,
        "prior_passes": settings.steps * settings.restarts,
        **images.errors(0.5 + images.root @ z),
        **{f"law_{k}": v for k, v in images.errors(0.5 + images.root @ best).items()},
        "objective": objective(z),
        "objective_least": objective(best),
        "settings": asdict(settings),
    }


def jobs(noisy: GaussianImages, clean: GaussianImages) -> dict[str, Callable[[], Row]]:
    """Every row by name, in the order of the table."""
    fitted: list[FlowPosterior] = []

    def flow() -> FlowPosterior:
        if not fitted:
            fitted.append(svi(noisy)[1])
        return fitted[0]

    def first() -> Row:
        row, posterior = svi(noisy)
        fitted.append(posterior)
        return row

    hmc, mala = SAMPLING_PRESETS["hmc"], SAMPLING_PRESETS["mala"]
    long = SAMPLING_PRESETS["pl-mcmc"]
    return {
        "svi (gaussian)": first,
        "hmc": lambda: chains(noisy, replace(hmc, steps=300, leapfrogs=16, chains=8)),
        "hmc through svi": lambda: chains(noisy, replace(SAMPLING_PRESETS["hmc-noise"], chains=8), flow()),
        "mala": lambda: chains(noisy, replace(mala, steps=10000, warmup=2000, thin=20, chains=8)),
        "lmc (paper, 1000 steps)": lambda: chains(noisy, replace(SAMPLING_PRESETS["paper-lmc-cifar10"], chains=64)),
        "lmc (paper, 4000 steps)": lambda: chains(noisy, replace(SAMPLING_PRESETS["paper-lmc"], chains=64)),
        "lmc (step 5e-3, 4000 steps)": lambda: chains(
            noisy, replace(SAMPLING_PRESETS["paper-lmc"], chains=64, step_size=5e-3)
        ),
        "pl-mcmc": lambda: chains(clean, replace(long, steps=10000, warmup=2000, thin=20, chains=8)),
        "pl-mcmc (paper, 2000 steps)": lambda: chains(clean, replace(SAMPLING_PRESETS["paper-pl-mcmc"], chains=64)),
        "map (all of the prior, L-BFGS)": lambda: point(noisy, MODE),
        "map (paper)": lambda: point(noisy, OPTIMIZATION_PRESETS["map"]),
        "csgm (paper)": lambda: point(noisy, OPTIMIZATION_PRESETS["csgm"]),
        "ivom (paper)": lambda: point(noisy, OPTIMIZATION_PRESETS["ivom"]),
    }


def report(rows: dict[str, Row]) -> str:
    """The rows as a table to read."""
    columns = ("mean_error", "monte_carlo", "law_mean_error", "sd_ratio", "law_sd_ratio", "law_kl", "law_kl_unobserved")
    columns += ("acceptance", "rhat_pixels", "ess_pixels", "seconds")
    lines = [" " * 32 + "".join(f"{c.replace('law_kl_unobserved', 'law_kl_unobs'):>15}" for c in columns)]
    for name, row in rows.items():
        lines.append(f"{name:32}" + "".join(f"{row[c]:>15.4g}" if c in row else f"{'':>15}" for c in columns))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Measure what is missing, row by row, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="rows to measure (default: all)")
    parser.add_argument("--again", action="store_true", help="measure rows that are there already, too")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/gaussian_images.json"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    noisy, clean = GaussianImages(), GaussianImages(noisy=False)
    found = jobs(noisy, clean)
    if options.only and (unknown := [name for name in options.only if name not in found]):
        parser.error(f"unknown row {unknown[0]!r}: expected some of {', '.join(map(repr, found))}")
    done: dict[str, Any] = json.loads(options.json.read_text()) if options.json.exists() else {}
    rows: dict[str, Row] = done.get("rows", {})

    def write() -> None:
        about = {
            "command": "python -m benchmarks.gaussian_images",
            "machine": machine(),
            "threads": 1,
            "problem": {"side": 28, "length": 3.0, "sigma": SIGMA, "observed": "upper half", "seed": 0},
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        ordered = {key: rows[key] for key in found if key in rows}
        write_text(options.json, json.dumps({**about, "rows": ordered}, indent=1) + "\n")

    for name in options.only or found:
        if name in rows and not options.again:
            continue
        rows[name] = {**found[name](), "load_average": machine()["load_average"]}
        write()
        print(f"{name}: {rows[name]['seconds']:.1f} s", flush=True)
    write()
    print(report({key: rows[key] for key in found if key in rows}))


if __name__ == "__main__":
    main()
