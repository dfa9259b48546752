"""Diagnostics of an unroll, step by step: energies, norms, clipped fractions, and the adjoint on its way back."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .._figures_op import ROWS, adjoint_figures, unroll_figures
from .._record import Record

if TYPE_CHECKING:
    from .base import Clip, Options

GROWTH = 1e3
"""Growth of the adjoint's mean norm from which an unroll counts as exploding.

A stable leapfrog keeps its Jacobian's norm bounded, or lets it grow like 1 + ηT (free flight): tens. Growth beyond a
thousand is exponential; by 1/√ε, 2,900 in float32, the rounding of the first states takes half of the digits.
"""


class ExplodingGradientWarning(UserWarning):
    """The adjoint of an unroll grows by more than `GROWTH` on its way back, or is not finite."""


class Alarm:
    """One layer's: it warns once."""

    def __init__(self) -> None:
        self.fired = False

    def check(self, layer: str, norms: list[float]) -> None:
        """norms: mean norm of the adjoint at t = 0 … n - 1."""
        if self.fired:
            return
        finite = all(map(math.isfinite, norms))
        start = next((norm for norm in reversed(norms) if norm > 0), None)
        if finite and (start is None or max(norms) <= GROWTH * start):
            return
        self.fired = True
        what = f"grows {max(norms) / start:.2g} times" if finite and start is not None else "is not finite"
        warnings.warn(
            f"{layer}: the adjoint {what} on its way back through {len(norms)} kicks (more than {GROWTH:g} times "
            f"counts as exploding): the gradients are those of the steepest places on the way. Reduce step_size or "
            f"n_steps, set grad_clip, or gradient='stopped'",
            ExplodingGradientWarning,
            stacklevel=3,
        )


@dataclass
class Diagnostics:
    """Figures of one unroll at each x_t at which ∇f was evaluated, t = 0 … n - 1: float tensors [n] on its device.

    n is T + 1 for the leapfrogs (x_0 … x_T), T where a step ends with its drift (Langevin, annealed: x_0 … x_{T-1}).
    Means over the batch where nothing else is said; None where the dynamics has no such thing.

    value: f(x_t). grad_norm: ‖∇f(x_t)‖, before clipping. momentum_norm: ‖v_t‖, v_t the momentum at x_t (halfway through
    a merged kick); of Langevin and annealed dynamics the momentum after the kick.
    energy: H_t = -f(x_t) + ½‖v_t‖². energy_error: H_t - H_0; energy_error_max: the largest |H_t - H_0| of the batch.
    acceptance: min(1, exp(H_0 - H_t + log_det_t)), the probability with which a Metropolis step would accept x_t, v_t.
    grad_clipped: fraction of what `grad_clip` changes: of rows by norm, of elements by value; 0 without.
    momentum_clipped: the same of `momentum_clip`, one entry per drift. log_det: log-determinant of the map from
    (x_0, v_0) to (x_t, v_t).

    Of the latest backward pass through the unroll: adjoint_norm: ‖(dx_t, dv_t)‖, the norm of the cotangents of x_t and
    of the momentum that the kick at x_t begins with (of x_t alone where momenta are drawn or refreshed, or there are
    none); adjoint_max: the largest of the batch; adjoint_growth, []: adjoint_norm at x_0 over that at the last. None
    before there is one, and where the unroll runs on autograd's own graph.
    """

    layer: str
    value: Tensor
    grad_norm: Tensor
    momentum_norm: Tensor | None = None
    energy: Tensor | None = None
    energy_error: Tensor | None = None
    energy_error_max: Tensor | None = None
    acceptance: Tensor | None = None
    grad_clipped: Tensor | None = None
    momentum_clipped: Tensor | None = None
    log_det: Tensor | None = None
    adjoint_norm: Tensor | None = None
    adjoint_max: Tensor | None = None
    alarm: Alarm | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.value)

    @property
    def adjoint_growth(self) -> Tensor | None:
        return None if self.adjoint_norm is None else self.adjoint_norm[0] / self.adjoint_norm[-1]

    def check(self) -> None:
        """Warns (`ExplodingGradientWarning`, once a layer) if the adjoint explodes.

        On the CPU the backward pass does so; elsewhere it would have to wait for the device: `figures` and `rows` do.
        """
        norm = self.adjoint_norm
        if self.alarm is not None and norm is not None and norm.device.type != "cpu" and norm.numel():
            self.alarm.check(self.layer, norm.tolist())

    def figures(self) -> dict[str, float]:
        """One number of each, for a log (synchronises with the device): of the last x_t; the largest of grad_norm,
        grad_clipped, momentum_clipped and adjoint_max; adjoint_growth in place of adjoint_norm."""
        last = ("energy_error", "energy_error_max", "acceptance", "log_det")
        largest = ("grad_norm", "grad_clipped", "momentum_clipped", "adjoint_max")
        self.check()
        found = {name: getattr(self, name)[-1] for name in last if getattr(self, name) is not None}
        found |= {name: getattr(self, name).amax() for name in largest if getattr(self, name) is not None}
        if self.adjoint_norm is not None:
            found["adjoint_growth"] = self.adjoint_growth
        numbers = torch.stack([value.double() for value in found.values()]).tolist()
        return dict(zip(found, numbers, strict=True))

    def rows(self) -> dict[str, list[float]]:
        """Everything that there is as lists, by name (synchronises with the device)."""
        self.check()
        found = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {name: values.tolist() for name, values in found.items() if isinstance(values, Tensor)}


class Observed(NamedTuple):
    """What a program makes of its record; t = 0 … n - 1 first.

    force: what grad_clip acts on, [n, B, L], or None. v: momenta at x_t, [n, B, L], or None. drifting: what
    momentum_clip acts on, [T, B, L], or None. log_det: [n, B] or [n], or None. conserves: whether there is an energy to
    be conserved; without a log_det, volume is too.

    With step [n - 1, L], or [1, L], v is what the kick at each x_t left, and the momenta at x_{t+1} are damping v_t +
    step_t / 2 clip(force_{t+1}); v0 [B, L] are those at x_0.
    """

    force: Tensor | None = None
    v: Tensor | None = None
    drifting: Tensor | None = None
    log_det: Tensor | None = None
    v0: Tensor | None = None
    step: Tensor | None = None
    damping: float = 1.0
    conserves: bool = False

    def momenta(self, clip: Clip | None) -> Tensor | None:
        """At x_t, [n, B, L]."""
        if self.step is None:
            return self.v
        assert self.v is not None and self.force is not None and self.v0 is not None
        before = self.v[:-1] if self.damping == 1 else self.damping * self.v[:-1]
        ended = torch.addcmul(before, 0.5 * self.step.unsqueeze(1), clipped(self.force[1:], clip))
        return torch.cat([self.v0.to(ended).unsqueeze(0), ended])


def clipped(force: Tensor, clip: Clip | None) -> Tensor:
    """The clip of the last dimension's rows."""
    if clip is None:
        return force
    if clip.mode == "value":
        return force.clamp(-clip.bound, clip.bound)
    norm = _norm(force).unsqueeze(-1)
    return force * (clip.bound / norm).clamp_(max=1.0)


def _fraction(rows: Tensor | None, clip: Clip | None) -> Tensor | None:
    """[n] from [n, B, L]: how much of it `clip` changes."""
    if rows is None:
        return None
    if clip is None:
        return rows.new_zeros(len(rows))
    if clip.mode == "value":
        return (rows.abs() > clip.bound).to(rows.dtype).mean((1, 2))
    return (_norm(rows) > clip.bound).to(rows.dtype).mean(1)


def _largest(values: Tensor) -> Tensor:
    return values.amax(1) if values.shape[1] else values.new_full((len(values),), math.nan)


class Watched(Record):
    """The record of one call that asked for diagnostics, and what becomes of it: `diagnostics`.

    They are computed when they are first read: until then the record keeps f, ∇f and the states of the unroll.
    """

    def __init__(self, layer: str, alarm: Alarm, options: Options, found: Diagnostics | None = None) -> None:
        super().__init__()
        self._layer, self._alarm, self._options = layer, alarm, options
        self._found = found
        self._observe: Callable[[], Observed] | None = None
        self._adjoint: Sequence[Tensor] | None = None  # mean and largest norms

    def __reduce__(self) -> tuple[Any, ...]:
        return Watched, (self._layer, self._alarm, self._options, self.diagnostics)

    def observe_by(self, observe: Callable[[], Observed]) -> None:
        """observe: what a program makes of the record, whatever has become of its arguments meanwhile."""
        self._observe = observe

    @property
    def diagnostics(self) -> Diagnostics | None:
        if self._observe is not None:
            with torch.no_grad():
                self._found, self._observe = self._diagnosed(self._observe()), None
            self.forget()
            self._fill_in()
        return self._found

    def _diagnosed(self, observed: Observed) -> Diagnostics:
        value, gradient = self.stacked("value"), self.stacked("gradient")
        given = (gradient, *(t for t in observed if isinstance(t, Tensor)))
        # Each of torch's own operations on so little costs more than all of the numbers.
        at_once = value.device.type == "cpu" and all(t.dtype == value.dtype for t in given)
        figures = self._figures_at_once if at_once else self._figures_by_torch
        return Diagnostics(self._layer, **figures(value, gradient, observed), alarm=self._alarm)

    def _figures_by_torch(self, value: Tensor, gradient: Tensor, observed: Observed) -> dict[str, Tensor]:
        v, log_det = observed.momenta(self._options.grad_clip), observed.log_det
        each = {"value": value, "grad_norm": _norm(gradient)}  # [n, B]
        others = {
            "grad_clipped": _fraction(observed.force, self._options.grad_clip),
            "momentum_clipped": _fraction(observed.drifting, self._options.momentum_clip),
        }
        if v is not None:
            each["momentum_norm"] = norm = _norm(v)
        if v is not None and observed.conserves:
            each["energy"] = energy = torch.addcmul(-value, norm, norm, value=0.5)
            each["energy_error"] = error = energy - energy[0]
            others["energy_error_max"] = _largest(error.abs())
            log_ratio = -error if log_det is None else log_det.view(len(log_det), -1) - error
            each["acceptance"] = log_ratio.clamp_(max=0.0).exp_()
            log_det = value.new_zeros(len(value)) if log_det is None else log_det
        if log_det is not None:
            others["log_det"] = log_det if log_det.dim() == 1 else log_det.mean(1)
        means = torch.stack(list(each.values())).mean(2).unbind()  # of all in one: each is tiny
        found = dict(zip(each, means, strict=True)) | others
        return {name: figure for name, figure in found.items() if figure is not None}

    def _figures_at_once(self, value: Tensor, gradient: Tensor, observed: Observed) -> dict[str, Tensor]:
        log_det = observed.log_det
        if log_det is not None:
            log_det = log_det.view(len(value), -1).expand_as(value)
        table, momentum_clipped = unroll_figures(
            value, gradient, observed.force, observed.v, observed.drifting, log_det, observed.v0, observed.step,
            observed.damping, *self._options.clip_codes(), observed.conserves,
        )  # fmt: skip
        energies = observed.conserves and observed.v is not None
        present = {
            "momentum_norm": observed.v is not None,
            **dict.fromkeys(("energy", "energy_error", "energy_error_max", "acceptance"), energies),
            "log_det": energies or log_det is not None,
            "grad_clipped": observed.force is not None,
        }
        found = {name: row for name, row in zip(ROWS, table.unbind(), strict=True) if present.get(name, True)}
        if observed.drifting is not None:
            found["momentum_clipped"] = momentum_clipped
        return found

    def after_backward(self, norm: Tensor, other: Tensor | None = None) -> None:
        if norm.device.type == "cpu" and norm.dtype in (torch.float32, torch.float64):
            self._adjoint = adjoint_figures(norm, other).unbind()
        else:
            norm = norm if other is None else torch.hypot(norm, other)
            self._adjoint = norm.mean(1), _largest(norm)
        if self._found is not None:
            self._fill_in()
        if norm.device.type == "cpu" and not self._alarm.fired:
            self._alarm.check(self._layer, self._adjoint[0].tolist())

    def _fill_in(self) -> None:
        if self._adjoint is not None and self._found is not None:
            self._found.adjoint_norm, self._found.adjoint_max = self._adjoint


def _norm(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=-1)
