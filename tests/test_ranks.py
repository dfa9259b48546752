"""Two processes on gloo: `ADE.step` with data_parallel, and DistributedDataParallel around the objective."""

from __future__ import annotations

import copy
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

import ade_fast as ade

pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="this torch has no torch.distributed")

WORLD = 2


def make(seed: int, **options: Any) -> ade.ADE:
    torch.manual_seed(seed)
    potential = ade.WithBase(ade.MLPPotential(2, (32, 32), "silu"), 0.0, 3.0)
    sampler = ade.DualSampler(ade.initial.PlanarFlow(2, 3), ade.Leapfrog(3, 0.1, grad_clip=ade.Clip.norm(10.0)))
    return ade.ADE(potential, sampler, **options)


def state(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def gradients(model: nn.Module) -> Tensor:
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()])


def stepping(rank: int) -> dict[str, Any]:
    """50 updates by `step`, from players and data that differ between the ranks."""
    found: dict[str, Any] = {}
    bounds = {"bound": "importance", "sampler_bound": "renyi", "defensive": 0.5, "ess_pace": 0.3}
    for name, options in {"elbo": {"sampler_steps": 2, "gradient_penalty": 0.01}, "renyi": bounds}.items():
        model = make(rank, data_parallel=True, **options)
        found[f"{name} begin"] = state(model)
        data = torch.Generator().manual_seed(100 + rank)
        for _ in range(50):
            metrics = model.step(torch.randn(16, 2, generator=data))
        found[name], found[f"{name} metrics"] = state(model), metrics
    return found


def wrapped(rank: int) -> dict[str, Any]:
    """The gradient of DistributedDataParallel at a joint batch and joint noise, and 5 updates by its users."""
    model = make(0)
    alone, both = copy.deepcopy(model), DistributedDataParallel(model)
    x = torch.randn(32, 2, generator=torch.Generator().manual_seed(0))
    start = model.sampler.initial.sample(32, (2,), torch.Generator().manual_seed(1))
    mine = slice(16 * rank, 16 * (rank + 1))

    def with_noise(of: ade.ADE, rows: slice) -> None:
        """q⁰'s draws are those rows of the joint ones."""
        z = torch.randn(32, 2, generator=torch.Generator().manual_seed(1))
        v = torch.randn(32, 2, generator=torch.Generator().manual_seed(2))
        flow = of.sampler.initial

        def sample(n: int, momentum_shape: Any = None, generator: Any = None) -> tuple[Tensor, Tensor, Tensor]:
            moved, log_det = flow.transform(z[rows])
            normal = ade.initial.base.standard_normal_log_density
            return moved, v[rows], normal(z[rows]) - log_det + normal(v[rows])

        object.__setattr__(flow, "sample", sample)

    assert start.x.shape == (32, 2)
    with_noise(model, mine)
    with_noise(alone, slice(None))
    both(x[mine]).backward()
    alone.loss(x).backward()
    found = {"ranks": gradients(model), "joint": gradients(alone)}
    for _ in range(5):
        model.zero_grad()
        both(x[mine]).backward()
        for optimizer in (model.potential_optimizer, model.sampler_optimizer):
            optimizer.step()
    return found | {"after": state(model)}


def refused(rank: int) -> dict[str, Any]:
    potential = DistributedDataParallel(ade.MLPPotential(2, (32,)))
    with pytest.raises(ValueError, match="wrap the objective, DistributedDataParallel"):
        ade.ADE(potential, make(0).sampler)
    return {}


def worker(rank: int, task: Callable[[int], dict], port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.init_process_group("gloo", rank=rank, world_size=WORLD)
    try:
        torch.save(task(rank), Path(folder) / f"{rank}.pt")
    finally:
        distributed.destroy_process_group()


def everything(rank: int) -> dict[str, Any]:
    return {"stepping": stepping(rank), "wrapped": wrapped(rank), "refused": refused(rank)}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each process found."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(worker, (everything, port, str(folder)), WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]


@pytest.mark.parametrize("bound", ["elbo", "renyi"])
def test_players_stay_equal_bit_for_bit(ranks: list[dict[str, Any]], bound: str) -> None:
    first, second = (found["stepping"] for found in ranks)
    assert torch.equal(first[f"{bound} begin"], second[f"{bound} begin"]), "all begin where rank 0 does"
    assert not torch.equal(first[f"{bound} begin"], first[bound])
    assert torch.equal(first[bound], second[bound])
    assert first[f"{bound} metrics"] == second[f"{bound} metrics"]


def test_the_gradient_is_that_of_the_joint_batch(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        joint = found["wrapped"]["joint"]
        assert (found["wrapped"]["ranks"] - joint).abs().max() <= 1e-6 * max(1.0, joint.abs().max().item())
    assert torch.equal(*(found["wrapped"]["after"] for found in ranks))


def test_ranks_draw_noise_of_their_own(ranks: list[dict[str, Any]]) -> None:
    """With one seed for all: the mean of two equal ranks would be the gradient of one."""
    from ade_fast.training.ranks import Ranks

    seeds = []
    for rank in range(2):
        one = Ranks.__new__(Ranks)
        one.rank, one._generators = rank, {}
        seeds.append(torch.randn(5, generator=one.generator(torch.device("cpu"))))
    assert not torch.equal(*seeds)


def test_without_a_process_group_it_says_so() -> None:
    with pytest.raises(RuntimeError, match=r"data_parallel=True needs torch\.distributed"):
        make(0, data_parallel=True)


def test_forward_is_the_loss() -> None:
    model, x = make(0), torch.randn(8, 2)
    a, b = (way(x, generator=torch.Generator().manual_seed(0)) for way in (model, model.loss))
    assert torch.equal(a, b)
