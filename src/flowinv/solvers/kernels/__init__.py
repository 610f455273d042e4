"""Markov kernels: each moves every chain of every observation by one step, on any target."""

from .adaptation import DualAveraging
from .hmc import HMC
from .kernel import Kernel, Noise, State, start
from .langevin import Langevin
from .mala import MALA
from .plmcmc import RandomWalk

__all__ = ["HMC", "MALA", "DualAveraging", "Kernel", "Langevin", "Noise", "RandomWalk", "State", "start"]
