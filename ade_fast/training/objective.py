"""ADE's saddle objective (8, 20): one unroll and one backward pass serve both players."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..dynamics import Diagnostics
from ..fields import fused_sum, pinned
from ..initial import Empirical
from ..potentials.conditioned import Condition
from ..weights import (
    as_momentum_weight,
    default_momentum_weight,
    why_no_weights,
)
from ._arguments import integer, number
from .bounds import Bounds, fraction
from .capture import Captured, refusal, watched_elsewhere
from .divergence import Watch
from .ranks import Ranks, refuse_wrapped
from .sampler import DualSampler
from .terms import COVERAGE_EVERY, Objective, Terms, together
from .updates import (
    OptimizerOrFactory,
    clip_grads,
    forget_gradients,
    frozen,
    grad_norms,
    gradients_of,
    player_optimizer,
    shortened,
    steps_itself,
)
from .values import values_of

_GAP = 100.0


class ADE(Objective):
    """Adversarial dynamics embedding: max over f, min over the sampler, of ell (20), or of tighter bounds.

    ell = E_data[f(x)] - E_q[f(x^T) - lambda/2 |v^T|^2] + entropy_weight * E_q[log q^T(x^T, v^T)] - penalties

    ``loss(data)`` is ell with the sign as it stands: after ``loss.backward()`` every parameter's ``.grad`` is
    d ell/d parameter. The sampler descends ell; the potential ascends it, with an optimizer made with
    ``maximize=True``. ``step(data)`` does both.

    ell bounds the log-likelihood of p_f from above only loosely: E_q[log w] stands for log E_q[w] = log Z, with
    w = exp(f(x^T) - lambda/2 |v^T|^2) / q^T(x^T, v^T). As q^T is known, so are the weights of one batch, and

        ``bound="importance"``      log mean w, which is maximum likelihood as the batch grows;
        ``sampler_bound="renyi"``   2 log mean w^(1/2), between the two: for the sampler the best of the three.

    Then ``loss(data)`` is f_data - (f's bound of log Z_x, the momenta's normaliser taken off) - penalties, and
    ``loss.backward()`` leaves the gradient of f's bound on everything that f depends on, and of the sampler's bound on
    the sampler's parameters: exact through the same unroll, at the price of one more vector-Jacobian product of its
    graph where the two differ. All K = B * samples_per_point samples are one group. Not defined, and refused, where q^T
    has no density: ``Empirical``, ``sample_range``, lambda = 0.

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
            None is 1, and for `Langevin` 1/noise_std^2 as it was at initialisation. It weighs nothing where there is no
            momentum (`DeterministicLangevin`).
        entropy_weight: factor of E[log q^T]; 1 is the paper's objective, and the only one with weights.
        bound: f's bound of log Z: "elbo" (20) or "importance".
        sampler_bound: the sampler's: "elbo", "renyi" (order 1/2) or "importance".
        samples_per_point: samples of the dual sampler for each data point.
        min_ess: with ``bound="importance"``: temper, (1/beta) log mean w^beta, by the largest beta <= 1 (no gradient
            through it) whose weights w^beta have an effective sample size of at least this fraction; for high
            dimensions. beta -> 0 is (20). The sampler's bound is then never tighter than f's.
        sampler_min_ess: the same for the sampler's bound: where few samples carry all weights, its gradient is that of
            (20), which all samples are part of.
        defensive: with ``bound="importance"`` and a ``WithBase`` potential: this fraction of all samples comes from the
            base measure, without an unroll, so that f does not rise unseen where q does not go.
        coverage: weight of E_data[log q^0(x)] in the sampler's objective, in every fourth of ``step``'s updates and on
            a quarter of the data (in ``loss`` with a quarter of the weight each time), which keeps q^0 from losing
            modes that its own samples no longer show; needs a q^0 with ``log_prob``. Not part of the loss's value.
        ess_pace: f's steps are shortened by the factor min(1, ess / ess_pace), ess the effective sample size of the
            update's weights: f waits for the sampler where it loses it, instead of running away. None: never.
        max_gap: limit of |f_data - f_samples|, or with ``bound="importance"`` of |f_data - f_model|: beyond it for ten
            updates, ``step`` raises ``DivergenceError``. None is 100 nats and one more per dimension.
        gradient_penalty: factor of E[|grad f|^2], >= 0.
        value_penalty: factor of E[f^2], >= 0.
        potential_optimizer: an optimizer over the potential's parameters with ``maximize=True``, or a
            function from parameters to one. None is Adam, learning rate 1e-3.
        sampler_optimizer: the same for the sampler, ``maximize=False``.
        optimizer: False: there are none here, for a loop with one optimizer of your own around ``loss``; see
            ``parameter_groups``.
        sampler_steps: sampler updates per potential update. The last of them shares its unroll with the
            potential; the others run with the potential frozen.
        grad_norm_clip: each player's gradient norm is scaled down to at most this before its update.
        check_finite: raise ``NonFiniteError`` when the objective or a gradient is not finite, before any
            parameter is touched (costs one device synchronisation per unroll).
        data_parallel: ``step`` runs in every process of torch.distributed's default group, each with its own part of
            the data and noise of its own: rank 0's players are where all begin, gradients and metrics are means over
            the ranks, and so the players stay equal. Bounds of log Z are those of all ranks' samples together
            (their log-weights are gathered), so that ``loss``, too, is a call that every rank makes. Without it, as
            under ``DistributedDataParallel`` around a plain ``ADE``, and of batches whose gradients are accumulated,
            each batch is a group of its own: the mean of the groups' bounds, looser than that of all.
        capture: whether ``step``, after a few updates that are alike, records the operators that its loss and gradients
            come to, and from then on calls these alone: the results are the same, without Python's and autograd's part
            of the time. A change of modules, settings or batch size is seen, and recorded anew; ``capture_refused``
            says where nothing is recorded. None: on the CPU, where the kernels know the potential as an MLP and the
            sampler is made of this package's parts. True: with parts of your own too, of which you promise that they
            call the same operators whatever the values are, and nothing else that matters (what tolist or numpy read
            is not seen), and on a GPU, as one CUDA graph. False: never.

    Raises:
        ValueError, TypeError: on an argument that cannot be meant; see the messages.
    """

    momentum_weight: Tensor
    passing = frozenset({"updates", "gradient_penalty", "value_penalty"})  # see `Unchanged`

    def __init__(
        self,
        potential: Callable[[Tensor], Tensor],
        sampler: DualSampler,
        *,
        momentum_weight: float | Tensor | None = None,
        entropy_weight: float = 1.0,
        bound: str = "elbo",
        sampler_bound: str = "elbo",
        samples_per_point: int = 1,
        min_ess: float | None = None,
        sampler_min_ess: float | None = None,
        defensive: float = 0.0,
        coverage: float = 0.0,
        ess_pace: float | None = None,
        max_gap: float | None = None,
        gradient_penalty: float = 0.0,
        value_penalty: float = 0.0,
        potential_optimizer: OptimizerOrFactory | None = None,
        sampler_optimizer: OptimizerOrFactory | None = None,
        optimizer: bool = True,
        sampler_steps: int = 1,
        grad_norm_clip: float | None = None,
        check_finite: bool = True,
        data_parallel: bool = False,
        capture: bool | None = None,
    ):
        super().__init__()
        if not callable(potential):
            raise TypeError(f"ADE: potential must be callable, [B, *event] -> [B], got {type(potential).__name__}")
        if not isinstance(sampler, DualSampler):
            raise TypeError(f"ADE: sampler must be an ade.DualSampler, got {type(sampler).__name__}")
        refuse_wrapped(potential)
        self.potential = potential
        self.sampler = sampler
        weight = default_momentum_weight(sampler) if momentum_weight is None else momentum_weight
        self.register_buffer("momentum_weight", as_momentum_weight("ADE", weight), persistent=False)
        self.entropy_weight = number("ADE", "entropy_weight", entropy_weight)
        self.gradient_penalty = number("ADE", "gradient_penalty", gradient_penalty)
        self.value_penalty = number("ADE", "value_penalty", value_penalty)
        self.sampler_steps = integer("ADE", "sampler_steps", sampler_steps, low=1)
        self.samples_per_point = integer("ADE", "samples_per_point", samples_per_point, low=1)
        self.bounds = Bounds.of(bound, sampler_bound, min_ess, sampler_min_ess, defensive)
        self.bounds.check(potential, sampler, self.momentum_weight, self.entropy_weight)
        self.coverage = number("ADE", "coverage", coverage)
        if self.coverage and not callable(getattr(sampler.initial, "log_prob", None)):
            raise ValueError(
                f"ADE: coverage needs q0's density at the data, a log_prob such as ade.initial.SplineFlow's: "
                f"{type(sampler.initial).__name__} has none"
            )
        self.ess_pace = fraction("ess_pace", ess_pace)
        why = why_no_weights(sampler, self.momentum_weight)
        self._has_weights = why is None
        self._data_weights: Tensor | None = None
        if self.ess_pace is not None and why is not None:
            raise ValueError(f"ADE: ess_pace needs weights: {why}")
        if grad_norm_clip is not None:
            grad_norm_clip = number("ADE", "grad_norm_clip", grad_norm_clip, "> 0 or None", zero=False)
        self.grad_norm_clip = grad_norm_clip
        self.check_finite = check_finite
        if max_gap is None:
            max_gap = _GAP + math.prod(sampler.initial.event)
        self.watch = Watch(None, number("ADE", "max_gap", max_gap, "> 0 or None", zero=False))
        self.updates = 0
        self._ranks = Ranks() if data_parallel else None
        self.capture = capture
        shared = {id(p) for p in self.potential_parameters()} & {id(p) for p in self.sampler_parameters()}
        if shared:
            raise ValueError(f"ADE: potential and sampler share {len(shared)} parameter(s): they cannot serve both")
        self._steps = steps_itself(optimizer, potential_optimizer, sampler_optimizer)
        self.potential_optimizer = self.sampler_optimizer = None
        if self._steps:
            self.potential_optimizer = player_optimizer(
                "potential_optimizer", potential_optimizer, self.potential_parameters(), maximize=True
            )
            self.sampler_optimizer = player_optimizer(
                "sampler_optimizer", sampler_optimizer, self.sampler_parameters(), maximize=False
            )
        if self._ranks is not None:
            self._ranks.begin(self)

    @property
    def capture(self) -> bool | None:
        """As it was given; once it is set, everything is looked at anew."""
        return self._capture

    @capture.setter
    def capture(self, capture: bool | None) -> None:
        if not (capture is None or isinstance(capture, bool)):
            raise TypeError(f"ADE: capture must be True, False or None, got {capture!r}")
        self._capture, self._captured = capture, Captured()

    @property
    def capture_refused(self) -> str | None:
        """Why `step` records nothing although it would, see ``capture``; None where it does, or may yet."""
        return self._captured.why_not

    def potential_parameters(self) -> Iterator[nn.Parameter]:
        """The ascending player's parameters (none for a plain function)."""
        return self.potential.parameters() if isinstance(self.potential, nn.Module) else iter(())

    def parameter_groups(
        self, *, potential: Mapping[str, object] | None = None, sampler: Mapping[str, object] | None = None
    ) -> list[dict[str, object]]:
        """Both players for one optimizer, each moved its way: ``torch.optim.Adam(model.parameter_groups(), lr=1e-3)``.

        After ``loss(data).backward()`` both have d ell/d parameter; f's group has ``maximize=True``, by which torch's
        optimizers ascend. One that knows no ``maximize`` would descend on f, silently: there, turn the sign of f's
        gradients, or take two.

        Args:
            potential, sampler: further settings of that player's group, such as ``{"lr": 2e-3}``.
        """
        return [
            {"params": list(self.potential_parameters()), **(potential or {}), "maximize": True},
            {"params": list(self.sampler_parameters()), **(sampler or {}), "maximize": False},
        ]

    def forward(self, data: Tensor, **options: Any) -> Tensor:
        """`loss`, for what wraps modules, such as DistributedDataParallel."""
        return self.loss(data, **options)

    def loss(
        self,
        data: Tensor,
        *,
        generator: torch.Generator | None = None,
        context: tuple[Tensor, ...] | None = None,
        condition: Condition | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """ell of (20), or with the bounds that were asked for, as a scalar, its gradient ready for both players.

        Args:
            data: [B, *event], B >= 1; ``samples_per_point`` times as many samples are drawn.
            generator: source of the sampler's randomness.
            context: non-leaf tensors that the potential depends on.
            condition: a tensor of B rows, or a tuple of such (labels, features), one for each of the data, of a
                potential that is called as f(x, condition). Samples are drawn at the data's conditions. Both bounds
                have to be "elbo": weights of samples at different conditions have no common log Z.
            weights: of the data, [B], >= 0 with a positive sum; E f(data) is their weighted mean. Penalties are not.

        Raises: ValueError, TypeError: data, condition or weights do not fit; NonFiniteError; as the dynamics.
        """
        self._captured.let_go()
        with self._given(condition, data), self._weighing(weights, data):
            terms, _, _ = self._objective(data, generator, context, covering=self.coverage / COVERAGE_EVERY)
        if self.check_finite and not math.isfinite(terms.loss.detach().item()):
            metrics = {name: term.item() for name, term in zip(terms._fields, terms, strict=True)}
            raise self._non_finite("the objective", data, metrics)
        return terms.loss

    def step(
        self,
        data: Tensor,
        *,
        generator: torch.Generator | None = None,
        context: tuple[Tensor, ...] | None = None,
        condition: Condition | None = None,
        weights: Tensor | None = None,
        phase: Callable[[str], AbstractContextManager[object]] = nullcontext,
        diagnostics: bool = False,
    ) -> dict[str, float]:
        """One update of the potential and ``sampler_steps`` of the sampler.

        Args:
            data, generator, context, condition, weights: as for ``loss``.
            phase: entered around each part with its name, "sampler updates" or "joint updates", to time them.
            diagnostics: whether ``sampler.dynamics.diagnostics`` is to be that of the shared unroll.

        Returns:
            The metrics of the shared unroll: loss, f_data, f_samples, kinetic, entropy (-E log q^T), penalty,
            potential_grad_norm and sampler_grad_norm (before clipping), step_size (the largest). Where q^T has a
            density also log_z (of Z_x, by all weights), ess (effective sample size of the untempered weights, as a
            fraction), initial_ess (that of q^0 alone, without the dynamics, by at most 256 samples) and beta (the
            tempering; 0 is (20)); with ``bound="importance"`` f_model, E f under p_f by the weights.
            With ``diagnostics`` those of a single dynamics too, their names after "unroll_" (`Diagnostics.figures`).

        Raises:
            NonFiniteError: see ``check_finite``. DivergenceError: f runs away from the samples (``max_gap``).
        """
        if not torch.is_grad_enabled():
            raise RuntimeError("ADE.step: gradients are off (torch.no_grad or inference_mode); call it outside")
        if not self._steps:
            raise ValueError(
                "ADE.step: there are no optimizers (optimizer=False); call loss(data).backward() and step your own, "
                "made from parameter_groups(), or leave out optimizer=False"
            )
        if self.potential_optimizer is None and self.sampler_optimizer is None:
            raise ValueError(
                "ADE.step: neither the potential nor the sampler has parameters; pass potential_optimizer="
            )
        if self._ranks is not None and generator is None:
            generator = self._ranks.generator(data.device)
        with self._given(condition, data), self._weighing(weights, data):
            if self.sampler_optimizer is not None:
                for _ in range(self.sampler_steps - 1):
                    with phase("sampler updates"):
                        self._sampler_update(data, generator, context)
            with phase("joint updates"):
                usual = context is condition is weights is None and not diagnostics
                return self._joint_update(data, generator, context, diagnostics, usual and self._is_captured(data))

    def _joint_update(
        self,
        data: Tensor,
        generator: torch.Generator | None,
        context: tuple[Tensor, ...] | None,
        diagnostics: bool = False,
        captured: bool = False,
    ) -> dict[str, float]:
        """One unroll, one backward pass, one update of each player."""
        players = {"potential_grad_norm": self.potential_optimizer, "sampler_grad_norm": self.sampler_optimizer}
        optimizers = {name: optimizer for name, optimizer in players.items() if optimizer is not None}
        names, values, x = self._gradients(data, generator, context, diagnostics, captured)
        norms = grad_norms(*map(gradients_of, optimizers.values()))
        values = torch.cat([values, norms.to(values)])
        # One transfer for all metrics; it also tells whether to touch the parameters at all.
        found = (values if self._ranks is None else self._ranks.average(values)).tolist()
        known = dict(zip((*names, *optimizers), found, strict=True))
        metrics = {name: known[name] for name in (*Terms._fields, *optimizers, *names)}
        finite = [*Terms._fields, *optimizers]
        if self.check_finite and not all(math.isfinite(metrics[name]) for name in finite):
            raise self._non_finite("the objective or its gradient", data, metrics)
        if diagnostics and isinstance(seen := getattr(self.sampler.dynamics, "diagnostics", None), Diagnostics):
            metrics |= {f"unroll_{name}": value for name, value in seen.figures().items()}
        with shortened(self.potential_optimizer, self._pace(metrics)):
            for name, optimizer in optimizers.items():
                clip_grads(optimizer, metrics[name], self.grad_norm_clip)
                optimizer.step()
        self._fill_replay_buffer(x)
        self.updates += 1
        self.watch.metrics(self.updates, metrics)
        return metrics

    def _gradients(
        self,
        data: Tensor,
        generator: torch.Generator | None,
        context: tuple[Tensor, ...] | None,
        diagnostics: bool,
        captured: bool,
    ) -> tuple[Sequence[str], Tensor, Tensor]:
        """The names of terms and figures and their values [n], and the end points, with the gradients on all that gets
        one, averaged over ranks."""
        if captured:
            # The penalties, which schedules change in each update, as tensors.
            penalties = [_factor(p, data.dtype, data.device) for p in (self.gradient_penalty, self.value_penalty)]
            compute = self._computing(data, generator, penalties)
            inputs = [data, generator, *penalties]
            replayed = self._captured(self._covering(), self, self._refusing(data), compute, inputs)
            if replayed is not None:
                found, gradients = replayed
                forget_gradients(gradients.tensors, self._optimizers())
                gradients.accumulate()
                return found
        self._captured.let_go()
        terms, sample, figures = self._objective(data, generator, context, True, diagnostics, covering=self._covering())
        forget_gradients(self.parameters(), self._optimizers())
        terms.loss.backward()
        if self._ranks is not None:
            self._ranks.average_gradients(self._optimizers())
        return *together(terms, figures), sample.x

    def _computing(
        self, data: Tensor, generator: torch.Generator | None, penalties: Sequence[float | Tensor]
    ) -> Callable[[Sequence[Tensor]], tuple[Any, list[Tensor | None]]]:
        def compute(parameters: Sequence[Tensor]) -> tuple[Any, list[Tensor | None]]:
            terms, sample, figures = self._objective(
                data, generator, None, True, penalties=penalties, covering=self._covering()
            )
            gradients = torch.autograd.grad(terms.loss, parameters, allow_unused=True)
            return (*together(terms, figures), sample.x), list(gradients)

        return compute

    def _refusing(self, data: Tensor) -> Callable[[], str | None]:
        def refuses() -> str | None:
            if not self.capture and fused_sum(self.potential, data) is None:
                return "the kernels do not know the potential (capture=True records it)"
            others = (module for module in self.modules() if module is not self or type(self) is not ADE)
            return refusal(others, bool(self.capture))

        return refuses

    def _is_captured(self, data: Tensor) -> bool:
        """Whether an update with nothing unusual about it may be one of the recorded ones."""
        if self.capture is False or self._ranks is not None or watched_elsewhere():
            return False
        if not isinstance(data, Tensor) or data.requires_grad:
            return False
        return bool(self.capture) or data.device.type == "cpu"

    def _covering(self) -> float:
        """``coverage``, in the updates that have it."""
        return 0.0 if self.updates % COVERAGE_EVERY else self.coverage

    def _pace(self, metrics: Mapping[str, float]) -> float:
        """The factor of f's step."""
        return 1.0 if self.ess_pace is None else min(1.0, metrics["ess"] / self.ess_pace)

    def _optimizers(self) -> list[Optimizer]:
        return [o for o in (self.potential_optimizer, self.sampler_optimizer) if o is not None]

    def _sampler_update(
        self, data: Tensor, generator: torch.Generator | None, context: tuple[Tensor, ...] | None
    ) -> None:
        """One update of the sampler alone: f is frozen, so the unroll spends nothing on its parameters."""
        optimizer = self.sampler_optimizer
        assert optimizer is not None
        self._captured.let_go()
        with frozen(self.potential_parameters()), pinned(self.potential):
            n = self._batch_size(data) * self.samples_per_point
            sample = self.sampler.sample(self.potential, n, generator, context)
            model = self._model_terms(sample, values_of(self.potential, sample.x))
            loss = -self.bounds.of_sampler(model.model, model.log_w)
            # Leaves of a potential that is a plain function cannot be frozen: name who gets gradients.
            parameters = [p for p in self.sampler_parameters() if p.requires_grad]
            forget_gradients(self.sampler.parameters(), [optimizer])
            loss.backward(inputs=parameters)
        found = loss.detach().clone()
        if self._ranks is not None:
            self._ranks.average_gradients([optimizer])
            found = self._ranks.average(found)
        found, norm = torch.cat([found[None], grad_norms(gradients_of(optimizer)).to(found)]).tolist()
        if self.check_finite and not math.isfinite(found + norm):
            raise self._non_finite("the sampler's objective or its gradient", data, {})
        clip_grads(optimizer, norm, self.grad_norm_clip)
        optimizer.step()
        self._fill_replay_buffer(sample.x)

    def _fill_replay_buffer(self, x: Tensor) -> None:
        """Where chains persist (Empirical with a buffer), they go on from these end points."""
        start = self.sampler.initial
        if isinstance(start, Empirical) and start.buffer_size is not None:
            start.update(x.detach())


@functools.lru_cache(maxsize=8)
def _factor(value: float, dtype: torch.dtype, device: torch.device) -> Tensor | float:
    """A penalty's factor as a tensor that nobody writes to; without a penalty the number."""
    with torch.inference_mode(False):
        return torch.tensor(value, dtype=dtype, device=device) if value else 0.0
