"""Training by the other estimators of Table 1: f descends one of them, and the sampler follows f."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import estimators
from .._sums import mean_square, numbers
from ..fields import fused_value_and_grad, pinned
from ..initial import Empirical
from ..potentials.conditioned import Condition
from .config import Config
from .objective import ADE
from .sampler import DualSampler
from .streams import stream
from .updates import clip_grads, forget_gradients, frozen, grad_norms, gradients_of
from .values import unfused_values_and_grad, values_of

Loss = Callable[..., Tensor]
"""(potential, data, generator=) -> scalar to minimise."""

# The replay buffer of pcd, and how often its chains begin again: as in Du and Mordatch (2019).
_BUFFER, _REINIT = 10_000, 0.05


class Estimation(ADE):
    """f descends an estimator's loss; the sampler, as in `ADE`, a bound of log Z of f, so that it follows f.

    Estimators have no sampler of their own to score f by. This one moves no parameter of f: it gives the held-out
    likelihood, exact samples and the pictures, and its effective sample size says how far these are to be trusted.

    Args:
        estimate: the loss, `Loss`.
        replay: the buffer that it feeds, as part of the state; None: none.
        potential, sampler, arguments: as in `ADE`; what concerns f's bound is of no use here.
    """

    def __init__(
        self,
        estimate: Loss,
        potential: nn.Module,
        sampler: DualSampler,
        *,
        replay: Empirical | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(potential, sampler, **arguments)
        self.estimate = estimate
        self.replay = replay

    def loss(
        self,
        data: Tensor,
        *,
        generator: torch.Generator | None = None,
        context: tuple[Tensor, ...] | None = None,
        condition: Condition | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """The estimator's loss, to minimise. No gradient reaches the sampler; there is no ``context``, no ``condition``
        and there are no ``weights``."""
        _refuse(context=context, condition=condition, weights=weights)
        return self.estimate(self.potential, data, generator=generator)

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
        """One update of f, and ``sampler_steps`` of the sampler, after which the metrics are those of `ADE.step`.

        "loss" is the estimator's; "penalty" is subtracted from f's side as in `ADE`.
        """
        _refuse(context=context, condition=condition, weights=weights)
        self._batch_size(data)
        with phase("joint updates"):
            metrics = self._potential_update(data, generator)
        for left in reversed(range(self.sampler_steps)):
            with phase("sampler updates"):
                followed = self._follow(data, generator, diagnostics and not left)
        metrics |= followed
        self.updates += 1
        self.watch.metrics(self.updates, metrics)
        return metrics

    def _potential_update(self, data: Tensor, generator: torch.Generator | None) -> dict[str, float]:
        optimizer = self.potential_optimizer
        assert optimizer is not None
        penalty = self._penalty(data)
        loss = self.loss(data, generator=generator)
        forget_gradients(self.parameters(), self._optimizers())
        (-loss - penalty).backward()  # f's optimizer ascends
        (norm,) = grad_norms(gradients_of(optimizer))
        found, penalised, length = numbers([loss, penalty, norm]).tolist()
        if self.check_finite and not math.isfinite(found + penalised + length):
            raise self._non_finite("the estimator's loss or its gradient", data, {})
        clip_grads(optimizer, length, self.grad_norm_clip)
        optimizer.step()
        return {"loss": found, "penalty": penalised, "potential_grad_norm": length}

    def _penalty(self, data: Tensor) -> Tensor:
        """The penalties of `ADE` at the data alone."""
        penalty = data.new_zeros(())
        if self.gradient_penalty or self.value_penalty:
            x = data.detach()
            with pinned(self.potential):
                found = fused_value_and_grad(self.potential, x)
                f, grad = unfused_values_and_grad(self.potential, x) if found is None else found
            penalty = penalty + self.gradient_penalty * mean_square(grad)
            penalty = penalty + self.value_penalty * f.square().mean()
        return penalty

    def _follow(self, data: Tensor, generator: torch.Generator | None, diagnostics: bool) -> dict[str, float]:
        """One update of the sampler, f frozen; the metrics of its unroll."""
        with frozen(self.potential_parameters()), pinned(self.potential):
            n = len(data) * self.samples_per_point
            sample = self.sampler.sample(self.potential, n, generator, diagnostics=diagnostics)
            with torch.no_grad():
                f_data = values_of(self.potential, data).mean()
            model = self._model_terms(sample, values_of(self.potential, sample.x))
            loss = -self.bounds.of_sampler(model.model, model.log_w)
            if covering := self._covering():
                loss = loss - covering * self._covered(data)
            figures = self._figures(sample, model, 1.0, None)
            if self.sampler_optimizer is not None:
                forget_gradients(self.sampler.parameters(), [self.sampler_optimizer])
                loss.backward(inputs=[p for p in self.sampler_parameters() if p.requires_grad])
        terms: dict[str, Any] = {
            "f_data": f_data, "f_samples": model.f_samples, "kinetic": model.kinetic, "entropy": model.entropy,
        }  # fmt: skip
        if self.sampler_optimizer is not None:
            (terms["sampler_grad_norm"],) = grad_norms(gradients_of(self.sampler_optimizer))
        terms |= figures
        metrics = dict(zip(terms, numbers(list(terms.values())).tolist(), strict=True))
        if self.check_finite and not all(map(math.isfinite, (metrics["f_samples"], metrics["entropy"]))):
            raise self._non_finite("the sampler's objective", data, {})
        if self.sampler_optimizer is not None:
            clip_grads(self.sampler_optimizer, metrics["sampler_grad_norm"], self.grad_norm_clip)
            self.sampler_optimizer.step()
        return metrics


def _refuse(**given: object) -> None:
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"ADE: {name} must be None with another estimator, got {type(value).__name__}")


def estimation(config: Config, potential: nn.Module, sampler: DualSampler, arguments: dict[str, Any]) -> Estimation:
    """The objective of ``config.objective``; ``arguments`` are `ADE`'s."""
    replay: Any = None
    chain: dict[str, Any] = {"n_steps": config.chain_steps, "step_size": config.chain_step_size}
    tested: dict[str, Any] = {**chain, "accept_reject": config.chain_accept}
    if config.objective == "pcd":
        like = next(sampler.parameters(), torch.empty(0))
        noise = torch.randn(_BUFFER, *sampler.initial.event, generator=stream(config.seed, "chains"))
        replay = Empirical(noise.to(like), _BUFFER, reinit=_REINIT)
    losses: dict[str, Loss] = {
        "cd": partial(estimators.contrastive_divergence, **tested),
        "pcd": partial(estimators.persistent_contrastive_divergence, replay=replay, **tested),
        "icd": partial(estimators.improved_contrastive_divergence, **chain),
        "sm": lambda f, x, generator: estimators.score_matching(f, x),
        "dsm": partial(estimators.denoising_score_matching, noise_std=config.denoising_std),
        "ssm": estimators.sliced_score_matching,
        "ksd": lambda f, x, generator: estimators.kernel_stein_discrepancy(f, x),
        "nlco": partial(estimators.nonlocal_contrastive, radius=config.radius),
        "mpf": partial(estimators.minimum_probability_flow, radius=config.radius),
        "nce": estimators.noise_contrastive,
    }
    return Estimation(losses[config.objective], potential, sampler, replay=replay, **arguments)
