"""Where a run's time goes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

PHASES = ("data", "sampler updates", "joint updates", "validation", "pictures", "checkpoints", "test")


class Stopwatch:
    """Seconds of wall time by phase, added up over the parts of a resumed run.

    On a GPU work is only queued: its time falls to the phase that waits for it, usually the one that reads a metric.

    Args:
        seconds: what earlier parts of the run have spent.
    """

    def __init__(self, seconds: Mapping[str, float] | None = None):
        self.seconds = dict.fromkeys(PHASES, 0.0) | dict(seconds or {})

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charges the block to ``name``, one of `PHASES`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - started

    @property
    def total(self) -> float:
        """Seconds of all phases; what is left out is the loop itself."""
        return sum(self.seconds.values())
