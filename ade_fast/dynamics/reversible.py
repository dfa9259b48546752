"""Leapfrog whose states are rebuilt in the backward pass, bit for bit: memory that does not grow with the steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from .._ops import ops_without_autograd
from ..fields import GradientSide
from . import base
from .base import NonFiniteError, Options
from .leapfrog import LeapfrogProgram
from .sample_range import SampleRange
from .unroll import Args, GradientFunction

# States are multiples of 2^-bits, 64-bit integers: float32's resolution at 2^-8, float64's at 2^8, up to 2^29 and 2^17.
_BITS = {torch.float32: 32, torch.float64: 44}
_ROOM = 62
_LARGEST_DENOMINATOR = 1024
_STEPS_PER_BLOCK = 64


class FixedPoint:
    """States as integers, on which a step and its reverse are exact: what was added is subtracted.

    dtype: of the states as the force and the clips see them.
    """

    def __init__(self, dtype: torch.dtype, n_steps: int) -> None:
        self.dtype, self._scale = dtype, 2.0 ** _BITS[dtype]
        self.limit = 2.0 ** (_ROOM - _BITS[dtype]) / (n_steps + 2)
        """What a state may begin at or move by in a step, so that no sum overflows."""

    def encode(self, x: Tensor) -> Tensor:
        return (x.double() * self._scale).round().to(torch.int64)

    def encode_bound(self, bound: Tensor, inwards: Callable[[Tensor], Tensor]) -> Tensor:
        return inwards(bound * self._scale).clamp_(-(2.0**_ROOM), 2.0**_ROOM).to(torch.int64)

    def decode(self, x: Tensor) -> Tensor:
        return (x.double() / self._scale).to(self.dtype)

    def rounded(self, x: Tensor) -> Tensor:
        """x as it is after encoding, to the last bit; with x's derivative. What there is no room for stays."""
        with torch.no_grad():
            by = self.decode(self.encode(x)).sub_(x).masked_fill_(x.abs() >= self.limit, 0.0)
        return x + by


class Damping:
    """v ← m v on integers, reversibly: what a division leaves over goes into a buffer, log2(1/m) bits an entry and step
    (Maclaurin, Duvenaud and Adams 2015, algorithm 3).

    m: a fraction n/d. A full word of the buffer is laid aside, and another begun.
    """

    def __init__(self, m: Fraction, like: Tensor) -> None:
        self._n, self._d = m.numerator, m.denominator
        self.words: list[Tensor] = []
        self._word, self._bound = torch.zeros_like(like), 1
        self._bounds: list[int] = []  # above the word before each step; 1: the step begins a word

    def apply(self, v: Tensor) -> Tensor:
        if self._n == self._d:
            return v
        if self._bound * self._d >= 2**_ROOM:
            self.words.append(self._word)
            self._word, self._bound = torch.zeros_like(v), 1
        quotient = v.div(self._d, rounding_mode="floor")
        word = self._word * self._d + (v - quotient * self._d)
        self._word = word.div(self._n, rounding_mode="floor")
        self._bounds.append(self._bound)
        self._bound = self._bound * self._d // self._n + 1
        return quotient * self._n + (word - self._word * self._n)

    def undo(self, v: Tensor) -> Tensor:
        if self._n == self._d:
            return v
        bound = self._bounds.pop()
        quotient = v.div(self._n, rounding_mode="floor")
        word = self._word * self._n + (v - quotient * self._n)
        self._word = word.div(self._d, rounding_mode="floor")
        v = quotient * self._d + (word - self._word * self._d)
        if bound == 1 and self.words:  # this step began the word
            self._word = self.words.pop()
        return v

    # For autograd's memory: tensors apart from how they were filled.
    def state(self) -> tuple[list[Tensor], list[int]]:
        return [*self.words, self._word], list(self._bounds)

    @classmethod
    def of_state(cls, m: Fraction, tensors: Sequence[Tensor], bounds: list[int]) -> Damping:
        damping = cls(m, tensors[-1])
        *damping.words, damping._word = tensors
        damping._bounds = list(bounds)
        return damping


class Bounds:
    """x clamped to integers [lo, hi], numbers or rows, reversibly: an entry on a bound was there before, or inside, and
    then it is kept.

    Entries that stay on a bound, leave it or never come to it cost nothing. Finding the others synchronises on CUDA.
    """

    def __init__(self, of: SampleRange, fixed: FixedPoint, like: Tensor) -> None:
        pair = of.rows(like.double()) if of.per_dimension else of.numbers
        lo, hi = (torch.as_tensor(bound, dtype=torch.float64, device=like.device) for bound in pair)
        self._active = of.per_dimension or of.numbers != (-math.inf, math.inf)
        self._lo, self._hi = fixed.encode_bound(lo, torch.ceil), fixed.encode_bound(hi, torch.floor)
        self._counts: list[int] = []  # of each step's entries
        self._steps: list[tuple[Tensor, Tensor]] = []  # where they are and what they were; the latest steps'
        self._blocks: list[tuple[Tensor, Tensor]] = []  # those of many steps each: a tensor takes more than few entries

    def move(self, x: Tensor, by: Tensor) -> Tensor:
        if not self._active:
            return x + by
        after = (x + by).clamp(self._lo, self._hi)
        arrived = (self._on(after) & (after != x)).flatten().nonzero().squeeze(1)
        self._counts.append(len(arrived))
        self._steps.append((arrived, x.flatten()[arrived]))
        if len(self._steps) == _STEPS_PER_BLOCK:
            self._blocks.append(_joined(self._steps))
            self._steps = []
        return after

    def move_back(self, x: Tensor, by: Tensor) -> Tensor:
        if not self._active:
            return x - by
        before = torch.where(self._on(x), x, x - by)
        ((places, values),) = self._blocks
        rest = len(places) - self._counts.pop()
        before.view(-1)[places[rest:]] = values[rest:]
        self._blocks = [(places[:rest], values[:rest])]
        return before

    def _on(self, x: Tensor) -> Tensor:
        return (x == self._lo) | (x == self._hi)

    # For autograd's memory: tensors apart from how many entries each step has.
    def state(self) -> tuple[list[Tensor], list[int]]:
        return (list(_joined(self._blocks + self._steps)), self._counts) if self._counts else ([], [])

    def restore(self, tensors: Sequence[Tensor], counts: Sequence[int]) -> None:
        places, values = tensors
        self._blocks, self._counts = [(places, values)], list(counts)


def _joined(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    places, values = zip(*parts, strict=True)
    return torch.cat(places), torch.cat(values)


class ReversibleLeapfrogProgram(LeapfrogProgram):
    """`LeapfrogProgram` on fixed-point states: kept are x^T, v^T, the step sizes, the damping's buffer, and what a
    `sample_range` clamped.

    The derivatives are those of the steps without the rounding of the states, taken at the rounded states.
    """

    def __init__(self, layer: str, n_steps: int, damping: float, options: Options, steps: base.MergedSteps) -> None:
        super().__init__(layer, n_steps, damping, options, steps)
        self._damping = as_fraction(layer, damping)
        self._kept: tuple[list[int], list[int]] = ([], [])  # how `Damping` and `Bounds` filled their tensors

    def fused(self, field: object, args: Args, gaussian: object, **options: object) -> None:
        """The MLP kernels keep their states."""
        return None

    def as_rows(self, args: Args) -> tuple[Tensor, ...]:
        """Step sizes as compact rows: as many as steps, they should not be states in size. x⁰ is rounded, as ∇f(x⁰) is
        evaluated before `forward`, and has to be that of the state which the backward pass comes back to."""
        x, v, *_ = args
        return self._fixed(x).rounded(x), v, *self._steps.rows(x, compact=True)

    def forward(self, grad: GradientFunction, args: Args, saved: list[Tensor] | None) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled():  # autograd's own graph, which keeps all anyway
            x, v, *steps = args
            return super().forward(grad, (x, v, *(s.expand(-1, x.shape[1]) for s in steps)), saved)
        x, v, kick_steps, drift_steps = args
        fixed, row = self._fixed(x), _rows_of(x)
        xi, vi = fixed.encode(x), fixed.encode(v)
        damping, bounds = Damping(self._damping, vi), Bounds(self._range, fixed, x)
        largest = torch.stack([x.abs().amax(), v.abs().amax()]).amax() if x.numel() else x.new_zeros(())
        for t in range(self.n_steps + 1):
            x = fixed.decode(xi)
            kick = self._kick_by(grad(t, x), row(kick_steps[t]))
            vi = damping.apply(vi) + fixed.encode(kick)
            v = fixed.decode(vi)
            largest = _larger(largest, kick)
            if t < self.n_steps:
                drift = self._drift_by(v, row(drift_steps[t]))
                xi = bounds.move(xi, fixed.encode(drift))
                largest = _larger(largest, drift)
            base.check_finite(self._check_finite, self._layer, min(t, self.n_steps - 1), self.n_steps, kick, v)
            if self.record is not None:
                self.record.momenta.append(v)
        if not bool(largest < fixed.limit):
            raise NonFiniteError(
                f"{self._layer}: a state is not finite, or moves by more than {fixed.limit:.3g} in a step, which "
                f"memory='reversible' has no room for: reduce step_size, or set grad_clip and momentum_clip"
            )
        if saved is not None:
            words, filled = damping.state()
            clamped, counts = bounds.state()
            self._kept = filled, counts
            saved += [xi, vi, *clamped, *words]
        return fixed.decode(xi), v

    def backward(
        self,
        side: GradientSide,
        args: Args,
        saved: Sequence[Tensor],
        cotangents: tuple[Tensor, ...],
        wants: Sequence[bool],
    ) -> tuple[Tensor, ...]:
        x0, v0, kick_steps, drift_steps = args
        fixed, row = self._fixed(x0), _rows_of(x0)
        filled, counts = self._kept
        xi, vi, *words = saved
        bounds = Bounds(self._range, fixed, x0)
        if counts:
            bounds.restore(words[:2], counts)
            words = words[2:]
        damping = Damping.of_state(self._damping, words, filled)
        dx, dv = cotangents
        dkicks, ddrifts = torch.empty_like(kick_steps), torch.empty_like(drift_steps)
        for t in range(self.n_steps, -1, -1):
            v_after, kick = fixed.decode(vi), row(kick_steps[t])
            if t < self.n_steps:
                drift = row(drift_steps[t])
                xi = bounds.move_back(xi, fixed.encode(self._drift_by(v_after, drift)))
            x = fixed.decode(xi)
            g = side.recall(t, x)
            if t == self.n_steps:
                dv, dg, dkick = ops_without_autograd.leapfrog_kick_backward(dv, g, kick, *self._kick)
            else:
                dx = self._pulled_to_before(dx, x, v_after, drift)
                dx, dv, dg, dkick, ddrift = ops_without_autograd.leapfrog_kick_drift_backward(
                    dx, dv, x, v_after, g, kick, drift, *self._kick, *self._drift
                )
                ddrifts[t] = ddrift.sum_to_size(ddrifts.shape[1])
            dkicks[t] = dkick.sum_to_size(dkicks.shape[1])
            hessian_u = side.pull(t, x, dg, want_x=t > 0 or wants[0])
            if hessian_u is not None:
                dx = dx + hessian_u
            if side.record is not None:
                side.record.went_back(t, dx, dv)
            vi = damping.undo(vi - fixed.encode(self._kick_by(g, kick)))
        if not (torch.equal(xi, fixed.encode(x0)) and torch.equal(vi, fixed.encode(v0))):
            raise RuntimeError(
                f"{self._layer}: memory='reversible' did not come back to where the unroll began: the potential's "
                f"gradient is not the same to the last bit when it is evaluated again; use memory='states'"
            )
        return dx, dv, dkicks, ddrifts

    def _fixed(self, x: Tensor) -> FixedPoint:
        if x.dtype not in _BITS:
            raise TypeError(f"{self._layer}: memory='reversible' takes float32 and float64, got x0 {x.dtype}")
        return FixedPoint(x.dtype, self.n_steps)

    def _kick_by(self, g: Tensor, step: Tensor) -> Tensor:
        _, *clip = self._kick
        return ops_without_autograd.leapfrog_kick(torch.zeros_like(g), g, step, 1.0, *clip)

    def _drift_by(self, v: Tensor, step: Tensor) -> Tensor:
        *clip, _, _ = self._drift
        return ops_without_autograd.leapfrog_drift(torch.zeros_like(v), v, step, *clip, -math.inf, math.inf)


def _rows_of(x: Tensor) -> Callable[[Tensor], Tensor]:
    """A step's row [D], or the one number of a compact one, as the operators take it."""
    return lambda step: step.expand(x.shape[1]).contiguous()


def _larger(largest: Tensor, moved: Tensor) -> Tensor:
    """NaN where either is."""
    return torch.maximum(largest, moved.abs().amax()) if moved.numel() else largest


def as_fraction(layer: str, damping: float) -> Fraction:
    fraction = Fraction(damping).limit_denominator(_LARGEST_DENOMINATOR)
    if abs(float(fraction) - damping) > 1e-12:
        raise ValueError(
            f"{layer}: memory='reversible' takes a damping that is a fraction n/d with d up to {_LARGEST_DENOMINATOR}, "
            f"got {damping}"
        )
    return fraction
