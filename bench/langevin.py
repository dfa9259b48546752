"""The Langevin unroll with its full backward pass, beside the leapfrog unroll of the same f, in one run.

    python bench/langevin.py            writes bench/results/langevin-<machine>.json
    python bench/langevin.py --quick    the smallest case, few rounds; writes nothing

Everyone draws the noise in the timed call, with its own generator, and differentiates <x^T, a> + Σ log_noise by x0, the
step size, σ and every parameter of f; what each computes from given noise is held against the equations in float64
first. Leapfrog's peers are those of bench/mlp.py, whose cotangents are of x^T and v^T.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import common
import exact
import langevin_tables
import mlp
import peers
import torch
from torch import Tensor

import ade_fast as ade

NOISE_STD = math.sqrt(peers.STEP_SIZE)
NAMES = ("leapfrog eager-t1", "leapfrog jax", "leapfrog ade-auto", "eager-t1", "jax", "ade-auto")
TOLERANCE = {"smooth": 1e-4, "kinked": 2e-3}


@dataclass(frozen=True)
class Case:
    """f is an MLP dim-128-128-128-1."""

    activation: str
    batch: int
    n_steps: int = 10
    dim: int = 2

    @property
    def name(self) -> str:
        return f"langevin-{self.activation}-B{self.batch}-T{self.n_steps}-d{self.dim}"

    @property
    def leapfrog(self) -> mlp.Case:
        return mlp.Case(self.activation, self.batch, self.n_steps, self.dim)


CASES = [Case("relu", 256, 5), Case("relu", 1000), Case("silu", 256, 5), Case("silu", 1000), Case("silu", 1000, dim=32)]


@dataclass(frozen=True)
class Problem:
    """A leapfrog problem's f, x0 and cotangent a; its v0 is not used. noise: [T, B, D] for the trial."""

    leapfrog: peers.Problem
    noise_std: Tensor
    noise: Tensor

    @property
    def inputs(self) -> list[Tensor]:
        return [self.leapfrog.x0, self.leapfrog.step_size, self.noise_std, *self.leapfrog.potential.parameters()]


def make_problem(case: Case, device: torch.device) -> Problem:
    leapfrog = mlp.make_problem(case.leapfrog, device)
    noise = torch.randn(case.n_steps, case.batch, case.dim, generator=torch.Generator().manual_seed(1)).to(device)
    return Problem(leapfrog, torch.tensor(NOISE_STD, device=device, requires_grad=True), noise)


def expected(problem: Problem) -> list[Tensor]:
    """x^T, log_noise and the derivatives, float64, of the trial's noise."""
    p = problem.leapfrog
    potential = copy.deepcopy(p.potential).double()
    x0, step, std = (t.detach().double().requires_grad_() for t in (p.x0, p.step_size, problem.noise_std))
    x, _, _, log_noise = ade.reference.langevin(potential, x0, step, p.n_steps, problem.noise.double(), noise_std=std)
    value = (x * p.a.double()).sum() + log_noise.sum()
    return [x, log_noise, *torch.autograd.grad(value, [x0, step, std, *potential.parameters()], allow_unused=True)]


def _peer(problem: Problem, unroll: Callable[[Tensor | None], tuple[Tensor, Tensor]]) -> peers.Peer:
    """unroll: (given noise or None) -> (x^T, log_noise)."""
    p = problem.leapfrog

    def run(noise: Tensor | None = None) -> list[Tensor | None]:
        x, log_noise = unroll(noise)
        ones = torch.ones_like(log_noise)
        return [x, log_noise, *torch.autograd.grad((x, log_noise), problem.inputs, (p.a, ones), allow_unused=True)]

    return peers.Peer(run, trial=lambda: run(problem.noise))


def eager(problem: Problem, settings: peers.Settings) -> peers.Peer:
    p = problem.leapfrog

    def unroll(noise: Tensor | None) -> tuple[Tensor, Tensor]:
        shape = problem.noise.shape
        noise = torch.randn(shape, device=p.x0.device) if noise is None else noise
        return ade.reference.langevin(p.potential, p.x0, p.step_size, p.n_steps, noise, noise_std=problem.noise_std)[
            ::3
        ]

    return _peer(problem, unroll)


def fused(problem: Problem, settings: peers.Settings) -> peers.Peer:
    p = problem.leapfrog

    def unroll(noise: Tensor | None) -> tuple[Tensor, Tensor]:
        out = ade.functional.langevin(
            p.potential, p.x0, p.step_size, p.n_steps, noise_std=problem.noise_std, noise=noise
        )
        return out.x, out.log_noise

    return _peer(problem, unroll)


def jax_scan(problem: Problem, settings: peers.Settings) -> peers.Peer:
    """jax.jit of the draw, one lax.scan over the steps, and its vjp."""
    p = problem.leapfrog
    device = peers.jax_device(p.x0.device, settings)
    import jax
    import jax.numpy as jnp

    def array(x: Tensor) -> Any:
        return jax.device_put(x.detach().cpu().numpy(), device)

    weights = {name: array(w) for name, w in p.potential.named_parameters()}
    potential = peers.jax_potential(p.potential)

    def unroll(noise: Any, weights: Mapping[str, Any], x: Any, eta: Any, std: Any) -> tuple[Any, Any]:
        gradient = jax.grad(lambda x: potential(weights, x).sum())

        def step(x: Any, xi: Any) -> tuple[Any, None]:
            return x + std * xi + eta / 2 * gradient(x), None

        log_noise = -(noise**2).sum((0, 2)) / 2 - noise[:, 0].size * (jnp.log(std) + 0.5 * math.log(2 * math.pi))
        return jax.lax.scan(step, x, noise)[0], log_noise

    def given(noise: Any, inputs: tuple, a: Any) -> tuple:
        (x, log_noise), pull = jax.vjp(lambda *inputs: unroll(noise, *inputs), *inputs)
        return x, log_noise, *pull((a, jnp.ones_like(log_noise)))

    def drawn(key: Any, inputs: tuple, a: Any) -> tuple:
        key, own = jax.random.split(key)
        return key, given(jax.random.normal(own, problem.noise.shape), inputs, a)

    inputs, a = (weights, array(p.x0), array(p.step_size), array(problem.noise_std)), array(p.a)
    state = {"key": jax.random.key(0)}
    with jax.default_device(device):
        function, trial = jax.jit(drawn), jax.jit(given)

        def run() -> Any:
            state["key"], result = function(state["key"], inputs, a)
            return jax.block_until_ready(result)

        run()

    def outputs(result: tuple) -> list[Tensor]:
        x, log_noise, dweights, *rest = jax.device_get(result)
        names = [name for name, _ in p.potential.named_parameters()]
        return [torch.tensor(t) for t in (x, log_noise, *rest, *(dweights[name] for name in names))]

    return peers.Peer(run, outputs, trial=lambda: trial(array(problem.noise), inputs, a))


MAKERS: dict[str, peers.Make] = {"eager-t1": eager, "jax": jax_scan, "ade-auto": fused}


def error(outputs: Sequence[Tensor | None], wanted: Sequence[Tensor | None]) -> float:
    """The largest relative error: of x^T, of log_noise, of each derivative, those of f's parameters together."""

    def parts(tensors: Sequence[Tensor | None]) -> list[Tensor]:
        known = [torch.zeros_like(w) if t is None else t for t, w in zip(tensors, wanted, strict=True) if w is not None]
        flat = [t.detach().cpu().double().flatten() for t in known]
        return [*flat[:5], torch.cat(flat[5:])]

    return max(float((g - w).norm() / w.norm()) for g, w in zip(parts(outputs), parts(wanted), strict=True))


def measure(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    device = torch.device(args.device)
    settings = peers.Settings(args.compile_limit)
    problem = make_problem(case, device)
    tolerance = TOLERANCE["kinked" if case.leapfrog.kinked else "smooth"]
    wanted = expected(problem)
    own = [name for name in args.peers if name in MAKERS]
    ready, entries = peers.build(
        {name: MAKERS[name] for name in own}, problem, settings,
        lambda _, outputs: peers.judged(error(outputs, wanted), tolerance),
    )  # fmt: skip
    right = exact.expected(problem.leapfrog)
    others = [name.removeprefix("leapfrog ") for name in args.peers if name not in MAKERS]
    found, told = peers.build(
        {name: peers.PEERS[name] for name in others}, problem.leapfrog, settings,
        lambda _, outputs: peers.judged(max(exact.errors(outputs, right)), tolerance),
    )  # fmt: skip
    ready |= {f"leapfrog {name}": peer for name, peer in found.items()}
    entries |= {f"leapfrog {name}": entry for name, entry in told.items()}
    samples = common.interleaved({name: peer.run for name, peer in ready.items()}, args.runs, args.warmups, device)
    for name in ready:
        entries[name] |= common.timed(samples[name])
    return {"case": case.name, "peers": {name: entries[name] for name in args.peers}}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_options(parser, NAMES)
    args = parser.parse_args(argv)
    common.check_options(parser, args, CASES[:1] if args.quick else CASES)
    results = common.run_cases("langevin", args, NAMES, lambda case: measure(case, args))
    print(langevin_tables.show(results))
    sys.exit(common.exit_code(results))


if __name__ == "__main__":
    main()
