"""What runs here: the text of ``ade-fast info``."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import torch

from . import __version__, _ops

_DRIVER_FILE = Path("/proc/driver/nvidia/version")
# The oldest driver for each major version of the CUDA runtime (NVIDIA's compatibility table).
_OLDEST_DRIVER = {12: 525, 13: 580}


def lines() -> list[str]:
    """Version, build, devices and driver, and which fast paths are on, a line each."""
    build = _ops.build_info()
    driver = driver_version()
    return [
        f"ade_fast {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        f"built by: {build['compiler']}; CUDA kernels: {_cuda_build(build)}",
        f"CPU: {platform.machine()}, {torch.get_num_threads()} threads",
        *_gpu_lines(),
        f"NVIDIA driver: {driver or 'none'}",
        f"fast path on CPU: on, {build['isa']} kernels",
        f"fast path on CUDA: {cuda_state(build, driver)}",
    ]


def driver_version(file: Path = _DRIVER_FILE) -> str | None:
    """The NVIDIA kernel driver's version, such as "580.65.06"; None where there is none."""
    try:
        text = file.read_text()
    except FileNotFoundError:
        return None
    found = re.search(r"\s(\d+\.\d+(\.\d+)?)\s", text)
    return found.group(1) if found else "unknown version"


def cuda_state(build: dict[str, str | bool], driver: str | None) -> str:
    """Whether the CUDA kernels can run here, and if not, what stands in the way."""
    if not build["cuda"]:
        return "off: this build has no CUDA kernels (build where nvcc is on the PATH, or with ADE_FAST_CUDA=1)"
    if torch.version.cuda is None:
        return "off: this torch has no CUDA support; install a CUDA build of torch"
    if driver is None:
        return "off: no NVIDIA driver"
    oldest = _OLDEST_DRIVER.get(int(str(build["cuda_version"]).split(".")[0]))
    major = int(driver.split(".")[0]) if driver[0].isdigit() else None
    if oldest is not None and major is not None and major < oldest:
        return f"off: CUDA {build['cuda_version']} needs driver {oldest} or newer, this is {driver}"
    if not torch.cuda.is_available():
        return "off: torch.cuda.is_available() is False"
    return "on"


def _cuda_build(build: dict[str, str | bool]) -> str:
    return f"CUDA {build['cuda_version']} for {build['cuda_archs']}" if build["cuda"] else "none"


def _gpu_lines() -> list[str]:
    if not torch.cuda.is_available():
        return ["GPU: none that torch can use"]
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [
        f"GPU {i}: {device.name}, sm_{device.major}{device.minor}, {device.total_memory / 2**30:.0f} GiB"
        for i, device in enumerate(devices)
    ]
