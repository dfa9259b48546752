"""The layers inside what users put around them: inference mode, torch.func, hooks, autocast, checkpointing."""

import dataclasses

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


@pytest.mark.parametrize("kind", [ade.Leapfrog, ade.DampedLeapfrog, ade.GeneralizedLeapfrog])
def test_a_layer_made_in_inference_mode_may_run_a_differentiable_unroll(kind: type, potential: nn.Module) -> None:
    (x0, v0), found = start(), []
    with torch.inference_mode():
        made_there = kind(3, 0.1, learn_step_size=False).double()
    for layer in (made_there, kind(3, 0.1, learn_step_size=False).double()):
        potential.zero_grad()
        layer(potential, x0, v0).x.sum().backward()
        found.append([p.grad.clone() for p in potential.parameters() if p.grad is not None])
    assert found[0] and all(torch.equal(a, b) for a, b in zip(*found, strict=True))


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


@pytest.mark.parametrize("memory", ["graph", "states", "auto"])
def test_an_empty_batch_has_gradients(layer: nn.Module, potential: nn.Module, memory: str) -> None:
    layer.options = dataclasses.replace(layer.options, memory=memory)
    x0 = torch.randn(0, 2, dtype=torch.float64, requires_grad=True)
    layer(potential, x0).x.sum().backward()
    assert x0.grad.shape == (0, 2)
    assert all(p.grad is None or not p.grad.any() for p in (*potential.parameters(), *layer.parameters()))


def test_torch_compile_around_a_layer_leaves_it_to_python(layer: nn.Module, potential: nn.Module) -> None:
    x0, v0 = (t.requires_grad_() for t in start())

    def step(x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = layer(potential, 2 * x, v)
        return out.x.square().sum() + out.v.sin().sum()

    wanted = torch.autograd.grad(step(x0, v0), [x0, v0, layer.step_size])
    torch._dynamo.reset()
    found = torch.autograd.grad(torch.compile(step, backend="aot_eager")(x0, v0), [x0, v0, layer.step_size])
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_torch_compile_around_a_functional_form() -> None:
    potential, (x0, v0) = POTENTIALS["autograd silu"]().double(), start()
    run = lambda x: ade.functional.leapfrog(potential, x, v0, 0.1, 3).x.sum()  # noqa: E731
    x0.requires_grad_()
    wanted = torch.autograd.grad(run(x0), x0)
    torch._dynamo.reset()
    assert torch.allclose(torch.autograd.grad(torch.compile(run, backend="aot_eager")(x0), x0)[0], wanted[0])


def test_a_hook_on_all_modules_runs(potential: nn.Module) -> None:
    """The fused kernels call no module."""
    called: list[type] = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: called.append(type(module)))
    try:
        ade.Leapfrog(3, 0.1).double()(potential, *start())
    finally:
        handle.remove()
    assert called.count(nn.Linear) >= 4 * 2


def test_the_probe_holds_spectral_norm_still() -> None:
    potential = nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(2, 9)), nn.SiLU(), nn.Linear(9, 1)
    ).double()
    ade.Leapfrog(3, 0.1, check_potential=True).double()(potential.train(), *start())


def test_log_det_may_be_written_to(layer: nn.Module, potential: nn.Module) -> None:
    """It has memory of its own for every sample."""
    with torch.no_grad():
        log_det = layer(potential, *start()).log_det
        log_det[0] += 1.0
    assert log_det[0] != log_det[1]


@pytest.mark.parametrize("clips", [{}, {"momentum_clip": ade.Clip.value(5.0)}, {"sample_range": (-9.0, 9.0)}])
def test_nan_is_as_loud_as_in_eager_code(potential: nn.Module, clips: dict) -> None:
    x0, v0 = start()
    x0[0, 0] = float("nan")
    x0.requires_grad_()
    step = torch.tensor(0.1, dtype=torch.float64)
    ours, eager = (
        torch.autograd.grad(out[0].square().sum() + out[1].sum(), x0)[0].isnan()
        for out in (
            ade.functional.leapfrog(potential, x0, v0, step, 3, **clips),
            ade.reference.leapfrog(potential, x0, v0, step, 3, **clips),
        )
    )
    assert (ours | ~eager).all(), "a NaN of eager code is missing"


def test_elu_bends_nowhere_at_zero() -> None:
    """At exactly 0, torch's second derivative of ELU is 0."""
    potential = ade.MLPPotential(2, (32,), "elu").double()
    nn.init.zeros_(potential.layers[0].bias)
    x0, v0 = (torch.zeros(1, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    step = torch.tensor(0.5, dtype=torch.float64)
    layer = ade.Leapfrog(1, step)
    found = torch.autograd.grad(layer(potential, x0, v0).x.sum(), [x0, v0])
    exact = torch.autograd.grad(ade.reference.leapfrog(potential, x0, v0, step, 1)[0].sum(), [x0, v0])
    assert layer.last_plan.field == "mlp"
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
