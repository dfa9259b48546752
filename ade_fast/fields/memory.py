"""How many bytes the backward pass may hold, how many an evaluation's graph would take, and the operators' pool."""

from __future__ import annotations

import functools
import os

import torch

from .._integers import as_integer
from .._ops import pool_bytes, release_pool

_budget: int | None = None


def set_memory_budget(n_bytes: int | None) -> None:
    """Bytes that ``memory="auto"`` may keep per unroll for the backward pass; None restores the default.

    Default: a quarter of the device's memory (of the machine's, for the CPU).

    Raises: ValueError: n_bytes is neither None nor a whole number >= 0.
    """
    global _budget
    try:
        budget = None if n_bytes is None else as_integer(n_bytes)
    except TypeError:
        budget = -1
    if budget is not None and budget < 0:
        raise ValueError(f"set_memory_budget: n_bytes must be a non-negative integer or None, got {n_bytes!r}")
    _budget = budget


def memory_budget(device: torch.device) -> int:
    """The present budget on `device`, in bytes."""
    if _budget is not None:
        return _budget
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory // 4
    return _host_memory() // 4


def memory_setting() -> int | None:
    """What `set_memory_budget` was given last."""
    return _budget


@functools.cache
def _host_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory_in_use() -> int:
    """Bytes of CPU memory that the operators hold: what unrolls keep for their backward pass, and workspaces.

    They come from a pool of the package's own, which torch's profiler does not see.
    """
    return pool_bytes()[0]


def release_memory() -> None:
    """Gives the operators' unused CPU memory back to the operating system.

    Freed blocks wait for the next call, which usually asks for the same sizes: up to a sixteenth of the machine's
    memory. (On CUDA there is torch's own pool: `torch.cuda.empty_cache`.)
    """
    release_pool()
