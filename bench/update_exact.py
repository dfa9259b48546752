"""One whole update by the equations in float64: what every peer's first one has to agree with before it is timed."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from players import GRAD_NORM_CLIP, INITIAL_ROWS, LEARNING_RATE, Problem
from torch import Tensor

import ade_fast as ade
from ade_fast import reference

_ADAM_EPS = 1e-8
# A metric nearer to 0 than this is off by so much of it: its terms are larger than itself.
_SMALLEST = 1e-2


class Update(NamedTuple):
    """metrics: [M], as `Problem.metrics` names them. Of f and of the sampler: clipped gradients, and by how much the
    parameters moved, each flat."""

    metrics: Tensor
    potential_gradient: Tensor
    sampler_gradient: Tensor
    potential_moved: Tensor
    sampler_moved: Tensor


def start(problem: Problem) -> tuple[list[Tensor], list[Tensor]]:
    """f's and the sampler's parameters, [u, w, b, step size]."""
    initial = problem.initial
    return [*problem.potential.parameters()], [initial.u, initial.w, initial.b, problem.step_size]


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().cpu().double().flatten() for t in tensors])


def expected(problem: Problem) -> Update:
    """The first update of these players with the noise of a trial."""
    network = copy.deepcopy(problem.potential).double()
    sampler = [t.detach().double().requires_grad_() for t in start(problem)[1]]
    loss, metrics = _loss(problem, network, sampler)
    players = [*network.parameters()], sampler
    found = torch.autograd.grad(loss, [t for player in players for t in player])
    split = len(players[0])
    gradients = {"potential": flat(found[:split]), "sampler": flat(found[split:])}
    metrics |= {f"{name}_grad_norm": gradient.norm() for name, gradient in gradients.items()}
    clipped = [g * (GRAD_NORM_CLIP / g.norm()).clamp(max=1.0) for g in gradients.values()]
    # Adam's first step: mean and mean square, each divided by its bias, are the gradient and its square.
    up, down = (LEARNING_RATE * g / (g.abs() + _ADAM_EPS) for g in clipped)
    return Update(flat([metrics[name] for name in problem.metrics]), *clipped, up, -down)


def _loss(problem: Problem, network: ade.MLPPotential, sampler: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    p, (u, w, b, step_size) = problem, sampler
    std = p.base_std

    def f(x: Tensor) -> Tensor:
        return network(x) if std is None else reference.with_base(network, x, x.new_zeros(2), x.new_full((2,), std))

    data, (x0, v0) = p.data.double(), p.noise().double()
    log_q0 = _log_normal(x0)
    for layer in zip(u, w, b, strict=True):
        x0, log_det = reference.planar_flow(x0, *layer)
        log_q0 = log_q0 - log_det
    start_density = log_q0.detach()
    log_q0 = log_q0 + _log_normal(v0)
    clip = ade.Clip.norm(p.clip)
    x, v, log_det = reference.leapfrog(f, x0, v0, step_size, p.n_steps, grad_clip=clip, momentum_clip=clip)
    log_q = reference.log_density(log_q0, log_det)
    log_w = reference.log_weights(f, x, v, log_q)
    log_z = reference.renyi_bound(log_w, 0.0)
    points = torch.cat([data, x.detach()]).requires_grad_()
    penalty = p.gradient_penalty * reference.gradient_field(f, points).square().sum(1).mean()
    importance = p.bound == "importance"
    ell = f(data).mean() - log_z if importance else reference.objective(f, data, x, v, log_q0, log_det)
    metrics = {
        **dict(loss=ell - penalty, f_data=f(data).mean(), f_samples=f(x).mean(), entropy=-log_q.mean()),
        **dict(penalty=penalty, kinetic=0.5 * v.square().sum(1).mean(), step_size=step_size.abs().max(), log_z=log_z),
        "f_model": (log_w.softmax(0) * f(x)).sum(),
        "ess": _effective_sample_size(log_w),
        "initial_ess": _effective_sample_size((f(x0) - start_density)[:INITIAL_ROWS]),
        "beta": ell.new_tensor(float(importance)),
    }
    return ell - penalty, metrics


def _log_normal(x: Tensor) -> Tensor:
    return torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1)


def _effective_sample_size(log_w: Tensor) -> Tensor:
    w = log_w.exp()
    return w.mean().square() / w.square().mean()


def errors(outputs: Sequence[Tensor], wanted: Update, problem: Problem) -> tuple[float, float]:
    """Of an `update_peers.outputs_of`: the largest relative error of a metric and of a player's gradient, and that of
    the way that a player's parameters went. NaN where one is NaN."""
    metrics, *gradients = (t.double().cpu() for t in outputs[:3])
    moved = [flat([after]) - flat(before) for after, before in zip(outputs[3:], start(problem), strict=True)]
    of_metrics = (metrics - wanted.metrics).abs() / wanted.metrics.abs().clamp(min=_SMALLEST)
    of_gradients = [_relative(g, right) for g, right in zip(gradients, wanted[1:3], strict=True)]
    of_moves = [_relative(m, right) for m, right in zip(moved, wanted[3:], strict=True)]
    return float(torch.stack([of_metrics.max(), *of_gradients]).max()), float(torch.stack(of_moves).max())


def _relative(got: Tensor, right: Tensor) -> Tensor:
    return (got - right).norm() / right.norm()
