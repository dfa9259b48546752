"""mlp_contrast, contrastive divergence from one operator: the chains of mlp_chain, and autograd of f at their ends."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from test_mlp_chain import DOUBLE, EVERY, SEED, Opaque, draws, make, threads  # noqa: F401
from torch import Tensor, nn

import ade_fast as ade
from ade_fast import estimators as E
from ade_fast._mlp_chain_op import mlp_contrast
from ade_fast.dynamics import base, fused_chain
from ade_fast.fields import Layout, fused_sum


def run(op, f: nn.Module, x: Tensor, eta: float, n_steps: int, n: int, test: bool = True, **options):
    kick, drift = base.MergedSteps("t", n_steps, Layout.of(x), torch.tensor(eta, dtype=x.dtype)).rows(x)
    return op(fused_sum(f, x), x, SEED, kick, drift, n, test, **options)


def contrast_of(f: nn.Module, begin: Tensor, end: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    total = f(end).mean() - f(begin).mean()
    weights = [p for name in ("weight", "bias") for n, p in f.named_parameters() if n.endswith(name)]
    return total, torch.autograd.grad(total, weights)


@pytest.mark.parametrize(("activation", "dim", "hidden"), EVERY, ids=str)
@pytest.mark.parametrize("test", [True, False])
@pytest.mark.parametrize(("rows", "n"), [(9, 21), (131, 3)], ids=str)
def test_agrees_with_autograd_at_the_ends(activation, dim, hidden, test: bool, rows: int, n: int) -> None:
    """Over more points than sums are followed for; over several tiles and groups of them."""
    f, x = make(activation, dim, hidden), draws(1, rows, dim)[0]
    end, acceptance = run(fused_chain.run_chain_op, f, x, 0.9, 3, n, test)
    assert not test or acceptance.mean() < 1
    total, derivatives, weights = run(fused_chain.run_contrast_op, f, x, 0.9, 3, n, test)
    wanted, grads = contrast_of(f, x, end)
    torch.testing.assert_close(total, wanted.detach(), rtol=1e-10, atol=1e-10)
    assert len(derivatives) == len(weights) == len(grads)
    for got, want in zip(derivatives, grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("test", [True, False])
def test_the_chains_are_those_of_the_other_operator_for_any_number_of_threads(activation, test, threads) -> None:  # noqa: F811
    f, x = make(activation, 2, (64, 32, 32), torch.float32), draws(1, 700, 2, torch.float32)[0]
    chain = run(fused_chain.run_chain_op, f, x, 0.4, 2, 20, test)
    found = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        found.append(run(lambda *a, **k: mlp_contrast(*fused_chain._arguments(*a, **k)), f, x, 0.4, 2, 20, test))
    assert all(torch.equal(got, want) for got, want in zip(found[0][:2], chain, strict=True))
    flat = [[*outs[:3], *outs[3], *outs[4]] for outs in found]
    for other in flat[1:]:
        assert all(torch.equal(a, b) for a, b in zip(flat[0], other, strict=True))


@pytest.mark.parametrize("instructions", ["base", "avx2", "avx512"])
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_every_instruction_set(activation: str, instructions: str, isa) -> None:
    if not isa(instructions):
        pytest.skip(f"this processor has no {instructions}")
    f, (x, v, u) = make(activation), draws(20, 60, 2)
    given = {"normals": v, "uniforms": u}
    end = run(fused_chain.run_chain_op, f, x, 0.3, 2, 20, **given)[0]
    total, derivatives, _ = run(fused_chain.run_contrast_op, f, x, 0.3, 2, 20, **given)
    wanted, grads = contrast_of(f, x, end)
    torch.testing.assert_close([total, *derivatives], [wanted.detach(), *grads], rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("accept", [True, False])
@pytest.mark.parametrize("base", [True, False])
def test_the_estimator_is_this_operator(accept: bool, base: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against its own other way: the chains, then f at both ends."""
    whole, x = make("silu"), draws(1, 30, 2)[0]
    f = whole if base else whole.potential
    seeded = partial(torch.Generator().manual_seed, 7)
    for chain in (None, E.Chain(ade.Leapfrog(2, torch.tensor(0.6, dtype=DOUBLE)), 3, accept_reject=accept)):
        if chain is not None and not accept:
            continue  # which has no operator
        options = {"chain": chain} if chain else {"n_steps": 4, "step_size": 0.4, "accept_reject": accept}
        found = E.contrastive_divergence(f, x, generator=seeded(), **options)
        with monkeypatch.context() as patch:
            patch.setattr(E.Chain, "contrast", lambda *_, **__: None)
            wanted = E.contrastive_divergence(f, x, generator=seeded(), **options)
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
        parameters = [*f.parameters()]
        for got, want in zip(*(torch.autograd.grad(-3 * loss, parameters) for loss in (found, wanted)), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-11)


def test_where_the_operator_is_not_taken() -> None:
    """Data with a gradient of its own, no gradient at all, a potential or a dynamics that it does not know."""
    f, x = make("silu"), draws(1, 6, 2)[0]
    chain = E.Chain.langevin(3, 0.1, like=x)
    assert chain.contrast(f, x).requires_grad
    assert chain.contrast(f, x.clone().requires_grad_()) is None and chain.contrast(Opaque(f), x) is None
    assert E.Chain(ade.Leapfrog(2, 0.1)).contrast(f, x) is None
    with torch.no_grad():
        assert chain.contrast(f, x) is None
    points = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(E.contrastive_divergence(f, points, generator=torch.Generator()), points)
    (field,) = torch.autograd.grad(f(points).sum(), points)
    torch.testing.assert_close(grad, -field / 6, rtol=1e-10, atol=1e-10)


def test_once_differentiable_and_not_of_weights_changed_since() -> None:
    f, x = make("silu"), draws(1, 6, 2)[0]
    loss = E.contrastive_divergence(f, x)
    (grad,) = torch.autograd.grad(loss, f.potential.layers[0].weight, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable only once"):
        grad.sum().backward()
    loss = E.contrastive_divergence(f, x)
    with torch.no_grad():
        f.potential.layers[0].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_spectral_normalised_weights() -> None:
    f, x = make("silu"), draws(1, 6, 2)[0]
    layer = nn.utils.parametrizations.spectral_norm(f.potential.layers[2])
    found = E.contrastive_divergence(f.eval(), x, generator=torch.Generator())
    end = E.Chain.langevin(15, 0.1, like=x).run(f, x, generator=torch.Generator()).x
    original = layer.parametrizations.weight.original
    grads = (torch.autograd.grad(loss, original)[0] for loss in (found, f(end).mean() - f(x).mean()))
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("test", [True, False])
def test_opcheck(test: bool) -> None:
    f, (x, v, u) = make("relu", 2, (32, 32), torch.float32), draws(3, 5, 2, torch.float32)
    given = {"normals": v, "uniforms": u} if test else {}
    arguments = run(fused_chain._arguments, f, x, 0.3, 2, 3, test, **given)
    arguments = [[t.detach() for t in a] if isinstance(a, (list, tuple)) else a for a in arguments]
    torch.library.opcheck(torch.ops.ade_fast.mlp_contrast.default, tuple(arguments))


def test_no_samples_have_no_contrast() -> None:
    with pytest.raises(RuntimeError, match="mlp_contrast: x0 must have at least one row, got 0"):
        run(fused_chain.run_contrast_op, make(), torch.zeros(0, 2, dtype=DOUBLE), 0.1, 1, 3)
