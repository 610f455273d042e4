"""flowinv: posteriors of inverse problems with normalizing flows.

A *problem* joins a flow *prior*, a forward *operator* and a *likelihood*; a *solver* turns it into a *posterior*;
everything a user looks at is asked of the posterior.

    import flowinv, torch

    prior = flowinv.load_prior("mnist")
    task = flowinv.task("inpaint-bottom", prior.shape, sigma=0.1)
    problem = flowinv.InverseProblem.from_task(prior, task, y)
    posterior = flowinv.VariationalSolver().solve(problem)
    draws = posterior.sample(100, torch.Generator().manual_seed(0))
"""

__version__ = "0.1.0"

from .flows import Affine, Flow, Quantile
from .likelihoods import CustomLikelihood, Distance, Gaussian, Laplace, Poisson
from .operators import FunctionOperator, Identity, Mask, MatrixOperator, Operator
from .posterior import Posterior
from .priors import load_prior, save_prior
from .problem import InverseProblem
from .solvers import VariationalSettings, VariationalSolver
from .store import BundleError
from .tasks import TASKS, Task, task

__all__ = [
    "TASKS",
    "Affine",
    "BundleError",
    "CustomLikelihood",
    "Distance",
    "Flow",
    "FunctionOperator",
    "Gaussian",
    "Identity",
    "InverseProblem",
    "Laplace",
    "Mask",
    "MatrixOperator",
    "Operator",
    "Poisson",
    "Posterior",
    "Quantile",
    "Task",
    "VariationalSettings",
    "VariationalSolver",
    "load_prior",
    "save_prior",
    "task",
]
