"""Solvers: each turns a problem into a posterior or a point estimate."""

from ..families import PreGeneratorConfig, build_pregenerator
from .amortized import AMORTIZED_PRESETS, AmortizedSettings, AmortizedTrainer, Amortizer, find_amortizer
from .catalogue import SOLVERS, preset_for, settings_for, solve, solver_info
from .optimization import PointSolver
from .optimization_settings import OPTIMIZATION_PRESETS, OptimizationSettings
from .progress import Diverged, SolverProgress
from .sampling import SAMPLING_PRESETS, Sampler, SamplingSettings
from .variational import VariationalSolver
from .variational_settings import PRESETS, VariationalSettings

__all__ = [
    "AMORTIZED_PRESETS",
    "OPTIMIZATION_PRESETS",
    "PRESETS",
    "SAMPLING_PRESETS",
    "SOLVERS",
    "AmortizedSettings",
    "AmortizedTrainer",
    "Amortizer",
    "Diverged",
    "OptimizationSettings",
    "PointSolver",
    "PreGeneratorConfig",
    "Sampler",
    "SamplingSettings",
    "SolverProgress",
    "VariationalSettings",
    "VariationalSolver",
    "build_pregenerator",
    "find_amortizer",
    "preset_for",
    "settings_for",
    "solve",
    "solver_info",
]
