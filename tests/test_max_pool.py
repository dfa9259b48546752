"""Max pooling in the programs of piecewise-linear potentials: what it chose is kept in bits, ties are autograd's."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from test_program import eager
from torch import Tensor, nn

import ade_fast as ade
from ade_fast.programs import Watch

D = torch.float64
POOLS = {
    "halves": {"kernel_size": 2},
    "overlapping": {"kernel_size": 3, "stride": 2, "padding": 1},
    "dilated": {"kernel_size": (2, 3), "stride": (1, 2), "padding": (0, 1), "dilation": (2, 1), "ceil_mode": True},
    "whole": {"kernel_size": (6, 6)},
}


class Pooled(nn.Module):
    """Ties at x itself, where samples are clipped, and at zeros of ReLU; a choice that goes two ways."""

    def __init__(self, pool: nn.Module, channels: int = 2) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(channels, 5, 3, padding=1), nn.Conv2d(channels, 5, 1)
        self.pool, self.end = pool, nn.LazyLinear(1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.pool(F.relu(self.a(x))) + self.b(self.pool(x)) * 0.5
        return self.end(F.leaky_relu(h, 0.2).flatten(1)).squeeze(-1)


class Sequences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.end, self.pool = nn.Conv1d(3, 4, 3), nn.Linear(8, 1), nn.MaxPool1d(2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.pool(self.a(torch.max_pool1d(x, 3, 1))).flatten(1)).squeeze(-1)


def gradients_agree(potential: nn.Module, x0: Tensor, memory: str, n_steps: int = 4, damping: float = 0.5) -> object:
    """With those of eager back-propagation through damped leapfrog with both clips and the samples' range."""
    v0, clip = torch.randn_like(x0).requires_grad_(), ade.Clip.value(0.01)
    layer = ade.DampedLeapfrog(
        n_steps, 0.3, damping, grad_clip=clip, momentum_clip=clip, sample_range=(-1, 1), memory=memory
    ).to(D)
    inputs = [x0, v0, layer.step_size, *potential.parameters()]
    x, v, _ = layer(potential, x0, v0)
    wanted = eager(potential, x0, v0, layer.step_size, n_steps, damping)
    weights = [torch.randn_like(x), torch.randn_like(v)]
    got = torch.autograd.grad((x, v), inputs, weights, allow_unused=True, materialize_grads=True)
    expected = torch.autograd.grad(wanted, inputs, weights, allow_unused=True)
    # Fixed-point states are not eager's to the last bit (2⁻⁴⁴).
    for g, e in zip((x, v, *got), (*wanted, *expected), strict=True):
        torch.testing.assert_close(g, torch.zeros_like(g) if e is None else e, rtol=1e-10, atol=1e-10)
    return layer.last_plan


def program_is_autograds(potential: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """To the last bit, where it was written down and at the same rows again."""
    watch = Watch(x.requires_grad_())
    with watch:
        y = potential(x)
        watch.end(y)
    (wanted,) = torch.autograd.grad(y.sum(), x)
    program = watch.program()
    value, masks = program.evaluate(potential, x)
    assert torch.equal(value, y) and torch.equal(program.gradient(masks, len(x), keep=False)[0], wanted)
    assert all(torch.equal(a, b) for a, b in zip(masks, program.again(x.detach()), strict=True))
    assert sum(mask.numel() for mask in masks) <= len(x) * program.bit_bytes


def tied(pool: nn.Module) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    x0 = torch.randn(3, 2, 6, 6, dtype=D).clamp(-1, 1)
    x0[:, :, ::2] = 0.25
    potential = Pooled(pool).to(D)
    potential(x0.detach())  # its last layer's size
    return potential, x0.requires_grad_()


@pytest.mark.parametrize("memory", ["graph", "masks", "states", "reversible"])
@pytest.mark.parametrize("name", POOLS)
def test_gradients_are_eagers(name: str, memory: str) -> None:
    plan = gradients_agree(*tied(nn.MaxPool2d(**POOLS[name])), memory)
    assert (plan.memory, plan.field) == (memory, "program")


@pytest.mark.parametrize("memory", ["graph", "masks", "states"])
def test_in_one_dimension(memory: str) -> None:
    torch.manual_seed(1)
    plan = gradients_agree(Sequences().to(D), torch.randn(3, 3, 6, dtype=D, requires_grad=True), memory)
    assert (plan.memory, plan.field) == (memory, "program")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", POOLS)
def test_the_choice_is_autograds_where_images_are_channels_last(name: str, dtype: torch.dtype) -> None:
    """Ties included, in the order that convolutions on the CPU take."""
    torch.manual_seed(0)
    pool = nn.MaxPool2d(**POOLS[name])
    program_is_autograds(lambda x: F.relu(pool(x)).flatten(1).sum(1), torch.randint(-2, 3, (4, 3, 6, 6)).to(dtype))


def test_windows_of_more_places_than_a_byte_has() -> None:
    torch.manual_seed(0)
    program_is_autograds(lambda x: F.relu(F.max_pool1d(x, 300, 50)).flatten(1).sum(1), torch.randn(2, 3, 400))


def test_a_mask_is_as_small_as_it_can_be() -> None:
    """Beside one bit per unit of the other kinks: two bits of four places, four of nine, a byte of 36."""
    for name, bits in (("halves", 2), ("overlapping", 4), ("dilated", 4), ("whole", 8)):
        pool = nn.MaxPool2d(**POOLS[name])
        potential, x0 = tied(pool)
        layer = ade.Leapfrog(10).to(D)
        forecast = ade.memory_forecast(potential, layer, tuple(x0.shape), dtype=D)
        outputs = math.prod(pool(x0).shape[2:])
        row = (
            math.ceil(5 * 36 / 8) + sum(math.ceil(c * outputs * bits / 8) for c in (5, 2)) + math.ceil(5 * outputs / 8)
        )
        assert forecast["masks"] - forecast["states"] == row * len(x0) * (layer.n_steps + 1)


class First(nn.Module):
    """Asks for the indices, and leaves them."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2, return_indices=True)[0]


class Rest(nn.Module):
    """A slope that is computed at every evaluation, which no program has: autograd takes it."""

    def __init__(self, pooled: nn.Module) -> None:
        super().__init__()
        self.pooled, self.gain = pooled, nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.pooled(x) * self.gain.exp()


@pytest.mark.parametrize("memory", ["graph", "states"])
@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), First(), nn.AdaptiveMaxPool2d(3)], ids=str)
def test_what_is_no_program_is_eagers_too(pool: nn.Module, memory: str) -> None:
    potential, x0 = tied(pool)
    plan = gradients_agree(Rest(potential).to(D), x0, memory)
    assert plan.field == "autograd" and not plan.piecewise_linear
