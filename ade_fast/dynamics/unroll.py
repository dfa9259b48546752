"""One unroll as one autograd function: runs a program forward, and its hand-written adjoint backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

from .._once import refuse_derivative
from .._slow_paths import note_slow_path
from ..fields import (
    AutogradField,
    GradientSide,
    Layout,
    MLPField,
    NotPiecewiseLinear,
    Plan,
    choose_plan,
    effective_weights,
    keeps_kinks,
    memory_budget,
    modules_of,
    own_parameters,
    pinned_to,
)
from ..potentials import MLPPotential
from .base import Options
from .networks import NetworkPair

GradientFunction = Callable[[int, Tensor], Tensor]


class Program(Protocol):
    """The steps of one dynamics, over rows, and their adjoint.

    `fused` runs the whole program in one operator, for the potentials that have one, or returns None where it cannot.
    `networks` are its learned parts and `prepare` finds their inputs (see `NetworkPair.prepare`).
    `forward` may run under autograd (then it must be made of differentiable operations alone) or without; it appends
    what `backward` needs to `saved` when that is a list. `backward` gets the same `args`, the saved tensors and the
    cotangents of the outputs, and returns the cotangents of `args`.
    """

    n_kicks: int

    def fused(self, field: MLPField, args: tuple, **options) -> tuple[Tensor, ...] | None: ...

    def networks(self) -> Sequence[NetworkPair]: ...

    def prepare(
        self, known: Sequence[Tensor], args: tuple, grad: Tensor, keep: bool
    ) -> tuple[list[Tensor], str | None]: ...

    def forward(self, grad: GradientFunction, args: tuple, saved: list[Tensor] | None) -> tuple[Tensor, ...]: ...

    def backward(
        self,
        side: GradientSide,
        args: tuple,
        saved: Sequence[Tensor],
        cotangents: tuple,
        wants: Sequence[bool],
    ) -> tuple: ...


class _Unroll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, program: Program, side: GradientSide, n_args: int, *tensors: Tensor | None):
        args, saved = tensors[:n_args], []
        outputs = program.forward(side.grad, args, saved)
        grads = side.take_grads()
        ctx.program, ctx.side, ctx.n_args = program, side, n_args
        # Saved through autograd, everything that the potential depends on included: changes in place before the
        # backward pass, where states are evaluated again, raise instead of giving a wrong gradient.
        ctx.save_for_backward(*tensors, *saved, *grads, *side.guarded)
        ctx.ends = (len(tensors), len(tensors) + len(saved), len(tensors) + len(saved) + len(grads))
        return outputs

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor):
        tensors = ctx.saved_tensors
        first, second, third = ctx.ends
        args, saved, grads = tensors[: ctx.n_args], tensors[first:second], tensors[second:third]
        program, side = ctx.program, ctx.side
        wants = ctx.needs_input_grad[3:]
        with torch.no_grad():
            try:
                derivatives = _adjoint(program, side, args, saved, grads, cotangents, wants)
            except NotPiecewiseLinear:
                note_slow_path(
                    "not piecewise linear",
                    "a potential was piecewise linear at the first step of an unroll and is not at a later one "
                    "(control flow that depends on x): its backward pass runs step by step",
                )
                side.as_smooth()
                derivatives = _adjoint(program, side, args, saved, grads, cotangents, wants)
        if torch.is_grad_enabled():  # create_graph=True: these gradients have no derivative
            derivatives = refuse_derivative(derivatives, [*tensors[:first], *cotangents])
        return None, None, None, *derivatives


def _adjoint(
    program: Program,
    side: GradientSide,
    args: tuple,
    saved: tuple,
    grads: tuple,
    cotangents: tuple,
    wants: tuple,
) -> list[Tensor | None]:
    with side.backward_context(grads):
        derivatives = list(program.backward(side, args, saved, cotangents, wants))
        for network in program.networks():
            derivatives += network.finish()
        derivatives += side.finish()
    return [d if wanted else None for d, wanted in zip(derivatives, wants, strict=True)]


def differentiate(
    layer: str,
    potential: Callable,
    program: Program,
    args: tuple[Tensor | None, ...],
    layout: Layout,
    options: Options,
    context: tuple[Tensor, ...],
) -> tuple[tuple[Tensor, ...], Plan | None]:
    """Runs `program` on `args` (x⁰ rows first), differentiable as `options` say; returns outputs and the plan.

    Everything that receives a gradient is an input of one autograd function: x⁰, v⁰, step sizes, the potential's
    effective weights, the leaves that its graph leads to, and the networks' parameters.
    """
    _refuse_transforms(layer, args)
    args = tuple(t.clone() if t is not None and t.is_inference() else t for t in args)  # autograd may not save those
    if torch.is_inference_mode_enabled():  # where ∇f could not be computed either
        with torch.inference_mode(False), torch.no_grad():
            return differentiate(layer, potential, program, args, layout, options, context)
    x0 = args[0]
    if (fused := _fused(layer, potential, program, args, layout, options)) is not None:
        return fused
    modules = modules_of(potential, *(f for network in program.networks() for f in network.functions))
    if options.gradient == "none" or not torch.is_grad_enabled():
        with torch.no_grad(), pinned_to(modules, effective_weights(modules)):
            field = AutogradField(layer, potential, layout)
            return program.forward(lambda t, x: field.gradient(x), args, None), None

    weights = effective_weights(modules)
    with pinned_to(modules, weights):
        mode = options.gradient_mode
        known = tuple(t for t in (*weights, *context) if t.requires_grad)
        field = AutogradField(layer, potential, layout, known)
        first_value = field.first_value(x0)
        reached = [*first_value.facts.known, *first_value.facts.leaves]
        inputs = reached if mode == "full" else []
        n_certain = len(inputs)
        if mode == "full" and not context:
            # Control flow may lead to parameters that x⁰ does not reach. (Not with a context: the parameters behind
            # it get their gradients through it.)
            there = {id(t) for t in reached}
            inputs = inputs + [p for p in own_parameters(modules_of(potential)) if id(p) not in there]
        plan = choose_plan(first_value, options.memory, program.n_kicks)
        kinks = keeps_kinks(plan, mode, inputs)
        tape = plan.memory == "graph" and not plan.piecewise_linear and mode != "stopped"
        first = first_value.gradient(keep_graph=tape, keep_kinks=kinks)
        captured = first_value.facts.captured if mode == "full" else None
        network_inputs, captured_there = program.prepare(known, args, first.grad, plan.memory == "graph")
        captured = captured or captured_there
        if captured is not None or any(t._backward_hooks for t in (*inputs, *network_inputs)):
            outputs = _under_autograd(layer, field, program, args, layout, mode, captured)
            return outputs, Plan("graph", captured=captured)
        side = GradientSide(
            field, first, inputs, n_certain, plan, mode, program.n_kicks, modules, weights, x0.device,
            first_value.constants,
        )  # fmt: skip
        side.guarded = () if inputs else tuple(reached)
        differentiable = any(t is not None and t.requires_grad for t in (*args, *network_inputs, *inputs))
        if not differentiable:
            with torch.no_grad():
                return program.forward(side.grad, args, None), plan
        return _Unroll.apply(program, side, len(args), *args, *network_inputs, *inputs), plan


def _refuse_transforms(layer: str, args: Sequence[Tensor | None]) -> None:
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
    layer: str, potential: Callable, program: Program, args: tuple, layout: Layout, options: Options
) -> tuple[tuple[Tensor, ...], Plan] | None:
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
    if why is not None or options.check_finite:  # the operator does not look at its states one by one
        if why is not None and type(potential) is MLPPotential:
            note_slow_path(f"mlp {why}", f"{layer}: the fused MLP kernels do not take this call ({why}): autograd does")
        return None
    keep = _keeps_products(field, program, args[0], options)
    with torch.set_grad_enabled(torch.is_grad_enabled() and options.gradient != "none"):
        outputs = program.fused(
            field, args, gradient=options.gradient_mode, keep_bits=options.memory != "states", keep_products=keep
        )
    memory = "graph" if keep else "states"
    return None if outputs is None else (outputs, Plan(memory, "mlp", field.spec.piecewise_linear))


def _keeps_products(field: MLPField, program: Program, x0: Tensor, options: Options) -> bool:
    if options.memory != "auto":
        return options.memory == "graph"
    return field.spec.product_bytes(len(x0), program.n_kicks - 1, x0.dtype) <= memory_budget(x0.device)


class _TruncatedGradient(torch.autograd.Function):
    """∇f(x) as a function of x alone, eq. (38)."""

    @staticmethod
    def forward(ctx: Any, field: AutogradField, rows: Tensor) -> Tensor:
        ctx.field, ctx.evaluation = field, field.evaluate(rows, keep_graph=True)
        return ctx.evaluation.grad

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor):
        return None, ctx.field.vjp(ctx.evaluation, u, (), want_x=True, retain_graph=True)[0]


def _under_autograd(
    layer: str, field: AutogradField, program: Program, args: tuple, layout: Layout, mode: str, captured: str | None
) -> tuple[Tensor, ...]:
    """The same steps on autograd's own graph: reaches non-leaf tensors that the potential captured, and runs hooks on
    parameters once, where the adjoint's own evaluations would run them too."""
    slower = "the unroll runs on autograd's own graph (memory='graph', slower)"
    if captured is None:
        note_slow_path(f"hooks {layer}", f"{layer}: a parameter has gradient hooks (Tensor.register_hook): {slower}")
    else:
        note_slow_path(
            f"captured {layer}",
            f"{layer}: potential captured a non-leaf tensor that requires grad ({captured}): {slower}. Pass such "
            f"tensors as context=",
        )

    def grad(t: int, rows: Tensor) -> Tensor:
        if mode == "truncated":
            return _TruncatedGradient.apply(field, rows)
        x = layout.events(rows if rows.requires_grad else rows.detach().requires_grad_())
        y = field.value(x)
        (g,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return layout.rows(g.detach() if mode == "stopped" else g)

    return program.forward(grad, args, None)
