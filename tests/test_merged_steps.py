"""Kicks and drifts of leapfrog, and normal densities, by one operator each: torch's own formulas and derivatives."""

import pytest
import torch
from torch import Tensor

from ade_fast._merged_steps_op import merged_steps, merged_steps_vjp
from ade_fast.dynamics.base import merged_kicks
from ade_fast.initial.base import standard_normal_log_density

ops = torch.ops.ade_fast
DTYPES = [torch.float32, torch.float64]


def _close(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == expected.dtype
    tolerance = 1e-6 if found.dtype == torch.float32 else 1e-13
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n_steps", "per_step", "dim"), [(1, False, 1), (1, True, 3), (5, False, 2), (5, True, 7)])
def test_one_operator_has_the_steps_and_the_way_back(
    n_steps: int, per_step: bool, dim: int, dtype: torch.dtype
) -> None:
    eta = torch.rand(n_steps if per_step else 1, dim, dtype=dtype).requires_grad_()
    kick, drift = merged_kicks(eta, n_steps), eta.expand(n_steps, -1)
    plain = eta.detach()
    for found, expected in zip(merged_steps(plain, n_steps), (kick, drift), strict=True):
        _close(found, expected.detach())
        assert found.data_ptr() != plain.data_ptr()  # whatever becomes of the step sizes
    dkick, ddrift = torch.randn_like(kick), torch.randn_like(drift)
    for other, outputs, cotangents in ((ddrift, (kick, drift), (dkick, ddrift)), (None, (kick,), (dkick,))):
        (expected,) = torch.autograd.grad(outputs, eta, cotangents, retain_graph=True)
        _close(merged_steps_vjp(dkick, other, per_step), expected)
    torch.library.opcheck(ops.merged_steps.default, (plain, n_steps))
    torch.library.opcheck(ops.merged_steps_backward.default, (dkick, ddrift, per_step))


def test_wrong_steps_are_refused_and_so_are_derivatives() -> None:
    with pytest.raises(RuntimeError, match="merged_steps: step must have one row, or one for each of 3 steps, got 2"):
        ops.merged_steps(torch.zeros(2, 1), 3)
    with pytest.raises(RuntimeError, match="merged_steps_backward: dkick must have a row for each point"):
        ops.merged_steps_backward(torch.zeros(1, 2), None, False)
    with pytest.raises(RuntimeError, match="merged_steps_backward: ddrift must have one row per step"):
        ops.merged_steps_backward(torch.zeros(3, 2), torch.zeros(3, 2), False)
    with pytest.raises(RuntimeError, match="merged_steps has no derivative"):
        ops.merged_steps(torch.zeros(1, 2, requires_grad=True), 3)[0].sum().backward()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 2), (5, 1), (300, 2), (4, 3, 28)], ids=str)
def test_one_operator_has_the_normal_density(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    noise = torch.randn(shape, dtype=dtype)
    normal = torch.distributions.Normal(torch.zeros((), dtype=dtype), 1.0)
    _close(standard_normal_log_density(noise), normal.log_prob(noise).flatten(1).sum(1))
    followed = noise.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(standard_normal_log_density(followed).sum(), followed)
    torch.testing.assert_close(gradient, -noise)
    mapped = torch.func.vmap(standard_normal_log_density)(noise[None])
    torch.testing.assert_close(mapped[0], standard_normal_log_density(noise))
    if noise.numel():
        torch.library.opcheck(ops.normal_log_density.default, (noise.flatten(1),))
