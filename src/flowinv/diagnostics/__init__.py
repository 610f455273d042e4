"""How far to trust a result."""

from .chains import ess, rhat, standard_error

__all__ = ["ess", "rhat", "standard_error"]
