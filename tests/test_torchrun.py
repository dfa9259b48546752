"""`torchrun ... ade-fast train`: the first process writes; a run with a killed and restarted one ends as any."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed
from training_cases import TINY

import ade_fast as ade
from ade_fast.training import loop
from ade_fast.training.checkpoint import load_checkpoint
from ade_fast.training.config import ConfigError
from ade_fast.training.team import Team

pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="this torch has no torch.distributed")

# ade-fast, but that process 1 kills itself at its sixth update, the first time it gets there.
KILLED_ONCE = """
import os, signal, sys
from pathlib import Path
from ade_fast.cli import main
from ade_fast.training import Trainer, plots
for drawing in ("save_learned", "save_convergence"):
    setattr(plots, drawing, lambda *_, **__: None)
step, mark = Trainer.step, Path(sys.argv[1])
def killed(trainer):
    if mark.name != "never" and trainer.team.rank == 1 and trainer.update == 5 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return step(trainer)
Trainer.step = killed
sys.exit(main(sys.argv[2:]))
"""


def torchrun(folder: Path, out: str, mark: str) -> subprocess.CompletedProcess:
    (folder / "program.py").write_text(KILLED_ONCE)
    (folder / "settings.json").write_text(json.dumps(TINY.to_dict()))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1",
        "--monitor-interval", "0.1", str(folder / "program.py"), str(folder / mark), "train",
        "--config", str(folder / "settings.json"), "--out", str(folder / out), "--resume", "--no-progress",
    ]  # fmt: skip
    (folder / out).mkdir()
    return subprocess.run(command, capture_output=True, text=True, timeout=500)


def test_a_killed_process_is_restarted_and_the_run_ends_as_the_undisturbed_one(tmp_path: Path) -> None:
    for out, mark in (("whole", "never"), ("killed", "killed_once")):
        done = torchrun(tmp_path, out, mark)
        assert done.returncode == 0, f"{out}: {done.stderr}"
        assert done.stdout.count("held-out") <= 1, "the first process alone prints"
    assert (tmp_path / "killed_once").exists()
    runs = [ade.load(tmp_path / out) for out in ("whole", "killed")]
    for a, b in zip(*(run.potential.parameters() for run in runs), strict=True):
        assert torch.equal(a, b)
    states = [load_checkpoint(tmp_path / out / loop.CHECKPOINT) for out in ("whole", "killed")]
    for rank in range(2):
        for name, state in states[0]["generators"][rank].items():
            assert torch.equal(state, states[1]["generators"][rank][name])
    data = [state["data"] for state in states[0]["generators"]]
    assert not torch.equal(*data), "each draws data of its own"


def test_what_several_processes_cannot_share_is_named() -> None:
    team = Team(1, 3)
    with pytest.raises(ConfigError, match="batch_size must be a multiple of the 3 processes"):
        team.check(TINY)
    with pytest.raises(ConfigError, match="objective 'cd' is trained by one process, got 3"):
        team.check(dataclasses.replace(TINY, objective="cd"))
    with pytest.raises(ConfigError, match=r"trained by 1 process\(es\), got 3"):
        team.own({"data": None})
    assert Team().purpose("data") == "data" != team.purpose("data")
