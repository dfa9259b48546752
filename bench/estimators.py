"""An update by contrastive divergence (CD-15), data in and f moved, in one run with eager PyTorch's and JAX jit's.

    python bench/estimators.py            writes bench/results/estimators-<machine>.json
    python bench/estimators.py --quick    the smallest case, few rounds; writes nothing

f is an MLP 2-128-128-128-1. An update: 15 Langevin steps of 0.01 from the data without a gradient, f at data and end
points, the gradient of their means' difference by f's parameters, Adam. Everyone draws the noise in the timed call,
with its own generator; what each computes from given noise (loss and gradient) is held against float64 first.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import common
import peers
import torch
from torch import Tensor

import ade_fast as ade
from ade_fast.estimators.contrastive import _contrast

STEPS, STEP_SIZE = 15, 0.01
# Small: players that move apart over thousands of timed updates would not be the same ones any more.
LEARNING_RATE = 1e-6
NAMES = ("eager", "jax", "ade")
TOLERANCE = {"relu": 2e-3, "silu": 1e-4}


@dataclass(frozen=True)
class Case:
    activation: str
    batch: int

    @property
    def name(self) -> str:
        return f"cd15-{self.activation}-B{self.batch}"


CASES = [Case(activation, batch) for activation in ("relu", "silu") for batch in (256, 1000)]
QUICK = Case("relu", 100)


@dataclass(frozen=True)
class Problem:
    """noise: [15, B, 2] for the trial."""

    potential: ade.MLPPotential
    data: Tensor
    noise: Tensor


def make_problem(case: Case, device: torch.device) -> Problem:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        potential = ade.MLPPotential(2, activation=case.activation).to(device)
        data, noise = torch.randn(case.batch, 2), torch.randn(STEPS, case.batch, 2)
    return Problem(potential, data.to(device), noise.to(device))


def langevin(potential: Callable[[Tensor], Tensor], x: Tensor, noise: Sequence[Tensor | None]) -> Tensor:
    """As a user writes it: the gradient of f by autograd at each step, None for noise to be drawn."""
    for xi in noise:
        x = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(potential(x).sum(), x)
        x = x + STEP_SIZE / 2 * grad + math.sqrt(STEP_SIZE) * (torch.randn_like(x) if xi is None else xi)
    return x.detach()


def expected(problem: Problem) -> list[Tensor]:
    """Loss and gradient, float64, of the trial's noise."""
    f = copy.deepcopy(problem.potential).double()
    x = langevin(f, problem.data.double(), list(problem.noise.double()))
    loss = f(x).mean() - f(problem.data.double()).mean()
    return [loss, *torch.autograd.grad(loss, [*f.parameters()][:-1])]


def _peer(problem: Problem, loss_of: Callable[[Any, Tensor | None], Tensor]) -> peers.Peer:
    """loss_of: (f, noise or None) -> the loss. f's last bias drops from it."""
    f = copy.deepcopy(problem.potential)
    optimizer = torch.optim.Adam(f.parameters(), lr=LEARNING_RATE, fused=True)

    def run() -> float:
        optimizer.zero_grad()
        loss = loss_of(f, None)
        loss.backward()
        optimizer.step()
        return loss.item()

    def trial() -> list[Tensor]:
        loss = loss_of(f, problem.noise)
        return [loss, *torch.autograd.grad(loss, [*f.parameters()][:-1])]

    return peers.Peer(run, trial=trial)


def eager(problem: Problem, settings: peers.Settings) -> peers.Peer:
    def loss_of(f: Any, noise: Tensor | None) -> Tensor:
        x = langevin(f, problem.data, [None] * STEPS if noise is None else list(noise))
        return f(x).mean() - f(problem.data).mean()

    return _peer(problem, loss_of)


def fused(problem: Problem, settings: peers.Settings) -> peers.Peer:
    layer = ade.Langevin(STEPS, STEP_SIZE, learn_step_size=False, gradient="none").to(problem.data.device)
    chain = ade.estimators.Chain(layer)

    def loss_of(f: Any, noise: Tensor | None) -> Tensor:
        if noise is None:
            return ade.estimators.contrastive_divergence(f, problem.data, chain=chain)
        with torch.no_grad():
            x = layer(f, problem.data, noise=noise).x
        return _contrast("bench", f, problem.data, x)

    return _peer(problem, loss_of)


def jax_jit(problem: Problem, settings: peers.Settings) -> peers.Peer:
    """One jitted function from f, moments and a key to the next ones: the draw, a lax.scan, the gradient, Adam."""
    device = peers.jax_device(problem.data.device, settings)
    import jax
    import optax

    potential = peers.jax_potential(problem.potential)
    names = [name for name, _ in problem.potential.named_parameters()]
    optimizer = optax.adam(LEARNING_RATE)

    def array(x: Tensor) -> Any:
        return jax.device_put(x.detach().cpu().numpy(), device)

    data = array(problem.data)

    def loss_of(weights: Any, noise: Any) -> Any:
        fixed = jax.lax.stop_gradient(weights)
        gradient = jax.grad(lambda x: potential(fixed, x).sum())

        def step(x: Any, xi: Any) -> tuple[Any, None]:
            return x + STEP_SIZE / 2 * gradient(x) + math.sqrt(STEP_SIZE) * xi, None

        x, _ = jax.lax.scan(step, data, noise)
        return potential(weights, jax.lax.stop_gradient(x)).mean() - potential(weights, data).mean()

    def update(state: Any, key: Any) -> tuple[Any, Any, Any]:
        weights, moments = state
        key, drawn = jax.random.split(key)
        loss, grads = jax.value_and_grad(loss_of)(weights, jax.random.normal(drawn, problem.noise.shape))
        moves, moments = optimizer.update(grads, moments)
        return (optax.apply_updates(weights, moves), moments), key, loss

    with jax.default_device(device):
        weights = {name: array(p) for name, p in problem.potential.named_parameters()}
        found = jax.jit(jax.value_and_grad(loss_of))(weights, array(problem.noise))
        state, key = (weights, optimizer.init(weights)), jax.random.key(0)
        compiled = jax.jit(update, donate_argnums=(0, 1))
        outputs = [
            torch.tensor(float(found[0])),
            *(torch.tensor(found[1][n].tolist()) for n in names[:-1]),
        ]

    def run() -> float:
        nonlocal state, key
        state, key, loss = compiled(state, key)
        return float(loss)  # which waits for it

    return peers.Peer(run, trial=lambda: outputs)


MAKERS = {"eager": eager, "jax": jax_jit, "ade": fused}


def judge_of(case: Case, problem: Problem) -> peers.Judge:
    wanted = expected(problem)

    def judge(_: str, outputs: Sequence[Tensor]) -> tuple[dict[str, Any], str | None]:
        error = max(
            float((got.detach().cpu().double().reshape(want.shape) - want.cpu()).norm() / want.norm())
            for got, want in zip(outputs[1:], wanted[1:], strict=True)
        )
        return peers.judged(error, TOLERANCE[case.activation])

    return judge


def measure(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    device = torch.device(args.device)
    problem = make_problem(case, device)
    makers = {name: MAKERS[name] for name in args.peers}
    ready, row = peers.build(makers, problem, peers.Settings(args.compile_limit), judge_of(case, problem))
    samples = common.interleaved({name: peer.run for name, peer in ready.items()}, args.runs, args.warmups, device)
    for name in ready:
        row[name] |= common.timed(samples[name])
    return {"case": case.name, "peers": row}


def show(results: dict[str, Any]) -> str:
    lines = []
    for row in results["cases"]:
        ms = {name: entry.get("ms") for name, entry in row["peers"].items()}
        ours = ms.get("ade")
        ratios = [f"{n} {t:.3f} ms" + (f" ({t / ours:.2f}x)" if ours else "") for n, t in ms.items() if t]
        lines.append(f"{row['case']:20} " + ", ".join(ratios))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_options(parser, NAMES)
    parser.set_defaults(threads=1)
    args = parser.parse_args(argv)
    common.check_options(parser, args, [QUICK] if args.quick else CASES)
    results = common.run_cases("estimators", args, NAMES, lambda c: measure(c, args), "", True)
    print(show(results))
    sys.exit(common.exit_code(results))


if __name__ == "__main__":
    main()
