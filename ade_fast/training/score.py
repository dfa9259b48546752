"""How well players do on held-out points, and when one score is worse than another."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..metrics import LogZ

# About a hundred effective samples.
_KNOWN = 0.1


@dataclass(frozen=True)
class Score:
    """Lower is better: the negative log-likelihood in nats, in the data's units; or MMD^2 of samples.

    standard_error: of value; of MMD^2, half of the scatter between two draws from one distribution.
    density: log Z of f; None: the score is MMD^2.
    values: [n], f at the held-out points; None with MMD^2.
    """

    value: float
    standard_error: float
    density: LogZ | None = None
    values: Tensor | None = None

    @classmethod
    def of_likelihood(cls, values: Tensor, density: LogZ, log_det: float) -> Score:
        """From f at the held-out points [n] and log Z, where log_det is of the data's units to f's coordinates."""
        value = density.log_z - values.mean().item() - log_det
        return cls(value, math.hypot(_standard_error(values), density.standard_error), density, values)

    @property
    def is_known(self) -> bool:
        """Whether the weights tell log Z: from too few effective samples it comes out too low, and f too good."""
        return self.density is None or self.density.standard_error <= _KNOWN

    def is_lower_than(self, other: Score) -> bool:
        return self.value < other.value if self.is_known == other.is_known else self.is_known

    def is_worse_than(self, other: Score) -> bool:
        """By more than a standard error: else it is a tie.

        Of likelihoods, the error of their difference counts: the points, the same for both, scatter far more.
        """
        if self.is_known != other.is_known:
            return other.is_known
        error = self.standard_error
        if self.values is not None and other.values is not None:
            errors = [score.density.standard_error for score in (self, other) if score.density is not None]
            error = math.hypot(_standard_error(self.values - other.values), *errors)
        return self.value > other.value + error

    def entry(self) -> dict[str, float]:
        """As part of a run's history."""
        return {"mmd2": self.value} if self.density is None else {"nll": self.value, "ess": self.density.ess}

    def state_dict(self) -> dict[str, Any]:
        return {**vars(self), "density": None if self.density is None else list(self.density)}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Score:
        density = state["density"]
        return cls(**{**state, "density": None if density is None else LogZ(*density)})


def _standard_error(values: Tensor) -> float:
    """Of the mean of independent values [n]."""
    return (values.double().std() / math.sqrt(len(values))).item()
