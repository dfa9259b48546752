"""bench/images.py and bench/images_iteration.py: everyone computes the iteration, rows are today's, tables say them."""

import argparse
import dataclasses
import importlib
import math
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ade_fast.training import Config, train

BENCH = Path(__file__).parents[1] / "bench"
# What all results begin with, as the tables read it.
HEAD = {"machine": {"cpu": "C", "isa": "I", "threads": 1, "cores": 2, "load": 0.1}, "versions": {}}
HEAD |= {"commit": "abc", "command": "python x", "date": "today"}
SMALL = {"hidden": (2, 2, 2, 2, 2), "n_steps": 1, "batch_size": 8, "buffer_size": 16, "test_samples": 16}


def small_run(directory: Path, updates: int) -> Config:
    """`ade-fast train --data digits` of a second; its settings."""
    quiet = {"test_permutations": 10, "tensorboard": "off", "pictures_every": 0}
    config = Config.with_recipe({"data": "digits", "updates": updates, **SMALL, **quiet})
    train(config, directory, progress=False, pictures=False)
    return config


@pytest.fixture(scope="module")
def bench():
    """Imports a module of bench/, which is no package."""
    sys.path.insert(0, str(BENCH))
    before = set(sys.modules)
    yield importlib.import_module
    sys.path.remove(str(BENCH))
    for name in set(sys.modules) - before:
        if str(BENCH) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.parametrize("peer", ["eager-2t", "eager-t1", "ade-graph", "ade-states", "ade-reversible"])
def test_every_peer_has_the_exact_derivatives_and_the_truncated_one_has_not(peer, bench):
    module = bench("images_iteration")
    problem = module.make_problem(module.QUICK[0], torch.device("cpu"))
    wanted = module.expected(problem)
    assert module.error(module.iterate(problem, module.UNROLLS[peer]), wanted) < 1e-4
    truncated = module.iterate(problem, module.UNROLLS["eager-truncated"])
    assert module.error(truncated, wanted) > module.TOLERANCE


@pytest.mark.parametrize("memory", ["graph", "masks"])
def test_bf16_is_off_by_no_more_than_eager_is(memory, bench):
    module = bench("images_iteration")
    problem = module.make_problem(module.Case(4, (4, 8, 8, 8, 8), 4), torch.device("cpu"))
    wanted, settings = module.expected(problem), module.peers.Settings(1.0)
    errors = [
        module.error(module.MAKERS[name](problem, settings).run(), wanted)
        for name in (f"ade-{memory}-bf16", "eager-t1-bf16")
    ]
    assert 1e-3 < errors[0] < 1.05 * errors[1]


class Products(TorchDispatchMode):
    """Counts multiplications and additions. torch's FlopCounterMode also follows modules, and so cannot see through
    torch.autograd.grad."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func.overloadpacket):
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def test_the_bare_convolutions_are_those_of_an_exact_iteration(bench):
    module, products = bench("images_iteration"), {}
    problem = module.make_problem(module.Case(3, (4, 8, 8, 8, 8), 2), torch.device("cpu"))
    for peer in ("bare", "ade-graph", "eager-truncated"):
        run = module.MAKERS[peer](problem, module.peers.Settings(1.0)).run
        with Products() as products[peer]:
            run()
    assert 0.95 < products["bare"].total / products["ade-graph"].total < 1.01  # the data need no way back to the pixels
    assert products["eager-truncated"].total < products["bare"].total


@pytest.mark.parametrize("peer", ["jax", "jax-checkpoint"])
def test_jax_has_the_exact_derivatives(peer, bench):
    pytest.importorskip("jax")
    module = bench("images_iteration")
    problem = module.make_problem(module.Case(1, (2, 2, 2, 2, 2), 2), torch.device("cpu"))
    made = module.MAKERS[peer](problem, module.peers.Settings(60.0))
    assert module.error(made.outputs(made.run()), module.expected(problem)) < 1e-3


def test_a_row_is_todays_only_with_todays_settings(bench):
    config, is_same = bench("images").config, bench("image_rows").is_same
    row = {"method": "exact", "seed": 1, "settings": config("exact", 1, 9).to_dict()}
    assert is_same(row, config, "exact", 1, 9)
    assert not is_same(row, config, "exact", 1, 10) and not is_same(row, config, "recipe", 1, 9)
    assert not is_same({**row, "settings": {**row["settings"], "step_size": 0.3}}, config, "exact", 1, 9)


def test_a_command_makes_the_rows_that_are_missing(bench, tmp_path):
    config, rows = bench("images").config, bench("image_rows")
    parser, made = rows.parser("", ["recipe", "exact"], [0]), []

    def measure(method, seed):
        made.append((method, seed))
        return {"method": method, "seed": seed, "settings": config(method, seed, 9).to_dict()}

    for seeds in ("0", "0,1"):
        args = parser.parse_args(["--seeds", seeds, "--updates", "9", "--out", str(tmp_path / "rows.json")])
        results = rows.by_methods("images", args, config, measure)
    assert made == [("recipe", 0), ("exact", 0), ("recipe", 1), ("exact", 1)] and len(results["rows"]) == 4
    assert bench("records").read_results(tmp_path / "rows.json")["rows"] == results["rows"]
    with pytest.raises(SystemExit):
        parser.parse_args(["--methods", "recipe;other"])


def test_a_directory_s_row_takes_the_place_of_an_older_one(bench, tmp_path):
    rows, out = bench("image_rows"), tmp_path / "rows.json"
    for seed, score in ((1, 1.0), (0, 2.0), (1, 3.0)):
        args = argparse.Namespace(directories=[tmp_path], out=out)
        results = rows.by_directories(
            "image_runs", args, lambda _, s=seed, c=score: {"data": "d", "seed": s, "score": c}
        )
    assert [(row["seed"], row["score"]) for row in results["rows"]] == [(0, 2.0), (1, 3.0)]
    assert bench("records").read_results(out)["rows"] == results["rows"]


def test_the_judge_tells_digits_from_noise_and_copies_from_new_ones(bench):
    pytest.importorskip("sklearn")
    module = bench("images")
    source = module.Trainer(module.config("recipe", 0, 1)).source
    judge = module.Judge(source, iterations=40)
    test = judge.scores(source.pixels(source.test_images))
    copies = judge.scores(source.pixels(source.images[:180]))
    noise = judge.scores(torch.rand(180, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert test["score"] > 8 > 6 > noise["score"] and test["nearest"] < noise["nearest"]
    assert copies["nearest"] < 0.01 < test["nearest_low"]


def test_tables_say_what_the_results_say(bench):
    tables = bench("image_tables")
    test = {"score": 8.0, "sure": 0.9, "nearest": 1.0, "nearest_low": 0.8}
    row = {"method": "recipe", "seed": 0, "updates": 600, "images": 180, "test": test, "commit": "abc"}
    done = {**row, "ms": 90.0, "score": 6.0, "sure": 0.8, "nearest": 1.2, "nearest_low": 0.9}
    text = tables.digits({**HEAD, "rows": [done, {**row, "method": "torchebm", "skipped": "no torchebm"}]})
    assert "| 180 test digits |  |  |  | 8.00 | 1 | 1.00 | 0.80 |" in text
    assert "| 0 | 600 | 90 | 6.00 | 0.75 | 1.20 | 0.90 |" in text and "no torchebm" in text
    peers = {"eager-truncated": {"ms": 10.0, "peak_bytes": 2e6}, "ade-states": {"ms": 15.0, "peak_bytes": 1e6}}
    text = tables.iteration({**HEAD, "cases": [{"case": "c", "peers": peers}]})
    assert "| **ade_fast**, states | 15 | 1.50 | 1 | - |" in text and "eager 2T, exact" not in text


def test_a_users_run_is_scored_beside_its_test_images(bench, tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    module, tables = bench("image_runs"), bench("image_tables")
    small_run(tmp_path / "run", updates=2)
    for name, value in (("SAMPLES", 360), ("CLASSIFIERS", 1), ("LEARNED", 600)):
        monkeypatch.setattr(module, name, value)
    row = module.measure(tmp_path / "run", iterations=10)
    assert row["accuracy"] > 0.8 and row["images"] == 180 and row["updates"] == 2
    assert row["test"]["score"] > 1.3 * row["score"] and row["score_error"] > 0 and row["test"]["score_error"] is None
    for scores in (row, row["test"]):
        assert scores["score"] == pytest.approx(scores["kinds"] / scores["wavering"], rel=0.03)
    assert row["frechet"] > 3 * row["test"]["frechet"] > 0
    text = tables.runs({**HEAD, "rows": [{**row, "commit": "abc"}, {**row, "seed": 1, "commit": "abc"}]})
    assert text.count("180 test images of digits") == 1 and text.count("| `train --data digits` | ") == 2


def test_the_frechet_distance_is_that_of_gaussians_whose_distance_is_known(bench):
    frechet = bench("image_runs").frechet
    mean, deviation = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([1.0, 2.0, 3.0]).double()
    first, second = (0 * mean, torch.eye(3).double()), (mean, deviation.square().diag())
    assert frechet(first, second) == pytest.approx(5.25 + (deviation - 1).square().sum().item())
    assert frechet(second, second) == pytest.approx(0, abs=1e-9)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double())[0]
    turned = [(rotation @ m, rotation @ c @ rotation.T) for m, c in (first, second)]
    assert frechet(*turned) == pytest.approx(frechet(first, second))


def test_only_gradients_tell_rows_of_the_long_unrolls_apart(bench, tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    module, tables = bench("image_gradients"), bench("image_tables")
    first, *rest = (module.config(method, 1, 9).to_dict() for method in module.METHODS)
    for other in rest:
        assert {key for key in first if first[key] != other[key]} <= {"gradient", "learn_step_size", "sampler_lr"}
    monkeypatch.setattr(module, "SETTINGS", {**module.SETTINGS, **SMALL})
    for name, value in (("SAMPLES", 360), ("CLASSIFIERS", 1), ("LEARNED", 200)):
        monkeypatch.setattr(module.image_runs, name, value)
    row = {**module.measure("truncated, step learned", 1, 2, tmp_path), "commit": "abc"}
    assert row["step_size"] > 0
    failed = {"method": "full", "seed": 0, "updates": 9, "ms": 1.0, "skipped": "diverged", "commit": "abc"}
    lines = tables.gradients({**HEAD, "rows": [row, failed]}).splitlines()[:5]
    assert len({line.count("|") for line in lines}) == 1 and lines[2].startswith("| 180 test digits |")
    assert lines[3].startswith("| exact | 0 | 9 | 1 | diverged |") and "η learned | 1 |" in lines[4]


def test_the_bench_of_many_steps_comes_back_and_agrees_with_the_states(bench):
    module, tables = bench("reversible"), bench("image_tables")
    row = module.measure("damped", 12)
    assert row["on_bound"] > 0.6 and row["error"] < 1e-8
    text = tables.reversible({**HEAD, "rows": [{**row, "reversible_peak_bytes": 1_234_567, "steps": 10_000}]})
    assert "| damped ½, clips ±0.01, samples clipped | 10,000 |" in text and "| 1.23 |" in text


def test_the_density_of_images_is_that_of_a_gaussian_where_f_says_nothing(bench, tmp_path, monkeypatch):
    """Of a constant f log Z is that constant, at every temperature; bits are then those of N(x; mean, 1)."""
    pytest.importorskip("sklearn")
    module, tables = bench("image_density"), bench("image_tables")
    config = small_run(tmp_path / "run", updates=1)
    monkeypatch.setattr(module, "COMPONENTS", (1, 2))
    monkeypatch.setattr(module, "BRACKET", {"n_steps": 2, "n_chains": 4})
    cheap = {"initial": "gaussian", "likelihood_samples": 50, "test_likelihood_samples": 50, "hidden": (32,)}
    monkeypatch.setattr(module, "FIT", {**module.FIT, **cheap})
    level = type("Level", (torch.nn.Module,), {"forward": lambda self, x: 0 * x.sum((1, 2, 3)) + 3})()
    run = module.load(tmp_path / "run")
    monkeypatch.setattr(module, "load", lambda _: dataclasses.replace(run, potential=level))
    row = module.measure(tmp_path / "run", [1.0, 0.1], n_steps=2, n_chains=4, updates=2)
    test = module.build_source(config)
    pixels = 2 * test.pixels(test.test_images) - 1
    squares = (pixels - (2 * test.pixels(test.images) - 1).mean(0)).square().sum((1, 2, 3)).mean().item()
    wanted = module.bits(0.5 * squares + 32 * math.log(2 * math.pi), 17, 64)
    for found, log_z in zip(row["temperatures"], (3.0, 30.0), strict=True):
        assert found["log_z"] == pytest.approx(log_z, abs=0.01) and found["bits"] == pytest.approx(wanted, rel=0.02)
    assert row["mixture"] < row["gaussian"] < wanted
    assert module.bits(64 * math.log(2 / 17), 17, 64) == pytest.approx(0)  # even within one level: nothing to tell
    assert f"| ≥ {row['temperatures'][1]['bits']:.2f} (down " in tables.density(
        {**HEAD, "rows": [{**row, "commit": "abc"}]}
    )


def test_the_tight_bound_s_bits_are_those_of_the_model_s_own_density(bench, monkeypatch):
    """Rows of a Gaussian that is not of unit scale: a wrong sign of the standardisation's would be seen."""
    module, generator = bench("image_density"), torch.Generator().manual_seed(0)
    scale, mean = torch.tensor([0.1, 0.2, 3.0, 0.5]).view(1, 2, 2), 1.0
    train, validation, test = (mean + scale * torch.randn(n, 1, 2, 2, generator=generator) for n in (600, 200, 400))
    cheap = {
        "initial": "gaussian",
        "likelihood_samples": 500,
        "test_likelihood_samples": 500,
        "hidden": (32,),
        "base_std": 1.0,
    }
    monkeypatch.setattr(module, "FIT", {**module.FIT, **cheap})
    monkeypatch.setattr(module, "BRACKET", {"n_steps": 50, "n_chains": 200})
    found = module.by_tight_bound(train, validation, test, 2, seed=0)
    entropy = (scale.log() + 0.5 * math.log(2 * math.pi * math.e)).sum().item()
    assert found["lower"] == pytest.approx(entropy, abs=0.3) and found["upper"] == pytest.approx(entropy, abs=0.3)
