"""Checkpoints: written whole or not at all, read without executing anything."""

from __future__ import annotations

import io
import os
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

FORMAT = "ade_fast.checkpoint"
VERSION = 2
_TEMPORARY = ".ade_fast.tmp"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read; the message is one line and says what to do."""


def write_atomically(path: str | Path, content: bytes) -> None:
    """Replaces ``path`` by ``content``; a crash or a full disk leaves the old file or the new one, whole."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_TEMPORARY, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's 0600 would hide results from the user's group
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the rename itself survives a power cut
    finally:
        os.close(directory)


def remove_leftovers(directory: str | Path) -> None:
    """Deletes what a killed process left of files it was writing."""
    for path in Path(directory).glob(f".*{_TEMPORARY}"):
        path.unlink(missing_ok=True)


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Writes ``state``, a dictionary of tensors, numbers, strings, lists and dictionaries, atomically."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "version": VERSION, "state": state}, buffer)
    write_atomically(path, buffer.getvalue())


def _check_sums(raw: bytes) -> None:
    """Raises unless each record of the zip archive has the CRC it was written with: torch.load ignores it."""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(damaged)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads what :func:`save_checkpoint` wrote, onto the CPU, with ``weights_only=True``.

    Raises:
        CheckpointError: the file is missing, damaged, not a checkpoint, or of another version.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"checkpoint: {path} does not exist; train first, or check the directory's name")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"checkpoint: cannot read {path}: {error.strerror}") from error
    try:
        _check_sums(raw)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; the error below says all there is to say
            content = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make torch.load raise nearly anything
        raise CheckpointError(
            f"checkpoint: {path} is damaged or not a checkpoint ({type(error).__name__}); restore a copy, or "
            "train again with --overwrite"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or "state" not in content:
        raise CheckpointError(f"checkpoint: {path} was not written by ade_fast; give the directory of an ade_fast run")
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"checkpoint: {path} has version {content.get('version')}, this ade_fast reads {VERSION}; use "
            "the ade_fast release that wrote it, or train again with --overwrite"
        )
    return content["state"]
