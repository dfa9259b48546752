"""What `ade.fit` and `train` call on the way: functions after each validation, or objects with the hooks they want."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import Config
from .summary import Summary
from .trained import TrainedModel

if TYPE_CHECKING:
    from .trainer import Trainer

HOOKS = ("on_begin", "on_update", "on_validate", "on_end")


class Progress:
    """A run as its callbacks see it: read, and perhaps stopped.

    Attributes:
        metrics: of the latest update (`ADE.step`); {} before the first.
        summary: of the finished run, in ``on_end`` alone; None before.
        directory: of the run; None where nothing is kept.
    """

    def __init__(self, trainer: Trainer, directory: Path | None):
        self._trainer = trainer
        self.directory = directory
        self.metrics: Mapping[str, float] = {}
        self.summary: Summary | None = None
        self.stopped = False

    @property
    def config(self) -> Config:
        """The settings."""
        return self._trainer.config

    @property
    def update(self) -> int:
        """How many updates have been made; of ``config.updates``."""
        return self._trainer.update

    @property
    def seconds(self) -> float:
        """Of the whole run so far, its interrupted parts included."""
        return self._trainer.seconds

    @property
    def history(self) -> list[dict[str, float]]:
        """A mapping per validation: "update", and "nll" (nats per point), "ess" and "initial_ess", or "mmd2"."""
        return [dict(entry) for entry in self._trainer.history]

    @property
    def scores(self) -> dict[str, float]:
        """The latest of ``history``."""
        return self.history[-1]

    @property
    def best_update(self) -> int:
        """The update whose averaged players have done best on the validation points so far."""
        return self._best().update

    def model(self) -> TrainedModel:
        """The best players so far, as new modules: what `ade.fit` would return if the run ended here."""
        self._best()
        return self._trainer.model()

    def stop(self) -> None:
        """Ends the run after this update, as if it had been the last: validated, scored, and kept; ``resume`` would go
        on. Of several processes, one is enough to end it."""
        self.stopped = True

    def _best(self) -> Any:
        if self._trainer.best is None:
            raise RuntimeError("Progress: no players are chosen yet, there has been no validation")
        return self._trainer.best


class Callback:
    """A base for callbacks, whose hooks do nothing; any object that has one of them will do as well.

    A plain function ``callback(progress)`` is an ``on_validate``. Hooks get a :class:`Progress`. They may draw from
    torch's own generator, as the run does not; what they raise ends the run, whose last checkpoint is kept.
    """

    def on_begin(self, progress: Progress) -> None:
        """Before the first update, or before going on."""

    def on_update(self, progress: Progress) -> None:
        """After each update, before its validation."""

    def on_validate(self, progress: Progress) -> None:
        """After each validation but that of the untrained players."""

    def on_end(self, progress: Progress) -> None:
        """After the final test; ``progress.summary`` is there."""


def as_hooks(callbacks: Iterable[Any] | Callable[[Progress], Any] | Callback) -> Callable[[str, Progress], None]:
    """A function that calls everyone's hook of a name, in order.

    Raises:
        TypeError: one of them is neither a function nor has a hook; or a hook's name is misspelt.
    """
    listed = list(callbacks) if isinstance(callbacks, Iterable) else [callbacks]
    hooks: dict[str, list[Callable[[Progress], Any]]] = {name: [] for name in HOOKS}
    for callback in listed:
        if isinstance(callback, type):
            raise TypeError(f"fit: callbacks must be functions or objects, got the class {callback.__name__}")
        found = {name: getattr(callback, name) for name in HOOKS if callable(getattr(callback, name, None))}
        for name in dir(callback):
            if name.startswith("on_") and name not in HOOKS:
                close = difflib.get_close_matches(name, HOOKS, 1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise TypeError(
                    f"fit: callbacks have the hooks {', '.join(HOOKS)}, got {type(callback).__name__}.{name}{hint}"
                )
        if not found and callable(callback):
            found = {"on_validate": callback}
        if not found:
            raise TypeError(
                f"fit: callbacks must be functions or objects with one of {', '.join(HOOKS)}, got {callback!r}"
            )
        for name, hook in found.items():
            hooks[name].append(hook)

    def call(name: str, progress: Progress) -> None:
        for hook in hooks[name]:
            hook(progress)

    return call
