"""What the benchmarks share: options, interleaved medians, memory, the description of a machine."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import datetime
import fnmatch
import gc
import importlib.metadata
import importlib.util
import math
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from records import RESULTS, ROOT, SCHEMA, slug, write_results

import ade_fast

# A shorter sample is mostly timer and scheduler noise: short runs are repeated until one is this long.
_SHORTEST_SAMPLE_S = 0.05
# A longer call needs no more than one warm-up: what caches and waking threads cost is lost in it.
_LONG_CALL_S = 2.0


# --- Options ------------------------------------------------------------------------------------------------


def add_options(parser: argparse.ArgumentParser, peers: Sequence[str]) -> None:
    """The options of every benchmark that times peers."""

    def peer_names(text: str) -> list[str]:
        unknown = sorted(set(text.split(",")) - set(peers))
        if unknown:
            raise argparse.ArgumentTypeError(f"no peer {unknown[0]!r}: choose from {', '.join(peers)}")
        return text.split(",")

    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=cores, help="for every peer (default: all cores)")
    parser.add_argument("--runs", type=int, default=5, help="interleaved rounds (default 5)")
    parser.add_argument("--warmups", type=int, default=3, help="untimed calls before them (default 3)")
    parser.add_argument("--cases", default="*", help="which cases, a shell pattern: 'mlp-relu-*'")
    parser.add_argument("--peers", type=peer_names, default=list(peers), help=f"of {','.join(peers)}")
    parser.add_argument("--compile-limit", type=float, default=180.0, help="seconds (default 180)")
    parser.add_argument("--stop-after", type=float, default=math.inf, help="begin no case after so many seconds")
    parser.add_argument("--quick", action="store_true", help="the smallest cases, 2 rounds; a smoke test")
    parser.add_argument("--out", type=Path, help="results file (default: bench/results/ for a full run)")


def check_options(parser: argparse.ArgumentParser, args: argparse.Namespace, candidates: Sequence[Any]) -> None:
    """Refuses options that make no sense; `args.selected` is what ``--cases`` leaves of `candidates`."""
    cores = len(os.sched_getaffinity(0))
    if not 1 <= args.threads <= cores:
        parser.error(f"--threads must be 1 to {cores} (the CPUs this process may use), got {args.threads}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch.cuda.is_available() is False")
    args.selected = [case for case in candidates if fnmatch.fnmatch(case.name, args.cases)]
    if not args.selected:
        parser.error(f"--cases {args.cases!r} is none of {', '.join(case.name for case in candidates)}")
    if args.quick:
        args.runs, args.warmups = 2, 1


def run_cases(
    benchmark: str,
    args: argparse.Namespace,
    peers: Sequence[str],
    measure: Callable[[Any], dict[str, Any]],
    variant: str = "",
    whole: bool = True,
) -> dict[str, Any]:
    """Measures the selected cases, and writes the results after each: where ``--out`` says, else in bench/results/
    when it is a `whole` run of all cases and peers. `variant`: of the benchmark, for the file's name."""
    limit_threads(args.threads)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the other peers need memory too
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32, for everyone
    results = described_run(benchmark, torch.device(args.device), args.threads)
    results["settings"] = {"runs": args.runs, "warmups": args.warmups, "dtype": "float32"}
    if "jax" in args.peers and importlib.util.find_spec("jax") is not None:
        results["versions"]["jax"] = importlib.metadata.version("jax")
    results["cases"], results["left_out"] = [], []
    whole = whole and not args.quick and args.cases == "*" and args.peers == list(peers)
    out = args.out or (RESULTS / f"{benchmark}{variant}-{slug(results)}.json" if whole else None)
    start = time.monotonic()
    with _cold_compiler_cache():
        for case in args.selected:
            if time.monotonic() - start > args.stop_after:
                results["left_out"].append(case.name)
                continue
            print(f"{case.name} ...", file=sys.stderr, flush=True)
            results["cases"].append(measure(case))
            if out is not None:
                write_results(results, out)
    if out is not None and results["cases"]:
        write_results(results, out)
        print(f"written: {out}; `python bench/report.py` puts it into the documents", file=sys.stderr)
    return results


@contextlib.contextmanager
def _cold_compiler_cache() -> Iterator[None]:
    """So that every reported compile time is that of a first compilation."""
    with tempfile.TemporaryDirectory(prefix="ade_fast_bench_", ignore_cleanup_errors=True) as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        yield


def exit_code(results: Mapping[str, Any]) -> int:
    """124, as of a command that ran out of time, where ``--stop-after`` left cases out."""
    return 124 if results["left_out"] else 0


# --- Time ---------------------------------------------------------------------------------------------------


def limit_threads(threads: int) -> None:
    """Gives every library of this process the same cores: call it before any of them starts its threads.

    XLA sizes its thread pools by the CPUs that the process may run on, so it is limited by the affinity mask.
    """
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    torch.set_num_threads(threads)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _seconds(run: Callable[[], object], repeats: int, device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    synchronize(device)
    return (time.perf_counter() - start) / repeats


def interleaved(
    runs: Mapping[str, Callable[[], object]], rounds: int, warmups: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds per call of each of `runs`, one sample per round; a round measures each of them once.

    Whatever disturbs the machine for a while disturbs all of them. The order rotates, and an untimed call
    goes before each sample of less than 2 s, so that no one pays for the caches and spinning threads that
    its neighbour left.
    """
    estimates = {}
    for name, run in runs.items():
        estimates[name] = _seconds(run, 1, device)
        if estimates[name] < _LONG_CALL_S:
            for _ in range(warmups - 1):
                run()
            estimates[name] = _seconds(run, 1, device)
    samples: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    for _ in range(rounds):
        gc.collect()
        for name in order:
            if estimates[name] < _LONG_CALL_S:
                runs[name]()
            repeats = math.ceil(_SHORTEST_SAMPLE_S / estimates[name])
            samples[name].append(_seconds(runs[name], repeats, device))
        order = order[1:] + order[:1]
    return samples


def median_ms(samples: list[float]) -> float:
    return 1e3 * statistics.median(samples)


def timed(samples: list[float]) -> dict[str, Any]:
    """What a results file says of `samples`, in seconds: their median and each of them, in milliseconds."""
    return {"ms": round(median_ms(samples), 3), "ms_all": [round(1e3 * s, 3) for s in samples]}


# --- Memory -------------------------------------------------------------------------------------------------


def _status_bytes(field: str) -> int:
    line = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if line is None:
        raise RuntimeError(f"/proc/self/status has no {field}")
    return 1024 * int(line.group(1))


def peak_bytes(run: Callable[[], object], device: torch.device, rounds: int = 3) -> int:
    """By how much one call of a warmed-up `run` raises this process's memory at most; median of `rounds`.

    CPU: growth of the resident set, its high-water mark reset before the call and the allocators' free pages
    given back, so that every library is measured alike, to about 0.5 MB. CUDA: growth of torch's allocated
    bytes.
    """
    growth = []
    for _ in range(rounds):
        gc.collect()
        if device.type == "cuda":
            synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            run()
            synchronize(device)
            growth.append(torch.cuda.max_memory_allocated(device) - before)
        else:
            ade_fast.release_memory()
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to VmRSS (man 5 proc)
            before = _status_bytes("VmRSS")
            run()
            growth.append(max(_status_bytes("VmHWM") - before, 0))
    return int(statistics.median(growth))


def kept_bytes(forward: Callable[[], object], device: torch.device) -> int:
    """Bytes that the allocators handed out during `forward` and have not got back while its result lives.

    That is what waits for the backward pass, whoever holds it (autograd, an autograd function, Python), and
    the outputs themselves. Exact: the profiler sees every allocation of torch's, and ade_fast's pool counts its own.
    """
    gc.collect()
    if device.type == "cuda":
        synchronize(device)
        before = torch.cuda.memory_allocated(device)
        result = forward()
        synchronize(device)
        kept = torch.cuda.memory_allocated(device) - before
    else:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it announces each profile on stderr
        pooled = ade_fast.memory_in_use()
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
            result = forward()
            gc.collect()
        kept = sum(event.self_cpu_memory_usage for event in profile.key_averages())
        kept += ade_fast.memory_in_use() - pooled
    del result
    return kept


def available_bytes(device: torch.device) -> int:
    """Memory that this process can still take."""
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError("/proc/meminfo has no MemAvailable")
    return 1024 * int(found.group(1))


# --- Where and what -----------------------------------------------------------------------------------------


def _cpu_model() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def machine(device: torch.device, threads: int) -> dict[str, Any]:
    """The hardware that numbers belong to, and how busy it was when they were begun."""
    described = {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "load": round(os.getloadavg()[0], 1),
    }
    if device.type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
    return described


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def commit() -> str:
    """The commit of this checkout, with ``+changes`` if code differs from it; "unknown" outside git."""
    head = _git("rev-parse", "--short=12", "--verify", "HEAD")
    if head is None:
        return "unknown"
    code = ("ade_fast", "csrc", "bench", ":!bench/results", ":!bench/*.md")
    changed = _git("status", "--porcelain", "--", *code)
    return head + ("+changes" if changed else "")


def described_run(benchmark: str, device: torch.device, threads: int) -> dict[str, Any]:
    """The head of a results file: what ran, where, when, from which commit and by which command."""
    return {
        "schema": SCHEMA,
        "benchmark": benchmark,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join(["python", f"bench/{benchmark}.py", *sys.argv[1:]]),
        "commit": commit(),
        "device": device.type,
        "machine": machine(device, threads),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
