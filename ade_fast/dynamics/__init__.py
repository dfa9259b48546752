"""Dynamics layers: unrolled, differentiable samplers driven by ∇f."""

from .annealed_leapfrog import AnnealedLeapfrog, AnnealedOutput
from .base import Clip, DynamicsOutput, NonFiniteError
from .damped_leapfrog import DampedLeapfrog
from .generalized_leapfrog import GeneralizedLeapfrog
from .leapfrog import Leapfrog
from .sequential import Sequential, SequentialOutput

__all__ = [
    "AnnealedLeapfrog",
    "AnnealedOutput",
    "Clip",
    "DampedLeapfrog",
    "DynamicsOutput",
    "GeneralizedLeapfrog",
    "Leapfrog",
    "NonFiniteError",
    "Sequential",
    "SequentialOutput",
]
