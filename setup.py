"""Builds ``ade_fast._C``: CMake the torch-free core, torch's BuildExtension the bindings on torch's stable ABI.

``pip install --no-build-isolation -e .`` builds against the torch that is installed. ``ADE_FAST_CUDA`` says
whether to compile the CUDA kernels, ``auto`` (if there is an nvcc), ``0`` or ``1``; ``TORCH_CUDA_ARCH_LIST``
for which GPUs.
"""

import glob
import json
import os
import shutil
import subprocess
import sys

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

try:
    from torch.utils.cpp_extension import BuildExtension, include_paths, library_paths
except ImportError:
    BuildExtension = None

ROOT = os.path.dirname(os.path.abspath(__file__))
CORE = os.path.join(ROOT, "build", "core")
TORCH_TARGET = "0x020b000000000000"  # the stable ABI of torch 2.11
NO_TORCH = (
    "ade_fast is built against the torch that you have, and there is none here: install torch >= 2.11, "
    "then run `pip install --no-build-isolation -e .` in the same environment."
)


def wants_cuda(environ, find=shutil.which):
    """Whether to compile the CUDA kernels, from ADE_FAST_CUDA and the nvcc at hand."""
    choice = environ.get("ADE_FAST_CUDA", "auto")
    if choice not in ("auto", "0", "1"):
        raise SystemExit(f"ADE_FAST_CUDA must be auto, 0 or 1, got {choice!r}.")
    has_nvcc = bool(find("nvcc") or find(os.path.join(environ.get("CUDA_HOME", ""), "bin", "nvcc")))
    if choice == "1" and not has_nvcc:
        raise SystemExit(
            "ADE_FAST_CUDA=1, but there is no nvcc on the PATH or in CUDA_HOME/bin: "
            "install the CUDA toolkit, or set ADE_FAST_CUDA=0 for a CPU build."
        )
    if choice == "auto" and not has_nvcc:
        print("ade_fast: no nvcc found, building without CUDA kernels (ADE_FAST_CUDA=1 makes this an error).")
    return choice != "0" and has_nvcc


def check_tools(environ, find=shutil.which):
    """Stops with one sentence if a build tool is missing."""
    if not (find(environ.get("CXX", "c++")) or find("g++")):
        raise SystemExit("ade_fast needs a C++20 compiler, and there is none: install g++ >= 11 or set CXX.")
    for tool in ("cmake", "ninja"):
        if not find(tool):
            raise SystemExit(f"ade_fast needs {tool}, and there is none: run `pip install cmake ninja`.")


def build_core():
    """Builds the static library of kernels; returns what CMake says of it."""
    configure = ["cmake", "-S", ROOT, "-B", CORE, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"]
    configure.append(f"-DADE_CUDA={'ON' if wants_cuda(os.environ) else 'OFF'}")
    for command in (configure, ["cmake", "--build", CORE]):
        if subprocess.run(command).returncode:
            raise SystemExit(f"ade_fast: `{' '.join(command)}` failed; its messages are above.")
    with open(os.path.join(CORE, "core.json")) as file:
        return json.load(file)


class Build(BuildExtension or build_ext):
    """The core first, then the bindings. Objects stay in build/: a second build compiles what changed."""

    def finalize_options(self):
        super().finalize_options()
        self.build_temp = os.path.join(ROOT, "build", "bind")

    def build_extensions(self):
        if BuildExtension is None:
            raise SystemExit(NO_TORCH)
        os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ.get("PATH", "")
        check_tools(os.environ)
        core = build_core()
        bind = self.extensions[0]
        with_cuda = core["cuda"] == "1"
        texts = {f"ADE_{key.upper()}": core[key] for key in ("cuda_version", "cuda_archs", "compiler")}
        bind.define_macros += [(name, json.dumps(text)) for name, text in texts.items()]
        bind.define_macros += [("ADE_WITH_CUDA", None)] if with_cuda else []
        bind.extra_objects += [core["library"]]
        bind.extra_link_args += [*core["link_args"].split(), "-Wl,--exclude-libs,ALL"]
        super().build_extensions()


extension = Extension(
    "ade_fast._C",
    sorted(glob.glob("csrc/bind/*.cpp")),
    include_dirs=[os.path.join(ROOT, "csrc"), *(include_paths() if BuildExtension else [])],
    library_dirs=library_paths() if BuildExtension else [],
    libraries=["c10", "torch", "torch_cpu"],
    define_macros=[("TORCH_TARGET_VERSION", TORCH_TARGET)],
    extra_compile_args=["-O2", "-std=c++20", "-fvisibility=hidden", "-Wall", "-Wextra"],
    extra_link_args=[],
    py_limited_api=True,
    language="c++",
)

OPTIONS = {"bdist_wheel": {"py_limited_api": "cp310"}}

if __name__ == "__main__":
    setup(ext_modules=[extension], cmdclass={"build_ext": Build}, options=OPTIONS)
