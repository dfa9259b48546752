"""The commands, run through ``main``: what they leave, what they print, and one line for every mistake."""

import errno
import importlib.util
import json
import os

import numpy as np
import pytest
import torch

import ade_fast as ade
from ade_fast import _info
from ade_fast.cli import main
from ade_fast.training import checkpoint, metrics_log, plots

SETTINGS = {
    "hidden": "32,32",
    "flow-layers": 2,
    "n-steps": 2,
    "batch-size": 32,
    "updates": 4,
    "sampler-steps": 1,
    "validate-every": 2,
    "validation-samples": 64,
    "test-samples": 64,
    "test-permutations": 50,
    "checkpoint-every": 2,
    "tensorboard": "off",
}
TINY = [*(f"--{name}={value}" for name, value in SETTINGS.items()), "--no-progress"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The directory of one finished run."""
    out = tmp_path_factory.mktemp("run") / "out"
    assert main(["train", "--data", "circles", "--seed", "3", "--out", str(out), *TINY]) == 0
    return out


def error_of(capsys) -> str:
    """The one line that a failing command left on standard error."""
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith("ade-fast ")
    return captured.err


def test_info_names_version_build_devices_and_fast_paths(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"ade_fast {ade.__version__}, torch {torch.__version__}")
    for word in (
        "built by: ",
        "CPU: ",
        "GPU",
        "NVIDIA driver: ",
        "fast path on CPU: on",
        "fast path on CUDA: o",
    ):
        assert word in text


def test_info_says_why_cuda_is_off(tmp_path, monkeypatch):
    built = {"cuda": True, "cuda_version": "13.0", "cuda_archs": "sm_90"}
    assert "this build has no CUDA kernels" in _info.cuda_state({"cuda": False}, None)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "install a CUDA build of torch" in _info.cuda_state(built, "580.65")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert _info.cuda_state(built, None) == "off: no NVIDIA driver"
    assert _info.cuda_state(built, "550.54.14") == "off: CUDA 13.0 needs driver 580 or newer, this is 550.54.14"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "is_available() is False" in _info.cuda_state(built, "580.65.06")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert _info.cuda_state(built, "580.65.06") == "on"

    file = tmp_path / "version"
    assert _info.driver_version(file) is None
    file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 07:11:47 UTC 2025\n")
    assert _info.driver_version(file) == "580.65.06"


def test_train_leaves_its_files_and_prints_the_result(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["train", "--data", "line", "--out", str(out), *TINY]) == 0
    text = capsys.readouterr().out
    lines = [line.replace(str(out), "out") for line in text.splitlines()]
    assert len(lines) <= 24 and max(len(line) for line in lines if "settings" not in line) <= 100
    for word in ("line, seed 0, 4 updates", "held-out test", "50 permutations: 50 %", "joint updates", "field mlp"):
        assert word in text
    assert str(out / "figure.png") in text and f"ade-fast sample {out}" in text
    assert "hidden=[32, 32]" in text and "seed=" not in text  # what differs from the defaults, and nothing else
    settings = json.loads((out / "config.json").read_text())
    assert settings["data"] == "line" and settings["hidden"] == [32, 32] and settings["updates"] == 4
    summary = json.loads((out / "summary.json").read_text())
    null = summary["null_mmd2"]
    assert null["50"] <= null["95"] <= null["99"] and summary["permutations"] == 50
    assert 0 < sum(summary["time"].values()) <= 1.01 * summary["seconds"] and summary["time"]["joint updates"] > 0
    assert 0 < summary["p_value"] <= 1 and summary["chosen_update"] in (0, 2, 4)
    assert {p.name for p in out.iterdir()} >= {
        "checkpoint.pt",
        "metrics.csv",
        "figure.png",
        "convergence.png",
    }


def test_flags_override_the_configuration_file(tmp_path, capsys, no_pictures):
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"data": "cos", "step_size": 0.25, "seed": 1}))
    out = tmp_path / "out"
    assert main(["train", "--config", str(file), "--seed", "2", "--out", str(out), *TINY]) == 0
    model = ade.load(out)
    assert (model.config.data, model.config.step_size, model.config.seed) == ("cos", 0.25, 2)


def test_sample_writes_float32_rows_the_same_for_the_same_seed(run, tmp_path, capsys):
    files = [tmp_path / f"{name}.npy" for name in "abc"]
    for file, seed in zip(files, "001", strict=True):
        assert main(["sample", str(run), "--n", "50", "--seed", seed, "--out", str(file)]) == 0
    a, b, c = map(np.load, files)
    assert a.dtype == np.float32 and a.shape == (50, 2) and np.isfinite(a).all()
    assert (a == b).all() and not (a == c).any()
    assert (a == ade.load(run).sample(50, seed=0).numpy()).all()


def test_a_loaded_model_has_its_players_and_settings(run):
    model = ade.load(run)
    assert model.config.data == "circles" and model.config.seed == 3
    x = torch.randn(5, 2)
    assert model.potential(x).shape == (5,)
    assert model.sampler.sample(model.potential, 6).x.shape == (6, 2)
    assert not any(p.requires_grad for p in (*model.potential.parameters(), *model.sampler.parameters()))


def test_resume_goes_on_and_a_finished_run_stays_as_it_is(tmp_path, capsys, no_pictures):
    out = tmp_path / "out"
    arguments = ["train", "--data", "line", "--out", str(out), *TINY]
    assert main([*arguments, "--resume"]) == 0  # nothing there yet: it begins
    first = capsys.readouterr().out
    assert main(["train", "--out", str(out), "--resume", "--no-progress"]) == 0
    assert capsys.readouterr().out == first


def test_the_demo_trains_on_moons(tmp_path, capsys, monkeypatch, no_pictures):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", *TINY]) == 0
    assert ade.load(tmp_path / "demo").config.data == "moons"
    assert main(["demo", *TINY]) == 0  # its own directory is replaced
    assert main(["demo", "--resume", "--no-progress"]) == 0
    capsys.readouterr()
    assert main(["demo", "--out", "./demo/../other", *TINY]) == 0
    capsys.readouterr()
    assert main(["demo", "--out", "other", *TINY]) == 1
    assert "holds a run already" in error_of(capsys)


# --- mistakes


def train(*arguments: str) -> list[str]:
    return ["train", *TINY, *arguments]


MISTAKES = {
    "unknown data": (train("--out", "new", "--data", "moon"), "did you mean 'moons'"),
    "negative steps": (train("--out", "new", "--n-steps", "-1"), "n_steps must be finite and >= 1, got -1"),
    "nan rate": (
        train("--out", "new", "--potential-lr", "nan"),
        "potential_lr must be finite and > 0, got nan",
    ),
    "unknown activation": (train("--out", "new", "--activation", "rellu"), "did you mean 'relu'"),
    "unknown device": (
        train("--out", "new", "--device", "gpu"),
        "device must be a torch device of this machine, got 'gpu'",
    ),
    "existing run": (train("--out", "{run}"), "go on with --resume, replace it with --overwrite"),
    "resume and overwrite": (train("--out", "{run}", "--resume", "--overwrite"), "exclude each other"),
    "resume with another seed": (train("--out", "{run}", "--resume", "--seed", "4"), "has seed 3, got 4"),
    "configuration is a directory": (
        train("--out", "new", "--config", "damaged"),
        "cannot read damaged: Is a directory",
    ),
    "wrong type": (train("--out", "new", "--config", "typed.json"), "seed must be an integer, got '5'"),
    "sample newer": (["sample", "newer", "--out", "s.npy"], "has version 99, this ade_fast reads"),
    "resume damaged": (train("--out", "damaged", "--resume"), "restore a copy, or train again with --overwrite"),
    "no tensorboard": (train("--out", "new", "--tensorboard", "on"), "pip install 'ade_fast[tensorboard]'"),
    "no configuration file": (train("--out", "new", "--config", "none.json"), "cannot read none.json"),
    "broken configuration": (
        train("--out", "new", "--config", "broken.json"),
        "broken.json is not valid JSON",
    ),
    "list as configuration": (
        train("--out", "new", "--config", "list.json"),
        "must hold one JSON object, got a list",
    ),
    "unknown key": (train("--out", "new", "--config", "unknown.json"), "unknown key 'step'"),
    "out is a file": (train("--out", "broken.json"), "broken.json"),
    "sample nothing": (["sample", "nowhere", "--out", "s.npy"], "nowhere is not a directory"),
    "sample empty": (["sample", ".", "--out", "s.npy"], "checkpoint.pt does not exist; train first"),
    "sample damaged": (["sample", "damaged", "--out", "s.npy"], "damaged or not a checkpoint"),
    "sample as text": (["sample", "{run}", "--out", "s.txt"], "--out must name a .npy file"),
    "sample fewer than none": (
        ["sample", "{run}", "--n", "-1", "--out", "s.npy"],
        "n must be an integer >= 0, got -1",
    ),
    "sample bad seed": (
        ["sample", "{run}", "--seed", "-1", "--out", "s.npy"],
        "seed must be an integer >= 0, got -1",
    ),
    "sample to nowhere": (["sample", "{run}", "--out", "no/such/s.npy"], "No such file or directory"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_loses_nothing(mistake, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "unknown.json").write_text('{"step": 1}')
    (tmp_path / "typed.json").write_text('{"seed": "5"}')
    (tmp_path / "newer").mkdir()
    torch.save({"format": checkpoint.FORMAT, "version": 99, "state": {}}, tmp_path / "newer" / "checkpoint.pt")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "checkpoint.pt").write_bytes((run / "checkpoint.pt").read_bytes()[:1000])
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    arguments, message = MISTAKES[mistake]
    assert main([a.replace("{run}", str(run)) for a in arguments]) == 1
    assert message in error_of(capsys)
    assert {p.name: p.read_bytes() for p in run.iterdir()} == before
    assert not (tmp_path / "new").exists() and not (tmp_path / "s.npy").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_permission_is_named(tmp_path, capsys):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert main(train("--out", str(tmp_path / "locked" / "out"))) == 1
    assert "Permission denied" in error_of(capsys)


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(ade.training.CheckpointError):
        main(["sample", str(tmp_path), "--out", "s.npy", "--debug"])


@pytest.mark.parametrize("full", ["checkpoint.pt", "metrics.csv", "figure-0000004.png"])
def test_a_full_disk_is_one_line_and_the_run_goes_on_later(full, tmp_path, monkeypatch, capsys):
    """The device fills up in the middle of a run, at each kind of file; afterwards --resume ends as if it had not."""
    out, flags = tmp_path / "out", train("--updates", "8", "--pictures-every", "4", "--log-every", "1")
    assert main([*flags, "--out", str(tmp_path / "whole")]) == 0
    write, log = checkpoint.write_atomically, metrics_log.MetricsLog.write
    writes = []

    def no_space(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write_until_full(path, content):
        writes.append(path.name)
        room = 2 if full == "checkpoint.pt" else 0
        return no_space() if path.name == full and writes.count(full) > room else write(path, content)

    def log_until_full(self, row):
        return no_space() if row["update"] > 4 else log(self, row)

    with monkeypatch.context() as patch:
        if full == "metrics.csv":
            patch.setattr(metrics_log.MetricsLog, "write", log_until_full)
        else:
            patch.setattr(checkpoint, "write_atomically", write_until_full)
            patch.setattr(plots, "write_atomically", write_until_full)
        capsys.readouterr()
        assert main([*flags, "--out", str(out)]) == 1
        line = error_of(capsys)
        assert "No space left on device" in line and "--resume goes on" in line
    assert 0 < ade.training.checkpoint.load_checkpoint(out / "checkpoint.pt")["update"] < 8
    assert main(["train", "--out", str(out), "--resume", "--no-progress"]) == 0
    scores = [json.loads((d / "summary.json").read_text())["mmd2"] for d in (out, tmp_path / "whole")]
    assert scores[0] == scores[1]
    assert {p.name for p in out.iterdir()} == {p.name for p in (tmp_path / "whole").iterdir()}


def test_divergence_is_one_line_with_advice(tmp_path, capsys, monkeypatch):
    def diverge(self):
        raise ade.NonFiniteError("ADE: the objective is not finite; lower the learning rates")

    monkeypatch.setattr(ade.training.Trainer, "step", diverge)
    assert main(train("--out", str(tmp_path / "out"))) == 1
    assert "lower the learning rates" in error_of(capsys)


def test_an_interrupt_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    def interrupt(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(ade.training.Trainer, "step", interrupt)
    assert main(train("--out", str(tmp_path / "out"))) == 130
    assert "--resume" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["fly"], ["train"], ["train", "--out", "x", "--updates", "many"]])
def test_a_malformed_command_line_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: ade-fast" in capsys.readouterr().err
