"""A point estimate: what it tells, and that it comes back from its files as it was."""

from __future__ import annotations

import json

import pytest
import torch
from exact_posterior import Exact

from flowinv import BundleError, Flow, Gaussian, InverseProblem, Mask
from flowinv.flows import GlowConfig, build
from flowinv.flows.architectures import config_to_dict
from flowinv.point_estimate import PointEstimate
from flowinv.solvers import OptimizationSettings, PointSolver

SETTINGS = OptimizationSettings(penalty="latent-norm", weight=0.1, learning_rate=0.05, steps=20, restarts=3)
SHAPE = (1, 4, 4)


def glow(seed: int = 0) -> Flow:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = GlowConfig(SHAPE, steps=(2,), hidden=8)
        flow = Flow(build(config), SHAPE).eval()
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
    flow.architecture = config_to_dict(config)
    return flow


def problem(operator=None) -> InverseProblem:
    mask = torch.zeros(SHAPE)
    mask[:, :2] = 1
    y = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1))
    return InverseProblem(glow(), operator if operator is not None else Mask(mask), Gaussian(0.3), y)


def test_tells_the_image_and_its_density() -> None:
    estimate = PointSolver(SETTINGS).solve(problem())
    assert estimate.x.shape == estimate.z.shape == (4, *SHAPE)
    assert estimate.objective.shape == estimate.misfit.shape == estimate.log_prior.shape == (4,)
    torch.testing.assert_close(estimate.x, estimate.problem.decode(estimate.z))
    torch.testing.assert_close(estimate.log_prior, estimate.problem.log_prior(estimate.x), atol=1e-3, rtol=1e-4)
    residual = (estimate.problem.operator(estimate.x) - estimate.problem.y).square().flatten(1).sum(1)
    torch.testing.assert_close(estimate.misfit, residual)
    norm = estimate.z.square().flatten(1).sum(1)
    torch.testing.assert_close(estimate.objective, residual + 0.1 * norm)
    assert not estimate.x.requires_grad and not estimate.z.requires_grad and not estimate.objective.requires_grad


def test_its_representation_says_what_it_is() -> None:
    text = repr(PointSolver(SETTINGS).solve(problem()))
    for part in (
        "PointEstimate of 4 observations, x of shape (1, 4, 4): a point for each, with no uncertainty",
        "||A(x) - y||^2 + 0.1 ||z||^2, best of 3 starts, 20 steps",
        "log p(x)",
        "Mask(",
        "for error bars, a posterior",
    ):
        assert part in text
    assert text.count("...") == 4 and max(map(len, text.splitlines())) < 132


def test_comes_back_from_its_files(tmp_path) -> None:
    estimate = PointSolver(SETTINGS).solve(problem())
    folder = estimate.save(tmp_path / "estimate")
    back = PointEstimate.load(folder)
    for name in ("z", "x", "objective", "misfit", "restarts", "log_prior"):
        assert torch.equal(getattr(back, name), getattr(estimate, name)), name
    assert back.trace == estimate.trace
    assert back.provenance == json.loads(json.dumps(estimate.provenance))
    assert repr(back) == repr(estimate)
    with pytest.raises(FileExistsError):
        estimate.save(folder)
    back.save(folder, overwrite=True)
    assert torch.equal(PointEstimate.load(folder).z, estimate.z)


def test_double_precision_comes_back(tmp_path) -> None:
    exact = Exact((12,), batch=2)
    estimate = PointSolver(SETTINGS).solve(exact.problem)
    back = PointEstimate.load(estimate.save(tmp_path / "estimate"))
    assert back.x.dtype == torch.float64 and torch.equal(back.x, estimate.x)


def test_an_operator_in_python_must_be_given_again(tmp_path) -> None:
    def brighter(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    estimate = PointSolver(SETTINGS).solve(problem(brighter))
    folder = estimate.save(tmp_path / "estimate")
    with pytest.raises(BundleError, match="operator was Python code"):
        PointEstimate.load(folder)
    assert torch.equal(PointEstimate.load(folder, operator=brighter).x, estimate.x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config, tensors: config.update(format="flowinv-posterior"), "expected 'flowinv-point-estimate'"),
        (lambda config, tensors: tensors.pop("estimate.z"), "misses 'estimate.z'"),
        (lambda config, tensors: config.pop("problem"), "misses 'problem'"),
        (lambda config, tensors: tensors.update({"estimate.z": torch.zeros(3, *SHAPE)}), "first z"),
        (lambda config, tensors: tensors.update({"estimate.objective": torch.full((4,), torch.nan)}), "NaN"),
        (lambda config, tensors: config.update(steps=3), "not a whole point estimate"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, change, message) -> None:
    from safetensors.torch import load_file, save_file

    folder = PointSolver(SETTINGS).solve(problem()).save(tmp_path / "estimate")
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    change(config, tensors)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(BundleError, match=message):
        PointEstimate.load(folder)


def test_a_prior_that_has_changed_cannot_be_saved_with_it(tmp_path) -> None:
    estimate = PointSolver(SETTINGS).solve(problem())
    with torch.no_grad():
        next(estimate.problem.given_prior.parameters()).add_(1)
    with pytest.raises(ValueError, match="prior has changed"):
        estimate.save(tmp_path / "estimate")


def test_latents_of_another_shape_are_refused() -> None:
    value = torch.zeros(4)
    with pytest.raises(ValueError, match=r"z must have shape \(4, 1, 4, 4\), got \(3, 1, 4, 4\)"):
        PointEstimate(problem(), torch.zeros(3, *SHAPE), value, {}, {}, misfit=value, restarts=value[None])
