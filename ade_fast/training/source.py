"""What a run learns from, and the coordinates it learns in: batches, the validation points, the test points."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data import Standardizer, toy
from .image_source import ImageSource, ImageSpace

# A toy set's mean and standard deviation come from so many points of one fixed seed: the same in every run.
_STATISTICS_POINTS, _STATISTICS_SEED = 100_000, 0


@dataclass(frozen=True)
class Space:
    """The coordinates z that the players live in.

    standardizer: x in the data's units <-> z. range: an interval that holds each coordinate of z.
    """

    standardizer: Standardizer
    range: tuple[float, float]

    @classmethod
    def of(cls, points: Tensor, extent: Tensor, *, standardise: bool) -> Space:
        """From points [n, d] whose mean and standard deviation are taken out, and rows whose range counts; float64."""
        standardizer = Standardizer.of(points) if standardise else Standardizer.identity(points.shape[1])
        extent = standardizer(extent)
        return cls(standardizer, (extent.min().item(), extent.max().item()))

    @property
    def event(self) -> tuple[int, ...]:
        """Shape of one point."""
        return tuple(self.standardizer.mean.shape)

    @property
    def log_det(self) -> float:
        """log|dz/dx|: what log p(x) has more than log p(z)."""
        return self.standardizer.log_det

    def to_z(self, x: Tensor) -> Tensor:
        """[n, d] in the data's units -> z, float32, on x's device."""
        return self.standardizer(x.cpu().double()).float().to(x.device)

    def to_data(self, z: Tensor) -> Tensor:
        """z [n, d] -> the data's units, float32, on z's device."""
        return self.standardizer.inverse(z.cpu().double()).float().to(z.device)

    def state_dict(self) -> dict[str, Any]:
        return {**self.standardizer.state_dict(), "range": list(self.range)}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Space:
        return cls(Standardizer(state["mean"], state["std"]), tuple(state["range"]))


class ToySource:
    """A two-dimensional set: fresh points for everything.

    Attributes:
        space: the coordinates that all points are in.
        endless: whether no point is seen twice.
        log_prob: the true log-density, [n, d] -> [n] in the data's units, or None.
        entropy, entropy_exact: the data's own in nats, where there is a density, and whether it is a closed form.
        fingerprint: what runs on the same data have in common; None: the settings say it all.
    """

    endless = True
    fingerprint: str | None = None

    def __init__(self, name: str, *, standardise: bool):
        self._toy = toy(name)
        generator = torch.Generator().manual_seed(_STATISTICS_SEED)
        points = self._toy.sample(_STATISTICS_POINTS, generator, dtype=torch.float64)
        low, high = self._toy.range
        corners = torch.tensor([[low] * 2, [high] * 2], dtype=torch.float64)
        self.space = Space.of(points, corners, standardise=standardise)
        known = self._toy.has_density
        self.log_prob = self._toy.log_prob if known else None
        found = self._toy.entropy() if known else None
        self.entropy: float | None = None if found is None else found[0]
        self.entropy_exact: bool | None = None if found is None else found[2]

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n points to train on, in z: [n, d]."""
        return self.space.to_z(self._toy.sample(n, generator))

    def validation(self, n: int, generator: torch.Generator) -> Tensor:
        """n points to choose by, in z."""
        return self.draw(n, generator)

    def test(self, n: int, generator: torch.Generator) -> Tensor:
        """n points to score the result on, in z."""
        return self.draw(n, generator)


class TableSource:
    """Rows: some to train on, again and again, some to choose by, and some to score the result on.

    Attributes: as of `ToySource`.

    Args:
        train, validation, test: [n, d], float64, in the data's units; test may be empty: then the result is scored on
            the validation rows.
        standardise: whether z has the training rows' mean and standard deviation taken out.
    """

    endless = False
    log_prob = entropy = entropy_exact = None

    def __init__(self, train: Tensor, validation: Tensor, test: Tensor, *, standardise: bool):
        self.space = Space.of(train, train, standardise=standardise)
        self._train, self._validation, self._test = map(self.space.to_z, (train, validation, test))
        self.fingerprint = _fingerprint(train, validation, test)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n of the training rows, at random with replacement."""
        return self._train[torch.randint(len(self._train), (n,), generator=generator)]

    def validation(self, n: int, generator: torch.Generator) -> Tensor:
        """All rows to choose by, however many are asked for."""
        return self._validation

    def test(self, n: int, generator: torch.Generator) -> Tensor:
        """All rows to score the result on."""
        return self._test if len(self._test) else self._validation


Source = ToySource | TableSource | ImageSource
AnySpace = Space | ImageSpace


def space_of(state: dict[str, Any]) -> AnySpace:
    """The space whose ``state_dict`` this is."""
    return (ImageSpace if "image" in state else Space).from_state_dict(state)


def _fingerprint(*tables: Tensor) -> str:
    digest = hashlib.sha256()
    for table in tables:
        digest.update(repr(tuple(table.shape)).encode())
        digest.update(table.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
