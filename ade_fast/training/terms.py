"""One batch's objective, its parts and what its weights say: (8), (20), and their bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._ends import Ends
from .._mlp_ops import WeightGradients
from .._sums import means, numbers
from .._tensors import check_dtype, floating_tensor
from ..dynamics import NonFiniteError
from ..dynamics.sequential import layers_of
from ..fields import fused_sum, pinned
from ..initial.base import standard_normal_log_density
from ..potentials.conditioned import Condition, conditioned, first_length
from ..weights import joint_log_weights, kinetic, log_weight_figures
from .bounds import Bounds, Defence, renyi_bound, with_both_gradients, with_other_gradient
from .divergence import ADVICE
from .ranks import Ranks
from .sampler import Cut, DualSample, DualSampler
from .values import evaluate, values_of

# log q^0 at given points takes several passes of a flow's networks: not in each update, and not at all data.
COVERAGE_EVERY = 4
# A metric alone, and f has to be evaluated for it.
_INITIAL_ROWS = 256


class Terms(NamedTuple):
    """The objective's parts, each a scalar tensor; ``loss`` carries the graph."""

    loss: Tensor
    f_data: Tensor
    f_samples: Tensor
    kinetic: Tensor
    entropy: Tensor
    penalty: Tensor


def together(terms: Terms, figures: Mapping[str, Tensor]) -> tuple[list[str], Tensor]:
    """All names, and their values in one tensor [n]."""
    return [*terms._fields, *figures], numbers([*terms, *figures.values()])


class Model(NamedTuple):
    """What one unroll says of the model: (20)'s terms, and the bounds of log Z_x.

    model: E_q[f - lambda/2 |v|^2] + entropy_weight H(q). f_samples, kinetic, entropy: its parts, scalars.
    values: f(x^T) [K].
    log_w: log-weights [K] with the normaliser of the momenta taken off, so that E[w] = Z_x; None: no weights. Under
    data_parallel those of all ranks, where a bound has weights.
    """

    model: Tensor
    f_samples: Tensor
    kinetic: Tensor
    entropy: Tensor
    values: Tensor
    log_w: Tensor | None


class Objective(nn.Module):
    """What `ADE` finds of one batch, before anyone moves."""

    potential: Callable[[Tensor], Tensor]
    sampler: DualSampler
    momentum_weight: Tensor
    entropy_weight: float
    gradient_penalty: float
    value_penalty: float
    samples_per_point: int
    bounds: Bounds
    ess_pace: float | None
    _has_weights: bool
    _data_weights: Tensor | None
    _ranks: Ranks | None

    def sampler_parameters(self) -> Iterator[nn.Parameter]:
        """The descending player's parameters: q^0, step sizes, S and g networks."""
        return self.sampler.parameters()

    @contextmanager
    def _given(self, condition: Condition | None, data: Tensor) -> Iterator[None]:
        """Within this block, the potential is that at a condition."""
        if condition is None:
            yield
            return
        if self.bounds.potential != "elbo" or self.bounds.sampler != "elbo" or self.ess_pace is not None:
            raise ValueError(
                f"ADE: condition needs bound='elbo' and sampler_bound='elbo', and no ess_pace: weights of samples at "
                f"different conditions have no common log Z, got bound={self.bounds.potential!r}, "
                f"sampler_bound={self.bounds.sampler!r}, ess_pace={self.ess_pace}"
            )
        n = self._batch_size(data)
        if first_length(condition) not in (None, n):
            raise ValueError(f"ADE: condition must have a row for each of the {n} data, got {first_length(condition)}")
        whole, has_weights = self.potential, self._has_weights
        place: dict[str, Any] = self._modules if "potential" in self._modules else self.__dict__
        place["potential"], self._has_weights = conditioned("ADE", whole, condition, n, data.device), False
        try:
            yield
        finally:
            place["potential"], self._has_weights = whole, has_weights

    @contextmanager
    def _weighing(self, weights: Tensor | None, data: Tensor) -> Iterator[None]:
        """Within this block, means over the data are weighted."""
        if weights is not None:
            n = self._batch_size(data)
            if not isinstance(weights, Tensor) or not weights.is_floating_point():
                kind = weights.dtype if isinstance(weights, Tensor) else type(weights).__name__
                raise TypeError(f"ADE: weights must be a floating-point tensor ({n},), got {kind}")
            if tuple(weights.shape) != (n,):
                raise ValueError(
                    f"ADE: weights must have shape ({n},), one for each of the data, got {(*weights.shape,)}"
                )
            weights = weights.detach().to(data)
            if not bool((weights >= 0).all() & weights.isfinite().all() & (weights.sum() > 0)):
                raise ValueError("ADE: weights must be finite and >= 0, with a positive sum")
        self._data_weights = weights
        try:
            yield
        finally:
            self._data_weights = None

    def _over_data(self, values: Tensor, every: int = 1) -> Tensor:
        """The mean of values at the data, or at each ``every``-th of them."""
        if self._data_weights is None:
            return means(values)[0]
        weights = self._data_weights / self._data_weights.mean()
        return (weights[::every] * values).mean()

    def _objective(
        self,
        data: Tensor,
        generator: torch.Generator | None,
        context: tuple[Tensor, ...] | None,
        want_figures: bool = False,
        diagnostics: bool = False,
        penalties: Sequence[float | Tensor] | None = None,
        covering: float = 0.0,
    ) -> tuple[Terms, DualSample, dict[str, Tensor]]:
        """The loss and its parts, the samples, and the metrics of the weights where they are wanted.

        penalties: the factors of the two, where they have become tensors; 0 is a number in any case. covering: that of
        ``coverage``.
        """
        penalties = (self.gradient_penalty, self.value_penalty) if penalties is None else penalties
        n = self._batch_size(data)
        apart = self.bounds.differ and torch.is_grad_enabled()
        slope, square = (isinstance(factor, Tensor) or factor != 0 for factor in penalties)
        in_one_pass = apart and not (slope or square or diagnostics) and self._may_go_back_once(data)
        weights, ends = WeightGradients(), Ends()
        with pinned(self.potential):
            cuts = apart and not in_one_pass
            draw: Callable[..., Any] = self.sampler.sample_cut if cuts else self.sampler.sample
            with weights.as_current(), ends.as_current():
                drawn = draw(self.potential, n * self.samples_per_point, generator, context, diagnostics=diagnostics)
                sample: DualSample
                cut: Cut | None
                sample, cut = drawn if cuts else (drawn, None)
            _check_like(data, sample.x)
            base = self._draw_base(len(sample.x), generator)
            end = ends.end_of(self.potential, sample.x)
            f = evaluate(self.potential, data, base, sample.x, slope, square, apart, context is not None, end)
            model = self._model_terms(sample, f.samples)
            f_data = self._over_data(f.data)
            parts: list[Any] = [
                p * mean for p, mean in zip(penalties, (f.slope, f.square), strict=True) if mean is not None
            ]
            penalty = sum(parts) if parts else torch.zeros((), dtype=sample.x.dtype, device=sample.x.device)
            defence = None
            if base is not None:
                potential: Any = self.potential  # a `WithBase`
                defence = Defence(self._together(f.base - potential.log_base(base)), self.bounds.defensive)
            beta = self.bounds.beta(model.log_w)
            if in_one_pass and weights.unrolls == 1 and end is not None and model.values is end.value:
                loss = self._going_back_once(f_data - penalty, model, beta, defence, weights)
            else:
                loss = f_data - self.bounds.of_potential(model.model, model.log_w, beta, defence) - penalty
                if apart:
                    other = f_data - self.bounds.of_sampler(model.model, model.log_w, beta) - penalty
                    parameters = [p for p in self.sampler_parameters() if p.requires_grad]
                    loss = with_other_gradient(loss, other, parameters, cut, weights)
            if covering:
                covered = covering * self._covered(data)
                loss = loss - (covered - covered.detach())
            figures = self._figures(sample, model, beta, defence, ends) if want_figures else {}
        return Terms(loss, f_data, model.f_samples, model.kinetic, model.entropy, penalty), sample, figures

    def _may_go_back_once(self, data: Tensor) -> bool:
        """Whether f may turn out to act on the log-weights through one fused unroll alone: on the CPU, in one layer of
        this package and not in q^0, and not on other ranks. (Diagnostics are of f's cotangents.)"""
        own = all(
            type(part).__module__.startswith("ade_fast.") for part in (self.sampler.initial, self.sampler.dynamics)
        )
        single = own and type(self.sampler) is DualSampler and len(list(layers_of(self.sampler.dynamics))) == 1
        return single and data.is_cpu and self._ranks is None and fused_sum(self.potential, data) is not None

    def _going_back_once(
        self, rest: Tensor, model: Model, beta: float | Tensor, defence: Defence | None, weights: WeightGradients
    ) -> Tensor:
        """The loss, of which ``rest`` is all but f's bound, with the gradients of both players' bounds."""
        assert model.log_w is not None  # bounds that differ have weights
        weighed = model.log_w.detach().requires_grad_()
        elbo = model.model.detach() + (weighed - weighed.detach()).mean()  # (20) is the mean of log w, up to a constant
        bound = self.bounds.of_potential(elbo, weighed, beta, defence)
        both = bound, self.bounds.of_sampler(elbo, weighed, beta)
        return with_both_gradients(rest - bound, both, weighed, model.log_w, weights)

    def _covered(self, data: Tensor) -> Tensor:
        """The log-likelihood of a part of the data under q^0, a scalar."""
        start = self.sampler.initial
        density = getattr(start, "log_prob_once", None) or start.log_prob
        return self._over_data(density(data[::COVERAGE_EVERY].detach()), COVERAGE_EVERY)

    def _model_terms(self, sample: DualSample, values: Tensor) -> Model:
        kinetics = self._kinetic(sample)
        f_samples, kinetic, log_q = means(values, kinetics, sample.log_q)
        entropy = -log_q
        model = f_samples - kinetic + self.entropy_weight * entropy
        log_w = None
        if self._has_weights and sample.log_q0 is not None:
            log_w = self._together(self._log_weights(sample, values, kinetics))
        return Model(model, f_samples, kinetic, entropy, values, log_w)

    def _together(self, log_w: Tensor) -> Tensor:
        """Log-weights for a bound of log Z: those of all ranks, where there are any and a bound has weights."""
        weighted = self.bounds.potential != "elbo" or self.bounds.sampler != "elbo" or self.ess_pace is not None
        return self._ranks.joint(log_w) if self._ranks is not None and weighted else log_w

    def _draw_base(self, n: int, generator: torch.Generator | None) -> Tensor | None:
        """Defensive samples, so many that they are the fraction asked for beside n of the dual sampler's."""
        share = self.bounds.defensive
        if not share:
            return None
        count = max(round(n * share / (1 - share)), 1)
        potential: Any = self.potential  # a `WithBase`
        return potential.sample_base(count, self.sampler.initial.event, generator=generator)

    @torch.no_grad()
    def _figures(
        self,
        sample: DualSample,
        model: Model,
        beta: float | Tensor,
        defence: Defence | None,
        ends: Ends | None = None,
    ) -> dict[str, Tensor]:
        """The metrics of the weights and of the steps. ends: what the unroll knows of f at them."""
        figures = {}
        step_size = getattr(self.sampler.dynamics, "step_size", None)
        if step_size is not None:
            figures["step_size"] = step_size.abs().max()
        if model.log_w is not None:
            if self.bounds.potential == "importance":
                figures["f_model"] = (model.log_w.softmax(0) * self._together(model.values)).sum()
            figures["log_z"], figures["ess"] = log_weight_figures(model.log_w)
            if defence is not None:
                figures["log_z"] = renyi_bound(model.log_w, 1.0, defence)
            _, figures["initial_ess"] = log_weight_figures(self._initial_log_weights(sample, ends))
            figures["beta"] = torch.as_tensor(beta).to(model.model)
        return figures

    def _initial_log_weights(self, sample: DualSample, ends: Ends | None) -> Tensor:
        """log f(x^0) - log q^0(x^0) of the first samples, up to a constant: the momenta, where N(0, I), are no part of
        the matter."""
        assert sample.log_q0 is not None
        log_q = _some(sample.log_q0)
        if sample.v0 is not None and getattr(self.sampler.initial, "momentum", None) is None:
            log_q = log_q - standard_normal_log_density(_some(sample.v0))
        values = None if ends is None else ends.start_of(self.potential, sample.x0)
        return (values_of(self.potential, _some(sample.x0)) if values is None else _some(values)) - log_q

    def _log_weights(self, sample: DualSample, values: Tensor, kinetics: Tensor) -> Tensor:
        if sample.v is None:
            return values - sample.log_q
        own = self.sampler.draws_own_momenta()
        return joint_log_weights(values, kinetics, sample.log_q, sample.v, self.momentum_weight, own)

    def _kinetic(self, sample: DualSample) -> Tensor:
        """lambda/2 |v|^2 per sample, or the sum of lambda_i/2 |v_i|^2 (9); [B]."""
        if sample.v is None:
            return sample.x.new_zeros(sample.x.shape[0])
        own = self.sampler.draws_own_momenta()
        if not own and self.momentum_weight.dim() != 0:
            raise ValueError(
                f"ADE: momentum_weight must be a number for {type(self.sampler.dynamics).__name__}, "
                f"which has one momentum, got shape {tuple(self.momentum_weight.shape)}"
            )
        return kinetic("ADE", sample.v, self.momentum_weight, per_step=own)

    @staticmethod
    def _batch_size(data: Tensor) -> int:
        floating_tensor("ADE", "data", data, "a floating-point tensor [B, *event]")
        if data.dim() == 0 or data.shape[0] == 0:
            raise ValueError(f"ADE: data must have at least one sample, got shape {tuple(data.shape)}")
        return data.shape[0]

    def _non_finite(self, what: str, data: Tensor, metrics: Mapping[str, float]) -> NonFiniteError:
        """The error for a non-finite value, naming the parts of the objective that are at fault."""
        if not bool(torch.isfinite(data).all()):
            return NonFiniteError(f"ADE: data holds {int((~torch.isfinite(data)).sum())} non-finite value(s)")
        bad = [name for name in Terms._fields if not math.isfinite(metrics.get(name, 0.0))]
        where = f" (non-finite: {', '.join(bad)})" if bad else ""
        return NonFiniteError(f"ADE: {what} is not finite{where}; {ADVICE}")


def _some(of_samples: Tensor) -> Tensor:
    """The first of them."""
    return of_samples if len(of_samples) <= _INITIAL_ROWS else of_samples[:_INITIAL_ROWS]


def _check_like(data: Tensor, samples: Tensor) -> None:
    """Refuses data of another shape, dtype or device than the sampler's: the two are compared by one potential."""
    if data.shape[1:] != samples.shape[1:]:
        wanted = (len(data), *samples.shape[1:])
        raise ValueError(f"ADE: data must have the sampler's shape {wanted}, got {tuple(data.shape)}")
    if data.device != samples.device:
        raise ValueError(f"ADE: data must be on the sampler's device {samples.device}, got {data.device}")
    if not torch.is_autocast_enabled(samples.device.type):
        check_dtype("ADE", "data", data, "the sampler's", samples.dtype)
