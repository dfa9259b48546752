"""``ade-fast compare``: from the files that runs leave to a table and a picture. And what else the command line has."""

import json
import math
import sys

import pytest

import ade_fast as ade
from ade_fast import plots
from ade_fast.cli import main
from ade_fast.training import comparison
from ade_fast.training.config import Config, ConfigError

SUMMARY = {"data": "moons", "nll": 2.5, "nll_standard_error": 0.01, "entropy": 2.394, "ess": 0.512, "mmd2": 1.25e-3}
SUMMARY |= {"best_temperature": 0.98, "exact_mmd2": -2e-4, "seconds": 61.4}


def leave(directory, summary=None, **settings):
    """What a finished run leaves, as far as it is compared."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(Config(**settings).to_dict()))
    (directory / "summary.json").write_text(json.dumps(SUMMARY | (summary or {})))
    rows = ["update,seconds,loss,validation_nll,validation_ess,validation_mmd2"]
    rows += ["500,3,1.0,2.9,0.3,0.01", "510,3,1.0,,,", "1000,6,0.9,2.6,0.5,0.002"]
    (directory / "metrics.csv").write_text("\n".join(rows) + "\n")
    return directory


@pytest.fixture
def two(tmp_path):
    none = {"nll": None, "nll_standard_error": None, "ess": None, "best_temperature": None, "exact_mmd2": None}
    return [leave(tmp_path / "one", seed=0), leave(tmp_path / "two", none, seed=1, base_std=None, hidden=(32, 32))]


def test_table(two, capsys):
    assert main(["compare", *map(str, two)]) == 0
    lines = capsys.readouterr().out.splitlines()
    heads = ["run", "data", "NLL,", "nats", "entropy", "ESS,", "%", "best", "c", "MMD²,", "1e-3", "exact", "seconds"]
    assert lines[0].split() == heads
    assert lines[1].split() == ["one", "moons", "2.500", "±", "0.010", "2.394", "51.2", "0.98", "+1.25", "-0.20", "61"]
    assert lines[2].split() == ["two", "moons", "-", "2.394", "-", "-", "+1.25", "-", "61"]
    assert [line.split() for line in lines[4:]] == [
        ["settings", "that", "differ", "one", "two"],
        ["seed", "0", "1"],
        ["hidden", "128,128,128", "32,32"],
        ["base_std", "3.0", "none"],
    ]


def test_settings_that_change_no_result_are_left_out(tmp_path):
    runs = [leave(tmp_path / name, threads=threads) for name, threads in (("a", 1), ("b", 2))]
    assert comparison.table(comparison.read_runs(runs))[-1] == "No setting differs."


def test_different_data_are_named(tmp_path):
    runs = [leave(tmp_path / name, {"data": name}, data=name) for name in ("moons", "circles")]
    assert "NLL and MMD² of different data" in comparison.table(comparison.read_runs(runs))[3]


def test_runs_of_one_name_are_told_apart(tmp_path):
    runs = [leave(tmp_path / name / "run") for name in ("a", "b")]
    assert [run.name for run in comparison.read_runs(runs)] == ["a/run", "b/run"]


def test_picture(two, tmp_path, capsys):
    out = tmp_path / "compare.png"
    assert main(["compare", *map(str, two), "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG") and str(out) in capsys.readouterr().out
    assert main(["compare", str(two[0]), "--out", "compare.jpg"]) == 1
    assert "--out must name a .png file, got compare.jpg" in capsys.readouterr().err


def test_what_the_picture_shows():
    history = [{"update": 1, "nll": 3.0, "ess": 0.1}, {"update": 2, "nll": 2.0, "ess": math.nan}]
    figure = plots.comparison({"a": history, "b": []}, {"a": (2.0, 0.1), "b": (None, None)})
    nll, ess, last = figure.axes
    assert nll.lines[0].get_xydata().tolist() == [[1, 3.0], [2, 2.0]]
    assert ess.lines[0].get_xydata().tolist() == [[1, 0.1]]
    assert last.get_xlabel().startswith("held-out NLL")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    with pytest.raises(ValueError, match="no run has a score to draw"):
        plots.comparison({"a": []}, {"a": (None, None)})
    with pytest.raises(ValueError, match=r"of the same runs, got \['a'\] and \['b'\]"):
        plots.comparison({"a": []}, {"b": (1.0, 0.1)})


def test_what_is_no_finished_run_is_refused(two, tmp_path):
    with pytest.raises(ConfigError, match="one is given twice"):
        comparison.read_runs([two[0], two[1], two[0]])
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere"):
        comparison.read_runs([tmp_path / "nowhere"])
    (two[1] / "summary.json").unlink()
    with pytest.raises(ConfigError, match=r"two has no summary.json: no run of `ade-fast train` is there"):
        comparison.read_runs(two)
    (two[1] / "checkpoint.pt").touch()
    with pytest.raises(ConfigError, match=r"not finished; `ade-fast train --out .*two --resume` goes on"):
        comparison.read_runs(two)
    (two[1] / "summary.json").write_text("{")
    with pytest.raises(ConfigError, match=r"summary\.json is damaged"):
        comparison.read_runs(two)
    (two[0] / "metrics.csv").write_text("update,validation_nll\n1,many\n")
    with pytest.raises(ConfigError, match=r"metrics\.csv is damaged"):
        comparison.read_runs(two[:1])


def test_version(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0 and capsys.readouterr().out == f"ade-fast {ade.__version__}\n"


def test_completion(capsys, monkeypatch):
    pytest.importorskip("shtab")
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert "--potential-lr" in script and "ade_fast_compare" in script and "-F _shtab_ade_fast ade-fast" in script
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 1
    assert "pip install 'ade_fast[completion]'" in capsys.readouterr().err
