"""The rate of a continuous dynamics of an MLP: by its own formulas, by the fused kernels, and by autograd alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import assert_close, normal
from torch import Tensor, nn

import ade_fast as ade
from ade_fast.dynamics import flow
from ade_fast.dynamics.laplacian import gradient_and_laplacian
from ade_fast.fields import MLPField

SMOOTH = ("softplus", "silu", "tanh", "elu")
DIM = 3


class Opaque(nn.Module):
    """Another module's f, which no kernel knows."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def mlp(activation: str = "silu", hidden: tuple[int, ...] = (32, 64), **options: Any) -> ade.MLPPotential:
    torch.manual_seed(3)
    return ade.MLPPotential(DIM, hidden, activation, **options).double()


def by_autograd(f: Callable, x: Tensor) -> tuple[Tensor, Tensor]:
    (gradient,) = torch.autograd.grad(f(x).sum(), x, create_graph=True)
    columns = [torch.autograd.grad(gradient[:, d].sum(), x, create_graph=True)[0][:, d] for d in range(DIM)]
    return gradient, torch.stack(columns).sum(0)


@pytest.mark.parametrize("hidden", [(32,), (32, 64), (64, 32, 32)], ids=str)
@pytest.mark.parametrize("activation", SMOOTH)
def test_gradient_and_laplacian_and_their_derivatives(activation: str, hidden: tuple[int, ...]) -> None:
    f, x = mlp(activation, hidden), normal(7, DIM, seed=1).requires_grad_()
    mean, std = torch.tensor([0.1, -0.2, 0.3]), torch.tensor([0.8, 1.0, 1.2])
    for base in (None, (std.double().square().reciprocal(), mean.double())):
        want = by_autograd(f if base is None else ade.WithBase(f, mean, std).double(), x)
        got = gradient_and_laplacian(MLPField.match(f), x, base)
        leaves = [x, *list(f.parameters())[:-1]]  # but f's constant
        for one, other in zip(got, want, strict=True):
            assert_close(one, other, "value", 1e-10)
        found = [torch.autograd.grad((a.sin().sum() + b.square().sum()), leaves) for a, b in (got, want)]
        for one, other in zip(*found, strict=True):
            assert_close(one, other, "derivative", 1e-10)


def test_a_piecewise_linear_mlp_has_no_laplacian() -> None:
    with pytest.raises(ValueError, match="gradient_and_laplacian: relu has no second derivative"):
        gradient_and_laplacian(MLPField.match(mlp("relu")), normal(2, DIM, seed=1))


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("based", [False, True])
def test_kernels_gradient_and_trace(based: bool, keeps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    f, x = mlp(), normal(9, DIM, seed=1).requires_grad_()
    base = (torch.tensor([0.5, 1.0, 2.0]).double(), torch.zeros(DIM).double()) if based else None
    monkeypatch.setattr(MLPField, "_keeps", lambda *_: keeps)
    z = normal(2, 9, DIM, seed=2)
    gradient, trace = MLPField.match(f).grad_and_trace(x, z, base)
    whole = ade.WithBase(f, 0.0, base[0].rsqrt().float()).double() if based else f
    (want,) = torch.autograd.grad(whole(x).sum(), x, create_graph=True)
    products = [(torch.autograd.grad(want, x, u, retain_graph=True)[0] * u).sum(1) for u in z]
    assert not gradient.requires_grad and not trace.requires_grad
    tolerance = 1e-6 if based else 1e-10  # the base's std is a float32 square root
    assert_close(gradient, want, "gradient", tolerance)
    assert_close(trace, sum(products), "trace", tolerance)


@pytest.mark.parametrize(
    ("divergence", "adjoint", "spectral_norm"),
    [("exact", True, True), ("exact", False, False), ("hutchinson", True, False), ("hutchinson", False, True)],
)
def test_it_is_the_flow_of_any_other_module(divergence: str, adjoint: bool, spectral_norm: bool) -> None:
    """Ends, log-determinants and every gradient; the solver's steps are the same to rounding."""
    f, x0 = ade.WithBase(mlp(spectral_norm=spectral_norm), 0.0, 1.5).double(), normal(4, DIM, seed=1)
    if spectral_norm:
        f.eval()  # another power iteration would be another f
    layer = ade.ContinuousLangevin(0.2, divergence=divergence, adjoint=adjoint).double()
    probes = torch.ones(1, 4, DIM).double() if divergence == "hutchinson" else None
    found = []
    for potential in (f, Opaque(f)):
        x = x0.clone().requires_grad_()
        out = layer(potential, x, probes=probes)
        leaves = [x, layer.time, *f.parameters()]  # f's constant gets none or 0
        gradients = torch.autograd.grad(
            out.x.sin().sum() + out.log_det.square().sum(), leaves, allow_unused=True, materialize_grads=True
        )
        with torch.no_grad():
            drawn = layer(potential, x, probes=probes)
        found.append((out.x, out.log_det, drawn.x, drawn.log_det, *gradients))
    for one, other in zip(*found, strict=True):
        assert_close(one, other, "either way", 1e-9)


def test_only_what_the_kernels_know_goes_by_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hooks are run, and h is asked: by autograd."""
    calls = []
    monkeypatch.setattr(
        flow, "gradient_and_laplacian", lambda *args: calls.append(args) or gradient_and_laplacian(*args)
    )
    x0, hooked = normal(4, DIM, seed=1), mlp()
    seen = []
    hooked.layers[0].register_forward_hook(lambda *_: seen.append(1))
    ade.ContinuousLangevin(0.1).double()(hooked, x0)
    assert seen and not calls
    ade.GeneralizedContinuousLangevin(lambda grad, value, x: grad, 0.1).double()(mlp(), x0)
    assert not calls
    ade.ContinuousLangevin(0.1, adjoint=False).double()(mlp(), x0)
    assert calls
