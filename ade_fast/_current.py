"""What is in force within a block, for code further down that nobody hands it to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, TypeVar

T = TypeVar("T", bound="Current")


class Current:
    """A base of kinds of which each thread has a current one, that of its innermost `as_current` block.

    _place: each kind's own.
    """

    _place: ClassVar[threading.local]

    @contextmanager
    def as_current(self) -> Iterator[None]:
        before, self._place.current = self.current(), self
        try:
            yield
        finally:
            self._place.current = before

    @classmethod
    def current(cls: type[T]) -> T | None:
        return getattr(cls._place, "current", None)
