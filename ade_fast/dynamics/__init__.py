"""Dynamics layers: unrolled, differentiable samplers driven by ∇f."""

from .annealed_leapfrog import AnnealedLeapfrog, AnnealedOutput
from .base import Clip, DynamicsOutput, NonFiniteError
from .damped_leapfrog import DampedLeapfrog
from .deterministic_langevin import DeterministicLangevin
from .generalized_leapfrog import GeneralizedLeapfrog
from .leapfrog import Leapfrog

__all__ = [
    "AnnealedLeapfrog",
    "AnnealedOutput",
    "Clip",
    "DampedLeapfrog",
    "DeterministicLangevin",
    "DynamicsOutput",
    "GeneralizedLeapfrog",
    "Leapfrog",
    "NonFiniteError",
]
