"""Tempered momenta: a constant S_v (and S_x) of its own in every step of the generalized leapfrog."""

import copy

import pytest
import torch
from cases import DOUBLE, KickNetwork, assert_close, dense_slogdet, make_potential, normal
from torch import Tensor, nn

import ade_fast as ade
from ade_fast import reference
from ade_fast.fields import generalized_kicks

N_STEPS = 4
STEP = torch.tensor(0.2, dtype=DOUBLE)


def scales(*shape: int, seed: int = 31) -> nn.Parameter:
    return nn.Parameter(normal(N_STEPS, *shape, seed=seed, scale=0.3))


def unrolled(potential: nn.Module, x0: Tensor, v0: Tensor, scale_v: Tensor, **options) -> tuple[Tensor, ...]:
    layer = ade.GeneralizedLeapfrog(N_STEPS, STEP, scale_v=scale_v, **options)
    return layer(potential, x0, v0)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_merged_kicks_are_the_two_half_kicks(n: int) -> None:
    half, scale = torch.rand(n, 3, dtype=DOUBLE), torch.randn(n, 3, dtype=DOUBLE)
    force, v = torch.randn(2, 3, dtype=DOUBLE)
    kick, log_decay = generalized_kicks(half, scale)
    for t in range(n + 1):
        expected = v
        if t > 0:
            expected = expected * scale[t - 1].exp() + half[t - 1] * force
        if t < n:
            expected = expected * scale[t].exp() + half[t] * force
        assert_close(v * log_decay[t].exp() + kick[t] * force, expected, f"kick {t}", 1e-14)


@pytest.mark.parametrize("potential", ["silu", "fused"])
def test_log_det_is_that_of_the_dense_jacobian(potential: str) -> None:
    f = make_potential("silu") if potential == "silu" else ade.MLPPotential(3, (32, 32), "silu").double()
    x0, v0, scale_v, scale_x = normal(3, 3, seed=1), normal(3, 3, seed=2), scales(3), scales(1, seed=32)
    log_det = unrolled(f, x0, v0, scale_v, scale_x=scale_x)[2].detach()
    total = 2 * scale_v.sum() + 3 * scale_x.sum()
    assert_close(log_det, total.detach().expand(3), "log_det", 1e-13)
    dense = dense_slogdet(lambda x, v: unrolled(f, x, v, scale_v, scale_x=scale_x)[:2], x0, v0)
    assert_close(log_det, dense, "dense", 1e-11)


@pytest.mark.parametrize("steps", ["shared", "per_step"])
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_fused_kernels_and_the_general_path_agree(activation: str, steps: str) -> None:
    step = torch.tensor(0.2, dtype=DOUBLE) if steps == "shared" else 0.1 + 0.2 * torch.rand(N_STEPS, 3, dtype=DOUBLE)
    given = {"scale_v": scales(3), "scale_x": scales(3, seed=32), "grad_clip": ade.Clip.norm(0.4)}
    layers = [ade.GeneralizedLeapfrog(N_STEPS, step, **copy.deepcopy(given)) for _ in range(2)]
    fused = ade.MLPPotential(3, (32, 32), activation).double()
    general = copy.deepcopy(fused)
    general.register_forward_hook(lambda module, args, output: None)  # which the kernels do not run
    results = []
    for layer, f, by_kernels in zip(layers, (fused, general), (True, False), strict=True):
        x0, v0 = (normal(5, 3, seed=seed).requires_grad_() for seed in (1, 2))
        out = layer(f, x0, v0)
        assert (layer.last_plan.field == "mlp") is by_kernels
        wanted = [x0, v0, *layer.parameters(), *f.parameters()]
        total = sum((o * normal(*o.shape, seed=70 + i)).sum() for i, o in enumerate(out))
        results.append([*out, *torch.autograd.grad(total, wanted, allow_unused=True)])
    for i, (a, e) in enumerate(zip(*results, strict=True)):
        assert_close(a if a is None else a.detach(), e if e is None else e.detach(), f"result {i}")


@pytest.mark.parametrize("memory", ["graph", "states"])
@pytest.mark.parametrize("potential", ["silu", "fused"])
def test_gradcheck(potential: str, memory: str) -> None:
    f = make_potential("silu") if potential == "silu" else ade.MLPPotential(3, (32, 32), "silu").double()
    layer = ade.GeneralizedLeapfrog(
        N_STEPS, STEP, scale_v=scales(3), scale_x=scales(1), momentum_clip=ade.Clip.norm(1.0), memory=memory
    )
    x0, v0 = (normal(2, 3, seed=seed).requires_grad_() for seed in (1, 2))
    inputs = (x0, v0, *layer.parameters())
    assert torch.autograd.gradcheck(lambda x0, v0, *_: tuple(layer(f, x0, v0)), inputs, atol=1e-6, rtol=1e-5)


def test_equal_scales_are_the_shared_one() -> None:
    f, x0, v0 = make_potential("silu"), normal(5, 3, seed=1), normal(5, 3, seed=2)
    shared, expected = normal(3, seed=31, scale=0.3), None
    for scale in (shared, shared.expand(N_STEPS, 3)):
        out = unrolled(f, x0, v0, scale)
        expected = expected or out
        for name, a, e in zip(("x", "v", "log_det"), out, expected, strict=True):
            assert_close(a.detach(), e.detach(), name, 1e-13)


def test_a_network_may_stand_beside_a_tempered_scale() -> None:
    f, x0, v0 = make_potential("relu"), normal(5, 3, seed=1), normal(5, 3, seed=2)
    shift, scale = KickNetwork((3,), (3,), 1.0), scales(3)
    layer = ade.GeneralizedLeapfrog(N_STEPS, STEP, scale_v=scale, shift_v=shift)
    wanted = [scale, *shift.parameters()]
    results = []
    for out in (
        layer(f, x0, v0),
        reference.generalized_leapfrog(f, x0, v0, STEP, N_STEPS, scale_v=scale, shift_v=shift),
    ):
        results.append([*out, *torch.autograd.grad(sum(o.square().sum() for o in out), wanted)])
    for i, (a, e) in enumerate(zip(*results, strict=True)):
        assert_close(a.detach(), e.detach(), f"result {i}")


@pytest.mark.parametrize("name", ["scale_v", "scale_x"])
def test_another_number_of_steps_is_refused(name: str) -> None:
    layer = ade.GeneralizedLeapfrog(N_STEPS, STEP, **{name: torch.zeros(N_STEPS + 1, 3)})
    wanted = rf"GeneralizedLeapfrog: {name} with one row per step must have 4 rows, got shape \(5, 3\)"
    with pytest.raises(ValueError, match=wanted):
        layer(make_potential("silu"), normal(5, 3, seed=1))
