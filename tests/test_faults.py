"""Training under faults of the machine: a clock that jumps, a file system that turns read-only, memory that ends.

SIGKILL and a full disk are in test_training.py and test_run_directory.py.
"""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import os
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from training_cases import TINY, without_clock

import ade_fast as ade
from ade_fast.cli import main
from ade_fast.training import Summary, Trainer, files, loop, plots


def settings_file(folder: Path) -> Path:
    (folder / "settings.json").write_text(json.dumps(TINY.to_dict()))
    return folder / "settings.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    """The run that nothing disturbs."""
    with pytest.MonkeyPatch.context() as patched:
        for drawing in ("save_learned", "save_convergence"):
            patched.setattr(plots, drawing, lambda *_, **__: None)
        return ade.training.train(TINY, tmp_path_factory.mktemp("whole") / "run", progress=False)


def on_the_third_validation(fault: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """When the run has two checkpoints behind it."""
    validate, calls = Trainer.validate, itertools.count(1)

    def validate_or_fault(trainer: Trainer, *args: object) -> object:
        if next(calls) == 3:
            fault()
        return validate(trainer, *args)

    monkeypatch.setattr(Trainer, "validate", validate_or_fault)


def test_a_clock_that_jumps_changes_nothing_but_times(
    whole: Summary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pictures: None
) -> None:
    """Back by an hour, forth by a year; with tensorboard's files, which are named and dated by it."""
    jumps = itertools.cycle((0.0, -3600.0, 3.15e7, -3.15e7, 0.0))
    for name in ("time", "perf_counter", "monotonic"):
        right = getattr(time, name)
        monkeypatch.setattr(time, name, lambda right=right: right() + next(jumps))
    settings = dataclasses.replace(TINY, tensorboard="auto")
    found = ade.training.train(settings, tmp_path / "run", progress=False)
    assert without_clock(found) == without_clock(whole)
    assert (tmp_path / "run" / loop.SUMMARY).exists()


def read_only(path: Path, *_: object) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))


@pytest.fixture
def own_disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[str], None]]]:
    """A file system, and a function that mounts it anew: "ro" or "rw"."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield disk, lambda how: subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_directory_that_turns_read_only_is_one_line_and_the_run_goes_on(
    own_disk: tuple[Path, Callable[[str], None]],
    whole: Summary,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_pictures: None,
    capfd: pytest.CaptureFixture[str],
) -> None:
    disk, remount = own_disk
    flags = ["train", "--config", str(settings_file(tmp_path)), "--out", str(disk / "run"), "--no-progress"]
    with monkeypatch.context() as patched:  # a mounted one cannot turn read-only while files are open for writing
        on_the_third_validation(lambda: patched.setattr(files, "_write_temporary", read_only), patched)
        assert main(flags) == 1
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "Read-only file system" in said and "--resume goes on from it" in said, said
    remount("ro")
    assert main([*flags, "--resume"]) == 1, "still read-only"
    assert "Read-only file system" in capfd.readouterr().err
    remount("rw")
    assert main([*flags, "--resume"]) == 0
    found = json.loads((disk / "run" / loop.SUMMARY).read_text())
    assert found["mmd2"] == whole.mmd2


def test_memory_that_ends_is_one_line_and_the_run_goes_on(
    whole: Summary,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_pictures: None,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The address space ends where it stands: what PyTorch asks for next is refused."""
    flags = ["train", "--config", str(settings_file(tmp_path)), "--out", str(tmp_path / "run"), "--no-progress"]
    before = resource.getrlimit(resource.RLIMIT_AS)

    def end_of_memory() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize(), before[1]))
        ade.data.toy("moons").sample(100_000_000)

    with monkeypatch.context() as patched:
        on_the_third_validation(end_of_memory, patched)
        try:
            code = main(flags)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)
    said = capfd.readouterr().err
    assert code == 1 and said.count("\n") == 1 and "memory" in said and "--resume goes on from it" in said, said
    assert main([*flags, "--resume"]) == 0
    assert json.loads((tmp_path / "run" / loop.SUMMARY).read_text())["mmd2"] == whole.mmd2
