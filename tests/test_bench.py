"""The benchmarks run, say what they could not measure, and the documents quote the results files. No timing."""

import argparse
import dataclasses
import importlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import ade_fast as ade

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / "bench"

# Runs a benchmark where jax cannot be imported, installed or not, and with a peer whose step size is 1 % off.
SCRIPT = """
import dataclasses, runpy, sys
sys.modules["jax"] = None
sys.path.insert(0, sys.argv.pop(1))
import peers
def off(make):
    def wrong(problem, settings):
        step_size = (1.01 * problem.step_size).detach().requires_grad_()
        return make(dataclasses.replace(problem, step_size=step_size), settings)
    return wrong
for makers in (peers.PEERS, peers.SAMPLERS):
    makers["eager-2t"] = off(makers["eager-2t"])
runpy.run_path(sys.path[0] + "/" + sys.argv.pop(1), run_name="__main__")
"""


def run_benchmark(script: str, options: str, out: Path) -> str:
    """What a short run prints; its results are in `out`."""
    command = [sys.executable, "-c", SCRIPT, str(BENCH), script, *options.split(), "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Imports a module of bench/, which is no package, for one test."""
    monkeypatch.syspath_prepend(str(BENCH))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(BENCH) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def report(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, BENCH / "report.py", *arguments]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results file of the smallest case, without the peers that compile."""
    file = tmp_path_factory.mktemp("results") / "dynamics-here.json"
    options = "--quick --threads 1 --cases mlp-relu-* --peers eager-2t,eager-t1,jax,ade-auto,ade-states"
    assert "| `mlp-relu-B100-T10` | wrong |" in run_benchmark("dynamics.py", options, file)
    return file


@pytest.fixture(scope="module")
def mlp_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results file of bench/mlp.py's smallest case, without the peers that compile."""
    file = tmp_path_factory.mktemp("mlp") / "mlp-here.json"
    options = "--quick --threads 1 --device cpu --cases mlp-relu-* --peers eager-2t,eager-t1,cuda-graph,jax,ade-auto"
    assert run_benchmark("mlp.py", options, file).count("| `mlp-relu-B100-T10-d2` | wrong |") == 2
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


# --- bench/mlp.py


def test_mlp_run_measures_both_passes(mlp_results: Path) -> None:
    written = json.loads(mlp_results.read_text())
    assert written["command"].startswith("python bench/mlp.py --quick")
    assert {"cpu", "cores", "isa", "threads"} <= written["machine"].keys() and written["versions"]["torch"]
    (case,) = written["cases"]
    assert (case["case"], case["batch"], case["n_steps"], case["dim"]) == ("mlp-relu-B100-T10-d2", 100, 10, 2)
    assert list(case["passes"]) == ["forward", "forward+backward"]
    for measured in case["passes"].values():
        assert measured["matmul_gflops"] > 0 and measured["products"] == 1
        for name in ("eager-t1", "ade-auto"):
            peer = measured["peers"][name]
            assert "skipped" not in peer and peer["ms"] > 0 and len(peer["ms_all"]) == 2
        ours = measured["peers"]["ade-auto"]
        assert ours["error_over_eager"] <= 2 and ours["field"] == "mlp"
        assert measured["peers"]["jax"] == {"skipped": "jax is not installed"}
        assert measured["peers"]["cuda-graph"] == {"skipped": "CUDA graphs need a CUDA device"}
        assert measured["peers"]["eager-2t"]["skipped"].startswith("wrong: relative error")


def test_mlp_tables_say_what_the_results_say(mlp_results: Path, bench: Callable[[str], ModuleType]) -> None:
    tables = bench("mlp_tables")
    written = json.loads(mlp_results.read_text())
    measured = written["cases"][0]["passes"]["forward+backward"]
    measured.update(gflop=0.5, products=3, matmul_gflops=300.0)
    measured["peers"]["eager-t1"]["ms"], measured["peers"]["ade-auto"]["ms"] = 30.0, 10.0
    assert tables.gflops(measured, "ade-auto") == pytest.approx(50.0)
    assert tables.fraction(measured, "ade-auto") == pytest.approx(0.5)
    (row,) = (line for line in tables.summary(written).splitlines() if line.startswith("| `mlp-relu"))
    assert row == "| `mlp-relu-B100-T10-d2` | 10 | 3.00× | 50 % |"  # peers without a time have no column
    text = tables.full(written)
    assert "- everywhere, CUDA graph: CUDA graphs need a CUDA device" in text
    assert "- everywhere, JAX jit + scan: jax is not installed" in text
    assert "without its MLP kernels" not in text
    measured["peers"]["ade-auto"]["field"] = "autograd"
    assert "on autograd's gradients: `mlp-relu-B100-T10-d2`, forward + backward" in tables.full(written)


def test_mlp_blocks_are_filled_and_may_be_empty(mlp_results: Path, results: Path, tmp_path: Path) -> None:
    document = tmp_path / "README.md"
    document.write_text("<!-- bench:mlp -->\n<!-- /bench -->\n<!-- bench:mlp-full -->\n<!-- /bench -->\n")
    assert report("--results", mlp_results.parent, document).returncode == 0
    assert "of the matrix rate" in document.read_text() and "nominal GFLOP/s" in document.read_text()
    assert report("--results", results.parent, document).returncode == 0  # results, but none of this benchmark
    assert document.read_text().count("No results in `bench/results/` yet") == 2
    nothing = report("--results", tmp_path / "none", document)
    assert nothing.returncode != 0 and "FileNotFoundError" in nothing.stderr


class PlainMLP:
    """An `ade.MLPPotential` without modules, whose hooks FlopCounterMode cannot place."""

    def __init__(self, potential: ade.MLPPotential) -> None:
        self._linears = [(linear.weight, linear.bias) for linear in potential.linears]
        self._activation = potential.layers[1].forward

    def parameters(self) -> list[Tensor]:
        return [tensor for linear in self._linears for tensor in linear]

    def __call__(self, x: Tensor) -> Tensor:
        for weight, bias in self._linears[:-1]:
            x = self._activation(torch.nn.functional.linear(x, weight, bias))
        return torch.nn.functional.linear(x, *self._linears[-1])[:, 0]


@pytest.mark.parametrize("dim", [2, 32])
@pytest.mark.parametrize("activation", ["relu", "silu", "softplus"])
def test_nominal_flop_are_those_of_eager(activation: str, dim: int, bench: Callable[[str], ModuleType]) -> None:
    """Forward they are eager's, operation by operation. Backward a smooth f's count ∇f again, which eager has kept; its
    own are the rest, but for products with the one output's weights. (A piecewise-linear f's count no second
    derivatives, where eager multiplies zeros.)"""
    mlp, peers = bench("mlp"), bench("peers")
    case = mlp.Case(activation, batch=8, n_steps=3, dim=dim)
    problem = mlp.make_problem(case, torch.device("cpu"))
    problem = dataclasses.replace(problem, potential=PlainMLP(problem.potential))
    nominal, counted = mlp.nominal_flop(case), {}
    for which, makers in mlp.PASSES.items():
        peer = makers["eager-t1"](problem, peers.Settings(0.0))
        with FlopCounterMode(display=False) as counter:
            peer.run()
        counted[which] = counter.get_total_flops()
    gradients = 8 * 4
    assert nominal["forward"] == counted["forward"] == gradients * 4 * (dim * 128 + 2 * 128 * 128 + 128)
    backward = {which: flop["forward+backward"] - flop["forward"] for which, flop in (("n", nominal), ("c", counted))}
    again = nominal["forward"] if activation != "relu" else 0
    assert backward["n"] - again - backward["c"] == gradients * 3 * 2 * 128
    assert backward["n"] == nominal["forward"] * (2 if activation == "relu" else 3)


def test_relu_inputs_keep_clear_of_kinks(bench: Callable[[str], ModuleType]) -> None:
    """With a margin that few samples keep, those that stay are found, and there are as many as asked for."""
    mlp, exact = bench("mlp"), bench("exact")
    case = mlp.Case("relu", batch=300, n_steps=3)
    problem = mlp.make_problem(case, torch.device("cpu"))
    assert problem.x0.shape == (300, 2) and problem.x0.requires_grad and problem.v0.requires_grad
    assert exact.clear_of_kinks(problem, mlp.MARGIN).all()
    kept = int(exact.clear_of_kinks(problem, 1e-4).sum())
    assert 0 < kept < 300
    mlp.MARGIN = 1e-4
    problem = mlp.make_problem(case, torch.device("cpu"))
    assert len(problem.x0) == 300 and exact.clear_of_kinks(problem, 1e-4).all()


def test_exact_results_do_not_depend_on_the_slices(
    bench: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    mlp, exact = bench("mlp"), bench("exact")
    problem = mlp.make_problem(mlp.Case("silu", batch=10, n_steps=3), torch.device("cpu"))
    whole = exact.expected(problem)
    monkeypatch.setitem(exact._ROW_STEPS, "cpu", 9)
    for one, other in zip(exact.expected(problem), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert len(exact.errors(whole, whole)) == 6 and len(exact.errors(whole[:2], whole)) == 2


def test_what_does_not_fit_is_skipped_with_the_reason(
    bench: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    mlp, peers, common = bench("mlp"), bench("peers"), bench("common")
    cpu = torch.device("cpu")
    small, large = mlp.Case("silu", batch=100), mlp.Case("silu", batch=65536, n_steps=100)
    kept = mlp.kept_by_eager(small, cpu)
    assert 3 * 4 * sum(mlp.HIDDEN) < kept < 20 * 4 * sum(mlp.HIDDEN)  # every unit a few times
    whole = "forward+backward"
    assert mlp.needed_bytes("eager-t1", whole, large, kept) > 50e9 > mlp.needed_bytes("ade-auto", whole, large, kept)
    monkeypatch.setattr(common, "available_bytes", lambda device: int(10e6))
    problem = mlp.make_problem(small, cpu)
    makers = {n: mlp.fitting(n, whole, small, kept, peers.PEERS[n]) for n in ("eager-t1", "ade-auto")}
    ready, entries = peers.build(makers, problem, peers.Settings(1.0), lambda name, outputs: ({}, None))
    assert list(ready) == ["ade-auto"]
    assert re.fullmatch(r"needs about 0\.\d GB, and 0\.0 GB are free", entries["eager-t1"]["skipped"])


def test_ade_fast_may_not_round_worse_than_eager(bench: Callable[[str], ModuleType]) -> None:
    mlp = bench("mlp")
    case, cpu = mlp.Case("silu", batch=10), torch.device("cpu")
    right = [torch.full((10, 2), 1.0, dtype=torch.float64)] * 2
    eager = [t + 1e-7 for t in right]
    judge = mlp.judge_of(case, cpu, right, eager)
    assert judge("ade-auto", [t + 1.9e-7 for t in right])[1] is None
    worse = [t + 3e-7 for t in right]
    assert judge("ade-auto", worse)[1] == "wrong: 3.0 times eager T+1's error, allowed 2"
    assert judge("jax", worse) == ({"error": 3e-7, "error_over_eager": 3.0}, None)
    assert judge("jax", [t + 1e-3 for t in right])[1] == "wrong: relative error 1.0e-03, allowed 1e-04"


def test_what_there_is_no_time_for_is_named(tmp_path: Path, bench: Callable[[str], ModuleType]) -> None:
    file = tmp_path / "mlp-here.json"
    command = [
        sys.executable,
        str(BENCH / "mlp.py"),
        "--quick",
        "--threads",
        "1",
        "--device",
        "cpu",
        "--stop-after",
        "0",
    ]
    command += ["--peers", "ade-auto", "--passes", "forward", "--out", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 124, done.stderr
    assert "Out of time, not begun: `mlp-relu-B100-T10-d2`, `mlp-silu-B100-T10-d2`" in done.stdout
    assert not file.exists()


def test_one_pass_alone_has_tables(mlp_results: Path, bench: Callable[[str], ModuleType]) -> None:
    tables, written = bench("mlp_tables"), json.loads(mlp_results.read_text())
    del written["cases"][0]["passes"]["forward"]
    text = tables.full(written)
    assert "forward alone, ms" not in text and "forward + backward, ms" in text
    written["left_out"] = ["another"]
    assert "Out of time, not begun: `another`" in tables.full(written)


def test_every_selection_is_part_of_the_full_grid(bench: Callable[[str], ModuleType]) -> None:
    mlp = bench("mlp")
    assert set(mlp.SELECTION["cpu"]) <= set(mlp.full_grid("cpu"))
    assert set(mlp.SELECTION["cuda"]) <= set(mlp.full_grid("cuda"))
    for activation in ("relu", "silu"):
        for precision in mlp.PRODUCTS:
            assert mlp.Case(activation, 1000, 100, precision=precision) in mlp.SELECTION["cuda"]
    assert len(mlp.full_grid("cpu")) == 3 * 4 * 2 * 2 and len(mlp.full_grid("cuda")) == 3 * 3 * 4 * 2 * 2
    names = [case.name for case in mlp.full_grid("cuda")]
    assert len(set(names)) == len(names)


# --- bench/update.py


def test_update_run_checks_and_measures_every_peer(tmp_path: Path, bench: Callable[[str], ModuleType]) -> None:
    file = tmp_path / "update-here.json"
    printed = run_benchmark("update.py", "--quick --threads 1 --peers eager-t1,jax,ade-auto", file)
    written = json.loads(file.read_text())
    (case,) = written["cases"]
    assert case["case"] == "update-relu-B100-T5-penalty"
    for name in ("eager-t1", "ade-auto"):
        peer = case["peers"][name]
        assert "skipped" not in peer and peer["error"] <= 1e-4 and peer["ms"] > 0 and len(peer["ms_all"]) == 2
    assert case["peers"]["ade-auto"]["field"] == "mlp"
    assert case["peers"]["jax"] == {"skipped": "jax is not installed"}
    assert list(case["parts"]) == ["unroll", "q0", "values", "values, penalty", "metrics", "optimizers"]
    assert all(ms > 0 for ms in case["parts"].values())
    assert bench("report").block("update", tmp_path) in printed


def test_update_by_itself_in_processes(tmp_path: Path) -> None:
    file = tmp_path / "update-here.json"
    printed = run_benchmark("update.py", "--quick --threads 1 --apart 2 --peers ade-auto", file)
    (case,) = json.loads(file.read_text())["cases"]
    peer = case["peers"]["ade-auto"]
    assert case["processes"] == len(peer["ms_all"]) == 2 and peer["ms"] == pytest.approx(
        sum(peer["ms_all"]) / 2, abs=1e-3
    )
    assert "median of 2 processes (least-most)" in printed and "parts" not in case


LOSSES = {
    "elbo": {},
    "penalty": {"gradient_penalty": 0.01},
    "importance-base": {"bound": "importance", "base_std": 3.0},
    "clips": {"clip": 0.05, "gradient_penalty": 0.01},
}


PEERS_OF_TORCH = [(peer, loss) for peer in ("eager-t1", "functional", "ade-auto") for loss in LOSSES]


@pytest.mark.parametrize(("peer", "loss"), [*PEERS_OF_TORCH, ("jax", "importance-base"), ("jax", "clips")])
def test_update_peers_compute_the_update(peer: str, loss: str, bench: Callable[[str], ModuleType]) -> None:
    """With more samples than the initial ones that a metric is of, and (last) with clips that act everywhere.
    "functional" is what torch.compile is given."""
    exact, peers, update_peers = bench("update_exact"), bench("peers"), bench("update_peers")
    problem = bench("players").make_problem("silu", 300, 3, torch.device("cpu"), **LOSSES[loss])
    if peer == "jax":
        pytest.importorskip("jax")
        pytest.importorskip("optax")
        problem = dataclasses.replace(problem, initial=ade.initial.PlanarFlow(2, 1))  # each layer takes long to compile
    if peer == "functional":
        players = update_peers.PlainPlayers(problem, update_peers.by_func)
        made = update_peers.torch_peer(players, players.loss)
    else:
        made = update_peers.PEERS[peer](problem, peers.Settings(180.0))
    error, of_moves = exact.errors(made.outputs(made.trial()), exact.expected(problem), problem)
    assert error <= 1e-5 and of_moves <= 0.02
    assert len(made.run()) == len(problem.metrics)


@pytest.mark.parametrize("wrong", ["step size", "penalty", "clip", "base", "direction"])
def test_updates_that_are_wrong_are_seen(wrong: str, bench: Callable[[str], ModuleType]) -> None:
    update, peers, update_peers = bench("update"), bench("peers"), bench("update_peers")
    loss = "importance-base" if wrong == "base" else "penalty"
    case = update.Case("relu", 100, loss)
    problem = dataclasses.replace(case.problem(torch.device("cpu")), clip=0.05 if wrong == "clip" else 10.0)
    changes = {
        "step size": {"step_size": 1.01 * problem.step_size},
        "penalty": {"gradient_penalty": 1.01 * problem.gradient_penalty},
        "clip": {"clip": 10.0},
        "base": {"base_std": 3.03},
    }

    def make(problem, settings):
        if wrong != "direction":
            return update_peers.eager(dataclasses.replace(problem, **changes[wrong]), settings)
        players = update_peers.PlainPlayers(problem, update_peers.by_autograd)
        players.optimizers[0].param_groups[0]["maximize"] = False
        return update_peers.torch_peer(players, players.loss)

    makers = {"wrong": make, "right": update_peers.eager}
    ready, entries = peers.build(makers, problem, peers.Settings(1.0), update.judge_of(case, problem))
    assert list(ready) == ["right"]
    what = "parameters moved otherwise" if wrong == "direction" else "relative error"
    assert entries["wrong"]["skipped"].startswith(f"wrong: {what}")


def test_update_tables_say_where_the_time_goes(bench: Callable[[str], ModuleType]) -> None:
    found = {"unroll": 4.0, "q0": 0.5, "values": 1.0, "values, penalty": 1.75, "metrics": 0.25, "optimizers": 0.125}
    results = bench("common").described_run("update", torch.device("cpu"), 1)
    peers = {"eager-t1": {"ms": 20.0, "error": 1e-6}, "jax": {"skipped": "no jax"}, "ade-auto": {"ms": 8.0, "error": 0}}
    results |= {"settings": {"runs": 3}, "cases": [{"case": "one", "peers": peers, "parts": found}]}
    text = bench("update_tables").show(results)
    assert "| `one` | 20 | - | 8 | 2.50× | - |" in text
    assert "| `one` | 8 | 2.00× | 4 | 0.5 | 1 | 0.75 | 0.25 | 0.125 | 1.38 |" in text
    assert "- everywhere, JAX jit + scan: no jax" in text
    del found["values, penalty"]
    assert "| 1 | - | 0.25 | 0.125 | 2.12 |" in bench("update_tables").show(results)


# --- bench/samplers.py


def test_comparing_is_timed_within_the_iteration(bench: Callable[[str], ModuleType]) -> None:
    from ade_fast.fields import Checksum

    module, add = bench("checksum"), Checksum.add
    for case in (module.QUICK[0], dataclasses.replace(module.QUICK[0], of="relu", memory="graph")):
        row = module.measure(case, argparse.Namespace(runs=2, warmups=0))
        assert 0 < row["share"] <= row["most"] < 1, "smooth: a checksum; piecewise linear: a tangent's agreement"
    kept = module.measure(dataclasses.replace(module.QUICK[0], memory="graph"), argparse.Namespace(runs=1, warmups=0))
    assert kept["share"] == 0, "nothing is evaluated again"
    assert Checksum.add is add


def test_known_potentials_of_the_samplers_have_the_log_z_they_are_said_to(bench: Callable[[str], ModuleType]) -> None:
    samplers = bench("samplers")
    x = ade.data.toy("8gaussians").sample(500, torch.Generator().manual_seed(0))
    target = samplers.mixture(samplers.QUICK)
    expected = ade.data.toy("8gaussians").log_prob(x.double()) + target.log_z
    torch.testing.assert_close(target.potential.double()(x.double()), expected, rtol=0, atol=1e-5)
    assert abs(samplers.grid_log_z(samplers.EightGaussians()) - target.log_z) < 1e-5


def test_a_sampler_of_no_steps_has_its_starts_weights(bench: Callable[[str], ModuleType]) -> None:
    samplers = bench("samplers")
    potential = ade.GaussianPotential(2)
    sampler = samplers.Case("mlp", "fixed", "none", 0, 0).make()
    assert not list(sampler.parameters())
    found = ade.metrics.log_z(potential, sampler, 1000, generator=torch.Generator().manual_seed(0))
    drawn = sampler.sample(potential, 1000, generator=torch.Generator().manual_seed(0))
    normal = torch.distributions.Normal(0.0, samplers.STD)
    log_w = potential(drawn.x).double() - normal.log_prob(drawn.x).sum(1).double()
    assert found.ess == pytest.approx(ade.weights.effective_sample_size(log_w).item(), rel=1e-4)


def test_samplers_run_goes_on_where_it_ended(
    tmp_path: Path, bench: Callable[[str], ModuleType], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    samplers, tables = bench("samplers"), bench("sampler_tables")
    monkeypatch.setattr(samplers, "GRID", 21)
    file = tmp_path / "samplers-here.json"
    samplers.main(["--quick", "--rows", "*/learned/*/T[02]/seed0", "--out", str(file)])
    first = json.loads(file.read_text())["cases"]
    assert len(first) == len(samplers.TARGETS) * len(samplers.SAMPLERS) and not any("diverged" in r for r in first)
    for row in first:
        assert all(0 < ess <= 1 for ess in row["ess"]) and row["initial_std"] != [samplers.STD] * 2
        assert row["sampler"] == "none" or row["step_size"] not in ([pytest.approx(0.1)] * 2, [pytest.approx(0.3)] * 2)
    capsys.readouterr()
    samplers.main(["--quick", "--rows", "mlp/*/none/T0/seed0", "--out", str(file)])
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()[:-1]] == ["mlp/fixed/none/T0/seed0"]
    written = json.loads(file.read_text())
    assert [row for row in written["cases"] if row["initial"] == "learned"] == first
    head, _, *rows = tables.summary(written).split("\n\n")[0].splitlines()
    assert head == "| f; q⁰; sampler | q⁰ alone | T = 2 | log Z, worst error in its s.e. |" and len(rows) == 8
    alone, annealed = (
        next(row["ess"] for row in first if row["case"] == f"mlp/learned/{name}/seed0")
        for name in ("none/T0", "annealed/T2")
    )
    cells = [" / ".join(dict.fromkeys((f"{sum(ess) / 2:.2f}", f"{min(ess):.2f}"))) for ess in (alone, annealed)]
    assert any(row.startswith(f"| MLP; learned; **annealed leapfrog** | {cells[0]} | {cells[1]} |") for row in rows)
    with pytest.raises(SystemExit):
        samplers.main(["--quick"])
    assert "--quick measures nothing" in capsys.readouterr().err


def test_a_sampler_that_diverges_is_a_row_with_the_reason(bench: Callable[[str], ModuleType]) -> None:
    samplers, tables = bench("samplers"), bench("sampler_tables")

    class Broken(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.square().sum(1) * float("nan")

    case = samplers.Case("mlp", "learned", "annealed", 2, 0)
    row = samplers.run(case, samplers.Target(Broken(), 0.0), samplers.QUICK)
    assert row["diverged"].startswith("step 0: bound nan") and "ess" not in row
    assert (
        tables._ess([row, {"ess": [0.25, 0.5, 0.1]}]) == "0.25 / 0.10 (1 diverged)"
        and tables._ess([row]) == "- (1 diverged)"
    )


# --- bench/gpu.sh

# Stands for python and for compute-sanitizer: notes how it is called, and fails where the test says so.
FAKE = """#!/bin/bash
echo "$(basename "$0") $*" >>"$CALLS"
case "$*" in
  *gpu_name.py) echo some-gpu ;;
  *"$FAILS"*) exit 3 ;;
esac
"""


@pytest.fixture
def gpu_script(tmp_path: Path) -> Callable[..., tuple[subprocess.CompletedProcess, list[list[str]]]]:
    """Runs a copy of gpu.sh with fakes for its programs; gives back how it ended and the calls it made."""
    (tmp_path / "bench").mkdir()
    shutil.copy(BENCH / "gpu.sh", tmp_path / "bench")
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("python3", "compute-sanitizer", "nvidia-smi"):
        (programs / name).write_text(FAKE)
        (programs / name).chmod(0o755)

    def run(fails: str = "nothing", **variables: str) -> tuple[subprocess.CompletedProcess, list[list[str]]]:
        calls = tmp_path / "calls"
        calls.write_text("")
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "CALLS": str(calls), "FAILS": fails, "OUT": "out", **variables}
        command = ["bash", "bench/gpu.sh"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
        return done, [line.split() for line in calls.read_text().splitlines()]

    return run


def test_a_recipe_that_diverges_is_a_row_with_the_reason(bench: Callable[[str], ModuleType], monkeypatch) -> None:
    def diverges(*_, **__):
        raise error

    monkeypatch.setattr(ade.training, "train", diverges)
    for error in (ade.NonFiniteError("f is not finite"), ade.training.DivergenceError("f runs away")):
        row = bench("recipe").run("default", {"data": "moons"})
        assert row["diverged"] == str(error) and "mmd2" not in row


# --- bench/density.py


def test_density_splits_are_disjoint_and_standardised_by_the_training_rows(bench: Callable[[str], ModuleType]) -> None:
    from sklearn.datasets import load_wine

    data = bench("density_data")
    parts = data.split("wine", 3)
    assert [len(part) for part in parts] == [106, 36, 36] and parts.dim == 13
    torch.testing.assert_close(parts.train.mean(0), torch.zeros(13), atol=1e-6, rtol=0)
    torch.testing.assert_close(parts.train.std(0, correction=0), torch.ones(13))
    # One affine map per column takes all rows, each once, to those of the three parts.
    rows = torch.from_numpy(load_wine().data)
    z = torch.cat(parts).double()
    order, wanted = z[:, 0].argsort(), rows[:, 0].argsort()
    scale = (rows[wanted[-1], 0] - rows[wanted[0], 0]) / (z[order[-1], 0] - z[order[0], 0])
    torch.testing.assert_close(
        (z[order, 0] - z[order[0], 0]) * scale, rows[wanted, 0] - rows[wanted[0], 0], atol=1e-5, rtol=1e-5
    )
    assert all(torch.equal(a, b) for a, b in zip(parts, data.split("wine", 3), strict=True))
    assert not torch.equal(parts.test, data.split("wine", 4).test)
    assert data.split("breast cancer", 0).dim == 10
    with pytest.raises(ValueError, match="no set 'iris': choose from breast cancer, wine, digits"):
        data.split("iris", 0)


def test_density_weights_know_a_log_z(bench: Callable[[str], ModuleType]) -> None:
    """f = 1.5 + x_0 + log N(x; 0, 2²): log Z = 1.5 + 2²/2, by weights within a few of their standard errors."""
    methods = bench("density_methods")
    torch.manual_seed(0)
    potential = ade.WithBase(lambda x: 1.5 + x[:, 0], 0.0, 2.0)
    samples = 2 * torch.randn(500, 3) + torch.tensor([4.0, 0.0, 0.0])
    log_w = methods._log_weights(potential, samples, 4000, seed=0)
    split = bench("density_data").Split(*torch.randn(3, 5, 3))
    found = methods._weighted(potential, split, log_w, "here")
    log_z = potential(split.test) - found.log_prob
    assert found.log_z_se < 0.05 and 0.1 < found.ess <= 1
    torch.testing.assert_close(log_z, torch.full((5,), 3.5).double(), atol=4 * found.log_z_se, rtol=0)


@pytest.mark.parametrize("kind", ["full", "diag", "tied"])
def test_density_mixture_is_scikit_learns(bench: Callable[[str], ModuleType], kind: str) -> None:
    """Its density, also of what it draws, and its moments."""
    from sklearn.mixture import GaussianMixture

    torch.manual_seed(0)
    rows = torch.cat([torch.randn(60, 3), 4 + torch.randn(40, 3) @ torch.randn(3, 3)]).double().numpy()
    fitted = GaussianMixture(2, covariance_type=kind, random_state=0).fit(rows)
    mixture = bench("density_mixture").Mixture.of(fitted)
    x, log_q = mixture.sample_x(5000, torch.Generator().manual_seed(0))
    wanted = torch.from_numpy(fitted.score_samples(x.detach().double().numpy()))
    torch.testing.assert_close(log_q.double(), wanted, atol=1e-4, rtol=1e-4)
    mean = torch.from_numpy(fitted.weights_ @ fitted.means_)
    error = x.detach().double().mean(0) - mean
    assert bool((error.abs() < 5 * x.detach().double().std(0) / 5000**0.5).all())


def test_density_runs_go_on_where_they_ended(
    bench: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    density, methods = bench("density"), bench("density_methods")
    calls = []

    def normal(split, seed: int):
        calls.append(seed)
        return methods.Fit(torch.distributions.Normal(0.0, 1.0).log_prob(split.test).sum(1), "nothing")

    monkeypatch.setitem(density.METHODS, "gaussian mixture", normal)
    monkeypatch.setitem(sys.modules, "zuko", None)
    threads = density.concurrent.futures.ThreadPoolExecutor(1)  # they see what is patched here
    monkeypatch.setattr(density.concurrent.futures, "ProcessPoolExecutor", lambda *_, **__: nullcontext(threads))
    out = tmp_path / "density-here.json"
    command = ["--sets", "wine", "--methods", "gaussian mixture,neural spline flow", "--jobs", "1", "--out", str(out)]
    density.main([*command, "--seeds", "1"])
    density.main([*command, "--seeds", "2"])
    assert calls == [0, 1]
    runs = json.loads(out.read_text())["runs"]
    assert [(run["method"], run["seed"]) for run in runs] == [
        (method, seed) for method in ("gaussian mixture", "neural spline flow") for seed in (0, 1)
    ]
    assert all(run["skipped"] == "zuko is not installed" for run in runs[2:])
    test = bench("density_data").split("wine", 1).test.double()
    nll = 0.5 * test.square().sum(1).mean().item() + 0.5 * 13 * math.log(2 * math.pi)
    assert runs[1]["nll"] == pytest.approx(nll, abs=1e-5) and runs[1]["rows"] == [106, 36, 36]

    text = bench("report").block("density", tmp_path)
    cells = [f"{run['nll']:.2f} ± {run['nll_se']:.2f}" for run in runs[:2]]
    assert f"| wine, d = 13 | gaussian mixture | {cells[0]} | {cells[1]} |" in text
    assert "- wine, neural spline flow, seed 1: zuko is not installed" in text


def test_density_scores_without_a_reliable_log_z_are_marked(bench: Callable[[str], ModuleType]) -> None:
    def row(method: str, seed: int, nll: float, log_z_se: float | None) -> dict:
        return {
            "set": "wine",
            "method": method,
            "seed": seed,
            "dim": 4,
            "nll": nll,
            "nll_se": 0.5,
            "log_z_se": log_z_se,
        }

    runs = [row("gaussian mixture", 0, 6.0, None), row("ADE", 0, 5.0, 0.01), row("ADE", 1, 7.0, 0.2)]
    text = bench("density_tables").scores(runs)
    assert "| wine, d = 4 | gaussian mixture | 6.00 ± 0.50 | - | 6.00 | 1.500 | - |" in text
    assert "| wine, d = 4 | ADE | 5.00 ± 0.50 | 7.00 ± 0.50 † | 6.00 | 1.500 | -1.00 |" in text


def test_density_that_diverges_is_a_row_with_the_reason(bench: Callable[[str], ModuleType], monkeypatch) -> None:
    density = bench("density")

    def diverges(*_):
        raise ade.NonFiniteError("f is not finite")

    monkeypatch.setitem(density.METHODS, "ADE", diverges)
    row = density.run(density.Job("wine", "ADE", 0))
    assert row["skipped"] == "diverged: f is not finite" and "nll" not in row


def test_gpu_script_is_bash() -> None:
    checked = subprocess.run(["bash", "-n", str(BENCH / "gpu.sh")], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert os.access(BENCH / "gpu.sh", os.X_OK)


def test_gpu_script_goes_on_after_a_failure_and_reports_it(gpu_script: Callable, tmp_path: Path) -> None:
    done, calls = gpu_script()
    assert done.returncode == 0, done.stdout
    log = (tmp_path / "out" / "gpu.log").read_text()
    assert log == done.stdout
    parts = ("info", "tests", "memcheck", "racecheck", "mlp", "dynamics", "mlp-compile", "tables")
    assert re.findall(r"^([\w-]+): exit code 0 after \d+ s$", log, re.MULTILINE) == list(parts)
    assert (tmp_path / "out" / "gpu.md").read_text().count("<!-- bench:") == 2

    done, again = gpu_script(fails="bench/mlp.py")
    assert done.returncode == 1 and len(again) == len(calls)
    failed = re.findall(r"^([\w-]+): exit code 3 ", done.stdout, re.MULTILINE)
    assert failed == ["mlp", "mlp-compile"]

    done, built = gpu_script(fails="build_info")  # no extension with CUDA kernels
    assert done.returncode == 0 and ["python3", "-m", "pip", "install", "--no-build-isolation"] in [
        c[:5] for c in built
    ]
    done, _ = gpu_script(MINUTES="0")
    assert done.returncode == 1
    assert done.stdout.count("exit code 124") == len(parts) - 1 and "tables: exit code 0" in done.stdout


def test_gpu_script_sets_time_aside(gpu_script: Callable) -> None:
    """What the parts may take adds up to the nine minutes, with some left for torch.compile."""
    done, calls = gpu_script(fails="build_info")
    limits = dict(re.findall(r"^== ([\w-]+), at most (\d+) s:", done.stdout, re.MULTILINE))
    rest = int(limits.pop("mlp-compile"))
    assert sum(map(int, limits.values())) <= 540 - 60 < 540 <= sum(map(int, limits.values())) + 80
    assert 400 < rest + int(limits["tables"]) <= 540  # nothing took any time
    cases = [call[call.index("--cases") + 1] for call in calls if "--cases" in call]
    assert cases == ["mlp-silu-B1000-T100-d2-medium"]
    _, calls = gpu_script(MINUTES="20")
    assert [call[call.index("--cases") + 1] for call in calls if "--cases" in call] == ["mlp-*-B1000-T100-d2*"]


def test_gpu_script_uses_what_exists(
    gpu_script: Callable, bench: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every path is there, every benchmark takes its options, every choice of tests chooses some."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    _, calls = gpu_script(fails="build_info")
    seen = set()
    for call in calls:
        for path in (argument for argument in call if re.match(r"(bench|tests)/", argument)):
            assert (ROOT / path).is_file(), path
        words = [Path(word).name for word in call]
        if "mlp.py" in words or "dynamics.py" in words:
            name = "mlp" if "mlp.py" in words else "dynamics"
            args = bench(name).arguments(call[call.index(f"bench/{name}.py") + 1 :])
            assert args.selected and args.out.name.startswith(f"{name}-")
            seen.add(name)
        if "pytest" in words:
            options = call[call.index("pytest") + 1 :]
            if "-k" in options:  # an expression of several words, to the end
                expression = options.index("-k") + 1
                options[expression:] = [" ".join(options[expression:])]
            command = [sys.executable, "-m", "pytest", "--collect-only", *options]
            collected = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
            assert collected.returncode == 0, collected.stdout
            seen.add(" ".join(options[:3]))
    assert {"mlp", "dynamics", "-q -m cuda"} <= seen
