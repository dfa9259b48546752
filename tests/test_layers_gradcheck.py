"""torch.autograd.gradcheck in float64: analytic gradients of every layer against finite differences.

The parameters of the potential and of S and g are among the checked inputs: gradcheck moves them in place,
and the modules see it.
"""

from typing import Any

import pytest
import torch
from cases import (
    DOUBLE,
    POTENTIALS,
    DriftNetwork,
    KickNetwork,
    make_potential,
    mlp,
    normal,
)
from torch import Tensor, nn

import ade_fast as ade

# "auto" is one of these two (test_layers_structure.py).
MEMORIES = ("graph", "states")
CLIPS = {
    "unclipped": {},
    "value": {"grad_clip": ade.Clip.value(0.3), "momentum_clip": ade.Clip.value(0.8)},
    "norm": {"grad_clip": ade.Clip.norm(0.4), "momentum_clip": ade.Clip.norm(1.0)},
}
every_memory = pytest.mark.parametrize("memory", MEMORIES)
every_clip = pytest.mark.parametrize("clips", list(CLIPS))


def check(layer: nn.Module, potential: nn.Module, x0: Tensor, v0: Tensor, *, along_one_direction: bool = False) -> None:
    """gradcheck of all outputs with respect to x0, v0 and all parameters: the layer's (S and g too) and f's.

    Every element in turn, or along one random direction of each input (many times faster).
    """
    parameters = (*layer.parameters(), *potential.parameters())

    def run(x0: Tensor, v0: Tensor, *moved_in_place: Tensor) -> tuple[Tensor, ...]:
        return tuple(out for out in layer(potential, x0, v0) if out.requires_grad)

    inputs = (x0.clone().requires_grad_(), v0.clone().requires_grad_(), *parameters)
    assert torch.autograd.gradcheck(run, inputs, fast_mode=along_one_direction, atol=1e-6, rtol=1e-5)


def tiny(name: str) -> nn.Module:
    """A potential with few enough parameters to move them one at a time."""
    torch.manual_seed(3)
    return mlp((3, 4, 1), {"silu": nn.SiLU, "relu": nn.ReLU}[name]).double()


@every_memory
@every_clip
@pytest.mark.parametrize("name", ["silu", "relu"])
def test_leapfrog(name: str, clips: str, memory: str) -> None:
    x0, v0 = normal(2, 3, seed=1), normal(2, 3, seed=2)
    step = torch.tensor([[0.2], [0.3]], dtype=DOUBLE)
    layer = ade.Leapfrog(2, step, sample_range=(-1.5, 1.5), memory=memory, **CLIPS[clips])
    check(layer, tiny(name), x0, v0)


@every_memory
@every_clip
@pytest.mark.parametrize("name", list(POTENTIALS))
def test_leapfrog_on_every_potential(name: str, clips: str, memory: str) -> None:
    """In evaluation mode: in training mode each call moves the power iteration of spectral norm, hence f."""
    event = POTENTIALS[name].event
    x0, v0 = normal(2, *event, seed=1), normal(2, *event, seed=2)
    step = torch.tensor([0.2, 0.3, 0.25], dtype=DOUBLE).reshape(3, *(1,) * len(event))
    layer = ade.Leapfrog(3, step, sample_range=(-1.5, 1.5), memory=memory, **CLIPS[clips])
    check(layer, make_potential(name).eval(), x0, v0, along_one_direction=True)


@every_memory
@every_clip
@pytest.mark.parametrize("name", ["silu", "relu"])
def test_damped_leapfrog(name: str, clips: str, memory: str) -> None:
    x0, v0 = normal(2, 3, seed=1), normal(2, 3, seed=2)
    step = torch.tensor([0.2, 0.3, 0.4], dtype=DOUBLE)
    layer = ade.DampedLeapfrog(2, step, 0.7, drift_step=0.5, memory=memory, **CLIPS[clips])
    check(layer, tiny(name), x0, v0)


@every_memory
@every_clip
@pytest.mark.parametrize("name", ["silu", "relu"])
@pytest.mark.parametrize("momentum", [(3,), (2,)], ids=["l=d", "l<d"])
def test_generalized_leapfrog(name: str, momentum: tuple[int, ...], clips: str, memory: str) -> None:
    x0, v0 = normal(2, 3, seed=1), normal(2, *momentum, seed=2)
    modules = {
        "scale_v": KickNetwork((3,), momentum, 0.3),
        "shift_v": KickNetwork((3,), momentum, 1.0),
        "scale_x": DriftNetwork(momentum, (3,), 0.3),
        "shift_x": DriftNetwork(momentum, (3,), 1.0),
    }
    options: dict[str, Any] = dict(CLIPS[clips])
    if momentum != (3,):
        options |= {
            "momentum_shape": momentum,
            "momentum_step_size": torch.tensor([0.1, 0.3], dtype=DOUBLE),
        }
    step = torch.tensor([0.2, 0.3, 0.1], dtype=DOUBLE)
    layer = ade.GeneralizedLeapfrog(2, step, memory=memory, **modules, **options)
    check(layer, tiny(name), x0, v0, along_one_direction=momentum != (3,) or name == "relu")


@every_memory
@pytest.mark.parametrize("where", ["gradient", "momentum"])
def test_norm_clip_at_norm_zero(where: str, memory: str) -> None:
    """At ∇f = 0 or v = 0 the clip's factor is 1 with zero derivative, and nothing is NaN."""
    potential = make_potential("quadratic")
    with torch.no_grad():
        potential.mean.zero_(), potential.log_std.zero_()
    x0 = torch.zeros(2, 3, dtype=DOUBLE) if where == "gradient" else normal(2, 3, seed=1)
    v0 = normal(2, 3, seed=2) if where == "gradient" else 0.1 * x0  # v½ = v0 - η/2 x0 = 0 with η = 0.2
    clip = {"grad_clip": ade.Clip.norm(1e3)} if where == "gradient" else {"momentum_clip": ade.Clip.norm(1e3)}
    step = torch.tensor(0.2, dtype=DOUBLE)
    x0, v0 = x0.requires_grad_(), v0.detach().requires_grad_()
    clipped = ade.Leapfrog(1, step, memory=memory, **clip)(potential, x0, v0)
    plain = ade.Leapfrog(1, step, memory=memory)(potential, x0, v0)
    wanted = [x0, v0, potential.mean, potential.log_std]
    a = torch.autograd.grad(clipped.x.sum() + clipped.v.square().sum(), wanted)
    b = torch.autograd.grad(plain.x.sum() + plain.v.square().sum(), wanted)
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
