"""What all dynamics share: their output, their options, and the checks of their arguments."""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn

from .._log import P, R, logged
from .._merged_steps_op import merged_steps, merged_steps_vjp
from .._ops import is_plain_on_cpu
from .._tensors import tensor
from ..fields import GradientMode, Layout, Plan, Schedule, generalized_kicks, probe_potential
from ..potentials.conditioned import Condition, conditioned
from .diagnostics import Alarm, Diagnostics, Watched
from .sample_range import Bound, SampleRange, checked_range

_STEPS = ("step_size", "momentum_step_size")
_STATE_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
_GRADIENTS = ("full", "truncated", "stopped", "none")
_MEMORY = ("graph", "masks", "states", "reversible", "auto")
_REVERSIBLE = ("Leapfrog", "DampedLeapfrog", "leapfrog", "damped_leapfrog")


class DynamicsOutput(NamedTuple):
    """End of an unroll.

    x: x^T, [B, *event]. v: v^T, [B, *momentum], or None where there is no momentum. log_det:
    log|det ∂(x^T, v^T)/∂(x⁰, v⁰)|, [B].
    """

    x: Tensor
    v: Tensor | None
    log_det: Tensor


class NonFiniteError(RuntimeError):
    """A state, a loss or a gradient is NaN or infinite."""


def is_number(value: object) -> TypeGuard[float]:
    """A real number, numpy's included, and no truth value."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


@dataclass(frozen=True)
class Clip:
    """A clip of ∇f or of the momentum: `Clip.value(c)` or `Clip.norm(c)`.

    mode "value": each element to [-c, c], with derivative 1 on the closed interval. mode "norm": each sample's L2 norm
    to at most c; the factor is 1 with zero derivative at norm 0.

    Raises: ValueError, TypeError: there is no such mode; bound is not a positive, finite number.
    """

    mode: Literal["value", "norm"]
    bound: float

    def __post_init__(self) -> None:
        if self.mode not in ("value", "norm"):
            raise ValueError(f"Clip: mode must be 'value' or 'norm', got {self.mode!r}")
        if not is_number(self.bound):
            raise TypeError(f"Clip: bound must be a number, got {type(self.bound).__name__}")
        if not (self.bound > 0 and math.isfinite(self.bound)):
            raise ValueError(f"Clip: bound must be positive and finite, got {self.bound}")

    @classmethod
    def value(cls, bound: float) -> Clip:
        """Each element to [-bound, bound]."""
        return cls("value", bound)

    @classmethod
    def norm(cls, bound: float) -> Clip:
        """Each sample's L2 norm to at most bound."""
        return cls("norm", bound)


def clip_code(clip: Clip | None) -> tuple[int, float]:
    """(mode, bound) as the ops take them."""
    return (0, 0.0) if clip is None else ({"value": 1, "norm": 2}[clip.mode], float(clip.bound))


@dataclass(frozen=True)
class Options:
    """Options that all dynamics take; see `Leapfrog` for their meaning."""

    grad_clip: Clip | None = None
    momentum_clip: Clip | None = None
    sample_range: tuple[Bound, Bound] | None = None
    gradient: Literal["full", "truncated", "stopped", "none"] = "full"
    memory: Literal["graph", "masks", "states", "reversible", "auto"] = "auto"
    check_finite: bool = False
    check_potential: bool = False

    def validate(self, layer: str) -> None:
        for name in ("grad_clip", "momentum_clip"):
            clip = getattr(self, name)
            if clip is not None and not isinstance(clip, Clip):
                raise TypeError(
                    f"{layer}: {name} must be ade.Clip.value(c), ade.Clip.norm(c) or None, got {type(clip).__name__}"
                )
        if self.gradient not in _GRADIENTS:
            raise ValueError(f"{layer}: gradient must be one of {_GRADIENTS}, got {self.gradient!r}")
        if self.memory not in _MEMORY:
            raise ValueError(f"{layer}: memory must be one of {_MEMORY}, got {self.memory!r}")
        if self.memory == "reversible" and layer not in _REVERSIBLE:
            raise ValueError(
                f"{layer}: memory='reversible' is there for Leapfrog and DampedLeapfrog alone; use 'states'"
            )
        for name in ("check_finite", "check_potential"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{layer}: {name} must be True or False, got {getattr(self, name)!r}")
        if self.sample_range is not None:
            object.__setattr__(self, "sample_range", checked_range(layer, self.sample_range))

    def range_of(self, layer: str, layout: Layout) -> SampleRange:
        """`sample_range` for states of that layout."""
        return SampleRange(layer, self.sample_range, layout)

    def clip_codes(self) -> tuple[int, float, int, float]:
        """Of `grad_clip` and `momentum_clip`, as the ops take them."""
        return *clip_code(self.grad_clip), *clip_code(self.momentum_clip)

    @property
    def gradient_mode(self) -> GradientMode:
        return "full" if self.gradient == "none" else self.gradient


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of step sizes, scales and log-determinants of states of `dtype`."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def check_n_steps(layer: str, n_steps: object) -> int:
    if isinstance(n_steps, bool) or not isinstance(n_steps, numbers.Integral):
        raise TypeError(f"{layer}: n_steps must be an integer, got {type(n_steps).__name__}")
    if n_steps < 1:
        raise ValueError(f"{layer}: n_steps must be at least 1, got {n_steps}")
    return int(n_steps)


def check_real(layer: str, tensor: Tensor, name: str) -> Tensor:
    """A tensor of numbers: neither complex nor of truth values."""
    if tensor.dtype.is_complex or tensor.dtype == torch.bool:
        raise TypeError(f"{layer}: {name} must be real, got {tensor.dtype}")
    return tensor


def check_step_size(layer: str, step_size: object, name: str = "step_size", dtype: torch.dtype | None = None) -> Tensor:
    """A step size as a new floating-point tensor, of the shape that was given; a number in `dtype`, or the default."""
    if isinstance(step_size, Tensor):
        check_real(layer, step_size, name)
        step = step_size.detach().clone() if step_size.is_floating_point() else step_size.to(torch.get_default_dtype())
    elif is_number(step_size):
        step = torch.tensor(float(step_size), dtype=dtype or torch.get_default_dtype())
    else:
        raise TypeError(f"{layer}: {name} must be a number or a tensor, got {type(step_size).__name__}")
    if not bool(torch.isfinite(step).all()):
        raise ValueError(f"{layer}: {name} must be finite, got {_first(step, ~torch.isfinite(step))}")
    if not bool((step > 0).all()):
        raise ValueError(f"{layer}: {name} must be positive, got {_first(step, step <= 0)}")
    return step


def _first(values: Tensor, wrong: Tensor) -> float:
    return values[wrong].flatten()[0].item()


def check_x0(layer: str, x0: object) -> Tensor:
    x0 = tensor(layer, "x0", x0)
    if x0.dtype not in _STATE_DTYPES:
        raise TypeError(f"{layer}: x0 must be float32, float64 or bfloat16, got {x0.dtype}")
    if x0.layout is not torch.strided:
        raise TypeError(f"{layer}: x0 must be a dense tensor, got layout {x0.layout}")
    if x0.dim() < 2:
        raise ValueError(f"{layer}: x0 must have shape (B, *event), got {tuple(x0.shape)}")
    return x0


def check_v0(layer: str, v0: object, x0: Tensor, momentum: tuple[int, ...]) -> Tensor:
    if not isinstance(v0, Tensor):
        raise TypeError(f"{layer}: v0 must be a tensor or None, got {type(v0).__name__}")
    wanted = (x0.shape[0], *momentum)
    if tuple(v0.shape) != wanted:
        same = momentum == tuple(x0.shape[1:])
        raise ValueError(
            f"{layer}: v0 must have {'x0' + chr(39) + 's shape' if same else 'shape'} {wanted}, got {tuple(v0.shape)}"
        )
    if v0.dtype != x0.dtype:
        raise TypeError(f"{layer}: v0 must have x0's dtype {x0.dtype}, got {v0.dtype}")
    if v0.device != x0.device:
        raise ValueError(f"{layer}: v0 must be on x0's device {x0.device}, got {v0.device}")
    return v0


def check_generator(layer: str, generator: object, x0: Tensor) -> None:
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"{layer}: generator must be a torch.Generator or None, got {type(generator).__name__}")
    if generator is not None and generator.device.type != x0.device.type:
        raise ValueError(f"{layer}: generator must be on x0's device {x0.device}, got {generator.device}")


def draw_momentum(layer: str, x0: Tensor, momentum: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """v⁰ ~ N(0, I)."""
    check_generator(layer, generator, x0)
    return torch.randn((x0.shape[0], *momentum), generator=generator, dtype=x0.dtype, device=x0.device)


def check_potential(layer: str, potential: object, x0: Tensor, probe: bool) -> Callable[..., Tensor]:
    if not callable(potential):
        raise TypeError(f"{layer}: potential must be callable, (B, *event) -> (B,), got {type(potential).__name__}")
    if isinstance(potential, nn.Module):
        parameter = _first_parameter(potential)
        if parameter is not None and parameter.device != x0.device:
            raise ValueError(
                f"{layer}: potential's parameters are on {parameter.device}, x0 is on {x0.device}: "
                f"move one of them with .to(...)"
            )
    if probe:
        probe_potential(layer, potential, x0.detach())
    return potential


def _first_parameter(module: nn.Module) -> Tensor | None:
    """``next(module.parameters(), None)``, which takes longer than all other checks together."""
    for parameter in module._parameters.values():
        if parameter is not None:
            return parameter
    for child in module._modules.values():
        if child is not None and (found := _first_parameter(child)) is not None:
            return found
    return None


def check_context(layer: str, context: object) -> tuple[Tensor, ...]:
    """Tensors that the potential captured and that are to receive gradients."""
    if context is None:
        return ()
    tensors = (context,) if isinstance(context, Tensor) else context
    if not isinstance(tensors, (tuple, list)) or not all(isinstance(t, Tensor) for t in tensors):
        raise TypeError(f"{layer}: context must be a tensor, a tuple of tensors or None, got {type(context).__name__}")
    return tuple(tensors)


def step_rows(
    layer: str,
    step: Tensor,
    n_steps: int,
    layout: Layout,
    x0: Tensor,
    name: str = "step_size",
    what: str = "event",
) -> Tensor:
    """A step size as one row per step, [T, D], or for all of them, [1, D], in the accumulation dtype; differentiable.

    A tensor with one dimension more than the event has one step size per step along its first axis.
    """
    event = layout.event
    if step.device != x0.device and step.dim() > 0:
        raise ValueError(f"{layer}: {name} is on {step.device}, x0 is on {x0.device}: move the layer with .to(...)")
    per_step = step.dim() == 1 + len(event)
    if per_step and step.shape[0] != n_steps:
        raise ValueError(
            f"{layer}: {name} with one row per step must have {n_steps} rows, got shape {tuple(step.shape)}"
        )
    step = step.to(device=x0.device, dtype=accumulation_dtype(x0.dtype))
    try:
        shaped = step.expand(n_steps if per_step else 1, *event)
    except RuntimeError:
        raise ValueError(
            f"{layer}: {name} must be a number or broadcast to the {what} {event}, with or without a leading axis of "
            f"{n_steps} steps, got shape {tuple(step.shape)}"
        ) from None
    return shaped if len(event) == 1 else layout.rows(shaped)


def merged_kicks(eta: Tensor, n_steps: int) -> Tensor:
    """[T, D] or [1, D] step sizes -> [T + 1, D] steps of the merged kicks: η⁰/2, (ηᵗ⁻¹ + ηᵗ)/2, ηᵀ⁻¹/2."""
    if len(eta) == 1:
        kick = eta.expand(n_steps + 1, -1).clone()
        kick[::n_steps].mul_(0.5)  # the first and the last
        return kick
    return generalized_kicks(0.5 * eta, None)[0]


def add_merged_kicks_vjp(terms: Tensor, dkick: Tensor) -> Tensor:
    """terms [T, D] + the cotangent of the step sizes: each is in the kicks at both of its ends."""
    return torch.add(terms, dkick[:-1], alpha=0.5).add_(dkick[1:], alpha=0.5)


@dataclass(frozen=True)
class MergedSteps:
    """Kicks and drifts of leapfrog from step sizes as the layers hold them. drift_step: the drifts' own, or None."""

    layer: str
    n_steps: int
    layout: Layout
    step_size: Tensor
    drift_step: Tensor | None = None

    def rows(self, x0: Tensor, compact: bool = False) -> tuple[Tensor, Tensor]:
        """(kick steps [T + 1, D], drift steps [T, D]) for states like `x0`, as functions that autograd sees. compact:
        [T + 1, 1] and [T, 1] where they are the same in all dimensions.

        Raises: ValueError, as `step_rows`.
        """
        eta = step_rows(self.layer, self.step_size, self.n_steps, self.layout, x0)
        if self.drift_step is None:
            drift = eta
        else:
            drift = step_rows(self.layer, self.drift_step, self.n_steps, self.layout, x0, "drift_step")
        if compact:
            drift_step = self.step_size if self.drift_step is None else self.drift_step
            eta = eta[:, :1] if self._is_uniform(self.step_size) else eta
            drift = drift[:, :1] if self._is_uniform(drift_step) else drift
        return merged_kicks(eta, self.n_steps), drift.expand(self.n_steps, -1)

    def _is_uniform(self, step: Tensor) -> bool:
        return step.numel() == 1 or (step.dim() > len(self.layout.event) and step[0].numel() == 1)

    def step_rows(self, x0: Tensor, step_size: Tensor) -> Tensor:
        """Rows [T, D] or [1, D] of a step size like `step_size`."""
        return step_rows(self.layer, step_size, self.n_steps, self.layout, x0)

    def schedule(self, x0: Tensor) -> Schedule:
        """The same for the MLP operators: numbers of their own, whatever becomes of the step sizes."""
        with torch.no_grad():
            if self.drift_step is None and is_plain_on_cpu(x0.detach()):
                kick, drift = merged_steps(self.step_rows(x0, self.step_size).detach(), self.n_steps)
            else:
                kick, drift = self.rows(x0)
                drift = drift.clone()
            return Schedule(kick, drift, (self.step_size, self.drift_step), self._vjp)

    def _vjp(self, dkick: Tensor, ddrift: Tensor, wanted: Sequence[bool]) -> tuple[Tensor | None, Tensor | None]:
        dstep = ddrift_step = None
        if wanted[0]:
            own = ddrift if self.drift_step is None else None
            if is_plain_on_cpu(dkick):
                rows = merged_steps_vjp(dkick, own, self.step_size.dim() > len(self.layout.event))
            else:
                rows = add_merged_kicks_vjp(torch.zeros_like(ddrift) if own is None else own, dkick)
            dstep = self._summed(rows, self.step_size)
        if wanted[1]:
            assert self.drift_step is not None  # it is wanted
            ddrift_step = self._summed(ddrift, self.drift_step)
        return dstep, ddrift_step

    def _summed(self, rows: Tensor, step: Tensor) -> Tensor:
        """Cotangents of rows, [T, D] -> the step's, over all that it is broadcast to."""
        rows = self.layout.events(rows)
        rows = rows.reshape(step.shape) if rows.numel() == step.numel() else rows.sum_to_size(step.shape)
        return rows.to(device=step.device, dtype=step.dtype)


def zero_log_det(x0: Tensor) -> Tensor:
    """[B] zeros in the accumulation dtype."""
    return torch.zeros(x0.shape[0], dtype=accumulation_dtype(x0.dtype), device=x0.device)


def check_finite(enabled: bool, layer: str, t: int, n_steps: int, *states: Tensor) -> None:
    """Raises NonFiniteError if a state is not finite after step t (from 0)."""
    if enabled and not all(bool(torch.isfinite(s).all()) for s in states):
        raise NonFiniteError(
            f"{layer}: a state is not finite after step {t + 1} of {n_steps}: reduce step_size, or set grad_clip and "
            f"momentum_clip"
        )


def outside_of_graphs(run: Callable[P, R]) -> Callable[P, R]:
    """`torch.compile` leaves `run` to Python: its graphs have no second derivatives, which an unroll of a potential
    takes. And where ADE_FAST_LOG asks for it, calls are written down."""
    run = logged(run)
    eager: Callable[P, R] = torch._disable_dynamo(run)  # type: ignore[attr-defined]

    @functools.wraps(run)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return (eager if torch.compiler.is_dynamo_compiling() else run)(*args, **kwargs)

    return call


def conditional(forward: Callable[..., R]) -> Callable[..., R]:
    """Gives a layer's ``forward`` an argument ``condition=``, of a potential that is called as f(x, condition)."""

    @functools.wraps(forward)
    def call(
        layer: nn.Module,
        potential: Callable[..., Tensor],
        x0: Tensor,
        v0: Tensor | None = None,
        *,
        condition: Condition | None = None,
        **options: Any,
    ) -> R:
        return forward(layer, at_condition(type(layer).__name__, potential, condition, x0), x0, v0, **options)

    return call


def at_condition(
    layer: str, potential: Callable[..., Tensor], condition: Condition | None, x0: Tensor
) -> Callable[..., Tensor]:
    """The potential as a function of x alone, for states like `x0`."""
    if condition is None:
        return potential
    check_x0(layer, x0)
    return conditioned(layer, potential, condition, len(x0), x0.device)


class Dynamics(nn.Module):
    """Base of the dynamics layers: number of steps, step size, options.

    ``has_momentum``: whether there is any, q⁰'s (`momentum_shape`) or the dynamics' own. ``estimates_log_det``: whether
    log_det is only an estimate, so that there are no weights.

    ``diagnostics`` are the `Diagnostics` of the latest call that asked for them (``diagnostics=True``), else None.
    ``last_plan`` is the `Plan` of the latest differentiable call: which memory plan ``"auto"`` chose, and whether
    the potential was recognised as piecewise linear.
    """

    has_momentum = True
    step_size: Tensor
    passing = frozenset({"last_plan", "_latest"})  # of the latest call, and nothing depends on them

    def __init__(
        self,
        n_steps: int,
        step_size: float | Tensor,
        learn_step_size: bool,
        options: Options,
        step_size_positive: bool = False,
    ) -> None:
        super().__init__()
        layer = type(self).__name__
        if not isinstance(step_size_positive, bool):
            raise TypeError(f"{layer}: step_size_positive must be True or False, got {step_size_positive!r}")
        self._step_size_positive = step_size_positive
        self.n_steps = check_n_steps(layer, n_steps)
        options.validate(layer)
        self.options = options
        self._register_step("step_size", check_step_size(layer, step_size), learn_step_size)
        self.last_plan: Plan | None = None
        self._latest: Watched | None = None  # of the calls that asked for diagnostics
        self._alarm = Alarm()

    @property
    def estimates_log_det(self) -> bool:
        """Whether log_det is only an estimate, so that there are no weights."""
        return False

    @property
    def diagnostics(self) -> Diagnostics | None:
        """Those of the latest call that asked for them, computed when they are first read; else None."""
        return None if self._latest is None else self._latest.diagnostics

    def _watched(self, diagnostics: bool) -> Watched | None:
        """What a call that asks for diagnostics is given to write them down in."""
        layer = type(self).__name__
        if not isinstance(diagnostics, bool):
            raise TypeError(f"{layer}: diagnostics must be True or False, got {diagnostics!r}")
        return Watched(layer, self._alarm, self.options) if diagnostics else None

    def _planned(self, output: R, plan: Plan | None, watched: Watched | None = None) -> R:
        if watched is not None:
            self.__dict__["_latest"] = watched
        if plan is not None:
            self.__dict__["last_plan"] = plan  # by Module.__setattr__ it takes as long as all checks of a call
        return output

    def _register_step(self, name: str, step: Tensor, learn: bool) -> None:
        if self._step_size_positive and name in _STEPS:
            name, step = f"log_{name}", step.log()
        if learn:
            self.register_parameter(name, nn.Parameter(step))
        else:
            self.register_buffer(name, step)

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        if name in _STEPS and self.__dict__.get("_step_size_positive"):
            for part in (self._parameters, self._buffers):
                if (log_step := part.get(f"log_{name}")) is not None:
                    return log_step.exp()
        return super().__getattr__(name)

    def momentum_shape(self, event: tuple[int, ...]) -> tuple[int, ...] | None:
        """Shape of one sample's momentum, for samples of shape `event`."""
        return tuple(event)

    def extra_repr(self) -> str:
        shown = [f"n_steps={self.n_steps}"]
        default = Options()
        for name in self.options.__dataclass_fields__:
            value = getattr(self.options, name)
            if value != getattr(default, name):
                shown.append(f"{name}={value}")
        if self._step_size_positive:
            shown.append("step_size_positive=True")
        return ", ".join(shown)
