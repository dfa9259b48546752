"""What an update is made of: a player's optimizer, the norm of its gradient, and its parameters frozen."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .._sums import total_norms
from .adam import Adam
from .sharding import whole

_MARGIN = 1e-6  # of torch.nn.utils.clip_grad_norm_

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
OptimizerOrFactory = Optimizer | OptimizerFactory


def adam(lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), *, maximize: bool) -> OptimizerFactory:
    """Adam as one kernel over all parameters, not one or more for each of them."""
    return functools.partial(Adam, lr=lr, betas=betas, maximize=maximize, fused=True)


def player_optimizer(
    name: str, given: OptimizerOrFactory | None, parameters: Iterable[nn.Parameter], *, maximize: bool
) -> Optimizer | None:
    """The given optimizer, checked to move its player's way, or Adam; None if there is nothing to move."""
    if given is None or not isinstance(given, Optimizer):
        parameters = [p for p in parameters if p.requires_grad]
        if not parameters:
            return None
        given = adam(maximize=maximize)(parameters) if given is None else given(parameters)
        if not isinstance(given, Optimizer):
            raise TypeError(f"ADE: {name} must be an optimizer or return one, got {type(given).__name__}")
    if any(bool(group.get("maximize", False)) is not maximize for group in given.param_groups):
        player, direction = ("potential", "ascends") if maximize else ("sampler", "descends")
        raise ValueError(f"ADE: {name} must have maximize={maximize}: the {player} {direction} the objective")
    return given


def steps_itself(
    optimizer: bool, potential_optimizer: OptimizerOrFactory | None, sampler_optimizer: OptimizerOrFactory | None
) -> bool:
    """Whether `ADE` has optimizers, by its argument ``optimizer``; False leaves no room for the other two."""
    if not isinstance(optimizer, bool):
        raise TypeError(
            f"ADE: optimizer must be True or False, got {type(optimizer).__name__}: with one of your own for both "
            "players, pass optimizer=False and make it from parameter_groups()"
        )
    if not optimizer and (potential_optimizer is not None or sampler_optimizer is not None):
        raise ValueError("ADE: optimizer=False excludes potential_optimizer and sampler_optimizer")
    return optimizer


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    """All that it moves."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def gradients_of(optimizer: Optimizer) -> list[Tensor]:
    """Those of its parameters that have one."""
    return [p.grad for p in parameters_of(optimizer) if p.grad is not None]


def grad_norms(*players: Sequence[Tensor]) -> Tensor:
    """The norms of the gradients of one or two players, [n]."""
    if all(type(g) is Tensor and g.layout is torch.strided for gradients in players for g in gradients):
        return total_norms(*players)
    norms = [whole(nn.utils.get_total_norm(gradients)) for gradients in players]
    return torch.stack([norm.to(norms[0]) for norm in norms])


def clip_grads(optimizer: Optimizer, norm: float, limit: float | None) -> None:
    """Scales all gradients of one optimizer down in place, whose norm (`grad_norms`) is ``norm``, to at most ``limit``.

    The norm is a number: where it has come off the device for the metrics, most updates have nothing to scale.
    """
    if limit is not None and norm > limit:
        torch._foreach_mul_(gradients_of(optimizer), limit / (norm + _MARGIN))


def forget_gradients(parameters: Iterable[Tensor], optimizers: Iterable[Optimizer]) -> None:
    """None of a module's parameters has a gradient, and none that an optimizer holds: these may be fewer, or others."""
    for parameter in itertools.chain(parameters, *map(parameters_of, optimizers)):
        parameter.grad = None


@contextmanager
def frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """No gradients for the parameters inside the block; each one's own setting is back afterwards."""
    changed = [p for p in parameters if p.requires_grad]
    try:
        for parameter in changed:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in changed:
            parameter.requires_grad_(True)


@contextmanager
def shortened(optimizer: Optimizer | None, factor: float) -> Iterator[None]:
    """Inside the block the optimizer's learning rates are multiplied by ``factor``, and so are Adam's steps."""
    groups = optimizer.param_groups if optimizer is not None and factor != 1.0 else []
    rates = [group["lr"] for group in groups]
    try:
        for group in groups:
            group["lr"] = group["lr"] * factor
        yield
    finally:
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
