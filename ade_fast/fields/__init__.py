"""Gradient fields: everything the dynamics need of a potential f, ∇f(x) and its derivatives."""

from .autograd import AutogradField, Evaluation, FirstValue, NotPiecewiseLinear
from .layout import Layout
from .memory import memory_budget, set_memory_budget
from .modules import own_parameters, pinned, probe_potential, refuse_unfit_modules
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
    "keeps_kinks",
    "memory_budget",
    "own_parameters",
    "pinned",
    "probe_potential",
    "refuse_unfit_modules",
    "set_memory_budget",
]
