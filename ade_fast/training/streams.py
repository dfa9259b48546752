"""Random numbers: one stream for each purpose, so that how often one is used never shifts another."""

from __future__ import annotations

import hashlib

import torch


def stream(seed: int, purpose: str) -> torch.Generator:
    """A new source of randomness, the same whenever it is asked for; on the CPU, wherever a run is."""
    digest = hashlib.sha256(f"{seed} {purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
