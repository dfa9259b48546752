"""Whole unrolls on a CUDA device against the equations in float64; small, for compute-sanitizer (bench/gpu.sh)."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

import ade_fast as ade
from ade_fast import _info

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: torch.cuda.is_available() is False"),
]


@pytest.mark.parametrize("name", ["mlp", "autograd"])
def test_small_langevin(name: str) -> None:
    """Given noise against the equations; drawn noise: the CPU's numbers, and the same again in the backward pass."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        plain = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.SiLU(), torch.nn.Linear(16, 1))
        f = ade.MLPPotential(3, (64, 32), "silu") if name == "mlp" else plain
        x0, seed = torch.randn(33, 3), torch.tensor([12345])
        noise = torch.stack([torch.ops.ade_fast.philox_normal(x0, seed, t) for t in range(3)])
        drawn = torch.stack([torch.ops.ade_fast.philox_normal(x0.cuda(), seed.cuda(), t) for t in range(3)])
        torch.testing.assert_close(drawn.cpu(), noise, rtol=1e-6, atol=0)

        mirror = copy.deepcopy(f).double()
        wide = [t.double().requires_grad_() for t in (x0, torch.tensor(0.1), torch.tensor(0.3))]
        wanted = ade.reference.langevin(mirror, *wide[:2], 3, noise.double(), noise_std=wide[2])
        right = torch.autograd.grad(_total(wanted), wide)

        leaves = [t.detach().float().cuda().requires_grad_() for t in wide]
        given = ade.functional.langevin(f.cuda(), *leaves[:2], 3, noise_std=leaves[2], noise=noise.cuda())
        for one, other in zip((*given, *torch.autograd.grad(_total(given), leaves)), (*wanted, *right), strict=True):
            torch.testing.assert_close(one.detach().double().cpu(), other.detach(), rtol=1e-4, atol=1e-4)

        layer = ade.Langevin(3, 0.1, noise_std=0.3, learn_noise_std=True).cuda()
        found = []
        for memory in ("graph", "states"):
            layer.options = dataclasses.replace(layer.options, memory=memory)
            out = layer(f, leaves[0], generator=torch.Generator("cuda").manual_seed(1))
            found.append((*out, *torch.autograd.grad(_total(out), [leaves[0], *layer.parameters()])))
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    finally:
        torch.set_float32_matmul_precision(before)


def _total(out: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return out[0].sin().sum() + out[1].square().sum() + out[3].sum()


@pytest.mark.parametrize("memory", ["graph", "states"])
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_small_mlp(activation: str, memory: str) -> None:
    """33 samples, 3 steps: outputs and all gradients, by the MLP kernels where the build has them for CUDA."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        potential = ade.MLPPotential(3, (64, 32), activation)
        layer = ade.Leapfrog(3, 0.1, memory=memory)
        x0, v0, a, b = (torch.randn(33, 3) for _ in range(4))

        mirror = copy.deepcopy(potential).double()
        wide = [t.double().requires_grad_() for t in (x0, v0, layer.step_size.detach())]
        wanted = ade.reference.leapfrog(mirror, *wide, 3)[:2]
        right = torch.autograd.grad(wanted, [*wide, *mirror.parameters()], (a.double(), b.double()), allow_unused=True)

        potential, layer = potential.cuda(), layer.cuda()
        leaves = [t.cuda().requires_grad_() for t in (x0, v0)]
        out = layer(potential, *leaves)[:2]
        inputs = [*leaves, layer.step_size, *potential.parameters()]
        got = torch.autograd.grad(out, inputs, (a.cuda(), b.cuda()), allow_unused=True)
    finally:
        torch.set_float32_matmul_precision(before)
    assert (layer.last_plan.field == "mlp") == _info.has_kernel("mlp_unroll", "cuda")
    for one, other in zip((*out, *got), (*wanted, *right), strict=True):
        one, other = (torch.zeros(()) if t is None else t.detach().double().cpu() for t in (one, other))
        assert float((one - other).norm()) <= 1e-4 * max(float(other.norm()), 1e-6)


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_small_diagnostics(activation: str, device: str = "cuda") -> None:
    """The figures of the unroll and of its backward pass are the CPU's, from the same operators."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        potential = ade.MLPPotential(3, (64, 32), activation)
        x0, v0, dx, dv = torch.randn(4, 33, 3)
        found = []
        for place, dtype in (("cpu", torch.float64), (device, torch.float32)):
            layer = ade.Leapfrog(3, 0.1, grad_clip=ade.Clip.norm(0.5)).to(place, dtype)
            x, v, a, b = (t.to(place, dtype) for t in (x0, v0, dx, dv))
            f = copy.deepcopy(potential).to(place, dtype)
            out = layer(f, x.requires_grad_(), v.requires_grad_(), diagnostics=True)
            torch.autograd.backward((out.x, out.v), (a, b))
            assert (layer.last_plan.field == "mlp") == _info.has_kernel("mlp_unroll", place)
            found.append(layer.diagnostics.rows())
        right, here = found
        assert here.keys() == right.keys() and "adjoint_norm" in here
        for name in right.keys() - {"grad_clipped", "momentum_clipped"}:  # which jump at their bounds
            torch.testing.assert_close(torch.tensor(here[name]), torch.tensor(right[name]), rtol=1e-4, atol=1e-4)
    finally:
        torch.set_float32_matmul_precision(before)
