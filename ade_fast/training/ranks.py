"""One objective in several processes, each with its part of the data: what `ADE.step` shares between them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from .sharding import is_sharded


class Ranks:
    """The processes of torch.distributed's default group. All calls are collective: every rank makes them."""

    def __init__(self) -> None:
        if not distributed.is_available() or not distributed.is_initialized():
            raise RuntimeError(
                "ADE: data_parallel=True needs torch.distributed.init_process_group first (torchrun starts processes)"
            )
        self.count, self.rank = distributed.get_world_size(), distributed.get_rank()
        self._generators: dict[torch.device, torch.Generator] = {}

    def begin(self, module: nn.Module) -> None:
        """Rank 0's parameters and buffers for everyone."""
        with torch.no_grad():
            for tensor in itertools.chain(module.parameters(), module.buffers()):
                if is_sharded(tensor):  # everyone's own
                    continue
                shared = tensor.detach().contiguous()
                distributed.broadcast(shared, 0)
                tensor.copy_(shared)

    def generator(self, device: torch.device) -> torch.Generator:
        """A source of noise of this rank's own, from torch's seed: processes are usually seeded alike."""
        if device not in self._generators:
            seed = (torch.initial_seed() + 0x9E3779B97F4A7C15 * (self.rank + 1)) % 2**63
            self._generators[device] = torch.Generator(device).manual_seed(seed)
        return self._generators[device]

    def average_gradients(self, optimizers: Sequence[Optimizer]) -> None:
        """Each gradient becomes the mean over the ranks; none counts as zero, unless no rank has one: then there is
        none, as weight decay would move a parameter whose gradient is zero. Parts' (`ade.shard`) are the mean."""
        held = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
        parameters = [p for p in held if not is_sharded(p)]
        for dtype, device in dict.fromkeys((p.dtype, p.device) for p in parameters):
            alike = [p for p in parameters if (p.dtype, p.device) == (dtype, device)]
            parts = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in alike]
            there = parts[0].new_tensor([p.grad is not None for p in alike])
            *means, there = self.average(torch.cat([*parts, there])).split([*(p.numel() for p in alike), len(alike)])
            for parameter, mean, share in zip(alike, means, there.tolist(), strict=True):
                if share > 0:
                    parameter.grad = mean.view_as(parameter).clone(memory_format=torch.preserve_format)

    def joint(self, values: Tensor) -> Tensor:
        """The values [K] of all ranks, [R K]. A scalar of them has on each rank R times the gradient of its own K, so
        that the mean of gradients over the ranks is the gradient of that scalar.

        Raises: ValueError: the ranks have not the same number.
        """
        sizes = [torch.zeros(1, dtype=torch.int64, device=values.device) for _ in range(self.count)]
        distributed.all_gather(sizes, torch.full_like(sizes[0], len(values)))
        if len({int(size) for size in sizes}) > 1:
            raise ValueError(
                f"ADE: data_parallel=True needs as many data on every rank, for weights of all samples together: they "
                f"give {', '.join(str(int(size)) for size in sizes)} weights"
            )
        own = values.detach().contiguous()
        everyones = [torch.empty_like(own) for _ in range(self.count)]
        distributed.all_gather(everyones, own)
        everyones[self.rank] = values.view_as(values)
        if values.requires_grad:  # not own + R (values - own), which is NaN where a weight is zero
            everyones[self.rank].register_hook(lambda gradient: self.count * gradient)
        return torch.cat(everyones)

    def average(self, values: Tensor) -> Tensor:
        distributed.all_reduce(values)
        return values.div_(self.count)


def refuse_wrapped(potential: object) -> None:
    """A potential whose gradients alone are shared would leave the sampler to each rank."""
    if isinstance(potential, DistributedDataParallel):
        raise ValueError(
            "ADE: potential is wrapped in DistributedDataParallel, and the samplers of the ranks would drift apart: "
            "wrap the objective, DistributedDataParallel(ade.ADE(f, sampler)), whose forward is `loss`; or "
            "ade.ADE(f, sampler, data_parallel=True), whose `step` shares both players' gradients"
        )
