"""The rows of a table in training: split once, then drawn from like a distribution."""

from __future__ import annotations

import itertools
import numbers
from typing import NamedTuple

import torch
from torch import Tensor

from .._integers import as_integer
from .tables import DataError


class Split(NamedTuple):
    """Three tables (n_i, d) that share no row; a part that was not asked for has no rows."""

    train: Tensor
    validation: Tensor
    test: Tensor


_MOST = 0.9  # of the rows may be held out
_LEAST = 2  # rows in each part: below that there is no spread, and no standard error


def split(X: Tensor, validation: float = 0.1, test: float = 0.0, *, generator: torch.Generator | None = None) -> Split:
    """Rows dealt out at random: ``validation`` and ``test`` are fractions of them, the rest is for training.

    Args:
        X: ``(n, d)``.
        validation, test: fractions in [0, 0.9], together at most 0.9; a part above 0 gets at least two rows.
        generator: a CPU generator; without one the split of n rows is the same every time.

    Returns:
        Copies of the rows, in random order.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range.
        DataError: there are too few rows; the message says how many are needed.
    """
    if not isinstance(X, Tensor) or X.dim() != 2:
        got = tuple(X.shape) if isinstance(X, Tensor) else type(X).__name__
        raise ValueError(f"data.split: X must be a tensor (n, d), got {got}")
    for name, fraction in (("validation", validation), ("test", test)):
        if isinstance(fraction, bool) or not isinstance(fraction, numbers.Real) or not 0 <= fraction <= _MOST:
            raise ValueError(f"data.split: {name} must be a fraction in [0, {_MOST}], got {fraction!r}")
    if validation + test > _MOST + 1e-12:  # 0.6 + 0.3 is no more than 0.9
        raise ValueError(f"data.split: validation + test must be at most {_MOST}, got {validation} + {test}")
    n = len(X)
    held_out = _counts(n, validation, test)
    if n - sum(held_out) < _LEAST:
        # By trial, as the counts are rounded; soon found, as a tenth of the rows is for training.
        needed = next(m for m in itertools.count(n + 1) if m - sum(_counts(m, validation, test)) >= _LEAST)
        raise DataError(
            f"data.split: validation={validation} and test={test} with at least {_LEAST} rows in each part "
            f"need {needed} rows, got {n}"
        )
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    rows = X[torch.randperm(n, generator=generator).to(X.device)]
    return Split(*rows.split((n - sum(held_out), *held_out)))


def _counts(n: int, *fractions: float) -> tuple[int, ...]:
    return tuple(max(_LEAST, round(fraction * n)) if fraction > 0 else 0 for fraction in fractions)


class Table:
    """Given rows to draw from, with the interface of a :class:`Toy`: the empirical distribution.

    Attributes:
        name: what it is called in titles.
        rows: ``(n, d)``, kept by reference.
        event: ``(d,)``.
        range: ``(lo, hi)``, the smallest and the largest coordinate of all rows.
        has_density: False.

    Args:
        rows: ``(n, d)``, floating point, n at least 1.
        name: see above.

    Raises:
        TypeError, ValueError: ``rows`` is no such tensor.
    """

    has_density = False

    def __init__(self, rows: Tensor, name: str = "table") -> None:
        if not isinstance(rows, Tensor) or not rows.is_floating_point():
            got = rows.dtype if isinstance(rows, Tensor) else type(rows).__name__
            raise TypeError(f"data.Table: rows must be a floating-point tensor, got {got}")
        if rows.dim() != 2 or 0 in rows.shape:
            raise ValueError(f"data.Table: rows must be (n, d) with n and d at least 1, got {tuple(rows.shape)}")
        self.name = name
        self.rows = rows.detach()
        self.event = (rows.shape[1],)
        self.range = (self.rows.min().item(), self.rows.max().item())

    def __len__(self) -> int:
        return len(self.rows)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``n`` rows drawn independently, with replacement: ``(n, d)``, of the table's dtype, on its device.

        Args:
            n: how many, of any integer type; 0 is allowed.
            generator: a CPU generator (torch's default one unless given), so that the draw is the same on any device.
        """
        n = self._count("sample", n)
        return self.rows[torch.randint(len(self), (n,), generator=generator).to(self.rows.device)]

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """``n`` different rows ``(n, d)`` in random order, or all where there are no more: for held-out rows."""
        n = self._count("draw", n)
        return self.rows[torch.randperm(len(self), generator=generator)[:n].to(self.rows.device)]

    def _count(self, method: str, n: int) -> int:
        try:
            n = as_integer(n)
        except TypeError:
            raise TypeError(f"data.Table.{method}: n must be an int, got {type(n).__name__}") from None
        if n < 0:
            raise ValueError(f"data.Table.{method}: n must be at least 0, got {n}")
        return n

    def __repr__(self) -> str:
        return f"Table({self.name!r}, rows={len(self)}, event={self.event})"
