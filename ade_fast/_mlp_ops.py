"""Fake kernels and derivatives of the MLP operators, ``torch.ops.ade_fast.mlp_*`` (schemas: ``csrc/bind/mlp.cpp``).

They follow the conventions of `_ops`, but take the network's weights as lists. ``mlp_unroll`` is a whole unroll, and
``mlp_unroll_backward`` its whole vector-Jacobian product; ``mlp_field`` is the potential's value and gradient. Each is
differentiable once: the derivative of a ``*_backward`` would need third derivatives of the potential, and raises. What
a call can do without (a Gaussian beside f, annealing, noise) stands last, and is left out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from ._current import Current
from ._ends import Ends
from ._once import refuse_batched, refuse_derivative
from ._ops import _Function, _library, _skipping_autograd, below_autograd, ops
from ._record import Record

Tensors = list[Tensor]

_MAX_BOTTOM_DIMS = 2  # csrc/common/mlp_shape.h
_PIECEWISE_LINEAR = (0, 1)  # of its activations
# Before the weights and the biases:
_STEP_TENSORS = 6  # x0, v0, kick, drift, log_decay, log_stretch
_BRIDGE_TENSORS = 6  # scale, pull, centre, noise_v, noise_x, noise
_UNROLL_TENSORS = _STEP_TENSORS + _BRIDGE_TENSORS
_SCHEDULED_TENSORS = 4  # x0, v0, the two of the schedule
# After them, before what is optional:
_UNROLL_NUMBERS = 14  # activation to keep_products
_FIELD_NUMBERS = 5  # activation to want_grad


def product_columns(dim: int, widths: Sequence[int], piecewise_linear: bool) -> int:
    """Columns of the products that ``mlp_unroll`` keeps on the CPU (csrc/common/mlp_shape.h)."""
    if piecewise_linear and len(widths) > 2 and dim <= _MAX_BOTTOM_DIMS:
        return dim * widths[1] + sum(widths[1:-1])
    return sum(widths[:-1]) + (0 if piecewise_linear else sum(widths[1:]))


def field_columns(dim: int, widths: Sequence[int], piecewise_linear: bool) -> int:
    """Columns of what ``mlp_field`` keeps on the CPU: the products, and values of hidden layers that are not bits."""
    return product_columns(dim, widths, piecewise_linear) + hidden_columns(dim, widths, piecewise_linear)


def hidden_columns(dim: int, widths: Sequence[int], piecewise_linear: bool) -> int:
    """Columns of hidden values that a value's backward pass on the CPU would compute again."""
    if not piecewise_linear:
        return 0
    bottom = len(widths) > 2 and dim <= _MAX_BOTTOM_DIMS
    return sum(widths[1 if bottom else 0 : -1 if len(widths) > 1 else None])


def _register_fakes() -> None:
    @torch.library.register_fake("ade_fast::mlp_unroll")  # type: ignore[untyped-decorator]
    def mlp_unroll(
        x0: Tensor, v0: Tensor, kick: Tensor, drift: Tensor, log_decay: Tensor | None, log_stretch: Tensor | None,
        weights: Tensors, biases: Tensors, activation: int, parameter: float, precision: int, damping: float,
        grad_clip: int, grad_bound: float, momentum_clip: int, momentum_bound: float, lo: float, hi: float,
        stopped: bool, keep_states: bool, keep_bits: bool, keep_products: bool, *optional: Any,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        steps, rows, dim = drift.shape[0], *x0.shape
        x, v = (x0.new_empty((steps + 1, rows, dim) if keep_states else (0,)) for _ in range(2))
        linear, widths = activation in _PIECEWISE_LINEAR, [w.shape[0] for w in weights[:-1]]
        bits = (steps + 1, rows, sum(widths) // 8) if keep_bits and linear else (0,)
        columns = product_columns(dim, widths, linear)
        keep_products = keep_products and x0.device.type != "cuda"
        want_figures, want_ends = (*optional[_BRIDGE_TENSORS:], False, False)[:2]
        hidden = hidden_columns(dim, widths, linear)
        return (
            x0.new_empty(x0.shape), v0.new_empty(v0.shape), x, v, x0.new_empty(bits, dtype=torch.uint8),
            x0.new_empty((steps + 1, columns, rows) if keep_products else (0,)),
            *_figures_like(x0, steps, want_figures),
            *(x0.new_empty((rows,) if want_ends else (0,)) for _ in range(2)),
            x0.new_empty((rows, dim) if want_ends else (0,)),
            x0.new_empty((hidden, rows) if want_ends and keep_products and linear else (0,)),
        )  # fmt: skip

    @torch.library.register_fake("ade_fast::mlp_unroll_backward")  # type: ignore[untyped-decorator]
    def mlp_unroll_backward(
        dx_end: Tensor, dv_end: Tensor, v0: Tensor, kick: Tensor, drift: Tensor, log_decay: Tensor | None,
        log_stretch: Tensor | None, weights: Tensors, biases: Tensors, x: Tensor, v: Tensor, bits: Tensor,
        products: Tensor, activation: int, parameter: float, precision: int, damping: float, grad_clip: int,
        grad_bound: float, momentum_clip: int, momentum_bound: float, lo: float, hi: float, stopped: bool,
        want_weights: bool, dv_all: Tensor | None = None, scale: Tensor | None = None, pull: Tensor | None = None,
        centre: Tensor | None = None, noise_v: Tensor | None = None, noise_x: Tensor | None = None,
        noise: Tensor | None = None, want_adjoint: bool = False, dend_value: Tensor | None = None,
        dend_gradient: Tensor | None = None, hidden: Tensor | None = None, weight_factor: Tensor | None = None,
    ) -> tuple[Tensor | Tensors, ...]:  # fmt: skip
        inputs = (dx_end, dv_end, kick, drift, log_decay, log_stretch, scale, pull, centre, noise_v, noise_x)
        like = [_empty_like(t, dx_end) for t in inputs]
        adjoint = dx_end.new_empty((len(kick), 2, len(dx_end)) if want_adjoint else (0,))
        return (*like, adjoint, *_gradients_like(weights, biases, want_weights))

    @torch.library.register_fake("ade_fast::mlp_field")  # type: ignore[untyped-decorator]
    def mlp_field(
        x: Tensor, weights: Tensors, biases: Tensors, activation: int, parameter: float, precision: int,
        want_value: bool, want_grad: bool, pull: Tensor | None = None, centre: Tensor | None = None,
        value_shift: float = 0.0, keep: bool = False,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        rows, dim = x.shape
        linear, widths = activation in _PIECEWISE_LINEAR, [w.shape[0] for w in weights[:-1]]
        keep = keep and x.device.type != "cuda"
        return (
            x.new_empty(x.shape[:1] if want_value else (0,)), x.new_empty(x.shape if want_grad else (0,)),
            x.new_empty((rows, sum(widths) // 8) if keep and linear else (0,), dtype=torch.uint8),
            x.new_empty((field_columns(dim, widths, linear), rows) if keep else (0,)),
        )  # fmt: skip

    @torch.library.register_fake("ade_fast::mlp_field_backward")  # type: ignore[untyped-decorator]
    def mlp_field_backward(
        dvalue: Tensor | None, dgrad: Tensor | None, x: Tensor, weights: Tensors, biases: Tensors, activation: int,
        parameter: float, precision: int, want_weights: bool, *optional: Any,
    ) -> tuple[Tensor | Tensors, ...]:  # fmt: skip
        return (x.new_empty(x.shape), *_gradients_like(weights, biases, wanted=want_weights))


def _figures_like(x0: Tensor, steps: int, wanted: bool) -> tuple[Tensor, Tensor]:
    value = (steps + 1, len(x0))
    return x0.new_empty(value if wanted else (0,)), x0.new_empty((*value, x0.shape[1]) if wanted else (0,))


def _empty_like(tensor: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty((0,)) if tensor is None else tensor.new_empty(tensor.shape)


def _gradients_like(weights: Tensors, biases: Tensors, wanted: bool) -> tuple[Tensors, Tensors]:
    def fresh(tensors: Tensors) -> Tensors:
        return [t.new_empty(t.shape) for t in tensors] if wanted else []

    return fresh(weights), fresh(biases)


# Overloads, not their packets: resolving those costs small calls as much as a tensor.
_unroll, _field = ops.mlp_unroll.default, ops.mlp_field.default
_NOISE = 1 + [argument.name for argument in _unroll._schema.arguments].index("noise")  # arguments up to the noise
_KEPT = 6  # outputs up to the products
_ENDS = 8  # outputs up to the figures
_unroll_backward = _skipping_autograd(ops.mlp_unroll_backward.default)
_field_backward = _skipping_autograd(ops.mlp_field_backward.default)


class Schedule(NamedTuple):
    """Kicks [T + 1, D] and drifts [T, D], without a graph, and the one or two tensors that they are made of.

    vjp: (dkick, ddrift, which of the tensors' cotangents are wanted) -> those, or None.
    """

    kick: Tensor
    drift: Tensor
    tensors: tuple[Tensor, Tensor | None]
    vjp: Callable[[Tensor, Tensor, Sequence[bool]], tuple[Tensor | None, Tensor | None]]


class WeightGradients(Current):
    """What the backward passes of unrolls that were made while it was current do about the weights' gradients.

    PyTorch does not tell a backward pass which of its derivatives are asked for. Who goes through one graph twice, and
    once for the states' alone, says so by `unwanted`; who goes through it once, with the states' cotangents, where the
    weights have others, says by `differ` how they differ.

    unrolls: how many there are.
    """

    _place = threading.local()

    def __init__(self) -> None:
        self.wanted, self.unrolls = True, 0
        self.factors: tuple[Tensor, Tensor] | None = None

    def differ(self, factor: Tensor, scale: Tensor) -> None:
        """The weights' cotangents are those of the states times a factor of each sample, and times a scale.

        factor: [B] > 0, on the CPU, neither it nor 1 over it near the largest number. scale: a scalar, >= 0.
        """
        self.factors = factor, scale

    @contextmanager
    def unwanted(self) -> Iterator[None]:
        self.wanted = False
        try:
            yield
        finally:
            self.wanted = True


class _Unroll(_Function):
    """Inputs: the numbers of the schema, (want_figures, want_ends), x0, v0, kick, drift, log_decay, log_stretch, scale,
    pull, centre, noise_v, noise_x, noise, weights, biases. With keep_states, v is differentiable; x is not."""

    @staticmethod
    def forward(
        ctx: Any, numbers: Sequence[float], figures: tuple[bool, bool], *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        inputs, weights, biases = _split(tensors, _UNROLL_TENSORS)
        steps, bridge = inputs[:_STEP_TENSORS], inputs[_STEP_TENSORS:]
        *rest, keep_states, keep_bits, keep_products = numbers
        with below_autograd():
            x_end, v_end, x, v, *kept, start, value, gradient, hidden = _unroll(
                *steps, weights, biases, *rest, True, keep_bits, keep_products, *bridge, *figures
            )
        want_figures, want_ends = figures
        ctx.numbers, ctx.decides = rest, _counted(WeightGradients.current())
        ctx.record = Record.current() if want_figures else None
        bits, products, *_ = kept
        ctx.save_for_backward(*tensors, x, v, bits, products, hidden)
        ctx.set_materialize_grads(False)
        if not keep_states:
            x, v = x.new_empty(0), v.new_empty(0)
        absent = [*([] if keep_states else [v]), *([] if want_ends else [value])]
        if not want_ends or rest[0] not in _PIECEWISE_LINEAR:
            absent.append(gradient)
        ctx.mark_non_differentiable(x, *kept, start, hidden, *absent)
        return x_end, v_end, x, v, *kept, start, value, gradient, hidden

    @staticmethod
    def backward(
        ctx: Any, dx_end: Tensor | None, dv_end: Tensor | None, _dx: None, dv_all: Tensor | None, *others: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        *_, dend_value, dend_gradient, _ = others
        refuse_batched(dx_end, dv_end, dend_value, dend_gradient)
        *saved, x, v, bits, products, hidden = ctx.saved_tensors
        inputs, weights, biases = _split(saved, _UNROLL_TENSORS)
        (x0, v0, *steps), bridge = inputs[:_STEP_TENSORS], inputs[_STEP_TENSORS:]
        wanted = ctx.needs_input_grad[2:]
        *dinputs, dweights, dbiases = _go_back(
            dx_end, dv_end, v0, steps, weights, biases, (x, v, bits, products), ctx.numbers,
            _are_wanted(ctx, wanted[_UNROLL_TENSORS:]), dv_all, *bridge, record=ctx.record,
            ends=(dend_value, dend_gradient, hidden), factors=_factors(ctx),
        )  # fmt: skip
        derivatives = [*dinputs, None, *dweights, *dbiases]  # none for the noise
        if torch.is_grad_enabled():  # create_graph=True: x0 is not among the operator's inputs, but they depend on it
            derivatives = refuse_derivative(derivatives, [x0])
        return None, None, *_where(wanted, derivatives)


class _ScheduledUnroll(_Function):
    """Inputs: the numbers of the schema without keep_states, the schedule's vjp, kick, drift, the constants pull and
    centre or none, whether the ends are wanted, x0, v0, the schedule's tensors, weights, biases. Outputs: x_end, v_end,
    and those of `Ends`.

    One node: a graph of kicks and drifts would take a tenth of a small batch's time.
    """

    @staticmethod
    def forward(
        ctx: Any,
        numbers: Sequence[float],
        vjp: Callable[..., Any],
        kick: Tensor,
        drift: Tensor,
        gaussian: Sequence[Tensor],
        want_ends: bool,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        (x0, v0, *steps), weights, biases = _split(tensors, _SCHEDULED_TENSORS)
        *rest, keep_bits, keep_products = numbers
        ctx.record = Record.current()
        with below_autograd():
            (x_end, v_end, *kept), (*ends, hidden) = _recorded(
                ctx.record, want_ends, x0, v0, kick, drift, None, None, weights, biases, *rest, True, keep_bits,
                keep_products, *_as_bridge(gaussian),
            )  # fmt: skip
        ctx.numbers, ctx.vjp, ctx.decides = rest, vjp, _counted(WeightGradients.current())
        # What a derivative's derivative would depend on.
        ctx.step_tensors = [t for t in steps if t is not None and t.requires_grad]
        ctx.save_for_backward(x0, v0, *weights, *biases, kick, drift, *kept, hidden, *gaussian)
        ctx.gaussian = len(gaussian)
        ctx.set_materialize_grads(False)
        start, value, gradient = ends
        ctx.mark_non_differentiable(start, *([] if numbers[0] in _PIECEWISE_LINEAR else [gradient]))
        return x_end, v_end, *((start, value, gradient) if want_ends else ())

    @staticmethod
    def backward(
        ctx: Any,
        dx_end: Tensor | None,
        dv_end: Tensor | None,
        _start: None = None,
        dend_value: Tensor | None = None,
        dend_gradient: Tensor | None = None,
    ) -> tuple[Tensor | None, ...]:
        refuse_batched(dx_end, dv_end, dend_value, dend_gradient)
        saved = list(ctx.saved_tensors)
        gaussian = [saved.pop() for _ in range(ctx.gaussian)][::-1]
        *saved, kick, drift, x, v, bits, products, hidden = saved
        (x0, v0), weights, biases = _split(saved, 2)
        wanted = ctx.needs_input_grad[6:]
        dx0, dv0, dkick, ddrift, *_, dweights, dbiases = _go_back(
            dx_end, dv_end, v0, (kick, drift, None, None), weights, biases, (x, v, bits, products), ctx.numbers,
            _are_wanted(ctx, wanted[_SCHEDULED_TENSORS:]), *((None, *_as_bridge(gaussian)) if gaussian else ()),
            record=ctx.record, ends=(dend_value, dend_gradient, hidden), factors=_factors(ctx),
        )  # fmt: skip
        derivatives = [dx0, dv0, *ctx.vjp(dkick, ddrift, wanted[2:_SCHEDULED_TENSORS]), *dweights, *dbiases]
        if torch.is_grad_enabled():
            derivatives = refuse_derivative(derivatives, [x0, *ctx.step_tensors])
        return None, None, None, None, None, None, *_where(wanted, derivatives)


def _counted(decides: WeightGradients | None) -> WeightGradients | None:
    if decides is not None:
        decides.unrolls += 1
    return decides


def _are_wanted(ctx: Any, weights: Sequence[bool]) -> bool:
    return any(weights) and (ctx.decides is None or ctx.decides.wanted)


def _factors(ctx: Any) -> tuple[Tensor, Tensor] | None:
    return None if ctx.decides is None else ctx.decides.factors


def _as_bridge(gaussian: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """The operators' optional tensors, up to the last that is there: a Gaussian's pull and centre, or nothing."""
    return (None, *gaussian) if gaussian else ()


def _go_back(
    dx_end: Tensor | None,
    dv_end: Tensor | None,
    v0: Tensor,
    steps: Sequence[Tensor | None],
    weights: Tensors,
    biases: Tensors,
    kept: Sequence[Tensor],
    numbers: Sequence[float],
    want_weights: bool,
    *optional: Tensor | bool | None,
    record: Record | None = None,
    ends: Sequence[Tensor | None] = (None, None, None),
    factors: tuple[Tensor, Tensor] | None = None,
) -> tuple[Any, ...]:
    """``mlp_unroll_backward``; `steps` and `kept` are kick to log_stretch, and x to products; ends: the cotangents of
    value and gradient, and what was kept for them. factors: see `WeightGradients.differ`."""
    at_ends = any(t is not None for t in ends[:2])
    if record is not None or at_ends or factors is not None:
        optional = (*optional, *(None,) * (1 + _BRIDGE_TENSORS - len(optional)), record is not None)
        optional = (*optional, *ends) if at_ends or factors is not None else optional
        optional = optional if factors is None else (*optional, factors[0])
    dx_end = torch.zeros_like(v0) if dx_end is None else dx_end
    dv_end = torch.zeros_like(v0) if dv_end is None else dv_end
    stopped = numbers[-1]
    *dinputs, adjoint, dweights, dbiases = _unroll_backward(
        dx_end, dv_end, v0, *steps, weights, biases, *kept, *numbers, want_weights and not stopped, *optional
    )
    if record is not None:
        record.end_fused_backward(adjoint)
    if factors is not None and dweights:
        scaled = torch._foreach_mul([*dweights, *dbiases], factors[1])
        dweights, dbiases = scaled[: len(dweights)], scaled[len(dweights) :]
    return *dinputs, dweights, dbiases


def _recorded(record: Record | None, want_ends: bool, *values: Any) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """``mlp_unroll`` by its values up to those of the bridge: its outputs up to the products, and from the ends' on;
    kept states, f and ∇f go to the record too."""
    if record is None and not want_ends:
        outputs = _unroll(*values)
    else:
        outputs = _unroll(*values, *(None,) * (_NOISE - len(values)), record is not None, want_ends)
    if record is not None:
        _, _, x, v, _, _, value, gradient, *_ = outputs
        record.unrolled(x, v, value, gradient)
    return outputs[:_KEPT], outputs[_ENDS:]


class _Field(_Function):
    """Inputs: the numbers of the schema, what is optional after them (pull, centre, value_shift, keep), x, weights,
    biases."""

    @staticmethod
    def forward(
        ctx: Any, numbers: Sequence[float], optional: Sequence[Tensor | float | None], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        (x,), weights, biases = _split(tensors, 1)
        with below_autograd():
            value, grad, *kept = _field(x, weights, biases, *numbers, *optional)
        ctx.numbers = numbers
        ctx.save_for_backward(*tensors, *(optional[:2] or (None, None)), *kept)
        ctx.set_materialize_grads(False)
        absent = (out for out, want in zip((value, grad), numbers[-2:], strict=True) if not want)
        ctx.mark_non_differentiable(*absent, *kept)
        return value, grad, *kept

    @staticmethod
    def backward(ctx: Any, dvalue: Tensor | None, dgrad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        refuse_batched(dvalue, dgrad)
        *saved, pull, centre, bits, products = ctx.saved_tensors
        (x,), weights, biases = _split(saved, 1)
        *network, want_value, want_grad = ctx.numbers
        wanted = ctx.needs_input_grad[2:]
        dx, dweights, dbiases = _field_backward(
            dvalue if want_value else None, dgrad if want_grad else None,
            x, weights, biases, *network, any(wanted[1:]), pull, centre, bits, products,
        )  # fmt: skip
        return None, None, *_where(wanted, [dx, *dweights, *dbiases])


def _split(tensors: Sequence[Any], first: int) -> tuple[tuple[Any, ...], Tensors, Tensors]:
    """(the first tensors, or None, weights, biases)."""
    layers = (len(tensors) - first) // 2
    return tuple(tensors[:first]), list(tensors[first : first + layers]), list(tensors[first + layers :])


def _where(wanted: Sequence[bool], derivatives: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The derivatives that are wanted; those of the weights are missing at the end where none is."""
    derivatives = [*derivatives, *[None] * (len(wanted) - len(derivatives))]
    return [d if want else None for d, want in zip(derivatives, wanted, strict=True)]


def wants_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd records an operation on these tensors."""
    return torch.is_grad_enabled() and torch._C._any_requires_grad(*tensors)


def scheduled_unroll(
    schedule: Schedule,
    x0: Tensor,
    v0: Tensor,
    weights: Tensors,
    biases: Tensors,
    numbers: Sequence[float],
    gaussian: Sequence[Tensor] = (),
    ends: Ends | None = None,
) -> tuple[Tensor, Tensor]:
    """(x_end, v_end) of ``mlp_unroll``, differentiable by the tensors that `schedule` was made of.

    numbers: those of the schema, without keep_states. gaussian: pull and centre, constants, or nothing. ends: are told,
    where gradients are recorded.
    """
    _refuse_gradients("scheduled_unroll", pull_and_centre=gaussian)
    kick, drift, steps, vjp = schedule
    tensors = (x0, v0, *steps, *weights, *biases)
    if wants_grad(*tensors):
        x_end, v_end, *found = _ScheduledUnroll.apply(numbers, vjp, kick, drift, gaussian, ends is not None, *tensors)
        if ends is not None:
            start, value, gradient = found
            ends.found(x_end, start, value, gradient if numbers[0] in _PIECEWISE_LINEAR else None)
        return x_end, v_end
    record = Record.current()
    with below_autograd():
        outputs, _ = _recorded(
            record, False, x0, v0, kick, drift, None, None, weights, biases, *numbers[:-2], record is not None, False,
            False, *_as_bridge(gaussian),
        )  # fmt: skip
    x_end, v_end, *_ = outputs
    return x_end, v_end


def _refuse_gradients(name: str, **constants: Sequence[Tensor | float | None]) -> None:
    """Raises where autograd would record constants: they get no gradient."""
    for what, values in constants.items():
        if wants_grad(*(t for t in values if isinstance(t, Tensor))):
            raise ValueError(f"{name}: {what.replace('_', ' ')} must not require grad: no gradient is computed for it")


def _register_derivatives() -> None:
    def unroll(
        x0: Tensor, v0: Tensor, kick: Tensor, drift: Tensor, log_decay: Tensor | None, log_stretch: Tensor | None,
        weights: Tensors, biases: Tensors, *rest: Any,
    ) -> Any:  # fmt: skip
        numbers, bridge = rest[:_UNROLL_NUMBERS], rest[_UNROLL_NUMBERS:]
        bridge, figures = bridge[:_BRIDGE_TENSORS], (*bridge[_BRIDGE_TENSORS:], False, False)[:2]
        steps = (x0, v0, kick, drift, log_decay, log_stretch)
        if len(bridge) == _BRIDGE_TENSORS:
            _refuse_gradients("mlp_unroll", noise=bridge[-1:])
        if wants_grad(*steps, *bridge, *weights, *biases):
            absent = (None,) * (_BRIDGE_TENSORS - len(bridge))
            return _Unroll.apply(numbers, figures, *steps, *bridge, *absent, *weights, *biases)
        with below_autograd():
            return _unroll(*steps, weights, biases, *rest)

    def field(x: Tensor, weights: Tensors, biases: Tensors, *rest: Any) -> Any:
        numbers, optional = rest[:_FIELD_NUMBERS], rest[_FIELD_NUMBERS:]
        _refuse_gradients("mlp_field", pull_and_centre=optional)
        if wants_grad(x, *weights, *biases):
            return _Field.apply(numbers, optional, x, *weights, *biases)
        with below_autograd():
            return _field(x, weights, biases, *rest)

    _library.impl("mlp_unroll", unroll, "Autograd")
    _library.impl("mlp_field", field, "Autograd")
    for name in ("mlp_unroll_backward", "mlp_field_backward"):
        _library.impl(name, _refusing(getattr(ops, name), name), "Autograd")


def _refusing(op: Any, name: str) -> Callable[..., Any]:
    """An Autograd kernel for an op whose outputs are known to depend on its inputs, but have no derivative."""

    want_weights = [argument.name for argument in op.default._schema.arguments].index("want_weights")

    class Refusal(_Function):
        @staticmethod
        def forward(ctx: Any, values: tuple[Any, ...], *_tensors: Tensor) -> tuple[Tensor, ...]:
            with below_autograd():
                *singles, dweights, dbiases = op(*values)
            return (*singles, *dweights, *dbiases)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> NoReturn:
            raise RuntimeError(
                f"ade_fast::{name} is differentiable only once: its derivative would need third derivatives of the "
                "potential. ade_fast.reference has the same equations in eager code, which can be differentiated again."
            )

    def call(*values: Any) -> Any:
        tensors = [
            t for value in values for t in (value if isinstance(value, list) else [value]) if isinstance(t, Tensor)
        ]
        if not wants_grad(*tensors):
            with below_autograd():
                return op(*values)
        outputs = Refusal.apply(values, *tensors)
        layers = sum(len(value) for value in values if isinstance(value, list)) // 2
        if not values[want_weights]:
            return (*outputs, [], [])
        singles = len(outputs) - 2 * layers
        return (*outputs[:singles], list(outputs[singles : singles + layers]), list(outputs[singles + layers :]))

    return call


_register_fakes()
_register_derivatives()
