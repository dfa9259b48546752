"""What may be begun, gone on with or replaced in a directory, and what is never lost there."""

import dataclasses
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_cases import TINY, without_clock

import ade_fast as ade
from ade_fast.cli import main
from ade_fast.training import (
    BusyError,
    CheckpointError,
    ConfigError,
    DivergenceError,
    Trainer,
    checkpoint,
    directory,
    files,
    loop,
)

FOREIGN = (
    "checkpoint.pt",
    "config.json",
    "metrics.csv",
    "summary.json",
    "figure.png",
    "convergence.png",
    "figure-0000001.png",
    "tensorboard/events.out.tfevents.123.other",
)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != ".lock"
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The directory of one finished run; tests work on copies."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("save_learned", "save_convergence"):
            patch.setattr(ade.training.plots, name, lambda *a, **k: None)
        out = tmp_path_factory.mktemp("finished") / "run"
        ade.training.train(TINY, out, progress=False)
    return out


@pytest.fixture
def run(finished, tmp_path, no_pictures) -> Path:
    out = tmp_path / "run"
    out.mkdir()
    for name, content in contents(finished).items():
        (out / name).write_bytes(content)
    return out


# --- files that are not a run's


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("how", [{}, {"overwrite": True}, {"resume": True}], ids=["begin", "overwrite", "resume"])
def test_a_file_that_is_not_a_runs_is_never_replaced(tmp_path, name, how, no_pictures):
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "notes.txt").write_text("precious")
    (tmp_path / name).write_text("precious\nprecious\n")
    before = contents(tmp_path)
    with pytest.raises((ConfigError, CheckpointError)) as caught:
        loop.resolve_resumed(tmp_path, {}) if name == "config.json" and how.get("resume") else None
        ade.training.train(TINY, tmp_path, progress=False, **how)
    assert "\n" not in str(caught.value) and contents(tmp_path) == before


def test_other_files_are_no_obstacle(tmp_path, no_pictures):
    (tmp_path / "notes.txt").write_text("precious")
    ade.training.train(TINY, tmp_path, progress=False)
    ade.training.train(TINY, tmp_path, progress=False, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "precious"


# --- going on


def test_a_lost_checkpoint_is_not_a_reason_to_begin_anew(run):
    kept = (run / loop.CHECKPOINT).read_bytes()
    (run / loop.CHECKPOINT).unlink()
    before = contents(run)
    with pytest.raises(ConfigError, match=r"checkpoint.pt is missing; restore it, or begin anew with --overwrite"):
        ade.training.train(TINY, run, resume=True, progress=False)
    (run / loop.CHECKPOINT).symlink_to("/nonexistent/checkpoint.pt")
    with pytest.raises(CheckpointError, match=r"cannot read .*: No such file or directory; restore a copy"):
        ade.training.train(TINY, run, resume=True, progress=False)
    (run / loop.CHECKPOINT).unlink()
    assert contents(run) == before
    (run / loop.CHECKPOINT).write_bytes(kept)
    ade.training.train(TINY, run, resume=True, progress=False)


@pytest.mark.parametrize("left", [(), ("config.json",), ("config.json", "metrics.csv")], ids=len)
def test_a_run_killed_before_its_first_checkpoint_begins_on_resume(finished, tmp_path, left, no_pictures):
    out = tmp_path / "out"
    out.mkdir()
    for name in left:
        (out / name).write_bytes((finished / name).read_bytes().splitlines(keepends=True)[0] if "csv" in name else
                                 (finished / name).read_bytes())  # fmt: skip
    settings = loop.resolve_resumed(out, {} if left else TINY.to_dict())
    assert settings == TINY
    ade.training.train(settings, out, resume=True, progress=False)
    assert ade.load(out).config == TINY


def test_settings_are_read_from_the_checkpoint_where_the_configuration_is_lost(run):
    for broken in (None, "", "{", '{"potential_lr": -1}'):
        (run / loop.CONFIG).unlink(missing_ok=True)
        if broken is not None:
            (run / loop.CONFIG).write_text(broken)
        assert loop.resolve_resumed(run, {"threads": 2}) == dataclasses.replace(TINY, threads=2)
    (run / loop.CONFIG).write_text(json.dumps({**TINY.to_dict(), "seed": 9}))
    with pytest.raises(ConfigError, match=r"other settings than config.json .*: seed differ; .* undo changes"):
        ade.training.train(loop.resolve_resumed(run, {}), run, resume=True, progress=False)


def test_a_damaged_table_of_metrics_is_named_and_kept(run):
    for damage in (os.urandom(2000) + b"\xff", b"x" * 200_000):
        (run / loop.METRICS).write_bytes(damage)
        with pytest.raises(ConfigError, match=r"metrics.csv is damaged .* move it away") as caught:
            ade.training.train(TINY, run, resume=True, progress=False)
        assert "\n" not in str(caught.value) and (run / loop.METRICS).read_bytes() == damage
    (run / loop.METRICS).unlink()
    ade.training.train(TINY, run, resume=True, progress=False)


# --- checkpoints of the right version with the wrong content


def without(name):
    return lambda state: state.pop(name)


WRONG = {
    "a list": lambda state: [1],
    "no best": without("best"),
    "no config": without("config"),
    "no optimizer": lambda state: {**state, "potential_optimizer": None},
    "no weight": lambda state: [w.popitem() for w in (state["potential"], state["best"]["potential"])] and state,
    "a foreign setting": lambda state: state["config"].update(new=1) or state,
    "nan": lambda state: [w.fill_(torch.nan) for w in state["best"]["potential"].values()] and state,
    "no generators": without("generators"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_checkpoint_with_wrong_content_is_one_line(run, kind, tmp_path, capsys):
    path = run / loop.CHECKPOINT
    state = checkpoint.load_checkpoint(path)
    changed = WRONG[kind](state)
    checkpoint.save_checkpoint(path, changed if kind == "a list" or changed is state or "optim" in kind else state)
    before = contents(run)
    commands = [["train", "--out", str(run), "--resume", "--no-progress"]]
    if kind not in ("no optimizer", "no generators"):  # which sampling does not need
        commands.append(["sample", str(run), "--out", str(tmp_path / "s.npy")])
    for command in commands:
        assert main(command) == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "has the wrong content" in said and "restore a copy" in said, said
    assert contents(run) == before and not (tmp_path / "s.npy").exists()


def test_samples_that_are_not_finite_are_refused(run):
    model = ade.load(run)
    for parameter in model.sampler.initial.parameters():
        parameter.fill_(3e38)
    with pytest.raises(ade.NonFiniteError, match=r"sample: \d+ of 5 samples are not finite"):
        model.sample(5)


# --- replacing


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def diverge(*_):
    raise DivergenceError("training diverged at update 0")


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("where", "what"),
    [("validate", diverge), ("validate", interrupt), ("checkpoint.pt", no_space), ("config.json", no_space)],
)
def test_the_old_run_is_whole_until_the_new_one_has_begun(run, where, what, monkeypatch):
    before, write = contents(run), files._write_temporary
    if where == "validate":
        monkeypatch.setattr(Trainer, "validate", what)
    else:
        monkeypatch.setattr(files, "_write_temporary", lambda p, c: what() if p.name == where else write(p, c))
    with pytest.raises((DivergenceError, OSError, KeyboardInterrupt)) as caught:
        ade.training.train(dataclasses.replace(TINY, seed=5), run, overwrite=True, progress=False)
    assert not hasattr(caught.value, "kept") and contents(run) == before
    if what is no_space:
        assert caught.value.filename == str(run / where)


def test_a_run_is_replaced_whatever_its_folder_of_events_is(run, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "notes.txt").write_text("precious")
    (elsewhere / "events.out.tfevents.1.x").touch()
    (run / "tensorboard").symlink_to(elsewhere)
    ade.training.train(dataclasses.replace(TINY, seed=5), run, overwrite=True, progress=False)
    assert ade.load(run).config.seed == 5
    assert [p.name for p in elsewhere.iterdir()] == ["notes.txt"]


def test_a_linked_checkpoint_stays_a_link(run, tmp_path):
    target = tmp_path / "on_a_larger_disk.pt"
    (run / loop.CHECKPOINT).rename(target)
    (run / loop.CHECKPOINT).symlink_to(target)
    ade.training.train(dataclasses.replace(TINY, seed=5), run, overwrite=True, progress=False)
    assert (run / loop.CHECKPOINT).is_symlink() and checkpoint.load_checkpoint(target)["config"]["seed"] == 5


# --- two at once


def test_a_second_process_is_kept_out(run, capsys):
    before = contents(run)
    with files.locked(run):
        for flags in (["--resume"], ["--overwrite"]):
            assert main(["train", "--out", str(run), "--no-progress", *flags]) == 1
            said = capsys.readouterr().err
            assert said.count("\n") == 1 and f"another ade-fast (pid {os.getpid()}) is training in" in said
    assert contents(run) == before
    assert main(["train", "--out", str(run), "--no-progress", "--resume"]) == 0


def test_a_killed_process_does_not_keep_others_out(tmp_path):
    lock = "f = open('.lock', 'w'); fcntl.flock(f, fcntl.LOCK_EX); print('locked', flush=True)"
    holder = f"import fcntl, signal; {lock}; signal.pause()"
    child = subprocess.Popen([sys.executable, "-c", holder], cwd=tmp_path, stdout=subprocess.PIPE)
    child.stdout.readline()
    with pytest.raises(BusyError, match=r"another ade-fast \(pid unknown\)"), files.locked(tmp_path):
        pass
    child.kill()
    child.wait()
    with files.locked(tmp_path):
        pass


def test_a_run_that_another_began_meanwhile_is_left_alone(run, tmp_path, monkeypatch):
    """Between the first look and the lock."""
    out, validate = tmp_path / "out", Trainer.validate

    def slow(self):
        run.rename(out)
        return validate(self)

    monkeypatch.setattr(Trainer, "validate", slow)
    before = contents(run)
    with pytest.raises(ConfigError, match="holds a run already"):
        ade.training.train(TINY, out, progress=False)
    assert contents(out) == before


# --- killed, or out of space, where it hurts

KILLED_AT = """
import os, signal, sys
from ade_fast.cli import main
from ade_fast.training import Config, Trainer, loop, plots
def killed(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
Trainer(Config())  # imports what torch imports late
for place in (Trainer, "test"), (plots, "save_learned"), (plots, "save_convergence"), (loop, "to_dict"):
    child = os.fork()
    if child == 0:
        setattr(*place, killed)
        os._exit(main(sys.argv[1:]))
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, place
"""


def test_a_run_killed_in_its_final_evaluation_ends_as_the_uninterrupted_one(tmp_path):
    settings = dataclasses.replace(TINY, tensorboard="auto")
    whole = ade.training.train(settings, tmp_path / "whole", progress=False)
    (tmp_path / "settings.json").write_text(json.dumps(settings.to_dict()))
    out = tmp_path / "killed"
    out.mkdir()
    flags = ["train", "--config", str(tmp_path / "settings.json"), "--out", str(out), "--resume", "--no-progress"]
    done = subprocess.run([sys.executable, "-c", KILLED_AT, *flags], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not (out / loop.SUMMARY).exists()
    assert without_clock(ade.training.train(settings, out, resume=True, progress=False)) == without_clock(whole)
    for name in (loop.FIGURE, loop.CONVERGENCE):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list(out.glob(".*.tmp"))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 120 kB, and a function that enlarges it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=120k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        yield disk, lambda: subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_really_full_is_one_line_and_the_run_goes_on(small_disk, tmp_path, no_pictures, capfd):
    disk, enlarge = small_disk
    settings = dataclasses.replace(TINY, updates=100, tensorboard="auto")
    whole = ade.training.train(settings, tmp_path / "whole", progress=False)
    (tmp_path / "settings.json").write_text(json.dumps(settings.to_dict()))
    flags = ["train", "--config", str(tmp_path / "settings.json"), "--out", str(disk / "out"), "--no-progress"]
    assert main(flags) == 1
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "No space left on device" in said and str(disk / "out") in said, said
    assert "--resume goes on from it once this is mended" in said
    enlarge()
    assert main([*flags, "--resume"]) == 0
    summaries = [json.loads((d / loop.SUMMARY).read_text()) for d in (disk / "out", tmp_path / "whole")]
    assert summaries[0]["mmd2"] == summaries[1]["mmd2"] == whole.mmd2


def test_a_settings_file_of_our_own_is_told_from_others(tmp_path):
    for text, ours in ((json.dumps(TINY.to_dict()), True), ('{"data": "moons"}', False), ("[]", False), ("", False)):
        (tmp_path / "c.json").write_text(text)
        assert directory.is_config_file(tmp_path / "c.json") is ours
