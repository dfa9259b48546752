"""Loads the compiled operators, ``torch.ops.ade_fast.*``, and gives them fake kernels and derivatives.

The schemas stand in ``csrc/bind``; their names carry the convention that everything here follows:

* ``<op>_backward`` is the vector-Jacobian product of ``<op>``. Its arguments are ``d<output>``, the
  cotangents of the outputs, then those inputs and outputs of ``<op>`` that it needs, by their names, tensors
  before numbers. Its outputs are ``d<input>``.
* ``<state>_out`` is a new state [B, D], ``log_det`` is [B] in the accumulation dtype (float64 for float64
  states, float32 otherwise). An optional input that is absent has a cotangent of size 0.

Every operator is differentiable once. Differentiating twice raises, since a wrong zero would be silent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor
from torch._functorch.autograd_function import enable_single_level_autograd_function  # type: ignore[attr-defined]
from torch._ops import OpOverload
from torch.autograd import forward_ad

OLDEST_TORCH = (2, 11)

if tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) < OLDEST_TORCH:
    raise ImportError(f"ade_fast needs torch >= 2.11, and this is torch {torch.__version__}: upgrade torch.")

try:
    from . import _C
except ImportError as error:
    raise ImportError(
        "ade_fast's compiled extension cannot be loaded; in the repository, build it with "
        f"`pip install --no-build-isolation -e .` (Linux, CPython >= 3.10, not free-threaded). Cause: {error}"
    ) from error


ops = torch.ops.ade_fast
_library = torch.library.Library("ade_fast", "IMPL")
# `with below_autograd():` calls operators without their Autograd kernels, which is half of a small call: for code
# that records no gradient, or has one of its own.
below_autograd = torch._C._AutoDispatchBelowAutograd
# An autograd.Function that leaves the transforms of torch.func to the dispatcher, which has dealt with them
# by the time it comes to the Autograd key.
if TYPE_CHECKING:
    _Function = torch.autograd.Function  # which has `apply`, unlike the other in torch's stubs
else:
    _Function = torch.autograd.function._SingleLevelFunction


def build_info() -> dict[str, str | bool]:
    """What the extension was built with: ``cuda``, ``cuda_version``, ``cuda_archs``, ``compiler``, and
    ``isa``, the instruction set that its CPU kernels run in here ("avx512", "avx2" or "base")."""
    return _C.build_info()


def select_isa(name: str) -> None:
    """Run the CPU kernels in another instruction set, for tests or to track down a difference.

    Not between an unroll's forward and backward passes: the order of kept products is the instruction set's.

    Raises: ValueError if the processor lacks it.
    """
    _C.select_isa(name)


def pool_bytes() -> tuple[int, int]:
    """Bytes of the CPU operators' pool that are in use, and that wait for the next call."""
    return _C.pool_bytes()


def release_pool() -> None:
    """Gives what waits in the pool back to the operating system."""
    _C.release_pool()


class _WithoutAutograd:
    """The operators below autograd, by name: for callers whose derivatives are their own, at half the call's cost."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        op = getattr(ops, name).default

        def call(*values: Any) -> Any:
            with below_autograd():
                return op(*values)

        setattr(self, name, call)
        return call


ops_without_autograd = _WithoutAutograd()


def has_kernels_for(tensor: Tensor) -> bool:
    """Whether operators of float32 and float64 alone can take this tensor where it is."""
    if tensor.dtype not in (torch.float32, torch.float64):
        return False
    return tensor.device.type == "cpu" or (tensor.device.type == "cuda" and bool(build_info()["cuda"]))


def in_reverse_mode_alone() -> bool:
    """Whether no forward-mode derivative and no transform of torch.func is under way: an operator's derivative that is
    taken around the dispatcher would lose their tangents."""
    return forward_ad._current_level < 0 and torch._C._functorch.peek_interpreter_stack() is None


def is_plain_on_cpu(tensor: Tensor) -> bool:
    """Whether operators of the CPU that have no derivative can take this tensor: nobody wants one."""
    if torch.compiler.is_compiling() or tensor.requires_grad:  # the compiler fuses the plain formula itself
        return False
    return tensor.device.type == "cpu" and has_kernels_for(tensor) and in_reverse_mode_alone()


def _arguments(op: OpOverload) -> list[str]:
    return [argument.name for argument in op._schema.arguments]


def _returns(op: OpOverload) -> list[str]:
    return [output.name for output in op._schema.returns]


def _as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _register_fake(op: OpOverload) -> None:
    names, returns = _arguments(op), _returns(op)

    def shape_like(output: str, given: dict[str, Any]) -> Tensor:
        states = given[names[0]]
        accumulate = torch.float64 if states.dtype == torch.float64 else torch.float32
        if output == "log_det":
            return states.new_empty(states.shape[:1], dtype=accumulate)
        source = output.removesuffix("_out") if output.endswith("_out") else output.removeprefix("d")
        if source not in given:  # the cotangent of a state that the backward op does not read
            return states.new_empty(states.shape)
        if given[source] is None:
            return states.new_empty((0,), dtype=accumulate)
        return given[source].new_empty(given[source].shape)

    def fake(*values: Any) -> Tensor | tuple[Tensor, ...]:
        outputs = tuple(shape_like(output, dict(zip(names, values, strict=True))) for output in returns)
        return outputs if len(outputs) > 1 else outputs[0]

    torch.library.register_fake(op._schema.name, fake)


def _register_derivative(op: OpOverload, backward_op: OpOverload) -> None:
    """The derivative at the Autograd key itself: ``torch.library.register_autograd`` does the same, but walks
    the schema on every call, which costs several times what the rest of a small call does."""
    names, returns = _arguments(op), _returns(op)
    cotangents = [f"d{output}" for output in returns]
    if _arguments(backward_op)[: len(cotangents)] != cotangents:
        raise RuntimeError(f"{backward_op}: its first arguments must be {cotangents}")
    known = names + returns
    needed = [known.index(name) for name in _arguments(backward_op)[len(cotangents) :]]
    tensors = {i for i, argument in enumerate(op._schema.arguments) if "Tensor" in str(argument.type)}
    tensors |= set(range(len(names), len(known)))
    # By the convention of the schemas, tensors stand before numbers.
    saved, constants = [i for i in needed if i in tensors], [i for i in needed if i not in tensors]
    if saved + constants != needed:
        raise RuntimeError(f"{backward_op}: tensors must stand before numbers")
    # Where each input's cotangent stands among the backward op's outputs; None for numbers.
    given_back = _returns(backward_op)
    place = [given_back.index(f"d{name}") if i in tensors else None for i, name in enumerate(names)]

    call_backward = _skipping_autograd(backward_op)

    class Derivative(_Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            with below_autograd():
                outputs = op(*inputs)
            values = inputs + _as_tuple(outputs)
            ctx.save_for_backward(*(values[i] for i in saved))
            ctx.constants = [values[i] for i in constants]
            return outputs

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
            cotangents_of = call_backward(*grads, *ctx.saved_tensors, *ctx.constants)
            return tuple(
                cotangents_of[k] if k is not None and wanted else None
                for k, wanted in zip(place, ctx.needs_input_grad, strict=True)
            )

    Derivative.__name__ = Derivative.__qualname__ = op._schema.name.replace("::", "_")
    _library.impl(op._schema.name, _through(op, Derivative), "Autograd")


def _refuse_derivative(
    backward_op: OpOverload, why: str = "is differentiable only once: there is no derivative of this gradient"
) -> None:
    name = backward_op._schema.name

    class Refusal(_Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            with below_autograd():
                return backward_op(*inputs)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> NoReturn:
            raise RuntimeError(
                f"{name} {why}. "
                "ade_fast.reference has the same equations in eager code, which can be differentiated again."
            )

    _library.impl(name, _through(backward_op, Refusal), "Autograd")


def _skipping_autograd(op: OpOverload) -> Callable[..., Any]:
    """The op without its Autograd kernel where no gradient of it can be wanted: that is half a small call."""

    def call(*values: Any) -> Any:
        if torch.is_grad_enabled():
            return op(*values)
        with below_autograd():
            return op(*values)

    return call


def _through(op: OpOverload, function: type[Any]) -> Callable[..., Any]:
    """An Autograd kernel: the function where a gradient is wanted, else the op itself."""

    def call(*values: Any) -> Any:
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*values):
            if torch._C._are_functorch_transforms_active():
                with enable_single_level_autograd_function():
                    return function.apply(*values)
            return function.apply(*values)
        with below_autograd():
            return op(*values)

    return call


def _register(name: str) -> None:
    op = getattr(torch.ops.ade_fast, name).default
    backward_op = getattr(torch.ops.ade_fast, f"{name}_backward").default
    _register_fake(op)
    _register_fake(backward_op)
    _register_derivative(op, backward_op)
    _refuse_derivative(backward_op)


for _name in (
    "leapfrog_kick",
    "leapfrog_drift",
    "leapfrog_kick_drift",
    "generalized_leapfrog_kick",
    "generalized_leapfrog_drift",
    "generalized_leapfrog_kick_drift",
    "rational_quadratic_spline",
):
    _register(_name)
