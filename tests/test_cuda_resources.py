"""The CUDA resource check (csrc/testing/check_resources.py): what it accepts and refuses."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "csrc" / "testing" / "check_resources.py"
BUDGET = ROOT / "csrc" / "cuda" / "resources.txt"
PTXAS = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z6kernelPf' for 'sm_90'
ptxas info    : Function properties for _Z6kernelPf
    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 16 bytes cumulative stack size, 96 bytes smem
ptxas info    : Compiling entry function '_Z5otherPf' for 'sm_90'
ptxas info    : Function properties for _Z5otherPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers
"""


@pytest.fixture(scope="module")
def check() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("check_resources", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_reads_what_ptxas_prints(check: ModuleType) -> None:
    found = check.parse(PTXAS)
    assert found == {"_Z6kernelPf": check.Resources(40, 12, 16), "_Z5otherPf": check.Resources(8, 0, 0)}
    with pytest.raises(SystemExit, match="_Z6kernelPf"):
        check.parse(PTXAS.replace("Used 40 registers", ""))


def test_refuses_growth_and_unknown_or_missing_kernels(check: ModuleType) -> None:
    key, other = ("sm_90", "a"), ("sm_90", "b")
    budget = {key: check.Resources(40, 0, 0)}
    assert check.compare(budget, {key: check.Resources(40, 0, 0)}, slack=0) == []
    assert check.compare(budget, {key: check.Resources(32, 0, 0)}, slack=0) == []
    for worse in (check.Resources(41, 0, 0), check.Resources(40, 4, 0), check.Resources(40, 0, 8)):
        assert len(check.compare(budget, {key: worse}, slack=0)) == 1
    assert check.compare(budget, {key: check.Resources(56, 0, 0)}, slack=16) == []
    assert len(check.compare(budget, {key: check.Resources(56, 4, 0)}, slack=16)) == 1
    assert "no such kernel" in check.compare(budget, {}, slack=0)[0]
    assert "no budget" in check.compare({}, {other: check.Resources(1, 0, 0)}, slack=0)[0]


def test_the_budget_survives_being_rewritten(check: ModuleType, tmp_path: Path) -> None:
    release, budget = check.read_budget(BUDGET)
    assert release and budget
    check.write_budget(tmp_path / "budget.txt", release, budget)
    assert (tmp_path / "budget.txt").read_text() == BUDGET.read_text()


def test_no_step_kernel_spills_or_uses_a_stack(check: ModuleType) -> None:
    _, budget = check.read_budget(BUDGET)
    steps = {k: r for k, r in budget.items() if k[1].startswith(("Step", "RowClipSums", "ColumnSum"))}
    assert {k[0] for k in steps} == set(check.ARCHS)
    assert len(steps) == 2 * (3 * 3 * 6 + 2)  # forward, backward, row clips; dtypes; steps; and the sums of chunks
    assert all(r.spills == 0 and r.stack == 0 and r.registers <= 128 for r in steps.values())


def test_no_mlp_kernel_spills_or_uses_a_stack(check: ModuleType) -> None:
    _, budget = check.read_budget(BUDGET)
    kernels = {k: r for k, r in budget.items() if k[1].startswith("Mlp")}
    # Unroll, field and their backward, the unroll's also of piecewise-linear potentials, for 1 to 3 planes and blocks
    # of 16 and 32 rows; packing; that backward's cotangents, with and without a Gaussian's pull; sums.
    assert len(kernels) == 2 * (5 * 3 * 2 + 3 + 2 + 1)
    assert all(r.spills == 0 and r.stack == 0 for r in kernels.values())


def test_no_planar_flow_kernel_spills_or_uses_a_stack(check: ModuleType) -> None:
    _, budget = check.read_budget(BUDGET)
    kernels = {k: r for k, r in budget.items() if k[1].startswith("PlanarFlow")}
    assert len(kernels) == 2 * 2 * 4  # constraint, forward, backward, sums; dtypes
    assert all(r.spills == 0 and r.stack == 0 for r in kernels.values())


def test_no_spline_kernel_spills_or_uses_a_stack(check: ModuleType) -> None:
    _, budget = check.read_budget(BUDGET)
    kernels = {k: r for k, r in budget.items() if k[1].startswith("Spline")}
    assert len(kernels) == 2 * 2 * 2  # forward, backward; dtypes
    assert all(r.spills == 0 and r.stack == 0 for r in kernels.values())


def test_no_philox_kernel_spills_or_uses_a_stack(check: ModuleType) -> None:
    _, budget = check.read_budget(BUDGET)
    kernels = {k: r for k, r in budget.items() if k[1].startswith("Philox")}
    assert len(kernels) == 2 * 3  # dtypes
    assert all(r.spills == 0 and r.stack == 0 for r in kernels.values())


def test_without_nvcc_it_skips_aloud() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_HOME"} | {"PATH": "/nowhere"}
    run = subprocess.run(
        [sys.executable, SCRIPT, "--budget", BUDGET, "--include", ROOT / "csrc", "none.cu"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 77 and "SKIPPED: no nvcc" in run.stdout
