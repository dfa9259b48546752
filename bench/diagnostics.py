"""What diagnostics cost: one fused unroll with its full backward pass, with and without, interleaved in one process.

    python bench/diagnostics.py             prints milliseconds of process time, medians and lowest; writes nothing
    python bench/diagnostics.py --rounds 20

f is an MLP 2-128-128-128-1; the loss is a linear function of (x^T, v^T), so that nothing but the unroll is measured.
"read": the figures are looked at too, once after every backward pass. Process time of one thread: what else the machine
does counts little.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

import ade_fast as ade

CASES = [(activation, batch, n_steps) for activation in ("silu", "relu") for batch, n_steps in ((256, 5), (1000, 10))]


def measure(activation: str, batch: int, n_steps: int, rounds: int) -> list[list[float]]:
    """Milliseconds of each round: without diagnostics, with them, and with them read."""
    torch.manual_seed(0)
    potential, layer = ade.MLPPotential(2, (128, 128, 128), activation), ade.Leapfrog(n_steps, 0.1)
    x0, v0, dx, dv = torch.randn(4, batch, 2)
    x0.requires_grad_()
    v0.requires_grad_()
    found: list[list[float]] = [[], [], []]
    for i in range(3 * (rounds + 3)):
        started = time.process_time()
        out = layer(potential, x0, v0, diagnostics=i % 3 > 0)
        torch.autograd.backward((out.x, out.v), (dx, dv))
        if i % 3 == 2:
            layer.diagnostics.rows()
        found[i % 3].append(1e3 * (time.process_time() - started))
    return [times[3:] for times in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    for case in CASES:
        times = measure(*case, rounds)
        for name, of in (("median", statistics.median), ("lowest", min)):
            without, asked, read = map(of, times)
            print(
                f"{case[0]} B={case[1]} T={case[2]} {name}: {without:.2f} ms, asked for {asked:.2f} ms "
                f"({asked / without:.3f} times), read {read:.2f} ms ({read / without:.3f} times)"
            )


if __name__ == "__main__":
    main()
