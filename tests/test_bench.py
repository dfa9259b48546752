"""The benchmarks run, say what they could not measure, and the documents quote the results files. No timing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / "bench"

# Runs dynamics.py where jax cannot be imported, installed or not, and with a peer whose step size is 1 % off.
SCRIPT = """
import dataclasses, runpy, sys
sys.modules["jax"] = None
sys.path.insert(0, sys.argv.pop(1))
import peers
right = peers.PEERS["eager-2t"]
def wrong(problem, settings):
    step_size = (1.01 * problem.step_size).detach().requires_grad_()
    return right(dataclasses.replace(problem, step_size=step_size), settings)
peers.PEERS["eager-2t"] = wrong
runpy.run_path(sys.path[0] + "/dynamics.py", run_name="__main__")
"""


def report(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, BENCH / "report.py", *arguments]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results file of the smallest case, without the peers that compile."""
    file = tmp_path_factory.mktemp("results") / "dynamics-here.json"
    options = "--quick --threads 1 --cases mlp-relu-* --peers eager-2t,eager-t1,jax,ade-auto,ade-states --out"
    command = [sys.executable, "-c", SCRIPT, str(BENCH), *options.split(), str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "| `mlp-relu-B100-T10` | wrong |" in done.stdout
    return file


def test_quick_run_checks_and_measures_every_peer(results: Path) -> None:
    written = json.loads(results.read_text())
    (case,) = written["cases"]
    assert case["case"] == "mlp-relu-B100-T10"
    assert written["command"].startswith("python bench/dynamics.py --quick")
    assert {"cpu", "cores", "isa", "threads"} <= written["machine"].keys() and written["versions"]["torch"]
    for name in ("eager-t1", "ade-auto", "ade-states"):
        peer = case["peers"][name]
        assert "skipped" not in peer and peer["error"] <= 1e-4
        assert peer["ms"] > 0 and len(peer["ms_all"]) == 2 and peer["peak_bytes"] >= 0


def test_what_is_not_measured_says_why(results: Path) -> None:
    """A peer that is absent, and one that computes something else: a reason, and no time."""
    peers = json.loads(results.read_text())["cases"][0]["peers"]
    assert peers["jax"] == {"skipped": "jax is not installed"}
    assert peers["eager-2t"]["skipped"].startswith("wrong: relative error")
    assert "ms" not in peers["eager-2t"]


def test_kept_bytes_are_counted_exactly(results: Path) -> None:
    """memory="states" keeps x_t and v_t, 2T + 1 states in the fused kernels, and T + 1 kick and T drift steps. Eager
    keeps at least the three hidden layers of each of its evaluations."""
    (case,) = json.loads(results.read_text())["cases"]
    n_steps, state = case["n_steps"], 4 * 2 * case["batch"]
    steps = 4 * 2 * (2 * n_steps + 1)
    kept = {name: peer.get("kept_bytes") for name, peer in case["peers"].items()}
    assert 2 * n_steps * state <= kept["ade-states"] <= (2 * n_steps + 4) * state + 4 * steps
    assert kept["eager-t1"] >= (n_steps + 1) * 3 * 128 * 4 * case["batch"]


def test_report_rewrites_blocks_and_notices_edits(results: Path, tmp_path: Path) -> None:
    document = tmp_path / "README.md"
    document.write_text("before\n<!-- bench:dynamics -->\nold\n<!-- /bench -->\nafter\n")
    options = ("--results", results.parent, document)
    assert report("--check", *options).returncode == 1
    assert report(*options).returncode == 0
    text = document.read_text()
    assert text.startswith("before\n<!-- bench:dynamics -->\n| forward + backward, ms |")
    assert text.endswith("\n<!-- /bench -->\nafter\n") and "old" not in text
    assert report("--check", *options).returncode == 0
    document.write_text(text.replace("`mlp-relu-B100-T10` | ", "`mlp-relu-B100-T10` | 9"))
    stale = report("--check", *options)
    assert stale.returncode == 1 and "out of date" in stale.stderr


def test_documents_quote_the_committed_results() -> None:
    checked = report("--check")
    assert checked.returncode == 0, checked.stderr
