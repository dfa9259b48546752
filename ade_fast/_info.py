"""What runs here: the text of ``ade-fast info``."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable
from pathlib import Path

import torch

from . import __version__, _ops
from .dynamics import base
from .fields import MLPField, mlp
from .potentials import MLPPotential

_DRIVER_FILE = Path("/proc/driver/nvidia/version")
# The oldest driver for each major version of the CUDA runtime (NVIDIA's compatibility table).
_OLDEST_DRIVER = {12: 525, 13: 580}


_HOW_TO_SEE = (
    'what a run took: layer.last_plan after a call (field "mlp": one fused operator, "autograd": step kernels around '
    'autograd\'s ∇f; memory "graph" or "states"), and ade_fast.slow_paths()'
)


def lines() -> list[str]:
    """Version, build, devices and driver, and which fast paths there are on each device for what, a line each."""
    build = _ops.build_info()
    driver = driver_version()
    cuda = cuda_state(build, driver)
    return [
        f"ade_fast {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        f"built by: {build['compiler']}; CUDA kernels: {_cuda_build(build)}",
        f"CPU: {platform.machine()}, {torch.get_num_threads()} threads",
        *_gpu_lines(),
        f"NVIDIA driver: {driver or 'none'}",
        f"fast path on CPU: on, {build['isa']} kernels",
        *_family_lines("cpu", usable=True),
        f"fast path on CUDA: {cuda}",
        *_family_lines("cuda", usable=cuda == "on"),
        _HOW_TO_SEE,
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


def has_kernel(op: str, device: str) -> bool:
    """Whether this build has an operator's kernel for a device, "cpu" or "cuda"."""
    if device == "cuda" and not _ops.build_info()["cuda"]:  # what is registered says so when it is called
        return False
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"ade_fast::{op}", device.upper())


def mlp_dtypes(device: str) -> tuple[list[torch.dtype], str | None]:
    """The dtypes of states that the MLP kernels take on a device that is there, and why they refuse the last other."""
    taken, why_not = [], None
    with torch.random.fork_rng(devices=()):
        potential = MLPPotential(1, (mlp.WIDTH_STEP,)).to(device)
    for dtype in base._STATE_DTYPES:
        field = MLPField.match(potential.to(dtype))
        assert isinstance(field, MLPField)
        refusal = field.refuses(torch.zeros(1, 1, dtype=dtype, device=device))
        if refusal is None:
            taken.append(dtype)
        else:
            why_not = refusal
    return taken, why_not


def _family_lines(device: str, usable: bool) -> list[str]:
    """For which dynamics, potentials and dtypes a device has kernels: as the build and the fields say themselves."""
    found = [
        f"  steps of all dynamics, for any potential: {_step_kernels(device)}",
        f"  whole unrolls of MLP potentials: {_mlp_kernels(device, usable)}",
        f"  whole Markov chains of the same (MALA, HMC, Langevin; CD and PCD): {_chain_kernel(device)}",
    ]
    if device == "cuda" and usable and has_kernel("mlp_unroll", device):
        room = mlp.shared_memory(torch.device("cuda", torch.cuda.current_device())) >> 10
        found.append(
            f"  their weights, 2, 4 or 6 bytes each (matmul precision medium, high, highest): on the chip up to {room} "
            f"KiB, beyond that read from the L2 cache at every step"
        )
    return found


def _names(dtypes: Iterable[torch.dtype]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def _step_kernels(device: str) -> str:
    return _names(base._STATE_DTYPES) if has_kernel("leapfrog_kick_drift", device) else "not in this build"


def _chain_kernel(device: str) -> str:
    if not has_kernel("mlp_chain", device):
        return "not in this build; transition by transition instead"
    return (
        "on; transition by transition, which is said, with check_finite, check_potential, memory='reversible', a "
        "sample_range per dimension, or shifts, step_size or noise_std per step of Langevin"
    )


def _mlp_kernels(device: str, usable: bool) -> str:
    if not has_kernel("mlp_unroll", device):
        return "not in this build; step kernels around autograd's ∇f instead"
    dtypes, why_not = mlp_dtypes(device) if usable else ((), None)
    if usable and not dtypes:
        return f"none: {why_not}"
    return (
        f"{_names(dtypes) or 'in this build'}; 1 to {mlp.MAX_LAYERS} hidden layers of {mlp.WIDTH_STEP}, "
        f"{2 * mlp.WIDTH_STEP}, … {mlp.MAX_WIDTH} units, x of 1 to {mlp.MAX_DIM} numbers; {', '.join(mlp._CODES)}; "
        f"Leapfrog, DampedLeapfrog, GeneralizedLeapfrog with constant scales, AnnealedLeapfrog from a Gaussian"
    )


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
