"""Dynamics layers: unrolled, differentiable samplers driven by ∇f."""

from .annealed_leapfrog import AnnealedLeapfrog, AnnealedOutput
from .base import Clip, DynamicsOutput, NonFiniteError
from .continuous import ContinuousLangevin, GeneralizedContinuousLangevin
from .damped_leapfrog import DampedLeapfrog
from .deterministic_langevin import DeterministicLangevin
from .diagnostics import Diagnostics, ExplodingGradientWarning
from .forecast import memory_forecast
from .generalized_leapfrog import GeneralizedLeapfrog
from .langevin import Langevin, LangevinOutput
from .leapfrog import Leapfrog
from .sequential import Sequential, SequentialOutput

__all__ = [
    "AnnealedLeapfrog",
    "AnnealedOutput",
    "Clip",
    "ContinuousLangevin",
    "DampedLeapfrog",
    "DeterministicLangevin",
    "Diagnostics",
    "DynamicsOutput",
    "ExplodingGradientWarning",
    "GeneralizedContinuousLangevin",
    "GeneralizedLeapfrog",
    "Langevin",
    "LangevinOutput",
    "Leapfrog",
    "NonFiniteError",
    "Sequential",
    "SequentialOutput",
    "memory_forecast",
]
