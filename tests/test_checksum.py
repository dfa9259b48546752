"""What the backward pass evaluates again is compared with the forward pass: rounding passes, another f raises."""

import contextlib
import random
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import DOUBLE as D
from torch import Tensor, nn

import ade_fast as ade
from ade_fast.fields import Checksum, OtherGradient, agreement

every_memory = pytest.mark.parametrize("memory", ["graph", "states"])
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, D], ids=["float32", "float64"])


def net(activation: type[nn.Module] = nn.SiLU, dtype: torch.dtype = D) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 24), activation(), nn.Linear(24, 24), activation(), nn.Linear(24, 1)).to(dtype)


def compared(then: list[Tensor], now: list[Tensor]) -> None:
    """Gradients of each step, in order, and as the backward pass finds them."""
    forward, backward = Checksum(), Checksum()
    for t, rows in enumerate(then):
        forward.add(t, rows)
    for t in reversed(range(len(now))):
        backward.add(t, now[t], want_size=False)
    forward.compare(backward, OtherGradient("layer"))


def gradients(batch: int, dtype: torch.dtype, n_steps: int = 11, dim: int = 3) -> list[Tensor]:
    return [10.0 ** (-t % 4) * torch.randn(batch, dim, dtype=dtype) for t in range(n_steps)]


@every_dtype
@pytest.mark.parametrize("batch", [0, 1, 2, 40, 1000])
def test_rounding_passes_and_one_percent_of_noise_does_not(batch: int, dtype: torch.dtype) -> None:
    then = gradients(batch, dtype)
    eps = torch.finfo(dtype).eps
    compared(then, then)
    compared(then, [g * (1 + 20 * eps * torch.randn_like(g)) for g in then])
    if batch > 0:
        with pytest.raises(OtherGradient, match="layer: potential's gradient at the same x is another"):
            compared(then, [g * (1 + 0.01 * torch.randn_like(g)) for g in then])
        with pytest.raises(OtherGradient):
            compared(then, [1.01 * g for g in then])


@every_dtype
def test_flipped_kinks_pass(dtype: torch.dtype) -> None:
    """Of a thousand samples a few have units whose kinks rounding put on the other side."""
    then = gradients(1000, dtype)
    now = [g.clone() for g in then]
    for t, row in ((0, 3), (4, 500), (7, 501), (10, 999)):
        now[t][row] *= 1.3
    compared(then, now)
    with pytest.raises(OtherGradient):  # as many as one in twenty are no kinks
        compared(then, [torch.where(torch.arange(len(g))[:, None] % 20 == 0, 1.3 * g, g) for g in then])
    now[1][::200] *= 1e3  # nor is what is far off
    with pytest.raises(OtherGradient):
        compared(then, now)


@every_dtype
def test_steps_and_dimensions_are_told_apart(dtype: torch.dtype) -> None:
    then = gradients(50, dtype)
    with pytest.raises(OtherGradient):
        compared(then, [then[1], then[0], *then[2:]])
    with pytest.raises(OtherGradient):
        compared(then, [g.flip(1) for g in then])
    with pytest.raises(OtherGradient):
        compared(then, [*then[:-1], torch.zeros_like(then[-1])])


@every_dtype
@pytest.mark.parametrize("rows", [1, 40, 1000])
def test_a_tangent_may_round_otherwise_and_differ_by_no_more(rows: int, dtype: torch.dtype) -> None:
    """⟨∇f(x), u⟩ by other operations, on the rows of several steps."""
    grads, u = torch.randn(rows, 30, dtype=dtype), torch.randn(rows, 30, dtype=dtype)
    slope, eps = (grads * u).sum(1), torch.finfo(dtype).eps
    size, tolerance = grads.norm(dim=1) * u.norm(dim=1), agreement.tolerance_of([grads], grads.device)
    assert agreement.agrees(slope + 50 * eps * size * torch.randn(rows, dtype=dtype), u, grads, tolerance)
    flipped = slope.clone()
    flipped[::60] += 0.1 * size[::60]
    assert agreement.agrees(flipped, u, grads, tolerance) == (rows > 50)
    assert not agreement.agrees(slope + 0.02 * size, u, grads, tolerance)
    noise = 0.01 * size * torch.randn(rows, dtype=dtype)
    assert rows == 1 or not agreement.agrees(slope + noise, u, grads, tolerance)


def test_a_sample_near_a_mode_is_measured_by_the_others() -> None:
    """A gradient that is nearly zero is the difference of large numbers: its rounding is theirs."""
    then = gradients(100, torch.float32)
    for g in then:
        g[:10] *= 1e-7
    compared(then, [g + 1e-7 for g in then])


def test_nan_is_left_to_be_seen() -> None:
    then = gradients(5, D)
    then[3][2] = float("nan")
    compared(then, then)


@pytest.mark.parametrize("n_steps", [1, 7, 50])
def test_sixteen_bytes_a_sample(n_steps: int) -> None:
    checksum = Checksum()
    for t, rows in enumerate(gradients(64, torch.float32, n_steps)):
        checksum.add(t, rows)
    held = [v for v in vars(checksum).values() if isinstance(v, Tensor)]
    assert sum(t.untyped_storage().nbytes() for t in held) == 16 * 64


def test_on_a_gpu_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is looked at once it has come, when another unroll begins."""

    class Flag:
        arrived = False

        def __init__(self, wrong: Tensor, error: OtherGradient) -> None:
            self.wrong, self.error = wrong, error

        def has_arrived(self) -> bool:
            return Flag.arrived

        def raise_if_set(self) -> None:
            if bool(self.wrong):
                raise self.error

    monkeypatch.setattr(
        agreement, "_PENDING", [Flag(torch.tensor(False), None), Flag(torch.tensor(True), OtherGradient("first"))]
    )
    potential, x0 = net(), torch.randn(3, 2, dtype=D)
    ade.functional.leapfrog(potential, x0, None, 0.1, 2)
    assert len(agreement._PENDING) == 2
    Flag.arrived = True
    with pytest.raises(OtherGradient, match="first: potential's gradient"):
        ade.functional.leapfrog(potential, x0, None, 0.1, 2)
    assert not agreement._PENDING
    ade.functional.leapfrog(potential, x0, None, 0.1, 2)


# --- Through the layers --------------------------------------------------------------------------------------------


class Counter:
    """Another function at every call, as a temperature that is annealed inside of f makes it."""

    def __init__(self, inner: nn.Module, size: float) -> None:
        self.inner, self.size, self.calls = inner, size, 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(x) * (1 + self.size * self.calls)


def with_generator(kind: str, inner: nn.Module):
    own = torch.Generator().manual_seed(0)
    rng, seeded = np.random.default_rng(0), random.Random(0)
    return {
        "torch": lambda x: inner(x) * (1 + 0.02 * torch.randn(len(x), 1, generator=own, dtype=x.dtype)),
        "numpy": lambda x: inner(x + torch.as_tensor(0.1 * rng.standard_normal(x.shape), dtype=x.dtype)),
        "python": lambda x: inner(x * (1 + 0.05 * seeded.random())),
        "python's own": lambda x: inner(x * (1 + 0.05 * random.random())),
        "counter": Counter(inner, 0.02),
    }[kind]


@pytest.mark.parametrize("activation", [nn.SiLU, nn.ReLU])
@pytest.mark.parametrize("kind", ["torch", "numpy", "python", "python's own", "counter"])
@pytest.mark.parametrize("dtype", [torch.float32, D], ids=["float32", "float64"])
def test_what_cannot_be_drawn_again_raises(kind: str, activation: type[nn.Module], dtype: torch.dtype) -> None:
    potential = with_generator(kind, net(activation, dtype))
    x0, v0 = (torch.randn(6, 2, dtype=dtype) for _ in range(2))
    out = ade.functional.leapfrog(potential, x0, v0, 0.3, 4, memory="states")
    with pytest.raises(
        OtherGradient, match=r"leapfrog: potential's gradient .* random \(with a generator of its own\)"
    ):
        (out.x.sum() + out.v.square().sum()).backward()


def test_a_network_that_cannot_be_drawn_again_raises() -> None:
    scale, own = nn.Linear(2, 2).double(), torch.Generator().manual_seed(0)
    x0, v0 = (torch.randn(6, 2, dtype=D) for _ in range(2))
    out = ade.functional.generalized_leapfrog(
        net(), x0, v0, torch.tensor(0.3, dtype=D), 3, memory="states",
        scale_x=lambda v: 0.1 * torch.tanh(scale(v) + torch.randn(2, generator=own, dtype=D)),
    )  # fmt: skip
    with pytest.raises(OtherGradient, match="generalized_leapfrog: the output of a network at the same x"):
        out.x.sum().backward()


def test_a_log_determinant_that_cannot_be_drawn_again_raises() -> None:
    inner, own = net(), torch.Generator().manual_seed(0)
    layer = ade.DeterministicLangevin(1, torch.tensor(0.05, dtype=D), memory="states")
    f = lambda x: inner(x) * torch.rand((), generator=own, dtype=D)  # noqa: E731
    out = layer(f, torch.randn(6, 2, dtype=D))
    with pytest.raises(OtherGradient, match="DeterministicLangevin: the log-determinant at the same x"):
        out.log_det.sum().backward()


@every_memory
@pytest.mark.parametrize("activation", [nn.SiLU, nn.ReLU])
def test_batches_mixed_by_the_potential_raise_or_are_eager(activation: type[nn.Module], memory: str) -> None:
    """f of a sample depends on the batch: evaluated step by step in the same batch, it is the same function again."""
    inner = net(activation)
    potential = lambda x: inner(x - x.detach().mean(0))  # noqa: E731
    x0, v0 = (torch.randn(6, 2, dtype=D) for _ in range(2))
    step, parameters = torch.tensor(0.3, dtype=D), [inner[0].weight, inner[2].weight]
    x, _, _ = ade.reference.leapfrog(potential, x0, v0, step, 3)
    wanted = torch.autograd.grad(x.square().sum(), parameters)
    with contextlib.suppress(OtherGradient):
        out = ade.functional.leapfrog(potential, x0, v0, step, 3, memory=memory)
        for a, b in zip(torch.autograd.grad(out.x.square().sum(), parameters), wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("batch", [1, 7, 300])
@pytest.mark.parametrize("activation", [nn.SiLU, nn.ReLU, nn.Tanh])
@every_dtype
def test_functions_that_stay_the_same_pass(batch: int, activation: type[nn.Module], dtype: torch.dtype) -> None:
    inner = nn.Sequential(
        nn.Conv2d(1, 6, 3), activation(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(24, 8), activation(), nn.Linear(8, 1)
    ).to(dtype)
    x0 = torch.randn(batch, 1, 6, 6, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ade.SlowPathWarning)
        out = ade.functional.leapfrog(lambda x: inner(x), x0, torch.randn_like(x0), 0.1, 12, memory="states")
        (out.x.square().sum() + out.v.square().sum()).backward()
    assert inner[0].weight.grad.isfinite().all() and inner[0].weight.grad.any()


def test_dropout_by_hand_is_drawn_again() -> None:
    inner = net()
    f = lambda x: inner(F.dropout(x, 0.3))  # noqa: E731
    x0, v0 = (torch.randn(6, 2, dtype=D) for _ in range(2))
    found = []
    for memory in ("graph", "states"):
        torch.manual_seed(3)
        out = ade.functional.leapfrog(f, x0, v0, 0.3, 4, memory=memory)
        after = torch.rand(3)
        found.append(torch.autograd.grad(out.x.sin().sum(), inner[0].weight)[0])
        assert not torch.equal(torch.rand(3), after)
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("equal", [True, False])
def test_continuous_dynamics_look_at_one_x_twice(equal: bool) -> None:
    inner, held = net(), {"w": torch.tensor(1.5, dtype=D, requires_grad=True)}
    out = ade.ContinuousLangevin(0.2).double()(lambda x: held["w"] * inner(x), torch.randn(4, 2, dtype=D))
    held["w"] = held["w"].detach().clone() if equal else 2 * held["w"].detach()
    words = "what the rate of change depends on" if equal else "the rate of change at the same x"
    with pytest.raises(OtherGradient, match=f"ContinuousLangevin: {words}"):
        out.x.sum().backward()
