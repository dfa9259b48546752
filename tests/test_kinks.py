"""The operators that keep a kink's slopes as bits, against torch's own ReLU and leaky ReLU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ade_fast.programs.kinks import bend, bent_, bits_of

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("slope", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 513), (2, 3, 4, 5)])
def test_values_bits_and_slopes(shape: tuple[int, ...], slope: float, dtype: torch.dtype) -> None:
    z = torch.randn(shape, dtype=dtype)
    z.view(-1)[0] = 0.0
    d = torch.randn(shape, dtype=dtype)
    expected = torch.nn.functional.leaky_relu(z, slope) if slope else z.relu()
    out, bits = bend(z, slope, over=False)
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    assert np.array_equal(bits.numpy(), np.packbits((z > 0).flatten().numpy(), bitorder="little"))
    assert torch.equal(bits_of(z), bits)
    torch.testing.assert_close(bent_(d.clone(), bits, slope), torch.where(z > 0, d, slope * d), rtol=0, atol=0)
    over = z.clone()
    assert bend(over, slope, over=True)[0] is over and torch.equal(over, out)


def test_the_order_is_that_of_memory() -> None:
    z, d = (torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last) for _ in range(2))
    out, bits = bend(z, 0.1, over=False)
    assert torch.equal(out, torch.nn.functional.leaky_relu(z, 0.1)) and out.stride() == z.stride()
    assert torch.equal(bent_(d.clone(), bits, 0.1), torch.where(z > 0, d, 0.1 * d))


def test_what_is_not_finite() -> None:
    z = torch.tensor([[float("nan"), float("inf"), -float("inf")]])
    out, bits = bend(z, 0.0, over=False)
    assert out.isnan().tolist() == [[True, False, False]] and out[0, 1:].tolist() == [float("inf"), 0.0]
    assert bits.tolist() == [0b011]


def test_wrong_arguments_are_refused() -> None:
    op = torch.ops.ade_fast
    z = torch.zeros(2, 8)
    with pytest.raises(RuntimeError, match="slope must be 0 or more"):
        op.kink_bend(z, z, -0.1)
    with pytest.raises(RuntimeError, match="kink_slopes: bits"):
        op.kink_slopes(z, torch.zeros(3, dtype=torch.uint8), z, 0.1)
    with pytest.raises(RuntimeError, match="out must be contiguous"):
        op.kink_bend(z, torch.zeros(8, 2).t(), 0.1)
