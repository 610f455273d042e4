"""flowinv: posteriors of inverse problems with normalizing flows.

A *problem* joins a flow *prior*, a forward *operator* and a *likelihood*; a *solver* turns it into a *posterior*;
everything a user looks at is asked of the posterior.

    import flowinv, torch

    prior = flowinv.load_prior("mnist")
    task = flowinv.task("inpaint-bottom", prior.shape, sigma=0.1)
    problem = flowinv.InverseProblem.from_task(prior, task, y)
    posterior = flowinv.solve("svi", problem)
    draws = posterior.sample(100, torch.Generator().manual_seed(0))
"""

__version__ = "0.1.0"

from .flow_posterior import FlowPosterior
from .flows import Affine, Flow, Quantile
from .likelihoods import CustomLikelihood, Distance, Gaussian, Laplace, Poisson
from .operators import FunctionOperator, Identity, Mask, MatrixOperator, Operator
from .point_estimate import PointEstimate
from .posterior import Posterior
from .priors import load_prior, save_prior
from .problem import InverseProblem
from .sampled_posterior import SampledPosterior
from .solvers import (
    Amortizer,
    OptimizationSettings,
    PointSolver,
    Sampler,
    SamplingSettings,
    VariationalSettings,
    VariationalSolver,
    solve,
)
from .store import BundleError
from .tasks import TASKS, Task, task

__all__ = [
    "TASKS",
    "Affine",
    "Amortizer",
    "BundleError",
    "CustomLikelihood",
    "Distance",
    "Flow",
    "FlowPosterior",
    "FunctionOperator",
    "Gaussian",
    "Identity",
    "InverseProblem",
    "Laplace",
    "Mask",
    "MatrixOperator",
    "Operator",
    "OptimizationSettings",
    "PointEstimate",
    "PointSolver",
    "Poisson",
    "Posterior",
    "Quantile",
    "SampledPosterior",
    "Sampler",
    "SamplingSettings",
    "Task",
    "VariationalSettings",
    "VariationalSolver",
    "load_prior",
    "save_prior",
    "solve",
    "task",
]
