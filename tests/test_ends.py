"""What an unroll knows of f at its ends: value and gradient there, their derivatives, and whose they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import ade_fast as ade
from ade_fast import reference
from ade_fast._ends import End, Ends

LINEAR = ("relu", "leaky_relu")
SHAPES = [(1, (32,)), (2, (64, 32)), (2, (32, 64, 32)), (3, (32, 32, 32)), (1, (32, 32, 64, 32))]


def make_problem(activation: str, dim: int, hidden: tuple[int, ...], base: bool = False, batch: int = 37):
    torch.manual_seed(0)
    f: nn.Module = ade.MLPPotential(dim, hidden=hidden, activation=activation)
    f = (ade.WithBase(f, 0.3, 2.0) if base else f).double()
    x0, v0 = (torch.randn(batch, dim, dtype=torch.float64).requires_grad_() for _ in range(2))
    return f, x0, v0


def known_ends(dynamics: nn.Module, f: Callable, x0: Tensor, v0: Tensor) -> tuple[Tensor, Tensor, Tensor, End]:
    """x^T, v^T, f(x^0) and what is known at x^T."""
    ends = Ends()
    with ends.as_current():
        x, v, _ = dynamics(f, x0, v0)
    start, end = ends.start_of(f, x0), ends.end_of(f, x)
    assert start is not None and end is not None
    assert (
        ends.end_of(f, x0) is None and ends.end_of(f, x.clone()) is None and ends.start_of(lambda x: f(x), x0) is None
    )
    return x, v, start, end


@pytest.mark.parametrize("memory", ["graph", "states"])
@pytest.mark.parametrize("base", [False, True], ids=["", "base"])
@pytest.mark.parametrize(("dim", "hidden"), SHAPES, ids=str)
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "silu", "elu"])
def test_ends_agree_with_autograd(activation: str, dim: int, hidden: tuple[int, ...], base: bool, memory: str) -> None:
    f, x0, v0 = make_problem(activation, dim, hidden, base)
    dynamics = ade.Leapfrog(3, 0.2, memory=memory, grad_clip=ade.Clip.norm(0.5)).double()
    u, w, df = (torch.randn(*shape, dtype=torch.float64) for shape in (x0.shape, x0.shape, x0.shape[:1]))
    leaves = [x0, v0, dynamics.step_size, *f.parameters()]

    x, v, start, end = known_ends(dynamics, f, x0, v0)
    total = (x * u).sum() + (v * w).sum() + (end.value * df).sum()
    if activation in LINEAR:
        total = total + (end.gradient.square() @ torch.arange(1.0, dim + 1, dtype=torch.float64)).sum()
    else:
        assert end.gradient is None
    found = torch.autograd.grad(total, leaves)

    x, v, *_ = reference.leapfrog(f, x0, v0, dynamics.step_size, 3, grad_clip=ade.Clip.norm(0.5))
    value = f(x)
    wanted = (x * u).sum() + (v * w).sum() + (value * df).sum()
    if activation in LINEAR:
        at = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(f(at).sum(), at, create_graph=True)
        torch.testing.assert_close(end.gradient, gradient, rtol=1e-10, atol=1e-10)
        wanted = wanted + (gradient.square() @ torch.arange(1.0, dim + 1, dtype=torch.float64)).sum()
    torch.testing.assert_close(end.value, value, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(start, f(x0), rtol=1e-10, atol=1e-10)
    assert not start.requires_grad
    for actual, expected in zip(found, torch.autograd.grad(wanted, leaves), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10 * (1 + expected.abs().max().item()))


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_the_values_derivative_alone(activation: str) -> None:
    f, x0, v0 = make_problem(activation, 2, (32, 32, 32))
    dynamics = ade.Leapfrog(2, 0.2).double()
    *_, end = known_ends(dynamics, f, x0, v0)
    (by_x0,) = torch.autograd.grad(end.value.sum(), x0)
    x, *_ = reference.leapfrog(f, x0, v0, dynamics.step_size, 2)
    torch.testing.assert_close(by_x0, torch.autograd.grad(f(x).sum(), x0)[0], rtol=1e-10, atol=1e-10)


KEPT, ABSENT = (True, True, True), (None,) * 6


def op_arguments(f: nn.Module, x0: Tensor, v0: Tensor) -> tuple:
    """Of ``mlp_unroll``, up to what is kept: two steps."""
    linears = [layer for layer in f.modules() if isinstance(layer, nn.Linear)]
    weights, biases = ([getattr(layer, name).detach() for layer in linears] for name in ("weight", "bias"))
    kick, drift = (torch.full((n, 2), 0.1, dtype=torch.float64) for n in (3, 2))
    code = {"relu": 0, "leaky_relu": 1, "silu": 3, "tanh": 4}[f.activation]
    numbers = (code, 0.01 if code == 1 else 0.0, 3, 1.0, 0, 0.0, 0, 0.0, -torch.inf, torch.inf, False)
    return (x0, v0, kick, drift, None, None, weights, biases, *numbers)


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_opcheck(activation: str) -> None:
    arguments = op_arguments(*make_problem(activation, 2, (32, 32, 32), batch=5))
    ops = torch.ops.ade_fast
    for keep in (KEPT, (True, True, False), (False, False, False)):
        leaves = [t.detach().clone().requires_grad_() for t in arguments[:4]]
        torch.library.opcheck(ops.mlp_unroll.default, (*leaves, *arguments[4:], *keep, *ABSENT, False, True))
    x0, v0 = (t.detach() for t in arguments[:2])
    found = ops.mlp_unroll(x0, v0, *arguments[2:], *KEPT, *ABSENT, False, True)
    x_end, v_end, *kept, _, _, _, _, _, hidden = found
    gradient = x_end if activation == "relu" else None
    ends = (x_end[:, 0].contiguous(), gradient, hidden)
    back = (x_end, v_end, v0, *arguments[2:8], *kept, *arguments[8:], True, None, *ABSENT, False, *ends)
    torch.library.opcheck(ops.mlp_unroll_backward.default, back)
    torch.library.opcheck(ops.mlp_unroll_backward.default, (*back, torch.rand(5, dtype=torch.float64) + 0.1))


@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize("keep", [KEPT, (True, True, False), (True, False, False)], ids=str)
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "silu", "tanh"])
def test_the_weights_can_have_cotangents_many_times_as_large(activation: str, keep: tuple, at_end: bool) -> None:
    """Row by row; what else is differentiated by keeps its own."""
    f, x0, v0 = make_problem(activation, 2, (32, 64, 32), batch=70)
    arguments = op_arguments(f, x0, v0)
    ops = torch.ops.ade_fast
    x0, v0 = (t.detach() for t in (x0, v0))
    *found, hidden = ops.mlp_unroll(x0, v0, *arguments[2:], *keep, *ABSENT, False, True)
    kept, factor = found[2:6], 10.0 ** torch.linspace(-12, 6, 70, dtype=torch.float64)
    cotangents = [torch.randn(70, 2, dtype=torch.float64), torch.randn(70, 2, dtype=torch.float64)]
    value = torch.randn(70, dtype=torch.float64) if at_end else None

    def back(dx, dv, value, *factor):
        ends = (value, None, hidden, *factor)
        rest = (v0, *arguments[2:8], *kept, *arguments[8:], True, None, *ABSENT, False, *ends)
        return ops.mlp_unroll_backward(dx, dv, *rest)

    *states, weights, biases = back(*cotangents, value, factor)
    *as_they_are, _, _ = back(*cotangents, value)
    larger = [t * factor[:, None] for t in cotangents]
    *_, of_weights, of_biases = back(*larger, None if value is None else value * factor)
    torch.testing.assert_close(states, as_they_are, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close([*weights, *biases], [*of_weights, *of_biases], rtol=1e-10, atol=1e-10)


def test_the_gradient_of_a_smooth_potential_has_no_derivative() -> None:
    f, x0, v0 = make_problem("silu", 2, (32, 32))
    arguments = op_arguments(f, x0, v0)
    found = torch.ops.ade_fast.mlp_unroll(*arguments, *KEPT, *ABSENT, False, True)
    assert found[9].requires_grad and not found[10].requires_grad
    x_end, v_end, *kept = (t.detach() for t in found[:6])
    *steps, weights, biases = arguments[2:8]
    with pytest.raises(RuntimeError, match="dend_gradient must be absent where the potential is not piecewise linear"):
        torch.ops.ade_fast.mlp_unroll_backward(
            x_end, v_end, v0.detach(), *steps, weights, biases, *kept, *arguments[8:], True, None, *ABSENT, False,
            None, x_end,
        )  # fmt: skip


def test_ends_need_no_scale() -> None:
    arguments = op_arguments(*make_problem("relu", 2, (32, 32)))
    scale = torch.ones(3, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="want_ends must come without scale"):
        torch.ops.ade_fast.mlp_unroll(*arguments, *KEPT, scale, *ABSENT[1:], False, True)


# ------------------------------------------------------------------------------------------------ whose they are


class Elsewhere(nn.Module):
    """A dynamics that goes on where the unroll has ended, or unrolls another potential."""

    has_momentum = True

    def __init__(self, inner: nn.Module, how: str) -> None:
        super().__init__()
        self.inner, self.how = inner, how
        torch.manual_seed(1)
        self.other = ade.MLPPotential(2, hidden=(32, 32), activation="relu").double()

    def momentum_shape(self, event):
        return self.inner.momentum_shape(event)

    def forward(self, potential, x0, v0=None, **options):
        if self.how == "another potential":
            return self.inner(self.other, x0, v0, **options)
        out = self.inner(potential, x0, v0, **options)
        if self.how == "moved in place":
            out.x.add_(1)
        return out._replace(x=out.x + 1) if self.how == "moved" else out


def objective_of(dynamics: nn.Module, activation: str = "relu", **options):
    torch.manual_seed(0)
    f: nn.Module = ade.MLPPotential(2, hidden=(32, 32), activation=activation)
    f = ade.WithBase(f, 0.0, 2.0) if options.get("defensive") else f
    initial = ade.initial.PlanarFlow(2, 3)
    model = ade.ADE(f, ade.DualSampler(initial, dynamics), **options).double()
    x = torch.randn(20, 2, dtype=torch.float64)
    terms, _, figures = model._objective(x, torch.Generator().manual_seed(1), None, want_figures=True)
    terms.loss.backward()
    return terms.loss, figures, [p.grad for p in model.parameters()]


OBJECTIVES: dict[str, dict] = {
    "elbo": {},
    "penalty": {"gradient_penalty": 0.1},
    "value penalty": {"value_penalty": 0.1},
    "importance": {"bound": "importance", "sampler_bound": "importance"},
    "two bounds": {"bound": "importance", "sampler_bound": "renyi", "defensive": 0.1, "samples_per_point": 2},
    "two bounds, penalty": {"bound": "importance", "sampler_bound": "renyi", "gradient_penalty": 0.1},
}
DYNAMICS: dict[str, Callable[[], nn.Module]] = {
    "leapfrog": lambda: ade.Leapfrog(2, 0.2),
    "truncated": lambda: ade.Leapfrog(2, 0.2, gradient="truncated"),
    "stopped": lambda: ade.Leapfrog(2, 0.2, gradient="stopped"),
    "stack": lambda: ade.Sequential(ade.Leapfrog(2, 0.2), ade.DampedLeapfrog(1, 0.2, 0.9)),
    "stack that ends unfused": lambda: ade.Sequential(ade.Leapfrog(1, 0.2), ade.Leapfrog(1, 0.2, check_finite=True)),
    "stack that ends in another operator": lambda: ade.Sequential(
        ade.Leapfrog(1, 0.2), ade.GeneralizedLeapfrog(1, 0.2, scale_v=0.1)
    ),
    **{
        how: lambda how=how: Elsewhere(ade.Leapfrog(2, 0.2), how)
        for how in ("moved", "moved in place", "another potential", "same")
    },
}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("dynamics", DYNAMICS)
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_the_objective_is_the_same_without_them(
    activation: str, dynamics: str, objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, figures, grads = objective_of(DYNAMICS[dynamics](), activation, **OBJECTIVES[objective])
    monkeypatch.setattr(Ends, "current", staticmethod(lambda: None))
    plain_loss, plain_figures, plain_grads = objective_of(DYNAMICS[dynamics](), activation, **OBJECTIVES[objective])
    torch.testing.assert_close(loss, plain_loss, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(figures, plain_figures, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(grads, plain_grads, rtol=1e-10, atol=1e-10)


def test_the_same_memory_read_otherwise_is_not_known() -> None:
    f, x0, v0 = make_problem("relu", 2, (32, 32), batch=2)
    ends = Ends()
    with ends.as_current():
        x, *_ = ade.Leapfrog(2, 0.2).double()(f, x0, v0)
    assert ends.end_of(f, x) is not None and ends.end_of(f, x.view(2, 2)) is not None
    assert ends.end_of(f, x.t()) is None and ends.end_of(f, x.view(1, 4)) is None


@pytest.mark.parametrize("dynamics", ["leapfrog", "stack", "same"])
def test_f_is_not_evaluated_at_the_ends_again(dynamics: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ade_fast.fields import mlp

    rows = []
    evaluate = mlp.MLPField._evaluate
    monkeypatch.setattr(
        mlp.MLPField, "_evaluate", lambda self, x, *args: rows.append(len(x)) or evaluate(self, x, *args)
    )
    objective_of(DYNAMICS[dynamics](), gradient_penalty=0.1)
    assert rows == [20]  # the data
