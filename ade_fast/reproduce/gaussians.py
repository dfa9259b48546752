"""Rows of Table 5: a Gaussian's mean and scale, learned from the same samples in the same number of epochs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from ..dynamics import Leapfrog
from ..estimators import Chain, score_matching
from ..initial import MLPGaussian
from ..potentials import GaussianPotential
from ..training.objective import ADE
from ..training.sampler import DualSampler
from ..training.streams import stream
from ..training.updates import adam

MEAN, STD = -1.0, 0.1
"""The true parameters, in every coordinate."""
LEARNING_RATE, AVERAGED_EPOCHS = 1e-2, 5
_LEAPFROG_STEPS, _STEP_SIZE = 3, 0.02
# Of CD's HMC: a step size adapted by this rate to this acceptance.
_CD_STEPS, _CD_ACCEPTANCE, _CD_RATE = 15, 0.65, 0.05

Update = Callable[[Tensor], object]


def row(arguments: dict[str, Any], directory: Path, stem: str) -> dict[str, Any]:
    """One method's estimate: the mean over the last epochs, as in F.1; "exact" is maximum likelihood's own."""
    dim, seed, method = arguments["dim"], arguments["seed"], arguments["method"]
    noise = torch.randn(arguments["samples"], dim, generator=stream(seed, "gaussian data"), dtype=torch.float64)
    data = MEAN + STD * noise
    if method == "exact":
        return _errors(data.mean(0), data.std(0, correction=0))
    data, f = data.float(), GaussianPotential(dim)
    update, schedules = METHODS[method](f, seed, arguments["epochs"] * arguments["batches"])
    epochs, means, stds = arguments["epochs"], [], []
    for epoch, batches in enumerate(_epochs(data, epochs, arguments["batches"], seed)):
        for batch in batches:
            update(batch)
            for schedule in schedules:
                schedule.step()
        if epoch >= epochs - AVERAGED_EPOCHS:
            means.append(f.mean.detach().clone())
            stds.append(f.log_std.detach().exp())
    return _errors(torch.stack(means).mean(0), torch.stack(stds).mean(0))


def _epochs(data: Tensor, epochs: int, batches: int, seed: int) -> Iterator[tuple[Tensor, ...]]:
    generator = stream(seed, "gaussian batches")
    for _ in range(epochs):
        yield data[torch.randperm(len(data), generator=generator)].chunk(batches)


def _errors(mean: Tensor, std: Tensor) -> dict[str, Any]:
    """Root mean square errors of mean and scale, of each alone and of all parameters together."""
    of_mean, of_std = (mean.double() - MEAN).square().mean(), (std.double() - STD).square().mean()
    return {
        "rmse": math.sqrt((of_mean + of_std) / 2),
        "rmse_mean": math.sqrt(of_mean),
        "rmse_std": math.sqrt(of_std),
    }


def _descending(loss_of: Callable[[Tensor], Tensor], f: GaussianPotential, updates: int) -> tuple[Update, list[Any]]:
    optimizer = Adam(f.parameters(), lr=LEARNING_RATE)

    def update(batch: Tensor) -> None:
        optimizer.zero_grad()
        loss_of(batch).backward()
        optimizer.step()

    return update, [CosineAnnealingLR(optimizer, updates)]


def _score_matching(f: GaussianPotential, seed: int, updates: int) -> tuple[Update, list[Any]]:
    return _descending(lambda batch: score_matching(f, batch), f, updates)


def _contrastive_divergence(f: GaussianPotential, seed: int, updates: int) -> tuple[Update, list[Any]]:
    generator, hmc = stream(seed, "gaussian chains"), Leapfrog(1, 0.1, learn_step_size=False)
    chain = Chain(hmc, _CD_STEPS, accept_reject=True)

    def loss_of(batch: Tensor) -> Tensor:
        end = chain.run(f, batch, generator=generator)
        assert end.acceptance is not None  # each run is tested
        hmc.step_size.mul_(math.exp(_CD_RATE * (end.acceptance.item() - _CD_ACCEPTANCE)))
        return f(end.x).mean() - f(batch).mean()

    return _descending(loss_of, f, updates)


def _adversarial(f: GaussianPotential, seed: int, updates: int) -> tuple[Update, list[Any]]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        sampler = DualSampler(MLPGaussian(f.dim), Leapfrog(_LEAPFROG_STEPS, torch.full((f.dim,), _STEP_SIZE)))
    model = ADE(
        f,
        sampler,
        bound="importance",
        sampler_bound="renyi",
        sampler_min_ess=0.1,
        ess_pace=0.3,
        samples_per_point=4,
        potential_optimizer=adam(LEARNING_RATE, maximize=True),
        sampler_optimizer=adam(LEARNING_RATE, maximize=False),
        grad_norm_clip=1.0,
    )
    generator = stream(seed, "gaussian sampler")
    optimizers = [o for o in (model.potential_optimizer, model.sampler_optimizer) if o is not None]
    schedules = [CosineAnnealingLR(o, updates) for o in optimizers]
    return lambda batch: model.step(batch, generator=generator), schedules


METHODS: dict[str, Callable[[GaussianPotential, int, int], tuple[Update, list[Any]]]] = {
    "SM": _score_matching,
    "CD-15": _contrastive_divergence,
    "ADE": _adversarial,
}
