"""A run's directory: the names of its files, and what may be begun, gone on with, or replaced there."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from .checkpoint import is_checkpoint
from .config import ConfigError, is_config_file
from .files import staged

CHECKPOINT, CONFIG, METRICS, EVENTS = "checkpoint.pt", "config.json", "metrics.csv", "tensorboard"
SUMMARY, FIGURE, CONVERGENCE = "summary.json", "figure.png", "convergence.png"
DIAGNOSTICS, ENERGIES, COMPLETION = "diagnostics.png", "energies.png", "completion.png"
PICTURE = "figure-{:07d}.png"
"""Name of the picture after so many updates."""


def goes_on(directory: Path, *, resume: bool, overwrite: bool) -> bool:
    """Whether a run goes on from the checkpoint in ``directory``; else one may begin there.

    Only looks. Nothing that is not a run's is ever in the way of one: files that would be replaced must be asked for,
    and must be an ``ade_fast`` run's.

    Raises:
        ConfigError: neither may be done.
    """
    checkpoint = directory / CHECKPOINT
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other")
    if os.path.lexists(directory) and not os.path.isdir(directory):
        raise ConfigError(f"--out must be a directory, {directory} is a file")
    if resume and not os.path.isdir(directory):
        raise ConfigError(
            f"--resume: {directory} is no directory to be read; check its name, or begin there without --resume"
        )
    present = _present(directory)
    if resume and os.path.lexists(checkpoint):
        return True
    if resume and _has_begun(present):
        raise ConfigError(f"--resume: {checkpoint} is missing; restore it, or begin anew with --overwrite")
    if resume or not present:
        return False
    ours = is_checkpoint(checkpoint) or is_config_file(directory / CONFIG)
    names = ", ".join(str(path.relative_to(directory)) for path in present[:4]) + (", ..." if len(present) > 4 else "")
    if ours and not overwrite:
        raise ConfigError(
            f"{directory} holds a run already; go on with --resume, replace it with --overwrite, or choose another "
            "--out (in Python: resume=True, overwrite=True, out)"
        )
    if not ours or any(map(os.path.isdir, present)):
        raise ConfigError(
            f"{directory} holds files that a run would replace, but no run of ade_fast ({names}); move them away, or "
            "choose another --out"
        )
    return False


def begin(directory: Path, checkpoint: bytes, config: bytes) -> None:
    """Puts the start of a run in the place of whatever run is there; if there is no room, nothing is touched."""
    with staged(directory / CHECKPOINT, checkpoint) as put_checkpoint, staged(directory / CONFIG, config) as put_config:
        # In this order: the checkpoint says its settings itself, so what is killed in between can be told apart.
        put_checkpoint()
        put_config()


def clear(directory: Path) -> None:
    """Deletes what an earlier run left beside the checkpoint and the configuration."""
    for path in _present(directory):
        if path.name not in (CHECKPOINT, CONFIG):
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not ours, not empty, or a link
        (directory / EVENTS).rmdir()


def _present(directory: Path) -> list[Path]:
    """What is there of the files that a run writes, and so would replace."""
    names = (CHECKPOINT, CONFIG, METRICS, SUMMARY, FIGURE, CONVERGENCE, DIAGNOSTICS, ENERGIES, COMPLETION)
    found = [directory / name for name in names if os.path.lexists(directory / name)]
    events = directory / EVENTS
    if os.path.lexists(events) and not os.path.isdir(events):
        found.append(events)
    return [
        *found,
        *sorted(directory.glob(PICTURE.replace("{:07d}", "[0-9]" * 7))),
        *sorted(events.glob("events.out.tfevents.*")),
    ]


def _has_begun(present: list[Path]) -> bool:
    """Whether there is more than a run's settings and its empty table: then there was a checkpoint once."""
    for path in present:
        if path.name == CONFIG and is_config_file(path):
            continue
        if path.name == METRICS and os.path.isfile(path):
            head, *rows = path.read_bytes().splitlines() or [b""]
            if head.startswith(b"update,") and not rows:
                continue
        return True
    return False
