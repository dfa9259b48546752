"""`ade.fit`: a density from an array in one call, by the same loop as ``ade-fast train``."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import nn

from .build import Given, build_source
from .callbacks import Progress
from .config import GIVEN, Config
from .loop import resolve_resumed, train
from .sampler import DualSampler
from .sharding import has_parts
from .trained import TrainedModel, load


def fit(
    X: Any,
    potential: nn.Module | None = None,
    sampler: DualSampler | None = None,
    *,
    out: str | Path | None = None,
    seed: int | None = None,
    progress: bool = True,
    resume: bool = False,
    overwrite: bool = False,
    validation: Any = None,
    callbacks: Iterable[Any] | Callable[[Progress], Any] = (),
    **settings: Any,
) -> TrainedModel:
    """Trains on ``X`` and returns the model: a normalised density and its sampler, in the units of ``X``.

    What ``ade-fast train`` does: rows are split into training, validation and test, standardised, and learned by the
    recipe's settings; the averaged players with the best held-out likelihood are chosen, and training stops early when
    they no longer get better (``patience``).

    Args:
        X: [n, *event] rows as an array, tensor, ``Dataset`` or ``DataLoader`` (of its batches the first part, without
            labels), the path of a file (.npy, .npz, .csv, .pt), or the name of a two-dimensional set.
        potential: f, a module [B, *event] -> [B] of standardised points; None: by the settings, an MLP on a Gaussian
            base measure. Give an `ade.WithBase` to have one too. A module that is given is copied, and stays as it is.
        sampler: the dual sampler; None: by the settings.
        out: a directory for checkpoint, metrics and pictures, as of ``ade-fast train --out``; None: nothing is kept,
            and an interrupted run is lost.
        seed: of everything random, the split included; None: 0.
        progress: show a progress bar on standard error.
        resume: go on from the checkpoint in ``out``, bit for bit, with the same ``X``; what is not given again is the
            run's own. ``updates=`` may be more than before: a finished run goes on to so many, by the schedule of a run
            of that length.
        overwrite: begin anew even though ``out`` holds a run.
        validation: rows like ``X`` to choose the players by; None: a part of ``X`` (``validation_fraction``).
        callbacks: functions that are called after each validation, or objects with ``on_begin``, ``on_update``,
            ``on_validate``, ``on_end``; each gets a `ade.training.Progress`, which has the scores, the model so far,
            and ``stop()``. See `ade.Callback`.
        settings: of `ade.training.Config`, such as ``updates=2000``.

    Raises:
        ConfigError: a setting that cannot be meant.
        TypeError, ValueError: ``X`` is no table of finite numbers, or the modules do not fit it; a callback is none.
        Others: as :func:`ade.training.train`.
    """
    given = _given(potential, sampler)
    named = isinstance(X, (str, Path))
    if out is None and resume:
        raise ValueError("fit: resume needs out, the directory of the run to go on with")
    if out is None and overwrite:
        raise ValueError("fit: overwrite needs out, the directory of the run to replace")
    if "data" in settings:
        raise ValueError(f"fit: what to learn from is X, the first argument, got data={settings['data']!r} beside it")
    wanted = {**settings, "data": str(X) if named else GIVEN, **({} if seed is None else {"seed": seed})}
    config = Config.with_recipe(wanted) if out is None or not resume else resolve_resumed(out, wanted)
    source = build_source(config, None if named else X, validation)
    options: dict[str, Any] = {
        "resume": resume,
        "overwrite": overwrite,
        "progress": progress,
        "source": source,
        "given": given,
        "callbacks": callbacks,
    }
    if out is not None:
        train(config, out, **options)
        return load(out, config.device, **given._asdict())
    with tempfile.TemporaryDirectory(prefix="ade_fast-") as directory:
        train(config, directory, **options, pictures=False, kept=False)
        return load(directory, config.device, **given._asdict())


def _given(potential: Any, sampler: Any) -> Given:
    if potential is not None and not isinstance(potential, nn.Module):
        raise TypeError(f"fit: potential must be a torch.nn.Module, got {type(potential).__name__}")
    if potential is not None and has_parts(potential):
        raise ValueError("fit: potential is sharded: train it by ade.ADE(f, sampler, data_parallel=True).step")
    if sampler is not None and not isinstance(sampler, DualSampler):
        raise TypeError(f"fit: sampler must be an ade.DualSampler, got {type(sampler).__name__}")
    return Given(potential, sampler)
