"""How the package is built: include rules, instruction sets, the stable ABI, and what a failed build says."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from ade_fast import _ops

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"
OBJECTS = ROOT / "build" / "core" / "CMakeFiles"
C_HEADERS = r"cmath|cstdint|cstring"
CPP_LIBRARY = r"[a-z_]+"

# folder -> what it may include: project folders, then <system headers>. csrc/README.md says it in words.
MAY_INCLUDE = {
    "common": ("common", C_HEADERS),
    "steps": ("common|steps|potentials", C_HEADERS),
    "potentials": ("common|steps|potentials", C_HEADERS),
    "flows": ("common|flows", C_HEADERS),
    "launch": ("common|potentials|launch", "cstdint"),
    "cpu": ("common|steps|potentials|flows|launch|cpu", rf"{C_HEADERS}|immintrin\.h"),
    "cuda": (
        "common|steps|potentials|flows|launch|cuda",
        rf"cuda_runtime\.h|cuda_[a-z0-9]+\.h|mma\.h|{CPP_LIBRARY}",
    ),
    "bind": (
        "launch|bind",
        rf"torch/csrc/stable/\w+\.h|torch/headeronly/[\w/]+\.h|(dlfcn|unistd|sys/mman)\.h|{CPP_LIBRARY}",
    ),
    "testing": (
        "common|steps|potentials|flows|launch|cpu|cuda|testing",
        rf"pybind11/\w+\.h|{CPP_LIBRARY}",
    ),
}


def sources(folder: str) -> list[Path]:
    return [path for path in sorted((CSRC / folder).rglob("*")) if path.suffix in {".h", ".cuh", ".cpp", ".cu"}]


@pytest.mark.parametrize("folder", MAY_INCLUDE)
def test_include_rules(folder: str) -> None:
    project, system = MAY_INCLUDE[folder]
    paths = sources(folder)
    assert paths, f"no sources in csrc/{folder}"
    for path in paths:
        for quoted, angled in re.findall(r'^\s*#\s*include\s+(?:"([^"]+)"|<([^>]+)>)', path.read_text(), re.M):
            where = f"{path.relative_to(ROOT)} includes {quoted or angled}"
            if quoted:
                beside = folder == "testing" and "/" not in quoted
                pool = folder == "testing" and quoted == "bind/pool.h"  # which knows nothing of torch
                assert beside or pool or re.fullmatch(rf"({project})/[\w/]+\.(h|cuh)", quoted), where
                assert ((path.parent if beside else CSRC) / quoted).is_file(), where
            elif path.name == "module.cpp" and folder == "bind":
                assert angled == "Python.h", where
            else:
                assert re.fullmatch(system, angled), where


def test_every_folder_has_include_rules() -> None:
    assert {path.name for path in CSRC.iterdir() if path.is_dir()} == set(MAY_INCLUDE)
    table = (CSRC / "README.md").read_text()
    assert all(f"`{folder}/`" in table for folder in MAY_INCLUDE)


def test_cmake_lists_every_source_and_no_other() -> None:
    listed = set(re.findall(r"csrc/(?:cpu|cuda)/[\w/]+\.(?:cpp|cu)", (ROOT / "CMakeLists.txt").read_text()))
    present = {
        str(path.relative_to(ROOT)) for path in sources("cpu") + sources("cuda") if path.suffix in {".cpp", ".cu"}
    }
    assert listed == present


# ------------------------------------------------------------------------------------------ instruction sets


def objects_of(isa: str) -> list[Path]:
    found = sorted((OBJECTS / f"ade_cpu_{isa}.dir").rglob("*.o"))
    if not found:
        pytest.skip(f"no objects in {OBJECTS}: the package was not built in this checkout, or not for x86-64")
    return found


def output_of(*command: str | Path) -> str:
    if not shutil.which(str(command[0])):
        pytest.skip(f"no {command[0]} here")
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("isa", ["base", "avx2", "avx512"])
def test_weak_symbols_belong_to_their_instruction_set(isa: str) -> None:
    """The linker keeps one copy of a weak symbol, perhaps the one that this processor cannot run."""
    for path in objects_of(isa):
        weak = [
            line
            for line in output_of("nm", "-C", "--defined-only", path).splitlines()
            if line.split()[1] in "WVu" and f"ade::{isa}::" not in line
        ]
        assert not weak, f"{path}: weak symbols outside ade::{isa}: {weak}"


def wide_registers(path: Path) -> set[str]:
    return set(re.findall(r"%([yz]mm)\d", output_of("objdump", "-d", "--no-show-raw-insn", path)))


def test_only_the_objects_of_an_instruction_set_use_it() -> None:
    dispatch = sorted((OBJECTS / "ade_core.dir").rglob("*.o"))
    for path in [*objects_of("base"), *dispatch]:
        assert not wide_registers(path), path
    # What the others are for: they are vectorised at all.
    for path in objects_of("avx2"):
        assert wide_registers(path) == {"ymm"}, path
    for path in objects_of("avx512"):
        assert "zmm" in wide_registers(path), path


# ------------------------------------------------------------------------------------------- the stable ABI


def test_the_extension_keeps_to_the_stable_abis() -> None:
    """Of torch it needs C functions alone, of Python the limited API: one binary for all versions."""
    path = Path(_ops._C.__file__)
    assert path.name == "_C.abi3.so"
    undefined = [line.split()[-1] for line in output_of("nm", "-D", "--undefined-only", path).splitlines()]
    from_torch = [name for name in undefined if re.match(r"_Z[A-Z]*N[A-Z]*(2at|3c10|5torch)", name)]
    assert not from_torch
    assert any(name.startswith(("aoti_torch_", "torch_")) for name in undefined)
    # Private Python symbols start with _Py; these few belong to the limited API.
    private = {name for name in undefined if name.startswith("_Py")}
    assert private <= {"_Py_TrueStruct", "_Py_FalseStruct", "_Py_NoneStruct", "_Py_Dealloc"}


def test_the_wheel_is_tagged_for_every_python_from_3_10() -> None:
    tags = importlib.metadata.distribution("ade_fast").read_text("WHEEL")
    assert tags is not None and "Tag: cp310-abi3-linux" in tags


def test_build_info() -> None:
    info = _ops.build_info()
    assert set(info) == {"cuda", "cuda_version", "cuda_archs", "compiler", "isa"}
    assert isinstance(info["cuda"], bool) and bool(info["cuda_version"]) == info["cuda"]
    assert info["isa"] in {"base", "avx2", "avx512"} and info["compiler"]


# ----------------------------------------------------------------------------------- what a failed build says


@pytest.fixture(scope="module")
def setup_py() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ade_fast_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def nowhere(name: str, path: str | None = None) -> None:
    return None


def everywhere(name: str, path: str | None = None) -> str:
    return f"/usr/bin/{name}"


def test_cuda_follows_nvcc_and_the_variable(setup_py: ModuleType, capsys: pytest.CaptureFixture) -> None:
    assert setup_py.wants_cuda({}, everywhere)
    assert setup_py.wants_cuda({"ADE_FAST_CUDA": "1"}, everywhere)
    assert not setup_py.wants_cuda({"ADE_FAST_CUDA": "0"}, everywhere)
    assert not setup_py.wants_cuda({"ADE_FAST_CUDA": "0"}, nowhere)
    assert capsys.readouterr().out == ""
    assert not setup_py.wants_cuda({}, nowhere)
    assert "no nvcc found, building without CUDA kernels" in capsys.readouterr().out


def test_cuda_finds_nvcc_in_cuda_home(setup_py: ModuleType, tmp_path: Path) -> None:
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\n")
    nvcc.chmod(0o755)
    environ = {"ADE_FAST_CUDA": "1", "CUDA_HOME": str(tmp_path)}
    assert setup_py.wants_cuda(environ, lambda name: shutil.which(name, path=str(tmp_path)))


def test_cuda_demanded_without_nvcc_is_an_error(setup_py: ModuleType) -> None:
    with pytest.raises(SystemExit, match="ADE_FAST_CUDA=1, but there is no nvcc"):
        setup_py.wants_cuda({"ADE_FAST_CUDA": "1"}, nowhere)


def test_cuda_choice_is_checked(setup_py: ModuleType) -> None:
    with pytest.raises(SystemExit, match="ADE_FAST_CUDA must be auto, 0 or 1, got 'yes'"):
        setup_py.wants_cuda({"ADE_FAST_CUDA": "yes"}, everywhere)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("c++", r"needs a C\+\+20 compiler, and there is none: install g\+\+"),
        ("cmake", "needs cmake, and there is none: run `pip install cmake ninja`"),
        ("ninja", "needs ninja, and there is none: run `pip install cmake ninja`"),
    ],
)
def test_missing_tools_are_named(setup_py: ModuleType, missing: str, message: str) -> None:
    def find(name: str) -> str | None:
        return None if name == missing or (missing == "c++" and name == "g++") else f"/usr/bin/{name}"

    setup_py.check_tools({}, everywhere)
    with pytest.raises(SystemExit, match=message):
        setup_py.check_tools({}, find)


def run_python(code: str, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, **kwargs)


def test_a_missing_torch_is_one_sentence(tmp_path: Path) -> None:
    code = (
        "import runpy, sys; sys.modules['torch'] = None; sys.argv = ['setup.py', 'build_ext', "
        f"'--build-lib', {str(tmp_path)!r}]; runpy.run_path('setup.py', run_name='__main__')"
    )
    result = run_python(code, cwd=ROOT)
    assert result.returncode != 0
    assert "there is none here: install torch >= 2.11, then run `pip install --no-build-isolation" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_extension_that_is_not_built_says_how_to_build_it() -> None:
    result = run_python("import sys; sys.modules['ade_fast._C'] = None; import ade_fast._ops")
    assert result.returncode != 0
    assert "build it with `pip install --no-build-isolation -e .`" in result.stderr.splitlines()[-1]


def test_an_old_torch_is_named() -> None:
    result = run_python("import torch; torch.__version__ = '2.10.1+cpu'; import ade_fast._ops")
    assert result.returncode != 0
    last = result.stderr.splitlines()[-1]
    assert "ade_fast needs torch >= 2.11, and this is torch 2.10.1+cpu: upgrade torch." in last


# ------------------------------------------------------------------------------------- TORCH_CUDA_ARCH_LIST


def gencode(arch_list: str | None) -> subprocess.CompletedProcess:
    if not shutil.which("cmake"):
        pytest.skip("no cmake here")
    environ = {key: value for key, value in os.environ.items() if key != "TORCH_CUDA_ARCH_LIST"}
    if arch_list is not None:
        environ["TORCH_CUDA_ARCH_LIST"] = arch_list
    return subprocess.run(
        ["cmake", "-DADE_PRINT=ON", "-P", "cmake/cuda_archs.cmake"],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("arch_list", "flags"),
    [
        (None, ["80,code=sm_80", "90,code=sm_90", "90,code=compute_90"]),
        ("8.6", ["86,code=sm_86"]),
        ("8.0 9.0a", ["80,code=sm_80", "90a,code=sm_90a"]),
        ("8.9;12.0+PTX", ["89,code=sm_89", "120,code=sm_120", "120,code=compute_120"]),
        (" 8.6 ", ["86,code=sm_86"]),
        ("Hopper", ["90,code=sm_90", "90,code=compute_90"]),
        ("Ampere;9.0", ["80,code=sm_80", "86,code=sm_86", "86,code=compute_86", "90,code=sm_90"]),
    ],
)
def test_arch_list(arch_list: str | None, flags: list[str]) -> None:
    result = gencode(arch_list)
    assert result.returncode == 0, result.stderr
    assert re.findall(r"-gencode=arch=compute_(\S+)", result.stderr) == flags


def test_a_wrong_arch_list_is_refused() -> None:
    result = gencode("Grace")
    assert result.returncode != 0
    assert "TORCH_CUDA_ARCH_LIST: 'Grace' is not of the form 8.0, 9.0a or 9.0+PTX" in result.stderr
