"""Variational families: what q(x | y) may be. Each is a map from noise and the space that it ends in."""

from .conditional import Conditional, ConditionalConfig, Conditioned, context_of
from .family import Draw, Family, family_from_description
from .maps import Generators, Shared
from .pregenerator import PreGeneratorConfig, build_pregenerator

__all__ = [
    "Conditional",
    "ConditionalConfig",
    "Conditioned",
    "Draw",
    "Family",
    "Generators",
    "PreGeneratorConfig",
    "Shared",
    "build_pregenerator",
    "context_of",
    "family_from_description",
]
