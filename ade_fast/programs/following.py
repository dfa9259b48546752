"""Follows x through the functions that a potential calls, as far as these are linear, ReLU-like or max pooling in it.

A ``TorchFunctionMode`` around an evaluation of f sees every function of tensors that depend on x. The lists here are
those whose tangents are known; at any other one, whoever follows gives up (`Unsupported`). All functions in the lists
keep the batch in dimension 0 (checked at every call), which is what lets the rows of many time steps go through at
once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import TensorWeakRef

T = torch.Tensor
# A call of torch's.
Function = Callable[..., Any]
Arguments = tuple[Any, ...]
Keywords = dict[str, Any]

# f(x, W, b): linear in x, bias last. Maps the function to the bias's position.
AFFINE = {
    F.linear: 2,
    F.conv1d: 2,
    F.conv2d: 2,
    F.conv3d: 2,
    torch.conv1d: 2,
    torch.conv2d: 2,
    torch.conv3d: 2,
}
AFFINE |= {F.conv_transpose1d: 2, F.conv_transpose2d: 2, F.conv_transpose3d: 2}
# x W, with a matrix or a vector.
MATMULS = {torch.matmul, T.matmul, T.__matmul__, torch.mm, T.mm}
# Linear in one tensor argument. Reshapes keep rows apart as long as dimension 0 keeps its size, which is checked.
LINEAR = {
    torch.flatten, T.flatten, T.view, T.reshape, torch.reshape, torch.unflatten, T.unflatten,
    F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
    F.pixel_shuffle, F.pixel_unshuffle, torch.neg, T.neg, T.__neg__, T.contiguous, T.clone, T.to, T.float,
    T.double, T.type_as,
}  # fmt: skip
# Linear, over dimensions named by position, of which none may be the batch's.
BY_DIM = {
    torch.squeeze, T.squeeze, torch.unsqueeze, T.unsqueeze, torch.sum, T.sum, torch.mean, T.mean,
    torch.transpose, T.transpose, torch.select, T.select, torch.narrow, T.narrow,
}  # fmt: skip
FIRST_DIM_ONLY = {torch.select, T.select, torch.narrow, T.narrow}  # the other numbers are indices
ADDITIVE = {torch.add, T.add, T.__add__, T.__radd__, torch.sub, T.sub, T.__sub__, T.__rsub__}
SCALING = {torch.mul, T.mul, T.__mul__, T.__rmul__, torch.div, T.div, T.__truediv__}
RELU = {F.relu, torch.relu, T.relu}
KINKS = RELU | {F.leaky_relu, torch._C._nn.leaky_relu}
# One of several values: the first of the largest.
MAX_POOLS = {F.max_pool1d, F.max_pool2d, torch.max_pool1d, torch.max_pool2d}
INPLACE = {F.relu: 1, F.leaky_relu: 2}  # position of the argument
QUERIES = {T.size, T.dim, T.numel, T.stride, T.is_contiguous, T.ndimension, T.__len__, T.requires_grad_}
DIVISIONS = {torch.div, T.div, T.__truediv__}
RESHAPES = {torch.flatten, T.flatten, T.view, T.reshape, torch.reshape, torch.unflatten, T.unflatten}


class Unsupported(Exception):
    """The evaluation used a function whose tangent is not known here."""


class Following(TorchFunctionMode):
    """Within this block, functions of tensors that depend on x, as far as they are known, are handed to `apply`.

    Args:
        x: what is followed, [N, *event].
    """

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        # Not held: f lets go of most values as it goes on.
        self._followed: dict[int, tuple[TensorWeakRef, int]] = {}
        self._n_values = 0
        self._rows = x.shape[0]
        self._hooks = _saving_hooks()
        self._follow(x)

    def apply(self, func: Function, args: Arguments, kwargs: Keywords) -> Tensor:
        """The result of a call that passed the checks."""
        raise NotImplementedError

    def _follow(self, value: Tensor) -> int:
        """Numbers a value: 0 is x, the others follow in order. One that was written to is another value."""
        self._followed[id(value)] = (TensorWeakRef(value), self._n_values)
        self._n_values += 1
        return self._n_values - 1

    def number_of(self, value: object) -> int | None:
        """The number of a value that depends on x; None of anything else."""
        if not isinstance(value, Tensor):
            return None
        found = self._followed.get(id(value))
        return found[1] if found is not None and found[0]() is value else None

    def depends(self, value: object) -> bool:
        return self.number_of(value) is not None

    def __torch_function__(
        self, func: Function, types: Any, args: Arguments = (), kwargs: Keywords | None = None
    ) -> Any:
        kwargs = kwargs or {}
        values = (v if isinstance(v, (list, tuple)) else (v,) for v in (*args, *kwargs.values()))
        if not any(self.depends(tensor) for value in values for tensor in value):
            return self.apart(func, args, kwargs)
        if func in QUERIES or getattr(func, "__name__", "") == "__get__":
            result = func(*args, **kwargs)
            if isinstance(result, Tensor):
                raise Unsupported("an attribute that is a tensor")
            return result
        if _saving_hooks() != self._hooks:  # the backward pass would call the potential again, outside this block
            raise Unsupported("a checkpoint")
        if not torch.is_grad_enabled():
            raise Unsupported("no_grad: a part of f that autograd takes for a constant")
        _check(func, args, kwargs, self.depends)
        result = self.apply(func, args, kwargs)
        if result.dim() == 0 or result.shape[0] != self._rows:
            raise Unsupported(f"{func.__name__} moves the batch out of dimension 0")
        if not result.is_floating_point():
            raise Unsupported(f"{func.__name__} rounds to {result.dtype}")
        self._follow(result)
        return result

    def apart(self, func: Function, args: Arguments, kwargs: Keywords) -> object:
        """The result of a call with nothing in it that depends on x."""
        return func(*args, **kwargs)


def _check(func: Function, args: Arguments, kwargs: Keywords, depends: Callable[[object], bool]) -> None:
    """Raises Unsupported at a call that is not known to be linear, ReLU-like or max pooling in what depends on x."""
    name = getattr(func, "__name__", str(func))
    if any(any(map(depends, v)) for v in kwargs.values() if isinstance(v, (list, tuple))):
        raise Unsupported("a list by keyword")
    if any(any(map(depends, a)) for a in args if isinstance(a, (list, tuple))):
        dim = concatenated_dim(args, kwargs)
        if func is not torch.cat or dim == 0 or dim == -args[0][0].dim():
            raise Unsupported(name)
        return
    # A tensor by keyword may be another term or factor; numbers (dim=, alpha=, negative_slope=) are not.
    known = ("weight", "bias") if func in AFFINE else ()
    odd = [key for key, value in kwargs.items() if isinstance(value, Tensor) and key not in known]
    if odd or (func in ADDITIVE and kwargs.keys() - {"alpha"}) or (func in SCALING and kwargs):
        raise Unsupported(f"{name} with {', '.join(kwargs)} by keyword")
    if func in ADDITIVE:
        return
    if func in SCALING:
        first, second = map(depends, args[:2])
        if (first and second) or (func in DIVISIONS and second):
            raise Unsupported(f"{name} of two values that depend on x")
        return
    if not depends(args[0]) or any(map(depends, (*args[1:], *kwargs.values()))):
        raise Unsupported(f"{name} with x elsewhere than in its first argument")
    if func in KINKS:
        if slope_of(func, args, kwargs) < 0:
            raise Unsupported("a kink with a negative slope")
    elif func in BY_DIM:
        _refuse_batch_dim(func, args, kwargs)
    elif func in MATMULS:
        if args[0].dim() < 2 or args[1].dim() > 2:
            raise Unsupported(f"{name} of a batch of matrices")
    elif func not in LINEAR and func not in AFFINE and func not in MAX_POOLS:
        raise Unsupported(name)


def _refuse_batch_dim(func: Function, args: Arguments, kwargs: Keywords) -> None:
    """Dimension arguments must be given by position and must not be the batch's."""
    given = args[1:2] if func in FIRST_DIM_ONLY else args[1:]
    dims = [d for a in given for d in (a if isinstance(a, (list, tuple)) else (a,))]
    dims = [d for d in dims if isinstance(d, int) and not isinstance(d, bool)]
    if not dims or "dim" in kwargs or any(d == 0 or d == -args[0].dim() for d in dims):
        raise Unsupported(f"{func.__name__} over the batch dimension")


def slope_of(func: Function, args: Arguments, kwargs: Keywords) -> float:
    """The slope of a kink where its argument is negative."""
    if func in RELU:
        return 0.0
    return float(args[1] if len(args) > 1 else kwargs.get("negative_slope", 0.01))  # torch's default


def is_inplace(func: Function, args: Arguments, kwargs: Keywords) -> bool:
    """Whether a kink is written over its argument."""
    at = INPLACE.get(func, len(args))
    return bool(kwargs.get("inplace", args[at] if len(args) > at else False))


def concatenated_dim(args: Arguments, kwargs: Keywords) -> int:
    given: Any = args[1] if len(args) > 1 else 0
    return kwargs.get("dim", given)


def _saving_hooks() -> object:
    """Whoever saves tensors for autograd at this moment, or None (checkpoints do so for what runs inside them)."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True)
