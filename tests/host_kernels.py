"""What the tests of the CUDA kernels share: the ops as float64 formulas, arguments, guarded buffers.

The formulas are written here once more, in eager float64 and without looking at the step headers; autograd
differentiates them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

CLIP_NONE, CLIP_VALUE, CLIP_NORM = 0, 1, 2
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


def accumulation(dtype: torch.dtype) -> torch.dtype:
    """The dtype of steps, scales and log-dets beside states of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def clip(u: Tensor, mode: int, bound: float) -> Tensor:
    """Element-wise or row-wise clip of u [B, D]; a row of norm 0 keeps derivative 1."""
    if mode == CLIP_VALUE:
        return u.clamp(-bound, bound)
    if mode == CLIP_NORM:
        square = (u * u).sum(1, keepdim=True)
        norm = torch.where(square > 0, square, torch.ones_like(square)).sqrt()
        return u * torch.where(square > bound**2, bound / norm, torch.ones_like(norm))
    return u


def stored(value: Tensor, bits: Tensor | None) -> Tensor:
    """`value` with the numbers of `bits` (as a kernel stored it) and its own derivative."""
    return value if bits is None else value + (bits - value).detach()


def _leapfrog_kick(v, grad, step, damping, grad_clip, **_) -> dict[str, Tensor]:
    return {"v_out": damping * v + step * clip(grad, *grad_clip)}


def _leapfrog_drift(x, v, step, momentum_clip, lo, hi, **_) -> dict[str, Tensor]:
    return {"x_out": (x + step * clip(v, *momentum_clip)).clamp(lo, hi)}


def _leapfrog_kick_drift(
    x, v, grad, kick_step, drift_step, damping, grad_clip, momentum_clip, lo, hi, v_out=None
) -> dict[str, Tensor]:
    v_out = stored(_leapfrog_kick(v, grad, kick_step, damping, grad_clip)["v_out"], v_out)
    return {"v_out": v_out, **_leapfrog_drift(x, v_out, drift_step, momentum_clip, lo, hi)}


def _scaled(state: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    if scale is None:
        return torch.ones_like(state), state.new_zeros(len(state))
    return scale.exp().expand_as(state), scale.expand_as(state).sum(1)


def _generalized_kick(v, force, step, clip, scale=None, next_step=None, **_) -> dict[str, Tensor]:
    factor, log_det = _scaled(v, scale)
    push = globals()["clip"](force, *clip)
    v_out = v * factor + step * push
    if next_step is None:
        return {"v_out": v_out, "log_det": log_det}
    return {"v_out": v_out * factor + next_step * push, "log_det": 2 * log_det}


def _generalized_drift(x, u, step, clip, lo, hi, scale=None, **_) -> dict[str, Tensor]:
    factor, log_det = _scaled(x, scale)
    return {"x_out": (x * factor + step * globals()["clip"](u, *clip)).clamp(lo, hi), "log_det": log_det}


def _generalized_kick_drift(
    x,
    v,
    force,
    step,
    drift_step,
    force_clip,
    drift_clip,
    lo,
    hi,
    scale_v=None,
    scale_x=None,
    next_step=None,
    v_out=None,
) -> dict[str, Tensor]:
    kick = _generalized_kick(v, force, step, force_clip, scale_v, next_step)
    v_out = stored(kick["v_out"], v_out)
    drift = _generalized_drift(x, v_out, drift_step, drift_clip, lo, hi, scale_x)
    return {"x_out": drift["x_out"], "v_out": v_out, "log_det": kick["log_det"] + drift["log_det"]}


@dataclasses.dataclass(frozen=True)
class Op:
    """One op: its formula, its arguments by kind, and what its backward op takes of them."""

    formula: Callable[..., dict[str, Tensor]]
    states: tuple[str, ...]
    steps: tuple[str, ...]
    clips: tuple[str, ...]
    saved: tuple[str, ...]  # states and outputs that the backward op takes
    scales: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ("v_out",)
    ranged: bool = False
    damped: bool = False

    @property
    def merges(self) -> bool:
        return "next_step" in self.steps


OPS = {
    "leapfrog_kick": Op(_leapfrog_kick, ("v", "grad"), ("step",), ("grad_clip",), ("grad",), damped=True),
    "leapfrog_drift": Op(
        _leapfrog_drift,
        ("x", "v"),
        ("step",),
        ("momentum_clip",),
        ("x", "v"),
        outputs=("x_out",),
        ranged=True,
    ),
    "leapfrog_kick_drift": Op(
        _leapfrog_kick_drift,
        ("x", "v", "grad"),
        ("kick_step", "drift_step"),
        ("grad_clip", "momentum_clip"),
        ("x", "v_out", "grad"),
        outputs=("x_out", "v_out"),
        ranged=True,
        damped=True,
    ),
    "generalized_leapfrog_kick": Op(
        _generalized_kick,
        ("v", "force"),
        ("step", "next_step"),
        ("clip",),
        ("v", "force"),
        scales=("scale",),
        outputs=("v_out", "log_det"),
    ),
    "generalized_leapfrog_drift": Op(
        _generalized_drift,
        ("x", "u"),
        ("step",),
        ("clip",),
        ("x", "u"),
        scales=("scale",),
        outputs=("x_out", "log_det"),
        ranged=True,
    ),
    "generalized_leapfrog_kick_drift": Op(
        _generalized_kick_drift,
        ("x", "v", "force"),
        ("step", "next_step", "drift_step"),
        ("force_clip", "drift_clip"),
        ("x", "v", "v_out", "force"),
        scales=("scale_v", "scale_x"),
        outputs=("x_out", "v_out", "log_det"),
        ranged=True,
    ),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One call: everything that is not a number drawn at random."""

    rows: int
    cols: int
    dtype: torch.dtype
    clip_mode: int
    scale: str = "none"  # none, shared, sample
    merged: bool = False
    bounded: bool = False
    damping: float = 1.0


def arguments(op: Op, case: Case, seed: int = 0) -> dict[str, object]:
    """Random arguments of one call, in the op's dtypes; about half of what a clip sees is out of bounds."""
    draw = torch.Generator().manual_seed(seed)
    wide = accumulation(case.dtype)
    shape = (case.rows, case.cols)
    fields: dict[str, object] = {n: torch.randn(shape, generator=draw).to(case.dtype) for n in op.states}
    for name in op.steps:
        absent = name == "next_step" and not case.merged
        fields[name] = None if absent else (0.1 + 0.4 * torch.rand(case.cols, generator=draw)).to(wide)
    for name in op.scales:
        rows = 1 if case.scale == "shared" else case.rows
        scale = 0.3 * torch.randn(rows, case.cols, generator=draw)
        fields[name] = None if case.scale == "none" else scale.to(wide)
    for name in op.clips:
        bound = 0.7 if case.clip_mode == CLIP_VALUE else math.sqrt(max(case.cols, 1))
        fields[name] = (case.clip_mode, bound)
    if op.ranged:
        fields["lo"], fields["hi"] = (-1.0, 1.25) if case.bounded else (-math.inf, math.inf)
    if op.damped:
        fields["damping"] = case.damping
    return fields


def doubled(fields: dict[str, object]) -> dict[str, object]:
    """The same arguments in float64, as leaves."""
    return {k: f.detach().double().cpu().requires_grad_() if isinstance(f, Tensor) else f for k, f in fields.items()}


def cases(dtype: torch.dtype, clip_mode: int, op: Op) -> Iterator[Case]:
    """Odd sizes, empty batches, rows longer than a group keeps, several chunks; options in rotation."""
    shapes = [(17, d) for d in (1, 2, 3, 5, 33, 257)] + [(b, d) for b in (0, 1, 15, 64) for d in (5, 8)]
    shapes += [(3, 3072), (2, 4100), (2, 4101), (5000, 2), (300, 136), (4, 0)]
    for i, (rows, cols) in enumerate(shapes):
        for scale in ("none", "shared", "sample") if op.scales else ("none",):
            turn = i + len(scale)
            yield Case(
                rows,
                cols,
                dtype,
                clip_mode,
                scale,
                merged=op.merges and turn % 2 == 0,
                bounded=op.ranged and turn % 3 != 0,
                damping=0.9 if op.damped and turn % 2 else 1.0,
            )


def backward_outputs(op: Op, fields: dict[str, object]) -> dict[str, tuple[int, ...]]:
    """Shape of each cotangent that the backward op owes."""
    names = [n for n in (*op.states, *op.scales, *op.steps) if isinstance(fields[n], Tensor)]
    return {f"d{n}": tuple(fields[n].shape) for n in names}


class Guarded:
    """Buffers as a kernel must be able to take them: at any element, between NaNs that stay NaN."""

    PAD = 16

    def __init__(self, misaligned: bool) -> None:
        self.start = self.PAD + (1 if misaligned else 0)
        self.outputs: dict[str, tuple[Tensor, Tensor]] = {}

    def new(self, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(whole buffer of NaNs, the part with this shape)."""
        count = math.prod(shape)
        whole = torch.full((count + 2 * self.PAD,), math.nan, dtype=dtype)
        return whole, whole[self.start : self.start + count].view(shape)

    def input(self, value: Tensor) -> Tensor:
        """A copy of value."""
        return self.new(tuple(value.shape), value.dtype)[1].copy_(value.detach())

    def output(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Room for an output."""
        self.outputs[name] = self.new(shape, dtype)
        return self.outputs[name][1]

    def results(self) -> dict[str, Tensor]:
        """All outputs; asserts that they were written, and nothing around them."""
        for name, (whole, part) in self.outputs.items():
            assert not part.isnan().any(), f"{name} was not written everywhere"
            assert whole.isnan().sum() == whole.numel() - part.numel(), f"a write beside {name}"
        return {name: part for name, (_, part) in self.outputs.items()}
