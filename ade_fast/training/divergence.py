"""Early signs that a run has left the road: a runaway potential, samples that collapse or fly off."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

ADVICE = (
    "lower the learning rates (the potential's first), clip the gradients (grad_norm_clip=1), clip the "
    "dynamics (grad_clip, momentum_clip), or keep f small (value_penalty, gradient_penalty)"
)

# Samples whose spread is this fraction, or this multiple, of the data's are not on their way to the data.
COLLAPSED, FLOWN = 0.02, 50.0
# A single bad batch is none of our business.
_PATIENCE = 10
# Below this effective sample size, on average, the weights say little about log Z: seen after so many updates, once.
FEW, _SETTLED = 0.03, 500
# Step sizes below this fraction of what they were move nothing any more.
VANISHED = 1e-3


class DivergenceError(RuntimeError):
    """Training goes nowhere; the message says how that was seen and what to change."""


class Watch:
    """Looks at every update's metrics and at every validation's samples; raises ``DivergenceError``, or warns.

    It keeps no state that a run depends on: a resumed run only begins to count anew.

    Args:
        data: [n, *event], what the samples are compared with; None where there are no such comparisons.
        max_gap: limit of |E f(data) - E f(model)|, the latter by the weights, or that of samples.
    """

    def __init__(self, data: Tensor | None, max_gap: float):
        self._spread = None if data is None else _spread(data)
        self._max_gap = max_gap
        self._beyond = 0
        self._ess, self._seen = 0.0, 0
        self._first_step_size: float | None = None
        self._told: set[str] = set()

    @property
    def calm(self) -> bool:
        """Whether nothing was wrong at the latest update: what is wrong now is not to be anyone's last good state."""
        return self._beyond == 0

    def metrics(self, update: int, metrics: Mapping[str, float]) -> None:
        """A potential that tells data from samples ever better: the sampler has lost it."""
        # By the weights where there are any: a raw sample beside a thin ridge says nothing of the model.
        f_model = metrics.get("f_model", metrics["f_samples"])
        gap = metrics["f_data"] - f_model
        self._beyond = self._beyond + 1 if not abs(gap) <= self._max_gap else 0
        if self._beyond >= _PATIENCE:
            raise DivergenceError(
                f"training diverged at update {update}: f runs away, E f(data) - E f(model) = {gap:.3g}, beyond "
                f"max_gap {self._max_gap:g} for {_PATIENCE} updates; {ADVICE}"
            )
        if "ess" in metrics:
            self._watch_weights(metrics["ess"])
        if "step_size" in metrics:
            self._watch_step_size(metrics["step_size"])

    def _watch_weights(self, ess: float) -> None:
        self._seen += 1
        self._ess += 0.01 * (ess - self._ess) if self._seen > 1 else ess
        if self._seen >= _SETTLED and self._ess < FEW:
            self._warn(
                "ess",
                f"the sampler's effective sample size is {100 * self._ess:.1f} % after {self._seen} updates: log Z and "
                f"likelihoods by its weights say little; give it a better q0 (ade.initial.SplineFlow), "
                f"sampler_bound='renyi', or more samples_per_point",
            )

    def _watch_step_size(self, step_size: float) -> None:
        """step_size: the largest magnitude of all."""
        if self._first_step_size is None:
            self._first_step_size = step_size
        if step_size < VANISHED * self._first_step_size:
            self._warn(
                "step size",
                f"the dynamics' step sizes have shrunk to {step_size:.2g}, from {self._first_step_size:.2g}: the steps "
                f"move nothing any more; fix them (learn_step_size=False), let momentum_weight differ from 1, or use "
                f"ade.AnnealedLeapfrog, whose bound gains by its steps",
            )

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._told:
            self._told.add(kind)
            warnings.warn(f"ADE: {message}", UserWarning, stacklevel=4)

    def samples(self, update: int, samples: Tensor) -> None:
        """Samples [n, *event] of the averaged players."""
        if not bool(torch.isfinite(samples).all()):
            raise DivergenceError(f"training diverged at update {update}: samples are not finite; {ADVICE}")
        if update == 0 or self._spread is None:  # whatever q^0 is, nothing has been learned yet
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
