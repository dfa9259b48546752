"""Rows of normalizing flows alone, by maximum likelihood: zuko's neural spline flow."""

from __future__ import annotations

import copy
import math
import time
from pathlib import Path
from typing import Any

import torch
import zuko
from torch import nn
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from ..data import toy
from ..training.source import ToySource
from ..training.streams import stream
from .scoring import NLL_POINTS, POINTS, compare
from .trainings import keep_samples

_TRANSFORMS, _HIDDEN, _LEARNING_RATE, _CLIP = 3, (64, 64), 3e-3, 1.0
_VALIDATIONS, _VALIDATION_POINTS = 10, 2000


def row(arguments: dict[str, Any], directory: Path, stem: str) -> dict[str, Any]:
    """Trains a flow on fresh points; of ten validations the best is scored. A killed run begins again."""
    name, seed, updates = arguments["data"], arguments["seed"], arguments["updates"]
    started, source = time.perf_counter(), ToySource(name, standardise=True)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        flow = zuko.flows.NSF(2, transforms=_TRANSFORMS, hidden_features=_HIDDEN)
    flow, chosen = _trained(flow, source, seed, updates, arguments["batch_size"])
    training_seconds = time.perf_counter() - started
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        samples = source.space.to_data(flow().sample((POINTS,)))
        points = toy(name).sample(NLL_POINTS, stream(seed, "reproduce likelihood"))
        values = flow().log_prob(source.space.to_z(points)).double() + source.space.log_det
    keep_samples(directory, stem, samples, samples)
    error = values.std().item() / math.sqrt(len(values))
    return {
        "chosen_update": chosen,
        "training_seconds": training_seconds,
        "nll": -values.mean().item(),
        "nll_standard_error": error,
        **compare(name, seed, samples, samples),
    }


def _trained(flow: nn.Module, source: ToySource, seed: int, updates: int, batch_size: int) -> tuple[nn.Module, int]:
    """The flow as it was at its best validation, and when that was."""
    optimizer = Adam(flow.parameters(), lr=_LEARNING_RATE)
    schedule = CosineAnnealingLR(optimizer, updates)
    data, best = stream(seed, "data"), (math.inf, 0, flow)
    validation = source.validation(_VALIDATION_POINTS, stream(seed, "validation_data"))
    every = max(1, updates // _VALIDATIONS)
    for update in range(1, updates + 1):
        loss = -flow().log_prob(source.draw(batch_size, data)).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(flow.parameters(), _CLIP)
        optimizer.step()
        schedule.step()
        if update % every == 0 or update == updates:
            with torch.no_grad():
                score = -flow().log_prob(validation).mean().item()
            if score < best[0]:
                best = (score, update, copy.deepcopy(flow))
    return best[2], best[1]
