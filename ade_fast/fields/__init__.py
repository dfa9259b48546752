"""Gradient fields: everything the dynamics need of a potential f, ∇f(x) and its derivatives."""

from .autograd import AutogradField, Evaluation, FirstValue, NotPiecewiseLinear
from .layout import Layout
from .memory import memory_budget, set_memory_budget
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
    "NotPiecewiseLinear",
    "Plan",
    "Sum",
    "choose_plan",
    "effective_weights",
    "keeps_kinks",
    "memory_budget",
    "modules_of",
    "own_parameters",
    "pinned",
    "pinned_to",
    "probe_potential",
    "refuse_unfit_modules",
    "set_memory_budget",
]
