"""What a user's type checker makes of the public interface: checked by mypy in `make lint`, never run."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import assert_type  # torch needs it

import ade_fast as ade


def a_density(rows: np.ndarray[Any, np.dtype[np.float64]]) -> None:
    def watch(progress: ade.training.Progress) -> None:
        if progress.scores["nll"] < 2.0:
            progress.stop()

    model = ade.fit(rows, updates=500, callbacks=[watch, ade.Callback()], out="runs/mine")
    assert_type(model, ade.TrainedModel)
    assert_type(model.log_prob(rows), Tensor)
    assert_type(model.score(rows), float)
    assert_type(model.sample(10, exact="resample"), Tensor)
    assert_type(ade.load("runs/mine").ess, float)


def by_hand(f: nn.Module, x: Tensor) -> None:
    layer = ade.Leapfrog(n_steps=30, step_size=0.1, grad_clip=ade.Clip.norm(1.0), memory="states", gradient="full")
    sampler = ade.DualSampler(ade.initial.SplineFlow(2), layer)
    model = ade.recipe(ade.WithBase(f, 0.0, 3.0), sampler, optimizer=False)
    optimizer: Optimizer = torch.optim.Adam(model.parameter_groups(), lr=1e-3)
    loss = model.loss(x)
    assert_type(loss, Tensor)
    loss.backward()
    optimizer.step()
    assert_type(model.step(x), dict[str, float])
    assert_type(sampler.sample(f, 10), ade.DualSample)
    found = ade.metrics.log_likelihood(f, sampler, x, n_samples=1000)
    assert_type(found.mean, float)
    assert_type(ade.metrics.mmd2(x, x), Tensor)
    assert_type(ade.data.toy("moons").sample(10), Tensor)
    assert_type(ade.estimators.score_matching(f, x), Tensor)
