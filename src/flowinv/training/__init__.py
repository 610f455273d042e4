"""Fitting flows to data."""

from .config import TrainingConfig, read_config
from .maximum_likelihood import Progress, Trainer, TrainingDiverged, evaluate

__all__ = ["Progress", "Trainer", "TrainingConfig", "TrainingDiverged", "evaluate", "read_config"]
