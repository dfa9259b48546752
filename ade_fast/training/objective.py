"""ADE's saddle objective (8, 20): one unroll and one backward pass serve both players."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..dynamics import NonFiniteError
from ..fields import pinned
from ..initial import Empirical
from ._arguments import integer, number
from .sampler import DualSample, DualSampler

OptimizerOrFactory = Optimizer | Callable[[Iterable[nn.Parameter]], Optimizer]

ADVICE = (
    "lower the learning rates (the potential's first), clip the gradients (grad_norm_clip=1), clip the "
    "dynamics (grad_clip, momentum_clip), or keep f small (value_penalty, gradient_penalty)"
)


class _Terms(NamedTuple):
    """The objective's parts, each a scalar tensor; ``loss`` carries the graph."""

    loss: Tensor
    f_data: Tensor
    f_samples: Tensor
    kinetic: Tensor
    entropy: Tensor
    penalty: Tensor


class ADE(nn.Module):
    """Adversarial dynamics embedding: max over f, min over the sampler, of ell (20).

    ell = E_data[f(x)] - E_q[f(x^T) - lambda/2 |v^T|^2] + entropy_weight * E_q[log q^T(x^T, v^T)] - penalties

    ``loss(data)`` is ell with the sign as it stands: after ``loss.backward()`` every parameter's ``.grad`` is
    d ell/d parameter. The sampler descends ell; the potential ascends it, with an optimizer made with
    ``maximize=True``. ``step(data)`` does both.

    The penalties act on f alone, at the data and at the (detached) samples, half of the weight on each:
    ``value_penalty * E[f^2]`` and ``gradient_penalty * E[|grad f|^2]`` are subtracted, so that the ascending
    f keeps them small; they leave no gradient on the sampler.

    Where the sampler starts from an ``Empirical`` replay buffer, ``step`` feeds the end points back into it.

    Source: (8), (9), (20), Algorithm 1. The gradient of f goes through the unroll as (20) demands; (21) as
    printed has the wrong sign on the kinetic term.

    Args:
        potential: f, a callable or module [B, *event] -> [B].
        sampler: the dual sampler q.
        momentum_weight: lambda, a number, or a [T] tensor where the dynamics draws one momentum per step (9);
            None is 1.
        entropy_weight: factor of E[log q^T]; 1 is the paper's objective.
        gradient_penalty: factor of E[|grad f|^2], >= 0.
        value_penalty: factor of E[f^2], >= 0.
        potential_optimizer: an optimizer over the potential's parameters with ``maximize=True``, or a
            function from parameters to one. None is Adam, learning rate 1e-3.
        sampler_optimizer: the same for the sampler, ``maximize=False``.
        sampler_steps: sampler updates per potential update. The last of them shares its unroll with the
            potential; the others run with the potential frozen.
        grad_norm_clip: each player's gradient norm is scaled down to at most this before its update.
        check_finite: raise ``NonFiniteError`` when the objective or a gradient is not finite, before any
            parameter is touched (costs one device synchronisation per unroll).

    Raises:
        ValueError, TypeError: on an argument that cannot be meant; see the messages.
    """

    def __init__(
        self,
        potential: Callable[[Tensor], Tensor],
        sampler: DualSampler,
        *,
        momentum_weight: float | Tensor | None = None,
        entropy_weight: float = 1.0,
        gradient_penalty: float = 0.0,
        value_penalty: float = 0.0,
        potential_optimizer: OptimizerOrFactory | None = None,
        sampler_optimizer: OptimizerOrFactory | None = None,
        sampler_steps: int = 1,
        grad_norm_clip: float | None = None,
        check_finite: bool = True,
    ):
        super().__init__()
        if not callable(potential):
            raise TypeError(f"ADE: potential must be callable, [B, *event] -> [B], got {type(potential).__name__}")
        if not isinstance(sampler, DualSampler):
            raise TypeError(f"ADE: sampler must be an ade.DualSampler, got {type(sampler).__name__}")
        self.potential = potential
        self.sampler = sampler
        self.register_buffer("momentum_weight", _momentum_weight(momentum_weight), persistent=False)
        self.entropy_weight = number("ADE", "entropy_weight", entropy_weight)
        self.gradient_penalty = number("ADE", "gradient_penalty", gradient_penalty)
        self.value_penalty = number("ADE", "value_penalty", value_penalty)
        self.sampler_steps = integer("ADE", "sampler_steps", sampler_steps, low=1)
        if grad_norm_clip is not None:
            grad_norm_clip = number("ADE", "grad_norm_clip", grad_norm_clip, "> 0 or None", zero=False)
        self.grad_norm_clip = grad_norm_clip
        self.check_finite = check_finite
        shared = {id(p) for p in self.potential_parameters()} & {id(p) for p in self.sampler_parameters()}
        if shared:
            raise ValueError(f"ADE: potential and sampler share {len(shared)} parameter(s): they cannot serve both")
        self.potential_optimizer = _optimizer(
            "potential_optimizer", potential_optimizer, self.potential_parameters(), maximize=True
        )
        self.sampler_optimizer = _optimizer(
            "sampler_optimizer", sampler_optimizer, self.sampler_parameters(), maximize=False
        )

    def potential_parameters(self) -> Iterator[nn.Parameter]:
        """The ascending player's parameters (none for a plain function)."""
        return self.potential.parameters() if isinstance(self.potential, nn.Module) else iter(())

    def sampler_parameters(self) -> Iterator[nn.Parameter]:
        """The descending player's parameters: q^0, step sizes, S and g networks."""
        return self.sampler.parameters()

    def loss(
        self,
        data: Tensor,
        *,
        generator: torch.Generator | None = None,
        context: tuple[Tensor, ...] | None = None,
    ) -> Tensor:
        """ell of (20) as a scalar, its gradient ready for both players.

        Args:
            data: [B, *event], B >= 1; as many samples are drawn.
            generator: source of the sampler's randomness.
            context: non-leaf tensors that the potential depends on.
        """
        terms, _ = self._objective(data, generator, context)
        if self.check_finite and not math.isfinite(terms.loss.detach().item()):
            raise self._non_finite("the objective", data, terms)
        return terms.loss

    def step(
        self,
        data: Tensor,
        *,
        generator: torch.Generator | None = None,
        context: tuple[Tensor, ...] | None = None,
        phase: Callable[[str], AbstractContextManager[None]] = nullcontext,
    ) -> dict[str, float]:
        """One update of the potential and ``sampler_steps`` of the sampler.

        Args:
            data, generator, context: as for ``loss``.
            phase: entered around each part with its name, "sampler updates" or "joint updates", to time them.

        Returns:
            The metrics of the shared unroll: loss, f_data, f_samples, kinetic, entropy (-E log q^T), penalty,
            potential_grad_norm and sampler_grad_norm (before clipping).
        """
        if not torch.is_grad_enabled():
            raise RuntimeError("ADE.step: gradients are off (torch.no_grad or inference_mode); call it outside")
        if self.potential_optimizer is None and self.sampler_optimizer is None:
            raise ValueError(
                "ADE.step: neither the potential nor the sampler has parameters; pass potential_optimizer="
            )
        if self.sampler_optimizer is not None:
            for _ in range(self.sampler_steps - 1):
                with phase("sampler updates"):
                    self._sampler_update(data, generator, context)
        with phase("joint updates"):
            return self._joint_update(data, generator, context)

    def _joint_update(self, data: Tensor, generator, context) -> dict[str, float]:
        """One unroll, one backward pass, one update of each player."""
        terms, sample = self._objective(data, generator, context)
        self.zero_grad(set_to_none=True)  # the optimizers may hold less than all parameters, or others
        for optimizer in self._optimizers():
            optimizer.zero_grad(set_to_none=True)
        terms.loss.backward()
        norms = [_clip_grad_norm(optimizer, self.grad_norm_clip) for optimizer in self._optimizers()]
        # One transfer for all metrics; it also tells whether to touch the parameters at all.
        values = torch.stack([t.detach().to(terms.loss) for t in (*terms, *norms)]).tolist()
        if self.check_finite and not all(map(math.isfinite, values)):
            raise self._non_finite("the objective or its gradient", data, terms)
        for optimizer in self._optimizers():
            optimizer.step()
        self._fill_replay_buffer(sample)
        norm_names = [
            name
            for name, optimizer in (
                ("potential_grad_norm", self.potential_optimizer),
                ("sampler_grad_norm", self.sampler_optimizer),
            )
            if optimizer is not None
        ]
        return dict(zip((*_Terms._fields, *norm_names), values, strict=True))

    def _optimizers(self) -> list[Optimizer]:
        return [o for o in (self.potential_optimizer, self.sampler_optimizer) if o is not None]

    def _sampler_update(self, data: Tensor, generator, context) -> None:
        """One update of the sampler alone: f is frozen, so the unroll spends nothing on its parameters."""
        with _frozen(self.potential_parameters()), pinned(self.potential):
            sample = self.sampler.sample(self.potential, self._batch_size(data), generator, context)
            model, _, _, _ = self._model_terms(sample)
            loss = -model
            # Leaves of a potential that is a plain function cannot be frozen: name who gets gradients.
            parameters = [p for p in self.sampler_parameters() if p.requires_grad]
            self.sampler.zero_grad(set_to_none=True)
            self.sampler_optimizer.zero_grad(set_to_none=True)
            loss.backward(inputs=parameters)
        norm = _clip_grad_norm(self.sampler_optimizer, self.grad_norm_clip)
        if self.check_finite and not math.isfinite((loss.detach() + norm).item()):
            raise self._non_finite("the sampler's objective or its gradient", data, None)
        self.sampler_optimizer.step()
        self._fill_replay_buffer(sample)

    def _fill_replay_buffer(self, sample: DualSample) -> None:
        """Where chains persist (Empirical with a buffer), they go on from these end points."""
        start = self.sampler.initial
        if isinstance(start, Empirical) and start.buffer_size is not None:
            start.update(sample.x.detach())

    def _objective(self, data: Tensor, generator, context) -> tuple[_Terms, DualSample]:
        n = self._batch_size(data)
        with pinned(self.potential):
            sample = self.sampler.sample(self.potential, n, generator, context)
            _check_like(data, sample.x)
            model, f_samples, kinetic, entropy = self._model_terms(sample)
            f_data, penalty = self._data_terms(data, sample.x.detach())
            loss = f_data - model - penalty
        return _Terms(loss, f_data, f_samples, kinetic, entropy, penalty), sample

    def _model_terms(self, sample: DualSample) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """E_q[f - lambda/2 |v|^2] + entropy_weight * H(q), and its three parts."""
        f_samples = _evaluate(self.potential, sample.x).mean()
        kinetic = self._kinetic(sample).mean()
        entropy = -sample.log_q.mean()
        return f_samples - kinetic + self.entropy_weight * entropy, f_samples, kinetic, entropy

    def _kinetic(self, sample: DualSample) -> Tensor:
        """lambda/2 |v|^2 per sample, or the sum of lambda_i/2 |v_i|^2 (9); [B]."""
        if sample.v is None:
            return sample.x.new_zeros(sample.x.shape[0])
        weight = self.momentum_weight.to(sample.v.dtype)
        if self.sampler.draws_own_momenta():
            squares = sample.v.flatten(2).square().sum(-1)  # [T, B]
            if weight.dim() == 1 and weight.shape[0] != squares.shape[0]:
                raise ValueError(
                    f"ADE: momentum_weight must be a number or have one entry per step, shape "
                    f"({squares.shape[0]},), got {tuple(weight.shape)}"
                )
            return (weight.reshape(-1, 1) / 2 * squares).sum(0)
        if weight.dim() != 0:
            raise ValueError(
                f"ADE: momentum_weight must be a number for {type(self.sampler.dynamics).__name__}, "
                f"which has one momentum, got shape {tuple(weight.shape)}"
            )
        return weight / 2 * sample.v.flatten(1).square().sum(1)

    def _data_terms(self, data: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """E_data[f] and the weighted penalties on f, from one evaluation; samples come detached."""
        if not (self.value_penalty or self.gradient_penalty):
            f_data = _evaluate(self.potential, data).mean()
            return f_data, torch.zeros_like(f_data)
        learning = torch.is_grad_enabled()
        # The penalty needs grad f, also where the caller has switched gradients off.
        with torch.inference_mode(False), torch.set_grad_enabled(learning or self.gradient_penalty > 0):
            points = torch.cat([data.detach(), samples])
            if self.gradient_penalty:
                points.requires_grad_()
            values = _evaluate(self.potential, points)
            penalty = values.new_zeros(())
            if self.value_penalty:
                penalty = penalty + self.value_penalty * values.square().mean()
            if self.gradient_penalty:
                (grad,) = torch.autograd.grad(values.sum(), points, create_graph=learning)
                penalty = penalty + self.gradient_penalty * grad.flatten(1).square().sum(1).mean()
            f_data = values[: data.shape[0]].mean()
        return (f_data, penalty) if learning else (f_data.detach(), penalty.detach())

    @staticmethod
    def _batch_size(data: Tensor) -> int:
        if not isinstance(data, Tensor) or not data.is_floating_point():
            kind = data.dtype if isinstance(data, Tensor) else type(data).__name__
            raise TypeError(f"ADE: data must be a floating-point tensor [B, *event], got {kind}")
        if data.dim() == 0 or data.shape[0] == 0:
            raise ValueError(f"ADE: data must have at least one sample, got shape {tuple(data.shape)}")
        return data.shape[0]

    def _non_finite(self, what: str, data: Tensor, terms: _Terms | None) -> NonFiniteError:
        """The error for a non-finite value, naming the first part that is at fault."""
        if not bool(torch.isfinite(data).all()):
            return NonFiniteError(f"ADE: data holds {int((~torch.isfinite(data)).sum())} non-finite value(s)")
        bad = (
            [name for name, t in zip(terms._fields, terms, strict=True) if not math.isfinite(t.item())] if terms else []
        )
        where = f" (non-finite: {', '.join(bad)})" if bad else ""
        return NonFiniteError(f"ADE: {what} is not finite{where}; {ADVICE}")


def _check_like(data: Tensor, samples: Tensor) -> None:
    """Refuses data of another shape, dtype or device than the sampler's: the two are compared by one potential."""
    if data.shape != samples.shape:
        raise ValueError(f"ADE: data must have the sampler's shape {tuple(samples.shape)}, got {tuple(data.shape)}")
    if data.device != samples.device:
        raise ValueError(f"ADE: data must be on the sampler's device {samples.device}, got {data.device}")
    if data.dtype != samples.dtype and not torch.is_autocast_enabled(samples.device.type):
        raise TypeError(f"ADE: data must have the sampler's dtype {samples.dtype}, got {data.dtype}")


def _momentum_weight(weight: float | Tensor | None) -> Tensor:
    try:
        tensor = torch.as_tensor(1.0 if weight is None else weight, dtype=torch.float64).detach().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"ADE: momentum_weight must be a number or a tensor of shape (T,), got {weight!r}") from error
    if tensor.dim() > 1:
        raise ValueError(f"ADE: momentum_weight must be a number or have shape (T,), got {tuple(tensor.shape)}")
    if not bool((torch.isfinite(tensor) & (tensor >= 0)).all()):
        raise ValueError(f"ADE: momentum_weight must be finite and >= 0, got {weight!r}")
    return tensor


def _optimizer(
    name: str, given: OptimizerOrFactory | None, parameters: Iterable[nn.Parameter], *, maximize: bool
) -> Optimizer | None:
    """The given optimizer, checked to move its player's way, or Adam; None if there is nothing to move."""
    if given is None or not isinstance(given, Optimizer):
        parameters = [p for p in parameters if p.requires_grad]
        if not parameters:
            return None
        given = torch.optim.Adam(parameters, lr=1e-3, maximize=maximize) if given is None else given(parameters)
        if not isinstance(given, Optimizer):
            raise TypeError(f"ADE: {name} must be an optimizer or return one, got {type(given).__name__}")
    if any(bool(group.get("maximize", False)) is not maximize for group in given.param_groups):
        player, direction = ("potential", "ascends") if maximize else ("sampler", "descends")
        raise ValueError(f"ADE: {name} must have maximize={maximize}: the {player} {direction} the objective")
    return given


def _evaluate(potential, x: Tensor) -> Tensor:
    """f(x), [B]; a trailing [B, 1] is accepted, anything else would broadcast into nonsense."""
    values = potential(x)
    if values.shape == (x.shape[0], 1):
        values = values.squeeze(1)
    if values.shape != (x.shape[0],):
        raise ValueError(
            f"ADE: potential must map {tuple(x.shape)} to ({x.shape[0]},) or ({x.shape[0]}, 1), "
            f"got {tuple(values.shape)}"
        )
    return values


def _clip_grad_norm(optimizer: Optimizer, limit: float | None) -> Tensor:
    """The norm of all gradients of one optimizer, scaled down in place to at most ``limit``."""
    parameters = list(itertools.chain.from_iterable(group["params"] for group in optimizer.param_groups))
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(grads)
    if limit is not None and grads:
        nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm


@contextmanager
def _frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """No gradients for the parameters inside the block; each one's own setting is back afterwards."""
    changed = [p for p in parameters if p.requires_grad]
    try:
        for parameter in changed:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in changed:
            parameter.requires_grad_(True)
