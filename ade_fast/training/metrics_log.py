"""The metrics of a run, row by row: ``metrics.csv``, and TensorBoard's event files where that is installed."""

from __future__ import annotations

import csv
import importlib.util
import io
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any

from .checkpoint import write_atomically
from .config import ConfigError

METRICS, EVENTS = "metrics.csv", "tensorboard"
STEP_METRICS = (
    "loss",
    "f_data",
    "f_samples",
    "kinetic",
    "entropy",
    "penalty",
    "potential_grad_norm",
    "sampler_grad_norm",
)
COLUMNS = ("update", "seconds", *STEP_METRICS, "step_size", "validation_mmd2")


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
        _keep_rows_until(directory / METRICS, update)
        self._file = open(directory / METRICS, "a", newline="", encoding="utf-8")  # noqa: SIM115
        self._rows = csv.DictWriter(self._file, COLUMNS)
        self._events = _event_writer(directory / EVENTS, update) if tensorboard else None

    def write(self, row: dict[str, Any]) -> None:
        """One row of ``COLUMNS``; what was not measured at this update is left out."""
        self._rows.writerow({key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()})
        if self._events is not None:
            for key, value in row.items():
                if key != "update":
                    self._events.add_scalar(key, value, row["update"])

    def flush(self) -> None:
        self._file.flush()
        if self._events is not None:
            self._events.flush()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        if self._events is not None:
            self._events.close()


def _event_writer(directory: Path, update: int):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tensorboard's own, about its dependencies
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard shows nothing of an earlier part of the run that lies at or past the purged step.
        return SummaryWriter(str(directory), purge_step=update + 1)


def _keep_rows_until(path: Path, update: int) -> None:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, COLUMNS, extrasaction="ignore")
    writer.writeheader()
    if path.exists():
        with open(path, newline="", encoding="utf-8") as file:
            writer.writerows(row for row in csv.DictReader(file) if _is_row_until(row, update))
    write_atomically(path, buffer.getvalue().encode())


def _is_row_until(row: dict[str, str | None], update: int) -> bool:
    """Whether a row is whole (a killed run may have left half of one) and not past ``update``."""
    return all(row.get(key) is not None for key in COLUMNS) and row["update"].isdigit() and int(row["update"]) <= update
