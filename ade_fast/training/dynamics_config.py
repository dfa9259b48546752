"""The dynamics of a run, and the defaults of those that the recipe's own do not suit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DYNAMICS = (
    *("leapfrog", "generalized", "damped", "annealed", "langevin", "generalized-langevin"),
    *("deterministic", "continuous", "generalized-continuous"),
)
LANGEVIN = ("langevin", "generalized-langevin")
CONTINUOUS = ("continuous", "generalized-continuous")
WITHOUT_MOMENTUM = ("deterministic", *CONTINUOUS)
WITH_NETWORKS = tuple(name for name in DYNAMICS if name.startswith("generalized"))

# An update costs several times one of leapfrog, and the flow, whose density is exact, needs fewer of them.
_CONTINUOUS = {"updates": 1000, "batch_size": 128, "rtol": 0.01}

RECIPES: Mapping[str, Mapping[str, Any]] = {
    # Steps of 0.1 fold the plane where f is steep (pinwheel): log_det is not that of a density there.
    "deterministic": {"n_steps": 1, "step_size": 0.01, "learn_step_size": False},
    "continuous": _CONTINUOUS,
    "generalized-continuous": {**_CONTINUOUS, "updates": 500},  # each takes twice as long again
}


def recipe_of(dynamics: object) -> Mapping[str, Any]:
    """The defaults of those dynamics' own, by setting; whether there are such dynamics is not looked at."""
    return RECIPES.get(dynamics, {}) if isinstance(dynamics, str) else {}
