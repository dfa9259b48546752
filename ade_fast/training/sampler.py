"""The dual sampler: an initial distribution followed by a dynamics that the potential drives."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..dynamics import DynamicsOutput
from ..dynamics.sequential import clips_samples
from ..initial import Flow, Gaussian
from ..potentials._checks import per_sample
from ..potentials.conditioned import Condition, conditioned
from ..weighted import WeightedSampler, at_one_condition, evaluating
from ..weights import effective_sample_size
from ._arguments import integer

# Fewer effective proposals than this make resampled moments visibly wrong, however few samples are asked for.
_FEW = 100


class DualSample(NamedTuple):
    """One batch of the dual sampler.

    x: [B, *event], the end points x^T.
    v: the end momenta; [B, *momentum_shape], or [T, B, *event] where the dynamics draws a momentum
        per step (Langevin), or None where there is none.
    log_q: [B], log q^T(x, v) = log q^0 - log_det (+ log_noise). Where the initial distribution has no
        density (``Empirical``) the unknown constant log q^0 is left out, and log_q holds the rest.
    x0: [B, *event], where the dynamics started.
    v0: [B, *momentum_shape], the momenta there, or None.
    log_q0: [B], log q^0(x^0, v^0), or None where it has no density.
    """

    x: Tensor
    v: Tensor | None
    log_q: Tensor
    x0: Tensor
    v0: Tensor | None = None
    log_q0: Tensor | None = None


class Cut(NamedTuple):
    """Where the graph of a sample was cut from the sampler's parameters: leaves in it, and what each stands for."""

    leaves: list[Tensor]
    receivers: list[Tensor]


class Resampled(NamedTuple):
    """Samples of p_f by importance resampling.

    x: [n, *event], in random order.
    ess: the proposals' effective sample size, as a fraction of them.
    """

    x: Tensor
    ess: float


class MetropolisSamples(NamedTuple):
    """Samples of p_f by Metropolis-Hastings.

    x: [n, *event].
    acceptance: the fraction of proposals that were accepted.
    """

    x: Tensor
    acceptance: float


class _InBaseVariables(nn.Module):
    """f seen from a flow's base: f(g(z)) + log|det ∂g/∂z|, whose exp has the integral of exp f. (B, dim) -> (B,)."""

    def __init__(self, potential: Callable[[Tensor], Tensor], flow: Flow) -> None:
        super().__init__()
        self.potential = potential
        self.flow = flow

    def forward(self, z: Tensor) -> Tensor:
        x, log_det = _transform(self.flow, z)
        return per_sample("DualSampler", "potential", self.potential(x), len(x)) + log_det


def _transform(flow: Flow, z: Tensor) -> tuple[Tensor, Tensor]:
    """(x, log|det ∂x/∂z|) in full precision: a density is not to be rounded to bfloat16."""
    with torch.autocast(z.device.type, enabled=False):
        return flow.transform(z)


def _out_of_base(flow: Flow, sample: DualSample) -> DualSample:
    """A sample of (z, v) as one of (x, v), both ends in one pass of the flow."""
    x, log_det = _transform(flow, torch.cat([sample.x, sample.x0]))
    (x, x0), (log_det, log_det0) = x.chunk(2), log_det.chunk(2)
    assert sample.log_q0 is not None  # a flow has a density
    return DualSample(x, sample.v, sample.log_q - log_det, x0, sample.v0, sample.log_q0 - log_det0)


class DualSampler(nn.Module):
    """Draws (x^0, v^0) from ``initial`` and moves them by ``dynamics``.

    Source: paper section 3.2; the change of variables divides, log q^T = log q^0 - log|det J|, where (17)
    prints a product.

    An annealed dynamics (``AnnealedLeapfrog``) is given the Gaussian that ``initial`` is. Where ``initial`` is a flow
    x = g(z) of a Gaussian, it runs in z, on f(g(z)) + log|det ∂g/∂z|, and x, x0, log_q and log_q0 are those of the
    images.

    Args:
        initial: an object with ``event`` and
            ``sample(n, momentum_shape=None, generator=None) -> (x, v, log_q)``.
        dynamics: a layer called as ``dynamics(potential, x0, v0, generator=, context=)`` that returns at
            least ``x, v, log_det``, with ``momentum_shape(event)``: None where it takes no momentum from q^0, and draws
            its own, or has none (a false attribute ``has_momentum``). One with a true attribute ``anneals`` is called
            with ``initial=`` too.

    Raises: TypeError: one of them is no such object; ValueError: the two do not fit each other.
    """

    # By what they can do, not by their class.
    initial: Any
    dynamics: Any

    def __init__(self, initial: nn.Module, dynamics: nn.Module):
        super().__init__()
        if not callable(getattr(initial, "sample", None)) or not hasattr(initial, "event"):
            raise TypeError(
                "DualSampler: initial must be an initial distribution with .event and .sample(n, "
                f"momentum_shape, generator), such as ade.initial.Gaussian, got {type(initial).__name__}"
            )
        if not callable(dynamics) or not callable(getattr(dynamics, "momentum_shape", None)):
            raise TypeError(
                "DualSampler: dynamics must be a dynamics layer with .momentum_shape(event), such as "
                f"ade.Leapfrog, got {type(dynamics).__name__}"
            )
        if _anneals(dynamics) and not isinstance(initial, (Gaussian, Flow)):
            raise TypeError(
                f"DualSampler: {type(dynamics).__name__} anneals from a Gaussian: initial must be an "
                f"ade.initial.Gaussian or a flow (ade.initial.Flow), got {type(initial).__name__}"
            )
        self.initial = initial
        self.dynamics = dynamics
        if clips_samples(dynamics):
            warnings.warn(
                "DualSampler: dynamics clips samples to sample_range, which log_q ignores: q^T has atoms on the "
                "boundary, and the entropy is that of the samples before clipping",
                UserWarning,
                stacklevel=2,
            )

    def sample(
        self,
        potential: Callable[..., Tensor],
        n: int,
        generator: torch.Generator | None = None,
        context: tuple[Tensor, ...] | None = None,
        condition: Condition | None = None,
        diagnostics: bool = False,
    ) -> DualSample:
        """Draw n samples; differentiable with respect to everything they depend on.

        Args:
            potential: f, [B, *event] -> [B].
            n: number of samples, >= 0.
            generator: the source of all randomness (torch's global one if None).
            context: non-leaf tensors that f depends on; passed on to the dynamics.
            condition: a tensor of B rows, or a tuple of such, of an f that is called as f(x, condition); n is a
                multiple of B, and sample i has row i mod B.
            diagnostics: whether ``dynamics.diagnostics`` is to be that of this unroll.

        Returns:
            x, v and x^0 [n, *event], their log-densities [n]; see `DualSample`.

        Raises: TypeError, ValueError: n, or the condition's rows, cannot be meant; as the dynamics.
        """
        n = integer("DualSampler", "n", n, low=0)
        potential = conditioned("DualSampler", potential, condition, n)
        annealed = _anneals(self.dynamics)
        flow = self.initial if annealed and isinstance(self.initial, Flow) else None
        start, target = (self.initial, potential) if flow is None else (flow.base, _InBaseVariables(potential, flow))
        drawn = start.sample(n, momentum_shape=self._momentum_shape(), generator=generator)
        options: dict[str, Any] = {"initial": start} if annealed else {}
        options |= {"diagnostics": True} if diagnostics else {}  # a dynamics of others need not know of it
        sample = _run(self.dynamics, target, drawn, generator=generator, context=context, **options)
        return sample if flow is None else _out_of_base(flow, sample)

    def move(self, potential: Callable[..., Tensor], x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One unroll from x [n, *event] on, with momenta as ``initial`` draws them; no gradients."""
        with torch.no_grad():
            return self.dynamics(potential, x, self.momenta(len(x), generator), generator=generator).x

    def momenta(self, n: int, generator: torch.Generator | None = None) -> Tensor | None:
        """n draws of v⁰ alone, [n, *momentum_shape]; None where the dynamics takes none."""
        shape = self._momentum_shape()
        return None if shape is None else self.initial.sample(n, momentum_shape=shape, generator=generator).v

    def sample_cut(
        self,
        potential: Callable[..., Tensor],
        n: int,
        generator: torch.Generator | None = None,
        context: tuple[Tensor, ...] | None = None,
        diagnostics: bool = False,
    ) -> tuple[DualSample, Cut | None]:
        """`sample` of n points [n, *event], its graph cut from this sampler's parameters: it can be gone through alone.

        Not everywhere: a subclass may sample in its own way, a dynamics that anneals knows q^0's parameters, and one
        with networks owns more than step sizes. Then the sample is an uncut one, and comes with None.
        """
        dynamics = self.dynamics
        own = dict(dynamics.named_parameters(recurse=False)) if isinstance(dynamics, nn.Module) else None
        another = type(self).sample is not DualSampler.sample  # of a subclass
        if another or own is None or _anneals(dynamics) or len(own) < len(list(dynamics.parameters())):
            return self.sample(potential, n, generator, context, diagnostics=diagnostics), None
        cut = Cut([], [])

        def leaf(tensor: Tensor | None) -> Tensor | None:
            if tensor is None or not tensor.requires_grad:
                return tensor
            cut.receivers.append(tensor)
            cut.leaves.append(tensor.detach().requires_grad_())
            return cut.leaves[-1]

        drawn = self.initial.sample(n, momentum_shape=self._momentum_shape(), generator=generator)
        steps: dict[str, Any] = {name: leaf(parameter) for name, parameter in own.items()}

        def run(*args: object, **options: object) -> DynamicsOutput:
            return functional_call(dynamics, steps, args, options)

        options = {"diagnostics": True} if diagnostics else {}
        return _run(run, potential, tuple(map(leaf, drawn)), generator=generator, context=context, **options), cut

    def draws_own_momenta(self) -> bool:
        """Whether the momenta are the dynamics' own, one per step [T, B, ...] (Langevin), not q^0's."""
        return self.has_momentum() and self._momentum_shape() is None

    def has_momentum(self) -> bool:
        """Whether there are momenta at all, q^0's or the dynamics' own; without, momentum_weight weighs nothing."""
        return getattr(self.dynamics, "has_momentum", True)

    def _momentum_shape(self) -> tuple[int, ...] | None:
        return self.dynamics.momentum_shape(tuple(self.initial.event))

    def resample(
        self,
        potential: Callable[..., Tensor],
        n: int,
        *,
        n_proposals: int | None = None,
        momentum_weight: float | Tensor | None = None,
        generator: torch.Generator | None = None,
        context: tuple[Tensor, ...] | None = None,
        condition: Condition | None = None,
    ) -> Resampled:
        """n samples of p_f: draws of this sampler, chosen with probabilities proportional to their weights.

        Systematic resampling: a proposal comes ``n w / sum w`` times, rounded down or up, so at most once where its
        weight is below n_proposals / n times the mean. The bias falls as 1 / (n_proposals * ess).

        Args:
            potential: f, [B, *event] -> [B].
            n: number of samples, >= 1.
            n_proposals: how many to draw and choose from, >= n; None is 10 n, at least 10,000. Drawn in chunks; their
                x are kept.
            momentum_weight: lambda as in `ADE`, also for None. Only the effective sample size depends on it.
            generator: the source of all randomness (torch's global one if None).
            context: passed on to the dynamics. No gradients are recorded.
            condition: one row, of an f that is called as f(x, condition).

        Warns:
            UserWarning: fewer effective proposals (``n_proposals * ess``) than n, or than 100.

        Raises:
            TypeError, ValueError: an argument of the wrong kind; there are no weights (``Empirical``,
                ``sample_range``, lambda = 0; or f is -inf at all proposals).
            NonFiniteError: a weight is NaN or infinite.
        """
        potential = at_one_condition("DualSampler.resample", potential, condition)
        source = WeightedSampler("DualSampler.resample", potential, self, momentum_weight)
        n = integer("DualSampler.resample", "n", n, low=1)
        if n_proposals is None:
            n_proposals = max(10 * n, 10_000)
        n_proposals = integer("DualSampler.resample", "n_proposals", n_proposals, low=n)
        with evaluating(potential):
            x, log_w = map(torch.cat, zip(*source.chunks(n_proposals, generator, context), strict=True))
            if not bool((log_w > -torch.inf).any()):
                raise ValueError(f"DualSampler.resample: f is -inf at all {n_proposals} proposals")
            ess = effective_sample_size(log_w).item()
            chosen = _systematic(log_w.softmax(0), n, generator)
        if n_proposals * ess < max(n, _FEW):
            warnings.warn(
                f"DualSampler.resample: {n_proposals * ess:.0f} effective proposals of {n_proposals} for {n} samples: "
                "these repeat, and miss a part of p_f; raise n_proposals, or train the sampler further",
                UserWarning,
                stacklevel=2,
            )
        return Resampled(x[chosen], ess)

    def metropolis(
        self,
        potential: Callable[..., Tensor],
        n: int,
        *,
        n_steps: int = 100,
        n_chains: int | None = None,
        momentum_weight: float | Tensor | None = None,
        generator: torch.Generator | None = None,
        context: tuple[Tensor, ...] | None = None,
        condition: Condition | None = None,
    ) -> MetropolisSamples:
        """n samples of p_f by Metropolis-Hastings on (x, v), with draws of this sampler as independent proposals.

        A proposal of weight w' replaces a state of weight w with probability min(1, w'/w) (Tierney 1994), so that
        p_f(x) times the momenta's Gaussian is invariant. Each chain starts at a draw of the sampler. After k steps the
        distance from p_f in total variation is at most (1 - mean w / max w)^k: burn-in takes a few times max w / mean w
        steps. A high acceptance does not show that it is over: a place that the sampler hardly ever visits is left
        late and found late (``resample`` and ``ade.metrics.log_z`` give the effective sample size).

        Args:
            potential: f, [B, *event] -> [B].
            n: number of samples, >= 1.
            n_steps: steps before a chain's first sample, and between its samples, >= 1.
            n_chains: chains side by side, 1 to n; None is n, each then gives its end point, and the samples are
                independent. Proposals cost the same either way, ``n_steps`` for each sample.
            momentum_weight, generator, context, condition: as for ``resample``.

        Raises:
            TypeError, ValueError, NonFiniteError: as ``resample``.
        """
        potential = at_one_condition("DualSampler.metropolis", potential, condition)
        source = WeightedSampler("DualSampler.metropolis", potential, self, momentum_weight)
        n = integer("DualSampler.metropolis", "n", n, low=1)
        n_steps = integer("DualSampler.metropolis", "n_steps", n_steps, low=1)
        n_chains = integer("DualSampler.metropolis", "n_chains", n if n_chains is None else n_chains, low=1, high=n)
        with evaluating(potential):
            samples = []
            x, log_w = map(torch.cat, zip(*source.chunks(n_chains, generator, context), strict=True))
            accepted, rounds = torch.zeros((), dtype=torch.int64, device=x.device), -(-n // n_chains)
            for _ in range(rounds):
                x, log_w, more = _independence_steps(source, x, log_w, n_steps, generator, context)
                accepted += more
                samples.append(x)
            if bool((log_w == -torch.inf).any()):
                raise ValueError("DualSampler.metropolis: f is -inf at all proposals of a chain")
        return MetropolisSamples(torch.cat(samples)[:n], float(accepted) / (rounds * n_steps * n_chains))


def _systematic(p: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
    """[n] indices, each i floor or ceil of n p_i times, in random order (Kitagawa 1996)."""
    device = p.device if generator is None else generator.device
    start = torch.rand((), generator=generator, dtype=p.dtype, device=device).to(p.device)
    ends = p.cumsum(0)
    positions = (start + torch.arange(n, dtype=p.dtype, device=p.device)) / n * ends[-1]
    order = torch.randperm(n, generator=generator, device=device).to(p.device)
    return torch.searchsorted(ends, positions, right=True)[order]


def _independence_steps(
    source: WeightedSampler,
    x: Tensor,
    log_w: Tensor,
    n_steps: int,
    generator: torch.Generator | None,
    context: tuple[Tensor, ...] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Independence Metropolis-Hastings: the states [chains, *event] and log-weights after n_steps; how many accepted.

    Proposals come in blocks of several steps where there are few chains.
    """
    chains, accepted = len(x), torch.zeros((), dtype=torch.int64, device=x.device)
    block = max(1, source.rows // chains)
    rows = torch.arange(chains, device=x.device)
    device = x.device if generator is None else generator.device
    for start in range(0, n_steps, block):
        steps = min(block, n_steps - start)
        new_x, new_log_w = map(torch.cat, zip(*source.chunks(steps * chains, generator, context), strict=True))
        new_log_w = new_log_w.view(steps, chains)
        log_u = torch.rand(steps, chains, generator=generator, dtype=log_w.dtype, device=device).log().to(x.device)
        latest = torch.full((chains,), -1, device=x.device)
        for step in range(steps):
            # A state of weight 0, which only a start can be, gives way to anything.
            moves = (log_u[step] < new_log_w[step] - log_w) | (log_w == -torch.inf)
            log_w = torch.where(moves, new_log_w[step], log_w)
            latest = torch.where(moves, step * chains + rows, latest)
            accepted += moves.sum()
        moved = latest >= 0
        x = x.clone()
        x[moved] = new_x[latest[moved]]
    return x, log_w, accepted


def _run(
    dynamics: Callable[..., DynamicsOutput], target: Callable[..., Tensor], drawn: Sequence[Any], **options: Any
) -> DualSample:
    """The dynamics from where (x0, v0, log_q0) says, and the density there."""
    x0, v0, log_q0 = drawn
    out = dynamics(target, x0, v0, **options)
    log_q = -out.log_det if log_q0 is None else log_q0 - out.log_det
    log_noise = getattr(out, "log_noise", None)
    if log_noise is not None:
        log_q = log_q + log_noise
    return DualSample(out.x, out.v, log_q, x0, v0, log_q0)


def _anneals(dynamics: nn.Module) -> bool:
    return bool(getattr(dynamics, "anneals", False))
