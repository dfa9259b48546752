"""What a run learns from, and the coordinates it learns in: batches, the validation points, the test points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data import Toy, toy

# A toy set's mean and standard deviation come from so many points of one fixed seed: the same in every run.
_STATISTICS_POINTS, _STATISTICS_SEED = 100_000, 0


class Standardizer:
    def __init__(self, mean: Tensor, std: Tensor):
        self.mean, self.std = mean, std

    @property
    def log_det(self) -> float:
        return -self.std.log().sum().item()

    def transform(self, x):
        return ((x.double() - self.mean.to(x.device)) / self.std.to(x.device)).float()

    def inverse(self, z):
        return (z.double() * self.std.to(z.device) + self.mean.to(z.device)).float()


@dataclass(frozen=True)
class Space:
    """The coordinates z that the players live in.

    event: shape of one point. standardizer: x <-> z. range: an interval that holds each coordinate of z.
    """

    event: tuple[int, ...]
    standardizer: Standardizer
    range: tuple[float, float]

    def state_dict(self) -> dict[str, Any]:
        mean, std = self.standardizer.mean, self.standardizer.std
        return {"event": list(self.event), "mean": mean, "std": std, "range": list(self.range)}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Space:
        return cls(tuple(state["event"]), Standardizer(state["mean"], state["std"]), tuple(state["range"]))


class ToySource:
    """A two-dimensional set: fresh points for everything."""

    def __init__(self, name: str, *, standardise: bool):
        self.toy: Toy = toy(name)
        generator = torch.Generator().manual_seed(_STATISTICS_SEED)
        points = self.toy.sample(_STATISTICS_POINTS, generator, dtype=torch.float64)
        mean, std = points.mean(0), points.std(0)
        if not standardise:
            mean, std = torch.zeros_like(mean), torch.ones_like(std)
        low, high = self.toy.range
        range_ = ((low - mean) / std).min().item(), ((high - mean) / std).max().item()
        self.space = Space(self.toy.event, Standardizer(mean, std), range_)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n points in z, [n, *event]."""
        return self.space.standardizer.transform(self.toy.sample(n, generator))
