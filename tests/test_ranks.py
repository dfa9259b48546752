"""Two processes on gloo: `ADE.step` with data_parallel, and DistributedDataParallel around the objective."""

from __future__ import annotations

import copy
import dataclasses
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel
from training_cases import TINY

import ade_fast as ade
from ade_fast.training import train
from ade_fast.training.config import ConfigError

pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="this torch has no torch.distributed")

WORLD = 2


def make(seed: int, activation: str = "silu", shard: bool = False, **options: Any) -> ade.ADE:
    torch.manual_seed(seed)
    potential = ade.WithBase(ade.MLPPotential(2, (32, 32), activation), 0.0, 3.0)
    potential = ade.shard(potential) if shard else potential
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


def with_noise(of: ade.ADE, rows: slice) -> None:
    """q⁰'s draws are those rows of the joint ones."""
    dtype = next(of.parameters()).dtype
    z = torch.randn(32, 2, dtype=dtype, generator=torch.Generator().manual_seed(1))
    v = torch.randn(32, 2, dtype=dtype, generator=torch.Generator().manual_seed(2))
    flow = of.sampler.initial

    def sample(n: int, momentum_shape: Any = None, generator: Any = None) -> tuple[Tensor, Tensor, Tensor]:
        moved, log_det = flow.transform(z[rows])
        normal = ade.initial.base.standard_normal_log_density
        return moved, v[rows], normal(z[rows]) - log_det + normal(v[rows])

    object.__setattr__(flow, "sample", sample)


def wrapped(rank: int) -> dict[str, Any]:
    """The gradient of DistributedDataParallel at a joint batch and joint noise, and 5 updates by its users."""
    model = make(0)
    alone, both = copy.deepcopy(model), DistributedDataParallel(model)
    x = torch.randn(32, 2, generator=torch.Generator().manual_seed(0))
    start = model.sampler.initial.sample(32, (2,), torch.Generator().manual_seed(1))
    mine = slice(16 * rank, 16 * (rank + 1))

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


BOUNDS = {
    "renyi": {"bound": "elbo", "sampler_bound": "renyi"},
    "importance": {"bound": "importance", "sampler_bound": "importance", "min_ess": 0.6},
    "defensive": {"bound": "importance", "sampler_bound": "renyi", "defensive": 0.5},
}


def joint_bounds(rank: int) -> dict[str, Any]:
    """Loss and gradient with the weights of all ranks together, averaged over them; and those of the joint batch."""
    found: dict[str, Any] = {}
    for name, options in BOUNDS.items():
        alone = make(0, **options).double()
        ours = make(0, data_parallel=True, **options).double()
        ours.load_state_dict(alone.state_dict())
        x = torch.randn(32, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        base = 3 * torch.randn(32, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        mine = slice(16 * rank, 16 * (rank + 1))
        for model, rows in ((ours, mine), (alone, slice(None))):
            with_noise(model, rows)
            object.__setattr__(model.potential, "sample_base", lambda *_, of=base[rows], **__: of)
        loss, whole = ours.loss(x[mine]), alone.loss(x)
        loss.backward()
        whole.backward()
        ours._ranks.average_gradients([ours.potential_optimizer, ours.sampler_optimizer])
        mean = ours._ranks.average(loss.detach().clone())
        found[name] = {"ranks": gradients(ours), "joint": gradients(alone), "loss": (mean, whole.detach())}
    with pytest.raises(ValueError, match=r"as many data on every rank.*they give 5, 6 weights"):
        ours._ranks.joint(torch.zeros(5 + rank))
    return found


def refused(rank: int) -> dict[str, Any]:
    from torch.distributed.device_mesh import init_device_mesh  # a second of each process, wherever it is not needed
    from torch.distributed.fsdp import fully_shard

    potential = DistributedDataParallel(ade.MLPPotential(2, (32,)))
    with pytest.raises(ValueError, match="wrap the objective, DistributedDataParallel"):
        ade.ADE(potential, make(0).sampler)
    sharded = fully_shard(ade.MLPPotential(2, (32,)), mesh=init_device_mesh("cpu", (WORLD,)))
    with pytest.raises(ValueError, match=r"Leapfrog: potential is sharded \(FSDPMLPPotential, by fully_shard\)"):
        ade.Leapfrog(2, 0.1)(sharded, torch.randn(4, 2))
    return why_fully_shard_is_refused()


def why_fully_shard_is_refused() -> dict[str, Any]:
    """∂/∂θ |∇f|² in eager PyTorch: where weights are given away after the first derivative, and where they are not."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    def second(f: nn.Module) -> list[Tensor | None]:
        x = torch.ones(4, 2, requires_grad=True)
        (grad,) = torch.autograd.grad(f(x).sum(), x, create_graph=True)
        grad.square().sum().backward()
        return [p.grad for p in f.parameters()]

    def net() -> nn.Module:
        return fully_shard(nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 1)), mesh=mesh)

    mesh = init_device_mesh("cpu", (WORLD,))
    with pytest.raises(RuntimeError, match="storage of size 0"):
        second(net())
    kept = net()
    kept.set_reshard_after_backward(False)
    kept.unshard()
    return {"of kept weights": second(kept)}


def shards(rank: int, folder: Path) -> dict[str, Any]:
    """`ade.shard`: gradients and updates beside those of whole weights, and a checkpoint."""
    found: dict[str, Any] = {}
    x = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(rank))
    mine = torch.Generator().manual_seed(10 + rank)
    for activation in ("relu", "silu"):
        options = {"data_parallel": True, "gradient_penalty": 0.1, "grad_norm_clip": 0.5}
        whole = make(0, **options, activation=activation).double()
        parts = make(0, **options, activation=activation, shard=True).double()
        assert [p.to_local().shape[0] for p in parts.potential.parameters()] == [16, 16, 16, 16, 1 - rank, 1 - rank]
        noise = mine.get_state()
        pairs = []
        for model in (whole, parts):
            mine.set_state(noise)
            model.loss(x, generator=mine).backward()
            pairs.append(list(model.potential.parameters()))
        for a in pairs[0]:
            distributed.all_reduce(a.grad)
        found[activation] = [(a.grad / WORLD, b.grad.full_tensor()) for a, b in zip(*pairs, strict=True)]
        metrics = []
        for model in (whole, parts):
            mine.set_state(noise)
            metrics.append([model.step(x, generator=mine) for _ in range(3)])
        found[f"{activation} metrics"] = metrics
        found[f"{activation} after"] = [(a.detach(), b.full_tensor().detach()) for a, b in zip(*pairs, strict=True)]
    ade.save(parts, folder / "parts")
    found["folder"] = folder / "parts"
    again = make(7, **options, activation=activation, shard=True).double()
    ade.restore(again, folder / "parts")
    assert again.updates == 3
    goes_on = []
    for model in (parts, again):
        mine.set_state(noise)
        goes_on.append(model.step(x, generator=mine))
    found["goes on"] = goes_on
    with pytest.raises(ade.training.CheckpointError, match=r"is not one of this model, written by ade\.save"):
        ade.restore(again, folder / "none")
    with pytest.raises(ValueError, match=r"shard: layers\.0 has parametrised weights already"):
        ade.shard(parts.potential.potential)
    with pytest.raises(ValueError, match="fit: potential is sharded"):
        ade.fit(x.numpy(), parts.potential)
    return found


def odd_gradients(rank: int) -> dict[str, Any]:
    """What the mean leaves of parameters with a gradient on all ranks, on one, and on none, and of a weight that is
    zero."""
    parameters = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    parameters[0].grad = torch.full((2,), 1.0 + rank)
    if rank == 1:
        parameters[1].grad = torch.full((2,), 4.0)
    ours = make(0, data_parallel=True)._ranks
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.1)
    ours.average_gradients([optimizer])
    optimizer.step()
    log_w = torch.tensor([0.5, -torch.inf if rank == 1 else 0.25], requires_grad=True)
    joint = ours.joint(log_w)
    joint.logsumexp(0).backward()
    return {"means": [p.grad for p in parameters], "frozen": parameters[2].detach(), "joint": joint.detach(),
            "of log_w": log_w.grad}  # fmt: skip


class StopsOnOneRank(ade.Callback):
    """Stops the run on the second rank alone, after its third update, which has no validation otherwise."""

    def __init__(self, rank: int) -> None:
        self.rank, self.validated = rank, []

    def on_update(self, progress: Any) -> None:
        if self.rank == 1 and progress.update == 3:
            progress.stop()

    def on_validate(self, progress: Any) -> None:
        self.validated.append(progress.update)


def stopped_runs(rank: int, folder: Path) -> dict[str, Any]:
    """A run that one rank ends, and one that cannot be resumed as the second rank does not see it."""
    callback = StopsOnOneRank(rank)
    config = dataclasses.replace(TINY, test_permutations=5)
    summary = train(config, folder / "run", progress=False, pictures=False, callbacks=[callback])
    there = (folder / "run" / "summary.json").exists()
    with pytest.raises(ConfigError, match=r"0 sees checkpoint.pt and config.json in .*, process 1 sees nothing"):
        train(config, folder / ("run" if rank == 0 else "elsewhere"), resume=True, progress=False, pictures=False)
    return {"updates": summary.updates, "validated": callback.validated, "written": there}


def worker(rank: int, task: Callable[[int, Path], dict], port: int, folder: str, world: int) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.init_process_group("gloo", rank=rank, world_size=world)
    try:
        torch.save(task(rank, Path(folder)), Path(folder) / f"{rank}.pt")
    finally:
        distributed.destroy_process_group()


def everything(rank: int, folder: Path) -> dict[str, Any]:
    return {
        "stepping": stepping(rank),
        "wrapped": wrapped(rank),
        "bounds": joint_bounds(rank),
        "refused": refused(rank),
        "shards": shards(rank, folder),
        "odd": odd_gradients(rank),
        "stopped": stopped_runs(rank, folder),
    }


def many_updates(rank: int, folder: Path) -> dict[str, Any]:
    """50 updates from players and data that differ between the ranks."""
    model = make(rank, data_parallel=True, bound="importance", sampler_bound="renyi", min_ess=0.5)
    data = torch.Generator().manual_seed(100 + rank)
    for _ in range(50):
        metrics = model.step(torch.randn(4, 2, generator=data))
    return {"players": state(model), "metrics": metrics}


def found_by(world: int, task: Callable[[int, Path], dict], folder: Path) -> list[dict[str, Any]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(worker, (task, port, str(folder), world), world)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    return found_by(WORLD, everything, tmp_path_factory.mktemp("ranks"))


def test_four_processes_have_the_same_players_after_fifty_updates(tmp_path: Path) -> None:
    first, *others = found_by(4, many_updates, tmp_path)
    for found in others:
        assert torch.equal(found["players"], first["players"]) and found["metrics"] == first["metrics"]


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


@pytest.mark.parametrize("bound", list(BOUNDS))
def test_bounds_are_those_of_all_ranks_samples_together(ranks: list[dict[str, Any]], bound: str) -> None:
    for found in ranks:
        ours, joint = found["bounds"][bound]["ranks"], found["bounds"][bound]["joint"]
        assert joint.abs().max() > 1e-3 and (ours - joint).abs().max() <= 1e-10 * max(1.0, joint.abs().max().item())
        torch.testing.assert_close(*found["bounds"][bound]["loss"], rtol=1e-12, atol=1e-12)


def test_no_gradient_on_any_rank_stays_none_and_a_zero_weight_is_no_nan(ranks: list[dict[str, Any]]) -> None:
    odd = [found["odd"] for found in ranks]
    for found in odd:
        assert found["means"][0].tolist() == [1.5, 1.5] and found["means"][1].tolist() == [2.0, 2.0]
        assert found["means"][2] is None and found["frozen"].tolist() == [1.0, 1.0], "no weight decay of what has none"
        assert found["joint"].tolist() == [0.5, 0.25, 0.5, -torch.inf]
    w = torch.tensor([0.5, 0.25, 0.5, -torch.inf]).softmax(0)
    torch.testing.assert_close(torch.cat([found["of log_w"] for found in odd]), 2 * w)


def test_one_rank_stops_the_run_of_all(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert found["stopped"] == {"updates": 3, "validated": [2, 3], "written": True}


def test_fully_shard_has_no_second_derivative(ranks: list[dict[str, Any]]) -> None:
    """If this fails, torch has one now, and `unfit` may let it through."""
    assert ranks[0]["refused"]["of kept weights"] == [None] * 4


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_parts_of_weights_get_the_mean_gradient(ranks: list[dict[str, Any]], activation: str) -> None:
    for found in ranks:
        for name in (activation, f"{activation} after"):
            for whole, part in found["shards"][name]:
                torch.testing.assert_close(part, whole, rtol=1e-10, atol=1e-12)
        for whole, part in zip(*found["shards"][f"{activation} metrics"], strict=True):
            assert whole == pytest.approx(part, rel=1e-9)
        first, second = found["shards"]["goes on"]
        assert first == second


def test_another_number_of_processes_reads_the_parts(ranks: list[dict[str, Any]]) -> None:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        model = make(7, data_parallel=True, shard=True).double()
        ade.restore(model, ranks[0]["shards"]["folder"])
        for part, (_, saved) in zip(model.potential.parameters(), ranks[0]["shards"]["silu after"], strict=True):
            assert torch.equal(part.full_tensor(), saved)
    finally:
        distributed.destroy_process_group()


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
