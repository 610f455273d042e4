"""A problem as files: the part of a bundle that every result carries, so that it can be read back and asked again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from .likelihoods import likelihood_from_spec
from .operators import Operator
from .priors import describe, from_description
from .problem import InverseProblem
from .store import BundleError, under
from .tasks import operator_from_spec


def pack_problem(problem: InverseProblem) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors of prior, operator, likelihood and y. Refused where the prior has changed since."""
    if problem.given_prior.fingerprint() != problem.prior_fingerprint:
        raise ValueError("the prior has changed since the problem was solved: it cannot be saved with it")
    config = {
        "batch": problem.batch,
        "prior": describe(problem.given_prior),
        "prior_sha256": problem.prior_fingerprint,
        "operator": problem.operator.spec,
        "likelihood": problem.likelihood.spec,
    }
    tensors = {f"prior.{k}": v for k, v in problem.given_prior.state_dict().items()}
    tensors |= {f"operator.{k}": v for k, v in problem.operator.tensors().items()}
    tensors |= {f"likelihood.{k}": v for k, v in problem.likelihood.tensors().items()}
    return config, {**tensors, "y": problem.y}


def unpack_problem(
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    folder: str | Path,
    operator: Operator | Callable[[Tensor], Tensor] | None = None,
    likelihood: Any = None,
) -> InverseProblem:
    """The problem that ``pack_problem`` packed. An operator or likelihood that was Python code must be given again.

    Raises BundleError for what does not fit, KeyError for what is missing.
    """
    prior = from_description(config["prior"], under("prior", tensors), str(folder))
    if operator is None:
        if config["operator"] is None:
            raise BundleError(f"{folder}: its operator was Python code; give it again (operator=, --operator)")
        operator = operator_from_spec(config["operator"], prior.shape, under("operator", tensors))
    if likelihood is None:
        if config["likelihood"] is None:
            raise BundleError(f"{folder}: its likelihood was Python code; give it again (likelihood=)")
        likelihood = likelihood_from_spec(config["likelihood"], under("likelihood", tensors))
    problem = InverseProblem(prior, operator, likelihood, tensors["y"])
    if config["batch"] != problem.batch:
        raise BundleError(f"{folder}: its config tells of {config['batch']} observations, y has {problem.batch}")
    if config["prior_sha256"] != problem.prior_fingerprint:
        raise BundleError(f"{folder}: the prior's weights are not those the problem was solved with")
    return problem
