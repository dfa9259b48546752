"""Calls of the dynamics written down, for reports of a problem: ADE_FAST_LOG=1|2|3 in the environment.

1: a line for every call, with its shapes, and the plan and route that were taken. 2: its arguments too. 3: the call
itself in a file, ADE_FAST_LOG_DIR/PID-NUMBER-LAYER.pt, which ``python -m ade_fast.replay FILE`` makes again.
"""

from __future__ import annotations

import functools
import inspect
import io
import itertools
import logging
import os
import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

_LEVELS = ("0", "1", "2", "3")
_NAME = "ADE_FAST_LOG"
FILES_KEPT = 50
"""Of one process; the oldest are removed."""

log = logging.getLogger("ade_fast")
P = ParamSpec("P")
R = TypeVar("R")


def _level() -> int:
    text = os.environ.get(_NAME, "0") or "0"
    if text not in _LEVELS:
        raise ValueError(f"{_NAME} must be one of {', '.join(_LEVELS)}, got {text!r}")
    return int(text)


LEVEL = _level()
if LEVEL:
    _handler = logging.StreamHandler()
    _handler.setFormatter(logging.Formatter("ade_fast: %(message)s"))
    log.addHandler(_handler)
    log.setLevel(logging.INFO)


def logged(run: Callable[P, R], level: int = LEVEL, folder: Path | None = None) -> Callable[P, R]:
    """`run(layer, potential, x0, ...)` itself at level 0, else written down wherever nobody else writes it down."""
    if level == 0:
        return run
    folder = folder or Path(os.environ.get("ADE_FAST_LOG_DIR", "ade_fast_log"))
    named = inspect.signature(run)

    @functools.wraps(run)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if getattr(_within, "call", False):  # another, of which this is a part
            return run(*args, **kwargs)
        given = named.bind(*args, **kwargs).arguments
        number, file = next(_numbers), None
        if level > 2:  # before the call, which may be the last
            file, record = folder / f"{os.getpid()}-{number:06d}-{_layer(given)}.pt", _record(run, given)
            _write(file, record)
        log.info("call %d: %s%s", number, _head(given), _rest(given) if level > 1 else "")
        started = time.perf_counter()
        _within.call = True
        try:
            found: Any = run(*args, **kwargs)
        finally:
            _within.call = False
        log.info("call %d: %s, %.1f ms", number, _route(found), 1e3 * (time.perf_counter() - started))
        if file is not None:
            _write(file, record | {"outputs": [None if t is None else t.detach() for t in found[0]]})
        return found

    return call


_within = threading.local()
_numbers = itertools.count(1)
_files: list[Path] = []


def _layer(given: dict[str, Any]) -> str:
    return str(given.get("layer", "dynamics"))


def _head(given: dict[str, Any]) -> str:
    x0 = given.get("x0")
    steps = f", {given['n_steps']} steps" if "n_steps" in given else ""
    shown = f"{_layer(given)}: x0 {shown_value(x0)}{steps}, f {type(given.get('potential')).__name__}"
    return shown + ("" if torch.is_grad_enabled() else ", without gradients")


def _rest(given: dict[str, Any]) -> str:
    left_out = ("layer", "potential", "x0", "n_steps")
    shown = [f"{name}={shown_value(value)}" for name, value in given.items() if name not in left_out]
    return f"; {', '.join(shown)}" if shown else ""


def shown_value(value: Any) -> str:
    """A tensor by its shape, dtype and device, a module by its type, anything else as it is."""
    if isinstance(value, Tensor):
        grad = ", grad" if value.requires_grad else ""
        return f"({', '.join(map(str, value.shape))}) {str(value.dtype).removeprefix('torch.')} {value.device}{grad}"
    return type(value).__name__ if isinstance(value, torch.nn.Module) else repr(value)


def _route(found: Any) -> str:
    plan = found[1] if isinstance(found, tuple) and len(found) == 2 else None
    return "no plan: nothing to be differentiated, or not by one" if plan is None else f"{plan}"


def _record(run: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    """The call as it begins: each argument by itself, as what cannot be pickled is left out, with why."""
    arguments, why = {}, {}
    for name, value in given.items():
        try:
            arguments[name] = _bytes(None if name == "watched" else value)
        except Exception as error:  # whatever a user's object raises
            why[name] = f"{type(error).__name__}: {error}"
    return {
        "run": f"{run.__module__}:{run.__qualname__}", "arguments": arguments, "left_out": why, "outputs": None,
        "grad": torch.is_grad_enabled(), "random_state": torch.get_rng_state(), "torch": torch.__version__,
        "shown": _head(given) + _rest(given),
    }  # fmt: skip


def _write(file: Path, record: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_suffix(".new")
    torch.save(record, fresh)
    fresh.replace(file)
    if file not in _files:
        _files.append(file)
    while len(_files) > FILES_KEPT:
        _files.pop(0).unlink(missing_ok=True)


def _bytes(value: Any) -> bytes:
    buffer = io.BytesIO()
    if isinstance(value, torch.Generator):
        value = GeneratorState(str(value.device), value.get_state())
    torch.save(value, buffer, pickle_module=pickle)
    return buffer.getvalue()


class GeneratorState:
    """A `torch.Generator`, which cannot be pickled."""

    def __init__(self, device: str, state: Tensor) -> None:
        self.device, self.state = device, state

    def generator(self) -> torch.Generator:
        made = torch.Generator(self.device)
        made.set_state(self.state)
        return made
