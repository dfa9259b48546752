"""What a table or figure is: its runs, its text and its pictures."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .jobs import Job, Row


@dataclass(frozen=True)
class Options:
    """seeds: how many. budget: "quick" or "full". only: names to make, a part of the target's."""

    seeds: int
    budget: str
    only: tuple[str, ...]


@dataclass(frozen=True)
class Target:
    """A table or a figure.

    seeds: how many unless asked otherwise, by budget. names: what ``--only`` chooses from.
    jobs: its runs. lines: its text in Markdown, from the rows there are. draw: pictures into a directory, once all rows
    are there; returns the files' names, each with a caption. default: the names that are taken where ``--only`` chooses
    none; None: all.
    """

    title: str
    seeds: Mapping[str, int]
    names: tuple[str, ...]
    jobs: Callable[[Options], list[Job]]
    lines: Callable[[Options, Mapping[str, Row]], list[str]]
    draw: Callable[[Options, Path, Mapping[str, Row]], dict[str, str]]
    default: tuple[str, ...] | None = None


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """A table, its first ``left`` columns flush left."""
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return ["| " + " | ".join(cells) + " |" for cells in (head, rule, *rows)]


def values(rows: Sequence[Row], key: str) -> list[float]:
    return [row[key] for row in rows if row.get(key) is not None]


def mean_and_error(found: Sequence[float], form: str, factor: float = 1.0) -> str:
    """ "mean ± standard error", without the latter of one value; a dash of none."""
    if not found:
        return "-"
    scaled = [factor * value for value in found]
    text = format(statistics.fmean(scaled), form)
    if len(scaled) == 1:
        return text
    error = statistics.stdev(scaled) / len(scaled) ** 0.5
    return f"{text} ± {format(error, form.lstrip('+'))}"


def of(jobs: Sequence[Job], rows: Mapping[str, Row]) -> list[Row]:
    """The rows of those jobs that have one."""
    return [rows[job.file] for job in jobs if job.file in rows]


def diverged(rows: Sequence[Row]) -> int:
    return sum("diverged" in row for row in rows)


def named(rows: Mapping[str, Any]) -> list[str]:
    """Where the rows come from: commits and versions."""
    found = sorted({row["commit"] or f"release {row['version']}" for row in rows.values()})
    return [f"Rows made at {', '.join(found)}."] if found else []
