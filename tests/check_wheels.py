"""A wheel in environments of other Pythons and torches: `make wheels-check PYTHONS="env/bin/python ..."`.

Each environment has its torch, what the wheel requires and pytest, hypothesis, scipy; the wheel is put into it, without
dependencies, so that its torch stays. What runs is the installed package, in a folder without the checkout: `ade-fast
info`, a training that is saved, loaded and sampled, and tests of operators, layers and models. Prints a table.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
TESTS = ("reference", "ops", "mlp_ops", "layers_gradcheck", "layers_structure", "fit", "saved", "estimators", "initial")
VERSIONS = """
import sys, torch, numpy, ade_fast
assert ade_fast.__file__.startswith(sys.prefix), ade_fast.__file__
print("%d.%d.%d" % sys.version_info[:3], torch.__version__, numpy.__version__, ade_fast.__version__)
"""
TRAINING = """
import warnings
import numpy as np, torch, ade_fast as ade
warnings.simplefilter("ignore")
torch.set_num_threads(1)
X = np.random.default_rng(0).standard_normal((1000, 3)) * [3e4, 0.5, 1e-4] + [1e5, 0.0, 0.0]
model = ade.fit(X, updates=150, validate_every=50, likelihood_samples=2000, test_likelihood_samples=5000,
                test_permutations=20, test_samples=50, progress=False)
truth = -1.5 * np.log(2 * np.pi * np.e) - np.log(3e4 * 0.5 * 1e-4)
assert abs(model.score(X) - truth) < 0.15, (model.score(X), truth)
ade.save(model, "model.pt")
again = ade.load("model.pt")
assert again.sample(100, exact="resample").equal(model.sample(100, exact="resample"))
"""


class Failed(Exception):
    """A check that did not pass; the message says which, and the command's last lines."""


def run(folder: Path, *command: str | Path) -> str:
    """The output of a command that begins in ``folder`` and sees nothing of a checkout."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    clean |= {"OMP_NUM_THREADS": "1"}
    result = subprocess.run([str(part) for part in command], cwd=folder, env=clean, capture_output=True, text=True)
    if result.returncode:
        raise Failed(
            "\n".join([" ".join(map(str, command))[:100], *(result.stdout + result.stderr).splitlines()[-30:]])
        )
    return result.stdout


def check(wheel: Path, python: Path, tests: tuple[str, ...]) -> list[str]:
    """One environment's row. Raises: Failed."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        run(folder, python, "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", wheel)
        versions = run(folder, python, "-c", VERSIONS).split()
        fast = re.search(r"fast path on CPU: (.*)", run(folder, python.parent / "ade-fast", "info"))
        started = time.monotonic()
        run(folder, python, "-c", TRAINING)
        trained = f"{time.monotonic() - started:.0f} s"
        for file in HERE.glob("*.py"):
            shutil.copy(file, folder)
        files = [f"test_{name}.py" for name in tests]
        last = run(folder, python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files).splitlines()[-1]
    return [*versions[:3], fast[1] if fast else "-", trained, last.strip("= ")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("pythons", type=Path, nargs="+", help="interpreters of environments that have a torch")
    parser.add_argument("--tests", default=",".join(TESTS), help="test files, without test_ (default: %(default)s)")
    arguments = parser.parse_args()
    print(
        "| Python | torch | NumPy | kernels | trained, saved, loaded | tests |\n| --- | --- | --- | --- | --- | --- |"
    )
    failed = 0
    for python in arguments.pythons:
        try:
            # Not resolved: an environment's interpreter is a link.
            row = check(arguments.wheel.resolve(), python.absolute(), tuple(arguments.tests.split(",")))
        except Failed as error:
            failed += 1
            print(f"{python}: {error}", file=sys.stderr)
            row = [str(python), "", "", "", "", "failed"]
        print("| " + " | ".join(row) + " |", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
