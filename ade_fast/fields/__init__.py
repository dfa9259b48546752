"""Gradient fields: everything the dynamics need of a potential f, ∇f(x) and its derivatives."""

from .autograd import AutogradField, Evaluation, FirstValue, NotPiecewiseLinear
from .layout import Layout
from .memory import memory_budget, memory_in_use, release_memory, set_memory_budget
from .mlp import MLPField, generalized_kicks
from .modules import (
    effective_weights,
    modules_of,
    own_parameters,
    pinned,
    pinned_to,
    probe_potential,
    refuse_unfit_modules,
)
from .unroll import GradientMode, GradientSide, Plan, Sum, choose_plan, keeps_kinks

__all__ = [
    "AutogradField",
    "Evaluation",
    "FirstValue",
    "GradientMode",
    "GradientSide",
    "Layout",
    "MLPField",
    "NotPiecewiseLinear",
    "Plan",
    "Sum",
    "choose_plan",
    "effective_weights",
    "generalized_kicks",
    "keeps_kinks",
    "memory_budget",
    "memory_in_use",
    "modules_of",
    "own_parameters",
    "pinned",
    "pinned_to",
    "probe_potential",
    "refuse_unfit_modules",
    "release_memory",
    "set_memory_budget",
]
