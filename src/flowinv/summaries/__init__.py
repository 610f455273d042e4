"""Numbers asked of posterior draws, in memory that does not grow with their number."""

from .data_fit import RESIDUAL_EDGES, DataFit, can_sample, data_fit
from .density import BANDWIDTHS, Density, density, entropy
from .draws import Source, from_tensor, mapped, restartable
from .functions import Expectation, Probability, exceedance, expectation, wilson_interval
from .moments import Moments, mean, moments, std
from .quantiles import LEVELS, bin_index, credible_interval, quantiles

__all__ = [
    "BANDWIDTHS",
    "LEVELS",
    "RESIDUAL_EDGES",
    "DataFit",
    "Density",
    "Expectation",
    "Moments",
    "Probability",
    "Source",
    "bin_index",
    "can_sample",
    "credible_interval",
    "data_fit",
    "density",
    "entropy",
    "exceedance",
    "expectation",
    "from_tensor",
    "mapped",
    "mean",
    "moments",
    "quantiles",
    "restartable",
    "std",
    "wilson_interval",
]
