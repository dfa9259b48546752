"""What it costs that the backward pass compares what it evaluates again with what the forward pass saw.

    python bench/checksum.py             writes bench/results/checksum-<machine>.json
    python bench/checksum.py --quick     small cases, few rounds; writes nothing

An iteration: an unroll of leapfrog, T = 10, and the backward pass of f at its end to all parameters; of an MLP at
B = 1000 by the general path, and of Table 4's network at B = 8. The comparisons' share of it is measured within: of the
thread's own time, which other processes do not change much, how much goes by in `Checksum` and `agrees`, the clock's
calls included. The MLP kernels compare nothing, as they evaluate no code of the user's again.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import checksum_tables
import common
import torch
from torch import nn

import ade_fast as ade
from ade_fast.fields import agreement, autograd


@dataclass(frozen=True)
class Case:
    """memory: of the plan: "states" and "reversible" evaluate again; of a piecewise-linear f gradients are kept."""

    of: str
    batch: int
    memory: str
    n_steps: int = 10
    widths: tuple[int, ...] = (64, 128, 128, 256, 256)

    @property
    def name(self) -> str:
        return f"{self.of}-B{self.batch}-T{self.n_steps}-{self.memory}"


CASES = [
    *(Case(of, 1000, memory) for of in ("silu", "relu") for memory in ("graph", "states")),
    *(Case("table4", 8, memory) for memory in ("graph", "masks", "states", "reversible")),
]
QUICK = [Case("silu", 50, "states", 2), Case("table4", 2, "reversible", 2, (4,) * 5)]


class Clock:
    """Seconds of this thread that go by in the comparisons."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable) -> Callable:
        @functools.wraps(function)
        def timed(*args: Any, **options: Any) -> Any:
            start = time.thread_time()
            try:
                return function(*args, **options)
            finally:
                self.seconds += time.thread_time() - start

        return timed

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        places = [(agreement.Checksum, "add"), (agreement.Checksum, "compare"), (autograd, "agrees")]
        before = [getattr(owner, name) for owner, name in places]
        for (owner, name), function in zip(places, before, strict=True):
            setattr(owner, name, self.around(function))
        try:
            yield
        finally:
            for (owner, name), function in zip(places, before, strict=True):
                setattr(owner, name, function)


def iteration(case: Case) -> Callable[[], None]:
    torch.manual_seed(0)
    if case.of == "table4":
        f: nn.Module = ade.ConvPotential(1, 28, widths=case.widths, spectral_norm=False)
        event: tuple[int, ...] = (1, 28, 28)
    else:  # a module around it leads past the MLP kernels
        f, event = ade.NegativeEnergy(ade.MLPPotential(2, (128, 128, 128), case.of)), (2,)
    layer = ade.Leapfrog(case.n_steps, 0.01, memory=case.memory)
    x0, v0 = torch.randn(2, case.batch, *event)
    parameters = [layer.step_size, *f.parameters()]

    def run() -> None:
        x, v, _ = layer(f, x0, v0)
        loss = f(x).mean() - 0.5 * v.square().flatten(1).sum(1).mean()
        torch.autograd.grad(loss, parameters, allow_unused=True)

    run()
    if layer.last_plan.memory != case.memory or layer.last_plan.field == "mlp":
        raise RuntimeError(f"{case.name}: ran as {layer.last_plan}")
    return run


def measure(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    run, clock = iteration(case), Clock()
    for _ in range(args.warmups):
        run()
    shares, milliseconds = [], []
    with clock.running():
        for _ in range(args.runs):
            clock.seconds, start = 0.0, time.thread_time()
            run()
            whole = time.thread_time() - start
            shares.append(clock.seconds / whole)
            milliseconds.append(1e3 * whole)
    return {"case": case.name, "ms": statistics.median(milliseconds), "share": statistics.median(shares),
            "most": max(shares)}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common.add_options(parser, [])
    parser.set_defaults(threads=1)
    args = parser.parse_args(argv)
    if args.threads != 1:
        parser.error("--threads must be 1: the clock is the thread's own")
    common.check_options(parser, args, QUICK if args.quick else CASES)
    print(checksum_tables.show(common.run_cases("checksum", args, [], lambda case: measure(case, args))))
    sys.exit(0)


if __name__ == "__main__":
    main()
