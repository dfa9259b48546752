"""Early signs that a run has left the road: a runaway potential, samples that collapse or fly off."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .objective import ADVICE

# Samples whose spread is this fraction, or this multiple, of the data's are not on their way to the data.
COLLAPSED, FLOWN = 0.02, 50.0
# A single bad batch is none of our business.
_PATIENCE = 10


class DivergenceError(RuntimeError):
    """Training goes nowhere; the message says how that was seen and what to change."""


class Watch:
    """Looks at every update's metrics and at every validation's samples; raises ``DivergenceError``.

    It keeps no state that a run depends on: a resumed run only begins to count anew.

    Args:
        data: [n, *event], what the samples are compared with.
        max_gap: limit of |E f(data) - E f(samples)|.
    """

    def __init__(self, data: Tensor, max_gap: float):
        self._spread = _spread(data)
        self._max_gap = max_gap
        self._beyond = 0

    @property
    def calm(self) -> bool:
        """Whether nothing was wrong at the latest update: what is wrong now is not to be anyone's last good state."""
        return self._beyond == 0

    def metrics(self, update: int, metrics: Mapping[str, float]) -> None:
        """A potential that tells data from samples ever better: the sampler has lost it."""
        gap = metrics["f_data"] - metrics["f_samples"]
        self._beyond = self._beyond + 1 if not abs(gap) <= self._max_gap else 0
        if self._beyond >= _PATIENCE:
            raise DivergenceError(
                f"training diverged at update {update}: f runs away, E f(data) - E f(samples) = {gap:.3g}, beyond "
                f"max_gap {self._max_gap:g} for {_PATIENCE} updates; {ADVICE}"
            )

    def samples(self, update: int, samples: Tensor) -> None:
        """Samples [n, *event] of the averaged players."""
        if not bool(torch.isfinite(samples).all()):
            raise DivergenceError(f"training diverged at update {update}: samples are not finite; {ADVICE}")
        if update == 0:  # whatever q^0 is, nothing has been learned yet
            return
        ratio = _spread(samples) / self._spread
        if not COLLAPSED <= ratio <= FLOWN:
            what = "have collapsed" if ratio < COLLAPSED else "fly apart"
            raise DivergenceError(
                f"training diverged at update {update}: samples {what}, their spread is {ratio:.2g} of the data's; "
                f"{ADVICE}"
            )


def _spread(points: Tensor) -> float:
    """Root mean square distance from the mean."""
    rows = points.detach().flatten(1).double()
    return (rows - rows.mean(0)).square().sum(1).mean().sqrt().item()
