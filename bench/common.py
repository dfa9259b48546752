"""What the benchmarks share: interleaved medians, memory, the description of a machine."""

from __future__ import annotations

import ctypes
import datetime
import gc
import math
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from records import ROOT, SCHEMA

# A shorter sample is mostly timer and scheduler noise: short runs are repeated until one is this long.
_SHORTEST_SAMPLE_S = 0.05
# A longer call needs no more than one warm-up: what caches and waking threads cost is lost in it.
_LONG_CALL_S = 2.0


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


# --- Memory -------------------------------------------------------------------------------------------------


def _status_bytes(field: str) -> int:
    line = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if line is None:
        raise RuntimeError(f"/proc/self/status has no {field}")
    return 1024 * int(line.group(1))


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """By how much one call of a warmed-up `run` raises this process's memory at most; median of 3.

    CPU: growth of the resident set, its high-water mark reset before the call and the allocator's free pages
    given back, so that every library is measured alike, to about 0.5 MB. CUDA: growth of torch's allocated
    bytes.
    """
    growth = []
    for _ in range(3):
        gc.collect()
        if device.type == "cuda":
            synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            run()
            synchronize(device)
            growth.append(torch.cuda.max_memory_allocated(device) - before)
        else:
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to VmRSS (man 5 proc)
            before = _status_bytes("VmRSS")
            run()
            growth.append(max(_status_bytes("VmHWM") - before, 0))
    return int(statistics.median(growth))


def kept_bytes(forward: Callable[[], object], device: torch.device) -> int:
    """Bytes that torch's allocator handed out during `forward` and has not got back while its result lives.

    That is what waits for the backward pass, whoever holds it (autograd, an autograd function, Python), and
    the outputs themselves. Exact: the profiler sees every allocation.
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
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
            result = forward()
            gc.collect()
        kept = sum(event.self_cpu_memory_usage for event in profile.key_averages())
    del result
    return kept


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
