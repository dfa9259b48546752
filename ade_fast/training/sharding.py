"""A potential of which each process keeps a part: `ade.shard`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrize

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor


def shard(potential: nn.Module, mesh: DeviceMesh | None = None) -> nn.Module:
    """Leaves a part of each parameter of ``potential`` in every process, along its first dimension; returns it.

    The weights are gathered once for an unroll, or for an evaluation, and let go of with its graph; their gradients
    become the mean over the processes and are given away to the parts. So parameters, gradients and the optimizer's
    state are shared, which is most of the memory of a large f, and gradients through the unroll are exact: to the
    dynamics the gathered weights are parametrised ones. (``torch.distributed.fsdp.fully_shard`` cannot do that: its
    hooks give the weights away after the first derivative, before the second is taken.)

    Then ``ade.ADE(f, sampler, data_parallel=True).step`` trains both players, and `ade.save` and `ade.restore` write
    and read a directory, all processes together; the number of them may change in between. All processes make this
    call, and each call of f from then on; rank 0's weights are where they begin.

    Args:
        potential: a module on its device; with no parametrised weights.
        mesh: one-dimensional, of the processes; None: all of torch.distributed's default group.

    Raises: TypeError, ValueError: another potential or mesh. RuntimeError: there is no process group.
    """
    if not isinstance(potential, nn.Module):
        raise TypeError(f"shard: potential must be a torch.nn.Module, got {type(potential).__name__}")
    if not distributed.is_available() or not distributed.is_initialized():
        raise RuntimeError("shard: needs torch.distributed.init_process_group first (torchrun starts processes)")
    for name, module in potential.named_modules():
        if parametrize.is_parametrized(module):
            raise ValueError(f"shard: {name or 'potential'} has parametrised weights already (or is sharded)")
    # Their imports take a second.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    if mesh is None:
        mesh = init_device_mesh(_device(potential).type, (distributed.get_world_size(),))
    if mesh.ndim != 1:
        raise ValueError(f"shard: mesh must have one dimension, got {mesh.ndim}")
    parts: dict[int, nn.Parameter] = {}  # a parameter of two modules stays one
    for module in list(potential.modules()):
        for name, whole in list(module._parameters.items()):
            if whole is None:
                continue
            if id(whole) not in parts:
                own = distribute_tensor(whole.detach(), mesh, [Shard(0) if whole.dim() else Replicate()])
                parts[id(whole)] = nn.Parameter(own, whole.requires_grad)
            setattr(module, name, parts[id(whole)])
            parametrize.register_parametrization(module, name, _Gathered(), unsafe=True)
    return potential


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a part (a `DTensor`, whose import takes a second)."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Any) -> Tensor:
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def has_parts(module: nn.Module) -> bool:
    """Whether a module's parameters are parts."""
    return any(map(is_sharded, module.parameters()))


def _device(potential: nn.Module) -> torch.device:
    return next(potential.parameters(), torch.empty(0)).device


class _Gathered(nn.Module):
    """The whole weight of a part."""

    def forward(self, part: DTensor) -> Tensor:
        from torch.distributed.tensor import Partial

        return _Mean.apply(part.full_tensor(grad_placements=[Partial()]), part.device_mesh.size())


class _Mean(torch.autograd.Function):
    """A tensor as it is, whose gradient is divided by n: torch adds those of the n processes up."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, n: int) -> Tensor:
        ctx.n = n
        return whole.view_as(whole)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient / ctx.n, None
