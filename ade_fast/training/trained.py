"""A finished (or interrupted) run, opened for use from Python or from ``ade-fast sample``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .build import build_players
from .checkpoint import CheckpointError, load_checkpoint
from .config import Config
from .sampler import DualSampler
from .summary import CHECKPOINT

_CHUNK = 10_000


@dataclass(frozen=True)
class TrainedModel:
    """The players that did best on the validation draw.

    Attributes:
        potential: f, [B, *event] -> [B], unnormalised log-density.
        sampler: the dual sampler; ``sampler.sample(potential, n)`` is differentiable.
        config: the settings of the run.
        update: the update at which the players were taken.
    """

    potential: nn.Module
    sampler: DualSampler
    config: Config
    update: int

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """n samples [n, *event], float32 on the CPU, the same for the same seed; drawn piece by piece."""
        if isinstance(n, bool) or not isinstance(n, int) or n < 0:
            raise ValueError(f"sample: n must be an integer >= 0, got {n!r}")
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ValueError(f"sample: seed must be an integer >= 0, got {seed!r}")
        generator = torch.Generator().manual_seed(seed)
        samples = torch.empty((n, *self.sampler.initial.event), dtype=torch.float32)
        with torch.no_grad():
            for start in range(0, n, _CHUNK):
                count = min(_CHUNK, n - start)
                samples[start : start + count] = self.sampler.sample(self.potential, count, generator).x
        return samples


def load(directory: str | Path, device: str | torch.device = "cpu") -> TrainedModel:
    """Opens the run in a directory written by ``ade-fast train`` or :func:`train`.

    Raises:
        CheckpointError: there is no checkpoint, or it cannot be read.
    """
    directory = Path(directory)
    path = directory / CHECKPOINT
    if not directory.is_dir():
        raise CheckpointError(f"load: {directory} is not a directory; give the --out of a run")
    state = load_checkpoint(path)
    config = Config.from_dict({**state["config"], "device": "cpu"})
    potential, sampler = build_players(config)
    potential.load_state_dict(state["best"]["potential"])
    sampler.load_state_dict(state["best"]["sampler"])
    for module in (potential, sampler):
        module.eval().requires_grad_(False).to(device)
    return TrainedModel(potential, sampler, Config.from_dict(state["config"]), state["best"]["update"])
