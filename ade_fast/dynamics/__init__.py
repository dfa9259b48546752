"""Dynamics layers: unrolled, differentiable samplers driven by ∇f."""

from .base import Clip, DynamicsOutput, NonFiniteError
from .damped_leapfrog import DampedLeapfrog
from .generalized_leapfrog import GeneralizedLeapfrog
from .leapfrog import Leapfrog

__all__ = ["Clip", "DampedLeapfrog", "DynamicsOutput", "GeneralizedLeapfrog", "Leapfrog", "NonFiniteError"]
