"""Generators that are functions of a key: the global random state is never read or changed."""

from __future__ import annotations

import torch


def keyed_generator(*key: int) -> torch.Generator:
    """A generator that depends on nothing but its key (integers, say seed and step).

    A run that draws step by step from ``keyed_generator(seed, step)`` and is resumed at a step draws
    what an unbroken one would have drawn.
    """
    seed = 0
    for part in key:
        seed = (seed * 1_000_003 + int(part) + 1) % (2**63 - 1)
    return torch.Generator().manual_seed(seed)
