"""Invertible maps and the densities they carry; nothing here knows about inverse problems."""

from .architectures import DenseConfig, GlowConfig, PatchFlowConfig, RealNVPConfig, build, preset
from .bijection import Bijection, Chain, Inverse
from .flow import REALS, UNIT, Flow, bits_per_dim, standard_normal_log_prob
from .layers.analytic import Affine, Elementwise, Quantile

__all__ = [
    "REALS",
    "UNIT",
    "Affine",
    "Bijection",
    "Chain",
    "DenseConfig",
    "Elementwise",
    "Flow",
    "GlowConfig",
    "Inverse",
    "PatchFlowConfig",
    "Quantile",
    "RealNVPConfig",
    "bits_per_dim",
    "build",
    "preset",
    "standard_normal_log_prob",
]
