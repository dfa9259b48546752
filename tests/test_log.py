"""ADE_FAST_LOG: what it says, what it writes, and that what it writes is made again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CALLS = """
import torch
import ade_fast as ade
torch.manual_seed(0)
f = ade.MLPPotential(2, (32,), "silu")
x0 = torch.randn(5, 2, requires_grad=True)
ade.Leapfrog(3, 0.1)(f, x0).x.sum().backward()
ade.DampedLeapfrog(2, 0.1)(lambda x: f(x), x0)
ade.Langevin(2, 0.1)(f, x0, generator=torch.Generator().manual_seed(3))
ade.DualSampler(ade.initial.Gaussian((2,)), ade.AnnealedLeapfrog(2, 0.1)).sample(f, 4)
with torch.no_grad():
    ade.functional.leapfrog(f, x0, None, 0.1, 1)
"""


def run(code: list[str], folder: Path, level: str = "0") -> tuple[str, str]:
    root = str(Path(__file__).parents[1])
    env = dict(os.environ, ADE_FAST_LOG=level, ADE_FAST_LOG_DIR=str(folder), PYTHONPATH=root, OMP_NUM_THREADS="1")
    done = subprocess.run([sys.executable, *code], env=env, capture_output=True, text=True, timeout=300)
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Path]]:
    """What is said at level 3, and the files."""
    folder = tmp_path_factory.mktemp("log")
    _, said = run(["-c", CALLS], folder, "3")
    assert "Traceback" not in said, said
    return said, sorted(folder.glob("*.pt"), key=lambda file: file.name.split("-")[1])


def test_every_call_is_two_lines(logged: tuple[str, list[Path]]) -> None:
    said = [line for line in logged[0].splitlines() if line.startswith("ade_fast: call")]
    assert len(said) == 10, said
    assert "call 1: Leapfrog: x0 (5, 2) float32 cpu, grad, 3 steps, f MLPPotential" in said[0]
    assert "field='mlp'" in said[1] and said[1].endswith(" ms")
    assert "field='autograd'" in said[3]
    assert "without gradients" in said[8] and "no plan" in said[9]


def test_each_call_is_made_again(logged: tuple[str, list[Path]], capsys: pytest.CaptureFixture[str]) -> None:
    from ade_fast.replay import main

    files = logged[1]
    assert [file.stem.split("-")[2] for file in files] == [
        "Leapfrog", "DampedLeapfrog", "Langevin", "AnnealedLeapfrog", "leapfrog",
    ]  # fmt: skip
    for file in (files[0], files[2], files[3], files[4]):
        assert main([str(file)]) == 0
        said = capsys.readouterr().out
        assert "output 0 against the log: equal to the last bit" in said, said
        assert "one is None" not in said
    assert "gradient of" not in said, "the last call had none"
    assert main([str(files[1])]) == 1
    assert "give it by --potential MODULE:NAME" in capsys.readouterr().err


def test_a_call_that_raises_has_its_file(tmp_path: Path) -> None:
    from ade_fast import _log

    def fails(layer: str, potential: object, x0: object) -> None:
        raise ArithmeticError(layer)

    with pytest.raises(ArithmeticError):
        _log.logged(fails, 3, tmp_path)("Broken", len, 1.0)
    (file,) = tmp_path.glob("*-Broken.pt")
    assert torch.load(file, weights_only=False)["outputs"] is None
    assert _log.logged(fails, 0) is fails


def test_misuse_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from ade_fast.replay import main

    (tmp_path / "other.pt").write_bytes(b"no")
    for file in ("other.pt", "absent.pt"):
        assert main([str(tmp_path / file)]) == 1
        assert capsys.readouterr().err.count("\n") == 1
    _, said = run(["-c", "import ade_fast"], tmp_path, "4")
    assert "ADE_FAST_LOG must be one of 0, 1, 2, 3, got '4'" in said
