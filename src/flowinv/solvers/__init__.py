"""Solvers: each turns a problem into a posterior or a point estimate."""

from .pregenerator import PreGeneratorConfig, build_pregenerator
from .variational import PRESETS, Diverged, SolverProgress, VariationalSettings, VariationalSolver

__all__ = [
    "PRESETS",
    "Diverged",
    "PreGeneratorConfig",
    "SolverProgress",
    "VariationalSettings",
    "VariationalSolver",
    "build_pregenerator",
]
