"""Finished runs beside each other: what ``ade-fast compare`` prints and draws."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config import Config, ConfigError, read_config
from .directory import CHECKPOINT, CONFIG, METRICS, SUMMARY
from .summary import NO_MATTER

_DASH = "-"
# What a validation leaves in metrics.csv, under the names of the history.
_HISTORY = {"validation_nll": "nll", "validation_ess": "ess", "validation_mmd2": "mmd2"}
# Settings that the table shows, or that are no settings of what is learned.
_ELSEWHERE = ("data", *NO_MATTER, "threads")


@dataclass(frozen=True)
class Run:
    """One finished run as its files have it.

    name: as short as tells it from the others.
    settings: as in config.json, the defaults of this release where a run of an older one has none.
    summary: as in summary.json; a score that is not known is None or missing.
    history: a mapping per validation, "update" and those of "nll", "ess", "mmd2" there are.
    """

    name: str
    settings: Mapping[str, Any]
    summary: Mapping[str, Any]
    history: Sequence[Mapping[str, float]]


def read_runs(directories: Sequence[str | Path]) -> list[Run]:
    """The runs in these directories, in this order.

    Raises:
        ConfigError: one is given twice; one holds no finished run, or its files are damaged.
    """
    paths = [Path(directory) for directory in directories]
    real = [path.resolve() for path in paths]
    for index, path in enumerate(real):
        if path in real[:index]:
            raise ConfigError(f"{paths[index]} is given twice")
    return [
        Run(name, _settings(path), _summary(path), _history(path))
        for name, path in zip(_names(real), paths, strict=True)
    ]


def table(runs: Sequence[Run]) -> list[str]:
    """The scores, a line per run, and beneath them the settings in which the runs differ, a line per setting."""
    rows = [["run", *_COLUMNS], *([run.name, *(show(run.summary) for show in _COLUMNS.values())] for run in runs)]
    lines = _aligned(rows, left=2)
    if len({run.summary["data"] for run in runs}) > 1:
        lines.append("NLL and MMD² of different data say nothing about each other.")
    differing = differences(runs)
    if differing:
        shown = [[name, *map(_text, values)] for name, values in differing.items()]
        lines += ["", *_aligned([["settings that differ", *(run.name for run in runs)], *shown], left=1)]
    elif len(runs) > 1:
        lines += ["", "No setting differs."]
    return lines


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """By name, the settings that are not the same in all runs: a value per run."""
    found = {}
    for field in dataclasses.fields(Config):
        values = [run.settings[field.name] for run in runs]
        if field.name not in _ELSEWHERE and any(value != values[0] for value in values):
            found[field.name] = values
    return found


def _settings(directory: Path) -> dict[str, Any]:
    return Config.from_dict(read_config(directory / CONFIG)).to_dict()


def _summary(directory: Path) -> dict[str, Any]:
    path = directory / SUMMARY
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if (directory / CHECKPOINT).is_file():
            hint = f"the run is not finished; `ade-fast train --out {directory} --resume` goes on with it"
        else:
            hint = "no run of `ade-fast train` is there"
        raise ConfigError(f"{directory} has no {SUMMARY}: {hint}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error})") from error
    if not isinstance(summary, dict) or not isinstance(summary.get("data"), str):
        raise ConfigError(f"{path} is not the summary of a run")
    return summary


def _history(directory: Path) -> list[dict[str, float]]:
    """The validations in metrics.csv; none where the file is gone, for the table does without it."""
    path = directory / METRICS
    history: list[dict[str, float]] = []
    if not path.is_file():
        return history
    try:
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                scores = {name: float(row[key]) for key, name in _HISTORY.items() if row.get(key)}
                if scores:
                    history.append({"update": int(row["update"]), **scores})
    except (ValueError, KeyError, csv.Error) as error:
        raise ConfigError(f"{path} is damaged ({error})") from error
    return history


def _names(paths: Sequence[Path]) -> list[str]:
    """The last folders' names, with as much before them as makes all different."""
    if len(paths) == 1:
        return [paths[0].name]
    common = os.path.commonpath([path.parent for path in paths])
    last = [path.name for path in paths]
    return last if len(set(last)) == len(last) else [os.path.relpath(path, common) for path in paths]


def _known(summary: Mapping[str, Any], key: str) -> float:
    """A figure of the summary, NaN where there is none."""
    value = summary.get(key)
    return float(value) if isinstance(value, (int, float)) else math.nan


def _figure(key: str, form: str, factor: float = 1.0) -> Callable[[Mapping[str, Any]], str]:
    def show(summary: Mapping[str, Any]) -> str:
        value = factor * _known(summary, key)
        return format(value, form) if math.isfinite(value) else _DASH

    return show


def _nll(summary: Mapping[str, Any]) -> str:
    nll, error = _known(summary, "nll"), _known(summary, "nll_standard_error")
    if not math.isfinite(nll):
        return _DASH
    return f"{nll:.3f} ± {error:.3f}" if math.isfinite(error) else f"{nll:.3f}"


_COLUMNS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "data": lambda summary: Path(summary["data"]).name,
    "NLL, nats": _nll,
    "entropy": _figure("entropy", ".3f"),
    "ESS, %": _figure("ess", ".1f", 100.0),
    "best c": _figure("best_temperature", ".2f"),
    "MMD², 1e-3": _figure("mmd2", "+.2f", 1e3),
    "exact": _figure("exact_mmd2", "+.2f", 1e3),
    "seconds": _figure("seconds", ".0f"),
}


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _aligned(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Columns two spaces apart: the first ``left`` flush left, the others, which are numbers, right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            text.ljust(width) if i < left else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
