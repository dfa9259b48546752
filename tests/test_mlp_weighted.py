"""mlp_weighted_value, Σ factor f(x) with its gradients from one evaluation, against autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import ade_fast as ade
from ade_fast.fields import fused_sum, fused_weighted_value

DOUBLE = torch.float64
EVERY = [
    ("relu", 2, (64, 32, 32)), ("relu", 3, (32, 64)), ("leaky_relu", 1, (32,)), ("silu", 2, (32, 64)),
    ("elu", 5, (32, 32, 32)),
]  # fmt: skip


def make(activation: str, dim: int, hidden: tuple[int, ...], base: bool) -> nn.Module:
    f = ade.MLPPotential(dim, hidden, activation)
    return (ade.WithBase(f, 0.3, 1.5) if base else f).to(DOUBLE)


@pytest.mark.parametrize(("activation", "dim", "hidden"), EVERY, ids=str)
@pytest.mark.parametrize("base", [False, True])
def test_agrees_with_autograd(activation: str, dim: int, hidden: tuple[int, ...], base: bool) -> None:
    f = make(activation, dim, hidden, base)
    x, factor = torch.randn(70, dim, dtype=DOUBLE, requires_grad=True), torch.randn(70, dtype=DOUBLE)
    of = [x, *f.parameters()]
    found, wanted = fused_weighted_value(f, x, factor), (factor * f(x)).sum()
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    grads = torch.autograd.grad(-3 * found, of)
    for got, want in zip(grads, torch.autograd.grad(-3 * wanted, of), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        assert fused_weighted_value(f, x, factor).item() == pytest.approx(wanted.item(), abs=1e-10)


def test_gradcheck() -> None:
    f, factor = make("silu", 2, (32,), True), torch.randn(4, dtype=DOUBLE)
    x = torch.randn(4, 2, dtype=DOUBLE, requires_grad=True)
    bias = f.potential.layers[0].bias

    def of(x: Tensor, _: Tensor) -> Tensor:
        return fused_weighted_value(f, x, factor)

    assert torch.autograd.gradcheck(of, (x, bias))


def test_some_gradients_alone_and_twice_through_one_graph() -> None:
    f = make("relu", 2, (32, 32), False)
    f.layers[0].requires_grad_(False)
    x, factor = torch.randn(9, 2, dtype=DOUBLE), torch.randn(9, dtype=DOUBLE)
    found = fused_weighted_value(f, x, factor)
    found.backward(retain_graph=True)
    once = f.layers[2].weight.grad.clone()
    found.backward()
    assert f.layers[0].weight.grad is None and torch.equal(f.layers[2].weight.grad, 2 * once)


def test_what_it_refuses() -> None:
    f, x = make("silu", 2, (32,), False), torch.randn(4, 2, dtype=DOUBLE, requires_grad=True)
    (grad,) = torch.autograd.grad(fused_weighted_value(f, x, x[:, 0].detach()), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable only once"):
        grad.sum().backward()
    found = fused_weighted_value(f, x, x[:, 0].detach())
    with torch.no_grad():
        f.layers[0].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found.backward()
    assert fused_weighted_value(lambda x: x.sum(1), x, x[:, 0].detach()) is None


@pytest.mark.parametrize("base", [False, True])
def test_opcheck(base: bool) -> None:
    f, x = make("relu", 2, (32, 32), base), torch.randn(4, 2, dtype=DOUBLE)
    found = fused_sum(f, x)
    weights, biases = ([t.detach() for t in tensors] for tensors in found.field.weights())
    arguments = (x, torch.randn(4, dtype=DOUBLE), weights, biases, *found.field.spec.numbers, *(found.base or ()))
    torch.library.opcheck(torch.ops.ade_fast.mlp_weighted_value.default, arguments)


def test_misuse_is_named() -> None:
    f, x = make("relu", 2, (32,), False), torch.randn(4, 2, dtype=DOUBLE)
    with pytest.raises(RuntimeError, match=r"mlp_weighted_value: factor must have one entry per sample, shape \(4,\)"):
        fused_weighted_value(f, x, x.new_zeros(3))
