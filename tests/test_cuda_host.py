"""The CUDA kernels, run on the host (csrc/cuda/block.h), against float64 formulas and autograd.

Needs no GPU, but the module ade_fast_testing, built in build/core (or in ADE_FAST_CORE) by
cmake -S . -B build/core -DADE_TESTING=ON && cmake --build build/core.
"""

from __future__ import annotations

import math
from types import ModuleType

import pytest
import torch
from host_kernels import (
    CLIP_NONE,
    CLIP_NORM,
    CLIP_VALUE,
    DTYPES,
    OPS,
    Case,
    Guarded,
    Op,
    accumulation,
    arguments,
    backward_outputs,
    cases,
    doubled,
)
from torch import Tensor

# Relative and absolute error of states and of float64/float32 results. bfloat16 keeps 8 bits.
TOLERANCE = {torch.float64: (1e-11, 1e-11), torch.float32: (2e-5, 2e-5), torch.bfloat16: (8e-3, 4e-3)}


def as_numpy(value: object) -> object:
    """numpy has no bfloat16: its bits."""
    if not isinstance(value, Tensor):
        return value
    return (value.view(torch.int16) if value.dtype == torch.bfloat16 else value).numpy()


def call(
    testing: ModuleType,
    name: str,
    case: Case,
    fields: dict[str, object],
    outputs: dict[str, tuple[tuple[int, ...], torch.dtype]],
    absent: tuple[str, ...] = (),
    misaligned: bool = False,
) -> dict[str, Tensor]:
    """Run one op in both orders of blocks and warps, require the same bits, and return the outputs."""
    dtype = next(n for n, d in DTYPES.items() if d == case.dtype)
    runs = []
    for descending in (False, True):
        buffers = Guarded(misaligned)
        inputs = {k: as_numpy(buffers.input(f) if isinstance(f, Tensor) else f) for k, f in fields.items()}
        room = {k: as_numpy(buffers.output(k, *spec)) for k, spec in outputs.items()}
        room |= dict.fromkeys(absent)
        getattr(testing.cuda, name)(descending, dtype=dtype, rows=case.rows, cols=case.cols, **inputs, **room)
        runs.append(buffers.results())
    for key in outputs:
        assert torch.equal(runs[0][key], runs[1][key]), f"{key} depends on the order of blocks or warps"
    return runs[0]


def run_forward(testing, name: str, case: Case, fields, misaligned: bool = False) -> dict[str, Tensor]:
    outputs = {
        k: ((case.rows,), accumulation(case.dtype)) if k == "log_det" else ((case.rows, case.cols), case.dtype)
        for k in OPS[name].outputs
    }
    return call(testing, name, case, fields, outputs, misaligned=misaligned)


def run_backward(testing, name: str, case: Case, fields, out, cotangents, misaligned: bool = False):
    op = OPS[name]
    shapes = backward_outputs(op, fields)
    outputs = {k: (s, case.dtype if k[1:] in op.states else accumulation(case.dtype)) for k, s in shapes.items()}
    absent = tuple(f"d{n}" for n in (*op.scales, *op.steps) if fields[n] is None)
    given = {k: f for k, f in fields.items() if k not in op.states}
    given |= {n: fields[n] if n in op.states else out[n] for n in op.saved}
    given |= {f"d{n}": cotangents[n] for n in op.outputs}
    return call(testing, f"{name}_backward", case, given, outputs, absent, misaligned)


def draw_cotangents(op: Op, out: dict[str, Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return {n: torch.randn(out[n].shape, generator=generator).to(out[n].dtype) for n in op.outputs}


def assert_close(got: Tensor, want: Tensor, what: str, terms: int = 1) -> None:
    """`terms`: how many numbers were added up; their rounding errors grow like the root."""
    relative, absolute = TOLERANCE[got.dtype]
    torch.testing.assert_close(
        got.double(),
        want.double(),
        rtol=relative,
        atol=absolute * math.sqrt(max(terms, 1)),
        msg=lambda m: f"{what}: {m}",
    )


def check(testing, name: str, case: Case, misaligned: bool) -> None:
    """Forward and backward of one call against the formula and its autograd in float64."""
    op = OPS[name]
    fields = arguments(op, case)
    out = run_forward(testing, name, case, fields, misaligned)
    leaves = doubled(fields)
    if name.endswith("kick_drift"):  # the drift starts from the momentum as stored
        leaves["v_out"] = out["v_out"].double()
    expected = op.formula(**leaves)
    if name.endswith("kick_drift"):
        unrounded = op.formula(**{**leaves, "v_out": None})["v_out"]
        assert_close(out["v_out"], unrounded, f"{case} v_out")
    for key in op.outputs:
        assert_close(out[key], expected[key], f"{case} {key}", case.cols if key == "log_det" else 1)

    cotangents = draw_cotangents(op, out)
    got = run_backward(testing, name, case, fields, out, cotangents, misaligned)
    wanted = [n for n in (*op.states, *op.scales, *op.steps) if fields[n] is not None]
    loss = sum((expected[n] * cotangents[n].double()).sum() for n in op.outputs)
    gradients = torch.autograd.grad(loss, [leaves[n] for n in wanted], allow_unused=True)
    for key, gradient in zip(wanted, gradients, strict=True):
        reduced = key in op.steps or (key in op.scales and case.scale == "shared")
        want = torch.zeros_like(leaves[key]) if gradient is None else gradient
        assert_close(got[f"d{key}"], want, f"{case} d{key}", case.rows if reduced else 1)


@pytest.mark.parametrize("clip_mode", [CLIP_NONE, CLIP_VALUE, CLIP_NORM], ids=["noclip", "value", "norm"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPS)
def test_kernels_against_formulas(testing: ModuleType, name: str, dtype: str, clip_mode: int) -> None:
    for i, case in enumerate(cases(DTYPES[dtype], clip_mode, OPS[name])):
        check(testing, name, case, misaligned=i % 3 == 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPS)
def test_alignment_does_not_change_a_bit(testing: ModuleType, name: str, dtype: str) -> None:
    """16-byte accesses and single ones: the same owner of each column, the same sums."""
    op = OPS[name]
    for cols in (8, 136, 3072):
        case = Case(5, cols, DTYPES[dtype], CLIP_NORM, "shared" if op.scales else "none")
        fields = arguments(op, case)
        aligned, misaligned = (run_forward(testing, name, case, fields, m) for m in (False, True))
        cotangents = draw_cotangents(op, aligned)
        backward = [run_backward(testing, name, case, fields, aligned, cotangents, m) for m in (False, True)]
        for one, other in ((aligned, misaligned), backward):
            for key in one:
                assert torch.equal(one[key], other[key]), (cols, key)


@pytest.mark.parametrize("clip_mode", [CLIP_NONE, CLIP_VALUE, CLIP_NORM], ids=["noclip", "value", "norm"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_fused_pair_is_kick_then_drift_bit_for_bit(testing: ModuleType, dtype: str, clip_mode: int) -> None:
    for cols in (2, 33, 136, 4100):
        case = Case(17, cols, DTYPES[dtype], clip_mode, damping=0.9)
        fused = arguments(OPS["leapfrog_kick_drift"], case)
        kick = {k: fused[k] for k in ("v", "grad", "damping", "grad_clip")} | {"step": fused["kick_step"]}
        v_out = run_forward(testing, "leapfrog_kick", case, kick)["v_out"]
        drift = {k: fused[k] for k in ("x", "momentum_clip", "lo", "hi")}
        drift |= {"v": v_out, "step": fused["drift_step"]}
        pair = run_forward(testing, "leapfrog_kick_drift", case, fused)
        assert torch.equal(pair["v_out"], v_out)
        assert torch.equal(pair["x_out"], run_forward(testing, "leapfrog_drift", case, drift)["x_out"])


@pytest.mark.parametrize("clip_mode", [CLIP_VALUE, CLIP_NORM], ids=["value", "norm"])
def test_a_nan_stays_in_its_row_and_a_zero_row_is_no_nan(testing: ModuleType, clip_mode: int) -> None:
    case = Case(9, 33, torch.float32, clip_mode)
    fields = arguments(OPS["leapfrog_kick"], case)
    fields["grad"][2, 5] = math.nan
    fields["grad"][4] = 0
    buffers = Guarded(misaligned=False)
    outputs = {
        n: buffers.output(n, s, torch.float32) for n, s in (("dv", (9, 33)), ("dgrad", (9, 33)), ("dstep", (33,)))
    }
    v_out = torch.empty(9, 33)
    shape = {"dtype": "float32", "rows": 9, "cols": 33}
    testing.cuda.leapfrog_kick(False, **shape, **{k: as_numpy(f) for k, f in fields.items()}, v_out=v_out.numpy())
    assert v_out[2, 5].isnan() and v_out.isnan().sum() == 1
    torch.testing.assert_close(v_out[4], fields["v"][4])
    given = {k: as_numpy(f) for k, f in fields.items() if k != "v"} | {"dv_out": torch.ones(9, 33).numpy()}
    testing.cuda.leapfrog_kick_backward(False, **shape, **given, **{k: t.numpy() for k, t in outputs.items()})
    assert not outputs["dgrad"][4].isnan().any()
    torch.testing.assert_close(outputs["dgrad"][4], fields["step"])
    finite = torch.arange(9) != 2
    assert not outputs["dgrad"][finite].isnan().any() and not outputs["dv"].isnan().any()


def test_misuse_of_the_module_is_an_error(testing: ModuleType) -> None:
    """A misspelt or missing field would otherwise be a null pointer."""
    with pytest.raises(ValueError, match="missing argument v"):
        testing.cuda.leapfrog_kick(False, dtype="float32", rows=1, cols=1)
    case = Case(1, 4, torch.float32, CLIP_NONE)
    fields = {k: as_numpy(f) for k, f in arguments(OPS["leapfrog_kick"], case).items()}
    with pytest.raises(ValueError, match="unknown argument"):
        testing.cuda.leapfrog_kick(
            False, dtype="float32", rows=1, cols=4, v_out=torch.empty(1, 4).numpy(), extra=1, **fields
        )


FORMULAS = {
    "leapfrog_kick": (3, 0),
    "damped_leapfrog_kick": (4, 1),
    "leapfrog_drift": (5, 2),
    "generalized_leapfrog_half_kick": (4, 0),
    "generalized_leapfrog_merged_kick": (5, 0),
    "generalized_leapfrog_drift": (6, 2),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_step_formulas_have_their_vjp_beneath_them(testing: ModuleType, name: str) -> None:
    """Each vjp against central differences; `exp_s` is differentiated as S. Ranges are constants."""
    formula, vjp = getattr(testing.formulas, name), getattr(testing.formulas, f"{name}_vjp")
    count, constants = FORMULAS[name]
    scaled = name.startswith("generalized")
    takes_first = scaled or name.endswith("drift")  # a plain kick's vjp needs no v
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        at = torch.randn(count, generator=generator, dtype=torch.float64).tolist()
        if constants == 2:
            at[-2:] = [-1.0, 1.0]

        def value(point: list[float]) -> float:
            point = list(point)
            if scaled:
                point[2] = math.exp(point[2])
            return formula(*point)

        inputs = list(at)
        if scaled:
            inputs[2] = math.exp(inputs[2])
        got = vjp(0.7, *(inputs if takes_first else inputs[1:]))
        for i, cotangent in enumerate(got):
            h = 1e-6
            above, below = ([*at[:i], at[i] + s * h, *at[i + 1 :]] for s in (1, -1))
            assert cotangent == pytest.approx(0.7 * (value(above) - value(below)) / (2 * h), abs=1e-8), (
                at,
                i,
            )


def test_bfloat16_rounds_as_torch_does(testing: ModuleType) -> None:
    generator = torch.Generator().manual_seed(1)
    bits = torch.randint(-(2**31), 2**31, (100_000,), generator=generator, dtype=torch.int64).to(torch.int32)
    values = bits.view(torch.float32)
    got = torch.from_numpy(testing.formulas.round_bfloat16(values.numpy()).view("int16")).view(torch.bfloat16)
    torch.testing.assert_close(got, values.to(torch.bfloat16), rtol=0, atol=0, equal_nan=True)
    wide = torch.from_numpy(testing.formulas.widen_bfloat16(got.view(torch.int16).numpy().view("uint16")))
    torch.testing.assert_close(wide, got.float(), rtol=0, atol=0, equal_nan=True)
