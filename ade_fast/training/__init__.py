"""Training: the dual sampler, the objective, and the loop that turns a configuration into a trained model."""

from .callbacks import Callback, Progress
from .checkpoint import CheckpointError
from .config import Config, ConfigError
from .divergence import DivergenceError
from .ema import EMA
from .evaluation import Evaluation
from .files import BusyError
from .fit import fit
from .loop import train
from .objective import ADE
from .recipe import recipe
from .sampler import DualSample, DualSampler, MetropolisSamples, Resampled
from .saved import restore, save
from .sharding import shard
from .summary import Summary
from .trained import NoDensityError, TrainedModel, load
from .trainer import Trainer

__all__ = [
    "ADE",
    "EMA",
    "BusyError",
    "Callback",
    "CheckpointError",
    "Config",
    "ConfigError",
    "DivergenceError",
    "DualSample",
    "DualSampler",
    "Evaluation",
    "MetropolisSamples",
    "NoDensityError",
    "Progress",
    "Resampled",
    "Summary",
    "TrainedModel",
    "Trainer",
    "fit",
    "load",
    "recipe",
    "restore",
    "save",
    "shard",
    "train",
]
