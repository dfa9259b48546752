"""Checkpoints: read without executing anything, and one line for whatever may be wrong with one."""

from __future__ import annotations

import io
import os
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .files import write_atomically

FORMAT = "ade_fast.checkpoint"
VERSION = 3

_WAY_OUT = "restore a copy, or train again with --overwrite"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read; the message is one line and says what to do."""


def serialized(state: dict[str, Any]) -> bytes:
    """``state``, a dictionary of tensors, numbers, strings, lists and dictionaries, as a checkpoint's bytes."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "version": VERSION, "state": state}, buffer)
    return buffer.getvalue()


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Writes ``state`` atomically."""
    write_atomically(path, serialized(state))


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads what :func:`save_checkpoint` wrote, onto the CPU, with ``weights_only=True``.

    Raises:
        CheckpointError: the file is missing, damaged, not a checkpoint, or of another version.
    """
    content = _read(Path(path))
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"checkpoint: {path} has version {content.get('version')}, this ade_fast reads {VERSION}; use "
            "the ade_fast release that wrote it, or train again with --overwrite"
        )
    return content["state"]


def is_checkpoint(path: str | Path) -> bool:
    """Whether ``path`` is a whole checkpoint of ours, of whatever version."""
    try:
        _read(Path(path))
    except CheckpointError:
        return False
    return True


@contextmanager
def understanding(path: str | Path) -> Iterator[None]:
    """Around all use of a checkpoint's state: what missing or wrong entries raise becomes a ``CheckpointError``."""
    try:
        yield
    except CheckpointError:
        raise
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise CheckpointError(
            f"checkpoint: {path} has the wrong content ({type(error).__name__}: {reason}); {_WAY_OUT}"
        ) from error


def check_finite(weights: dict[str, Any]) -> None:
    """Raises ``ValueError`` if a tensor of a state dictionary is not finite."""
    for name, value in weights.items():
        if isinstance(value, Tensor) and not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} is not finite")


def _read(path: Path) -> dict[str, Any]:
    if not os.path.lexists(path):
        raise CheckpointError(f"checkpoint: {path} does not exist; train first, or check the directory's name")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"checkpoint: cannot read {path}: {error.strerror}; {_WAY_OUT}") from error
    try:
        _check_sums(raw)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; the error below says all there is to say
            content = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make torch.load raise nearly anything
        raise CheckpointError(
            f"checkpoint: {path} is damaged or not a checkpoint ({type(error).__name__}); {_WAY_OUT}"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or "state" not in content:
        raise CheckpointError(f"checkpoint: {path} was not written by ade_fast; give the directory of an ade_fast run")
    return content


def _check_sums(raw: bytes) -> None:
    """Raises unless each record of the zip archive has the CRC it was written with: torch.load ignores it."""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(damaged)
