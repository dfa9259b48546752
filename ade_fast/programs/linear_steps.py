"""The functions that piecewise-linear potentials are made of, as steps of a program (program.py).

A step has a value, with its constants in it; a tangent, without them; and the tangent's transpose. An affine one,
W x + b, has a product too: the derivative of ⟨δ, W u⟩ by W.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .._engine import derivatives
from . import following
from .following import Arguments, Following, Function, Keywords, T, Unsupported, concatenated_dim

_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_TRANSPOSING = {F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}
_POOL = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
# Torch's own: by another function of that name it is called all the same.
_linear, _matmul = F.linear, torch.matmul
_SUBTRACT = {torch.sub, T.sub, T.__sub__}


class Call(NamedTuple):
    """A call that passed `Following`'s checks, and its result."""

    follow: Following
    func: Function
    args: Arguments
    kwargs: Keywords
    result: Tensor


class Step:
    """One call of a function, of values that depend on x and of others that must be the same at every evaluation.

    inputs: numbers of the former, in the order of the call. events, dtypes: theirs, the batch apart. event, dtype: of
    the result. over_input: the result is the first argument itself, written to or not.
    """

    weight: Tensor | None = None  # of an affine step, or a factor: as the potential has it
    is_fresh = True  # the result of a call is in memory of its own
    is_own = False  # so are those of tangent and transpose

    def __init__(self, call: Call) -> None:
        follow, func, args, kwargs, result = call
        self.func = func
        self._kwargs = kwargs
        found = [a for arg in args for a in (arg if isinstance(arg, (list, tuple)) else (arg,)) if follow.depends(a)]
        self.inputs = tuple([number for a in found if (number := follow.number_of(a)) is not None])
        self.events = [tuple(a.shape[1:]) for a in found]
        self.dtypes = [a.dtype for a in found]
        self.event, self.dtype = tuple(result.shape[1:]), result.dtype
        self.over_input = result is args[0]
        self._args: Any = _marked(args, follow)
        self._versions = [(t, t._version) for t in _tensors((self._args, self._kwargs))]

    def matches(self, func: Function, args: Arguments, kwargs: Keywords, follow: Following) -> bool:
        """Whether a call is this one again, with the same constants."""
        return (
            func is self.func
            and _is_same(self._args, _marked(args, follow))
            and _is_same(self._kwargs, kwargs)
            and all(t._version == version for t, version in self._versions)
        )

    def constants(self) -> list[Tensor]:
        return [t for t, _ in self._versions]

    def value(self, x: Tensor, /, *others: Tensor) -> Tensor:
        return self._call((x, *others))

    def tangent(self, u: Tensor, /, *others: Tensor) -> Tensor:
        return self._call((u, *others))

    def product(self, d: Tensor, u: Tensor) -> Tensor:
        """The derivative of ⟨d, tangent(u)⟩ by the weight."""
        raise NotImplementedError

    def transpose(self, d: Tensor) -> Sequence[Tensor]:
        """The cotangents of the inputs from the result's; they may be d itself."""
        u = d.new_empty((len(d), *self.events[0]), dtype=self.dtypes[0]).requires_grad_()
        with torch.enable_grad():
            result = self._call((u,))
        (back,) = derivatives([result], [u], [d])
        assert back is not None  # linear in u
        return (back,)

    def _call(self, values: Sequence[Tensor]) -> Tensor:
        given = iter(values)
        args = [_filled(a, given) for a in self._args]
        return self.func(*args, **self._kwargs)


class _Input:
    """The place of a value in a step's arguments."""

    def __init__(self, number: int) -> None:
        self.number = number


def _marked(arg: object, follow: Following) -> object:
    """An argument with numbers in the place of values that depend on x.

    No function within this one that calls itself: that would be a cycle, which keeps values until Python finds it.
    """
    if isinstance(arg, (list, tuple)):
        return tuple([_marked(a, follow) for a in arg])
    number = follow.number_of(arg)
    return arg if number is None else _Input(number)


def _filled(arg: object, values: Iterator[Tensor]) -> object:
    if isinstance(arg, tuple):
        return tuple([_filled(a, values) for a in arg])
    return next(values) if isinstance(arg, _Input) else arg


def _tensors(of: object) -> list[Tensor]:
    if isinstance(of, dict):
        of = tuple(of.values())
    if isinstance(of, tuple):
        return [t for a in of for t in _tensors(a)]
    return [of] if isinstance(of, Tensor) else []


def _is_same(a: object, b: object) -> bool:
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(map(_is_same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_is_same(a[k], b[k]) for k in a)
    if isinstance(a, _Input):
        return isinstance(b, _Input) and a.number == b.number
    return a is b or (not isinstance(a, Tensor) and type(a) is type(b) and a == b)


class _Affine(Step):
    """w, b: weight and bias in the dtype that they take part in (autocast's), without their history."""

    weight: Tensor
    is_own = True

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        _, func, args, kwargs, _ = call
        names = _TRANSPOSED if func in _TRANSPOSING else _CONV
        given = dict(zip(names[1:], args[1:], strict=False)) | kwargs
        self.weight, bias = given["weight"], given.get("bias")
        self._options = {name: value for name, value in given.items() if not isinstance(value, Tensor)}
        self._w = self.weight.detach().to(self.dtype)
        self._b = None if bias is None else bias.detach().to(self.dtype)

    def value(self, x: Tensor, /, *_: Tensor) -> Tensor:
        return self._of(x.to(self.dtype), self._b)

    def tangent(self, u: Tensor, /, *_: Tensor) -> Tensor:
        return self._of(u.to(self.dtype), None)

    def _of(self, x: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError

    def _product(self, d: Tensor, u: Tensor) -> Tensor:
        raise NotImplementedError

    def product(self, d: Tensor, u: Tensor) -> Tensor:
        return self._product(d, u.to(self.dtype)).to(self.weight.dtype)


class Linear(_Affine):
    def _of(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return _linear(x, self._w, bias)

    def transpose(self, d: Tensor) -> Sequence[Tensor]:
        return (_matmul(d, self._w),)

    def _product(self, d: Tensor, u: Tensor) -> Tensor:
        return d.reshape(-1, d.shape[-1]).t() @ u.reshape(-1, u.shape[-1])


class MatMul(_Affine):
    """x W, of a matrix or a vector W."""

    def _of(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return _matmul(x, self._w)

    def transpose(self, d: Tensor) -> Sequence[Tensor]:
        return (_matmul(d, self._w.t()) if self._w.dim() == 2 else d.unsqueeze(-1) * self._w,)

    def _product(self, d: Tensor, u: Tensor) -> Tensor:
        return _matmul(u.reshape(-1, u.shape[-1]).t(), d.reshape(-1, *self._w.shape[1:]))


class Convolution(_Affine):
    """memory: the order in memory that two-dimensional images are taken and given in."""

    def __init__(self, call: Call, memory: torch.memory_format) -> None:
        super().__init__(call)
        _, func, args, _, _ = call
        n = self.weight.dim() - 2
        if args[0].dim() != n + 2:
            raise Unsupported("a convolution without a batch")
        stride, padding, dilation, outside = (
            each(self._options.get(name, default), n)
            for name, default in (("stride", 1), ("padding", 0), ("dilation", 1), ("output_padding", 0))
        )
        self._numbers = (stride, padding, dilation, func in _TRANSPOSING, outside, self._options.get("groups", 1))
        self._memory = memory if n == 2 else torch.contiguous_format
        self._w = self._w.contiguous(memory_format=self._memory)

    def _of(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return torch.convolution(x.contiguous(memory_format=self._memory), self._w, bias, *self._numbers)

    def transpose(self, d: Tensor) -> Sequence[Tensor]:
        x = torch.empty(
            (len(d), *self.events[0]), dtype=self.dtype, device=d.device, memory_format=self._memory
        )  # whose shape alone is looked at
        return (self._backward(d, x, 0),)

    def _product(self, d: Tensor, u: Tensor) -> Tensor:
        return self._backward(d, u.contiguous(memory_format=self._memory), 1)

    def _backward(self, d: Tensor, x: Tensor, which: int) -> Tensor:
        d = d.contiguous(memory_format=self._memory)
        wanted = [which == 0, which == 1, False]
        return torch.ops.aten.convolution_backward.default(d, x, self._w, None, *self._numbers, wanted)[which]


def each(numbers: object, n: int) -> list[int]:
    if isinstance(numbers, str):
        raise Unsupported("padding that is named")
    given: list[Any] = list(numbers) if isinstance(numbers, (tuple, list)) else [numbers]
    return given if len(given) == n else given * n


class Sum(Step):
    def __init__(self, call: Call) -> None:
        super().__init__(call)
        follow, func, args, kwargs, _ = call
        alpha: Any = kwargs.get("alpha", args[2] if len(args) > 2 else 1)
        signs = (-1, 1) if func is T.__rsub__ else (1, -alpha if func in _SUBTRACT else alpha)
        self._factors = [s for s, a in zip(signs, args, strict=False) if follow.depends(a)]

    def tangent(self, u: Tensor, /, *others: Tensor) -> Tensor:
        first, *more = (t if factor == 1 else t * factor for t, factor in zip((u, *others), self._factors, strict=True))
        total = sum(more, start=first)
        return total.expand(len(total), *self.event).to(self.dtype)

    def transpose(self, d: Tensor) -> Sequence[Tensor]:
        return [_summed(d if f == 1 else d * f, e) for f, e in zip(self._factors, self.events, strict=True)]


class Scale(Step):
    """A product with, or quotient by, what does not depend on x."""

    is_own = True

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        follow, _, args, _, _ = call
        self._by = args[1] if follow.depends(args[0]) else args[0]
        if isinstance(self._by, Tensor):
            if self._by.dim() > len(self.event) and self._by.shape[0] != 1:
                raise Unsupported("a factor with a batch dimension")
            self.weight = self._by

    def transpose(self, d: Tensor) -> Sequence[Tensor]:
        return (_summed(d / self._by if self.func in following.DIVISIONS else d * self._by, self.events[0]),)

    def product(self, d: Tensor, u: Tensor) -> Tensor:
        """The derivative of ⟨d, tangent(u)⟩ by the factor."""
        found = -d * u / self._by.square() if self.func in following.DIVISIONS else d * u
        return found.sum_to_size(self._by.shape).to(self._by.dtype)


def _summed(d: Tensor, event: tuple[int, ...]) -> Tensor:
    """The cotangent of what was broadcast from [N, *event]."""
    return d if d.shape[1:] == event else d.sum_to_size(len(d), *event)


class Same(Step):
    is_fresh = False

    def value(self, x: Tensor, /, *_: Tensor) -> Tensor:
        return x if self.over_input else x.view_as(x)

    tangent = value

    def transpose(self, d: Tensor) -> Sequence[Tensor]:
        return (d,)


class Reshape(Step):
    is_fresh = False

    def value(self, x: Tensor, /, *_: Tensor) -> Tensor:
        return x if self.over_input else x.reshape(len(x), *self.event)

    tangent = value

    def transpose(self, d: Tensor) -> Sequence[Tensor]:
        return (d.reshape(len(d), *self.events[0]),)


class Pool(Step):
    """Of averages, in two dimensions."""

    is_own = True

    def transpose(self, d: Tensor) -> Sequence[Tensor]:
        given = dict(zip(_POOL, self._args, strict=False)) | self._kwargs
        kernel, stride, padding = (given.get(name) for name in _POOL[1:4])
        memory = torch.channels_last if not d.is_contiguous() else torch.contiguous_format
        x = torch.empty((len(d), *self.events[0]), dtype=self.dtypes[0], device=d.device, memory_format=memory)
        return (
            torch.ops.aten.avg_pool2d_backward(
                d, x, each(kernel, 2), [] if stride is None else each(stride, 2), each(padding or 0, 2),
                given.get("ceil_mode", False), given.get("count_include_pad", True), given.get("divisor_override"),
            ),
        )  # fmt: skip


class Concatenation(Step):
    def __init__(self, call: Call) -> None:
        super().__init__(call)
        _, _, args, kwargs, result = call
        if len(self.inputs) != len(args[0]):
            raise Unsupported("a concatenation with constants")
        self._dim = concatenated_dim(args, kwargs) % result.dim()

    def transpose(self, d: Tensor) -> Sequence[Tensor]:
        return d.split([event[self._dim - 1] for event in self.events], self._dim)


class Map(Step):
    """Any other linear function of one value."""

    is_fresh = False  # for all that is known
