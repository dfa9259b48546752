"""One training iteration of Table 4's network through leapfrog, exact and truncated: its time and its peak memory.

    python bench/images_iteration.py             writes bench/results/images_iteration-<machine>.json
    python bench/images_iteration.py --quick     a smaller network, few rounds; writes nothing

An iteration: f at the data, the unroll, f and the kinetic energy at its end, and the backward pass of their difference
to every parameter of f and to the step sizes, B = 8 images of 28x28. "eager 2T, truncated" takes each ∇f as a constant,
as the released image code does; every other peer's derivatives are held against eager's in float64 first. "bf16" takes
f under autocast, its states in float32. "bare" are the convolutions of an exact iteration, on tensors of those shapes,
and nothing else: each ∇f takes every layer forwards and back to its input, and its adjoint
forwards and to its weights; f at the data and at the end take each way once. JAX's is one jitted value_and_grad, NHWC,
its scan unrolled on the CPU, where XLA's convolutions are ten times slower inside a loop; "checkpoint" makes each step
again in the backward pass.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import common
import image_tables
import peers
import torch
from torch import Tensor, nn
from torch.utils import checkpoint

import ade_fast as ade

TOLERANCE = 2e-2
"""In float32 a pre-activation that rounding takes across its kink changes the derivatives by so much."""
TOLERANCE_BF16 = 0.35
"""In bfloat16 more are, and each product has 8 bits: eager's own error, which has a line of its own."""


@dataclass(frozen=True)
class Case:
    n_steps: int
    widths: tuple[int, ...] = (64, 128, 128, 256, 256)
    batch: int = 8

    @property
    def name(self) -> str:
        return f"images-B{self.batch}-T{self.n_steps}"


CASES = [Case(10), Case(30), Case(100)]
QUICK = [Case(2, (4, 4, 4, 4, 4), 2)]


@dataclass(frozen=True)
class Problem:
    """f, the data, x0 and v0 [B, 1, 28, 28], and the step size of each pixel."""

    potential: nn.Module
    data: Tensor
    x0: Tensor
    v0: Tensor
    step_size: Tensor
    n_steps: int

    @property
    def inputs(self) -> list[Tensor]:
        return [self.step_size, *self.potential.parameters()]


Unroll = Callable[[Problem], tuple[Tensor, Tensor]]


def make_problem(case: Case, device: torch.device) -> Problem:
    torch.manual_seed(0)
    potential = ade.ConvPotential(1, 28, widths=case.widths, spectral_norm=False).to(device)
    data, x0, v0 = (torch.randn(case.batch, 1, 28, 28).to(device) for _ in range(3))
    step_size = torch.full((1, 28, 28), peers.STEP_SIZE, device=device, requires_grad=True)
    return Problem(potential, data, x0, v0, step_size, case.n_steps)


def gradient(p: Problem, x: Tensor, exact: bool = True) -> Tensor:
    x = x if x.requires_grad else x.detach().requires_grad_()
    return torch.autograd.grad(p.potential(x).sum(), x, create_graph=exact)[0]


def two_per_step(p: Problem, exact: bool) -> tuple[Tensor, Tensor]:
    x, v = p.x0, p.v0
    for _ in range(p.n_steps):
        v = v + p.step_size / 2 * gradient(p, x, exact)
        x = x + p.step_size * v
        v = v + p.step_size / 2 * gradient(p, x, exact)
    return x, v


def merged(p: Problem) -> tuple[Tensor, Tensor]:
    return peers.merged_kicks(lambda x: gradient(p, x), p.x0, p.v0, p.step_size, p.n_steps)


def checkpointed(p: Problem) -> tuple[Tensor, Tensor]:
    """T + 1 gradients, each step made again in the backward pass."""

    def step(x: Tensor, v: Tensor, eta: Tensor, last: bool) -> tuple[Tensor, Tensor]:
        x = x + eta * v
        return x, v + (eta / 2 if last else eta) * gradient(p, x)

    def first(x: Tensor, v: Tensor, eta: Tensor) -> Tensor:
        return v + eta / 2 * gradient(p, x)

    again = functools.partial(checkpoint.checkpoint, use_reentrant=False)
    x, v = p.x0, again(first, p.x0, p.v0, p.step_size)
    for t in range(p.n_steps):
        x, v = again(step, x, v, p.step_size, t == p.n_steps - 1)
    return x, v


def ours(memory: str) -> Unroll:
    def unroll(p: Problem) -> tuple[Tensor, Tensor]:
        return ade.functional.leapfrog(p.potential, p.x0, p.v0, p.step_size, p.n_steps, memory=memory)[:2]

    return unroll


UNROLLS: dict[str, Unroll] = {
    "eager-truncated": functools.partial(two_per_step, exact=False),
    "eager-2t": functools.partial(two_per_step, exact=True),
    "eager-t1": merged,
    "checkpoint": checkpointed,
    **{f"ade-{memory}": ours(memory) for memory in ("graph", "masks", "states", "reversible")},
    "eager-t1-bf16": merged,
    "eager-truncated-bf16": functools.partial(two_per_step, exact=False),
    "ade-graph-bf16": ours("graph"),
    "ade-masks-bf16": ours("masks"),
}
UNJUDGED = ("eager-truncated", "eager-truncated-bf16", "bare")


def iterate(p: Problem, unroll: Unroll) -> list[Tensor]:
    """The derivatives of the iteration's loss by `Problem.inputs`."""
    x, v = unroll(p)
    value = p.potential(p.data).mean() - p.potential(x).mean() + 0.5 * v.square().flatten(1).sum(1).mean()
    return list(torch.autograd.grad(value, p.inputs))


def in_torch(name: str) -> peers.Make:
    unroll, bf16 = UNROLLS[name], name.endswith("-bf16")

    def make(p: Problem, settings: peers.Settings) -> peers.Peer:
        def run() -> list[Tensor]:
            on = torch.autocast(p.data.device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()
            with on:
                return iterate(p, unroll)

        return peers.Peer(run)

    return make


def bare(p: Problem, settings: peers.Settings) -> peers.Peer:
    """Outputs are none of the iteration's. Channels last, as all peers of torch have them on the CPU."""
    calls: list[tuple[nn.Conv2d, Tensor, Tensor, Tensor]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        tensors = (inputs[0], module.weight, output)
        calls.append((module, *(torch.randn_like(t).contiguous(memory_format=torch.channels_last) for t in tensors)))

    hooks = [m.register_forward_hook(note) for m in p.potential.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        p.potential(p.x0)
    for hook in hooks:
        hook.remove()
    to_input, to_weight = (True, False, False), (False, True, False)

    def forwards(m: nn.Conv2d, x: Tensor, w: Tensor) -> None:
        nn.functional.conv2d(x, w, None, m.stride, m.padding)

    def back(m: nn.Conv2d, x: Tensor, w: Tensor, y: Tensor, wanted: tuple[bool, bool, bool]) -> None:
        torch.ops.aten.convolution_backward(y, x, w, None, m.stride, m.padding, m.dilation, False, [0, 0], 1, wanted)

    def run() -> None:
        for m, x, w, y in calls:
            for _ in range(p.n_steps + 1):
                forwards(m, x, w)
                back(m, x, w, y, to_input)
                forwards(m, x, w)
                back(m, x, w, y, to_weight)
            for _ in range(2):
                forwards(m, x, w)
                back(m, x, w, y, to_input)
                back(m, x, w, y, to_weight)

    return peers.Peer(run, outputs=lambda _: [])


def in_jax(again: bool) -> peers.Make:
    """again: whether each step is made again in the backward pass, by jax.checkpoint."""

    def make(p: Problem, settings: peers.Settings) -> peers.Peer:
        device = peers.jax_device(p.data.device, settings)
        import jax

        def array(t: Tensor, order: tuple[int, ...]) -> Any:
            return jax.device_put(t.detach().cpu().permute(order).numpy(), device)

        named = dict(p.potential.named_parameters())
        weights = {n: array(w, (2, 3, 1, 0) if w.dim() == 4 else tuple(range(w.dim()))) for n, w in named.items()}
        data, x0, v0 = (array(t, (0, 2, 3, 1)) for t in (p.data, p.x0, p.v0))
        network = peers.jax_potential(p.potential)
        whole = device.platform == "cpu"

        def loss(step_size: Any, weights: dict[str, Any], data: Any, x0: Any, v0: Any) -> Any:
            gradient = jax.grad(lambda x: network(weights, x).sum())
            kept = jax.checkpoint(gradient) if again else gradient
            x, v = peers.jax_merged_kicks(kept, x0, v0, step_size, p.n_steps, unroll=whole)
            return network(weights, data).mean() - network(weights, x).mean() + 0.5 * (v**2).sum((1, 2, 3)).mean()

        inputs = (array(p.step_size, (1, 2, 0)), weights, data, x0, v0)
        start = time.perf_counter()
        with jax.default_device(device):
            function = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*inputs).compile()
        notes = {"compile_s": round(time.perf_counter() - start, 1)}

        def outputs(found: tuple[Any, dict[str, Any]]) -> list[Tensor | None]:
            step, kernels = found[0], [found[1][name] for name in named]
            return [torch.tensor(jax.device_get(step)).permute(2, 0, 1), *map(as_torch, kernels)]

        def as_torch(kernel: Any) -> Tensor:
            found = torch.tensor(jax.device_get(kernel))
            return found.permute(3, 2, 0, 1) if found.dim() == 4 else found

        return peers.Peer(lambda: jax.block_until_ready(function(*inputs)), outputs, notes=notes)

    return make


MAKERS: dict[str, peers.Make] = {
    **{name: in_torch(name) for name in UNROLLS},
    "bare": bare,
    "jax": in_jax(again=False),
    "jax-checkpoint": in_jax(again=True),
}


def expected(p: Problem) -> list[Tensor]:
    double = [t.detach().double() for t in (p.data, p.x0, p.v0, p.step_size)]
    data, x0, v0, step_size = double
    q = Problem(copy.deepcopy(p.potential).double(), data, x0, v0, step_size.requires_grad_(), p.n_steps)
    return iterate(q, merged)


def error(outputs: Sequence[Tensor | None], wanted: Sequence[Tensor]) -> float:
    """The larger relative error: of the step sizes' derivative, of f's parameters' together."""
    parts = [[torch.cat([t.double().flatten() for t in some]) for some in (ts[:1], ts[1:])] for ts in (outputs, wanted)]
    return max(float((got - right).norm() / right.norm()) for got, right in zip(*parts, strict=True))


def measure(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    device = torch.device(args.device)
    problem = make_problem(case, device)
    wanted = expected(problem)

    def judge(name: str, outputs: Sequence[Tensor | None]) -> tuple[dict[str, Any], str | None]:
        if name in UNJUDGED:
            return {}, None
        return peers.judged(error(outputs, wanted), TOLERANCE_BF16 if name.endswith("-bf16") else TOLERANCE)

    makers = {name: MAKERS[name] for name in args.peers}
    ready, entries = peers.build(makers, problem, peers.Settings(args.compile_limit), judge)
    samples = common.interleaved({name: peer.run for name, peer in ready.items()}, args.runs, args.warmups, device)
    for name, peer in ready.items():
        entries[name] |= common.timed(samples[name])
        entries[name]["peak_bytes"] = common.peak_bytes(peer.run, device)
    return {"case": case.name, "peers": entries}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_options(parser, list(MAKERS))
    args = parser.parse_args(argv)
    common.check_options(parser, args, QUICK if args.quick else CASES)
    results = common.run_cases("images_iteration", args, list(MAKERS), lambda case: measure(case, args))
    print(image_tables.iteration(results))
    sys.exit(common.exit_code(results))


if __name__ == "__main__":
    main()
