"""Ready-made potentials ``f``, with ``p(x) ∝ exp f(x)``."""

from .convolutional import ConvPotential, ResidualPotential
from .gaussian import GaussianPotential
from .mlp import ACTIVATIONS, MLPPotential
from .negative_energy import NegativeEnergy
from .with_base import WithBase

__all__ = [
    "ACTIVATIONS",
    "ConvPotential",
    "GaussianPotential",
    "MLPPotential",
    "NegativeEnergy",
    "ResidualPotential",
    "WithBase",
]
