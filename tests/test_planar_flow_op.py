"""The planar flow's operator against `PlanarFlow.transform` and autograd, its CUDA kernels on the host, sampling."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
from host_kernels import Guarded
from torch import Tensor
from torch.autograd import forward_ad

from ade_fast import _planar_flow_op, initial

DOUBLE = torch.float64
flow = torch.ops.ade_fast.planar_flow.default
flow_backward = torch.ops.ade_fast.planar_flow_backward.default
OUTPUTS, GRADIENTS = ("x", "log_det"), ("dz", "du", "dw", "db")
# n, dim, n_layers: part of a register, several blocks of rows, all dimensions there can be.
SHAPES = [*itertools.product((1, 7, 257, 1000), (1, 2, 3, 7), (1, 10)), (33, 16, 3), (0, 2, 2)]


def inputs(n: int, dim: int, n_layers: int, dtype=DOUBLE, device="cpu", scale: float = 0.8, grad=True) -> list[Tensor]:
    """z, u, w, b, far from the identity: strong enough for the constraint to matter."""
    shapes = ((n, dim), (n_layers, dim), (n_layers, dim), (n_layers,))
    sizes = (1.0, scale, scale, scale)
    return [(s * torch.randn(shape, dtype=DOUBLE)).to(device, dtype).requires_grad_(grad)
            for shape, s in zip(shapes, sizes, strict=True)]  # fmt: skip


def transform(z: Tensor, u: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """`PlanarFlow.transform` with these parameters."""
    module = initial.PlanarFlow(z.shape[1], len(b)).to(z)
    return torch.func.functional_call(_Transform(module), {"q.u": u, "q.w": w, "q.b": b}, (z,))


class _Transform(torch.nn.Module):
    """``transform`` as a forward, which is what functional_call can call."""

    def __init__(self, q: initial.PlanarFlow) -> None:
        super().__init__()
        self.q = q

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.q.transform(z)


def cotangents_of(outputs: tuple[Tensor, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(o.shape, generator=generator, dtype=DOUBLE).to(o) for o in outputs]


def results(function: Callable, arguments: list[Tensor]) -> dict[str, Tensor]:
    """Values and gradients."""
    outputs = function(*arguments)[:2]
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


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_transform_and_autograd(shape: tuple[int, int, int], device: torch.device) -> None:
    arguments = inputs(*shape, device=device)
    assert_close(results(flow, arguments), results(transform, in_double(arguments)), 1e-12, shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32_is_as_accurate_as_its_digits(shape: tuple[int, int, int], device: torch.device) -> None:
    arguments = inputs(*shape, torch.float32, device, scale=0.5)
    assert_close(results(flow, arguments), results(transform, in_double(arguments)), 1e-5, shape)


@pytest.mark.parametrize("instructions", ["base", "avx2", "avx512"])
def test_every_instruction_set(instructions: str, isa: Callable[[str], bool]) -> None:
    if not isa(instructions):
        pytest.skip(f"this processor has no {instructions}")
    for shape in ((37, 3, 4), (5, 1, 2)):
        for dtype, tolerance in ((DOUBLE, 1e-12), (torch.float32, 1e-5)):
            arguments = inputs(*shape, dtype, scale=0.5)
            assert_close(results(flow, arguments), results(transform, in_double(arguments)), tolerance, shape)


def test_gradcheck(device: torch.device) -> None:
    for shape in ((1, 1, 1), (5, 2, 3), (3, 7, 2)):
        assert torch.autograd.gradcheck(lambda *a: flow(*a)[:2], inputs(*shape, device=device))


@pytest.mark.parametrize("output", [0, 1], ids=OUTPUTS)
def test_gradient_of_one_output_alone(output: int, device: torch.device) -> None:
    """The other's cotangent is then absent, and counts as zero."""
    arguments = inputs(9, 2, 3, device=device)
    reference = in_double(arguments)
    actual = torch.autograd.grad(flow(*arguments)[output].sum(), arguments)
    wanted = torch.autograd.grad(transform(*reference)[output].sum(), reference, materialize_grads=True)
    for a, w in zip(actual, wanted, strict=True):
        torch.testing.assert_close(a.cpu(), w, rtol=1e-12, atol=1e-12)


def test_heights_are_the_layers_tanh_and_have_no_derivative() -> None:
    z, u, w, b = inputs(6, 2, 3)
    x, _, heights = flow(z, u, w, b)
    assert heights.shape == (3, 6) and x.requires_grad and not heights.requires_grad
    torch.testing.assert_close(heights[0], (z @ w[0] + b[0]).tanh().detach(), rtol=1e-14, atol=1e-14)


def along_w(a: float, dtype=DOUBLE) -> list[Tensor]:
    """Arguments of two layers with uᵀw = a, the second with w = 0."""
    z, u, w, b = (t.detach() for t in inputs(50, 3, 2))
    u[0] = a * w[0] / w[0].square().sum()
    w[1] = 0
    return [t.to(dtype).requires_grad_() for t in (z, u, w, b)]


@pytest.mark.parametrize("a", [-1000.0, -200.0, -80.0, -30.0, -1.0, 0.0, 1.0, 30.0, 200.0, 1000.0])
def test_extreme_parameters(a: float) -> None:
    arguments = along_w(a)
    assert_close(results(flow, arguments), results(transform, arguments), 1e-11, a)
    single = along_w(a, torch.float32)
    found = results(flow, single)
    assert all(t.isfinite().all() for t in found.values())
    assert_close(found, results(transform, in_double(single)), 1e-4, a)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
def test_vanishing_parameters(dtype: torch.dtype) -> None:
    """u = 0 is the identity exactly; a vanishing w neither blows û up nor gives a NaN."""
    z, u, w, b = inputs(20, 2, 3, dtype, grad=False)
    x, log_det, _ = flow(z, torch.zeros_like(u), w, b)
    assert torch.equal(x, z) and torch.equal(log_det, torch.zeros_like(log_det))
    for size in (0.0, torch.finfo(dtype).tiny, 1e-12):
        arguments = [t.clone().requires_grad_() for t in (z, u, torch.full_like(w, size), b)]
        found = results(flow, arguments)
        assert all(t.isfinite().all() for t in found.values()), size
        u_hat = (found["x"] - z).norm(dim=1)
        assert (u_hat < 2 * u.norm(dim=1).sum()).all()


def test_nan_and_infinity_reach_the_result() -> None:
    for place, value in itertools.product(range(4), (math.nan, math.inf)):
        arguments = inputs(5, 2, 3, grad=False)
        arguments[place].view(-1)[3 if place == 0 else 1] = value
        got, wanted = flow(*arguments)[:2], transform(*arguments)
        assert value == math.inf or any(g.isnan().any() for g in got)
        for g, w in zip(got, wanted, strict=True):
            torch.testing.assert_close(g, w, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
def test_logarithm_over_its_whole_range(dtype: torch.dtype) -> None:
    """At z = 0 = b the determinant is 1 + m(uᵀw), from a subnormal number upwards."""
    a = torch.cat([torch.linspace(-86 if dtype == torch.float32 else -705, 200, 1000), torch.zeros(1)]).to(dtype)
    one = torch.ones(1, 1, dtype=dtype)
    log_det = torch.cat([flow(0 * one, t.reshape(1, 1), one, 0 * one[0])[1] for t in a])
    wanted = torch.nn.functional.softplus(a.double() + math.log(math.e - 1), threshold=1e3).log()
    tolerance = 3e-7 if dtype == torch.float32 else 1e-15
    torch.testing.assert_close(log_det.double(), wanted, rtol=tolerance, atol=tolerance)
    assert log_det[-1] == 0


# ------------------------------------------------------------------------------------------------ exact agreement


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_result_does_not_depend_on_the_threads(threads: None) -> None:
    arguments, found = inputs(5000, 3, 10, torch.float32), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(results(flow, arguments))
    for other in found[1:]:
        assert all(torch.equal(found[0][name], other[name]) for name in other)


def test_repeated_calls_agree_bit_for_bit(device: torch.device) -> None:
    arguments = inputs(3000, 2, 5, torch.float32, device)
    first, second = (results(flow, arguments) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_sample_does_not_depend_on_its_batch(device: torch.device) -> None:
    z, *layers = inputs(300, 3, 4, torch.float32, device, grad=False)
    outputs, part = flow(z, *layers), flow(z[5:9], *layers)
    cotangents = cotangents_of(outputs[:2])
    dz = flow_backward(*cotangents, z, *layers, outputs[2])[0]
    dz_part = flow_backward(*(c[5:9] for c in cotangents), z[5:9], *layers, part[2])[0]
    assert torch.equal(outputs[0][5:9], part[0]) and torch.equal(outputs[1][5:9], part[1])
    assert torch.equal(dz[5:9], dz_part)


def test_any_strides(device: torch.device) -> None:
    arguments = inputs(9, 3, 4, device=device, grad=False)
    wanted = flow(*arguments)
    given = [*cotangents_of(wanted[:2]), *arguments, wanted[2]]
    derivatives = flow_backward(*given)

    def changed(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
        yield [t.t().contiguous().t() if t.dim() == 2 else t for t in tensors]
        yield [torch.stack([t, t + 1], dim=-1)[..., 0] for t in tensors]

    for strided in changed(arguments):
        assert all(torch.equal(a, b) for a, b in zip(flow(*strided), wanted, strict=True))
    for strided in changed(given):
        assert all(torch.equal(a, b) for a, b in zip(flow_backward(*strided), derivatives, strict=True))


# --------------------------------------------------------------------------------------- CUDA kernels on the host


def on_the_host(testing: ModuleType, name: str, given: dict[str, Tensor], outputs: dict, **shape) -> dict[str, Tensor]:
    """One op in both orders of blocks and warps: the same bits."""
    dtype = next(iter(given.values())).dtype
    found = []
    for descending in (False, True):
        buffers = Guarded(misaligned=descending)
        arrays = {n: buffers.input(t).numpy() for n, t in given.items()}
        room = {n: buffers.output(n, size, dtype).numpy() for n, size in outputs.items()}
        getattr(testing.cuda, name)(descending, dtype=str(dtype).removeprefix("torch."), **shape, **arrays, **room)
        found.append(buffers.results())
    assert all(torch.equal(found[0][n], found[1][n]) for n in outputs), "depends on the order of blocks or warps"
    return found[0]


def kernels_on_the_host(testing: ModuleType, arguments: list[Tensor]) -> dict[str, Tensor]:
    z, u, w, b = (a.detach() for a in arguments)
    (n, dim), n_layers = z.shape, len(b)
    shape = {"rows": n, "cols": dim, "layers": n_layers}
    given = {"z": z, "u": u, "w": w, "b": b}
    sizes = {"x": (n, dim), "log_det": (n,), "heights": (n_layers, n)}
    out = on_the_host(testing, "planar_flow", given, sizes, **shape)
    dx, dlog_det = cotangents_of((out["x"], out["log_det"]))
    given |= {"dx": dx, "dlog_det": dlog_det, "heights": out["heights"]}
    sizes = {"dz": (n, dim), "du": (n_layers, dim), "dw": (n_layers, dim), "db": (n_layers,)}
    return out | on_the_host(testing, "planar_flow_backward", given, sizes, **shape)


# The last: more tiles of rows than blocks, so that a block adds several.
@pytest.mark.parametrize("shape", [*SHAPES[::3], *SHAPES[-2:], (5, 2, 300), (33_000, 1, 1)], ids=str)
def test_cuda_kernels_on_the_host(testing: ModuleType, shape: tuple[int, int, int]) -> None:
    for dtype, scale, tolerance in ((DOUBLE, 0.8, 1e-12), (torch.float32, 0.5, 1e-5)):
        arguments = inputs(*shape, dtype, scale=scale if shape[2] <= 10 else 0.1)
        wanted = results(transform, in_double(arguments))
        assert_close(kernels_on_the_host(testing, arguments), wanted, tolerance, (shape, dtype))


# -------------------------------------------------------------------------------------------------- registrations


def test_opcheck(device: torch.device) -> None:
    for dtype in (torch.float32, DOUBLE):
        arguments = inputs(5, 2, 3, dtype, device)
        torch.library.opcheck(flow, tuple(arguments))
        plain = [a.detach() for a in arguments]
        x, log_det, heights = flow(*plain)
        torch.library.opcheck(flow_backward, (x, log_det, *plain, heights))


def test_double_differentiation_is_refused(device: torch.device) -> None:
    arguments = inputs(5, 2, 3, device=device)
    for output in (0, 1):
        for leaf in arguments:
            loss = flow(*arguments)[output].square().sum()
            (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
            with pytest.raises(RuntimeError, match="ade_fast::planar_flow_backward is differentiable only once"):
                torch.autograd.grad(gradient.sum(), leaf)


def test_func_grad() -> None:
    def loss(function: Callable) -> Callable:
        return lambda *a: sum(o.square().sum() for o in function(*a)[:2])

    arguments = inputs(4, 2, 3, grad=False)
    actual = torch.func.grad(loss(flow), argnums=(0, 1, 2, 3))(*arguments)
    leaves = [a.clone().requires_grad_() for a in arguments]
    wanted = torch.autograd.grad(loss(transform)(*leaves), leaves)
    for a, w in zip(actual, wanted, strict=True):
        torch.testing.assert_close(a, w, rtol=1e-12, atol=1e-12)


MISUSES: list[tuple[int, Callable[[Tensor], Tensor], str]] = [
    (0, lambda t: t[0], "planar_flow: z must be [B, D], got shape (2,)"),
    (0, lambda t: t.bfloat16(), "planar_flow: z must be float32 or float64, got bfloat16"),
    (0, lambda t: t.new_zeros(4, 17), "planar_flow: z must have 1 to 16 columns, got 17"),
    (0, lambda t: t.new_zeros(4, 0), "planar_flow: z must have 1 to 16 columns, got 0"),
    (1, lambda t: t[:2], "planar_flow: u must have one row per layer, shape (3, 2), got (2, 2)"),
    (2, lambda t: t[:, :1], "planar_flow: w must have one row per layer, shape (3, 2), got (3, 1)"),
    (2, lambda t: t.double(), "planar_flow: w must be float32 (z is float32), got float64"),
    (3, lambda t: t[:0], "planar_flow: b must have one entry per layer and at least one"),
    (3, lambda t: t[:, None], "planar_flow: b must have one entry per layer and at least one"),
]


@pytest.mark.parametrize(("place", "change", "message"), MISUSES, ids=[m[-1] for m in MISUSES])
def test_misuse_is_named(place: int, change: Callable, message: str, device: torch.device) -> None:
    arguments = inputs(4, 2, 3, torch.float32, device, grad=False)
    arguments[place] = change(arguments[place])
    with pytest.raises(RuntimeError, match="^" + re.escape(message)):
        flow(*arguments)


# ------------------------------------------------------------------------------------------------------- sampling


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of samples at every use of the operator by a flow."""
    made: list[int] = []
    plain = _planar_flow_op.planar_flow

    def counted(z: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        made.append(len(z))
        return plain(z, *rest)

    monkeypatch.setattr(_planar_flow_op, "planar_flow", counted)
    return made


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def drawn_by_transform(q: initial.PlanarFlow, n: int) -> tuple[Tensor, Tensor]:
    base = q.base.sample(n, generator=generator())
    x, log_det = q.transform(base.x)
    return x, base.log_q - log_det


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
def test_samples_are_those_of_transform(dtype: torch.dtype, calls: list[int], device: torch.device) -> None:
    q = initial.PlanarFlow(3, 10, std=0.5).to(device, dtype)
    x, _, log_q = q.sample(40, generator=generator())
    gradients = torch.autograd.grad(x.sin().sum() + log_q.square().sum(), list(q.parameters()))
    assert calls == [40]
    wanted_x, wanted_log_q = drawn_by_transform(q, 40)
    wanted = torch.autograd.grad(wanted_x.sin().sum() + wanted_log_q.square().sum(), list(q.parameters()))
    tolerance = 1e-12 if dtype == DOUBLE else 2e-5
    for a, w in zip((x, log_q, *gradients), (wanted_x, wanted_log_q, *wanted), strict=True):
        torch.testing.assert_close(a, w, rtol=tolerance, atol=tolerance)
    assert calls == [40], "transform stays plain"
    with torch.no_grad():
        assert torch.equal(q.sample(40, generator=generator()).x, x)


def test_samples_are_differentiable_once_and_transform_twice() -> None:
    q = initial.PlanarFlow(2, 3).double()
    (gradient,) = torch.autograd.grad(q.sample(5).x.square().sum(), q.w, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable only once"):
        gradient.sum().backward()
    (gradient,) = torch.autograd.grad(q.transform(torch.randn(5, 2).double())[0].square().sum(), q.w, create_graph=True)
    gradient.sum().backward()
    assert q.w.grad.isfinite().all()


class _Mirrored(initial.PlanarFlow):
    def transform(self, z: Tensor) -> tuple[Tensor, Tensor]:
        x, log_det = super().transform(z)
        return -x, log_det


def test_what_the_operator_cannot_take_goes_by_transform(calls: list[int]) -> None:
    half = initial.PlanarFlow(2, 2).to(torch.bfloat16)
    half.sample(4)
    initial.PlanarFlow(2, 0).sample(4)
    initial.PlanarFlow(17, 2).sample(4)
    mixed = initial.PlanarFlow(2, 2)
    mixed.b.data = mixed.b.data.double()
    with pytest.raises(RuntimeError, match="dtype"):
        mixed.sample(4)
    torch.manual_seed(0)
    plain, mirrored = initial.PlanarFlow(2, 2), _Mirrored(2, 2)
    mirrored.load_state_dict(plain.state_dict())
    x = mirrored.sample(4, generator=generator()).x
    assert not calls
    torch.testing.assert_close(-x, plain.sample(4, generator=generator()).x)
    assert calls == [4]


def test_forward_mode_and_func_transforms_go_by_transform(calls: list[int]) -> None:
    """Tangents and batches would be lost, or fail, in the operator."""
    q = initial.PlanarFlow(2, 3).double()
    parameters = {f"q.{n}": p.detach() for n, p in q.named_parameters()}
    tangents = {n: torch.randn_like(p) for n, p in parameters.items()}

    def sample(p: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(_Sampling(q), p, ())

    _, by_func = torch.func.jvp(sample, (parameters,), (tangents,))
    with forward_ad.dual_level():
        duals = {n: forward_ad.make_dual(p, tangents[n]) for n, p in parameters.items()}
        by_duals = forward_ad.unpack_dual(sample(duals)).tangent
    jacobian = torch.func.jacrev(sample)(parameters)
    assert not calls
    wanted = sum(torch.tensordot(jacobian[n], tangents[n], tangents[n].dim()) for n in parameters)
    assert wanted.abs().max() > 0.1
    torch.testing.assert_close(by_func, wanted)
    torch.testing.assert_close(by_duals, wanted)


class _Sampling(torch.nn.Module):
    def __init__(self, q: initial.PlanarFlow) -> None:
        super().__init__()
        self.q = q

    def forward(self) -> Tensor:
        return self.q.sample(3, generator=generator()).x


def test_autocast_leaves_samples_alone() -> None:
    q = initial.PlanarFlow(2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        x, log_q = q.sample_x(6, generator())
    wanted_x, wanted_log_q = q.sample_x(6, generator())
    assert torch.equal(x, wanted_x) and torch.equal(log_q, wanted_log_q)
