"""The layers inside what users put around them: inference mode, torch.func, hooks, autocast, checkpointing."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import ade_fast as ade

POTENTIALS = {
    "fused relu": lambda: ade.MLPPotential(2, (32, 32), "relu"),
    "fused silu": lambda: ade.MLPPotential(2, (32, 32), "silu"),
    "autograd relu": lambda: nn.Sequential(nn.Linear(2, 9), nn.ReLU(), nn.Linear(9, 1)),
    "autograd silu": lambda: nn.Sequential(nn.Linear(2, 9), nn.SiLU(), nn.Linear(9, 1)),
}


@pytest.fixture(params=list(POTENTIALS))
def potential(request: pytest.FixtureRequest) -> nn.Module:
    return POTENTIALS[request.param]().double()


@pytest.fixture(params=["leapfrog", "damped", "generalized"])
def layer(request: pytest.FixtureRequest) -> nn.Module:
    if request.param == "leapfrog":
        return ade.Leapfrog(3, 0.1).double()
    if request.param == "damped":
        return ade.DampedLeapfrog(3, 0.1, 0.9).double()
    return ade.GeneralizedLeapfrog(3, 0.1, scale_v=torch.full((2,), 0.1), scale_x=torch.full((2,), -0.1)).double()


def start() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(5, 2, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)


def test_inference_mode_samples_as_no_grad_does(layer: nn.Module, potential: nn.Module) -> None:
    x0, v0 = start()
    with torch.no_grad():
        wanted = layer(potential, x0, v0)
    with torch.inference_mode():
        found = layer(potential, x0.clone(), v0.clone())  # tensors born in inference mode
    for a, b in zip(found[:3], wanted[:3], strict=True):
        assert torch.equal(a, b)


def test_tensors_from_inference_mode_may_start_a_differentiable_unroll(layer: nn.Module, potential: nn.Module) -> None:
    with torch.inference_mode():
        x0, v0 = start()
    layer(potential, x0, v0).x.sum().backward()
    found = [p.grad.clone() for p in potential.parameters() if p.grad is not None]
    potential.zero_grad()
    layer(potential, x0.clone(), v0.clone()).x.sum().backward()
    wanted = [p.grad for p in potential.parameters() if p.grad is not None]
    assert len(found) == len(wanted) > 0 and all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("transform", ["grad", "jacrev", "vmap"])
def test_torch_func_is_refused_in_so_many_words(layer: nn.Module, potential: nn.Module, transform: str) -> None:
    x0, v0 = start()
    calls = {
        "grad": lambda: torch.func.grad(lambda x: layer(potential, x, v0).x.sum())(x0),
        "jacrev": lambda: torch.func.jacrev(lambda x: layer(potential, x, v0).x)(x0),
        "vmap": lambda: torch.func.vmap(lambda x, v: layer(potential, x[None], v[None]).x)(x0, v0),
    }
    with pytest.raises(RuntimeError, match=r"Leapfrog: torch\.func transforms .* use torch\.autograd\.grad"):
        calls[transform]()


@pytest.mark.parametrize("memory", ["graph", "states"])
def test_a_hook_on_a_parameter_runs_once_and_changes_its_gradient_once(potential: nn.Module, memory: str) -> None:
    layer, (x0, v0) = ade.Leapfrog(4, 0.2, memory=memory).double(), start()
    weight = next(potential.parameters())
    layer(potential, x0, v0).x.sum().backward()
    wanted = weight.grad.clone()
    potential.zero_grad()
    calls = []

    def double(gradient: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return 2 * gradient

    weight.register_hook(double)
    layer(potential, x0, v0).x.sum().backward()
    assert len(calls) == 1
    torch.testing.assert_close(weight.grad, 2 * wanted, rtol=1e-12, atol=1e-12)


def test_a_hook_on_a_networks_parameter_runs_once() -> None:
    torch.manual_seed(1)
    scale, (x0, v0) = nn.Linear(2, 2).double(), start()
    layer = ade.GeneralizedLeapfrog(3, 0.2, scale_x=scale).double()
    potential = POTENTIALS["autograd silu"]().double()
    layer(potential, x0, v0).x.sum().backward()
    wanted = scale.weight.grad.clone()
    scale.zero_grad()
    calls = []
    scale.weight.register_hook(lambda gradient: calls.append(1) or 2 * gradient)
    layer(potential, x0, v0).x.sum().backward()
    assert len(calls) == 1
    torch.testing.assert_close(scale.weight.grad, 2 * wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_around_a_layer(layer: nn.Module, potential: nn.Module, reentrant: bool) -> None:
    x0, v0 = start()
    x0.requires_grad_()
    (wanted,) = torch.autograd.grad(layer(potential, x0, v0).x.sum(), x0)
    checkpoint(lambda x: layer(potential, x, v0).x, x0, use_reentrant=reentrant).sum().backward()
    assert torch.equal(x0.grad, wanted)


def test_autocast_leaves_states_and_gradients_in_their_dtype(layer: nn.Module, potential: nn.Module) -> None:
    x0, v0 = (t.float() for t in start())
    layer, potential = layer.float(), potential.float()
    wanted = layer(potential, x0, v0).x
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(potential, x0, v0).x
    found.sum().backward()
    assert found.dtype == torch.float32
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in potential.parameters())
    torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.02)
