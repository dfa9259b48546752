"""The recipe for images, and which settings images take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data import TOY_NAMES
from .errors import ConfigError

if TYPE_CHECKING:
    from .config import Config

# Langevin chains that persist, at a noise far below what the step size asks for (a temperature of noise_std^2 /
# step_size), of a convolutional f. momentum_weight 0: with one momentum a step and noise this small the kinetic terms
# of (9) are hundreds of times f's, and f learns to make the steps overshoot instead of the images.
RECIPE: dict[str, Any] = {
    "batch_size": 64,
    "standardise": False,
    "data_noise": 0.03,
    "network": "conv",
    "hidden": (32, 48, 48, 96, 96),
    "base_std": None,
    "initial": "replay",
    "reinit": 0.01,
    "dynamics": "langevin",
    "n_steps": 15,
    "step_size": 0.2,
    "step_size_per": "all",
    "noise_std": 0.02,
    "learn_step_size": False,
    "grad_clip": None,
    "momentum_clip": None,
    "gradient": "truncated",
    "bound": "elbo",
    "sampler_bound": "elbo",
    "momentum_weight": 0.0,
    "updates": 2500,
    "potential_lr": 1e-3,
    "lr_decay_from": 0.5,
    "validate_by": "mmd2",
    "max_gap": 1000.0,
    "pictures_every": 500,
}

TABLE_SUFFIXES = (".npy", ".npz", ".csv", ".tsv", ".txt", ".pt")
"""Of files that hold a table."""

_DYNAMICS = ("leapfrog", "damped", "langevin")
_WIDTHS = 5


def check(config: Config) -> None:
    """Refuses what images cannot take.

    Raises:
        ConfigError: naming the setting.
    """
    if config.data in TOY_NAMES or Path(config.data).suffix.lower() in TABLE_SUFFIXES:
        raise ConfigError(f"configuration: network must be mlp where data are no images, got {config.network}")
    wanted = {
        "network": ("conv", "residual"),
        "initial": ("replay", "gaussian"),
        "dynamics": _DYNAMICS,
        "objective": ("ade",),
        "bound": ("elbo",),
        "sampler_bound": ("elbo",),
        "standardise": (False,),
    }
    for name, allowed in wanted.items():
        value = getattr(config, name)
        if value not in allowed:
            names = " or ".join(map(str, allowed))
            raise ConfigError(f"configuration: {name} must be {names} where data are images, got {value}")
    if config.network == "conv" and len(config.hidden) != _WIDTHS:
        raise ConfigError(
            f"configuration: hidden must be the channels of {_WIDTHS} convolutions where network is conv, got "
            f"{','.join(map(str, config.hidden))}"
        )
