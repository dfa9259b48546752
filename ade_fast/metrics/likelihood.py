"""log Z and the log-likelihood of a potential, from the dual sampler's importance weights."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .._tensors import check_dtype, floating_tensor
from ..initial.base import as_count
from ..potentials.conditioned import Condition
from ..weighted import WeightedSampler, at_one_condition, evaluate, evaluating
from ..weights import effective_sample_size, log_mean_exp, log_mean_exp_error

if TYPE_CHECKING:
    from ..training.sampler import DualSampler

_FEW = 100  # effective samples, below which the figures cannot be trusted


class LogZ(NamedTuple):
    """log Z with its standard error, and the effective sample size as a fraction in (0, 1]; Python floats, nats."""

    log_z: float
    standard_error: float
    ess: float

    @classmethod
    def of(cls, log_w: Tensor) -> LogZ:
        """From log-weights [n] without the momenta's normaliser, so that E[w] = Z."""
        return cls(log_mean_exp(log_w).item(), log_mean_exp_error(log_w).item(), effective_sample_size(log_w).item())


class LogLikelihood(NamedTuple):
    """The mean of log p_f over the data with its standard error, and log Z's figures as in `LogZ`; Python floats, nats.

    ``standard_error`` holds both sources: that of the data, and log Z's.
    """

    mean: float
    standard_error: float
    log_z: float
    log_z_standard_error: float
    ess: float


def log_z(
    potential: Callable[[Tensor], Tensor],
    sampler: DualSampler,
    n_samples: int = 100_000,
    momentum_weight: float | Tensor | None = None,
    generator: torch.Generator | None = None,
    condition: Condition | None = None,
) -> LogZ:
    """Estimate of ``log ∫ exp f(x) dx`` by importance sampling with the dual sampler.

    ``log mean w - Σ_i l/2 log(2π/λ_i)`` with ``w = exp(f(x^T) - Σ_i λ_i/2 ‖v_i^T‖²) / q^T(x^T, v^T)``: mean w is
    unbiased, its logarithm is low by about Var(w) / (2 n Z²). The standard error is the delta method's,
    ``sqrt(Var(w) / n) / mean w``. The weights know nothing of places where the sampler never goes: mass that f has
    there is missing from log Z, and nothing in these figures shows it (`log_z_bracket` starts from a broad Gaussian).

    Args:
        potential: f, ``(B, *event)`` to ``(B,)`` or ``(B, 1)``, in the mode that it is in; parametrised weights
            (spectral norm) are computed once for all samples. No gradients are recorded.
        sampler: an `ade.DualSampler` whose initial distribution has a density and whose dynamics clips no samples.
        n_samples: how many, at least 2; in chunks, so that memory does not grow with them.
        momentum_weight: λ > 0, a number, or ``(T,)`` where the dynamics draws a momentum per step; None: as
            `ade.ADE` takes it. The truth does not depend on it, the effective sample size does: the best one is that
            of the training.
        generator: source of all randomness.
        condition: one row, of an f that is called as f(x, condition): each has a log Z of its own.

    Warns:
        UserWarning: fewer than 100 effective samples (``n_samples · ess``): the error is then underestimated too.

    Raises:
        TypeError, ValueError: an argument of the wrong kind; there are no weights (`Empirical`, ``sample_range``,
            λ = 0).
        NonFiniteError: f or a weight is NaN or infinite.
    """
    potential = at_one_condition("log_z", potential, condition)
    source = WeightedSampler("log_z", potential, sampler, momentum_weight)
    n_samples = as_count("log_z", "n_samples", n_samples, least=2)
    with evaluating(potential):
        return _log_z("log_z", source, n_samples, generator)


def log_likelihood(
    potential: Callable[[Tensor], Tensor],
    sampler: DualSampler,
    data: Tensor,
    n_samples: int = 100_000,
    momentum_weight: float | Tensor | None = None,
    generator: torch.Generator | None = None,
    condition: Condition | None = None,
) -> LogLikelihood:
    """Mean of ``log p_f(x) = f(x) - log Z`` over the data, in nats: the density itself, at temperature 1.

    log Z is `log_z`'s estimate; as it is biased low, the likelihood is biased high, by about Var(w) / (2 n Z²). The two
    standard errors are of independent draws and combine as ``sqrt(Var(f(data)) / n_data + se(log Z)²)``.

    Args:
        potential, sampler, n_samples, momentum_weight, generator, condition: as in `log_z`.
        data: ``(n_data, *event)``, at least 2, on the sampler's device and in its dtype: independent points that f was
            not trained on.

    Warns, raises: as `log_z`; ValueError also for data of another shape or not finite.
    """
    potential = at_one_condition("log_likelihood", potential, condition)
    source = WeightedSampler("log_likelihood", potential, sampler, momentum_weight)
    n_samples = as_count("log_likelihood", "n_samples", n_samples, least=2)
    _check_data(data, sampler)
    with evaluating(potential):
        values = evaluate("log_likelihood", potential, data)
        found = _log_z("log_likelihood", source, n_samples, generator)
    standard_error = math.hypot((values.var() / len(values)).sqrt().item(), found.standard_error)
    return LogLikelihood(values.mean().item() - found.log_z, standard_error, *found)


def _log_z(layer: str, source: WeightedSampler, n_samples: int, generator: torch.Generator | None) -> LogZ:
    log_w = torch.cat([log_w for _, log_w in source.chunks(n_samples, generator)])
    if not bool((log_w > -math.inf).any()):
        raise ValueError(f"{layer}: all {n_samples} weights are 0: f is -inf wherever the sampler goes")
    found = LogZ.of(log_w)
    if n_samples * found.ess < _FEW:
        warnings.warn(
            f"{layer}: {n_samples * found.ess:.0f} effective samples of {n_samples} (below {_FEW}): log Z is biased "
            "low and its standard error too small; draw more samples, or train the sampler further",
            UserWarning,
            stacklevel=3,
        )
    return found


def _check_data(data: Tensor, sampler: DualSampler) -> None:
    floating_tensor("log_likelihood", "data", data)
    event = tuple(sampler.initial.event)
    like = sampler.initial.sample(0, momentum_shape=sampler.dynamics.momentum_shape(event)).x
    if data.dim() == 0 or data.shape[1:] != like.shape[1:]:
        sizes = ", ".join(map(str, like.shape[1:]))
        raise ValueError(f"log_likelihood: data must have shape (n, {sizes}), got {tuple(data.shape)}")
    check_dtype("log_likelihood", "data", data, "the sampler's", like.dtype)
    if data.device != like.device:
        raise ValueError(f"log_likelihood: data must be on the sampler's device {like.device}, got {data.device}")
    if len(data) < 2:
        raise ValueError(f"log_likelihood: data must have at least 2 points, got {len(data)}")
    if not bool(data.isfinite().all()):
        raise ValueError("log_likelihood: data must be finite, got NaN or infinity")
