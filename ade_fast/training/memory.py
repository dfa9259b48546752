"""Whether a run fits into memory, asked before it begins: the system kills a process that finds out later."""

from __future__ import annotations

import itertools
import os

import torch

from .config import Config, ConfigError

# Bytes per pair of points of an MMD² test: float64 distances, kernel and what they are made from, measured at the peak.
_PER_PAIR = 5 * 8
# Copies of every weight: itself, its gradient, Adam's two, the average, the chosen one, and the checkpoint's.
_PER_WEIGHT = 8 * 4
# Of one update, per sample and unit of f, at the peak; kept products come on top, where there is room.
_PER_ACTIVATION = 16 * 4


def total(device: torch.device) -> int:
    """Bytes of memory of a device, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check(config: Config, device: torch.device) -> None:
    """Refuses settings that cannot fit, by a rough estimate from below.

    Raises:
        ConfigError: naming the setting.
    """
    widths = config.hidden
    available = total(device)
    needed = {
        "hidden": _PER_WEIGHT * sum(a * b for a, b in itertools.pairwise(widths)),
        "batch_size": _PER_ACTIVATION * config.batch_size * sum(widths),
        "validation_samples": _PER_PAIR * (2 * config.validation_samples) ** 2,
        "test_samples": _PER_PAIR * (2 * config.test_samples) ** 2,
    }
    for name, wanted in needed.items():
        if wanted > available:
            value = getattr(config, name)
            raise ConfigError(
                f"configuration: {name} must fit into the {available / 1e9:.0f} GB of memory of "
                f"{'this machine' if device.type == 'cpu' else device}, got {value}, which takes {wanted / 1e9:.0f} GB"
            )


def ran_out(error: BaseException) -> bool:
    """Whether an error is Python's or torch's way to say that there is no memory left."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    said = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in said)
