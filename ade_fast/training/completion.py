"""Completion (Figure 4): a part of an image is given, the rest is drawn by the learned sampler at that part."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..dynamics import DampedLeapfrog, Langevin, Leapfrog
from ..dynamics.base import Dynamics
from ._arguments import SEEDS, integer

if TYPE_CHECKING:
    from .trained import TrainedModel

# What has no networks over the whole of x: its steps can be taken on a part of it.
_DYNAMICS = (Leapfrog, DampedLeapfrog, Langevin)


class _Below(nn.Module):
    """f of the lower rows of images whose upper rows are given: (n, C, h, W) -> (n,)."""

    upper: Tensor

    def __init__(self, potential: nn.Module, upper: Tensor) -> None:
        super().__init__()
        self.potential = potential
        self.register_buffer("upper", upper)

    def forward(self, lower: Tensor) -> Tensor:
        return self.potential(torch.cat([self.upper, lower], 2))


@torch.no_grad()
def complete(
    model: TrainedModel, images: Tensor, *, given_rows: int | None = None, runs: int = 20, seed: int = 0
) -> Tensor:
    """The lower rows of images by the model's dynamics, the upper ones held.

    The lower rows begin as noise between black and white. The dynamics then run on them alone, on f as a function of
    them: up to a constant the log-density of the lower rows given the upper ones. Each run begins with a new momentum.

    Source: Figure 4 and F.2, 20 runs.

    Args:
        model: a run on images.
        images: ``(n, C, H, W)``, pixels in [0, 1].
        given_rows: how many of the upper rows are held; None: half of them.
        runs: of the dynamics, one after the other, >= 1.
        seed: of all randomness.

    Returns:
        ``(n, C, H, W)``, pixels in [0, 1], the given rows as they were.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or shape; a dynamics with networks.
    """
    event, dynamics = tuple(model.event), model.sampler.dynamics
    runs = integer("complete", "runs", runs, low=1)
    seed = integer("complete", "seed", seed, low=0, high=SEEDS - 1)
    if len(event) != 3:
        raise ValueError(f"complete: model must be one of images, got the event {event}")
    if not isinstance(images, Tensor) or not images.is_floating_point():
        got = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"complete: images must be a floating-point tensor, got {got}")
    if tuple(images.shape[1:]) != event:
        wanted = ", ".join(map(str, event))
        raise ValueError(f"complete: images must have the shape (n, {wanted}), got {tuple(images.shape)}")
    held = event[1] // 2 if given_rows is None else integer("complete", "given_rows", given_rows, low=1)
    if held >= event[1]:
        raise ValueError(f"complete: given_rows must be less than the {event[1]} rows of an image, got {held}")
    if type(dynamics) not in _DYNAMICS:
        names = ", ".join(kind.__name__ for kind in _DYNAMICS)
        raise TypeError(f"complete: the model's dynamics must be one of {names}, got {type(dynamics).__name__}")
    device = next(model.potential.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    z = model.space.to_z(images).to(device)
    upper, below = z[:, :, :held], _of_rows(dynamics, event, held)
    f, (low, high) = _Below(model.potential, upper), model.space.range
    x = low + (high - low) * torch.rand(z[:, :, held:].shape, generator=generator).to(device)
    for _ in range(runs):
        v = model.sampler.momenta(len(x), generator)
        x = below(f, x, None if v is None else v[:, :, held:], generator=generator).x
    completed = model.space.to_data(torch.cat([upper, x], 2)).cpu()
    completed[:, :, :held] = images[:, :, :held].float().cpu()
    return completed


def _of_rows(dynamics: Dynamics, event: tuple[int, ...], held: int) -> Dynamics:
    """The same dynamics on the rows from ``held`` on: what it has for each pixel is cut."""
    cut = copy.deepcopy(dynamics)
    for own in (*cut.parameters(recurse=False), *cut.buffers(recurse=False)):
        if tuple(own.shape[-3:]) == event:
            own.data = own.data[..., held:, :]
    return cut
