"""One whole update in JAX: one jitted function from players, moments and a key to the next ones and the metrics."""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from peers import Peer, Settings, Skipped, jax_device, jax_merged_kicks, jax_potential
from players import GRAD_NORM_CLIP, INITIAL_ROWS, LEARNING_RATE, Problem
from torch import Tensor

_MEAN_DECAY = 0.9
"""Of Adam's mean of gradients: optax's default, and torch's."""

Update = Callable[[Any, Any, Any], tuple[Any, Any]]
"""(players and moments, data [B, 2], noise [2, B, 2]) -> (the next players and moments, metrics [M])."""


def jax_update(problem: Problem, settings: Settings) -> Peer:
    """The given players and moments are donated; the noise is drawn inside of the jitted function. A trial is the same
    function with the noise as an argument."""
    device = jax_device(problem.data.device, settings)
    if importlib.util.find_spec("optax") is None:
        raise Skipped("optax is not installed")
    import jax

    with jax.default_device(device):
        state, update = _start(problem), _update(problem)
        data, noise = (jax.device_put(t.cpu().numpy(), device) for t in (problem.data, problem.noise()))

        def drawing(state: Any, key: Any, data: Any) -> tuple[Any, Any, Any]:
            key, drawn = jax.random.split(key)
            state, metrics = update(state, data, jax.random.normal(drawn, (2, *data.shape)))
            return state, key, metrics

        key = jax.random.key(0)
        start = time.perf_counter()
        step = jax.jit(drawing, donate_argnums=(0, 1)).lower(state, key, data).compile()
        compile_s = round(time.perf_counter() - start, 1)

    def trial() -> list[float]:
        nonlocal state
        state, metrics = jax.jit(update)(state, data, noise)
        return metrics.tolist()

    def run() -> list[float]:
        nonlocal state, key
        state, key, metrics = step(state, key, data)
        return metrics.tolist()  # which waits for them

    def outputs(metrics: list[float]) -> list[Tensor]:
        """As `update_peers.outputs_of`; from moments that were 0 before, the gradient is the mean's gain."""
        players, moments = state
        means = {name: moment[1].mu for name, moment in moments.items()}
        gradients = [flat / (1 - _MEAN_DECAY) for flat in _flat(means, problem)]
        return [torch.tensor(metrics), *gradients, *_flat(players, problem)]

    return Peer(run, outputs, notes={"compile_s": compile_s}, trial=trial)


def _tensors(problem: Problem) -> dict[str, dict[str, Tensor]]:
    """Both players' parameters by their names, in the order that torch's peers have them."""
    initial = problem.initial
    sampler = {"u": initial.u, "w": initial.w, "b": initial.b, "step_size": problem.step_size}
    return {"potential": dict(problem.potential.named_parameters()), "sampler": sampler}


def _flat(players: dict[str, dict[str, Any]], problem: Problem) -> list[Tensor]:
    """Each player's arrays, which JAX has in an order of its own, as one tensor."""
    import jax

    def tensor(player: str, name: str) -> Tensor:
        return torch.tensor(jax.device_get(players[player][name])).flatten()

    return [torch.cat([tensor(player, name) for name in names]) for player, names in _tensors(problem).items()]


def _start(problem: Problem) -> tuple[Any, Any]:
    import jax.numpy as jnp

    players = {
        player: {name: jnp.asarray(t.detach().cpu().numpy()) for name, t in tensors.items()}
        for player, tensors in _tensors(problem).items()
    }
    moments = {name: optimizer.init(players[name]) for name, optimizer in _optimizers().items()}
    return players, moments


def _optimizers() -> dict[str, Any]:
    """f goes up its gradient, the sampler down."""
    import optax

    def clipped_adam(rate: float) -> Any:
        return optax.chain(
            optax.clip_by_global_norm(GRAD_NORM_CLIP), optax.scale_by_adam(b1=_MEAN_DECAY), optax.scale(rate)
        )

    return {"potential": clipped_adam(LEARNING_RATE), "sampler": clipped_adam(-LEARNING_RATE)}


def _update(problem: Problem) -> Update:
    import jax
    import jax.numpy as jnp
    import optax

    loss, optimizers = _loss(problem), _optimizers()

    def update(state: tuple[Any, Any], data: Any, noise: Any) -> tuple[Any, Any]:
        players, moments = map(dict, state)
        (_, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(players, data, noise)
        for name, optimizer in optimizers.items():
            metrics[f"{name}_grad_norm"] = optax.tree.norm(gradients[name])
            moved, moments[name] = optimizer.update(gradients[name], moments[name])
            players[name] = optax.apply_updates(players[name], moved)
        return (players, moments), jnp.stack([metrics[name] for name in problem.metrics])

    return update


def _loss(problem: Problem) -> Callable[[Any, Any, Any], tuple[Any, dict[str, Any]]]:
    """(players, data, noise) -> (the loss, the metrics but for the gradients' norms)."""
    import jax
    import jax.numpy as jnp

    p = problem
    network = jax_potential(p.potential)

    def clipped(u: Any) -> Any:
        norm = jnp.sqrt(jnp.square(u).sum(1, keepdims=True) + 1e-24)  # finite derivative at 0
        return u * jnp.minimum(p.clip / norm, 1.0)

    def loss(players: dict[str, Any], data: Any, noise: Any) -> tuple[Any, dict[str, Any]]:
        def f(x: Any) -> Any:
            values = network(players["potential"], x)
            return values if p.base_std is None else values + _log_normal(x, p.base_std)

        sampler, (z, v0) = players["sampler"], noise
        x0, log_det = _planar_flow(z, sampler)
        log_q0 = _log_normal(z) - log_det
        log_q = log_q0 + _log_normal(v0)
        field = jax.grad(lambda x: f(x).sum())
        x, v = jax_merged_kicks(lambda x: clipped(field(x)), x0, v0, sampler["step_size"], p.n_steps, clipped)
        values, kinetic, entropy = f(x), 0.5 * jnp.square(v).sum(1), -log_q.mean()
        f_data, penalty = _data_terms(f, data, jax.lax.stop_gradient(x), p.gradient_penalty)
        log_w = values - kinetic - log_q - math.log(2 * math.pi)
        log_z = _log_mean_exp(log_w)
        model = log_z if p.bound == "importance" else values.mean() - kinetic.mean() + entropy
        ell = f_data - model - penalty
        figures = {
            **dict(loss=ell, f_data=f_data, f_samples=values.mean(), kinetic=kinetic.mean(), entropy=entropy),
            **dict(penalty=penalty, step_size=jnp.abs(sampler["step_size"]).max(), log_z=log_z),
            "f_model": (jax.nn.softmax(log_w) * values).sum(),
            "ess": _effective_sample_size(log_w),
            "initial_ess": _effective_sample_size(f(x0[:INITIAL_ROWS]) - log_q0[:INITIAL_ROWS]),
            "beta": jnp.float32(p.bound == "importance"),
        }
        return ell, figures

    return loss


def _data_terms(f: Callable[[Any], Any], data: Any, samples: Any, factor: float) -> tuple[Any, Any]:
    """E_data[f], and the penalty at the data and at the samples, by one evaluation."""
    import jax
    import jax.numpy as jnp

    if not factor:
        return f(data).mean(), jnp.float32(0.0)

    def total(x: Any) -> tuple[Any, Any]:
        values = f(x)
        return values.sum(), values

    gradient, values = jax.grad(total, has_aux=True)(jnp.concatenate([data, samples]))
    return values[: len(data)].mean(), factor * jnp.square(gradient).sum(1).mean()


def _planar_flow(z: Any, sampler: dict[str, Any]) -> tuple[Any, Any]:
    """As `update_peers.planar_flow`."""
    import jax
    import jax.numpy as jnp

    u, w, b = sampler["u"], sampler["w"], sampler["b"]
    dots = (u * w).sum(1)
    moved = jax.nn.softplus(dots + math.log(math.e - 1)) - 1
    u = u + ((moved - dots) / jnp.square(w).sum(1))[:, None] * w
    x, log_det = z, 0.0
    for layer in range(len(b)):
        h = jnp.tanh(x @ w[layer] + b[layer])
        x = x + h[:, None] * u[layer]
        log_det = log_det + jnp.log1p(moved[layer] * (1 - h * h))
    return x, log_det


def _log_normal(x: Any, std: float = 1.0) -> Any:
    """log N(x; 0, std^2 I), [B, 2] -> [B]."""
    return -0.5 * ((x / std) ** 2).sum(1) - math.log(2 * math.pi * std**2)


def _log_mean_exp(log_w: Any) -> Any:
    import jax

    return jax.nn.logsumexp(log_w) - math.log(len(log_w))


def _effective_sample_size(log_w: Any) -> Any:
    import jax.numpy as jnp

    return jnp.exp(2 * _log_mean_exp(log_w) - _log_mean_exp(2 * log_w))
