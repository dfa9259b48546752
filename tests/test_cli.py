"""The commands, run through ``main``: what they leave, what they print, and one line for every mistake."""

import errno
import importlib.util
import io
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings

import numpy as np
import pytest
import torch

import ade_fast as ade
from ade_fast import _info, cli
from ade_fast.cli import main
from ade_fast.training import checkpoint, metrics_log, plots

SETTINGS = {
    "hidden": "32,32",
    "initial": "planar",
    "base-std": 1,
    "flow-layers": 2,
    "n-steps": 2,
    "batch-size": 32,
    "updates": 4,
    "sampler-steps": 1,
    "validate-every": 2,
    "validation-samples": 64,
    "likelihood-samples": 200,
    "test-likelihood-samples": 200,
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
    assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith("ade-fast")
    return captured.err


def result_of(capsys) -> list[str]:
    """The printed summary, without what the clock says."""
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("time"))
    return lines[:start] + lines[next(i for i, line in enumerate(lines) if line.startswith("settings")) :]


def test_the_package_is_a_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ade_fast", "--version"])
    with pytest.raises(SystemExit) as left:
        runpy.run_module("ade_fast", run_name="__main__")
    assert not left.value.code
    assert "ade-fast" in capsys.readouterr().out


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
    assert len(lines) <= 25 and max(len(line) for line in lines) <= 100
    for word in (
        "line, seed 0, 4 updates",
        "held-out test",
        "50 permutations: 50 %",
        "joint updates",
        "field mlp",
        ", test ",
    ):
        assert word in text
    assert str(out / "figure.png") in text and f"ade-fast sample {out}" in text
    # All settings in effect, the changed ones marked.
    assert "hidden=32,32*" in text and "potential_lr=0.003 " in text and "grad_norm_clip=1.0 " in text
    settings = json.loads((out / "config.json").read_text())
    assert settings["data"] == "line" and settings["hidden"] == [32, 32] and settings["updates"] == 4
    summary = json.loads((out / "summary.json").read_text())
    null = summary["null_mmd2"]
    assert null["50"] <= null["95"] <= null["99"] and summary["permutations"] == 50
    assert 0 < sum(summary["time"].values()) <= 1.01 * summary["seconds"] and summary["time"]["joint updates"] > 0
    assert summary["time"]["test"] > 0 and summary["time"]["pictures"] > 0
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


def test_samples_of_a_table_are_had_as_a_table(run, tmp_path, capsys):
    for name in ("s.npy", "s.csv"):
        assert main(["sample", str(run), "--n", "20", "--out", str(tmp_path / name)]) == 0
    assert np.array_equal(ade.data.load_table(tmp_path / "s.csv").numpy(), np.load(tmp_path / "s.npy"))


@pytest.mark.parametrize("exact", ["resample", "metropolis"])
def test_exact_samples_are_those_of_the_loaded_model(exact, run, tmp_path, capsys):
    out = tmp_path / "s.npy"
    assert main(["sample", str(run), "--n", "20", "--seed", "2", "--exact", exact, "--out", str(out)]) == 0
    assert f"(20, 2), exact by {exact}" in capsys.readouterr().out
    assert (np.load(out) == ade.load(run).sample(20, seed=2, exact=exact).numpy()).all()


def test_evaluate_scores_a_run_on_a_fresh_draw_or_on_a_file(run, tmp_path, capsys):
    assert main(["evaluate", str(run)]) == 0
    fresh = capsys.readouterr().out
    assert fresh.startswith("data            circles, 200 held-out points")
    for word in ("log-likelihood", "log Z", "ESS", "q0 alone", "temperature", "data's entropy", "exact samples"):
        assert word in fresh
    assert main(["evaluate", str(run)]) == 0 and capsys.readouterr().out == fresh
    assert main(["evaluate", str(run), "--seed", "1"]) == 0 and capsys.readouterr().out != fresh
    rows = ade.data.toy("circles").sample(50, torch.Generator().manual_seed(0))
    np.savetxt(tmp_path / "rows.csv", rows.numpy(), delimiter=",", header="a,b")
    assert main(["evaluate", str(run), "--data", str(tmp_path / "rows.csv")]) == 0
    said = capsys.readouterr().out
    assert "rows.csv, 50 held-out points" in said and "entropy" not in said


def test_a_run_on_a_file_of_ones_own(tmp_path, capsys, no_pictures):
    """Trained, resumed from elsewhere, evaluated on its own test rows; not confused by other rows in the file."""
    rows = torch.randn(60, 3, generator=torch.Generator().manual_seed(0)).numpy() * 10
    file, moved, out = tmp_path / "rows.npy", tmp_path / "moved.npy", tmp_path / "out"
    np.save(file, rows)
    assert main(["train", "--data", str(file), "--out", str(out), *TINY]) == 0
    text = capsys.readouterr().out
    assert "rows.npy, seed 0, 4 updates" in text and "test_fraction=0.1" in text
    assert main(["evaluate", str(out)]) == 0
    assert "6 held-out points" in capsys.readouterr().out
    file.rename(moved)
    assert main(["train", "--data", str(moved), "--out", str(out), "--resume", "--no-progress"]) == 0
    capsys.readouterr()
    np.save(moved, rows + 1)
    assert main(["train", "--out", str(out), "--resume", "--no-progress"]) == 1
    assert "learned from other rows than" in error_of(capsys)
    assert main(["evaluate", str(out)]) == 1
    assert "others than the run learned from; give --data" in error_of(capsys)
    moved.unlink()
    assert main(["evaluate", str(out)]) == 1
    assert "no such file" in error_of(capsys)


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
    assert main([*arguments, "--resume"]) == 1  # a slip in the name must not train something else for minutes
    assert "check its name" in error_of(capsys) and not out.exists()
    out.mkdir()
    assert main([*arguments, "--resume"]) == 0  # nothing there yet: it begins
    first = result_of(capsys)
    assert main(["train", "--out", str(out), "--resume", "--no-progress"]) == 0
    assert result_of(capsys) == first
    (out / "config.json").unlink()  # the checkpoint knows the settings too
    assert main(["train", "--out", str(out), "--resume", "--no-progress"]) == 0
    assert result_of(capsys) == first and (out / "config.json").exists()
    (out / "config.json").write_text("{")
    assert main(["train", "--out", str(out), "--resume", "--no-progress", "--test-samples", "40"]) == 0
    assert json.loads((out / "config.json").read_text())["test_samples"] == 40


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
    (tmp_path / "demo" / "config.json").unlink()
    (tmp_path / "demo" / "checkpoint.pt").write_text("mine")
    assert main(["demo", *TINY]) == 1  # another's directory of that name is not
    assert "but no run of ade_fast" in error_of(capsys)
    assert (tmp_path / "demo" / "checkpoint.pt").read_text() == "mine"


# --- mistakes


def train(*arguments: str) -> list[str]:
    return ["train", *TINY, *arguments]


MISTAKES = {
    "unknown data": (train("--out", "new", "--data", "moon"), "did you mean 'moons'"),
    "negative steps": (train("--out", "new", "--n-steps", "-1"), "n_steps must be >= 1 and <= 10000, got -1"),
    "nan rate": (
        train("--out", "new", "--potential-lr", "nan"),
        "potential_lr must be > 0, got nan",
    ),
    "unknown activation": (train("--out", "new", "--activation", "rellu"), "did you mean 'relu'"),
    "unknown device": (
        train("--out", "new", "--device", "gpu"),
        "device must be a torch device of this machine, cpu or cuda, got 'gpu'",
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
    "out is a file": (train("--out", "broken.json"), "--out must be a directory, broken.json is a file"),
    "sample nothing": (["sample", "nowhere", "--out", "s.npy"], "nowhere is not a directory"),
    "sample empty": (["sample", ".", "--out", "s.npy"], "checkpoint.pt does not exist; train first"),
    "sample damaged": (["sample", "damaged", "--out", "s.npy"], "damaged or not a checkpoint"),
    "sample as text": (["sample", "{run}", "--out", "s.txt"], "--out must name a .npy or a .csv file"),
    "sample fewer than none": (
        ["sample", "{run}", "--n", "-1", "--out", "s.npy"],
        "n must be an integer >= 0, got -1",
    ),
    "sample bad seed": (
        ["sample", "{run}", "--seed", "-1", "--out", "s.npy"],
        "seed must be an integer >= 0, got -1",
    ),
    "sample exactly how": (
        ["sample", "{run}", "--exact", "resample", "--n", "-1", "--out", "s.npy"],
        "n must be an integer >= 0, got -1",
    ),
    "data of text": (train("--out", "new", "--data", "text.csv"), "text.csv"),
    "data with a gap": (train("--out", "new", "--data", "nan.npy"), "NaN or infinite, the first in row 2, column 1"),
    "data that stand still": (train("--out", "new", "--data", "constant.npy"), "column 2 is constant"),
    "data of one row": (train("--out", "new", "--data", "one.npy"), "must have at least 2 rows, got 1"),
    "no data": (train("--out", "new", "--data", "none.npy"), "none.npy: no such file"),
    "data from Python": (train("--out", "new", "--data", "given"), "go on with ade.fit(X, out=..., resume=True)"),
    "evaluate nothing": (["evaluate", "nowhere"], "nowhere is not a directory"),
    "evaluate on other columns": (["evaluate", "{run}", "--data", "three.npy"], "must have 2 columns, got 3"),
    "evaluate on no file": (["evaluate", "{run}", "--data", "none.npy"], "none.npy: no such file"),
    "evaluate bad seed": (["evaluate", "{run}", "--seed", "-1"], "seed must be an integer >= 0, got -1"),
    "sample to nowhere": (["sample", "{run}", "--out", "no/such/s.npy"], " no/such/s.npy: No such file or directory"),
    "sample to a directory": (["sample", "{run}", "--out", "folder.npy"], " folder.npy: Is a directory"),
    "sample too many": (["sample", "{run}", "--n", str(10**30), "--out", "s.npy"], "n must be an integer <= "),
    "sample huge seed": (["sample", "{run}", "--seed", str(2**64), "--out", "s.npy"], "seed must be an integer <= "),
    "huge seed": (train("--out", "new", "--seed", str(2**64)), "seed must be >= 0 and <= 18446744073709551615"),
    "huge batch": (
        train("--out", "new", "--batch-size", str(2**20), "--hidden", "9999,9999"),
        "batch_size must fit into the ",
    ),
    "huge width": (train("--out", "new", "--hidden", "65536,65536,65536"), "hidden must fit into the "),
    "huge test": (train("--out", "new", "--test-samples", "1000000"), "test_samples must fit into the "),
    "huge validation": (train("--out", "new", "--validation-samples", "1000000"), "validation_samples must fit into"),
    "huge rate": (train("--out", "new", "--potential-lr", "1e300"), "potential_lr must be between 1e-20 and 1e+20"),
    "tiny width of q0": (train("--out", "new", "--initial-std", "1e-300"), "initial_std must be between 1e-20"),
    "many threads": (train("--out", "new", "--threads", str(2**40)), "threads must be >= 0 and <= 1024"),
    "400 digits": (train("--out", "new", "--updates", "1" + "0" * 400), "updates must be >= 1 and <= 1000000000"),
    "deep": (train("--out", "new", "--config", "deep.json"), "deep.json is not a configuration: nested too deeply"),
    "twice": (train("--out", "new", "--config", "twice.json"), "it has the key 'seed' twice"),
    "digits": (train("--out", "new", "--config", "digits.json"), "step_size must be between 1e-20 and 1e+20, got inf"),
    "more digits": (train("--out", "new", "--config", "more.json"), "more.json is not valid JSON"),
    "no values there": (train("--out", "new", "--device", "meta"), "device must be a torch device of this machine"),
    "no kernels there": (train("--out", "new", "--device", "privateuseone"), "device must be a torch device of"),
    "unknown q0": (train("--out", "new", "--overwrite", "--initial", "planer"), "did you mean 'planar'"),
    "resume a slip": (train("--out", "new", "--resume"), "new is no directory to be read; check its name"),
    "resume a directory": (train("--out", "odd", "--resume"), "checkpoint.pt: Is a directory; restore a copy"),
    "resume an older version": (train("--out", "older", "--resume"), "has version 1, this ade_fast reads 3"),
    "resume an empty file": (train("--out", "empty", "--resume"), "checkpoint.pt is damaged or not a checkpoint"),
    "sample a directory": (["sample", "odd", "--out", "s.npy"], "checkpoint.pt: Is a directory"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_loses_nothing(mistake, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "text.csv").write_text("a,b\n1,2\n3,x\n")
    tables = {"nan": [[1, 2], [np.nan, 3], [4, 5]], "constant": [[1, 2], [3, 2]], "one": [[1, 2]], "three": [[1, 2, 3]]}
    for name, rows in tables.items():
        np.save(tmp_path / f"{name}.npy", np.array(rows, dtype=float))
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "unknown.json").write_text('{"step": 1}')
    (tmp_path / "typed.json").write_text('{"seed": "5"}')
    (tmp_path / "deep.json").write_text("[" * 200_000)
    (tmp_path / "twice.json").write_text('{"seed": 1, "seed": 2}')
    (tmp_path / "digits.json").write_text('{"step_size": 1' + 400 * "0" + "}")
    (tmp_path / "more.json").write_text('{"updates": 1' + 5000 * "0" + "}")
    for version, name in ((99, "newer"), (1, "older")):
        (tmp_path / name).mkdir()
        torch.save({"format": checkpoint.FORMAT, "version": version, "state": {}}, tmp_path / name / "checkpoint.pt")
    for name in ("folder.npy", "odd/checkpoint.pt", "empty"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "empty" / "checkpoint.pt").touch()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "checkpoint.pt").write_bytes((run / "checkpoint.pt").read_bytes()[:1000])
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    arguments, message = MISTAKES[mistake]
    assert main([a.replace("{run}", str(run)) for a in arguments]) == 1
    assert message in error_of(capsys)
    assert {p.name: p.read_bytes() for p in run.iterdir()} == before
    assert not (tmp_path / "new").exists() and not (tmp_path / "s.npy").exists()


AS_NOBODY = """
import contextlib, io, json, os, sys
from ade_fast.cli import main
from ade_fast.training import Config, Trainer
Trainer(Config()), "".encode("utf-8-sig")  # import what is imported late, from where nobody may read
if os.geteuid() == 0:
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
results = []
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        results.append((main(arguments), said.getvalue()))
print(json.dumps(results))
"""


def test_a_directory_without_permission_is_one_line_that_names_it(run):
    """As a user who may not: root drops its rights in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        for name in ("closed", "locked"):
            shutil.copytree(run, f"{folder}/{name}/run")
        os.chmod(f"{folder}/closed", 0o700 if os.geteuid() == 0 else 0o000)
        os.chmod(f"{folder}/locked", 0o555)
        os.chmod(f"{folder}/locked/run", 0o555)
        closed, locked = f"{folder}/closed", f"{folder}/locked"
        cases = [
            (train("--out", f"{closed}/new"), "Permission denied"),
            (train("--out", closed), "Permission denied"),
            (train("--out", f"{closed}/run", "--resume"), "no directory to be read"),
            (train("--out", locked), f"{locked}/.lock: Permission denied"),
            (train("--out", f"{locked}/new"), f"{locked}/new: Permission denied"),
            (["train", "--out", f"{locked}/run", "--resume", "--no-progress"], "/.lock: Permission denied"),
            (train("--out", f"{locked}/run", "--overwrite"), "/.lock: Permission denied"),
            (["sample", f"{closed}/run", "--out", "/dev/null.npy"], f"{closed}/run is not a directory"),
            (["sample", f"{locked}/run", "--out", f"{locked}/s.npy"], f"{locked}/s.npy: Permission denied"),
        ]
        command = [sys.executable, "-c", AS_NOBODY, json.dumps([arguments for arguments, _ in cases])]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        os.chmod(f"{folder}/closed", 0o700)
        assert done.returncode == 0, done.stderr
        for (arguments, wanted), (code, said) in zip(cases, json.loads(done.stdout), strict=True):
            assert code == 1 and said.count("\n") == 1 and wanted in said and "--resume goes on" not in said, arguments


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_our_letters_will_do(encoding, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["info"]) == 0
    stream.flush()
    assert b"autograd's ?f" in stream.buffer.getvalue()


def test_a_notebooks_pictures_are_not_asked_for(monkeypatch):
    """Before matplotlib reads its environment, which may name what only a notebook has."""
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.delitem(sys.modules, "matplotlib", raising=False)
    assert main(["info"]) == 0 and os.environ["MPLBACKEND"] == "agg"


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(ade.training.CheckpointError):
        main(["sample", str(tmp_path), "--out", "s.npy", "--debug"])


@pytest.mark.parametrize("full", ["checkpoint.pt", "metrics.csv", "figure-0000004.png"])
def test_a_full_disk_is_one_line_and_the_run_goes_on_later(full, tmp_path, monkeypatch, capsys, request):
    """The device fills up in the middle of a run, at each kind of file; afterwards --resume ends as if it had not."""
    if not full.endswith(".png"):
        request.getfixturevalue("no_pictures")
    monkeypatch.setattr(plots, "save_convergence", lambda *a, **k: None)
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


def test_an_interrupt_says_how_to_go_on(run, tmp_path, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ade.training.Trainer, "step", interrupt)
        assert main(train("--out", str(tmp_path / "out"))) == 130
        assert error_of(capsys).endswith("checkpoint.pt is whole, --resume goes on from it\n")
    with monkeypatch.context() as patch:
        patch.setattr(ade.training.Trainer, "validate", interrupt)
        assert main(train("--out", str(tmp_path / "new"))) == 130
        assert error_of(capsys) == "ade-fast train: interrupted\n"  # before there is anything to go on from
        patch.setattr(ade.training.TrainedModel, "sample", interrupt)
        assert main(["sample", str(run), "--out", str(tmp_path / "s.npy")]) == 130
        assert error_of(capsys) == "ade-fast sample: interrupted\n"


def test_ctrl_c_at_a_terminal_is_one_line(tmp_path):
    """The signal itself, twice: the second while the process leaves."""
    out = tmp_path / "out"
    # Tests that run in the background of a shell inherit that SIGINT is ignored.
    start = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    command = [sys.executable, "-c", start + "from ade_fast.cli import main; sys.exit(main())"]
    flags = train("--updates", "1000000", "--log-every", "1", "--checkpoint-every", "10", "--out", str(out))
    child = subprocess.Popen([*command, *flags], stderr=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + 180
        while time.monotonic() < end and not (out / "metrics.csv").exists():
            time.sleep(0.01)
        time.sleep(0.2)
        for _ in range(2):
            child.send_signal(signal.SIGINT)
            time.sleep(0.02)
        _, said = child.communicate(timeout=180)
    finally:
        child.kill()
    assert child.returncode == 130 and said.count("\n") == 1 and "--resume goes on from it" in said
    assert checkpoint.load_checkpoint(out / "checkpoint.pt")["update"] >= 0


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["trane"], "did you mean train?"),
        (["sample", "r", "--out", "s.npy", "--exact", "resampel"], "did you mean resample?"),
        (["train"], "required: --out"),
        (["train", "--out", "x", "--updates", "many"], "--updates: must be an integer, got 'many'"),
        (["train", "--out", "x", "--hidden", "8,x"], "--hidden: must be whole numbers separated by commas, got '8,x'"),
        (["train", "--out", "x", "--grad-clip", "tight"], "--grad-clip: must be a number or none, got 'tight'"),
        (["train", "--out", "x", "--potental-lr", "1"], "--potental-lr; did you mean --potential-lr?"),
        (["train", "--out", "x", "--over"], "unknown argument --over"),  # no abbreviations: it would cost a run
        (["sample", "x", "--n", "1.5", "--out", "s.npy"], "--n: must be an integer, got '1.5'"),
    ],
)
def test_a_malformed_command_line_is_one_line_and_exits_with_2(arguments, wanted, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    said = error_of(capsys)
    assert wanted in said and "--help" in said


def test_a_lack_of_memory_is_one_line(tmp_path, capsys, monkeypatch):
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), KeyError("x")):

        def fail(self, error=error):
            raise error

        monkeypatch.setattr(ade.training.Trainer, "validate", fail)
        if isinstance(error, KeyError):  # ours, not the user's: its traceback is wanted
            with pytest.raises(KeyError):
                main(train("--out", str(tmp_path / "out")))
        else:
            assert main(train("--out", str(tmp_path / "out"))) == 1
            assert "there is not enough memory; lower" in error_of(capsys)
    assert not (tmp_path / "out").exists()


def test_warnings_are_one_line_without_our_source():
    with cli._plain_warnings():
        said = warnings.formatwarning(UserWarning("a clip\nis ignored"), UserWarning, "/our/source.py", 3, "warn(")
    assert said == "ade-fast: a clip is ignored\n"


def test_what_a_killed_sample_left_is_gone_after_the_next(run, tmp_path, capsys):
    left, other = tmp_path / ".s.npy.abc.ade_fast.tmp", tmp_path / ".t.npy.abc.ade_fast.tmp"
    left.touch(), other.touch()
    assert main(["sample", str(run), "--n", "3", "--out", str(tmp_path / "s.npy")]) == 0
    assert not left.exists() and other.exists()
