"""A few fuzz cases in every run of the tests, the same ones each time; `make fuzz` runs as many as are wanted."""

from __future__ import annotations

from dataclasses import replace

import hypothesis
import pytest
import torch
from fuzz_cases import DYNAMICS, Case, cases
from fuzz_check import LIMIT, error_of

from ade_fast import reference

few = hypothesis.settings(
    max_examples=60, derandomize=True, database=None, deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)  # fmt: skip


@few
@hypothesis.given(cases("float64"))
def test_random_cases_agree_with_the_reference(case: Case) -> None:
    assert error_of(case) <= LIMIT["float64"]


@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_a_wrong_formula_is_seen(dynamics: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative difference of 1e-7 in ∇f is above the limit."""
    case = Case(dynamics)
    assert error_of(case) < LIMIT["float64"]
    right = reference.gradient_field

    def wrong(*args: object) -> torch.Tensor:
        return right(*args) * (1 + 1e-7)

    monkeypatch.setattr(reference, "gradient_field", wrong)
    assert error_of(case) > LIMIT["float64"]


def test_a_repr_makes_the_case_again() -> None:
    case = Case("langevin", condition=True, shifts=True)
    assert eval(repr(case)) == case == replace(case)
