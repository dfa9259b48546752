"""What is handed out: a wheel that trains where nothing of the checkout is in sight, and an sdist that has all sources.

The wheel is made around the extension that is built already: compiling it again would take minutes.
"""

import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

import ade_fast as ade
from ade_fast import _ops

ROOT = Path(__file__).parents[1]

SETUP = """
import shutil, sys
import setup as project
from setuptools import setup

class Build(project.Build):
    def build_extensions(self):
        target = self.get_ext_fullpath("ade_fast._C")
        self.mkpath(target.rpartition("/")[0])
        shutil.copy({extension!r}, target)

setup(
    ext_modules=[project.extension],
    cmdclass={{"build_ext": Build}},
    options=project.OPTIONS | {{"egg_info": {{"egg_base": {scratch!r}}}, "build": {{"build_base": {scratch!r}}}}},
)
"""

TRAINING = """
import sys
import numpy as np, torch, ade_fast as ade
print(ade.__file__)
torch.set_num_threads(1)
X = np.random.default_rng(0).standard_normal((500, 2)) * [3.0, 0.5] + [100.0, 0.0]
model = ade.fit(X, updates=20, validate_every=10, likelihood_samples=200, test_likelihood_samples=500,
                test_permutations=20, test_samples=50, progress=False)
print(model.score(X), model.sample(10).shape)
"""


def run(*command: str | Path, **options) -> str:
    """A command's output; what it said where it failed."""
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300, **options)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout


def setup_py(scratch: Path, *arguments: str | Path) -> None:
    """Runs setup.py, but takes the extension that is there."""
    code = SETUP.format(extension=_ops._C.__file__, scratch=str(scratch))
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    run(sys.executable, "-c", code, *arguments, cwd=ROOT, env={**os.environ, "PYTHONPATH": path})


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scratch = tmp_path_factory.mktemp("wheel")
    setup_py(scratch, "-q", "bdist_wheel", "--dist-dir", scratch / "dist", "--bdist-dir", scratch / "bdist")
    (found,) = (scratch / "dist").iterdir()
    return found


def test_the_wheel_is_one_for_all_pythons_and_is_typed(wheel: Path) -> None:
    assert re.fullmatch(rf"ade_fast-{re.escape(ade.__version__)}-cp310-abi3-linux_\w+\.whl", wheel.name)
    names = zipfile.ZipFile(wheel).namelist()
    assert {"ade_fast/_C.abi3.so", "ade_fast/py.typed", "ade_fast/training/fit.py"} <= set(names)
    assert all(re.match(r"ade_fast(-[\w.]+\.dist-info)?/", name) for name in names)


def test_the_wheel_trains_in_an_environment_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """A bare environment: the wheel, and what it says that it needs, of this one's packages."""
    environment, elsewhere = tmp_path / "env", tmp_path / "elsewhere"
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    elsewhere.mkdir()
    python = environment / "bin" / "python"
    # Without PYTHONPATH: pip would find the checkout on it, and nothing to install.
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index")
    run(*pip, wheel, cwd=elsewhere, env=clean)
    # Appended to the path as a plain folder: the checkout's own .pth file in it, if there is one, is not read.
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(str(Path(torch.__file__).parents[1]) + "\n")
    said = run(python, "-c", TRAINING, cwd=elsewhere, env=clean).splitlines()
    assert said[0] == str(site / "ade_fast" / "__init__.py")
    assert "(10, 2)" in said[-1] or "[10, 2]" in said[-1]
    command = environment / "bin" / "ade-fast"
    assert run(command, "--version", cwd=elsewhere, env=clean) == f"ade-fast {ade.__version__}\n"


def test_the_sdist_has_every_source(tmp_path: Path) -> None:
    """What a build needs, of the checkout: the build itself takes minutes, and is made before a release."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: what belongs into an sdist is not known")
    setup_py(tmp_path, "-q", "sdist", "--dist-dir", tmp_path)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    needed = ("ade_fast", "csrc", "cmake", "setup.py", "pyproject.toml", "CMakeLists.txt", "LICENSE", "CITATION.cff")
    tracked = set(run("git", "ls-files", "--", *needed, cwd=ROOT).splitlines())
    assert tracked <= packed, sorted(tracked - packed)
    assert not [name for name in packed if name.endswith((".so", ".o"))]


def test_there_is_one_version() -> None:
    """The package's own, from which setuptools takes the distribution's."""
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {ade.__version__}\n" in citation
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", ade.__version__)
    installed = importlib.metadata.version("ade_fast")
    assert installed == ade.__version__, "install again: make, or pip install --no-build-isolation -e ."
