"""philox_normal against Philox4x32-10 and Box-Muller in numpy, its CUDA kernel on the host, and the normals' law."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from types import ModuleType

import numpy as np
import pytest
import torch
from host_kernels import Guarded
from torch import Tensor

from ade_fast._philox_op import draw_seed, philox_normal

op = torch.ops.ade_fast.philox_normal.default
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
SEED = 0x0123_4567_89AB_CDEF
# Random123's known answers: counter, key (low word first), result.
KNOWN = [
    ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, 0xFFFFFFFF_FFFFFFFF, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        0x299F31D0_A4093822,
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def as_seed(number: int, device: torch.device | str = "cpu") -> Tensor:
    return torch.tensor([number if number < 1 << 63 else number - (1 << 64)], device=device)


# ------------------------------------------------------------------------------------------- the same in numpy


def philox4x32(counter: np.ndarray, key: int) -> np.ndarray:
    """uint64 [..., 4] below 2^32 -> the same: ten rounds."""
    low = np.uint64(0xFFFFFFFF)
    c, key0, key1 = counter.astype(np.uint64), key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        a, b = np.uint64(0xD2511F53) * c[..., 0], np.uint64(0xCD9E8D57) * c[..., 2]
        high_a, high_b = a >> np.uint64(32), b >> np.uint64(32)
        c = np.stack([high_b ^ c[..., 1] ^ np.uint64(key0), b & low, high_a ^ c[..., 3] ^ np.uint64(key1), a & low], -1)
        key0, key1 = (key0 + 0x9E3779B9) & 0xFFFFFFFF, (key1 + 0xBB67AE85) & 0xFFFFFFFF
    return c


def expected(rows: int, cols: int, dtype: torch.dtype, seed: int, step: int) -> np.ndarray:
    """The normals [rows, cols] in long double, from uniforms rounded as `dtype` has them."""
    each = 2 if dtype == torch.float64 else 4
    per_row = -(-cols // each)
    counter = np.zeros((rows, per_row, 4), np.uint64)
    counter[..., 0], counter[..., 1], counter[..., 3] = np.arange(per_row), np.arange(rows)[:, None], step
    words = philox4x32(counter, seed)
    if dtype == torch.float64:
        bits = (words[..., 0::2] << np.uint64(32)) | words[..., 1::2]
        u = ((bits[..., 0::2] >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
        turn, size = bits[..., 1::2], 64
    else:
        u = words[..., 0::2].astype(np.float32) * np.float32(2.0**-32) + np.float32(2.0**-33)
        turn, size = words[..., 1::2], 32
    radius = np.sqrt(-2 * np.log(u.astype(np.longdouble)))
    # The angle (turn + 1/2) 2 pi / 2^size; its quadrant is taken off exactly: cos is then right where it is small.
    high = turn << np.uint64(64 - size)
    k = (high + np.uint64(1 << 61)) >> np.uint64(62)
    rest = (high - (k << np.uint64(62))).view(np.int64) >> (64 - size)
    pi = np.longdouble("3.14159265358979323846264338327950288")
    x = (rest.astype(np.longdouble) + 0.5) * pi / np.longdouble(2.0) ** (size - 1)
    cosine, sine, k = np.cos(x), np.sin(x), k.astype(np.int64)
    first = np.choose(k, [cosine, -sine, -cosine, sine])
    second = np.choose(k, [sine, cosine, -sine, -cosine])
    return np.stack([radius * first, radius * second], -1).reshape(rows, per_row * each)[:, :cols]


def ulps(got: np.ndarray, want: np.ndarray) -> float:
    """The largest distance, in units in the last place of got's dtype at `want`."""
    unit = np.spacing(np.abs(want).astype(got.dtype)).astype(np.longdouble)
    return float((np.abs(got.astype(np.longdouble) - want) / unit).max())


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_known_answers(testing: ModuleType, counter: tuple[int, ...], key: int, result: tuple[int, ...]) -> None:
    assert testing.formulas.philox4x32(counter, key) == result
    assert tuple(philox4x32(np.array(counter, np.uint64), key)) == result


@pytest.mark.parametrize("cols", [1, 2, 3, 4, 5, 9, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_agrees_with_numpy(dtype: torch.dtype, cols: int, device: torch.device) -> None:
    for seed, step in ((SEED, 0), (0xFEDC_BA98_7654_3210, 7), (1, (1 << 32) - 1)):
        got = op(torch.empty(500, cols, dtype=dtype, device=device), as_seed(seed, device), step).cpu().numpy()
        assert ulps(got, expected(500, cols, dtype, seed, step)) <= 4


@pytest.mark.parametrize("instructions", ["base", "avx2", "avx512"])
def test_every_instruction_set(instructions: str, isa: Callable[[str], bool]) -> None:
    if not isa(instructions):
        pytest.skip(f"this processor has no {instructions}")
    for dtype in (torch.float32, torch.float64):
        got = op(torch.empty(20_000, 7, dtype=dtype), as_seed(SEED), 3).numpy()
        assert ulps(got, expected(20_000, 7, dtype, SEED, 3)) <= 4


@pytest.mark.parametrize("shape", [(1, 1), (70, 2), (300, 3), (65, 9), (3, 1000), (0, 4), (4, 0)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cuda_kernel_on_the_host(testing: ModuleType, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    found = []
    for descending in (False, True):
        buffers = Guarded(misaligned=descending)
        noise = buffers.output("noise", shape, dtype)
        testing.cuda.philox_normal(
            descending, dtype=str(dtype).removeprefix("torch."), rows=shape[0], cols=shape[1], step=5,
            seed=as_seed(SEED).numpy(), noise=(noise.view(torch.int16) if dtype == torch.bfloat16 else noise).numpy(),
        )  # fmt: skip
        found.append(buffers.results()["noise"])
    assert torch.equal(*found), "depends on the order of blocks or warps"
    if 0 in shape:
        return
    if dtype == torch.bfloat16:
        same = op(torch.empty(shape, dtype=torch.float32), as_seed(SEED), 5).bfloat16()
        assert ((found[0].float() - same.float()).abs() <= 2**-7 * same.float().abs()).all()
    else:
        assert ulps(found[0].numpy(), expected(*shape, dtype, SEED, 5)) <= 4


def test_bfloat16_is_float32_rounded(device: torch.device) -> None:
    single, half = (op(torch.empty(40, 5, dtype=d, device=device), as_seed(3, device), 1) for d in DTYPES[::2])
    assert torch.equal(single.bfloat16(), half)


# ------------------------------------------------------------------------------------------- what it depends on


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_not_on_the_threads(dtype: torch.dtype, threads: None) -> None:
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(op(torch.empty(30_000, 3, dtype=dtype), as_seed(SEED), 0))
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_not_on_the_rest_of_the_batch(dtype: torch.dtype, device: torch.device) -> None:
    whole, part = (op(torch.empty(n, 3, dtype=dtype, device=device), as_seed(SEED, device), 0) for n in (1000, 77))
    assert torch.equal(whole[:77], part)


def test_on_seed_and_step_alone(device: torch.device) -> None:
    x = torch.full((50, 3), math.nan, device=device)
    drawn = {(s, t): op(x, as_seed(s, device), t) for s in (0, 1, 1 << 32, SEED) for t in (0, 1)}
    assert torch.equal(op(torch.zeros_like(x), as_seed(SEED, device), 1), drawn[SEED, 1])
    flat = torch.stack(list(drawn.values())).flatten(1)
    assert len(torch.unique(flat)) == flat.numel(), "two places have the same number"


# ----------------------------------------------------------------------------------------------------- the law


def moments(values: Tensor) -> None:
    """Mean, variance, skewness, kurtosis within five standard errors, and the distribution function (Kolmogorov)."""
    n, z = values.numel(), values.double().flatten()
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        error = (z.pow(power).mean() - mean).abs().item() / math.sqrt(variance / n)
        assert error < 5, f"moment {power} is off by {error:.1f} standard errors"
    ranks = torch.special.ndtr(z).sort().values
    distance = (ranks - (torch.arange(n, dtype=torch.float64) + 0.5) / n).abs().max().item()
    assert distance * math.sqrt(n) < 2  # exceeded with probability 7e-4


@pytest.mark.parametrize("cols", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_normals_are_normal(dtype: torch.dtype, cols: int, device: torch.device) -> None:
    noise = op(torch.empty(200_000, cols, dtype=dtype, device=device), as_seed(SEED, device), 0).cpu()
    for column in noise.unbind(1):
        moments(column)


def test_tails() -> None:
    noise = op(torch.empty(4_000_000, 1), as_seed(SEED), 0).double()
    for bound in (3.0, 4.0, 4.5):
        wanted = len(noise) * math.erfc(bound / math.sqrt(2))
        assert abs((noise.abs() > bound).sum().item() - wanted) < 5 * math.sqrt(wanted)


def correlation_error(a: Tensor, b: Tensor) -> float:
    """√n times the correlation, and that of the squares: each N(0, 1) where a and b are independent."""
    n = a.numel()
    squares = ((a**2 - 1) * (b**2 - 1)).mean().item() / 2
    return math.sqrt(n) * max(abs((a * b).mean().item()), abs(squares))


def test_steps_rows_elements_and_seeds_are_independent() -> None:
    n = 100_000
    draw = [op(torch.empty(n, 9), as_seed(s), t).double() for s, t in ((SEED, 0), (SEED, 1), (SEED + 1, 0))]
    pairs = [(draw[0], draw[1]), (draw[0], draw[2]), (draw[0][:-1], draw[0][1:])]
    pairs += [(draw[0][:, i], draw[0][:, j]) for i in range(9) for j in range(i)]
    assert max(correlation_error(a, b) for a, b in pairs) < 5


# ------------------------------------------------------------------------------------------------- seed and calls


def test_seed_is_one_draw_of_64_bits() -> None:
    seeds = [draw_seed(torch.device("cpu"), torch.Generator().manual_seed(i)).item() for i in range(500)]
    assert len(set(seeds)) == 500
    for bit in range(64):
        assert 190 < sum(seed >> bit & 1 for seed in seeds) < 310, f"bit {bit}"
    torch.manual_seed(0)
    first, second = (draw_seed(torch.device("cpu"), None) for _ in range(2))
    torch.manual_seed(0)
    assert first != second and torch.equal(draw_seed(torch.device("cpu"), None), first)


def test_opcheck(device: torch.device) -> None:
    for dtype in DTYPES:
        torch.library.opcheck(op, (torch.empty(5, 3, dtype=dtype, device=device), as_seed(SEED, device), 2))


def test_has_no_derivative(device: torch.device) -> None:
    x = torch.zeros(4, 3, device=device, requires_grad=True)
    for noise in (op(x, as_seed(SEED, device), 0), philox_normal(x, as_seed(SEED, device), 0)):
        assert not noise.requires_grad


def test_any_strides(device: torch.device) -> None:
    x = torch.empty(6, 8, device=device)
    got = op(x.t()[::2], as_seed(SEED, device), 0)
    assert got.is_contiguous() and torch.equal(got, op(torch.empty(4, 6, device=device), as_seed(SEED, device), 0))


MISUSES = [
    ((torch.empty(3), as_seed(0), 0), "x must be [B, D], got shape (3,)"),
    ((torch.empty(3, 2, dtype=torch.float16), as_seed(0), 0), "x must be float32, float64 or bfloat16, got float16"),
    ((torch.empty(3, 2), torch.zeros(1), 0), "seed must be int64 (x is float32), got float32"),
    ((torch.empty(3, 2), as_seed(0)[0], 0), "seed must have one entry, shape (1,), got ()"),
    ((torch.empty(3, 2), as_seed(0), -1), "step must be from 0 to 2^32 - 1, got -1"),
    ((torch.empty(3, 2), as_seed(0), 1 << 32), "step must be from 0 to 2^32 - 1, got 4294967296"),
]


@pytest.mark.parametrize(("arguments", "message"), MISUSES, ids=[m[-1] for m in MISUSES])
def test_misuse_is_named(arguments: tuple, message: str) -> None:
    with pytest.raises(RuntimeError, match="^" + re.escape(f"philox_normal: {message}")):
        op(*arguments)
