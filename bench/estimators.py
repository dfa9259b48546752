"""An update by contrastive divergence (CD-15), data in and f moved, in one run with eager PyTorch's and JAX jit's.

    python bench/estimators.py            writes bench/results/estimators-<machine>.json
    python bench/estimators.py --quick    the smallest case, few rounds; writes nothing

f is an MLP 2-128-128-128-1. An update: 15 Langevin steps of 0.01 from the data without a gradient ("mala": each with a
Metropolis test), f at data and end points, the gradient of their means' difference by f's parameters, Adam. Everyone
evaluates f and its gradient once at each point and draws the noise in the timed call, with its own generator; what each
computes from given noise (loss and gradient) is held against float64 first. A large matrix product, timed in the same
rounds, tells how long an update's products would take at its rate.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import common
import peers
import torch
from mlp import matrix_product
from torch import Tensor

import ade_fast as ade
from ade_fast._known import with_derivatives
from ade_fast.dynamics.fused_chain import run_contrast_op
from ade_fast.fields import fused_sum

STEPS, STEP_SIZE = 15, 0.01
Given = list[tuple[Tensor | None, Tensor | None]]
DRAWN: Given = [(None, None)] * STEPS
# Small: players that move apart over thousands of timed updates would not be the same ones any more.
LEARNING_RATE = 1e-6
NAMES = ("eager", "jax", "ade")
TOLERANCE = {"relu": 2e-3, "silu": 1e-4}


@dataclass(frozen=True)
class Case:
    activation: str
    batch: int
    test: bool = False

    @property
    def name(self) -> str:
        return f"cd15-{'mala-' if self.test else ''}{self.activation}-B{self.batch}"


CASES = [
    Case(activation, batch, test) for test in (False, True) for activation in ("relu", "silu") for batch in (256, 1000)
]
QUICK = Case("relu", 100, True)


@dataclass(frozen=True)
class Problem:
    """noise: [15, B, 2], and the logarithms of the tests' uniforms [15, B], for the trial."""

    potential: ade.MLPPotential
    data: Tensor
    noise: Tensor
    log_u: Tensor
    test: bool

    @property
    def given(self) -> Given:
        return list(zip(self.noise, self.log_u, strict=True))


def make_problem(case: Case, device: torch.device) -> Problem:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        potential = ade.MLPPotential(2, activation=case.activation).to(device)
        data, noise = torch.randn(case.batch, 2), torch.randn(STEPS, case.batch, 2)
        log_u = torch.rand(STEPS, case.batch).log()
    return Problem(potential, *(t.to(device) for t in (data, noise, log_u)), case.test)


def evaluate(potential: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(x, f there, its gradient), by autograd."""
    x = x.detach().requires_grad_()
    f = potential(x)
    return x.detach(), f.detach(), torch.autograd.grad(f.sum(), x)[0]


def langevin(potential: Callable[[Tensor], Tensor], x: Tensor, given: Given) -> Tensor:
    """As a user writes it: the gradient of f by autograd at each step, None for noise to be drawn."""
    for xi, _ in given:
        x, _, grad = evaluate(potential, x)
        x = x + STEP_SIZE / 2 * grad + math.sqrt(STEP_SIZE) * (torch.randn_like(x) if xi is None else xi)
    return x


def mala(potential: Callable[[Tensor], Tensor], x: Tensor, given: Given) -> Tensor:
    """The same with a test of each step."""
    at = evaluate(potential, x)
    for xi, log_u in given:
        x, f, grad = at
        xi = torch.randn_like(x) if xi is None else xi
        log_u = torch.rand_like(f).log() if log_u is None else log_u
        new = evaluate(potential, x + STEP_SIZE / 2 * grad + math.sqrt(STEP_SIZE) * xi)
        back = x - new[0] - STEP_SIZE / 2 * new[2]
        log_ratio = new[1] - f - back.square().sum(1) / (2 * STEP_SIZE) + xi.square().sum(1) / 2
        moves = log_u < log_ratio
        at = tuple(torch.where(moves.view(-1, *[1] * (b.dim() - 1)), b, a) for a, b in zip(at, new, strict=True))
    return at[0]


def run_eager(problem: Problem, f: Callable[[Tensor], Tensor], x: Tensor, given: Given) -> Tensor:
    return (mala if problem.test else langevin)(f, x, given)


def expected(problem: Problem) -> list[Tensor]:
    """Loss and gradient, float64, of the trial's noise."""
    f = copy.deepcopy(problem.potential).double()
    given = [(xi.double(), log_u.double()) for xi, log_u in problem.given]
    x = run_eager(problem, f, problem.data.double(), given)
    loss = f(x).mean() - f(problem.data.double()).mean()
    return [loss, *torch.autograd.grad(loss, [*f.parameters()][:-1])]


def _peer(problem: Problem, loss_of: Callable[[Any, Given | None], Tensor]) -> peers.Peer:
    """loss_of: (f, what is given or None) -> the loss. f's last bias drops from it."""
    f = copy.deepcopy(problem.potential)
    optimizer = torch.optim.Adam(f.parameters(), lr=LEARNING_RATE, fused=True)

    def run() -> float:
        optimizer.zero_grad()
        loss = loss_of(f, None)
        loss.backward()
        optimizer.step()
        return loss.item()

    def trial() -> list[Tensor]:
        loss = loss_of(f, problem.given)
        return [loss, *torch.autograd.grad(loss, [*f.parameters()][:-1])]

    return peers.Peer(run, trial=trial)


def eager(problem: Problem, settings: peers.Settings) -> peers.Peer:
    def loss_of(f: Any, given: Given | None) -> Tensor:
        x = run_eager(problem, f, problem.data, given or DRAWN)
        return f(x).mean() - f(problem.data).mean()

    return _peer(problem, loss_of)


def fused(problem: Problem, settings: peers.Settings) -> peers.Peer:
    """With given noise the same operator, by its own arguments."""
    chain = ade.estimators.Chain.langevin(STEPS, STEP_SIZE, problem.test, like=problem.data)
    step = torch.full((1, 2), STEP_SIZE).to(problem.data)
    seed = torch.zeros(1, dtype=torch.int64, device=step.device)

    def run_given(f: Any) -> Tensor:
        numbers = {"normals": problem.noise, "uniforms": problem.log_u.exp() if problem.test else None}
        if problem.test:
            kick, drift = step.sqrt().expand(2, 2) / 2, step.sqrt()
        else:
            kick, drift = step.expand(2, 2) / 2, torch.ones_like(step)
            numbers["noise_std"] = step[0].sqrt()
        found = fused_sum(f, problem.data)
        with torch.no_grad():
            found = run_contrast_op(found, problem.data, seed, kick, drift, STEPS, problem.test, **numbers)
        return with_derivatives(*found)

    def loss_of(f: Any, given: Given | None) -> Tensor:
        if given is None:
            return ade.estimators.contrastive_divergence(f, problem.data, chain=chain)
        return run_given(f)

    return _peer(problem, loss_of)


def jax_jit(problem: Problem, settings: peers.Settings) -> peers.Peer:
    """One jitted function from f, moments and a key to the next ones: the draw, a lax.scan, the gradient, Adam."""
    device = peers.jax_device(problem.data.device, settings)
    import jax
    import jax.numpy as jnp
    import optax
    from jax import lax

    potential = peers.jax_potential(problem.potential)
    names = [name for name, _ in problem.potential.named_parameters()]
    optimizer = optax.adam(LEARNING_RATE)

    def array(x: Tensor) -> Any:
        return jax.device_put(x.detach().cpu().numpy(), device)

    data = array(problem.data)

    def langevin(gradient: Callable, given: Any) -> Any:
        def step(x: Any, xi: Any) -> tuple[Any, None]:
            return x + STEP_SIZE / 2 * gradient(x)[1] + math.sqrt(STEP_SIZE) * xi, None

        return lax.scan(step, data, given[0])[0]

    def mala(gradient: Callable, given: Any) -> Any:
        def step(at: Any, drawn: Any) -> tuple[Any, None]:
            (x, f, grad), (xi, log_u) = at, drawn
            y = x + STEP_SIZE / 2 * grad + math.sqrt(STEP_SIZE) * xi
            new = (y, *gradient(y))
            back = ((x - y - STEP_SIZE / 2 * new[2]) ** 2).sum(1)
            moves = log_u < new[1] - f - back / (2 * STEP_SIZE) + (xi**2).sum(1) / 2
            kept = [jnp.where(moves[:, None] if b.ndim > 1 else moves, b, a) for a, b in zip(at, new, strict=True)]
            return tuple(kept), None

        return lax.scan(step, (data, *gradient(data)), given)[0][0]

    def loss_of(weights: Any, given: Any) -> Any:
        fixed = lax.stop_gradient(weights)

        def gradient(x: Any) -> tuple[Any, Any]:
            f, pull = jax.vjp(lambda x: potential(fixed, x), x)
            return f, pull(jnp.ones_like(f))[0]

        x = lax.stop_gradient((mala if problem.test else langevin)(gradient, given))
        return potential(weights, x).mean() - potential(weights, data).mean()

    def update(state: Any, key: Any) -> tuple[Any, Any, Any]:
        weights, moments = state
        key, *drawn = jax.random.split(key, 3)
        given = jax.random.normal(drawn[0], problem.noise.shape)
        log_u = jnp.log(jax.random.uniform(drawn[1], problem.log_u.shape)) if problem.test else None
        loss, grads = jax.value_and_grad(loss_of)(weights, (given, log_u))
        moves, moments = optimizer.update(grads, moments)
        return (optax.apply_updates(weights, moves), moments), key, loss

    with jax.default_device(device):
        weights = {name: array(p) for name, p in problem.potential.named_parameters()}
        given = (array(problem.noise), array(problem.log_u))
        found = jax.jit(jax.value_and_grad(loss_of))(weights, given)
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


def nominal_flop(case: Case) -> int:
    """Floating-point operations of the products with f's weights that an update asks for, whoever computes it.

    U = 2 x the number of weights is one product with each of them. A gradient of f takes 2U: at the data and after
    each step, of which the last one's is the end point's own. The weights' gradients at both take U each.
    """
    sizes = (2, *ade.MLPPotential(2).hidden, 1)
    u = 2 * sum(n * m for n, m in itertools.pairwise(sizes))
    return case.batch * (2 * (STEPS + 1) + 2) * u


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
    product, product_flop = matrix_product(device)
    runs = {"matmul": product, **{name: peer.run for name, peer in ready.items()}}
    samples = common.interleaved(runs, args.runs, args.warmups, device)
    for name in ready:
        row[name] |= common.timed(samples[name])
    return {
        "case": case.name,
        "gflop": nominal_flop(case) / 1e9,
        "matmul_gflops": round(product_flop / 1e6 / common.median_ms(samples["matmul"]), 1),
        "peers": row,
    }


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
