"""Leapfrog, forward and full backward: milliseconds and memory of ade_fast and of its peers, in one run.

    python bench/dynamics.py            every case; writes bench/results/dynamics-<machine>.json
    python bench/dynamics.py --quick    the smallest cases, few rounds; writes nothing
    python bench/dynamics.py --cases 'mlp-silu-*' --peers eager-t1,ade-auto

What is measured, and how: bench/README.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import common
import exact
import peers
import report
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import ade_fast as ade


@dataclass(frozen=True)
class Case:
    """name: of its row. event: shape of one sample. kinked: f is piecewise linear. quick: in ``--quick``."""

    name: str
    potential: Callable[[], nn.Module]
    event: tuple[int, ...]
    batch: int
    n_steps: int
    kinked: bool
    quick: bool = False


def _mlp(activation: str, batch: int, n_steps: int) -> Case:
    return Case(
        f"mlp-{activation}-B{batch}-T{n_steps}",
        lambda: ade.MLPPotential(2, (128, 128, 128), activation),
        (2,),
        batch,
        n_steps,
        kinked=activation == "relu",
        quick=(batch, n_steps) == (100, 10),
    )


def _table4() -> nn.Module:
    """Table 4a's network with its effective weights as plain parameters: spectral norm is computed once per
    update of the potential, outside the unroll, for every peer alike."""
    potential = ade.ConvPotential(3, 32)
    for module in potential.modules():
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    return potential


CASES = [
    *(_mlp(activation, b, t) for activation in ("relu", "silu") for b in (100, 1000) for t in (10, 60)),
    Case("conv-B8-T10", _table4, (3, 32, 32), 8, 10, kinked=True),
]

NAMES = ("eager-2t", "eager-t1", "compile", "jax", "ade-auto", "ade-graph", "ade-states")
# Relative L2 error against the equations in float64. Kinks: two roundings of one pre-activation near 0 take
# different slopes, and the samples in question then differ by more than rounding.
TOLERANCE = {"smooth": 1e-4, "kinked": 2e-3}


def make_problem(case: Case, device: torch.device) -> peers.Problem:
    torch.manual_seed(0)
    return peers.random_problem(case.potential(), case.batch, case.event, case.n_steps, device)


def measure(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """One row: every peer is built and checked first, then all are timed together, then each one's memory."""
    device = torch.device(args.device)
    problem = make_problem(case, device)
    expected = exact.expected(problem)
    tolerance = TOLERANCE["kinked" if case.kinked else "smooth"]

    def judge(_: str, outputs: Sequence[Tensor | None]) -> tuple[dict[str, Any], str | None]:
        return peers.judged(max(exact.errors(outputs, expected)), tolerance)

    settings = peers.Settings(args.compile_limit)
    ready, row = peers.build({n: peers.PEERS[n] for n in args.peers}, problem, settings, judge)
    samples = common.interleaved({n: p.run for n, p in ready.items()}, args.runs, args.warmups, device)
    for name, peer in ready.items():
        row[name] |= common.timed(samples[name])
        # JAX has an allocator of its own on the GPU, which torch's counters do not see.
        if name != "jax" or device.type == "cpu":
            row[name]["peak_bytes"] = common.peak_bytes(peer.run, device)
        if peer.forward is not None:
            row[name]["kept_bytes"] = common.kept_bytes(peer.forward, device)
    return {"case": case.name, "batch": case.batch, "n_steps": case.n_steps, "peers": row}


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_options(parser, NAMES)
    args = parser.parse_args(argv)
    common.check_options(parser, args, [case for case in CASES if case.quick or not args.quick])
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    results = common.run_cases("dynamics", args, NAMES, lambda case: measure(case, args))
    print(report.full(results))
    sys.exit(common.exit_code(results))


if __name__ == "__main__":
    main()
