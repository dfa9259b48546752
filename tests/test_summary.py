"""The summary of a run: likelihood first, one screen."""

import dataclasses
import json
from pathlib import Path

import pytest

from ade_fast.training import Config, Summary
from ade_fast.training.summary import headline, to_dict

WITHOUT_DENSITY = Summary(
    data="moons",
    seed=0,
    updates=5000,
    chosen_update=4800,
    validation_mmd2=2e-4,
    mmd2=1.5e-3,
    p_value=0.012,
    null_mmd2={"50": -1e-5, "95": 4e-4, "99": 6e-4},
    permutations=1000,
    mmd2_fine=2e-4,
    field="mlp",
    plan="states",
    seconds=61.0,
    milliseconds_per_update=12.2,
    time={"joint updates": 50.0, "test": 11.0},
)
WITH_DENSITY = dataclasses.replace(
    WITHOUT_DENSITY,
    nll=2.4213,
    nll_standard_error=0.0104,
    entropy=2.4001,
    entropy_exact=True,
    log_z=3.4121,
    log_z_standard_error=0.0031,
    ess=0.642,
    initial_ess=0.221,
    best_temperature=1.018,
    exact_mmd2=2e-5,
    exact_p_value=0.512,
    fine_p_value=0.21,
    validation_nll=2.4178,
)


def lines(summary: Summary) -> list[str]:
    return summary.lines(Path("out"), Config())


def test_the_summary_leads_with_the_likelihood():
    text = lines(WITH_DENSITY)
    assert text[1:8] == [
        "held-out test   NLL 2.421 ± 0.010 nats; the data's entropy (exact) 2.400, +0.021",
        "  weights       log Z 3.412 ± 0.003, ESS 64.2 % (q0 alone 22.1 %), best temperature 1.02",
        "  exact samples MMD² +0.02e-3, p = 0.512: not rejected at 5 %",
        "  raw samples   MMD² +1.50e-3, p = 0.012: rejected at 5 %",
        "  if equal      MMD² in 1e-3 over 1000 permutations: 50 %: -0.01, 95 %: +0.40, 99 %: +0.60",
        "  fine scale    MMD² +0.20e-3, p = 0.210: not rejected at 5 %, with a kernel of 0.2 of the width",
        "chosen          update 4800, by NLL 2.418 on a validation draw",
    ]


def test_without_a_density_there_are_samples_to_judge():
    text = lines(WITHOUT_DENSITY)
    assert text[1] == "held-out test   MMD² +1.50e-3, p = 0.012: rejected at 5 %"
    assert text[3] == "  fine scale    MMD² +0.20e-3, with a kernel of 0.2 of the width"
    assert text[4] == "chosen          update 4800, by MMD² +0.20e-3 on a validation draw"
    assert not any("nats" in line or "log Z" in line or "ESS" in line for line in text)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"entropy": None}, "NLL 2.421 ± 0.010 nats"),
        ({"entropy_exact": False}, "NLL 2.421 ± 0.010 nats; the data's entropy (an estimate) 2.400, +0.021"),
        ({"nll_standard_error": None, "entropy": None}, "NLL 2.421 nats"),
    ],
)
def test_what_is_not_known_is_left_out(changes, line):
    assert lines(dataclasses.replace(WITH_DENSITY, **changes))[1] == f"held-out test   {line}"


def test_it_is_one_screen_of_100_columns_with_the_warnings():
    long = "the effective sample size is 0.8 %: " + "log Z and likelihoods by its weights say little; " * 3
    text = lines(dataclasses.replace(WITH_DENSITY, warnings=(long, "mass lies outside of the data")))
    assert max(map(len, text)) <= 100 and len(text) <= 30
    assert "warning         the effective sample size is 0.8 %:" in "\n".join(text)
    assert "warning         mass lies outside of the data" in text
    assert " ".join(" ".join(text).split()).count("say little;") == 3  # nothing of it is cut off


def test_the_summary_is_plain_json():
    kept = json.loads(json.dumps(to_dict(dataclasses.replace(WITH_DENSITY, warnings=("w",)))))
    assert kept["nll"] == 2.4213 and kept["entropy_exact"] is True and kept["warnings"] == ["w"]
    assert json.loads(json.dumps(to_dict(WITHOUT_DENSITY)))["log_z"] is None


def test_the_headline_says_what_is_known():
    full = headline(
        nll=2.4213,
        nll_standard_error=0.0104,
        entropy=2.4,
        ess=0.642,
        initial_ess=0.22,
        p_value=0.012,
        exact_p_value=0.5,
    )
    assert full.split("   ·   ") == [
        "held-out NLL 2.421 ± 0.010 nats (the data's entropy 2.400)",
        "ESS 64 % (q⁰ alone 22 %)",
        "MMD² test: p = 0.5 exact, 0.012 raw",
    ]
    assert headline(nll=2.4213, ess=0.642, p_value=0.012).split("   ·   ") == [
        "held-out NLL 2.421 nats",
        "ESS 64 %",
        "MMD² test: p = 0.012 raw",
    ]
    assert headline() == ""
