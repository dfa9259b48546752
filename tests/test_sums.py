"""What an objective sums up, by one operator each: torch's own formulas and derivatives."""

import math

import pytest
import torch
from torch import Tensor, nn

from ade_fast import _sums, weights

ops = torch.ops.ade_fast
DTYPES = [torch.float32, torch.float64]


def _close(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == expected.dtype and found.shape == expected.shape
    tolerance = 2e-6 if found.dtype == torch.float32 else 1e-13
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("of_weight", [*DTYPES])
@pytest.mark.parametrize("shape", [(1, 1), (300, 2), (4, 1000), (3, 0)], ids=str)
def test_kinetic_energies(shape, of_weight, dtype):
    v, weight = torch.randn(shape, dtype=dtype, requires_grad=True), torch.tensor(0.7, dtype=of_weight)
    found, expected = _sums.kinetic(v, weight), weight.to(v) / 2 * v.square().sum(1)
    _close(found, expected)
    denergy = torch.randn_like(expected)
    _close(*(torch.autograd.grad(e, v, denergy)[0] for e in (found, expected)))
    if v.numel():
        torch.library.opcheck(ops.kinetic.default, (v, weight))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [(5, None), (5, 3), (1, 0), (300, 300)], ids=str)
def test_mean_squares(rows, dtype):
    u = [torch.randn(n, 2, 7, dtype=dtype, requires_grad=True) for n in rows if n is not None]
    found, expected = _sums.mean_square(*u), torch.cat(u).flatten(1).square().sum(1).mean()
    _close(found, expected)
    for a, b in zip(torch.autograd.grad(3 * found, u), torch.autograd.grad(3 * expected, u), strict=True):
        _close(a, b)
    flat = [part.detach().flatten(1).requires_grad_() for part in u]
    torch.library.opcheck(ops.mean_square.default, (flat[0], flat[1] if len(flat) > 1 else None))
    (alone,) = torch.autograd.grad(_sums.mean_square(u[0].detach(), *u[1:]) + u[-1].sum(), u[-1])
    assert alone.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_means_norms_and_numbers(dtype):
    parts = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in [(256,), (), (3, 5)]]
    parts.append(torch.randn(8, 4, dtype=dtype).T.requires_grad_())  # not contiguous
    for found, part in zip(_sums.means(*parts), parts, strict=True):
        _close(found, part.mean())
    total = sum(c * m for c, m in zip((1.0, 2.0, 3.0, -1.0), _sums.means(*parts), strict=True))
    for found, part, c in zip(torch.autograd.grad(total, parts), parts, (1.0, 2.0, 3.0, -1.0), strict=True):
        _close(found, torch.full_like(part, c / part.numel()))
    plain = [part.detach() for part in parts]
    for k in range(5):
        groups = [plain[:k], plain[k:]]
        _close(_sums.total_norms(*groups), torch.stack([nn.utils.get_total_norm(g).to(dtype) for g in groups]))
    _close(_sums.total_norms(plain), nn.utils.get_total_norm(plain)[None])
    scalars = [part.detach().sum() for part in parts]
    assert torch.equal(_sums.numbers(scalars), torch.stack(scalars))
    torch.library.opcheck(ops.means.default, (plain,))
    torch.library.opcheck(ops.total_norms.default, (plain, plain[:1]))
    torch.library.opcheck(ops.numbers.default, (scalars,))


@pytest.mark.parametrize("dtype", DTYPES)
def test_joint_log_weights(dtype):
    value, energy, log_q = (torch.randn(50, dtype=dtype, requires_grad=True) for _ in range(3))
    v, weight = torch.randn(50, 2, 3, dtype=dtype), torch.tensor(0.3)
    found = weights.joint_log_weights(value, energy, log_q, v, weight, False)
    expected = value - energy - log_q - 3 * math.log(2 * math.pi / 0.3)
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=2e-6)
    cotangent = torch.randn_like(found)
    for a, b in zip(
        *(torch.autograd.grad(w, (value, energy, log_q), cotangent) for w in (found, expected)), strict=True
    ):
        assert torch.equal(a, b)
    torch.library.opcheck(ops.log_weights.default, (value, energy, log_q, weight, 6))


def test_gradients_in_float64():
    u = [torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    weight = torch.tensor(1.3)
    assert torch.autograd.gradcheck(lambda a: _sums.kinetic(a, weight), u[:1])
    assert torch.autograd.gradcheck(_sums.mean_square, u)
    assert torch.autograd.gradcheck(_sums.means, u)


def test_what_the_operators_do_not_take_goes_torchs_way():
    u, weight = torch.randn(5, 3), torch.tensor(0.7, requires_grad=True)
    (by_weight,) = torch.autograd.grad(_sums.kinetic(u, weight).sum(), weight)
    torch.testing.assert_close(by_weight, 0.5 * u.square().sum())
    half = u.to(torch.bfloat16)
    assert _sums.kinetic(half, weight).dtype == _sums.mean_square(half).dtype == torch.bfloat16
    assert [m.dtype for m in _sums.means(half, u)] == [torch.bfloat16, torch.float32]
    assert _sums.numbers([torch.tensor(1.0), torch.tensor(2.0, dtype=torch.float64)]).tolist() == [1.0, 2.0]
    assert _sums.total_norms([half], [u]).shape == (2,)
    assert _sums.total_norms([], []).tolist() == [0.0, 0.0]
    mapped = torch.func.vmap(_sums.mean_square)(u.expand(2, 5, 3))
    torch.testing.assert_close(mapped, u.square().sum(1).mean().expand(2))
    _, tangent = torch.func.jvp(_sums.mean_square, (u,), (u,))
    torch.testing.assert_close(tangent, 2 * _sums.mean_square(u))


def test_second_derivatives_are_refused():
    u = torch.randn(4, 3, requires_grad=True)
    for total in (_sums.kinetic(u, torch.tensor(1.0)).sum(), _sums.mean_square(u)):
        (gradient,) = torch.autograd.grad(total, u, create_graph=True)
        with pytest.raises(RuntimeError, match="is differentiable only once"):
            gradient.sum().backward()
    with pytest.raises(RuntimeError, match="batched gradients"):
        torch.autograd.grad(_sums.kinetic(u, torch.tensor(1.0)), u, torch.eye(4), is_grads_batched=True)


def test_wrong_arguments_are_named():
    v = torch.zeros(3, 2)
    with pytest.raises(
        RuntimeError, match=r"kinetic: weight must be a float32 or float64 number on the CPU, got float32 \(2,\)"
    ):
        ops.kinetic(v, torch.ones(2))
    with pytest.raises(
        RuntimeError, match=r"mean_square: second must have as many columns, shape \(3, 2\), got \(3, 4\)"
    ):
        ops.mean_square(v, torch.zeros(3, 4))
    with pytest.raises(
        RuntimeError, match=r"means: tensors\[1\] must be float32 \(tensors\[0\] is float32\), got float64"
    ):
        ops.means([v, v.double()])
    with pytest.raises(RuntimeError, match=r"numbers: tensors\[0\] must be a number, got 6 entries"):
        ops.numbers([v])
    with pytest.raises(
        RuntimeError, match=r"log_weights: log_q must have one entry per sample, shape \(3,\), got \(4,\)"
    ):
        ops.log_weights(torch.zeros(3), torch.zeros(3), torch.zeros(4), torch.tensor(1.0), 2)
