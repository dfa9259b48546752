"""The estimators of the paper's Table 1 as Appendix D prints them, eager and one point at a time: a specification.

As in `reference`, whose conventions these keep: nothing here is fast or checked, everything is differentiable as often
as PyTorch allows. All are losses to minimise. Named deviations from print: (43), (45) to (47), (50) have their signs
turned, (44) leaves out the diagonal, which makes it unbiased, and (49), printed as an update direction, is its
objective.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .reference import Potential, gradient_field, hessian, value


def mean(terms: Sequence[Tensor]) -> Tensor:
    """The mean of scalars."""
    return torch.stack(list(terms)).mean()


def at(potential: Potential, point: Tensor) -> Tensor:
    """f at one point of shape ``event``, a scalar."""
    return value(potential, point[None])[0]


def contrastive(potential: Potential, data: Tensor, ends: Tensor) -> Tensor:
    """(42): E_q[f(x^k)] - E_D[f(x)], x^k the ends of chains from the data, held fixed."""
    return mean([at(potential, x) for x in ends.detach()]) - mean([at(potential, x) for x in data])


def score_matching(potential: Potential, data: Tensor) -> Tensor:
    """(43): E_D[Σ_i ½ (∂_i f)² + ∂_i² f]."""
    terms = []
    for x in data:
        score, curvature = gradient_field(potential, x[None])[0], hessian(potential, x[None])[0]
        terms.append((0.5 * score.square()).sum() + curvature.trace())
    return mean(terms)


def stein(potential: Potential, data: Tensor, kernel: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """(44): E_{x, y}[S_f(x, ·) ⊗_k S_f(y, ·)] over all pairs of different points, S_f(x, ·) = ∇f(x) + ∂_x acting on k.

    The derivatives of the kernel, (event, event) to a scalar, come from autograd.
    """
    terms = []
    for i, j in itertools.permutations(range(len(data)), 2):
        x, y = (data[k].detach().clone().requires_grad_() for k in (i, j))
        k = kernel(x, y)
        by_x, by_y = torch.autograd.grad(k, (x, y), create_graph=True)
        mixed = [torch.autograd.grad(d, y, retain_graph=True)[0].flatten()[n] for n, d in enumerate(by_x.flatten())]
        score_x, score_y = (gradient_field(potential, data[n][None])[0] for n in (i, j))
        along = (score_x * score_y).sum() * k + (score_x * by_y).sum() + (score_y * by_x).sum()
        terms.append(along + torch.stack(mixed).sum())
    return mean(terms)


def pseudo_likelihood(potential: Potential, data: Tensor, states: Tensor) -> Tensor:
    """(45): -E_D[Σ_i log p_f(x_i | x_-i)], sites that take the values ``states`` (K,)."""
    return composite_likelihood(potential, data, [(i,) for i in range(data[0].numel())], states)


def composite_likelihood(potential: Potential, data: Tensor, blocks: Sequence[Sequence[int]], states: Tensor) -> Tensor:
    """(46): -E_D[Σ_A log p_f(x_A | x_-A)], p_f(x_A | x_-A) = exp f(x) / Σ_{x'_A} exp f(x'_A, x_-A)."""
    terms = []
    for x in data:
        total = torch.zeros_like(at(potential, x))
        for block in blocks:
            normaliser: float | Tensor = 0
            for values in itertools.product(states.tolist(), repeat=len(block)):
                other = x.clone()
                for site, number in zip(block, values, strict=True):
                    other.view(-1)[site] = number
                normaliser = normaliser + at(potential, other).exp()
            total = total - (at(potential, x).exp() / normaliser).log()
        terms.append(total)
    return mean(terms)


def nonlocal_contrastive(potential: Potential, data: Tensor, others: Tensor, weights: Tensor) -> Tensor:
    """(47): -E_D[Σ_i w(x, S_i) log p_f(x | S_i)]; others (B, S, M, *event) are S_i without x, weights (B, S)."""
    terms = []
    for x, sets, w in zip(data, others, weights, strict=True):
        probabilities = [nonlocal_probability(potential, x, within) for within in sets]
        terms.append(-sum(w_i * p.log() for w_i, p in zip(w, probabilities, strict=True)))
    return mean(terms)


def nonlocal_probability(potential: Potential, x: Tensor, others: Tensor) -> Tensor:
    """(48): p_f(x | S) = exp f(x) / Σ_{y in S} exp f(y), S = {x} and ``others`` (M, *event)."""
    own = at(potential, x).exp()
    return own / (own + sum(at(potential, y).exp() for y in others))


def probability_flow(potential: Potential, data: Tensor, neighbours: Tensor) -> Tensor:
    """(49): E_D E_{x' ~ T(·|x)} exp(½ (f(x') - f(x))); neighbours (B, M, *event) are all x' of x, as likely each."""
    flows = [
        (0.5 * (at(potential, y) - at(potential, x))).exp()
        for x, near in zip(data, neighbours, strict=True)
        for y in near
    ]
    return mean(flows)


def noise_contrastive(
    potential: Potential, data: Tensor, noise: Tensor, log_noise: Callable[[Tensor], Tensor], log_normaliser: float
) -> Tensor:
    """(50): -E_D[log h(x)] - ν E_{p_n}[log(1 - h(y))], ν noise points per datum; log_noise: points to log p_n, (B,)."""
    ratio = len(noise) / len(data)

    def h(x: Tensor) -> Tensor:
        return noise_odds(potential, x, log_noise, log_normaliser, ratio)

    return -mean([h(x).log() for x in data]) - ratio * mean([(1 - h(y)).log() for y in noise])


def noise_odds(
    potential: Potential,
    x: Tensor,
    log_noise: Callable[[Tensor], Tensor],
    log_normaliser: float = 0.0,
    ratio: float = 1.0,
) -> Tensor:
    """h(x) = p / (p + ν p_n) with p = exp(f(x) - c): the weight of (51)'s mixture, but for a 2 that it lacks."""
    p = at(potential, x).exp() / math.exp(log_normaliser)
    return p / (p + ratio * log_noise(x[None])[0].exp())
