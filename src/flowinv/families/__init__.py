"""Variational families: what q(x | y) may be. Each is a map from noise and the space that it ends in."""

from .conditional import Conditional, ConditionalConfig, context_of
from .family import Draw, Family, family_from_description
from .maps import After, Generators, Shared
from .pregenerator import PreGeneratorConfig, build_pregenerator

__all__ = [
    "After",
    "Conditional",
    "ConditionalConfig",
    "Draw",
    "Family",
    "Generators",
    "PreGeneratorConfig",
    "Shared",
    "build_pregenerator",
    "context_of",
    "family_from_description",
]
