"""Several processes on one machine (gloo on the CPU; nccl for GPUs): each has its part of every batch."""

import socket
import sys
from multiprocessing.queues import SimpleQueue

import torch
from torch import distributed, multiprocessing

import ade_fast as ade


def work(rank: int, world: int, port: int, updates: int, found: SimpleQueue) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    torch.manual_seed(0)
    potential = ade.WithBase(ade.MLPPotential(2, (64, 64), "silu", input_gain=3.0), 0.0, 3.0)
    sampler = ade.DualSampler(ade.initial.SplineFlow(2), ade.Leapfrog(2, 0.1, grad_clip=ade.Clip.norm(10.0)))
    model = ade.recipe(potential, sampler, data_parallel=True)  # begins at rank 0's players; `step` shares gradients
    data = torch.Generator().manual_seed(rank)  # other points in every process
    for _ in range(updates):
        metrics = model.step(ade.data.toy("moons").sample(256 // world, data) / 2)
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    found.put((rank, float(weights.double().sum()), metrics["ess"]))
    distributed.barrier()
    distributed.destroy_process_group()


def main(smoke: bool = False) -> dict[str, float]:
    world, updates = 2, 2 if smoke else 500
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = multiprocessing.get_context("spawn").SimpleQueue()
    multiprocessing.spawn(work, (world, port, updates, found), nprocs=world)
    (_, one, ess), (_, other, _) = sorted(found.get() for _ in range(world))
    print(f"after {updates} updates in {world} processes: the players are equal: {one == other}, ESS {ess:.2f}")
    return {"difference": abs(one - other), "ess": ess}


if __name__ == "__main__":
    main("--smoke" in sys.argv)
