"""Initial distributions q⁰(x, v) of the dual sampler (paper, appendix C.2)."""

from .base import InitialDistribution, InitialSample
from .empirical import Empirical
from .gaussian import Gaussian
from .mlp_gaussian import MLPGaussian
from .planar_flow import PlanarFlow

__all__ = ["Empirical", "Gaussian", "InitialDistribution", "InitialSample", "MLPGaussian", "PlanarFlow"]
