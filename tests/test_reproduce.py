"""`ade-fast reproduce`: rows as they end, going on after a kill, reports, and one line for every mistake."""

import dataclasses
import errno
import json
import math
import os
import shutil
import sys
import types
import urllib.error

import pytest
import torch

import ade_fast as ade
from ade_fast.cli import REPRODUCED, main
from ade_fast.data import Standardizer
from ade_fast.reproduce import (
    TARGETS,
    DirectoryError,
    deviations,
    driver,
    images,
    profile,
    reproduce,
    scoring,
    table2,
    table3,
    table5,
)
from ade_fast.reproduce.targets import mean_and_error
from ade_fast.training import Config, Trainer
from ade_fast.training.source import Space

SETTINGS = {
    "hidden": (8, 8),
    "flow_layers": 2,
    "spline_layers": 1,
    "spline_hidden": (8,),
    "batch_size": 32,
    "validation_samples": 64,
    "likelihood_samples": 200,
    "test_likelihood_samples": 200,
    "test_samples": 64,
    "test_permutations": 20,
    "chain_steps": 2,
    "validate_every": 3,
    "checkpoint_every": 2,
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Seconds in place of minutes: few updates, small players, coarse grids."""
    monkeypatch.setattr(table2, "SMALLER", SETTINGS)
    monkeypatch.setitem(table2.UPDATES, "quick", dict.fromkeys(table2.METHODS, 6))
    monkeypatch.setattr(table2, "NULL_PAIRS", 2)
    monkeypatch.setitem(table5.SIZES, "quick", {"epochs": 6, "batches": 2})
    monkeypatch.setattr(scoring, "_NEAR", 41)
    monkeypatch.setattr(scoring, "_FAR", 21)
    monkeypatch.setattr(scoring, "POINTS", 60)
    monkeypatch.setattr("ade_fast.reproduce.trainings.POINTS", 60)
    monkeypatch.setattr("ade_fast.reproduce.trainings._HMC_TRANSITIONS", 2)
    monkeypatch.setattr("ade_fast.reproduce.flow.POINTS", 60)
    monkeypatch.setattr("ade_fast.reproduce.gallery.POINTS", 60)


def made(target: str, out, **options):
    return reproduce(target, out, jobs=1, progress=False, **options)


def rows(out) -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text()) for path in sorted((out / "rows").glob("*.json"))}


def lasting(row: dict) -> dict:
    """Without the clock, and without warnings, of which a process says some once."""
    return {key: value for key, value in row.items() if not key.endswith("seconds") and key != "warnings"}


def without_runs(monkeypatch) -> None:
    def run(*_):
        raise AssertionError("nothing was missing")

    monkeypatch.setattr(driver, "_run", run)


def test_table_2_has_every_method_beside_the_papers_columns(tmp_path, monkeypatch) -> None:
    report = made("table2", tmp_path / "out", only=["moons"], seeds=1)
    text, found = report.read_text(), rows(tmp_path / "out")
    assert len(found) == 1 + len(table2.METHODS)
    assert "Partial" not in text and "41.34" in text and "-1.10" in text
    for method in table2.METHODS:
        (row,) = [row for row in found.values() if row["job"]["name"][1] == method]
        assert math.isfinite(row["mmd2"]) and "diverged" not in row, method
        assert (row.get("nll") is None) is (method == "NF, by (20)")
        assert (row.get("ess") is not None) is (method == table2.OURS)
        assert (row.get("exact_mmd2") is None) is (method in ("NF, by (20)", table2.AS_PAPER))
        if row["job"]["kind"] == "training":
            assert Config.from_dict(row["job"]["arguments"]["settings"]).updates == 6
    assert (tmp_path / "out" / "gallery.png").stat().st_size > 10_000
    without_runs(monkeypatch)
    assert made("table2", tmp_path / "out", only=["moons"], seeds=1).read_text() == text
    assert made("figure2", tmp_path / "out", only=["moons"]).read_text().count("png") == 2


def test_a_partial_table_2_says_how_many_seeds_each_method_has() -> None:
    """Means are of the rows there are, whatever number of seeds was asked for."""
    options = table2.Options(2, "quick", ("moons", "Ring"))
    row = {"mmd2": 1e-3, "nll": 2.0}
    every = {job.file: dict(row) for job in table2.jobs(options)}
    assert not any("so far" in line for line in table2.lines(options, every))
    few = [table2.job("SM", "Ring", 0, "quick"), *(table2.job(table2.OURS, "moons", seed, "quick") for seed in (0, 1))]
    few.append(table2.job(table2.OURS, "Ring", 1, "quick"))
    text = "\n".join(table2.lines(options, {job.file: dict(row) for job in few}))
    assert "SM 0 to 1; NF, by (20) 0; NF, by likelihood 0; CD-15 0; " in text and "ADE 1 to 2." in text


def test_a_killed_call_goes_on_where_it_was(tmp_path, monkeypatch) -> None:
    """Killed between two updates, and again between a training's end and its row."""
    monkeypatch.setattr(table2, "METHODS", {table2.OURS: table2.METHODS[table2.OURS]})
    made("table2", tmp_path / "whole", only=["Ring"], seeds=1)
    steps, kept = Trainer.step, driver.keep

    def until_4(trainer):
        if trainer.update == 4:
            raise KeyboardInterrupt
        return steps(trainer)

    monkeypatch.setattr(Trainer, "step", until_4)
    with pytest.raises(KeyboardInterrupt) as caught:
        made("table2", tmp_path / "part", only=["Ring"], seeds=1)
    assert caught.value.kept is None  # there is no --resume to point to
    assert list(rows(tmp_path / "part")) == ["Ring-null"]
    assert "Partial: 1 of 2" in (tmp_path / "part" / "table2.md").read_text()
    taken = []
    monkeypatch.setattr(Trainer, "step", lambda trainer: taken.append(trainer.update) or steps(trainer))

    def no_room(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "row")

    monkeypatch.setattr(driver, "keep", no_room)
    with pytest.raises(OSError, match="No space left"):
        made("table2", tmp_path / "part", only=["Ring"], seeds=1)
    assert taken == [4, 5]
    monkeypatch.setattr(driver, "keep", kept)
    made("table2", tmp_path / "part", only=["Ring"], seeds=1)
    assert taken == [4, 5]
    for part, entire in zip(rows(tmp_path / "part").values(), rows(tmp_path / "whole").values(), strict=True):
        assert lasting(part) == lasting(entire)


def test_rows_of_other_settings_are_made_again(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(table2, "METHODS", {table2.OURS: table2.METHODS[table2.OURS]})
    made("table2", tmp_path, only=["moons"], seeds=1)
    monkeypatch.setattr(table2, "SMALLER", {**SETTINGS, "hidden": (9,)})
    made("table2", tmp_path, only=["moons"], seeds=1)
    (settings,) = [row["job"]["arguments"]["settings"] for row in rows(tmp_path).values() if "ess" in row]
    assert settings["hidden"] == [9]


def test_a_run_that_diverges_is_a_row_that_says_so(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(table2, "METHODS", {table2.OURS: table2.METHODS[table2.OURS]})

    def diverges(_):
        raise ade.NonFiniteError("ADE: the objective is not finite; lower the rates")

    monkeypatch.setattr(Trainer, "step", diverges)
    text = made("table2", tmp_path, only=["moons"], seeds=1).read_text()
    assert "1 diverged" in text and rows(tmp_path)["moons-ADE-seed_0"]["diverged"] == "ADE: the objective is not finite"


def test_table_5_is_beside_maximum_likelihood_on_the_same_samples(tmp_path) -> None:
    text = made("table5", tmp_path, only=["2"], seeds=2).read_text()
    assert "| 2-D |" in text and "5.67" in text and "| 5-D |" not in text
    found = rows(tmp_path)
    assert len(found) == 8 and all(math.isfinite(row["rmse"]) for row in found.values())
    noise = torch.randn(1000, 2, generator=ade.training.streams.stream(1, "gaussian data"), dtype=torch.float64)
    x = -1 + 0.1 * noise
    wanted = torch.cat([x.mean(0) + 1, (x - x.mean(0)).square().mean(0).sqrt() - 0.1]).square().mean().sqrt()
    assert found["gaussian_2_D-exact-seed_1"]["rmse"] == pytest.approx(wanted.item(), abs=1e-12)


@pytest.mark.parametrize("method", ["SM", "ADE"])
def test_estimates_of_table_5_reach_maximum_likelihood(method, monkeypatch, tmp_path) -> None:
    """They are consistent: after a hundred updates on all samples they are near the exact estimate."""
    monkeypatch.setattr("ade_fast.reproduce.gaussians.LEARNING_RATE", 0.05)
    arguments = {"dim": 2, "seed": 0, "samples": 300, "epochs": 120, "batches": 1}
    exact = driver.KINDS["gaussian"]({**arguments, "method": "exact"}, tmp_path, "")["rmse"]
    found = driver.KINDS["gaussian"]({**arguments, "method": method}, tmp_path, "")["rmse"]
    assert found < 1.3 * exact + 2e-3


@pytest.mark.parametrize("name", ["figure1", "figure5"])
def test_figures_show_samples_and_densities_of_both_settings(name, tmp_path) -> None:
    text = made(name, tmp_path, only=["2spirals"]).read_text()
    assert all((tmp_path / f"{name}{ending}.png").stat().st_size > 10_000 for ending in ("", "-paper"))
    assert text.count("| 2spirals |") == 2 and f"]({name}-paper.png)" in text


FEW_IMAGES = {
    "hidden": (2, 2, 2, 2, 2), "n_steps": 1, "batch_size": 8, "buffer_size": 16, "test_samples": 16, "updates": 2,
    "test_permutations": 10,
}  # fmt: skip


@pytest.mark.parametrize("name", ["figure3", "figure4", "figure6", "figure7"])
def test_figures_of_images_share_a_training(name, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(images, "SMALLER", FEW_IMAGES)
    monkeypatch.setattr(images, "_SAMPLES", 16)
    monkeypatch.setattr(images, "_RUNS", 1)
    report = made(name, tmp_path / "out", only=["digits"])
    (row,) = rows(tmp_path / "out").values()
    assert row["nearest_of_test"] == pytest.approx(1.0, rel=0.2) and "samples" in row["auroc"]
    assert (tmp_path / "out" / f"{name}-digits.png").stat().st_size > 1000
    text = report.read_text()
    assert "--only digits`; 1 runs" in text and "![digits: " in text and "Partial" not in text


class Brightness:
    """In the place of torchmetrics' score: the mean and the number of the images that came."""

    def __init__(self) -> None:
        self.parts: list[torch.Tensor] = []

    def update(self, images: torch.Tensor) -> None:
        assert images.dtype == torch.uint8 and images.shape[1:] == (3, 8, 8)
        self.parts.append(images)

    def compute(self) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.cat(self.parts)
        return images.double().mean() / 255, torch.tensor(len(images))


def test_table3_scores_samples_and_test_images_of_the_figures_run(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(images, "SMALLER", FEW_IMAGES)
    monkeypatch.setattr(images, "_SAMPLES", 16)
    monkeypatch.setattr(table3, "scorer", Brightness)
    monkeypatch.setitem(table3.SAMPLES, "quick", 150)
    monkeypatch.setitem(TARGETS, "table3", dataclasses.replace(table3.TARGET, names=("digits",)))
    text = made("table3", tmp_path / "out").read_text()
    (row,) = rows(tmp_path / "out").values()
    digits = ade.data.digits().images
    assert row["score"][1] == row["score_of_test"][1] == 150
    assert row["score_of_test"][0] == pytest.approx(digits.mean().item(), abs=0.02)
    assert "| **recipe for images**, digits, seed 0 | " in text and "with HMC | 7.55 |" in text.replace(", printed", "")
    assert [path.name for path in (tmp_path / "out" / "runs").iterdir()] == ["digits-images-seed_0"]


def test_table3_without_its_network_is_one_line_before_anything_is_trained(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(TARGETS, "table3", dataclasses.replace(table3.TARGET, names=("digits",)))
    monkeypatch.setitem(sys.modules, "torchmetrics.image.inception", None)
    assert "pip install torchmetrics torch-fidelity" in error_of(capsys, "table3", "--out", str(tmp_path / "out"))

    def offline(splits: int) -> None:
        raise urllib.error.URLError("no route")

    monkeypatch.setitem(sys.modules, "torchmetrics", types.ModuleType("torchmetrics"))
    monkeypatch.setitem(sys.modules, "torchmetrics.image", types.ModuleType("torchmetrics.image"))
    fake = types.ModuleType("torchmetrics.image.inception")
    fake.InceptionScore = offline
    monkeypatch.setitem(sys.modules, "torchmetrics.image.inception", fake)
    assert "could not be fetched" in error_of(capsys, "table3", "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", deviations.CHANGES)
def test_every_deviation_trains_and_differs_from_the_paper(name) -> None:
    settings = deviations.job(name, "moons", 0, "quick").arguments["settings"]
    Trainer(Config.from_dict(settings)).step()
    paper = deviations.job(deviations.BY_TEXT, "moons", 0, "quick").arguments["settings"]
    assert (settings == paper) is (name == deviations.BY_TEXT)


def test_deviations_are_reported_with_the_released_codes_scores(tmp_path, monkeypatch) -> None:
    few = [deviations.BY_TEXT, "no gradient penalty"]
    monkeypatch.setattr(deviations, "CHANGES", {name: deviations.CHANGES[name] for name in few})
    text = made("deviations", tmp_path, only=["pinwheel"]).read_text()
    assert text.count("| pinwheel |") == 3 and (tmp_path / "deviations.png").exists()
    found = rows(tmp_path)["pinwheel-deviation-no_gradient_penalty-seed_0"]
    assert all(math.isfinite(found[key]) for key in ("mmd2", "mmd2_tenth", "validation_mmd2", "nll"))


@pytest.mark.parametrize("name", ["paper", "released"])
def test_profiles_serve_both_the_loop_and_the_constructor(name) -> None:
    found = profile(name)
    config = Config.from_dict({**found.settings, "hidden": (8,), "batch_size": 16})
    trainer = Trainer(config)
    own = ade.ADE(trainer.potential, trainer.sampler, **found.ade)
    for attribute in ("bounds", "gradient_penalty", "sampler_steps", "entropy_weight"):
        assert getattr(own, attribute) == getattr(trainer.ade, attribute), attribute
    for player in ("potential_optimizer", "sampler_optimizer"):
        one, other = getattr(own, player).defaults, getattr(trainer.ade, player).defaults
        assert one == other
    with pytest.raises(ValueError, match="paper, released, got 'print'"):
        profile("print")


def test_grids_find_the_normaliser_the_likelihood_and_samples_of_a_gaussian(monkeypatch) -> None:
    """Against the closed form, with mass beyond the data's range, where the cells are wider."""
    monkeypatch.setattr(scoring, "_NEAR", 201)
    monkeypatch.setattr(scoring, "_FAR", 401)
    space = Space(Standardizer.identity(2), (-1.5, 1.5))
    std = torch.tensor([0.5, 1.5])

    def f(x):
        return -0.5 * (x / std).square().sum(1)

    cells = scoring.grid(f, space, 3.0, bounded=False)
    assert cells.log_z == pytest.approx(math.log(2 * math.pi * 0.75), abs=2e-2)
    drawn = cells.sample(50_000, torch.Generator().manual_seed(0))
    assert torch.allclose(drawn.std(0), std, rtol=0.02) and drawn.mean(0).abs().max() < 0.03
    inside = scoring.grid(f, space, 3.0, bounded=True)
    mass = math.erf(1.5 / 0.5 / 2**0.5) * math.erf(1 / 2**0.5)
    assert inside.log_z == pytest.approx(math.log(2 * math.pi * 0.75 * mass), abs=1e-4)
    found = scoring.nll(f, space, inside, "Uniform", 0)
    points = ade.data.toy("Uniform").sample(20_000, ade.training.streams.stream(0, "reproduce likelihood")).double()
    wanted = inside.log_z + 0.5 * (points / std.double()).square().sum(1).mean()
    assert found["nll"] == pytest.approx(wanted.item(), abs=1e-5)


def test_true_draws_are_within_the_null_of_true_draws() -> None:
    null = scoring.null_row({"data": "moons", "pairs": 20}, None, "")
    raw = ade.data.toy("moons").sample(scoring.POINTS, torch.Generator().manual_seed(3))
    found = scoring.compare("moons", 0, raw)
    assert abs(found["mmd2"] - null["mean"]) < 4 * null["std"] and found["p_value"] > 0.01
    assert scoring.compare("moons", 0, raw + 3)["mmd2"] > 20 * null["std"]


def test_cells_of_the_report() -> None:
    assert mean_and_error([], "+.2f") == "-"
    assert mean_and_error([1e-3], "+.2f", 1e3) == "+1.00"
    assert mean_and_error([1.0, 3.0], "+.1f") == "+2.0 ± 1.0"


def test_runs_side_by_side(tmp_path) -> None:
    """In processes of their own; the rows are those of one process."""
    reproduce("table5", tmp_path / "two", only=["2"], seeds=1, jobs=2, progress=False)
    made("table5", tmp_path / "one", only=["2"], seeds=1)
    pairs = zip(rows(tmp_path / "two").values(), rows(tmp_path / "one").values(), strict=True)
    assert all(lasting(two) == lasting(one) for two, one in pairs)


# ------------------------------------------------------------------------------------------------- what goes wrong


def error_of(capsys, *arguments: str, code: int = 1) -> str:
    try:
        assert main(["reproduce", *arguments]) == code
    except SystemExit as left:
        assert left.code == code
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith("ade-fast reproduce")
    return captured.err


def test_the_command_names_every_target() -> None:
    assert tuple(TARGETS) == REPRODUCED


@pytest.mark.parametrize(
    "arguments, code, said",
    [
        (["table4", "--out", "x"], 2, "invalid choice"),
        (["table3", "--out", "{}"], 1, "the published files of cifar10 are in none of"),
        (["figure3", "--out", "{}"], 1, "the published files of cifar10 are in none of"),
        (["table2", "--out", "x", "--budget", "huge"], 2, "quick"),
        (["table2"], 2, "--out"),
        (["table2", "--out", "{}", "--only", "moon"], 1, "only must be of 2spirals"),
        (["table5", "--out", "{}", "--only", "3"], 1, "only must be of 2, 5, 10, got '3'"),
        (["table5", "--out", "{}", "--seeds", "0"], 1, "seeds must be an integer >= 1, got 0"),
        (["table5", "--out", "{}", "--jobs", "-1"], 1, "jobs must be an integer >= 1, got -1"),
    ],
)
def test_wrong_names_and_numbers_are_one_line(arguments, code, said, tmp_path, capsys) -> None:
    out = str(tmp_path / "out")
    assert said in error_of(capsys, *(out if a == "{}" else a for a in arguments), code=code)
    assert not (tmp_path / "out").exists()


def test_directories_that_are_not_ours_are_left_alone(tmp_path, capsys) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    assert "is a file" in error_of(capsys, "table5", "--out", str(file))
    assert "holds files" in error_of(capsys, "table5", "--out", str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and file.read_text() == "mine"


def test_a_damaged_directory_is_one_line_that_says_what_to_do(tmp_path, capsys) -> None:
    quiet = ["--only", "2", "--seeds", "1", "--jobs", "1", "--no-progress", "--out", str(tmp_path)]
    made("table5", tmp_path, only=["2"], seeds=1)
    row = tmp_path / "rows" / "gaussian_2_D-SM-seed_0.json"
    whole = row.read_bytes()
    row.write_bytes(whole[:40])
    assert f"{row} is damaged; delete it" in error_of(capsys, "table5", *quiet)
    row.write_bytes(whole)
    (tmp_path / "table5.md").unlink()
    (tmp_path / "table5.md").mkdir()
    assert f"{tmp_path / 'table5.md'}: Is a directory" in error_of(capsys, "table5", *quiet)
    (tmp_path / "table5.md").rmdir()
    shutil.rmtree(tmp_path / "rows")
    (tmp_path / "rows").write_text("")
    assert "rows" in error_of(capsys, "table5", *quiet)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_no_room_and_no_permission_are_one_line(number, tmp_path, monkeypatch, capsys) -> None:
    def fails(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.fsync", fails)
    out = tmp_path / "out"
    said = error_of(capsys, "table5", "--out", str(out), "--only", "2", "--seeds", "1", "--jobs", "1")
    assert said.strip().endswith(os.strerror(number)) and str(out) in said
    assert [path for path in out.rglob("*") if path.is_file() and path.name != ".lock"] == []


def test_progress_is_a_line_a_run_with_the_time_left(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(driver, "_run", lambda job, directory: {"seconds": 1.0, "cpu_seconds": 1.0, "commit": "c0ffee"})
    reproduce("table5", tmp_path, only=["2"], seeds=1, jobs=1)
    head, *lines = capsys.readouterr().err.splitlines()
    assert head == "ade-fast reproduce: 4 of 4 runs to make, 1 side by side"
    assert len(lines) == 4 and lines[0] == "ade-fast reproduce: 1 of 4 runs; gaussian 2-D, exact, seed 0: 1 s"
    assert lines[-1].startswith("ade-fast reproduce: 4 of 4 runs, about 0 s left; gaussian 2-D, ADE")


def test_two_calls_in_one_directory_do_not_mix(tmp_path) -> None:
    from ade_fast.training.files import BusyError, locked

    with locked(tmp_path), pytest.raises(BusyError):
        made("table5", tmp_path, only=["2"], seeds=1)


def test_a_file_in_the_place_of_the_directory_is_refused_from_python(tmp_path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(DirectoryError, match="must be a directory"):
        made("table5", tmp_path / "x")
