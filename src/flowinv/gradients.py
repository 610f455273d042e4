"""Whether a gradient flows where a solver needs one."""

from __future__ import annotations

import torch
from torch import Tensor


def require_gradient(value: Tensor, name: str) -> None:
    """Refuse a term that does not depend differentiably on x, by name."""
    if value.requires_grad:
        return
    if torch.is_inference_mode_enabled():
        raise ValueError("this needs gradients: call it outside of torch.inference_mode()")
    raise ValueError(f"{name} passes no gradient to x: write operator and likelihood in differentiable torch code")
