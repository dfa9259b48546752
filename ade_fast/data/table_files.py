"""Tables from files: .npy, .npz, .csv and .pt, read without running any code that is in them."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .tables import DataError, Names, checked, first_line

_NPZ_KEYS = ("X", "x", "data")


def load_table(
    path: str | Path, *, columns: int | None = None, varied: bool = True, dtype: torch.dtype = torch.float32
) -> Tensor:
    """A table of numbers from a file, by its suffix.

    ``.npy``: one array. ``.npz``: its one array, or the one named X, x or data. ``.pt``: one tensor, as torch.save
    writes it. ``.csv``, ``.tsv``, ``.txt``: text, one row a line, separated by commas, semicolons, tabs or spaces;
    a first line without any number is a header; empty lines and lines that begin with # are skipped.

    Args:
        path: the file.
        columns, varied, dtype: as for :func:`as_table`.

    Returns:
        ``(n, d)`` on the CPU.

    Raises:
        DataError: there is no such file, or it does not hold a table of finite numbers; one line that says where.
    """
    path = Path(path)
    where = f"data.load_table: {path}"
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise DataError(f"{where}: its suffix must be one of {', '.join(_READERS)}, got {path.suffix or 'none'!r}")
    if path.is_dir():
        raise DataError(f"{where} is a folder, a file wanted")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{where}: no such file") from None
    except OSError as error:
        raise DataError(f"{where} cannot be read: {error.strerror}") from error
    if not content:
        raise DataError(f"{where} is empty")
    values, names = read(where, content)
    return checked(where, values, names, columns=columns, varied=varied, dtype=dtype)


# --- arrays and tensors ---


def _read_npy(where: str, content: bytes) -> tuple[np.ndarray, Names]:
    array = _numpy_load(where, content, ".npy")
    if not isinstance(array, np.ndarray):
        raise DataError(f"{where} is no .npy file but an .npz one")
    return array, Names()


def _read_npz(where: str, content: bytes) -> tuple[np.ndarray, Names]:
    archive = _numpy_load(where, content, ".npz")
    if isinstance(archive, np.ndarray):
        raise DataError(f"{where} is no .npz file but an .npy one")
    keys = archive.files
    if not keys:
        raise DataError(f"{where} is empty")
    key = keys[0] if len(keys) == 1 else next((key for key in _NPZ_KEYS if key in keys), None)
    if key is None:
        raise DataError(f"{where} must hold one array, or one named X, x or data; got {', '.join(keys)}")
    try:
        return archive[key], Names()
    except Exception as error:  # a damaged member raises nearly anything
        raise DataError(f"{where}: its array {key} cannot be read: {_reason(error)}") from error


def _numpy_load(where: str, content: bytes, kind: str) -> Any:
    try:
        return np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, SyntaxError, MemoryError) as error:
        raise DataError(f"{where} is no readable {kind} file: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """numpy's reason; of pickles, in a file whose first bytes are no array's either, one that helps."""
    if "Object arrays" in str(error):
        return "it holds Python objects, an array of numbers wanted"
    return "it is damaged" if "pickle" in str(error) else first_line(error)


def _read_pt(where: str, content: bytes) -> tuple[Tensor, Names]:
    try:
        value = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises nearly anything
        raise DataError(f"{where} is no readable file of one tensor: {first_line(error)}") from error
    if not isinstance(value, Tensor):
        keys = f" with the keys {', '.join(map(str, list(value)[:8]))}" if isinstance(value, dict) else ""
        raise DataError(f"{where} must hold one tensor, got a {type(value).__name__}{keys}")
    return value, Names()


# --- text ---


def _read_text(where: str, content: bytes) -> tuple[np.ndarray, Names]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is no text in UTF-8: byte {error.start} is {content[error.start]:#04x}") from error
    numbered = [
        (number, line)
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not numbered:
        raise DataError(f"{where} has no rows")
    delimiter = next((mark for mark in ("\t", ";", ",") if mark in numbered[0][1]), None)
    try:
        rows = [(number, _cells(line, delimiter)) for number, line in numbered]
    except csv.Error as error:
        raise DataError(f"{where} is no readable text table: {first_line(error)}") from error
    header = rows[0][1]
    names = None
    if all(_number(cell) is None for cell in header):
        names, rows = header, rows[1:]
        if not rows:
            raise DataError(f"{where} has a header but no rows")
    lines = Names([number for number, _ in rows], names)
    table = np.empty((len(rows), len(header)))
    for i, (number, cells) in enumerate(rows):
        if len(cells) != len(header):
            first = numbered[0][0]
            raise DataError(f"{where}: line {number} has {len(cells)} columns, line {first} has {len(header)}")
        for j, cell in enumerate(cells):
            value = _number(cell)
            if value is None:
                got = repr(cell if len(cell) <= 40 else cell[:36] + "...") if cell else "an empty cell"
                raise DataError(f"{where}: {lines.cell(i, j)} must be a number, got {got}")
            table[i, j] = value
    return table, lines


def _cells(line: str, delimiter: str | None) -> list[str]:
    if delimiter is None:
        return line.split()
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))]


def _number(cell: str) -> float | None:
    try:
        return None if "_" in cell else float(cell)  # Python reads 1_000 as a number; no other program writes it
    except ValueError:
        return None


_READERS: dict[str, Callable[[str, bytes], tuple[np.ndarray | Tensor, Names]]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".pt": _read_pt,
    ".csv": _read_text,
    ".tsv": _read_text,
    ".txt": _read_text,
}
