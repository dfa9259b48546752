"""What the whole suite shares: seeding, devices, potentials."""

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from cases import POTENTIALS, make_potential
from torch import nn

from ade_fast import _ops
from ade_fast.training import plots

CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.cuda,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: torch.cuda.is_available() is False"),
    ],
)


def pytest_configure(config: pytest.Config) -> None:
    # The tensors here are tiny: a second thread only waits (30 times slower on a shared 2-core machine).
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same seed, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(params=["cpu", CUDA])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The devices a test runs on."""
    return torch.device(request.param)


@pytest.fixture(params=list(POTENTIALS))
def any_potential(request: pytest.FixtureRequest) -> tuple[nn.Module, tuple[int, ...]]:
    """Each potential of `cases.POTENTIALS` in turn, float64, with its event shape."""
    return make_potential(request.param), POTENTIALS[request.param].event


CORE = Path(os.environ.get("ADE_FAST_CORE", Path(__file__).parents[1] / "build" / "core"))


@pytest.fixture(scope="session")
def testing() -> ModuleType:
    """The pybind11 module over step headers and host-run kernels."""
    if not list((CORE / "python").glob("ade_fast_testing*.so")):
        pytest.skip(f"no ade_fast_testing in {CORE / 'python'}: build it with -DADE_TESTING=ON")
    sys.path.insert(0, str(CORE / "python"))
    try:
        return importlib.import_module("ade_fast_testing")
    finally:
        sys.path.pop(0)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of a tiny run's time."""
    monkeypatch.setattr(plots, "save_learned", lambda *a, **k: None)
    monkeypatch.setattr(plots, "save_convergence", lambda *a, **k: None)


@pytest.fixture
def isa() -> Iterator[Callable[[str], bool]]:
    """Selects an instruction set of the CPU kernels for one test; False if the processor lacks it."""
    before = _ops.build_info()["isa"]

    def select(name: str) -> bool:
        try:
            _ops.select_isa(name)
        except ValueError:
            return False
        return True

    yield select
    _ops.select_isa(before)
