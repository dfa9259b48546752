"""log Z between two annealed estimates: from a Gaussian up to p_f, and from samples of p_f down to the Gaussian."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .._tensors import floating_tensor
from ..dynamics import NonFiniteError
from ..dynamics.base import is_number
from ..fields import MLPField
from ..initial.base import as_count, standard_normal_log_density
from ..potentials import WithBase
from ..potentials._checks import independent_of_x, per_sample
from ..weighted import chunk_rows, evaluating
from ..weights import log_mean_exp, log_mean_exp_error

if TYPE_CHECKING:
    from ..training.sampler import DualSampler

# Step sizes are adapted to this acceptance (leapfrog is most efficient between 0.65 and 0.9: Beskos et al. 2013), by
# this rate, first this often at the Gaussian itself.
_ACCEPTANCE, _RATE, _WARM_UP = 0.8, 0.1, 50
_PILOT_CHAINS = 100
# A trajectory of a constant length could be one period of a Gaussian's, and come back to where it started.
_JITTER = 0.2
# How slowly the annealing starts and ends: half the width of its logistic curve (Grosse et al. 2015).
_SHARPNESS = 4.0


class LogZBracket(NamedTuple):
    """Estimates of log Z from below and from above, each with its standard error; Python floats, nats.

    upper_is_bound: whether ``upper`` came from exact samples of p_f. If not it is a consistency check alone.
    """

    lower: float
    lower_se: float
    upper: float
    upper_se: float
    upper_is_bound: bool


def log_z_bracket(
    potential: Callable[[Tensor], Tensor],
    sampler: DualSampler | None = None,
    *,
    exact_samples: Tensor | None = None,
    samples: Tensor | None = None,
    mean: float | Tensor | None = None,
    std: float | Tensor | None = None,
    n_steps: int = 500,
    n_chains: int = 500,
    n_leapfrog: int = 4,
    step_size: float | None = None,
    momentum_weight: float | Tensor | None = None,
    generator: torch.Generator | None = None,
) -> LogZBracket:
    """Bounds of ``log ∫ exp f(x) dx`` by annealed importance sampling, forwards and backwards.

    Between N(mean, std²) and p_f stand ``exp(β f(x)) N(x)^(1-β)``, for β from 0 to 1 in ``n_steps`` steps of a logistic
    curve. A chain that starts at the Gaussian and makes one Metropolis-corrected leapfrog trajectory at each β has a
    weight of mean Z (Neal 2001): ``lower = log mean w`` is a stochastic lower bound, above log Z + b with probability
    at most e^-b. A chain that starts at a sample of p_f and goes the same way back has a weight of mean 1/Z
    (Grosse, Ghahramani and Adams 2015): ``upper = -log mean (1/w)`` is an upper bound likewise, if these samples are
    exact. From samples of a sampler or from data it is no bound but a consistency check: if the ends differ, the chains
    do not mix or the samples are not p_f's; if they agree, neither is proved. The standard errors are the delta
    method's, and grow without bound when neighbours on the way are too far apart (few steps, a far too wide Gaussian).

    Args:
        potential: f, ``(B, *event)`` to ``(B,)`` or ``(B, 1)``. MLPs run on the fused kernels.
        sampler: an `ade.DualSampler`: where no samples are given, upper starts from its `DualSampler.metropolis`; where
            no Gaussian is given or known, twice as wide as these is taken.
        exact_samples: ``(n, *event)``, independent exact samples of p_f: upper is a bound. One chain for each.
        samples: the same, from another source (data, resampled): upper is a consistency check.
        mean, std: the Gaussian's, numbers or tensors that broadcast to the event. It has to be broad: mass of p_f that
            it never meets is missing from lower. Both None: those of the potential where it is an `ade.WithBase`, else
            from the samples.
        n_steps: how many β, n_chains: how many chains forwards (and backwards from a sampler).
        n_leapfrog: steps of each trajectory; its momenta are N(0, I) in units of ``std``.
        step_size: of leapfrog, in units of ``std``. None: adapted to an acceptance of 0.8, for every β by itself, in a
            preliminary run of 100 chains; both directions then use the same fixed step sizes (times a random factor of
            0.8 to 1.2 for each trajectory), so that the bounds hold.
        momentum_weight: of the sampler, as in `log_z`.
        generator: source of all randomness.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or shape; no sampler and no samples; no Gaussian; an f that
            autograd cannot differentiate in x.
        NonFiniteError: f is NaN or infinite where a chain is.
    """
    name = "log_z_bracket"
    if not callable(potential):
        raise TypeError(f"{name}: potential must be callable, [B, *event] -> [B], got {type(potential).__name__}")
    n_steps = as_count(name, "n_steps", n_steps, least=1)
    n_chains = as_count(name, "n_chains", n_chains, least=2)
    n_leapfrog = as_count(name, "n_leapfrog", n_leapfrog, least=1)
    if step_size is not None and not (is_number(step_size) and 0 < step_size < math.inf):
        raise ValueError(f"{name}: step_size must be a positive number or None, got {step_size!r}")
    if exact_samples is not None and samples is not None:
        raise ValueError(f"{name}: give exact_samples or samples, not both")
    if exact_samples is None and samples is None:
        if sampler is None:
            raise ValueError(f"{name}: upper needs samples to start from: give sampler, exact_samples or samples")
        drawn = sampler.metropolis(potential, n_chains, momentum_weight=momentum_weight, generator=generator)
        start = drawn.x
    else:
        argument = "samples" if exact_samples is None else "exact_samples"
        start = _checked_samples(name, argument, samples if exact_samples is None else exact_samples)
    path = _Path.between(name, potential, start, mean, std)
    with evaluating(potential):
        betas = _schedule(n_steps)
        if step_size is None:
            step_sizes = _adapted_step_sizes(path, betas, n_leapfrog, start, generator)
        else:
            step_sizes = [float(step_size)] * (n_steps - 1)
        walk = _Walk(path, betas, step_sizes, n_leapfrog, generator)
        rows = chunk_rows(tuple(start.shape[1:]))
        sizes = [min(rows, n_chains - at) for at in range(0, n_chains, rows)]
        up = torch.cat([walk.forwards(path.normal(size, start, generator)) for size in sizes])
        down = torch.cat([walk.backwards(path.to_units(part)) for part in start.split(rows)])
    for what, log_w in (("lower", up), ("upper", down)):
        if not bool((log_w.abs() < math.inf).all()):
            raise NonFiniteError(f"{name}: f is NaN or infinite on the way of {what}'s chains")
    return LogZBracket(
        log_mean_exp(up).item(),
        log_mean_exp_error(up).item(),
        -log_mean_exp(-down).item(),
        log_mean_exp_error(-down).item(),
        exact_samples is not None,
    )


@dataclass(frozen=True)
class _Path:
    """The densities on the way, in units z = (x - mean) / std: N(z; 0, I) exp(β g(z)), with ∫ = Z at β = 1.

    tilt: g = f - log N(x; mean, std²) at x as (values, gradient by x).
    """

    tilt: Callable[[Tensor], tuple[Tensor, Tensor]]
    mean: Tensor
    std: Tensor

    @classmethod
    def between(cls, name: str, potential: Callable[..., Tensor], start: Tensor, mean: Any, std: Any) -> _Path:
        if (mean is None) != (std is None):
            raise ValueError(f"{name}: mean and std must be given together, got one of them")
        if mean is None and isinstance(potential, WithBase):
            # f - log N is the inner potential itself: nothing cancels, and its kernels can be used.
            inner = _value_and_gradient(name, potential.potential, start)
            return cls(inner, *potential.base(start.shape[1:], start.dtype))
        if mean is None:
            mean, std = start.mean(0), 2 * start.std(0)
        mean, std = (_broadcast(name, key, value, start) for key, value in (("mean", mean), ("std", std)))
        if not bool((std > 0).all()):
            raise ValueError(f"{name}: std must be positive, got {std.min().item():g}")
        whole, log_scale = _value_and_gradient(name, potential, start), std.log().sum()

        def tilt(x: Tensor) -> tuple[Tensor, Tensor]:
            values, gradient = whole(x)
            z = (x - mean) / std
            return values - standard_normal_log_density(z) + log_scale, gradient + z / std

        return cls(tilt, mean, std)

    def normal(self, n: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
        """[n, *event] standard normal, at the Gaussian's end of the path."""
        return _normal((n, *like.shape[1:]), like, generator)

    def to_units(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(g [n], its gradient by z [n, *event])."""
        values, gradient = self.tilt(self.mean + self.std * z)
        return values, gradient * self.std


class _Walk:
    """Chains along the path, one trajectory at each β but the first and the last.

    betas: 0 = β_0 < ... < β_T = 1. step_sizes: [T - 1], at β_1 to β_{T-1}.
    """

    def __init__(
        self,
        path: _Path,
        betas: list[float],
        step_sizes: list[float],
        n_leapfrog: int,
        generator: torch.Generator | None,
    ) -> None:
        self._path, self._betas, self._step_sizes = path, betas, step_sizes
        self._n_leapfrog, self._generator = n_leapfrog, generator

    def forwards(self, z: Tensor) -> Tensor:
        """Log-weights [n] float64 of chains from z ~ N(0, I): Σ_t (β_{t+1} - β_t) g(z_t)."""
        return self._weigh(z, range(len(self._betas) - 1), lambda t: t + 1)

    def backwards(self, z: Tensor) -> Tensor:
        """The same sum along chains from z ~ p_f, in whose mean over exp(-·) stands 1/Z."""
        return self._weigh(z, range(len(self._betas) - 2, -1, -1), lambda t: t)

    def _weigh(self, z: Tensor, steps: range, beta_after: Callable[[int], int]) -> Tensor:
        """Takes in the gap between β_t and β_{t+1} for each t, and moves at the β on its far side."""
        state = _State.at(self._path, z)
        log_w = z.new_zeros(len(z), dtype=torch.float64)
        for t in steps:
            log_w += (self._betas[t + 1] - self._betas[t]) * state.tilt.double()
            there = beta_after(t)
            if 0 < there < len(self._betas) - 1:
                step_size = self._step_sizes[there - 1]
                state, _ = _trajectory(
                    self._path, state, self._betas[there], step_size, self._n_leapfrog, self._generator
                )
        return log_w


class _State(NamedTuple):
    """z [n, *event], g(z) [n] and its gradient by z."""

    z: Tensor
    tilt: Tensor
    gradient: Tensor

    @classmethod
    def at(cls, path: _Path, z: Tensor) -> _State:
        return cls(z, *path(z))


def _trajectory(
    path: _Path, state: _State, beta: float, step_size: float, n_leapfrog: int, generator: torch.Generator | None
) -> tuple[_State, Tensor]:
    """One reversible transition that leaves N(z) exp(β g(z)) invariant; also the acceptance probabilities [n]."""
    z, tilt, gradient = state
    v = _normal(z.shape, z, generator)
    eta = _like(step_size * (1 - _JITTER + 2 * _JITTER * _uniform((len(z),), z, generator)), z)
    log_p = beta * tilt + standard_normal_log_density(z) + standard_normal_log_density(v)
    v = v + eta / 2 * (beta * gradient - z)
    for step in range(n_leapfrog):
        z = z + eta * v
        tilt, gradient = path(z)
        v = v + (eta if step < n_leapfrog - 1 else eta / 2) * (beta * gradient - z)
    gain = beta * tilt + standard_normal_log_density(z) + standard_normal_log_density(v) - log_p
    # A trajectory that has flown apart (NaN) is refused.
    probability = gain.double().exp().clamp(max=1.0).nan_to_num(nan=0.0)
    accept = _uniform((len(z),), z, generator).double() < probability
    pairs = zip((z, tilt, gradient), state, strict=True)
    return _State(*[torch.where(_like(accept, new), new, old) for new, old in pairs]), probability


def _like(rows: Tensor, z: Tensor) -> Tensor:
    """[n] with as many dimensions as z."""
    return rows.view(-1, *(1 for _ in z.shape[1:]))


def _adapted_step_sizes(
    path: _Path, betas: list[float], n_leapfrog: int, like: Tensor, generator: torch.Generator | None
) -> list[float]:
    """Step sizes at β_1 to β_{T-1}: those of a run forwards, which steers each by the acceptance at the last."""
    state = _State.at(path, path.normal(_PILOT_CHAINS, like, generator))
    log_step, found = math.log(0.5) - 0.25 * math.log(math.prod(like.shape[1:])), []
    for beta in [0.0] * _WARM_UP + betas[1:-1]:
        found.append(math.exp(log_step))
        state, probability = _trajectory(path, state, beta, found[-1], n_leapfrog, generator)
        log_step = min(log_step + _RATE * (probability.mean().item() - _ACCEPTANCE) / _ACCEPTANCE, math.log(2.0))
    return found[_WARM_UP:]


def _schedule(n_steps: int) -> list[float]:
    """0 = β_0 < ... < β_T = 1 along a logistic curve."""
    curve = [1 / (1 + math.exp(-_SHARPNESS * (2 * t / n_steps - 1))) for t in range(n_steps + 1)]
    return [0.0, *((c - curve[0]) / (curve[-1] - curve[0]) for c in curve[1:-1]), 1.0]


def _value_and_gradient(
    name: str, potential: Callable[..., Tensor], like: Tensor
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """(f [n], ∇f [n, *event]) of x, by the MLP kernels where they know the potential."""
    field = MLPField.match(potential)
    if not isinstance(field, str) and like.dim() == 2 and field.refuses(like) is None:
        return field.value_and_grad

    def by_autograd(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            values = per_sample(name, "potential", potential(x), len(x))
            found = torch.autograd.grad(values.sum(), x, allow_unused=True) if values.requires_grad else (None,)
        if found[0] is None:
            raise independent_of_x(name)
        return values.detach(), found[0]

    return by_autograd


def _checked_samples(name: str, argument: str, given: object) -> Tensor:
    samples = floating_tensor(name, argument, given)
    if samples.dim() < 2 or len(samples) < 2:
        raise ValueError(f"{name}: {argument} must be (n, *event) with n at least 2, got {tuple(samples.shape)}")
    if not bool(samples.isfinite().all()):
        raise ValueError(f"{name}: {argument} must be finite, got NaN or infinity")
    return samples.detach()


def _broadcast(name: str, argument: str, value: float | Tensor, like: Tensor) -> Tensor:
    """A number or a tensor as the event's shape, in the samples' dtype."""
    if not isinstance(value, Tensor) and not is_number(value):
        raise TypeError(f"{name}: {argument} must be a number or a tensor, got {type(value).__name__}")
    tensor = torch.as_tensor(value).detach().to(like)
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"{name}: {argument} must be finite, got NaN or infinity")
    try:
        return tensor.expand(like.shape[1:])
    except RuntimeError as error:
        raise ValueError(
            f"{name}: {argument} must broadcast to the event {tuple(like.shape[1:])}, got {tuple(tensor.shape)}"
        ) from error


def _normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = like.device if generator is None else generator.device
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=device).to(like.device)


def _uniform(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = like.device if generator is None else generator.device
    return torch.rand(shape, generator=generator, dtype=like.dtype, device=device).to(like.device)
