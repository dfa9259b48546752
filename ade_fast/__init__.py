"""ade_fast: energy-based models trained through their own sampler (Adversarial Dynamics Embedding), fast.

``import ade_fast as ade``. The dynamics layers (`Leapfrog`, `GeneralizedLeapfrog`, `DampedLeapfrog`,
`AnnealedLeapfrog`, `Langevin`, `DeterministicLangevin`) are drop-in PyTorch modules with exact back-propagation through
time; `ADE` trains a potential f, p(x) ∝ exp f(x), with them.
"""

from . import data, estimators, functional, initial, metrics, reference
from ._slow_paths import SlowPathWarning, slow_paths
from .dynamics import (
    AnnealedLeapfrog,
    AnnealedOutput,
    Clip,
    ContinuousLangevin,
    DampedLeapfrog,
    DeterministicLangevin,
    Diagnostics,
    DynamicsOutput,
    ExplodingGradientWarning,
    GeneralizedContinuousLangevin,
    GeneralizedLeapfrog,
    Langevin,
    LangevinOutput,
    Leapfrog,
    NonFiniteError,
    Sequential,
    SequentialOutput,
    memory_forecast,
)
from .fields import memory_in_use, release_memory, set_memory_budget
from .potentials import ConvPotential, GaussianPotential, MLPPotential, NegativeEnergy, ResidualPotential, WithBase
from .training import ADE, Callback, DualSample, DualSampler, TrainedModel, fit, load, recipe, restore, save, shard

__version__ = "0.1.0"

__all__ = [
    "ADE",
    "AnnealedLeapfrog",
    "AnnealedOutput",
    "Callback",
    "Clip",
    "ContinuousLangevin",
    "ConvPotential",
    "DampedLeapfrog",
    "DeterministicLangevin",
    "Diagnostics",
    "DualSample",
    "DualSampler",
    "DynamicsOutput",
    "ExplodingGradientWarning",
    "GaussianPotential",
    "GeneralizedContinuousLangevin",
    "GeneralizedLeapfrog",
    "Langevin",
    "LangevinOutput",
    "Leapfrog",
    "MLPPotential",
    "NegativeEnergy",
    "NonFiniteError",
    "ResidualPotential",
    "Sequential",
    "SequentialOutput",
    "SlowPathWarning",
    "TrainedModel",
    "WithBase",
    "data",
    "estimators",
    "fit",
    "functional",
    "initial",
    "load",
    "memory_forecast",
    "memory_in_use",
    "metrics",
    "recipe",
    "reference",
    "release_memory",
    "restore",
    "save",
    "set_memory_budget",
    "shard",
    "slow_paths",
]


def __getattr__(name: str) -> type:
    """`EnergyEstimator`, whose base classes are scikit-learn's: loaded where it is asked for."""
    if name != "EnergyEstimator":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .training.estimator import EnergyEstimator

    return EnergyEstimator
