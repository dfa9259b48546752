"""Rows of runs of ``ade-fast train``: ADE and the other estimators, in the same loop."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from ..dynamics import Leapfrog, NonFiniteError
from ..estimators import Chain
from ..training import Config, ConfigError, DivergenceError, TrainedModel, load, train
from ..training.directory import CHECKPOINT
from ..training.files import write_atomically
from ..training.loop import resolve_resumed
from ..training.source import Space, ToySource
from ..training.streams import stream
from .jobs import RUNS, SAMPLES
from .scoring import POINTS, compare, grid, nll

# Hamiltonian Monte Carlo from N(0, I) on a learned f, in its own coordinates: F.1's "vanilla HMC", without numbers.
_HMC_STEPS, _HMC_STEP_SIZE = 10, 0.05
_HMC_TRANSITIONS = 100


def row(arguments: dict[str, Any], directory: Path, stem: str) -> dict[str, Any]:
    """Trains, or goes on where a killed call was, and scores the players that the validation draw chose."""
    config, folder = Config.from_dict(arguments["settings"]), directory / RUNS / stem
    try:
        summary = train(config, folder, progress=False, pictures=False, **how(config, folder))
    except (NonFiniteError, DivergenceError) as error:
        (directory / SAMPLES / f"{stem}.npy").unlink(missing_ok=True)  # of an earlier run
        return {"diverged": str(error).partition(";")[0]}
    model = load(folder)
    assert isinstance(model.space, Space)  # no images
    found: dict[str, Any] = {
        "chosen_update": summary.chosen_update,
        "validation_mmd2": summary.validation_mmd2,
        "field": summary.field,
        "ess": summary.ess if config.objective == "ade" else None,
        "training_seconds": summary.seconds,
    }
    bounded = config.clip_samples or config.base_std is None
    cells = grid(model.potential, model.space, config.base_std, bounded=bounded)
    if not arguments["sampler_alone"]:
        found |= nll(model.potential, model.space, cells, config.data, config.seed)
    raw, exact = samples(model, arguments["sampler"]), None
    if config.objective != "ade":
        exact = model.space.to_data(cells.sample(POINTS, stream(config.seed, "reproduce exact")))
    elif model.density is not None and not arguments["sampler_alone"]:
        exact = model.sample(POINTS, config.seed, exact="resample")
    keep_samples(directory, stem, raw, exact)
    return {**found, **compare(config.data, config.seed, raw, exact)}


def samples(model: TrainedModel, sampler: str) -> Tensor:
    """POINTS samples in the data's units as a method takes them.

    Args:
        model: what was trained.
        sampler: "dual", its own; "hmc" on f, from N(0, I); "chain", as in training: from fresh data.
    """
    config, generator = model.config, stream(model.config.seed, "reproduce samples")
    if sampler == "dual":
        return model.sample(POINTS, config.seed)
    if sampler == "hmc":
        start = torch.randn(POINTS, *model.event, generator=generator)
        x = Leapfrog(_HMC_STEPS, _HMC_STEP_SIZE).chain(model.potential, start, _HMC_TRANSITIONS, generator=generator).x
    else:
        data = ToySource(config.data, standardise=config.standardise).draw(POINTS, generator)
        chain = Chain.langevin(config.chain_steps, config.chain_step_size, config.chain_accept, like=data)
        x = chain.run(model.potential, data, generator=generator).x
    return model.space.to_data(x)


def keep_samples(directory: Path, stem: str, raw: Tensor, exact: Tensor | None) -> None:
    """For pictures: [2 or 1, n, d], raw ones first."""
    buffer = io.BytesIO()
    np.save(buffer, torch.stack([raw] if exact is None else [raw, exact]).numpy())
    write_atomically(directory / SAMPLES / f"{stem}.npy", buffer.getvalue())


class How(TypedDict, total=False):
    """Of the arguments of `train`."""

    overwrite: bool
    resume: bool


def how(config: Config, folder: Path) -> How:
    """Whether a run in the folder is gone on with, or replaced: one of other settings, or one that had not begun."""
    if not folder.exists():
        return {}
    if not (folder / CHECKPOINT).exists():
        return {"overwrite": any(folder.iterdir())}
    try:
        resolve_resumed(folder, config.to_dict())
    except ConfigError:
        return {"overwrite": True}
    return {"resume": True}
