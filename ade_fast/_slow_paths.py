"""A slow path says so once, and stays on record."""

from __future__ import annotations

import warnings

_TAKEN: dict[str, str] = {}


class SlowPathWarning(UserWarning):
    """A correct but slower way was taken; the message says why and what to do about it."""


def note_slow_path(key: str, message: str) -> None:
    """Warns with `message` the first time `key` comes up in this process."""
    if key not in _TAKEN:
        _TAKEN[key] = message
        warnings.warn(message, SlowPathWarning, stacklevel=4)


def slow_paths() -> tuple[str, ...]:
    """Messages of the slow paths taken so far in this process."""
    return tuple(_TAKEN.values())
