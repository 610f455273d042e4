"""Conditioning a flow exactly is as hard as SAT: the reduction of Theorem 1 as objects to run.

Source: Whang, Lindgren and Dimakis, Composing Normalizing Flows for Inverse Problems, section 3 and appendix A.
"""

from .dimacs import Formula, parse_dimacs, random_formula
from .flow import enough_height, rounded, sat_flow, sat_problem
from .network import SatNetwork
from .oracle import Oracle

__all__ = [
    "Formula",
    "Oracle",
    "SatNetwork",
    "enough_height",
    "parse_dimacs",
    "random_formula",
    "rounded",
    "sat_flow",
    "sat_problem",
]
