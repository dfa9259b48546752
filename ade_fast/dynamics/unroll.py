"""One unroll as one autograd function: runs a program forward, and its hand-written adjoint backward."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

from .._ends import Ends
from .._once import refuse_batched, refuse_derivative
from .._record import Record
from .._slow_paths import note_slow_path
from ..fields import (
    AffineForce,
    AutogradField,
    Draws,
    GradientSide,
    Inputs,
    Layout,
    MLPField,
    Plan,
    Surroundings,
    choose_plan,
    is_observed,
    memory_budget,
    raise_pending,
    without_base,
)
from ..potentials import MLPPotential
from .base import Options, accumulation_dtype
from .diagnostics import Observed, Watched
from .networks import NetworkPair

GradientFunction = Callable[[int, Tensor], Tensor]
# What the methods of a program take: tensors, or None for what is not there (its docstring says which).
Args = tuple[Any, ...]


class Program(Protocol):
    """The steps of one dynamics, over rows, and their adjoint.

    `fused` runs the whole program in one operator, for the potentials that have one (on a base measure or None), or
    returns None where it cannot.
    `as_rows` turns the `args` that it takes into those of all other methods, as functions that autograd sees.
    `networks` are its learned parts and `prepare` finds their inputs (see `NetworkPair.prepare`); it returns the name
    of a captured node or None.
    `forward` may run under autograd (then it must be made of differentiable operations alone) or without; it appends
    what `backward` needs to `saved` when that is a list. `backward` gets the same `args`, the saved tensors and the
    cotangents of the outputs, and returns the cotangents of `args`.
    With a `record`, it writes its momenta and its adjoint's norms to that, and `observe` makes something of the record
    of a whole pass and the `args` that `fused` takes.
    """

    n_kicks: int
    record: Record | None
    hands_on_momentum: bool

    def fused(
        self, field: MLPField, args: Args, gaussian: AffineForce | None, **options: Any
    ) -> tuple[Tensor, ...] | None: ...

    def as_rows(self, args: Args) -> tuple[Tensor | None, ...]: ...

    def networks(self) -> Sequence[NetworkPair]: ...

    def prepare(self, around: Surroundings, args: Args, grad: Tensor, keep: bool) -> str | None: ...

    def forward(self, grad: GradientFunction, args: Args, saved: list[Tensor] | None) -> tuple[Tensor, ...]: ...

    def backward(
        self,
        side: GradientSide,
        args: Args,
        saved: Sequence[Tensor],
        cotangents: tuple[Tensor, ...],
        wants: Sequence[bool],
    ) -> tuple[Tensor | None, ...]: ...

    def observe(self, record: Record, args: Args) -> Observed: ...


class _Unroll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, program: Program, side: GradientSide, n_args: int, *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        args = tensors[:n_args]
        saved: list[Tensor] = []
        outputs = program.forward(side.grad, args, saved)
        grads = side.end_forward()
        ctx.program, ctx.side, ctx.n_args = program, side, n_args
        # Saved through autograd, everything that the potential depends on included: changes in place before the
        # backward pass, where states are evaluated again, raise instead of giving a wrong gradient. What it possibly
        # depends on may change as long as it does not (`Inputs.derivatives`).
        parts: list[GradientSide | NetworkPair] = [side, *program.networks()]
        possible = {id(t) for part in parts for t in part.inputs.possible}
        certain = [None if id(t) in possible else t for t in tensors]
        ctx.save_for_backward(*certain, *saved, *grads, *side.guarded)
        ctx.ends = (len(tensors), len(tensors) + len(saved), len(tensors) + len(saved) + len(grads))
        return outputs

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        first, second, third = ctx.ends
        args, saved, grads = tensors[: ctx.n_args], tensors[first:second], tensors[second:third]
        program, side = ctx.program, ctx.side
        wants = ctx.needs_input_grad[3:]
        refuse_batched(*cotangents)
        raise_pending()
        with torch.no_grad():
            derivatives = _adjoint(program, side, args, saved, grads, cotangents, wants)
        if torch.is_grad_enabled():  # create_graph=True: these gradients have no derivative
            derivatives = refuse_derivative(derivatives, [*tensors[:first], *cotangents])
        return None, None, None, *derivatives


def _adjoint(
    program: Program,
    side: GradientSide,
    args: Args,
    saved: tuple[Tensor, ...],
    grads: tuple[Tensor, ...],
    cotangents: tuple[Tensor, ...],
    wants: tuple[bool, ...],
) -> list[Tensor | None]:
    with side.backward_context(grads):
        for network in program.networks():
            network.begin_backward()
        derivatives = list(program.backward(side, args, saved, cotangents, wants))
        if side.record is not None:
            side.record.end_backward()
        for network in program.networks():
            derivatives += network.finish()
        derivatives += side.finish()
    return [d if wanted else None for d, wanted in zip(derivatives, wants, strict=True)]


def differentiate(
    layer: str,
    potential: Callable[..., Tensor],
    program: Program,
    args: Args,
    layout: Layout,
    options: Options,
    context: tuple[Tensor, ...],
    watched: Watched | None = None,
) -> tuple[tuple[Tensor, ...], Plan | None]:
    """Runs `program` on `args` (x⁰ rows first), differentiable as `options` say; returns outputs and the plan.

    With `watched`, the unroll is written down in it, to be diagnosed.
    """
    if watched is None:
        return _differentiate(layer, potential, program, args, layout, options, context, None)
    program.record, watched.with_momentum = watched, program.hands_on_momentum
    # As they are now: the optimizer's next step, say, comes before anybody looks.
    as_they_are = tuple([None if t is None else t.detach().clone() for t in args])
    found = _differentiate(layer, potential, program, args, layout, options, context, watched)
    watched.observe_by(functools.partial(program.observe, watched, as_they_are))
    return found


def _differentiate(
    layer: str,
    potential: Callable[..., Tensor],
    program: Program,
    args: Args,
    layout: Layout,
    options: Options,
    context: tuple[Tensor, ...],
    record: Record | None,
) -> tuple[tuple[Tensor, ...], Plan | None]:
    """`differentiate`, before anything is made of the record.

    Everything that receives a gradient is an input of one autograd function: x⁰, v⁰, step sizes, the potential's
    effective weights, the leaves that its graph leads to, and the networks' parameters.
    """
    refuse_transforms(layer, args)
    raise_pending()
    args = savable(args)
    if torch.is_inference_mode_enabled():  # where ∇f could not be computed either
        with torch.inference_mode(False), torch.no_grad():
            return _differentiate(layer, potential, program, args, layout, options, context, record)
    x0 = args[0]
    inner, base = without_base(layer, potential, layout, x0, accumulation_dtype(x0.dtype))
    if (fused := _fused(layer, inner, base, program, args, layout, options, record)) is not None:
        if (ends := Ends.current()) is not None:
            ends.belong(potential, x0, fused[0][0], 0.0 if base is None else base.normaliser)
        return fused
    args = savable(program.as_rows(args))
    x0 = args[0]  # the program's: rounded, say
    functions = {"potential": potential} | {k: f for pair in program.networks() for k, f in pair.functions.items()}
    if options.gradient == "none" or not torch.is_grad_enabled():
        with torch.no_grad():
            field = AutogradField(layer, inner, layout, base=base)
            return _without_gradients(field, program, args, functions, record), None

    mode = options.gradient_mode
    around = Surroundings(layer, functions, x0.device, context)
    draws = Draws(x0.device)
    field = AutogradField(layer, inner, layout, around.known, base)
    with around.held():
        with draws.recorded(0):
            first_value = field.first_value(x0)
        reached = [*first_value.facts.known, *first_value.facts.leaves]
        inputs = around.inputs(reached, ["potential"]) if mode == "full" else Inputs()
        if draws or (mode == "full" and not first_value.suits(inputs)):
            first_value.program = None
        if options.memory == "reversible":
            first_value.as_later()
        plan = choose_plan(first_value, options.memory, program.n_kicks)
        side = GradientSide(field, first_value, inputs, plan, mode, program.n_kicks, around, draws, record)
        captured = program.prepare(around, args, side.first_grad(x0), plan.memory == "graph")
        if mode == "full":
            captured = first_value.facts.captured or captured
        network_inputs = [t for network in program.networks() for t in network.inputs.tensors]
        if (why := why_under_autograd([*inputs.tensors, *network_inputs], around, captured)) is not None:
            outputs = _under_autograd(layer, field, program, args, layout, mode, why, record)
            return outputs, Plan("graph", captured=captured)
        side.guarded = tuple(reached) if mode == "truncated" else ()
        differentiable = any(t is not None and t.requires_grad for t in (*args, *network_inputs, *inputs.tensors))
        if not differentiable:
            with torch.no_grad():
                return program.forward(side.grad, args, None), plan
        return _Unroll.apply(program, side, len(args), *args, *network_inputs, *inputs.tensors), plan


def savable(tensors: Args) -> Args:
    """Tensors that were made in inference mode as copies: autograd may not save those."""
    return tuple([t.clone() if t is not None and t.is_inference() else t for t in tensors])


def _without_gradients(
    field: AutogradField,
    program: Program,
    args: Args,
    functions: dict[str, Callable[..., Tensor]],
    record: Record | None,
) -> tuple[Tensor, ...]:
    surroundings = Surroundings(field.layer, functions, args[0].device, differentiable=False)

    def grad(t: int, x: Tensor) -> Tensor:
        if t > 0:
            surroundings.refuse_changed_buffers()
        evaluation = field.evaluate(x)
        whole = field.whole(evaluation.grad, x)
        if record is not None:
            record.evaluated(x, field.whole_value(evaluation.value, x), whole)
        return whole

    with surroundings.held():
        outputs = program.forward(grad, args, None)
        surroundings.refuse_changed_buffers()
    return outputs


def why_under_autograd(
    inputs: Sequence[Tensor],
    around: Surroundings,
    captured: str | None,
    slower: str = "the unroll runs on autograd's own graph (memory='graph', slower)",
) -> str | None:
    """Why the derivatives for `inputs` cannot be taken evaluation by evaluation, or None. slower: what is done then."""
    if captured is not None:
        return (
            f"potential captured a non-leaf tensor that requires grad ({captured}): {slower}. Pass such tensors as "
            f"context="
        )
    if any(map(is_observed, inputs)):
        return f"a parameter has gradient hooks (Tensor.register_hook), or a context retains its gradient: {slower}"
    # An input's derivative would have in it what goes through the other one, which autograd adds once more.
    if any(t in around.behind_known for t in inputs):
        return (
            f"a context or parametrised weight was computed from another tensor that the unroll depends on directly (a "
            f"tied weight, one context behind another): {slower}"
        )
    return None


def refuse_transforms(layer: str, args: Sequence[Tensor | None]) -> None:
    """torch.func cannot see through a hand-written adjoint, and fails deep inside with words about itself; forward-mode
    tangents would be lost."""
    if forward_ad._current_level >= 0 and any(
        t is not None and forward_ad.unpack_dual(t).tangent is not None for t in args
    ):
        raise RuntimeError(
            f"{layer}: forward-mode derivatives do not go through the dynamics: use reverse mode "
            f"(torch.autograd.grad), or the functions of ade_fast.reference"
        )
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise RuntimeError(
            f"{layer}: torch.func transforms (grad, jacrev, vmap, ...) do not go through the dynamics: use "
            f"torch.autograd.grad, or the functions of ade_fast.reference"
        )


def _fused(
    layer: str,
    potential: Callable[..., Tensor],
    base: AffineForce | None,
    program: Program,
    args: Args,
    layout: Layout,
    options: Options,
    record: Record | None,
) -> tuple[tuple[Tensor, ...], Plan | None] | None:
    """The whole unroll in one operator where the potential is an MLP that the kernels know, else None."""
    field = MLPField.match(potential)
    if isinstance(field, MLPField) and layout.event != (field.spec.dim,):
        if type(potential) is MLPPotential:
            raise ValueError(
                f"{layer}: x0 must have shape (B, {field.spec.dim}) for this potential, got (B, "
                f"{', '.join(map(str, layout.event))})"
            )
        return None  # whatever the module makes of such events
    why = field if isinstance(field, str) else field.refuses(args[0])
    if why is None and options.range_of(layer, layout).per_dimension:
        why = "a sample_range per dimension"
    if (
        isinstance(field, str) or why is not None or options.check_finite
    ):  # the operator does not look at its states one by one
        if why is not None and type(potential) is MLPPotential:
            note_slow_path(f"mlp {why}", f"{layer}: the fused MLP kernels do not take this call ({why}): autograd does")
        return None
    keep = _keeps_products(field, program, args[0], options)
    differentiable = torch.is_grad_enabled() and options.gradient != "none"
    try:
        with torch.set_grad_enabled(differentiable), nullcontext() if record is None else record.as_current():
            outputs = program.fused(
                field, args, base, gradient=options.gradient_mode, keep_bits=options.memory != "states",
                keep_products=keep,
            )  # fmt: skip
    except RuntimeError as error:
        if type(error) is not RuntimeError:
            raise
        raise RuntimeError(f"{layer}: potential's layers do not fit each other or x0: {error}") from error
    if outputs is None:
        return None
    if record is not None and base is not None:
        made = record.whole
        assert made is not None  # by the operator
        record.whole = made._replace(
            value=made.value + base.log_density(made.x), gradient=base.added_to(made.gradient, made.x)
        )
    return outputs, Plan("graph" if keep else "states", "mlp", field.spec.piecewise_linear) if differentiable else None


def _keeps_products(field: MLPField, program: Program, x0: Tensor, options: Options) -> bool:
    if x0.device.type == "cuda":  # computes them again
        return False
    if options.memory != "auto":
        return options.memory == "graph"
    return field.spec.product_bytes(len(x0), program.n_kicks - 1, x0.dtype) <= memory_budget(x0.device)


class _TruncatedGradient(torch.autograd.Function):
    """∇f(x) as a function of x alone, eq. (38), and f(x) without a derivative."""

    @staticmethod
    def forward(ctx: Any, field: AutogradField, rows: Tensor) -> tuple[Tensor, Tensor]:
        ctx.field, ctx.evaluation = field, field.evaluate(rows, keep_graph=True)
        ctx.mark_non_differentiable(ctx.evaluation.value)
        return ctx.evaluation.grad, ctx.evaluation.value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor, _: Tensor) -> tuple[None, Tensor | None]:
        return None, ctx.field.vjp(ctx.evaluation, u, (), want_x=True, retain_graph=True)[0]


def _under_autograd(
    layer: str,
    field: AutogradField,
    program: Program,
    args: Args,
    layout: Layout,
    mode: str,
    why: str,
    record: Record | None,
) -> tuple[Tensor, ...]:
    """The same steps on autograd's own graph: reaches non-leaf tensors that the potential captured, and runs hooks on
    parameters once, where the adjoint's own evaluations would run them too."""
    note_slow_path(f"{layer}: {why}", f"{layer}: {why}")

    def grad(t: int, rows: Tensor) -> Tensor:
        if mode == "truncated":
            g, y = _TruncatedGradient.apply(field, rows)
            whole = field.whole(g, rows)
            if record is not None:
                record.evaluated(rows, field.whole_value(y, rows.detach()), whole)
            return whole
        x = layout.events(rows if rows.requires_grad else rows.detach().requires_grad_())
        y = field.value(x)
        (g,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        force = field.whole(layout.rows(g), rows)
        if record is not None:
            record.evaluated(rows, field.whole_value(y.detach(), rows.detach()), force)
        return force.detach() if mode == "stopped" else force

    return program.forward(grad, args, None)
