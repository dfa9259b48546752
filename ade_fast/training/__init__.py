"""Training: the dual sampler, the objective, and the loop that turns a configuration into a trained model."""

from .checkpoint import CheckpointError
from .config import Config, ConfigError
from .ema import EMA
from .loop import Summary, Trainer, train
from .objective import ADE
from .sampler import DualSample, DualSampler
from .trained import TrainedModel, load

__all__ = [
    "ADE",
    "EMA",
    "CheckpointError",
    "Config",
    "ConfigError",
    "DualSample",
    "DualSampler",
    "Summary",
    "TrainedModel",
    "Trainer",
    "load",
    "train",
]
