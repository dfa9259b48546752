"""Whole unrolls on a CUDA device against the equations in float64; small, for compute-sanitizer (bench/gpu.sh)."""

from __future__ import annotations

import copy

import pytest
import torch

import ade_fast as ade
from ade_fast import _info

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: torch.cuda.is_available() is False"),
]


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
