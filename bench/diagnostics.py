"""What diagnostics cost: one fused unroll with its full backward pass, with and without, interleaved in one process.

    python bench/diagnostics.py             prints milliseconds of process time, medians and lowest; writes nothing
    python bench/diagnostics.py --rounds 20

f is an MLP 2-128-128-128-1; the loss is a linear function of (x^T, v^T), so that nothing but the unroll is measured.
Process time of one thread: what else the machine does counts little.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

import ade_fast as ade

CASES = [(activation, batch, n_steps) for activation in ("silu", "relu") for batch, n_steps in ((256, 5), (1000, 10))]


def measure(activation: str, batch: int, n_steps: int, rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each round, without and with diagnostics."""
    torch.manual_seed(0)
    potential, layer = ade.MLPPotential(2, (128, 128, 128), activation), ade.Leapfrog(n_steps, 0.1)
    x0, v0, dx, dv = torch.randn(4, batch, 2)
    x0.requires_grad_()
    v0.requires_grad_()
    found: tuple[list[float], list[float]] = ([], [])
    for i in range(2 * (rounds + 3)):
        diagnostics = bool(i % 2)
        started = time.process_time()
        out = layer(potential, x0, v0, diagnostics=diagnostics)
        torch.autograd.backward((out.x, out.v), (dx, dv))
        found[diagnostics].append(1e3 * (time.process_time() - started))
    return found[0][3:], found[1][3:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    for case in CASES:
        without, with_them = measure(*case, rounds)
        medians, lowest = ([f(times) for times in (without, with_them)] for f in (statistics.median, min))
        print(
            f"{case[0]} B={case[1]} T={case[2]}: median {medians[0]:.2f} and {medians[1]:.2f} ms, "
            f"{medians[1] / medians[0]:.3f} times; lowest {lowest[0]:.2f} and {lowest[1]:.2f} ms, "
            f"{lowest[1] / lowest[0]:.3f} times"
        )


if __name__ == "__main__":
    main()
