"""The rational-quadratic spline's operator against zuko, its CUDA kernels on the host, and the flow's use of it."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import re
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
from host_kernels import Guarded
from torch import Tensor
from torch.autograd import forward_ad

from ade_fast import initial, reference

pytest.importorskip("zuko")
from zuko.transforms import MonotonicRQSTransform

DOUBLE = torch.float64
BOUND, LEAST = 5.0, 1e-3
spline = torch.ops.ade_fast.rational_quadratic_spline.default
spline_backward = torch.ops.ade_fast.rational_quadratic_spline_backward.default
OUTPUTS, GRADIENTS = ("x_out", "log_slope"), ("dx", "dwidths", "dheights", "dslopes")
SHAPES = [*itertools.product((1, 7, 300), (1, 3), (2, 8)), (11, 2, 64), (0, 2, 8)]  # n, dim, pieces
INVERSE = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])


def inputs(n: int, dim: int, pieces: int, dtype=DOUBLE, device="cpu", grad=True) -> list[Tensor]:
    """x, some of them outside of the box; numbers far from the identity."""
    shapes = ((n, dim), (n, dim, pieces), (n, dim, pieces), (n, dim, pieces - 1))
    return [(2 * torch.randn(shape, dtype=DOUBLE)).to(device, dtype).requires_grad_(grad) for shape in shapes]


def by_operator(inverse: bool) -> Callable[..., tuple[Tensor, Tensor]]:
    return lambda *arguments: spline(*arguments, BOUND, LEAST, inverse)


def by_zuko(inverse: bool) -> Callable[..., tuple[Tensor, Tensor]]:
    def run(x: Tensor, *numbers: Tensor) -> tuple[Tensor, Tensor]:
        transform = MonotonicRQSTransform(*numbers, bound=BOUND, slope=LEAST)
        if not inverse:
            return transform.call_and_ladj(x)
        y = transform.inv(x)
        return y, -transform.log_abs_det_jacobian(y, x)

    return run


def cotangents_of(outputs: tuple[Tensor, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(o.shape, generator=generator, dtype=DOUBLE).to(o) for o in outputs]


def results(function: Callable, arguments: list[Tensor]) -> dict[str, Tensor]:
    """Values and gradients."""
    outputs = function(*arguments)
    gradients = torch.autograd.grad(outputs, arguments, cotangents_of(outputs))
    return dict(zip(OUTPUTS + GRADIENTS, [t.detach() for t in (*outputs, *gradients)], strict=True))


def in_double(arguments: list[Tensor]) -> list[Tensor]:
    return [a.detach().cpu().double().requires_grad_() for a in arguments]


def assert_close(got: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float, what: object) -> None:
    """Relative to the largest element, or to 1."""
    for name, want in wanted.items():
        value = got[name].cpu().double()
        assert value.shape == want.shape, f"{what}: {name}"
        if want.numel():
            error = (value - want).abs().max().item() / max(1.0, want.abs().max().item())
            assert error <= tolerance, f"{what}: {name}: error {error:.2g}"


# ------------------------------------------------------------------------------------------ values and gradients


@INVERSE
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_zuko(shape: tuple[int, int, int], inverse: bool, device: torch.device) -> None:
    arguments = inputs(*shape, device=device)
    wanted = results(by_zuko(inverse), in_double(arguments))
    assert_close(results(by_operator(inverse), arguments), wanted, 1e-10, shape)


@INVERSE
def test_float32_is_as_accurate_as_zukos(inverse: bool, device: torch.device) -> None:
    arguments = inputs(2000, 2, 8, torch.float32, device)
    exact = results(by_zuko(inverse), in_double(arguments))
    ours, theirs = (results(way(inverse), arguments) for way in (by_operator, by_zuko))
    for name, want in exact.items():  # the largest errors are those of flat pieces, up to chance
        inside = want != 0
        errors = [(found[name].cpu().double() - want)[inside].abs().quantile(0.9) for found in (ours, theirs)]
        assert errors[0] <= 2 * errors[1], name


@pytest.mark.parametrize("instructions", ["base", "avx2", "avx512"])
def test_every_instruction_set(instructions: str, isa: Callable[[str], bool]) -> None:
    if not isa(instructions):
        pytest.skip(f"this processor has no {instructions}")
    for inverse in (False, True):
        arguments = inputs(37, 3, 5)
        wanted = results(by_zuko(inverse), in_double(arguments))
        assert_close(results(by_operator(inverse), arguments), wanted, 1e-10, inverse)


@INVERSE
def test_gradcheck(inverse: bool, device: torch.device) -> None:
    assert torch.autograd.gradcheck(by_operator(inverse), inputs(6, 2, 4, device=device))


@INVERSE
@pytest.mark.parametrize("output", [0, 1], ids=OUTPUTS)
def test_gradient_of_one_output_alone(output: int, inverse: bool, device: torch.device) -> None:
    arguments = inputs(9, 2, 3, device=device)
    reference = in_double(arguments)
    actual = torch.autograd.grad(by_operator(inverse)(*arguments)[output].sum(), arguments)
    wanted = torch.autograd.grad(by_zuko(inverse)(*reference)[output].sum(), reference, materialize_grads=True)
    for a, w in zip(actual, wanted, strict=True):
        torch.testing.assert_close(a.cpu(), w, rtol=1e-10, atol=1e-10)


def test_reference_is_zukos() -> None:
    x, *numbers = inputs(200, 2, 8)
    for ours, theirs in zip(reference.rational_quadratic_spline(x, *numbers), by_zuko(False)(x, *numbers), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_the_inverse_goes_back(device: torch.device) -> None:
    x, *numbers = inputs(500, 2, 8, device=device, grad=False)
    y, log_slope = spline(x, *numbers, BOUND, LEAST, False)
    back, log_back = spline(y, *numbers, BOUND, LEAST, True)
    torch.testing.assert_close(back, x, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(log_back, -log_slope, rtol=1e-9, atol=1e-9)


@INVERSE
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
def test_the_box_and_its_border(inverse: bool, dtype: torch.dtype) -> None:
    """The identity outside and on the border; the largest number inside is still in the last piece."""
    below = math.nextafter(BOUND, 0) if dtype == DOUBLE else torch.tensor(BOUND).nextafter(torch.tensor(0.0)).item()
    x = torch.tensor([[-7.0, -BOUND, BOUND, 7.0, below, -below]], dtype=dtype)
    numbers = [n.to(dtype) for n in inputs(1, 6, 8, grad=False)[1:]]
    out, log_slope = spline(x, *numbers, BOUND, LEAST, inverse)
    torch.testing.assert_close(out, x, rtol=1e-4, atol=1e-4)
    assert torch.equal(out[:, [0, 1, 3]], x[:, [0, 1, 3]])
    assert torch.equal(log_slope[:, [0, 1, 3]], torch.zeros(1, 3, dtype=dtype)) and log_slope.isfinite().all()


@INVERSE
def test_extreme_numbers_stay_finite(inverse: bool) -> None:
    for size in (1e3, 1e30):
        arguments = [t.detach() for t in inputs(200, 2, 8, torch.float32)]
        arguments = [arguments[0].requires_grad_(), *((size * t).requires_grad_() for t in arguments[1:])]
        assert all(t.isfinite().all() for t in results(by_operator(inverse), arguments).values()), size


def test_nan_reaches_the_result() -> None:
    for place in range(4):
        arguments = inputs(5, 2, 3, grad=False)
        arguments[0].clamp_(-4, 4)
        arguments[place].view(-1)[:] = math.nan
        assert all(o.isnan().all() for o in spline(*arguments, BOUND, LEAST, False)[: 1 if place == 0 else 2]), place


# ------------------------------------------------------------------------------------------------ exact agreement


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_result_depends_neither_on_the_threads_nor_on_the_batch(threads: None) -> None:
    arguments, found = inputs(5000, 3, 8, torch.float32), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(results(by_operator(False), arguments))
    for other in found[1:]:
        assert all(torch.equal(found[0][name], other[name]) for name in other)
    part = spline(*(a.detach()[5:9] for a in arguments), BOUND, LEAST, False)
    assert all(torch.equal(found[0][name][5:9], p) for name, p in zip(OUTPUTS, part, strict=True))


def test_any_strides(device: torch.device) -> None:
    arguments = inputs(9, 3, 4, device=device, grad=False)
    wanted = spline(*arguments, BOUND, LEAST, False)
    strided = [torch.stack([t, t + 1], dim=-1)[..., 0] for t in arguments]
    assert all(torch.equal(a, b) for a, b in zip(spline(*strided, BOUND, LEAST, False), wanted, strict=True))


# --------------------------------------------------------------------------------------- CUDA kernels on the host


def on_the_host(testing: ModuleType, name: str, given: dict[str, Tensor], outputs: dict, **shape) -> dict[str, Tensor]:
    """One op in both orders of blocks: the same bits."""
    dtype = next(iter(given.values())).dtype
    found = []
    for descending in (False, True):
        buffers = Guarded(misaligned=descending)
        arrays = {n: buffers.input(t).numpy() for n, t in given.items()}
        room = {n: buffers.output(n, size, dtype).numpy() for n, size in outputs.items()}
        getattr(testing.cuda, name)(descending, dtype=str(dtype).removeprefix("torch."), **shape, **arrays, **room)
        found.append(buffers.results())
    assert all(torch.equal(found[0][n], found[1][n]) for n in outputs), "depends on the order of blocks"
    return found[0]


@INVERSE
@pytest.mark.parametrize("shape", SHAPES[:-1], ids=str)
def test_cuda_kernels_on_the_host(testing: ModuleType, shape: tuple[int, int, int], inverse: bool) -> None:
    arguments = inputs(*shape)
    n, dim, pieces = shape
    numbers = {"rows": n, "cols": dim, "pieces": pieces, "bound": BOUND, "least": LEAST, "inverse": inverse}
    given = dict(zip(("x", "widths", "heights", "slopes"), (a.detach() for a in arguments), strict=True))
    sizes = {"x_out": (n, dim), "log_slope": (n, dim)}
    out = on_the_host(testing, "rational_quadratic_spline", given, sizes, **numbers)
    dx_out, dlog_slope = cotangents_of((out["x_out"], out["log_slope"]))
    given |= {"dx_out": dx_out, "dlog_slope": dlog_slope, "x_out": out["x_out"]}
    sizes = {f"d{name}": tuple(given[name].shape) for name in ("x", "widths", "heights", "slopes")}
    out |= on_the_host(testing, "rational_quadratic_spline_backward", given, sizes, **numbers)
    assert_close(out, results(by_zuko(inverse), in_double(arguments)), 1e-10, shape)


# -------------------------------------------------------------------------------------------------- registrations


@INVERSE
def test_opcheck(inverse: bool, device: torch.device) -> None:
    for dtype in (torch.float32, DOUBLE):
        arguments = inputs(5, 2, 3, dtype, device)
        torch.library.opcheck(spline, (*arguments, BOUND, LEAST, inverse))
        plain = [a.detach() for a in arguments]
        x_out, log_slope = spline(*plain, BOUND, LEAST, inverse)
        torch.library.opcheck(spline_backward, (x_out, log_slope, *plain, x_out, BOUND, LEAST, inverse))


def test_double_differentiation_is_refused(device: torch.device) -> None:
    arguments = inputs(5, 2, 3, device=device)
    for leaf in arguments:
        (gradient,) = torch.autograd.grad(by_operator(False)(*arguments)[1].sum(), leaf, create_graph=True)
        with pytest.raises(RuntimeError, match="rational_quadratic_spline_backward is differentiable only once"):
            torch.autograd.grad(gradient.sum(), leaf)


MISUSES: list[tuple[int, Callable[[Tensor], Tensor], str]] = [
    (0, lambda t: t[0], "rational_quadratic_spline: x must be [B, D], got shape (2,)"),
    (0, lambda t: t.bfloat16(), "rational_quadratic_spline: x must be float32 or float64, got bfloat16"),
    (1, lambda t: t[0], "rational_quadratic_spline: widths must have the shape (B, D, K) with K from 2 to 64"),
    (1, lambda t: t[..., :1], "rational_quadratic_spline: widths must have the shape (B, D, K) with K from 2 to 64"),
    (2, lambda t: t[..., :2], "rational_quadratic_spline: heights must have K for each entry of x"),
    (2, lambda t: t.double(), "rational_quadratic_spline: heights must be float32 (x is float32), got float64"),
    (3, lambda t: t[1:], "rational_quadratic_spline: slopes must have K - 1 for each entry of x"),
]


@pytest.mark.parametrize(("place", "change", "message"), MISUSES, ids=[m[-1] for m in MISUSES])
def test_misuse_is_named(place: int, change: Callable, message: str, device: torch.device) -> None:
    arguments = inputs(4, 2, 3, torch.float32, device, grad=False)
    arguments[place] = change(arguments[place])
    with pytest.raises(RuntimeError, match="^" + re.escape(message)):
        spline(*arguments, BOUND, LEAST, False)


@pytest.mark.parametrize(
    ("bound", "least", "message"), [(0.0, 0.1, "bound must be positive"), (1.0, 1.0, "least must")]
)
def test_wrong_numbers_are_named(bound: float, least: float, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"rational_quadratic_spline: {message}"):
        spline(*inputs(2, 2, 3, grad=False), bound, least, False)


# ------------------------------------------------------------------------------------------------------- the flow


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Grows by `inverse` at every use of the operator by a flow."""
    from ade_fast.initial import _spline

    seen: list[bool] = []

    def counted(*arguments: object) -> tuple[Tensor, Tensor]:
        seen.append(bool(arguments[-1]))
        return spline(*arguments)

    monkeypatch.setattr(_spline, "_spline", counted)
    return seen


def flow(dim: int) -> initial.SplineFlow:
    torch.manual_seed(0)
    q = initial.SplineFlow(dim, hidden=8).double()
    with torch.no_grad():
        for p in q.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return q


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_samples_and_coverage_come_from_the_operator(dim: int, calls: list[bool]) -> None:
    q = flow(dim)
    z = q.base.sample(20, None, torch.Generator().manual_seed(1))[0]
    x, _, log_q = q.sample(20, None, torch.Generator().manual_seed(1))
    assert calls == [False, False]
    wanted, log_det = q.transform(z)
    torch.testing.assert_close(x, wanted, rtol=1e-10, atol=1e-10)
    names = [name for name, _ in q.named_parameters()]
    for ours, theirs in (
        ((x.sum() + log_q.sum()), wanted.sum() + (initial.base.standard_normal_log_density(z) - log_det).sum()),
        (q.log_prob_once(x.detach()).sum(), q.log_prob(x.detach()).sum()),
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        pairs = [torch.autograd.grad(loss, list(q.parameters()), allow_unused=True) for loss in (ours, theirs)]
        for name, a, b in zip(names, *pairs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9, msg=name)
    assert True in calls


def test_what_may_be_differentiated_twice_does_not(calls: list[bool]) -> None:
    q = flow(2)
    z = torch.randn(4, 2, dtype=DOUBLE, requires_grad=True)
    for value in (q.transform(z)[1].sum(), q.log_prob(z).sum()):
        (gradient,) = torch.autograd.grad(value, z, create_graph=True)
        torch.autograd.grad(gradient.square().sum(), z)
    assert not calls


def test_forward_mode_and_transforms_take_zukos(calls: list[bool]) -> None:
    q, z = flow(2), torch.randn(4, 2, dtype=DOUBLE)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(z, torch.ones_like(z))
        assert forward_ad.unpack_dual(q._transform_once(dual)[0]).tangent is not None
    torch.func.grad(lambda z: q._transform_once(z)[0].sum())(z)
    assert not calls


def test_more_pieces_than_the_operator_takes(calls: list[bool]) -> None:
    q = initial.SplineFlow(2, hidden=8, bins=65)
    assert q.sample(3).x.shape == (3, 2) and not calls


def test_copies_are_flows_of_their_own() -> None:
    q = flow(2)
    for other in (copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
        a, b = (f.sample(3, None, torch.Generator().manual_seed(0)).x for f in (q, other))
        assert torch.equal(a, b) and str(other) == str(q)
