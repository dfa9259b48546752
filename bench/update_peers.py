"""One whole update of both players as each peer's users would write it: data in, players moved, metrics out.

All compute what `ade.ADE.step` does, in float32: one loss (20), or with log mean w in the place of log Z, one backward
pass for both players, each player's gradient norm clipped, Adam up for f and down for the sampler, and the metrics as
numbers. Each peer draws its own noise; in its trial it gets the noise of a seed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from peers import Make, Peer, Settings, merged_kicks, within_limit
from players import GRAD_NORM_CLIP, INITIAL_ROWS, LEARNING_RATE, Problem, make_model, trial_generator
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from update_jax import jax_update

Field = Callable[[Callable[[Tensor], Tensor], Tensor], tuple[Tensor, Tensor]]
"""(f, x [B, 2]) -> f(x) [B] and its gradient [B, 2], both differentiable."""


# --- What a trial shows -------------------------------------------------------------------------------------


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def outputs_of(problem: Problem, optimizers: Sequence[Optimizer], metrics: Mapping[str, float]) -> list[Tensor]:
    """After the first update, of which `metrics` are: themselves [M], then of f and of the sampler the clipped
    gradients, then of both the parameters; each flat."""
    if metrics.keys() != set(problem.metrics):
        raise ValueError(f"an update's metrics must be {', '.join(problem.metrics)}, got {', '.join(metrics)}")
    players = [[p for group in optimizer.param_groups for p in group["params"]] for optimizer in optimizers]
    numbers = torch.tensor([metrics[name] for name in problem.metrics])
    return [numbers, *(flat([p.grad for p in player]) for player in players), *map(flat, players)]


# --- PyTorch ------------------------------------------------------------------------------------------------


def by_autograd(f: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    x = x if x.requires_grad else x.requires_grad_()
    values = f(x)
    return values, torch.autograd.grad(values.sum(), x, create_graph=True)[0]


def by_func(f: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    def total(x: Tensor) -> tuple[Tensor, Tensor]:
        values = f(x)
        return values.sum(), values

    gradient, values = torch.func.grad(total, has_aux=True)(x)
    return values, gradient


def clip_norm(u: Tensor, bound: float) -> Tensor:
    """Each row's norm to at most `bound`; the tiny number keeps the derivative finite at 0."""
    norm = (u.square().sum(1, keepdim=True) + 1e-24).sqrt()
    return u * (bound / norm).clamp(max=1.0)


def log_normal(x: Tensor, std: float = 1.0) -> Tensor:
    """log N(x; 0, std^2 I), [B, 2] -> [B]."""
    return -0.5 * (x / std).square().sum(1) - math.log(2 * math.pi * std**2)


def planar_flow(z: Tensor, u: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """x [B, 2] and log|det dx/dz| [B], of layers u, w [L, 2] and b [L]; u is first made to keep each one invertible."""
    dots = (u * w).sum(1)
    moved = nn.functional.softplus(dots + math.log(math.e - 1)) - 1
    u = u + ((moved - dots) / w.square().sum(1))[:, None] * w
    x, heights = z, []
    for u_l, w_l, b_l in zip(u.unbind(), w.unbind(), b.unbind(), strict=True):
        h = torch.tanh(x @ w_l + b_l)
        x = x + h[:, None] * u_l
        heights.append(h)
    slopes = 1 - torch.stack(heights, 1).square()
    return x, torch.log1p(moved * slopes).sum(1)


def log_mean_exp(log_w: Tensor) -> Tensor:
    return log_w.logsumexp(0) - math.log(len(log_w))


def effective_sample_size(log_w: Tensor) -> Tensor:
    return torch.exp(2 * log_mean_exp(log_w) - log_mean_exp(2 * log_w))


class PlainPlayers:
    """Both players in plain PyTorch: their loss, with T + 1 evaluations of grad f, and their optimizers."""

    def __init__(self, problem: Problem, field: Field) -> None:
        self.problem, self.field = problem, field
        self.layers = copy.deepcopy(problem.potential.layers)
        initial = problem.initial
        starts = (initial.u, initial.w, initial.b, problem.step_size)
        *self.flow, self.step_size = (nn.Parameter(start.detach().clone()) for start in starts)
        self.optimizers = [
            Adam(self.layers.parameters(), LEARNING_RATE, maximize=True, fused=True),
            Adam([*self.flow, self.step_size], LEARNING_RATE, fused=True),
        ]

    def f(self, x: Tensor) -> Tensor:
        values, std = self.layers(x).squeeze(1), self.problem.base_std
        return values if std is None else values + log_normal(x, std)

    def loss(self, data: Tensor, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss with its graph, and the metrics but for the gradients' norms without one."""
        p = self.problem
        z, v0 = noise.unbind()
        x0, log_det = planar_flow(z, *self.flow)
        log_q0 = log_normal(z) - log_det
        log_q = log_q0 + log_normal(v0)
        x, v = merged_kicks(self._force, x0, v0, self.step_size, p.n_steps, self._clipped)
        values, kinetic, entropy = self.f(x), 0.5 * v.square().sum(1), -log_q.mean()
        f_data, penalty = self._data_terms(data, x.detach())
        log_w = values - kinetic - log_q - math.log(2 * math.pi)
        log_z = log_mean_exp(log_w)
        model = log_z if p.bound == "importance" else values.mean() - kinetic.mean() + entropy
        loss = f_data - model - penalty
        with torch.no_grad():
            figures = {
                **dict(loss=loss, f_data=f_data, f_samples=values.mean(), kinetic=kinetic.mean(), entropy=entropy),
                **dict(penalty=penalty, step_size=self.step_size.abs().max(), log_z=log_z),
                "ess": effective_sample_size(log_w),
                "initial_ess": effective_sample_size(self.f(x0[:INITIAL_ROWS]) - log_q0[:INITIAL_ROWS]),
                "beta": torch.full_like(loss, float(p.bound == "importance")),
            }
            if p.bound == "importance":
                figures["f_model"] = (log_w.softmax(0) * values).sum()
        return loss, {name: figure.detach() for name, figure in figures.items()}

    def _clipped(self, u: Tensor) -> Tensor:
        return clip_norm(u, self.problem.clip)

    def _force(self, x: Tensor) -> Tensor:
        return self._clipped(self.field(self.f, x)[1])

    def _data_terms(self, data: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """E_data[f], and the penalty at the data and at the samples, by one evaluation."""
        factor = self.problem.gradient_penalty
        if not factor:
            f_data = self.f(data).mean()
            return f_data, torch.zeros_like(f_data)
        values, gradient = self.field(self.f, torch.cat([data, samples]))
        return values[: len(data)].mean(), factor * gradient.square().sum(1).mean()


def torch_peer(players: PlainPlayers, loss: Callable[[Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]) -> Peer:
    """The update around `loss`, which is the players' own or its compiled form."""
    data = players.problem.data

    def update(noise: Tensor) -> dict[str, float]:
        for optimizer in players.optimizers:
            optimizer.zero_grad(set_to_none=True)
        value, metrics = loss(data, noise)
        value.backward()
        for name, optimizer in zip(("potential", "sampler"), players.optimizers, strict=True):
            parameters = optimizer.param_groups[0]["params"]
            metrics[f"{name}_grad_norm"] = nn.utils.clip_grad_norm_(parameters, GRAD_NORM_CLIP)
            optimizer.step()
        return dict(zip(metrics, torch.stack([*metrics.values()]).tolist(), strict=True))

    return Peer(
        lambda: update(torch.randn(2, *data.shape, device=data.device)),
        lambda metrics: outputs_of(players.problem, players.optimizers, metrics),
        trial=lambda: update(players.problem.noise()),
    )


def eager(problem: Problem, settings: Settings) -> Peer:
    players = PlainPlayers(problem, by_autograd)
    return torch_peer(players, players.loss)


def compiled(problem: Problem, settings: Settings) -> Peer:
    """The whole loss with all metrics as one graph, torch.func.grad inside, and its backward pass; clipping and Adam
    are foreach and fused kernels already."""
    players = PlainPlayers(problem, by_func)
    torch.compiler.reset()
    loss = torch.compile(players.loss, fullgraph=True, dynamic=False)
    first = within_limit(Peer(lambda: loss(problem.data, problem.noise())[0].backward()), settings)
    peer = torch_peer(players, loss)
    peer.notes.update(first.notes)
    return peer


# --- ade_fast -----------------------------------------------------------------------------------------------


def ade_fast(problem: Problem, settings: Settings) -> Peer:
    model, data = make_model(problem), problem.data

    def outputs(metrics: Mapping[str, float]) -> list[Tensor]:
        plan = model.sampler.dynamics.last_plan
        peer.notes.update(plan=plan.memory, field=plan.field)
        return outputs_of(problem, [model.potential_optimizer, model.sampler_optimizer], metrics)

    peer = Peer(
        lambda: model.step(data),
        outputs,
        trial=lambda: model.step(data, generator=trial_generator()),
    )
    return peer


PEERS: dict[str, Make] = {"eager-t1": eager, "compile": compiled, "jax": jax_update, "ade-auto": ade_fast}
