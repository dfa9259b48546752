"""Training: the dual sampler, the objective, and the loop that turns a configuration into a trained model."""

from .checkpoint import CheckpointError
from .config import Config, ConfigError
from .divergence import DivergenceError
from .ema import EMA
from .files import BusyError
from .loop import train
from .objective import ADE
from .sampler import DualSample, DualSampler, MetropolisSamples, Resampled
from .summary import Summary
from .trained import TrainedModel, load
from .trainer import Trainer

__all__ = [
    "ADE",
    "EMA",
    "BusyError",
    "CheckpointError",
    "Config",
    "ConfigError",
    "DivergenceError",
    "DualSample",
    "DualSampler",
    "MetropolisSamples",
    "Resampled",
    "Summary",
    "TrainedModel",
    "Trainer",
    "load",
    "train",
]
