"""Every operator of torch.ops.ade_fast against its formula in plain torch.

Values, derivatives, registrations, misuse.

The formulas stand here once more on purpose: a test that called ade_fast would agree with its mistakes.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ade_fast import _ops

INF = float("inf")
NONE, VALUE, NORM = 0, 1, 2

# Operators that another file tests: the start of their names, and the file.
TESTED_ELSEWHERE = {
    "mlp_chain": "test_mlp_chain.py",
    "mlp_contrast": "test_mlp_contrast.py",
    "mlp_weighted_value": "test_mlp_weighted.py",
    "kink_": "test_kinks.py",
    "mlp_": "test_mlp_ops.py",
    "philox_": "test_philox.py",
    "planar_flow": "test_planar_flow_op.py",
    "rational_quadratic_spline": "test_spline_op.py",
    "unroll_figures": "test_diagnostics.py",
    "adjoint_figures": "test_diagnostics.py",
    "log_weight_figures": "test_weights.py",
    "merged_steps": "test_merged_steps.py",
    "normal_log_density": "test_merged_steps.py",
    "kinetic": "test_sums.py",
    "log_weights": "test_sums.py",
    "tempered_power": "test_bounds.py",
    "renyi_bound": "test_bounds.py",
    "mean": "test_sums.py",
    "numbers": "test_sums.py",
    "total_norms": "test_sums.py",
}

# ------------------------------------------------------------------------------------------------- formulas


def clip_rows(u: Tensor, mode: int, bound: float) -> Tensor:
    if mode == NONE:
        return u
    if mode == VALUE:
        return u.clamp(-bound, bound)
    norm = u.norm(dim=1, keepdim=True)
    return u * torch.where(norm > bound, bound / norm, 1.0)


def kick(v, grad, step, damping, grad_clip, grad_bound):
    return damping * v + step * clip_rows(grad, grad_clip, grad_bound)


def drift(x, v, step, momentum_clip, momentum_bound, lo, hi):
    return (x + step * clip_rows(v, momentum_clip, momentum_bound)).clamp(lo, hi)


def as_stored(t: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounded as a state is stored, with the derivative of the identity."""
    return t + (t.detach().to(dtype).double() - t.detach())


def kick_drift(x, v, grad, kick_step, drift_step, damping, gc, gb, mc, mb, lo, hi, stored=torch.float64):
    v_out = as_stored(kick(v, grad, kick_step, damping, gc, gb), stored)
    return drift(x, v_out, drift_step, mc, mb, lo, hi), v_out


def sum_of_scale(scale: Tensor | None, like: Tensor) -> Tensor:
    return 0 * like.sum(1) if scale is None else scale.expand_as(like).sum(1)


def generalized_kick(v, force, scale, step, next_step, clip, bound):
    exp_s = 1.0 if scale is None else scale.exp()
    clipped = clip_rows(force, clip, bound)
    v_out = v * exp_s + step * clipped
    log_det = sum_of_scale(scale, v)
    if next_step is not None:
        v_out = v_out * exp_s + next_step * clipped
        log_det = 2 * log_det
    return v_out, log_det


def generalized_drift(x, u, scale, step, clip, bound, lo, hi):
    exp_s = 1.0 if scale is None else scale.exp()
    return (x * exp_s + step * clip_rows(u, clip, bound)).clamp(lo, hi), sum_of_scale(scale, x)


def generalized_kick_drift(
    x, v, force, scale_v, scale_x, step, next_step, drift_step, fc, fb, dc, db, lo, hi, stored=torch.float64
):
    v_out, log_det_v = generalized_kick(v, force, scale_v, step, next_step, fc, fb)
    v_out = as_stored(v_out, stored)
    x_out, log_det_x = generalized_drift(x, v_out, scale_x, drift_step, dc, db, lo, hi)
    return x_out, v_out, log_det_v + log_det_x


FORMULAS: dict[str, Callable] = {
    "leapfrog_kick": kick,
    "leapfrog_drift": drift,
    "leapfrog_kick_drift": kick_drift,
    "generalized_leapfrog_kick": generalized_kick,
    "generalized_leapfrog_drift": generalized_drift,
    "generalized_leapfrog_kick_drift": generalized_kick_drift,
}

# ------------------------------------------------------------------------------------------ building a call

ROWS = {"step", "next_step", "kick_step", "drift_step"}
SCALES = {"scale", "scale_v", "scale_x"}
CHOICES: dict[str, tuple] = {
    "damping": (1.0, 0.9),
    "clip": (NONE, VALUE, NORM),
    "grad_clip": (NONE, VALUE, NORM),
    "force_clip": (NONE, VALUE, NORM),
    "momentum_clip": (NONE, VALUE, NORM),
    "drift_clip": (NONE, VALUE, NORM),
    "lo": (-INF, -0.6),  # hi follows
    "scale": ("none", "shared", "per sample"),
    "scale_v": ("none", "shared", "per sample"),
    "scale_x": ("none", "shared", "per sample"),
    "next_step": (False, True),
}
# Every optional argument given.
EVERYTHING = {
    "scale": "per sample",
    "scale_v": "per sample",
    "scale_x": "shared",
    "next_step": True,
    "lo": -0.6,
}


def overload(name: str):
    return getattr(torch.ops.ade_fast, name).default


def argument_names(name: str) -> list[str]:
    return [argument.name for argument in overload(name)._schema.arguments]


def all_choices(name: str) -> Iterator[dict]:
    varied = [argument for argument in argument_names(name) if argument in CHOICES]
    for values in itertools.product(*(CHOICES[argument] for argument in varied)):
        yield dict(zip(varied, values, strict=True))


def some_choices(name: str) -> list[dict]:
    """Every value of every option, and every pair of clips, without all products."""
    choices = list(all_choices(name))
    return choices if len(choices) <= 36 else choices[:: len(choices) // 36 | 1]


def build(
    name: str, choice: dict, shape: tuple[int, int], dtype=torch.float64, device="cpu", requires_grad=False
) -> list:
    """Arguments of the op: random tensors, and the options of `choice`."""
    batch, length = shape
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    options = {argument: values[0] for argument, values in CHOICES.items()} | choice
    options["hi"] = -options["lo"]

    def tensor(*size, of=dtype, scale=1.0):
        return (scale * torch.randn(size, dtype=torch.float64)).to(device, of).requires_grad_(requires_grad)

    arguments = []
    for argument in argument_names(name):
        if argument.endswith("bound"):
            arguments.append(0.7 if options.get(argument.removesuffix("bound") + "clip") == VALUE else 1.1)
        elif argument in ROWS:
            given = argument != "next_step" or options["next_step"]
            arguments.append(tensor(length, of=accumulate, scale=0.3) if given else None)
        elif argument in SCALES:
            kind = options[argument]
            rows = {"none": None, "shared": 1, "per sample": batch}[kind]
            arguments.append(None if rows is None else tensor(rows, length, of=accumulate, scale=0.4))
        elif argument in options:
            arguments.append(options[argument])
        else:
            arguments.append(tensor(batch, length))
    return arguments


def as_tuple(outputs) -> tuple:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def tensors_of(arguments: list) -> list[Tensor]:
    return [argument for argument in arguments if isinstance(argument, Tensor)]


def to_float64(arguments: list) -> list:
    """The same call in float64, from the very numbers of a shorter dtype."""
    return [
        a.detach().cpu().double().requires_grad_(a.requires_grad) if isinstance(a, Tensor) else a for a in arguments
    ]


def backward_arguments(name: str, arguments: list, cotangents: list[Tensor]) -> list:
    """What autograd hands to <name>_backward."""
    outputs = as_tuple(overload(name)(*(a.detach() if isinstance(a, Tensor) else a for a in arguments)))
    known = dict(zip(argument_names(name), arguments, strict=True))
    known |= {out.name: value for out, value in zip(overload(name)._schema.returns, outputs, strict=True)}
    needed = argument_names(f"{name}_backward")[len(cotangents) :]
    return [*cotangents, *(known[argument] for argument in needed)]


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, message: str) -> None:
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    assert actual.shape == expected.shape, f"{message}: {tuple(actual.shape)}, not {tuple(expected.shape)}"
    if actual.numel():
        error = ((actual - expected).abs() / (1 + expected.abs())).max().item()
        assert error <= tolerance, f"{message}: error {error:.3g} > {tolerance}"


def check(name: str, choice: dict, shape, dtype, device, value_tolerance, gradient_tolerance) -> None:
    """Values and all gradients of one call against the formula in float64."""
    where = f"{name} {choice} {shape} {dtype}"
    arguments = build(name, choice, shape, dtype, device, requires_grad=True)
    reference = to_float64(arguments)
    between = {"stored": dtype} if name.endswith("kick_drift") else {}
    outputs, expected = as_tuple(overload(name)(*arguments)), as_tuple(FORMULAS[name](*reference, **between))
    for actual, wanted, spec in zip(outputs, expected, overload(name)._schema.returns, strict=True):
        assert_close(actual, wanted, value_tolerance, f"{where}: {spec.name}")
    cotangents = [torch.randn_like(output) for output in outputs]
    gradients = torch.autograd.grad(outputs, tensors_of(arguments), cotangents)
    wanted = torch.autograd.grad(
        expected, tensors_of(reference), [c.cpu().double() for c in cotangents], allow_unused=True
    )
    names = [n for n, a in zip(argument_names(name), arguments, strict=True) if isinstance(a, Tensor)]
    for argument, actual, of, want in zip(names, gradients, tensors_of(arguments), wanted, strict=True):
        assert actual.dtype == of.dtype
        want = torch.zeros_like(of) if want is None else want
        assert_close(actual, want, gradient_tolerance, f"{where}: d{argument}")


every_op = pytest.mark.parametrize("name", FORMULAS)

# ------------------------------------------------------------------------------------- values and gradients

# One row, one column, 2-D data folded into runs, rows longer than a run (512), many blocks of rows, nothing.
SHAPES = [(1, 5), (3, 1), (5, 2), (1000, 2), (70, 130), (9, 1025), (33, 300), (0, 3), (4, 0), (0, 0)]


@every_op
def test_agrees_with_the_formula_in_float64_for_every_choice(name: str, device: torch.device) -> None:
    for choice in all_choices(name):
        check(name, choice, (6, 5), torch.float64, device, 1e-12, 1e-12)


@every_op
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_the_formula_on_every_shape(name: str, shape, device: torch.device) -> None:
    for choice in some_choices(name):
        check(name, choice, shape, torch.float64, device, 1e-12, 1e-11)


@every_op
@pytest.mark.parametrize("shape", [(37, 2), (8, 700)], ids=str)
def test_agrees_with_the_formula_in_float32_and_bfloat16(name: str, shape, device: torch.device) -> None:
    for choice in some_choices(name):
        check(name, choice, shape, torch.float32, device, 1e-5, 2e-5)
        # States keep 8 bits; sums over 37 rows of them are worse.
        check(name, choice, shape, torch.bfloat16, device, 1.5e-2, 6e-2)


@every_op
def test_gradcheck(name: str, device: torch.device) -> None:
    for choice in some_choices(name):
        arguments = build(name, choice, (4, 3), device=device, requires_grad=True)
        assert torch.autograd.gradcheck(overload(name), arguments, eps=1e-6, atol=1e-7), choice


@every_op
def test_gradient_of_one_output_alone(name: str, device: torch.device) -> None:
    """The cotangents of the others are then absent, which autograd must read as zero."""
    arguments = build(name, EVERYTHING, (6, 5), device=device, requires_grad=True)
    reference = to_float64(arguments)
    count = len(overload(name)._schema.returns)
    for i in range(count):
        output, expected = as_tuple(overload(name)(*arguments))[i], as_tuple(FORMULAS[name](*reference))[i]
        actual = torch.autograd.grad(output.sum(), tensors_of(arguments))
        wanted = torch.autograd.grad(expected.sum(), tensors_of(reference), allow_unused=True)
        for a, w, of in zip(actual, wanted, tensors_of(arguments), strict=True):
            assert_close(a, torch.zeros_like(of) if w is None else w, 1e-12, f"{name}, output {i}")


@every_op
def test_any_strides(name: str, device: torch.device) -> None:
    """Transposed, expanded, sliced and misaligned arguments give what contiguous ones do, bit for bit."""

    def transposed(t: Tensor) -> Tensor:
        return t.t().contiguous().t()

    def misaligned(t: Tensor) -> Tensor:
        memory = t.new_empty(t.numel() + 1)
        return memory[1:].view(t.shape).copy_(t)

    def sliced(t: Tensor) -> Tensor:
        return torch.stack([t, t + 1], dim=-1)[..., 0]

    for choice in some_choices(name)[::7]:
        arguments = build(name, choice, (6, 20), device=device)
        expected = as_tuple(overload(name)(*arguments))
        for change in (transposed, misaligned, sliced):
            changed = [change(a) if isinstance(a, Tensor) else a for a in arguments]
            for actual, wanted in zip(as_tuple(overload(name)(*changed)), expected, strict=True):
                assert actual.is_contiguous() and torch.equal(actual, wanted), (change.__name__, choice)
        cotangents = [torch.randn_like(output) for output in expected]
        given = backward_arguments(name, arguments, cotangents)
        wanted = overload(f"{name}_backward")(*given)
        strided = [transposed(a) if isinstance(a, Tensor) else a for a in given]
        for actual, want in zip(overload(f"{name}_backward")(*strided), wanted, strict=True):
            assert torch.equal(actual, want), choice


@every_op
def test_nan_reaches_the_result(name: str, device: torch.device) -> None:
    """No clip and no range may hide a NaN."""
    for choice in some_choices(name):
        arguments = build(name, choice, (3, 40), device=device)
        for argument in tensors_of(arguments):
            if argument.shape == (3, 40):
                changed = [a.clone() if a is argument else a for a in arguments]
                next(c for c, a in zip(changed, arguments, strict=True) if a is argument)[1, 7] = float("nan")
                outputs = as_tuple(overload(name)(*changed))
                assert any(output[1].isnan().any() for output in outputs), choice


# ------------------------------------------------------------------------------------------ exact agreement


@every_op
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_sample_does_not_depend_on_its_batch(name: str, dtype, device: torch.device) -> None:
    per_sample = {"x", "v", "u", "grad", "force", *SCALES}
    for choice in some_choices(name)[::5]:
        arguments = build(name, choice, (24, 7), dtype, device)
        part = [
            a[5:9] if n in per_sample and isinstance(a, Tensor) and len(a) == 24 else a
            for n, a in zip(argument_names(name), arguments, strict=True)
        ]
        for whole, alone in zip(as_tuple(overload(name)(*arguments)), as_tuple(overload(name)(*part)), strict=True):
            assert torch.equal(whole[5:9], alone), choice


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_fused_pair_equals_kick_then_drift_bit_for_bit(dtype, device: torch.device) -> None:
    for choice in all_choices("leapfrog_kick_drift"):
        x, v, grad, k, eta, damping, *clips = build("leapfrog_kick_drift", choice, (12, 600), dtype, device)
        x_out, v_out = overload("leapfrog_kick_drift")(x, v, grad, k, eta, damping, *clips)
        v_alone = overload("leapfrog_kick")(v, grad, k, damping, *clips[:2])
        assert torch.equal(v_out, v_alone), choice
        assert torch.equal(x_out, overload("leapfrog_drift")(x, v_alone, eta, *clips[2:])), choice
    for choice in some_choices("generalized_leapfrog_kick_drift"):
        x, v, force, s_v, s_x, a, b, eta, *clips = build(
            "generalized_leapfrog_kick_drift", choice, (12, 600), dtype, device
        )
        x_out, v_out, log_det = overload("generalized_leapfrog_kick_drift")(x, v, force, s_v, s_x, a, b, eta, *clips)
        v_alone, log_det_v = overload("generalized_leapfrog_kick")(v, force, s_v, a, b, *clips[:2])
        x_alone, log_det_x = overload("generalized_leapfrog_drift")(x, v_alone, s_x, eta, *clips[2:])
        assert torch.equal(v_out, v_alone) and torch.equal(x_out, x_alone), choice
        assert_close(log_det, log_det_v + log_det_x, 1e-6, str(choice))


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@every_op
def test_result_does_not_depend_on_the_threads(name: str, threads: None) -> None:
    choice = some_choices(name)[-1]
    arguments = build(name, choice, (300, 700), torch.float32)
    cotangents = [torch.randn_like(output) for output in as_tuple(overload(name)(*arguments))]
    given = backward_arguments(name, arguments, cotangents)
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append([*as_tuple(overload(name)(*arguments)), *overload(f"{name}_backward")(*given)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@every_op
def test_repeated_calls_agree_bit_for_bit(name: str, device: torch.device) -> None:
    arguments = build(name, some_choices(name)[-1], (500, 70), torch.float32, device)
    cotangents = [torch.randn_like(output) for output in as_tuple(overload(name)(*arguments))]
    given = backward_arguments(name, arguments, cotangents)
    first, second = (overload(f"{name}_backward")(*given) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("instructions", ["base", "avx2", "avx512"])
@every_op
def test_every_instruction_set(name: str, instructions: str, isa) -> None:
    if not isa(instructions):
        pytest.skip(f"this processor has no {instructions}")
    assert _ops.build_info()["isa"] == instructions
    for choice in some_choices(name)[::3]:
        check(name, choice, (6, 45), torch.float64, "cpu", 1e-12, 1e-12)
        check(name, choice, (6, 600), torch.float32, "cpu", 1e-5, 2e-5)


def test_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(ValueError, match="this processor has no 'sse9'"):
        _ops.select_isa("sse9")


# ------------------------------------------------------------------------------------------ the exponential


def exponential(s: Tensor) -> Tensor:
    """e^S by the op: v = 1, no force."""
    s = s.reshape(1, -1)
    one, zero, step = torch.ones_like(s), torch.zeros_like(s), torch.zeros_like(s[0])
    return torch.ops.ade_fast.generalized_leapfrog_kick(one, zero, s, step, None, NONE, 1.0)[0][0]


@pytest.mark.parametrize("instructions", ["base", "avx2", "avx512"])
def test_exponential_is_accurate(instructions: str, isa) -> None:
    if not isa(instructions):
        pytest.skip(f"this processor has no {instructions}")
    s = torch.cat([torch.linspace(-87, 88, 200_001), torch.linspace(-1, 1, 100_001)])
    exact = s.double().exp()
    assert ((exponential(s).double() - exact) / exact).abs().max() < 2e-7
    s = torch.cat([torch.linspace(-708, 709, 200_001), torch.linspace(-1, 1, 100_001)]).double()
    exact = np.exp(s.numpy().astype(np.longdouble))
    assert np.abs((exponential(s).numpy().astype(np.longdouble) - exact) / exact).max() < 6e-16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_exponential_at_the_ends(dtype) -> None:
    s = torch.tensor([0.0, -0.0, INF, -INF, float("nan"), 1e30, -1e30], dtype=dtype)
    torch.testing.assert_close(exponential(s), s.exp(), equal_nan=True, rtol=0, atol=0)
    tiny = torch.finfo(dtype).tiny
    s = torch.linspace(float(np.log(tiny)) - 20, float(np.log(tiny)), 1001, dtype=dtype)  # subnormal results
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    torch.testing.assert_close(exponential(s), s.exp(), rtol=1e-6 if dtype == torch.float32 else 1e-14, atol=smallest)


# -------------------------------------------------------------------------------------------- registrations


def test_every_operator_has_a_case() -> None:
    registered = {n for n in torch._C._dispatch_get_all_op_names() if n.startswith("ade_fast::")}
    untested = registered - {f"ade_fast::{name}{suffix}" for name in FORMULAS for suffix in ("", "_backward")}
    for start, file in TESTED_ELSEWHERE.items():
        elsewhere = {name for name in untested if name.startswith(f"ade_fast::{start}")}
        text = (Path(__file__).parent / file).read_text() if elsewhere else ""
        assert all(name.removeprefix("ade_fast::").removesuffix("_backward") in text for name in elsewhere)
        untested -= elsewhere
    assert not untested


def opcheck_choices(name: str) -> list[dict]:
    names = argument_names(name)
    return [{}, EVERYTHING | {n: NORM for n in names if n.endswith("clip")}]


@every_op
def test_opcheck(name: str, device: torch.device) -> None:
    for choice in opcheck_choices(name):
        arguments = build(name, choice, (4, 3), torch.float32, device, requires_grad=True)
        torch.library.opcheck(overload(name), tuple(arguments))


@every_op
def test_opcheck_of_the_backward_op(name: str, device: torch.device) -> None:
    for choice in opcheck_choices(name):
        arguments = build(name, choice, (4, 3), torch.float32, device)
        cotangents = [torch.randn_like(output) for output in as_tuple(overload(name)(*arguments))]
        given = backward_arguments(name, arguments, cotangents)
        torch.library.opcheck(overload(f"{name}_backward"), tuple(given))
        given[0].requires_grad_()
        torch.library.opcheck(
            overload(f"{name}_backward"),
            tuple(given),
            test_utils=("test_schema", "test_autograd_registration"),
        )


@every_op
def test_double_differentiation_is_refused(name: str, device: torch.device) -> None:
    arguments = build(name, {"scale_v": "shared", "scale_x": "shared"}, (4, 3), device=device, requires_grad=True)
    output = as_tuple(overload(name)(*arguments))[0]
    (gradient,) = torch.autograd.grad(output.square().sum(), arguments[0], create_graph=True)
    with pytest.raises(RuntimeError, match=f"ade_fast::{name}_backward is differentiable only once"):
        torch.autograd.grad(gradient.sum(), arguments[0])


def test_compiled_graph_has_no_breaks() -> None:
    def unroll(x, v, grad, k, eta):
        for _ in range(2):
            x, v = torch.ops.ade_fast.leapfrog_kick_drift(x, v, grad, k, eta, 0.9, NORM, 1.0, VALUE, 0.5, -1.0, 1.0)
        return x.square().sum() + v.sum()

    arguments = [torch.randn(5, 3, requires_grad=True) for _ in range(3)]
    arguments += [torch.rand(3, requires_grad=True) for _ in range(2)]
    compiled = torch.compile(unroll, fullgraph=True, backend="aot_eager")
    wanted = torch.autograd.grad(unroll(*arguments), arguments)
    actual = torch.autograd.grad(compiled(*arguments), arguments)
    for a, w in zip(actual, wanted, strict=True):
        torch.testing.assert_close(a, w)


def test_func_transforms() -> None:
    """torch.func.grad goes through the ops like autograd does."""
    v, grad, step = torch.randn(4, 3), torch.randn(4, 3), torch.rand(3)

    def energy(v, grad, step):
        return torch.ops.ade_fast.leapfrog_kick(v, grad, step, 1.0, VALUE, 0.5).square().sum()

    def plain(v, grad, step):
        return kick(v, grad, step, 1.0, VALUE, 0.5).square().sum()

    actual = torch.func.grad(energy, argnums=(0, 1, 2))(v, grad, step)
    for a, w in zip(actual, torch.func.grad(plain, argnums=(0, 1, 2))(v, grad, step), strict=True):
        torch.testing.assert_close(a, w)


# --------------------------------------------------------------------------------------------------- misuse


def wrong_shape(t: Tensor) -> Tensor:
    return t.new_zeros((*t.shape[:-1], t.shape[-1] + 1))


MISUSES: list[tuple[str, str, Callable, str]] = [
    ("leapfrog_kick", "grad", wrong_shape, "leapfrog_kick: grad must have v's shape (4, 3), got (4, 4)"),
    (
        "leapfrog_kick",
        "step",
        wrong_shape,
        "leapfrog_kick: step must have one entry per column, shape (3,), got (4,)",
    ),
    (
        "leapfrog_kick",
        "step",
        lambda t: t[0],
        "leapfrog_kick: step must have one entry per column, shape (3,), got ()",
    ),
    ("leapfrog_kick", "v", lambda t: t[0], "leapfrog_kick: v must be [B, D], got shape (3,)"),
    (
        "leapfrog_kick",
        "v",
        lambda t: t.half(),
        "leapfrog_kick: v must be float32, float64 or bfloat16, got float16",
    ),
    (
        "leapfrog_kick",
        "grad",
        lambda t: t.double(),
        "leapfrog_kick: grad must be float32 (v is float32), got float64",
    ),
    (
        "leapfrog_kick",
        "step",
        lambda t: t.bfloat16(),
        "leapfrog_kick: step must be float32 (v is float32), got bfloat16",
    ),
    (
        "leapfrog_kick",
        "grad_clip",
        lambda _: 3,
        "leapfrog_kick: grad_clip must be 0 (none), 1 (value) or 2 (norm), got 3",
    ),
    (
        "leapfrog_kick_drift",
        "momentum_bound",
        lambda _: 0.0,
        "leapfrog_kick_drift: momentum_clip's bound must be positive, got 0",
    ),
    ("leapfrog_kick", "damping", lambda _: INF, "leapfrog_kick: damping must be finite, got inf"),
    ("leapfrog_drift", "lo", lambda _: 2.0, "leapfrog_drift: lo must not exceed hi, got lo 2"),
    ("leapfrog_drift", "hi", lambda _: float("nan"), "leapfrog_drift: lo must not exceed hi"),
    (
        "leapfrog_kick_drift",
        "x",
        wrong_shape,
        "leapfrog_kick_drift: v must have x's shape (4, 4), got (4, 3)",
    ),
    (
        "generalized_leapfrog_kick",
        "scale",
        lambda t: t[:2],
        "generalized_leapfrog_kick: scale must have one row per sample or a single one, shape (4, 3), got (2, 3)",
    ),
    (
        "generalized_leapfrog_kick",
        "scale",
        lambda t: t[:1, :2],
        "generalized_leapfrog_kick: scale must have one row per sample or a single one, shape (1, 3), got (1, 2)",
    ),
    (
        "generalized_leapfrog_kick",
        "scale",
        lambda t: t.double(),
        "generalized_leapfrog_kick: scale must be float32 (v is float32), got float64",
    ),
    (
        "generalized_leapfrog_kick_drift",
        "next_step",
        wrong_shape,
        "generalized_leapfrog_kick_drift: next_step must have one entry per column, shape (3,), got (4,)",
    ),
    (
        "generalized_leapfrog_drift",
        "u",
        lambda t: t[:3],
        "generalized_leapfrog_drift: u must have x's shape (4, 3), got (3, 3)",
    ),
]


@pytest.mark.parametrize(("name", "argument", "change", "message"), MISUSES)
def test_misuse_is_named(name: str, argument: str, change: Callable, message: str, device: torch.device) -> None:
    choice = EVERYTHING | {n: VALUE for n in argument_names(name) if n.endswith("clip")}
    arguments = build(name, choice, (4, 3), torch.float32, device)
    i = argument_names(name).index(argument)
    arguments[i] = change(arguments[i])
    with pytest.raises(RuntimeError, match="^" + re.escape(message)):
        overload(name)(*arguments)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: torch.cuda.is_available() is False")
def test_mixed_devices_are_named() -> None:
    v, step = torch.zeros(4, 3, device="cuda"), torch.zeros(3)
    with pytest.raises(RuntimeError, match="leapfrog_kick: step must be on v's device cuda:0, got cpu"):
        torch.ops.ade_fast.leapfrog_kick(v, v, step, 1.0, NONE, 1.0)
