"""Initial distributions q⁰(x, v) of the dual sampler (paper, appendix C.2)."""

from .base import InitialDistribution, InitialSample
from .deep_latent import DeepLatent
from .empirical import Empirical
from .flow import Flow
from .gaussian import Gaussian
from .langevin_flow import LangevinFlow
from .mlp_gaussian import MLPGaussian
from .planar_flow import PlanarFlow
from .spline_flow import SplineFlow

__all__ = [
    "DeepLatent",
    "Empirical",
    "Flow",
    "Gaussian",
    "InitialDistribution",
    "InitialSample",
    "LangevinFlow",
    "MLPGaussian",
    "PlanarFlow",
    "SplineFlow",
]
