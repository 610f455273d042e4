"""Perceptual distances by the description that files and the command line keep of them."""

from __future__ import annotations

from typing import Any

from .digits import DigitDistance
from .perceptual import STLPIPS

NAMES = ("stlpips", "digits")


def distance_from_spec(spec: dict[str, Any]) -> STLPIPS | DigitDistance:
    """The distance whose ``spec`` this is: ``stlpips`` with the path of its weights, or ``digits``."""
    if not isinstance(spec, dict) or spec.get("name") not in NAMES:
        raise ValueError(f"no distance is described by {spec!r}; known names: {', '.join(NAMES)}")
    if spec["name"] == "digits":
        return DigitDistance()
    if not spec.get("weights"):
        raise ValueError("the stlpips distance needs the path of its weights")
    return STLPIPS(spec["weights"], spec.get("size", 64))
