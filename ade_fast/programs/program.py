"""A piecewise-linear potential as a program: its gradient, and the derivative of its gradient, without autograd.

Where f is made of linear functions and kinks (ReLU-like ones and max pooling), ∇f(x) is the product of the transposes
of the linear functions, last to first, with the kinks' slopes between them; and ∂_W ⟨∇f(x), u⟩ of a layer is the
product of δ, the cotangent that reaches it there, with the tangent of u that reaches it from below. So of one
evaluation the derivative needs

* δ of each layer, which ∇f had to compute: the derivative then costs 2 U more (U: one evaluation of f), or
* the kinks' masks (bends.py), from which δ is computed again: 3 U, in 1/32 of an activation's memory, or
* nothing but x: 4 U.

The program is written down while the potential is evaluated for the first time. The potential itself is called at
every later step too, and each of its calls compared: at one that is another, or has another constant, autograd takes
over. Only the layers' arithmetic is the program's: images in channels-last order, where that is faster, and no graph.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .bends import Kink
from .following import KINKS, Arguments, Following, Function, Keywords, Unsupported, is_inplace
from .linear_steps import Call, Step
from .steps import step_of


@dataclass
class Kept:
    """What an evaluation leaves for the derivative of its gradient.

    bits: the mask of each kink. deltas: the cotangents of the results of affine steps with a weight that requires
    grad, by these values' numbers, or None.
    """

    bits: Sequence[Tensor] = field(default_factory=list)
    deltas: dict[int, Tensor] | None = None


class Watch(Following):
    """Writes down an evaluation of a potential at x as a program, and changes nothing about it."""

    def __init__(self, x: Tensor) -> None:
        super().__init__(x)
        self._memory, self._device = image_memory(x), x.device
        self._steps: list[Step] = []
        self._results: list[Tensor] = []  # held, so that no other tensor gets their ids
        self._made: set[int] = set()
        self._output: int | None = None
        self._kinks: list[tuple[Kink, Tensor]] = []
        # A checkpoint around the layer runs it again, and wants to see the same evaluations.
        self._gave_up = len(x) == 0 or self._hooks is not None

    def __torch_function__(
        self, func: Function, types: Any, args: Arguments = (), kwargs: Keywords | None = None
    ) -> Any:
        if self._gave_up:
            return func(*args, **(kwargs or {}))
        try:
            return super().__torch_function__(func, types, args, kwargs)
        except Unsupported:
            self._gave_up = True
            return func(*args, **(kwargs or {}))

    def apart(self, func: Function, args: Arguments, kwargs: Keywords) -> object:
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            self._made.add(id(result))
            self._results.append(result)
        return result

    def apply(self, func: Function, args: Arguments, kwargs: Keywords) -> Tensor:
        inplace = func in KINKS and is_inplace(func, args, kwargs)
        if inplace and not self._is_whole(self.number_of(args[0])):
            raise Unsupported("a kink that is written over a view")
        result = func(*args, **kwargs)
        self._results.append(result)
        try:
            step = step_of(Call(self, func, args, kwargs, result), self._memory)
            self._gave_up = any(id(t) in self._made for t in step.constants())  # computed at every evaluation
            self._steps.append(step)
            if isinstance(step, Kink):
                self._kinks.append((step, result))
        except Unsupported:  # not to be called twice
            self._gave_up = True
        return result

    def _is_whole(self, number: int | None) -> bool:
        """Whether a value has memory of its own, and no other value is in it."""
        if not number or not self._steps[number - 1].is_fresh:
            return False
        return not any(number in step.inputs and not step.is_fresh for step in self._steps)

    def bits(self) -> list[Tensor] | None:
        """The masks of its kinks there, or None."""
        masks = [kink.mask_of(result) for kink, result in self._kinks]
        found = [mask for mask in masks if mask is not None]
        return found if len(found) == len(masks) else None

    def end(self, y: object) -> None:
        """Notes the potential's result."""
        self._output = self.number_of(y)

    def program(self) -> Program | None:
        """What leads to the result, if all of it is known."""
        if self._gave_up or not self._output:
            return None
        return Program(self._steps, self._output, self._device)


class _Run(Following):
    """Evaluates the potential at x by the program's steps.

    bits: of the kinks so far.
    """

    def __init__(self, program: Program, x: Tensor) -> None:
        super().__init__(x)
        self._program = program
        self._at = 0
        self.bits: list[Tensor] = []

    def apply(self, func: Function, args: Arguments, kwargs: Keywords) -> Tensor:
        steps = self._program.steps
        if self._at == len(steps) or not steps[self._at].matches(func, args, kwargs, self):
            raise Unsupported("another call than at the first step")
        step = steps[self._at]
        self._at += 1
        values = [a for arg in args for a in (arg if isinstance(arg, (list, tuple)) else (arg,)) if self.depends(a)]
        with torch.no_grad():
            if not isinstance(step, Kink):
                return step.value(*values)
            (z,) = values
            result, bits = step.bend(z, step.over_input)
            self.bits.append(bits)
            return z.copy_(result) if step.over_input and result is not z else result

    def ends_at(self, y: object, output: int) -> bool:
        return self._at == len(self._program.steps) and self.number_of(y) == output


class Program:
    """The steps from x to f(x); the result of step i is value i + 1, x is value 0, f's result is value `output`.

    Attributes:
        kinks: those of the steps, in order. weights: those of affine steps that require grad, once each.
        constants: every tensor that takes part.
    """

    def __init__(self, steps: list[Step], output: int, device: torch.device) -> None:
        self.steps, self.output, self._device = steps, output, device
        self.kinks = [step for step in steps if isinstance(step, Kink)]
        self._trained = {n: s for n, s in enumerate(steps, 1) if s.weight is not None and s.weight.requires_grad}
        self.weights = list({id(s.weight): s.weight for s in self._trained.values()}.values())
        self.constants = [t for step in steps for t in step.constants()]
        self._last_use = {source: n for n, step in enumerate(steps, 1) for source in step.inputs}
        self._uses = collections.Counter(source for step in steps for source in step.inputs)

    # What is kept of one row.
    @property
    def bit_bytes(self) -> int:
        return sum(kink.mask_bytes for kink in self.kinks)

    @property
    def delta_bytes(self) -> int:
        return sum(math.prod(step.event) * step.dtype.itemsize for step in self._trained.values())

    def evaluate(self, potential: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, list[Tensor]] | None:
        """(f's result at x, the bits of its kinks); None if the potential does something else there."""
        mode = _Run(self, x)
        try:
            with torch.enable_grad(), mode:
                y = potential(x)
                is_this = mode.ends_at(y, self.output)
        except Unsupported:
            return None
        return (y.detach(), mode.bits) if is_this else None

    def again(self, x: Tensor) -> list[Tensor]:
        """The bits at any number of rows, by the steps alone."""
        bits: list[Tensor] = []

        def value(number: int, step: Step, values: list[Tensor], ours: bool) -> Tensor:
            if not isinstance(step, Kink):
                return step.value(*values)
            result, found = step.bend(values[0], ours)
            bits.append(found)
            return result

        self._walk(x, value)
        return bits

    def gradient(self, bits: Sequence[Tensor], rows: int, keep: bool) -> tuple[Tensor, dict[int, Tensor] | None]:
        """(∇f [N, *event], the `Kept.deltas` if they are to be kept) where the kinks have these bits."""
        later = reversed(bits)
        deltas: dict[int, Tensor] = {}
        found: list[tuple[Tensor, bool] | None] = [None] * (len(self.steps) + 1)  # a cotangent, and whether it is ours
        last = self.steps[self.output - 1]
        found[self.output] = torch.ones(rows, *last.event, dtype=last.dtype, device=self._device), True
        for number in range(len(self.steps), 0, -1):
            step, at = self.steps[number - 1], found[number]
            found[number] = None
            slopes = next(later) if isinstance(step, Kink) else None
            if at is None:  # does not lead to the result
                continue
            d, ours = at
            backs: Sequence[Tensor]
            if slopes is not None and isinstance(step, Kink):
                backs = (step.bent_back(d, slopes, ours),)
            else:
                if keep and number in self._trained:
                    deltas[number] = d
                backs = step.transpose(d)
            for source, back, dtype in zip(step.inputs, backs, step.dtypes, strict=True):
                there = found[source]
                back = back.to(dtype)
                found[source] = (back, step.is_own) if there is None else (there[0] + back, True)
        start = found[0]
        assert start is not None  # f depends on x
        return start[0], deltas if keep else None

    def derivatives(self, kept: Sequence[Kept], u: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """(⟨∇f, u⟩ [N], its derivatives by the weights, by their ids) where evaluations left this, one after another.

        u: [N, *event], the rows of all evaluations.
        """
        bits = iter(zip(*(k.bits for k in kept), strict=True))
        deltas = [k.deltas for k in kept if k.deltas is not None]
        if not deltas:
            again = [self.gradient(k.bits, len(u) // len(kept), keep=True)[1] for k in kept]
            deltas = [d for d in again if d is not None]
        found: dict[int, Tensor] = {}

        def tangent(number: int, step: Step, values: list[Tensor], ours: bool) -> Tensor:
            if isinstance(step, Kink):
                return step.bent(values[0], next(bits), ours)
            if number in self._trained and number in deltas[0]:
                product = step.product(_batch([d[number] for d in deltas]), *values)
                key = id(step.weight)
                found[key] = found[key].add_(product) if key in found else product
            return step.tangent(*values)

        return self._walk(u, tangent).reshape(-1), found

    def _walk(self, x: Tensor, follow: Callable[[int, Step, list[Tensor], bool], Tensor]) -> Tensor:
        """What becomes of x, step by step: follow(number of the result, step, its inputs, whether a first input that is
        used nowhere else may be written to)."""
        values: list[Any] = [x] + [None] * len(self.steps)  # tensors, as long as they are of use
        ours = [False] * len(values)
        for number, step in enumerate(self.steps, 1):
            given = [values[source] for source in step.inputs]
            first = step.inputs[0]
            values[number] = follow(number, step, given, ours[first] and self._uses[first] == 1)
            ours[number] = step.is_own
            for source in step.inputs:
                if self._last_use[source] == number:
                    values[source] = None
        return values[self.output]


def _batch(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def image_memory(x: Tensor) -> torch.memory_format:
    """The order in memory that images have in a program: oneDNN's convolutions are a quarter faster in this one."""
    is_last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    on_cpu = x.device.type == "cpu" and x.dtype != torch.float64
    return torch.channels_last if is_last or on_cpu else torch.contiguous_format
