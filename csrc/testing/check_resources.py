#!/usr/bin/env python3
"""Compare registers, spills and stack of every CUDA kernel with a committed budget. Needs nvcc, but no GPU.

    check_resources.py --budget csrc/cuda/resources.txt --include csrc csrc/cuda/*.cu

checks; with --update at the end it rewrites the budget. The check fails when a kernel needs more than its
budget, when a kernel has none, or when a line of the budget has no kernel any more. Less than the budget is
reported, not an error: tighten with --update. Without nvcc it exits with 77 and says so (ctest: "Skipped").

The budget holds for the toolkit named in its first lines. Another one allocates registers differently: under
it they may exceed the budget by --slack; spills and stack still may not.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ARCHS = ("sm_80", "sm_90")
SKIPPED = 77


class Resources(NamedTuple):
    """What one kernel needs per thread: registers, bytes spilled (stores + loads), bytes of stack frame."""

    registers: int
    spills: int
    stack: int


Budget = dict[tuple[str, str], Resources]


def find_nvcc() -> str | None:
    """nvcc on the PATH or in CUDA_HOME, or None."""
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc") or (shutil.which("nvcc", path=f"{home}/bin") if home else None)


def nvcc_release(nvcc: str) -> str:
    """The toolkit's release, such as 13.0."""
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release ([0-9.]+)", text)
    if found is None:
        raise SystemExit(f"{nvcc} --version names no release:\n{text}")
    return found.group(1)


def demangle(names: list[str]) -> dict[str, str]:
    """Readable names of mangled kernels: `StepForward<float, Leapfrog, Kick>`."""
    filt = shutil.which("cu++filt") or shutil.which("c++filt")
    if filt is None:
        raise SystemExit("neither cu++filt nor c++filt (binutils) is on the PATH")
    text = subprocess.run([filt], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    readable = {}
    for name, long in zip(names, text.splitlines(), strict=True):
        short = re.sub(r"ade::(base|kernels)::|kernels::|\bade::", "", long)
        inner = re.match(r"void kernel<(.*?)\s*>\(", short)
        readable[name] = inner.group(1).replace(" >", ">") if inner else short.split("(")[0]
    return readable


def parse(log: str) -> dict[str, Resources]:
    """Resources by mangled kernel name, from the output of ptxas -v."""
    found = {}
    pieces = re.split(r"Compiling entry function '([^']+)'", log)
    for name, text in zip(pieces[1::2], pieces[2::2], strict=True):
        stack = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text)
        registers = re.search(r"Used (\d+) registers", text)
        if stack is None or registers is None:
            raise SystemExit(f"ptxas -v says nothing that can be read about {name}:\n{text}")
        found[name] = Resources(int(registers.group(1)), int(stack.group(2)) + int(stack.group(3)), int(stack.group(1)))
    return found


def measure(nvcc: str, source: Path, include: Path, arch: str) -> Budget:
    """Compile one file for one architecture and read what ptxas reports of its kernels."""
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, "-std=c++17", "-O3", f"-I{include}", "-cubin", f"-arch={arch}", "-Xptxas", "-v"]
        command += [str(source), "-o", f"{folder}/{source.stem}.cubin"]
        run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{run.stdout}{run.stderr}")
    found = parse(run.stdout + run.stderr)
    names = demangle(list(found)) if found else {}
    return {(arch, names[name]): resources for name, resources in found.items()}


def measure_all(nvcc: str, sources: list[Path], include: Path) -> Budget:
    """All files, all architectures. A kernel that two files instantiate counts once, at its larger need."""
    jobs = [(source, arch) for source in sources for arch in ARCHS]
    measured: Budget = {}
    with concurrent.futures.ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, len(jobs))) as pool:
        for part in pool.map(lambda job: measure(nvcc, job[0], include, job[1]), jobs):
            for key, resources in part.items():
                measured[key] = max(resources, measured.get(key, resources))
    return measured


def read_budget(path: Path) -> tuple[str, Budget]:
    """The toolkit's release and the budget."""
    release, budget = "", {}
    for line in path.read_text().splitlines():
        if line.startswith("# nvcc "):
            release = line.split()[2]
        if not line or line.startswith("#"):
            continue
        registers, spills, stack, arch, kernel = line.split(maxsplit=4)
        budget[arch, kernel] = Resources(int(registers), int(spills), int(stack))
    return release, budget


def write_budget(path: Path, release: str, measured: Budget) -> None:
    """Write the measured resources as the new budget."""
    lines = [
        "# Registers, spilled bytes and stack bytes per thread: csrc/testing/check_resources.py.",
        "# To rewrite after a deliberate change: cmake --build build/core --target cuda_resources_update",
        f"# nvcc {release}",
        "",
    ]
    lines += [
        f"{r.registers:3d} {r.spills:4d} {r.stack:4d}  {arch}  {kernel}"
        for (arch, kernel), r in sorted(measured.items())
    ]
    path.write_text("\n".join(lines) + "\n")


def compare(budget: Budget, measured: Budget, slack: int) -> list[str]:
    """What is wrong, one line each."""
    problems = []
    for key in sorted(budget.keys() | measured.keys()):
        title = f"{key[0]} {key[1]}"
        if key not in measured:
            problems.append(f"{title}: in the budget, but there is no such kernel")
        elif key not in budget:
            problems.append(f"{title}: has no budget; it needs {measured[key]}")
        else:
            want, got = budget[key], measured[key]
            if got.registers > want.registers + slack or got.spills > want.spills or got.stack > want.stack:
                problems.append(f"{title}: budget {want}, got {got}")
    return problems


def main() -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", type=Path)
    parser.add_argument("--budget", type=Path, required=True)
    parser.add_argument("--include", type=Path, required=True)
    parser.add_argument("--update", action="store_true", help="rewrite the budget from what was measured")
    parser.add_argument("--slack", type=int, default=16, help="registers allowed above the budget under another nvcc")
    options = parser.parse_args()

    nvcc = find_nvcc()
    if nvcc is None:
        print("SKIPPED: no nvcc on the PATH or in CUDA_HOME, so the CUDA kernels were not compiled")
        return SKIPPED
    release = nvcc_release(nvcc)
    measured = measure_all(nvcc, options.sources, options.include)
    if options.update:
        write_budget(options.budget, release, measured)
        print(f"wrote {len(measured)} kernels to {options.budget}")
        return 0
    budget_release, budget = read_budget(options.budget)
    slack = 0 if release == budget_release else options.slack
    problems = compare(budget, measured, slack)
    tighter = [key for key in budget.keys() & measured.keys() if measured[key] < budget[key]]
    print("\n".join(problems) or f"{len(measured)} kernels within budget (nvcc {release}, slack {slack} registers)")
    if tighter:
        print(f"{len(tighter)} kernels need less than their budget: --update tightens it")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
