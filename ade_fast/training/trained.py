"""A finished (or interrupted) run, opened for use from Python or from ``ade-fast sample``."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..dynamics import NonFiniteError
from . import memory
from ._arguments import SEEDS, integer
from .build import build_players, resolve_device
from .checkpoint import CheckpointError, check_finite, load_checkpoint, understanding
from .config import Config
from .density import Density
from .directory import CHECKPOINT
from .sampler import DualSampler
from .score import Score
from .source import Space

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
    space: Space
    density: Density | None

    @property
    def log_z(self) -> float:
        return self._known().log_z

    @property
    def log_z_standard_error(self) -> float:
        return self._known().log_z_standard_error

    @property
    def ess(self) -> float:
        return self._known().ess

    def log_prob(self, x) -> Tensor:
        """log p_f(x), normalised, in the data's units: [B, *event] -> [B]."""
        density, standardizer = self._known(), self.space.standardizer
        z = standardizer.transform(torch.as_tensor(x))
        return self.potential(z).reshape(-1).double() - density.log_z + standardizer.log_det

    def score(self, x) -> float:
        """The mean of `log_prob`."""
        return self.log_prob(x).mean().item()

    def _known(self) -> Density:
        if self.density is None:
            raise ValueError("this model has no density")
        return self.density

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """n samples [n, *event], float32 on the CPU, the same for the same seed; drawn piece by piece.

        Raises:
            ValueError: n is negative, or more than memory holds; the seed is not one.
            NonFiniteError: a sample is not finite.
        """
        event = tuple(self.sampler.initial.event)
        # Room for the samples, and for a copy of them in the file's format.
        most = memory.total(torch.device("cpu")) // (2 * 4 * math.prod(event))
        n = integer("sample", "n", n, low=0, high=most)
        seed = integer("sample", "seed", seed, low=0, high=SEEDS - 1)
        generator = torch.Generator().manual_seed(seed)
        samples = torch.empty((n, *event), dtype=torch.float32)
        with torch.no_grad():
            for start in range(0, n, _CHUNK):
                count = min(_CHUNK, n - start)
                samples[start : start + count] = self.space.standardizer.inverse(
                    self.sampler.sample(self.potential, count, generator).x
                )
        bad = n - int(torch.isfinite(samples).flatten(1).all(1).sum())
        if bad:
            raise NonFiniteError(f"sample: {bad} of {n} samples are not finite: training had diverged; train again")
        return samples


def load(directory: str | Path, device: str | torch.device = "cpu") -> TrainedModel:
    """Opens the run in a directory written by ``ade-fast train`` or :func:`train`.

    Raises:
        CheckpointError: there is no checkpoint, or it cannot be read.
        ConfigError: there is no such device.
    """
    directory = Path(directory)
    path = directory / CHECKPOINT
    device = resolve_device(device)
    if not os.path.isdir(directory):
        raise CheckpointError(f"load: {directory} is not a directory; give the --out of a run")
    state = load_checkpoint(path)
    with understanding(path):
        config = Config.from_dict({**state["config"], "device": "cpu"})
        space = Space.from_state_dict(state["space"])
        potential, sampler = build_players(config, space)
        best = state["best"]
        for module, weights in ((potential, best["potential"]), (sampler, best["sampler"])):
            check_finite(weights)
            module.load_state_dict(weights)
            module.eval().requires_grad_(False)
        model = TrainedModel(
            potential,
            sampler,
            dataclasses.replace(config, device=state["config"]["device"]),
            best["update"],
            space,
            Score.from_state_dict(best["score"]).density,
        )
    potential.to(device)
    sampler.to(device)
    return model
