"""Every example runs, in small settings: ``main(smoke=True)`` of each file in examples/."""

import importlib.util
import math
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

# What an example needs beside what ade_fast does.
NEEDS = dict.fromkeys(("sklearn_table", "latent_ebm", "logistic_regression"), "sklearn") | {
    "lightning_module": "lightning"
}
# Those that start processes, which import them by their file.
ALONE = ("several_processes",)
EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_example(path: Path, capsys: pytest.CaptureFixture) -> None:
    if path.stem in NEEDS:
        pytest.importorskip(NEEDS[path.stem])
    if path.stem in ALONE:
        run = subprocess.run([sys.executable, path, "--smoke"], capture_output=True, text=True, timeout=300)
        assert run.returncode == 0 and "equal: True" in run.stdout, run.stdout + run.stderr
        return
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so short a run leaves few effective samples, and says so
        found = module.main(smoke=True)
    assert found and all(math.isfinite(value) for value in found.values()), found
    assert capsys.readouterr().out


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 9 and {path.stem for path in EXAMPLES} >= {*NEEDS, *ALONE}
