"""Solvers: each turns a problem into a posterior or a point estimate."""

from .pregenerator import build_pregenerator
from .variational import PRESETS, Diverged, SolverProgress, VariationalSettings, VariationalSolver

__all__ = [
    "PRESETS",
    "Diverged",
    "SolverProgress",
    "VariationalSettings",
    "VariationalSolver",
    "build_pregenerator",
]
