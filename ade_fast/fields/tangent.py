"""The mixed derivative of a piecewise-linear potential by a tangent pass: 3 U where its kinks are at hand.

U is the cost of one evaluation of f. Where f is piecewise linear in x, ⟨∇_x f(x), u⟩ is f's linear part around x
applied to u: the same network without its biases, with every kink (ReLU, leaky ReLU) replaced by the slope it has at
x. So ∂_θ⟨∇_x f(x), u⟩ is an ordinary gradient of that tangent network, and autograd's double backward (4 U more than
the gradient, of which 2 U go into multiplying by zeros) is not needed.

The tangent pass calls the potential itself, on u, and changes what the functions it calls do (``TorchFunctionMode``):
biases are dropped, kinks take their slopes from the recorded values. This works for any module or callable made of
the functions listed here; at any other one it gives up, and the caller takes the double-backward route. All functions
in the lists keep the batch in dimension 0 (checked at every call), which is what lets one tangent pass serve the rows
of many time steps at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

T = torch.Tensor

# f(x, W, b): linear in x, bias last. Maps the function to the bias's position.
_AFFINE = {
    F.linear: 2,
    F.conv1d: 2,
    F.conv2d: 2,
    F.conv3d: 2,
    torch.conv1d: 2,
    torch.conv2d: 2,
    torch.conv3d: 2,
}
_AFFINE |= {F.conv_transpose1d: 2, F.conv_transpose2d: 2, F.conv_transpose3d: 2}
# Linear in one tensor argument. Reshapes keep rows apart as long as dimension 0 keeps its size, which is checked.
_LINEAR = {
    torch.flatten, T.flatten, T.view, T.reshape, torch.reshape, torch.unflatten, T.unflatten,
    F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
    F.pixel_shuffle, F.pixel_unshuffle, torch.neg, T.neg, T.__neg__, T.contiguous, T.clone, T.to, T.float,
    T.double, T.type_as,
}  # fmt: skip
# Linear, over dimensions named by position, of which none may be the batch's.
_BY_DIM = {
    torch.squeeze, T.squeeze, torch.unsqueeze, T.unsqueeze, torch.sum, T.sum, torch.mean, T.mean,
    torch.transpose, T.transpose, torch.select, T.select, torch.narrow, T.narrow,
}  # fmt: skip
_FIRST_DIM_ONLY = {torch.select, T.select, torch.narrow, T.narrow}  # the other numbers are indices
_ADDITIVE = {torch.add, T.add, T.__add__, T.__radd__, torch.sub, T.sub, T.__sub__, T.__rsub__}
_SCALING = {torch.mul, T.mul, T.__mul__, T.__rmul__, torch.div, T.div, T.__truediv__}
_RELU = {F.relu, torch.relu, T.relu}
_KINKS = _RELU | {F.leaky_relu, torch._C._nn.leaky_relu}
_INPLACE = {F.relu: 1, F.leaky_relu: 2}  # position of the argument
_QUERIES = {T.size, T.dim, T.numel, T.stride, T.is_contiguous, T.ndimension, T.__len__, T.requires_grad_}


class _Unsupported(Exception):
    """The evaluation used a function whose tangent is not known here."""


class _Tangent(TorchFunctionMode):
    """Within this block, functions of tensors that depend on u are replaced by their tangents."""

    def __init__(self, u: Tensor, kinks: Sequence[Tensor]) -> None:
        super().__init__()
        self._follow: dict[int, Tensor] = {id(u): u}  # holding the tensors keeps their ids theirs
        self._rows = u.shape[0]
        self._kinks = iter(kinks)
        self._hooks = _saving_hooks()
        self.used: dict[int, Tensor] = {}

    def followed_to(self, result: object) -> bool:
        """Whether `result` is a value that was followed all the way, past every kink that was recorded."""
        return self._depends(result) and next(self._kinks, None) is None

    def _depends(self, value: object) -> bool:
        return isinstance(value, Tensor) and id(value) in self._follow

    def __torch_function__(self, func: Callable, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for value in (*args, *kwargs.values()):
            for tensor in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(tensor, Tensor):
                    self.used[id(tensor)] = tensor
        if any(any(map(self._depends, v)) for v in kwargs.values() if isinstance(v, (list, tuple))):
            raise _Unsupported("a list by keyword")
        if any(map(self._depends, args)) or any(map(self._depends, kwargs.values())):
            if func in _QUERIES or getattr(func, "__name__", "") == "__get__":
                result = func(*args, **kwargs)
                if isinstance(result, Tensor):
                    raise _Unsupported("an attribute that is a tensor")
                return result
            if _saving_hooks() != self._hooks:  # the backward pass would call the potential again, outside this block
                raise _Unsupported("a checkpoint")
            if not torch.is_grad_enabled():
                raise _Unsupported("no_grad: a part of f that autograd takes for a constant")
            result = self._call(func, args, kwargs)
        elif any(any(map(self._depends, a)) for a in args if isinstance(a, (list, tuple))):
            result = self._concatenate(func, args, kwargs)
        else:
            return func(*args, **kwargs)
        if result.dim() == 0 or result.shape[0] != self._rows:
            raise _Unsupported(f"{func.__name__} moves the batch out of dimension 0")
        if not result.is_floating_point():
            raise _Unsupported(f"{func.__name__} rounds to {result.dtype}")
        self._follow[id(result)] = result
        return result

    def _call(self, func: Callable, args: tuple, kwargs: dict) -> Tensor:
        # A tensor by keyword may be another term or factor; numbers (dim=, alpha=, negative_slope=) are not.
        known = ("weight", "bias") if func in _AFFINE else ()
        odd = [key for key, value in kwargs.items() if isinstance(value, Tensor) and key not in known]
        if odd or (func in _ADDITIVE and kwargs.keys() - {"alpha"}) or (func in _SCALING and kwargs):
            raise _Unsupported(f"{func.__name__} with {', '.join(kwargs)} by keyword")
        if func in _ADDITIVE:
            return func(*(self._addend(a) for a in args), **kwargs)
        if func in _SCALING:
            first, second = map(self._depends, args[:2])
            divides = func in (torch.div, T.div, T.__truediv__)
            if (first and second) or (divides and second):
                raise _Unsupported(f"{func.__name__} of two values that depend on x")
            return func(*args, **kwargs)
        if not self._depends(args[0]) or any(map(self._depends, (*args[1:], *kwargs.values()))):
            raise _Unsupported(f"{func.__name__} with x elsewhere than in its first argument")
        if func in _AFFINE:
            position = _AFFINE[func]
            kwargs = {**kwargs, "bias": None} if "bias" in kwargs else kwargs
            return func(*(None if i == position else a for i, a in enumerate(args)), **kwargs)
        if func in _KINKS:
            return self._kink(func, args, kwargs)
        if func in _BY_DIM:
            _refuse_batch_dim(func, args, kwargs)
        elif func not in _LINEAR:
            raise _Unsupported(getattr(func, "__name__", str(func)))
        return func(*args, **kwargs)

    def _kink(self, func: Callable, args: tuple, kwargs: dict) -> Tensor:
        kink, slope = next(self._kinks, None), _slope(func, args, kwargs)
        if kink is None or kink.shape != args[0].shape or slope < 0:
            raise _Unsupported("a kink that was not recorded, or with a negative slope")
        # autograd's own formulas: the slope is read off the sign of the recorded value in the same pass
        if slope == 0.0:
            result = torch.ops.aten.threshold_backward(args[0], kink, 0.0)
        else:
            result = torch.ops.aten.leaky_relu_backward(args[0], kink, slope, True)
        inplace = kwargs.get("inplace", args[_INPLACE[func]] if len(args) > _INPLACE.get(func, len(args)) else False)
        return args[0].copy_(result) if inplace else result

    def _addend(self, value):
        """A term that does not depend on x has zero tangent (it still takes part in broadcasting)."""
        if self._depends(value):
            return value
        return torch.zeros_like(value) if isinstance(value, Tensor) else 0

    def _concatenate(self, func: Callable, args: tuple, kwargs: dict) -> Tensor:
        dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
        if func is not torch.cat or dim == 0 or dim == -args[0][0].dim():
            raise _Unsupported(getattr(func, "__name__", str(func)))
        return torch.cat([self._addend(t) for t in args[0]], dim)


def _refuse_batch_dim(func: Callable, args, kwargs) -> None:
    """Dimension arguments must be given by position and must not be the batch's."""
    given = args[1:2] if func in _FIRST_DIM_ONLY else args[1:]
    dims = [d for a in given for d in (a if isinstance(a, (list, tuple)) else (a,))]
    dims = [d for d in dims if isinstance(d, int) and not isinstance(d, bool)]
    if not dims or "dim" in kwargs or any(d == 0 or d == -args[0].dim() for d in dims):
        raise _Unsupported(f"{func.__name__} over the batch dimension")


def _slope(func: Callable, args, kwargs) -> float:
    if func in _RELU:
        return 0.0
    return float(args[1] if len(args) > 1 else kwargs.get("negative_slope", 0.01))  # torch's default


def _saving_hooks() -> object:
    """Whoever saves tensors for autograd at this moment, or None (checkpoints do so for what runs inside them)."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True)


def tangent(potential: Callable, u: Tensor, kinks: Sequence[Tensor]) -> tuple[Tensor | None, dict[int, Tensor]]:
    """⟨∇_x f(x), u⟩ for each row, [N]: f's tangent at the x where `kinks` were recorded, applied to u [N, *event].

    kinks: `GraphFacts.kinks` at those rows. Differentiable with respect to whatever f depends on. None if the
    potential is made of functions whose tangents are not known here. And the tensors that it used, by id, zeros in the
    tangent (biases) included.
    """
    mode = _Tangent(u, kinks)
    try:
        with mode:
            slope = potential(u).reshape(-1)
    except _Unsupported:
        return None, {}
    return slope if mode.followed_to(slope) else None, mode.used
