"""How well players do on held-out points, and when one score is worse than another."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .density import Density


@dataclass(frozen=True)
class Score:
    """Lower is better: the negative log-likelihood in nats, in the data's units; or MMD^2 of samples.

    standard_error: of value; of MMD^2, half of the scatter between two draws from one distribution.
    density: log Z of f; None: the score is MMD^2.
    values: [n], f at the held-out points; None with MMD^2.
    """

    value: float
    standard_error: float
    density: Density | None = None
    values: Tensor | None = None

    @classmethod
    def of_likelihood(cls, values: Tensor, density: Density, log_det: float) -> Score:
        """From f at the held-out points [n] and log Z, where log_det is of the data's units to f's coordinates."""
        value = density.log_z - values.mean().item() - log_det
        return cls(value, math.hypot(_standard_error(values), density.log_z_standard_error), density, values)

    def is_worse_than(self, other: Score) -> bool:
        """By more than a standard error: else it is a tie.

        Of likelihoods, the error of their difference counts: the points, the same for both, scatter far more.
        """
        error = self.standard_error
        if self.values is not None:
            errors = (score.density.log_z_standard_error for score in (self, other))
            error = math.hypot(_standard_error(self.values - other.values), *errors)
        return self.value > other.value + error

    def metrics(self) -> dict[str, float]:
        """As columns of the metrics."""
        if self.density is None:
            return {"validation_mmd2": self.value}
        return {"validation_nll": self.value, "validation_ess": self.density.ess}

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Score:
        density = state["density"]
        return cls(**{**state, "density": None if density is None else Density(**density)})


def _standard_error(values: Tensor) -> float:
    """Of the mean of independent values [n]."""
    return (values.double().std() / math.sqrt(len(values))).item()


@torch.no_grad()
def values_at(potential, points: Tensor) -> Tensor:
    """f at points [n, *event], [n] in float64."""
    return potential(points).reshape(-1).double()
