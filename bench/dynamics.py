"""Leapfrog, forward and full backward: milliseconds and memory of ade_fast and of its peers, in one run.

    python bench/dynamics.py            every case; writes bench/results/dynamics-<machine>.json
    python bench/dynamics.py --quick    the smallest cases, few rounds; writes nothing
    python bench/dynamics.py --cases 'mlp-silu-*' --peers eager-t1,ade-auto

What is measured, and how: bench/README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import peers
import records
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

STEP_SIZE = 0.1
# Relative L2 error against the equations in float64. Kinks: two roundings of one pre-activation near 0 take
# different slopes, and the samples in question then differ by more than rounding.
TOLERANCE = {"smooth": 1e-4, "kinked": 2e-3}


def make_problem(case: Case, device: torch.device) -> peers.Problem:
    torch.manual_seed(0)
    potential = case.potential().to(device)
    x0, v0, a, b = (torch.randn(case.batch, *case.event).to(device) for _ in range(4))
    step = torch.tensor(STEP_SIZE, device=device)
    for leaf in (x0, v0, step):
        leaf.requires_grad_()
    return peers.Problem(potential, x0, v0, step, case.n_steps, a, b)


def oracle(case: Case, problem: peers.Problem) -> list[Tensor]:
    """The equations in float64: outputs and derivatives in the order of `Peer.outputs`, on the CPU."""
    potential = case.potential().double()
    potential.load_state_dict(problem.potential.state_dict())
    x0, v0, step = (t.detach().cpu().double().requires_grad_() for t in (problem.x0, problem.v0, problem.step_size))
    x, v, _ = ade.reference.leapfrog(potential, x0, v0, step, problem.n_steps)
    inputs = [x0, v0, step, *potential.parameters()]
    cotangents = (problem.a.cpu().double(), problem.b.cpu().double())
    derivatives = torch.autograd.grad((x, v), inputs, cotangents, allow_unused=True)
    return [
        x.detach(),
        v.detach(),
        *(torch.zeros_like(i) if d is None else d for d, i in zip(derivatives, inputs, strict=True)),
    ]


def error(outputs: Sequence[Tensor | None], expected: Sequence[Tensor]) -> float:
    """Largest relative L2 error among x^T, v^T, dx0, dv0, dstep and all parameters' derivatives together."""
    got = []
    for output, wanted in zip(outputs, expected, strict=True):
        got.append(torch.zeros_like(wanted) if output is None else output.detach().cpu().double())
        if got[-1].shape != wanted.shape:
            raise ValueError(f"a peer returned shape {tuple(got[-1].shape)} for {tuple(wanted.shape)}")

    def parts(tensors: Sequence[Tensor]) -> list[Tensor]:
        return [t.flatten() for t in tensors[:5]] + [torch.cat([t.flatten() for t in tensors[5:]])]

    return max(float((g - e).norm() / e.norm()) for g, e in zip(parts(got), parts(expected), strict=True))


def measure(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """One row: every peer is built and checked first, then all are timed together, then each one's memory."""
    device = torch.device(args.device)
    problem = make_problem(case, device)
    expected = oracle(case, problem)
    tolerance = TOLERANCE["kinked" if case.kinked else "smooth"]
    settings = peers.Settings(args.compile_limit)
    ready: dict[str, peers.Peer] = {}
    row: dict[str, dict[str, Any]] = {}
    for name in args.peers:
        try:
            peer = peers.PEERS[name](problem, settings)
        except peers.Skipped as why:
            row[name] = {"skipped": str(why)}
            continue
        off = error(peer.outputs(peer.run()), expected)
        row[name] = {**peer.notes, "error": float(f"{off:.2g}")}
        if off <= tolerance:  # also refuses NaN
            ready[name] = peer
        else:
            row[name]["skipped"] = f"wrong: relative error {off:.1e}, allowed {tolerance:.0e}"
    samples = common.interleaved({n: p.run for n, p in ready.items()}, args.runs, args.warmups, device)
    for name, peer in ready.items():
        row[name]["ms"] = round(common.median_ms(samples[name]), 3)
        row[name]["ms_all"] = [round(1e3 * s, 3) for s in samples[name]]
        # JAX has an allocator of its own on the GPU, which torch's counters do not see.
        if name != "jax" or device.type == "cpu":
            row[name]["peak_bytes"] = common.peak_bytes(peer.run, device)
        if peer.forward is not None:
            row[name]["kept_bytes"] = common.kept_bytes(peer.forward, device)
    return {"case": case.name, "batch": case.batch, "n_steps": case.n_steps, "peers": row}


@contextlib.contextmanager
def _cold_compiler_cache() -> Iterator[None]:
    """So that every reported compile time is that of a first compilation."""
    with tempfile.TemporaryDirectory(prefix="ade_fast_bench_", ignore_cleanup_errors=True) as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        yield


def _peer_names(text: str) -> list[str]:
    names = text.split(",")
    unknown = sorted(set(names) - set(peers.PEERS))
    if unknown:
        raise argparse.ArgumentTypeError(f"no peer {unknown[0]!r}: choose from {', '.join(peers.PEERS)}")
    return names


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=cores, help="for every peer (default: all cores)")
    parser.add_argument("--runs", type=int, default=5, help="interleaved rounds (default 5)")
    parser.add_argument("--warmups", type=int, default=3, help="untimed calls before them (default 3)")
    parser.add_argument("--cases", default="*", help="which cases, a shell pattern: 'mlp-relu-*'")
    parser.add_argument("--peers", type=_peer_names, default=list(peers.PEERS), help=f"of {','.join(peers.PEERS)}")
    parser.add_argument("--compile-limit", type=float, default=180.0, help="seconds (default 180)")
    parser.add_argument("--quick", action="store_true", help="the smallest cases, 2 rounds; a smoke test")
    parser.add_argument("--out", type=Path, help="results file (default: bench/results/ for a full run)")
    args = parser.parse_args(argv)
    if not 1 <= args.threads <= cores:
        parser.error(f"--threads must be 1 to {cores} (the CPUs this process may use), got {args.threads}")
    candidates = [case for case in CASES if case.quick or not args.quick]
    args.selected = [case for case in candidates if fnmatch.fnmatch(case.name, args.cases)]
    if not args.selected:
        parser.error(f"--cases {args.cases!r} is none of {', '.join(case.name for case in candidates)}")
    if args.quick:
        args.runs, args.warmups = 2, 1
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = _arguments(argv)
    common.limit_threads(args.threads)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the other peers need memory too
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32, for everyone
    results = common.described_run("dynamics", torch.device(args.device), args.threads)
    results["settings"] = {"runs": args.runs, "warmups": args.warmups, "dtype": "float32"}
    results["cases"] = []
    with _cold_compiler_cache():
        for case in args.selected:
            print(f"{case.name} ...", file=sys.stderr, flush=True)
            results["cases"].append(measure(case, args))
    if "jax" in sys.modules and sys.modules["jax"] is not None:
        results["versions"]["jax"] = sys.modules["jax"].__version__
    print(report.full(results))
    full_run = not args.quick and args.cases == "*" and args.peers == list(peers.PEERS)
    out = args.out or (records.RESULTS / f"dynamics-{records.slug(results)}.json" if full_run else None)
    if out is not None:
        records.write_results(results, out)
        print(f"\nwritten: {out}; `python bench/report.py` puts it into the documents")


if __name__ == "__main__":
    main()
