"""The metrics of a run, row by row: ``metrics.csv``, and TensorBoard's event files where that is installed."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from .config import ConfigError
from .directory import EVENTS, METRICS
from .files import naming, write_atomically

STEP_METRICS = (
    "loss",
    "f_data",
    "f_samples",
    "kinetic",
    "entropy",
    "penalty",
    "potential_grad_norm",
    "sampler_grad_norm",
    "step_size",
    "f_model",
    "log_z",
    "ess",
    "initial_ess",
    "beta",
)
# Of the updates at which they are asked for (`Diagnostics.figures`).
UNROLL_METRICS = (
    "unroll_energy_error",
    "unroll_energy_error_max",
    "unroll_acceptance",
    "unroll_log_det",
    "unroll_grad_norm",
    "unroll_grad_clipped",
    "unroll_momentum_clipped",
    "unroll_adjoint_max",
    "unroll_adjoint_growth",
)
VALIDATION_METRICS = ("validation_nll", "validation_ess", "validation_mmd2")
COLUMNS = ("update", "seconds", *STEP_METRICS, *VALIDATION_METRICS, *UNROLL_METRICS)


def check_tensorboard(wanted: str) -> bool:
    """Whether event files are to be written, for the setting ``tensorboard``: auto, on or off.

    Raises:
        ConfigError: they are wanted, and the package is missing.
    """
    if wanted == "off":
        return False
    installed = importlib.util.find_spec("tensorboard") is not None
    if wanted == "on" and not installed:
        raise ConfigError("configuration: tensorboard is on, but not installed; pip install 'ade_fast[tensorboard]'")
    return installed


class MetricsLog:
    """Open for appending, as a context manager; rows past ``update`` that a killed run left are dropped first.

    Args:
        directory: of the run.
        update: where the run begins or goes on.
        tensorboard: whether to write event files too.
    """

    def __init__(self, directory: Path, update: int, tensorboard: bool):
        self._path = directory / METRICS
        _keep_rows_until(self._path, update)
        self._events = None
        if tensorboard:
            from .events import EventFile  # here, not above: it needs the package

            self._events = EventFile(directory / EVENTS, update)
        with naming(self._path):
            self._file = open(self._path, "a", newline="", encoding="utf-8")  # noqa: SIM115
        self._rows = csv.DictWriter(self._file, COLUMNS)

    def write(self, row: dict[str, Any]) -> None:
        """One row of ``COLUMNS``; what was not measured at this update is left out."""
        with naming(self._path):
            self._rows.writerow({key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()})
        if self._events is not None:
            self._events.write(row["update"], {key: value for key, value in row.items() if key != "update"})

    def flush(self) -> None:
        with naming(self._path):
            self._file.flush()
        if self._events is not None:
            self._events.flush()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # What could not be written has been reported, or another error is on its way: closing tries once more.
        with naming(self._path) if error is None else contextlib.suppress(OSError):
            self._file.close()
        if self._events is not None:
            with contextlib.nullcontext() if error is None else contextlib.suppress(OSError):
                self._events.close()


def _keep_rows_until(path: Path, update: int) -> None:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, COLUMNS, extrasaction="ignore")
    writer.writeheader()
    if os.path.lexists(path):
        try:
            with naming(path), open(path, newline="", encoding="utf-8") as file:
                writer.writerows(row for row in csv.DictReader(file) if _is_row_until(row, update))
        except (UnicodeDecodeError, csv.Error) as error:
            raise ConfigError(
                f"{path} is damaged ({error}); move it away, and the run goes on without its rows"
            ) from error
    write_atomically(path, buffer.getvalue().encode())


def _is_row_until(row: dict[str, str | None], update: int) -> bool:
    """Whether a row is whole (a killed run may have left half of one) and not past ``update``.

    By the table's own columns: there may be fewer than now.
    """
    whole = all(value is not None for value in row.values())
    number = row.get("update") or ""
    return whole and number.isdigit() and int(number) <= update
