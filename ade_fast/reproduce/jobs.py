"""Runs to be made, and the rows they leave in a directory: a file each, written whole as soon as the run has ended."""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..training.files import LOCK, locked, naming, remove_leftovers, write_atomically

MANIFEST, ROWS, RUNS, SAMPLES = "reproduce.json", "rows", "runs", "samples"
Row = dict[str, Any]
FORMAT = 1
"""Of the rows, and of how they are scored: those of another one are made again."""


class DirectoryError(ValueError):
    """A directory that is not one of ours, or is damaged; the message is one line and says what to do."""


@dataclass(frozen=True)
class Job:
    """One run. A row serves as long as it comes from an equal job.

    name: parts of its name, which rows are sorted and found by.
    kind: what makes its row (`driver.KINDS`).
    arguments: for that, plain values; of a training all resolved settings.
    cost: about how long it takes beside others.
    """

    name: tuple[str, ...]
    kind: str
    arguments: Mapping[str, Any]
    cost: float = 1.0

    @property
    def file(self) -> str:
        """The stem of its files."""
        return "-".join("".join(c if c.isalnum() else "_" for c in part) for part in self.name)

    @property
    def identity(self) -> dict[str, Any]:
        """As JSON brings it back."""
        plain = {"format": FORMAT, "name": self.name, "kind": self.kind, "arguments": self.arguments}
        return json.loads(json.dumps(plain))


@contextmanager
def opened(directory: Path) -> Iterator[None]:
    """The directory as one of ours, made if it is missing, for this process alone.

    Raises: DirectoryError: it holds something else; BusyError; OSError: it cannot be made or written.
    """
    if os.path.lexists(directory) and not directory.is_dir():
        raise DirectoryError(f"--out must be a directory, {directory} is a file")
    manifest = directory / MANIFEST
    with naming(directory):
        directory.mkdir(parents=True, exist_ok=True)
        ours = manifest.exists() or not any(path.name != LOCK for path in directory.iterdir())
    if not ours:
        raise DirectoryError(
            f"{directory} holds files, but no {MANIFEST} of an earlier `ade-fast reproduce`; choose another --out"
        )
    with locked(directory):
        for name in ("", ROWS, RUNS, SAMPLES):
            with naming(directory / name):
                (directory / name).mkdir(exist_ok=True)
            remove_leftovers(directory / name)
        write_atomically(manifest, json.dumps({"version": __version__}).encode() + b"\n")
        yield


def finished(directory: Path, jobs: Iterable[Job]) -> dict[str, Row]:
    """The rows there are of equal jobs, by the stems of their files.

    Raises: DirectoryError: a row's file is damaged.
    """
    found = {}
    for job in jobs:
        path = directory / ROWS / f"{job.file}.json"
        if not path.exists():
            continue
        with naming(path):
            text = path.read_bytes()
        try:
            row = json.loads(text)
            same = row["job"] == job.identity
        except (ValueError, KeyError, TypeError):
            raise DirectoryError(f"{path} is damaged; delete it, and its run is made again") from None
        if same:
            found[job.file] = row
    return found


def keep(directory: Path, job: Job, row: Row) -> Row:
    """Writes the row, with what tells where it comes from."""
    whole = {"job": job.identity, "version": __version__, "commit": commit(), **_finite(row)}
    write_atomically(directory / ROWS / f"{job.file}.json", (json.dumps(whole, indent=1) + "\n").encode())
    return whole


def commit() -> str | None:
    """The commit of the checkout that this package is run from; None if it is installed from elsewhere."""
    here = Path(__file__)

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(here.parent), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _finite(row: Row) -> Row:
    """JSON has no infinity."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
