"""memory="reversible": states rebuilt bit for bit, gradients those of the other plans, memory that does not grow."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import pytest
import torch
from cases import DOUBLE, make_potential, normal
from torch import Tensor, nn

import ade_fast as ade
from ade_fast.dynamics import reversible
from ade_fast.dynamics.reversible import Damping, FixedPoint

CLIPS = {"unclipped": None, "value": ade.Clip.value(0.4), "norm": ade.Clip.norm(0.6)}


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def layer_of(damping: float, n_steps: int, memory: str, step_size: Any = 0.1, **options: Any) -> nn.Module:
    if damping == 1:
        return ade.Leapfrog(n_steps, step_size, memory=memory, **options).double()
    return ade.DampedLeapfrog(n_steps, step_size, damping, drift_step=0.7, memory=memory, **options).double()


def results(layer: nn.Module, potential: nn.Module, x0: Tensor, v0: Tensor) -> dict[str, Tensor]:
    """Outputs and all gradients."""
    leaves = {"x0": x0.clone().requires_grad_(), "v0": v0.clone().requires_grad_()}
    leaves |= dict(layer.named_parameters()) | dict(potential.named_parameters())
    out = layer(potential, leaves["x0"], leaves["v0"])
    loss = (out.x * out.v).sum() + out.x.square().sum() + out.log_det.sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {"x": out.x.detach(), "v": out.v.detach()} | {
        name: torch.zeros_like(leaf) if g is None else g
        for (name, leaf), g in zip(leaves.items(), gradients, strict=True)
    }


def assert_close(got: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    for name, want in wanted.items():
        error = (got[name] - want).abs().max().item() / max(1.0, want.abs().max().item())
        assert error <= tolerance, f"{name}: {error:.2g}"


# ------------------------------------------------------------------------------------------------------ gradients


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("damping", [1.0, 0.5, 0.9])
@pytest.mark.parametrize("name", ["silu", "relu", "conv"])
def test_gradients_are_those_of_states(name: str, damping: float, clip: str) -> None:
    if name == "conv":
        potential, event = (
            nn.Sequential(nn.Conv2d(1, 3, 3), nn.SiLU(), nn.Flatten(), nn.Linear(12, 1)).double(),
            (1, 4, 4),
        )
    else:
        potential, event = make_potential(name), (3,)
    x0, v0 = normal(5, *event, seed=1), normal(5, *event, seed=2)
    options = {"grad_clip": CLIPS[clip], "momentum_clip": CLIPS[clip]}
    found = {
        memory: results(layer_of(damping, 8, memory, **options), potential, x0, v0)
        for memory in ("states", "reversible")
    }
    assert_close(found["reversible"], found["states"], 1e-9)


@pytest.mark.parametrize("shape", [(), (3,), (6, 1), (6, 3)], ids=["scalar", "per dim", "per step", "both"])
def test_every_form_of_step_size(shape: tuple[int, ...]) -> None:
    step = 0.05 + 0.1 * torch.rand(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    x0, v0, potential = normal(4, 3, seed=1), normal(4, 3, seed=2), make_potential("silu")
    found = {m: results(layer_of(0.5, 6, m, step), potential, x0, v0) for m in ("states", "reversible")}
    assert_close(found["reversible"], found["states"], 1e-9)


@pytest.mark.parametrize("gradient", ["full", "truncated", "stopped"])
def test_gradient_modes(gradient: str) -> None:
    x0, v0, potential = normal(4, 3, seed=1), normal(4, 3, seed=2), make_potential("silu")
    found = {m: results(layer_of(1.0, 6, m, gradient=gradient), potential, x0, v0) for m in ("states", "reversible")}
    assert_close(found["reversible"], found["states"], 1e-9)


def test_float32_is_as_near_to_float64_as_states_is() -> None:
    potential = make_potential("silu")
    x0, v0 = normal(50, 3, seed=1), normal(50, 3, seed=2)
    exact = results(layer_of(0.5, 20, "states"), potential, x0, v0)
    potential = potential.float()
    errors = []
    for memory in ("states", "reversible"):
        layer = layer_of(0.5, 20, memory).float()
        found = results(layer, potential, x0.float(), v0.float())
        errors.append(
            {k: (found[k].double() - want).norm().item() / max(want.norm().item(), 1e-9) for k, want in exact.items()}
        )
    for name, error in errors[1].items():
        assert error <= max(3 * errors[0][name], 1e-6), name


@pytest.mark.parametrize("bounds", [(-0.7, 0.9), (-0.5, float("inf")), (-0.01, 0.01)], ids=str)
@pytest.mark.parametrize("damping", [1.0, 0.5])
def test_sample_range(damping: float, bounds: tuple[float, float]) -> None:
    """Entries come to both bounds, stay, leave, and jump from one to the other."""
    x0, v0, potential = normal(6, 3, seed=1), 2 * normal(6, 3, seed=2), make_potential("silu")
    options = {"step_size": 0.4, "sample_range": bounds}
    found = {m: results(layer_of(damping, 25, m, **options), potential, x0, v0) for m in ("states", "reversible")}
    x = found["reversible"]["x"]
    assert ((x >= bounds[0]) & (x <= bounds[1])).all() and ((x - bounds[0]).abs() < 1e-12).any()
    assert_close(found["reversible"], found["states"], 1e-9)


def test_what_stays_on_a_bound_costs_nothing() -> None:
    """Momenta that are damped to nothing leave most entries on a bound."""
    potential, x0 = nn.Sequential(nn.Linear(50, 8), nn.SiLU(), nn.Linear(8, 1)), normal(8, 50, seed=1)
    x0 = x0.float().requires_grad_()
    layers = [layer_of(0.5, n, "reversible", 0.05, sample_range=(-0.05, 0.05)).float() for n in (100, 600)]
    kept = [kept_bytes(layer, potential, x0) for layer in layers]
    with torch.no_grad():
        x = layers[1](potential, x0).x
    assert (x.abs() > 0.0499).float().mean() > 0.5
    assert (kept[1] - kept[0]) / 500 / (2 * x0.numel() * x0.element_size()) < 0.06


def test_saturated_images_stay_within_a_tenth_of_a_state_per_step() -> None:
    """The image settings of F.2: damping ½, force, momentum and samples clipped; 60 % of the pixels on a bound."""
    torch.manual_seed(0)
    potential = nn.Sequential(nn.Conv2d(1, 4, 3), nn.LeakyReLU(0.1), nn.Flatten(), nn.Linear(144, 1))
    x0 = (0.02 * torch.randn(4, 1, 8, 8)).clamp(-0.02, 0.02).requires_grad_()
    clip = ade.Clip.value(0.01)

    def layer(n_steps: int) -> nn.Module:
        return ade.DampedLeapfrog(
            n_steps, 0.5, 0.5, grad_clip=clip, momentum_clip=clip, sample_range=(-0.02, 0.02), memory="reversible"
        )

    kept = [kept_bytes(layer(n), potential, x0) for n in (50, 300)]
    assert (kept[1] - kept[0]) / 250 / (2 * x0.numel() * x0.element_size()) <= 0.1
    for n in (50, 300):
        with torch.no_grad():
            assert (layer(n)(potential, x0).x.abs() > 0.0199).float().mean() >= 0.6
    layer(50)(potential, x0).x.sum().backward()  # which refuses if x⁰ or v⁰ are not met again to the last bit


def test_without_gradients_the_states_are_the_same() -> None:
    x0, v0, potential = normal(4, 3, seed=1), normal(4, 3, seed=2), make_potential("silu")
    layer = layer_of(0.5, 30, "reversible")
    out = layer(potential, x0, v0)
    with torch.no_grad():
        again = layer(potential, x0, v0)
    assert torch.equal(out.x, again.x) and torch.equal(out.v, again.v)


def test_an_mlp_potential_goes_the_reversible_way_too() -> None:
    """Not into the fused kernels, which keep their states."""
    potential, layer = ade.MLPPotential(2, (32, 32), "silu").double(), layer_of(1.0, 5, "reversible")
    x0, v0 = normal(4, 2, seed=1), normal(4, 2, seed=2)
    found = results(layer, potential, x0, v0)
    assert (layer.last_plan.memory, layer.last_plan.field) == ("reversible", "autograd")
    assert_close(found, results(layer_of(1.0, 5, "states"), potential, x0, v0), 1e-9)


def test_empty_batch() -> None:
    out = layer_of(0.5, 3, "reversible")(make_potential("silu"), torch.zeros(0, 3, dtype=DOUBLE))
    assert out.x.shape == (0, 3)


# --------------------------------------------------------------------------------------------------------- exactness


@pytest.mark.parametrize("m", [Fraction(1, 2), Fraction(9, 10), Fraction(1, 3), Fraction(1023, 1024)], ids=str)
def test_damping_is_undone_to_the_last_bit(m: Fraction) -> None:
    start = torch.randint(-(2**45), 2**45, (200,), generator=torch.Generator().manual_seed(0))
    damping, v, seen = Damping(m, start), start, []
    for t in range(300):
        seen.append(v)
        v = damping.apply(v) + t * 1_000_003
    words, bounds = damping.state()
    assert len(words) <= 1 + 300 * torch.log2(torch.tensor(float(1 / m))).item() / 50
    back = Damping.of_state(m, words, bounds)
    for t in reversed(range(300)):
        v = back.undo(v - t * 1_000_003)
        assert torch.equal(v, seen[t]), t


@pytest.mark.parametrize("damping", [1.0, 0.5])
def test_thousands_of_steps_come_back(damping: float, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    """Each rebuilt state is the forward pass's, bit for bit."""
    n_steps, forward, backward = 2_000, [], []
    decode = FixedPoint.decode
    current = forward

    def noted(fixed: FixedPoint, x: Tensor) -> Tensor:
        current.append(hash(x.numpy().tobytes()))
        return decode(fixed, x)

    monkeypatch.setattr(FixedPoint, "decode", noted)
    monkeypatch.setattr(reversible, "_larger", lambda largest, moved: largest)
    layer = layer_of(damping, n_steps, "reversible", 0.01)
    out = layer(ade.GaussianPotential(2).double(), normal(4, 2, seed=1).requires_grad_(), normal(4, 2, seed=2))
    current = backward
    out.x.sum().backward()
    assert set(backward) <= set(forward) and len(backward) >= 2 * n_steps


def kept_bytes(layer: nn.Module, potential: nn.Module, x0: Tensor) -> int:
    """Storage that autograd still holds after a call, each once, without that of the parameters."""
    saved: list[weakref.ref] = []

    def pack(tensor: Tensor) -> Tensor:
        kept = tensor.detach()  # itself, a node's output would hold the node
        saved.append(weakref.ref(kept))
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = layer(potential, x0)
    gc.collect()
    own = {p.untyped_storage().data_ptr() for p in potential.parameters()}
    held = [t.untyped_storage() for ref in saved if (t := ref()) is not None]
    assert out.x.requires_grad
    return sum({s.data_ptr(): s.nbytes() for s in held if s.data_ptr() not in own}.values())


@pytest.mark.parametrize(("damping", "most"), [(1.0, 0.01), (0.5, 0.05)])
def test_memory_does_not_grow_with_the_steps(damping: float, most: float) -> None:
    """Per step, in states (one x and one v) of float32."""
    potential = nn.Sequential(nn.Linear(50, 8), nn.SiLU(), nn.Linear(8, 1))
    x0 = normal(8, 50, seed=1).float().requires_grad_()
    kept = [kept_bytes(layer_of(damping, n, "reversible").float(), potential, x0) for n in (100, 1100)]
    state = 2 * x0.numel() * x0.element_size()
    assert (kept[1] - kept[0]) / 1000 / state <= most


# ------------------------------------------------------------------------------------------------------------ errors


class Unsteady(nn.Module):
    """Rounds otherwise at every evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.calls = make_potential("silu"), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(x) * (1 + 1e-13 * self.calls)


def test_a_force_that_rounds_otherwise_is_refused() -> None:
    layer = layer_of(1.0, 20, "reversible", 1.0)
    out = layer(Unsteady(), normal(4, 3, seed=1).requires_grad_(), normal(4, 3, seed=2))
    with pytest.raises(RuntimeError, match="Leapfrog: memory='reversible' did not come back to where the unroll began"):
        out.x.sum().backward()


@pytest.mark.parametrize("size", [float("nan"), float("inf"), 1e12])
def test_states_without_room_are_refused(size: float) -> None:
    with pytest.raises(ade.NonFiniteError, match="Leapfrog: a state is not finite, or moves by more than"):
        layer_of(1.0, 3, "reversible")(make_potential("silu"), torch.full((2, 3), size, dtype=DOUBLE))


def test_misuses_are_named() -> None:
    with pytest.raises(
        ValueError, match="GeneralizedLeapfrog: memory='reversible' is there for Leapfrog and DampedLeapf"
    ):
        ade.GeneralizedLeapfrog(2, memory="reversible")
    with pytest.raises(ValueError, match="DampedLeapfrog: memory='reversible' takes a damping that is a fraction n/d"):
        ade.DampedLeapfrog(2, damping=0.1234567, memory="reversible")(make_potential("silu"), normal(2, 3, seed=1))
    with pytest.raises(TypeError, match="Leapfrog: memory='reversible' takes float32 and float64, got x0 torch"):
        ade.Leapfrog(2, memory="reversible")(make_potential("silu").bfloat16(), normal(2, 3, seed=1).bfloat16())


def test_a_captured_tensor_takes_autograds_own_graph_aloud() -> None:
    scale = torch.tensor(2.0, dtype=DOUBLE, requires_grad=True).exp()
    with pytest.warns(ade.SlowPathWarning, match="captured a non-leaf tensor"):
        out = layer_of(0.5, 3, "reversible")(
            lambda x: -scale * x.square().sum(1), normal(2, 3, seed=1).requires_grad_()
        )
    out.x.sum().backward()


# ---------------------------------------------------------------------------------------------------------- forecast


@pytest.mark.parametrize("memory", ["graph", "states", "reversible"])
@pytest.mark.parametrize("name", ["silu", "relu"])
def test_the_forecast_is_what_is_kept(name: str, memory: str) -> None:
    activation = nn.SiLU if name == "silu" else nn.ReLU
    potential = nn.Sequential(nn.Conv2d(1, 8, 3), activation(), nn.Flatten(), nn.Linear(8 * 36, 1))
    layer = ade.DampedLeapfrog(20, 0.1, memory=memory)
    forecast = ade.memory_forecast(potential, layer, (16, 1, 8, 8))
    x0 = torch.randn(16, 1, 8, 8, requires_grad=True)
    kept = kept_bytes(layer, potential, x0)
    if memory == "graph":  # what the evaluations' graphs hold is not saved by this call itself
        assert forecast["graph"] > forecast["states"]
        return
    assert 0.5 * kept <= forecast[memory] <= 2 * kept, (kept, forecast)


@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("damping", [1.0, 0.5])
def test_the_forecast_knows_what_a_sample_range_stops(damping: float, per_step: bool) -> None:
    """Of a part whose size the run itself decides, and which is most of what is kept here."""
    torch.manual_seed(0)
    potential = nn.Sequential(nn.Flatten(), ade.GaussianPotential(64))
    ranged = {"sample_range": (-0.3, 0.3)}
    layer = layer_of(damping, 400, "reversible", 0.3, **ranged).float()
    step_size = torch.full((400, 1, 8, 8), 0.3) if per_step else 0.3
    same = layer_of(damping, 400, "reversible", step_size, **ranged).float()  # but for rows of its own, a step each
    forecast = ade.memory_forecast(potential, same, (16, 1, 8, 8))["reversible"]
    without = ade.memory_forecast(potential, layer_of(damping, 400, "reversible", 0.3).float(), (16, 1, 8, 8))
    kept = kept_bytes(layer, potential, torch.randn(16, 1, 8, 8, requires_grad=True))
    assert kept > 1.4 * without["reversible"]
    assert 0.5 * kept <= forecast <= 2 * kept, (kept, forecast)
    assert same.n_steps == 400 and same.options.memory == "reversible"


def test_forecast_of_the_mlp_kernels_and_its_misuses() -> None:
    found = ade.memory_forecast(ade.MLPPotential(2), ade.Leapfrog(10), (100, 2))
    assert found["reversible"] < found["states"] < found["graph"]
    assert set(ade.memory_forecast(ade.MLPPotential(2), ade.Langevin(10), (100, 2))) == {"graph", "states"}
    with pytest.raises(TypeError, match="memory_forecast: dynamics must be a dynamics layer with steps, got str"):
        ade.memory_forecast(ade.MLPPotential(2), "leapfrog", (100, 2))


def test_diagnostics_are_those_of_states() -> None:
    x0, v0, potential = normal(5, 3, seed=1), normal(5, 3, seed=2), make_potential("silu")
    found = []
    for memory in ("states", "reversible"):
        layer = layer_of(0.5, 6, memory)
        layer(potential, x0.clone().requires_grad_(), v0, diagnostics=True).x.sum().backward()
        found.append(layer.diagnostics.rows())
    assert found[0].keys() == found[1].keys()
    for name, row in found[0].items():
        torch.testing.assert_close(torch.tensor(row), torch.tensor(found[1][name]), rtol=1e-6, atol=1e-8, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_first_gradient_is_that_of_the_rounded_start(dtype: torch.dtype) -> None:
    """Of many rows, whose first kicks must not depend on what the rounding of x⁰ leaves out: found by the fuzzer."""
    potential = make_potential("silu").to(dtype)
    x0 = (1e-2 * normal(3000, 3, seed=1)).to(dtype).requires_grad_()
    layer = ade.Leapfrog(1, 0.5, memory="reversible").to(dtype)
    layer(potential, x0, normal(3000, 3, seed=2).to(dtype)).x.sum().backward()
    assert x0.grad is not None
