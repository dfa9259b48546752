"""Own data as tables: whatever holds vectors becomes one checked tensor (n, d), or one line that says why not."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset


class DataError(ValueError):
    """Data that nothing can be learnt from; the message is one line and says what was wanted."""


class Names(NamedTuple):
    """What the rows and columns of a table are called in messages: counted from 1 unless their source has names."""

    lines: list[int] | None = None
    columns: list[str] | None = None

    def column(self, j: int) -> str:
        return f"column {j + 1}" + (f" ({self.columns[j]!r})" if self.columns is not None else "")

    def cell(self, i: int, j: int) -> str:
        row = f"row {i + 1}" if self.lines is None else f"line {self.lines[i]}"
        return f"{row}, {self.column(j)}"


_UNNAMED = Names()


def as_table(X: Any, *, columns: int | None = None, varied: bool = True, dtype: torch.dtype = torch.float32) -> Tensor:
    """Vectors from nearly anything that holds them, as one tensor on the CPU.

    Args:
        X: a tensor (of any real dtype, on any device), an array, a list of lists, a data frame (anything with
            ``to_numpy``), a torch ``Dataset`` (of vectors, or of tuples that begin with one) or a ``DataLoader`` of
            these, whose batches are put one after the other.
        columns: how many columns there must be, if that is known.
        varied: refuse fewer than two rows and columns that are constant, from which no density can be learnt; False
            for points at which one is evaluated.
        dtype: torch.float32, or torch.float64 for data whose spread is small beside their size.

    Returns:
        ``(n, d)``, a copy of its own.

    Raises:
        DataError: ``X`` is no table of finite numbers; the message says what and where.
    """
    values, names = _values("data.as_table: X", X)
    return checked("data.as_table: X", values, names, columns=columns, varied=varied, dtype=dtype)


def checked(
    where: str,
    values: np.ndarray | Tensor,
    names: Names = _UNNAMED,
    *,
    columns: int | None = None,
    varied: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """``values`` as a tensor of its own (n, d), once it is a table; errors start with ``where``. See as_table."""
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{where}: dtype must be torch.float32 or torch.float64, got {dtype}")
    values = _real(where, values, names)
    if values.numel() == 0:
        raise DataError(f"{where} is empty, got shape {tuple(values.shape)}")
    if values.dim() != 2:
        hint = ": one column is X[:, None]" if values.dim() == 1 else ""
        raise DataError(f"{where} must be a table of vectors, (n, d) wanted, got shape {tuple(values.shape)}{hint}")
    if columns is not None and values.shape[1] != columns:
        raise DataError(f"{where} must have {columns} columns, got {values.shape[1]}")
    _check_cells(where, ~values.isfinite(), "NaN or infinite", names)
    table = values.to(dtype)
    _check_cells(where, ~table.isfinite(), f"beyond the range of {_short(dtype)}", names)
    if varied:
        if len(table) < 2:
            raise DataError(f"{where} must have at least 2 rows, got 1")
        check_varied(where, table, names)
    return table


def check_varied(where: str, table: Tensor, names: Names = _UNNAMED) -> None:
    """Refuses constant columns of ``table`` (n, d)."""
    constant = (table.amin(dim=0) == table.amax(dim=0)).nonzero()[:, 0].tolist()
    if constant:
        listed = ", ".join(names.column(j) for j in constant[:5]) + (", ..." if len(constant) > 5 else "")
        verb = "is" if len(constant) == 1 else "are"
        raise DataError(
            f"{where}: {listed} {verb} constant in {_short(table.dtype)}, where no density exists: leave it out"
        )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_cells(where: str, bad: Tensor, what: str, names: Names) -> None:
    count = int(bad.sum())
    if count:
        i, j = bad.nonzero()[0].tolist()
        verb = "value is" if count == 1 else "values are"
        raise DataError(f"{where}: {count} {verb} {what}, the first in {names.cell(i, j)}")


def _real(where: str, values: np.ndarray | Tensor, names: Names) -> Tensor:
    """``values`` as a float64 tensor on the CPU that shares nothing with it."""
    if isinstance(values, Tensor):
        if values.layout != torch.strided:
            raise DataError(f"{where} must be dense, got layout {values.layout}")
        if values.dtype == torch.bool or values.is_complex():
            raise DataError(f"{where} must hold real numbers, got {_short(values.dtype)}")
        return values.detach().to("cpu", torch.float64, copy=True)
    if values.dtype == object or values.dtype.kind in "USV":
        raise DataError(f"{where} must hold real numbers, got {_no_number(values, names)}")
    if values.dtype.kind not in "iuf":
        raise DataError(f"{where} must hold real numbers, got {values.dtype.name}")
    if isinstance(values, np.ma.MaskedArray):
        values = np.ma.filled(values.astype(np.float64), np.nan)  # a missing value, and refused as one
    with np.errstate(over="ignore"):  # a longdouble beyond float64 becomes infinite, and is refused as that
        return torch.from_numpy(np.array(values, dtype=np.float64))


def _no_number(values: np.ndarray, names: Names) -> str:
    """What an array of text or of objects holds, by its first entry that is no number."""
    if values.dtype.names is not None:
        return f"records with the fields {', '.join(values.dtype.names)}"
    for index in np.ndindex(values.shape):
        entry = values[index]
        if not isinstance(entry, (int, float, np.integer, np.floating)):
            place = names.cell(*index) if len(index) == 2 else f"entry {index}"
            return f"{_quoted(entry)} in {place}"
    return f"numbers kept as {'Python objects' if values.dtype == object else 'text'}: convert them to floats"


def _quoted(entry: Any) -> str:
    text = repr(str(entry)) if isinstance(entry, str) else f"a {type(entry).__name__}"
    return text if len(text) <= 40 else text[:36] + "...'"


# --- what X may be ---


def _values(where: str, X: Any) -> tuple[np.ndarray | Tensor, Names]:
    if isinstance(X, (Tensor, np.ndarray)):
        return X, _UNNAMED
    if isinstance(X, DataLoader):
        return _stacked(where, (_vector(where, batch) for batch in X), "batch", torch.cat), _UNNAMED
    if isinstance(X, TensorDataset):
        return X.tensors[0], _UNNAMED
    if isinstance(X, Dataset):
        items = (X[i] for i in range(len(X))) if hasattr(X, "__len__") else iter(X)
        return _stacked(where, (_vector(where, item) for item in items), "item", torch.stack), _UNNAMED
    if hasattr(X, "to_numpy"):
        columns = getattr(X, "columns", None)
        return X.to_numpy(), Names(columns=None if columns is None else [str(name) for name in columns])
    if isinstance(X, (list, tuple)):
        return _from_lists(where, X), _UNNAMED
    raise DataError(
        f"{where} must be a tensor, an array, a list of lists, a data frame, a Dataset or a DataLoader, "
        f"got {type(X).__name__}"
    )


def _vector(where: str, item: Any) -> Tensor:
    """The vectors of a Dataset's item or a DataLoader's batch; what comes behind them (labels) is left out."""
    if isinstance(item, (tuple, list)) and item and isinstance(item[0], (Tensor, np.ndarray)):
        item = item[0]
    if isinstance(item, (tuple, list)):
        item = _from_lists(where, item)
    if not isinstance(item, (Tensor, np.ndarray)):
        raise DataError(f"{where}: its items must be vectors, or tuples that begin with one, got {type(item).__name__}")
    return _real(where, item, _UNNAMED)


def _stacked(where: str, vectors: Any, what: str, join: Any) -> Tensor:
    vectors = list(vectors)
    if not vectors:
        raise DataError(f"{where} is empty")
    shape = vectors[0].shape[1:] if what == "batch" else vectors[0].shape
    for i, vector in enumerate(vectors):
        here = vector.shape[1:] if what == "batch" else vector.shape
        if here != shape or vector.dim() == 0:
            raise DataError(
                f"{where}: {what} {i + 1} has vectors of shape {tuple(here)}, {what} 1 of {tuple(shape)}: (d,) wanted"
            )
    return join(vectors)


def _from_lists(where: str, rows: list[Any] | tuple[Any, ...]) -> np.ndarray | Tensor:
    if not len(rows):
        raise DataError(f"{where} is empty")
    lengths = [len(row) if hasattr(row, "__len__") and not isinstance(row, str) else None for row in rows]
    odd = next((i for i, length in enumerate(lengths) if length != lengths[0]), None)
    if odd is not None:
        of = [f"{length} values" if length is not None else "no list" for length in (lengths[odd], lengths[0])]
        raise DataError(f"{where}: row {odd + 1} has {of[0]}, row 1 has {of[1]}")
    try:
        return torch.stack(list(rows)) if all(isinstance(row, Tensor) for row in rows) else np.asarray(rows)
    except (ValueError, TypeError, OverflowError, RuntimeError) as error:
        raise DataError(f"{where} must be a table of numbers: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """An error of another library in one line."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
