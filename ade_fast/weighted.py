"""Draws of the dual sampler with their importance weights, in chunks: what log Z and samples of p_f are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .dynamics import NonFiniteError
from .fields import pinned
from .potentials._checks import per_sample
from .potentials.conditioned import Condition, conditioned, first_length
from .weights import as_momentum_weight, default_momentum_weight, log_weights, warn_of_thin_sheet, why_no_weights

if TYPE_CHECKING:
    from .training.sampler import DualSampler

# At most so many elements of x, and so many rows, at a time: 64 MiB for each hidden layer of 1,000 units in float64.
_CHUNK_ELEMENTS = 1 << 18
_CHUNK_ROWS = 8192


def chunk_rows(event: tuple[int, ...]) -> int:
    """How many samples to evaluate at a time."""
    return max(1, min(_CHUNK_ROWS, _CHUNK_ELEMENTS // math.prod(event)))


@contextmanager
def evaluating(potential: Callable[..., Tensor]) -> Iterator[None]:
    """Within this block, f is one function (a parametrised weight is computed once), and nothing is differentiated."""
    with torch.no_grad(), pinned(potential):
        yield


def evaluate(layer: str, potential: Callable[..., Tensor], x: Tensor) -> Tensor:
    """f(x) in chunks, [n, *event] -> [n] float64; inside `evaluating`.

    Raises: ValueError for an output of another shape; NonFiniteError for a NaN or +inf.
    """
    parts = [per_sample(layer, "potential", potential(part), len(part)) for part in x.split(chunk_rows(x.shape[1:]))]
    values = torch.cat(parts).double()
    _check_below_infinity(layer, "f", values)
    return values


def at_one_condition(
    layer: str, potential: Callable[..., Tensor], condition: Condition | None
) -> Callable[..., Tensor]:
    """f at a condition of one row: every condition has a density and a log Z of its own."""
    if (rows := first_length(condition)) not in (None, 1):
        raise ValueError(f"{layer}: condition must be one row, [1, ...], whose density this is, got {rows} rows")
    return conditioned(layer, potential, condition)


class WeightedSampler:
    """A dual sampler and a potential as a source of weighted samples of p_f.

    Args:
        layer: who asks, for error messages.
        potential: f, [B, *event] -> [B] or [B, 1].
        sampler: the `ade.DualSampler`.
        momentum_weight: lambda, a number, or [T] where the dynamics draws its own momenta; None: as in `ade.ADE`.

    Attributes:
        rows: how many samples are drawn at a time.

    Raises: TypeError, ValueError where there are no weights: no density, a clip, lambda = 0.
    """

    def __init__(
        self, layer: str, potential: Callable[..., Tensor], sampler: DualSampler, momentum_weight: float | Tensor | None
    ) -> None:
        if not callable(potential):
            raise TypeError(f"{layer}: potential must be callable, [B, *event] -> [B], got {type(potential).__name__}")
        if not all(hasattr(sampler, name) for name in ("initial", "dynamics", "draws_own_momenta", "has_momentum")):
            raise TypeError(f"{layer}: sampler must be an ade.DualSampler, got {type(sampler).__name__}")
        self._layer, self._potential, self._sampler = layer, potential, sampler
        weight = default_momentum_weight(sampler) if momentum_weight is None else momentum_weight
        self._momentum_weight = as_momentum_weight(layer, weight)
        self.rows = chunk_rows(tuple(sampler.initial.event))
        if (why := why_no_weights(sampler, self._momentum_weight)) is not None:
            raise ValueError(f"{layer}: samples of this sampler have no weights: {why}")
        warn_of_thin_sheet(layer, sampler)

    def chunks(
        self, n: int, generator: torch.Generator | None = None, context: tuple[Tensor, ...] | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(x [b, *event], log w [b] float64) until there are n, with E[w] = Z_x; inside `evaluating`.

        Raises: ValueError if the initial distribution has no density; NonFiniteError for a weight that is NaN or
            infinite. A weight may be 0.
        """
        own = self._sampler.draws_own_momenta()
        for start in range(0, n, self.rows):
            sample = self._sampler.sample(self._potential, min(self.rows, n - start), generator, context)
            if sample.log_q0 is None:
                raise ValueError(f"{self._layer}: samples of this sampler have no weights: initial has no density")
            values = per_sample(self._layer, "potential", self._potential(sample.x), len(sample.x))
            weight = self._momentum_weight.to(values.device)
            log_w = log_weights(self._layer, values, sample.v, sample.log_q, weight, per_step=own)
            _check_below_infinity(self._layer, "log w", log_w)
            yield sample.x, log_w


def _check_below_infinity(layer: str, what: str, values: Tensor) -> None:
    wrong = ~(values < math.inf)  # NaN too
    if bool(wrong.any()):
        raise NonFiniteError(
            f"{layer}: {what} is NaN or infinite for {int(wrong.sum())} of {len(values)} samples (a potential that "
            "overflows, or an unroll that flies apart: smaller step sizes, grad_clip, momentum_clip)"
        )
