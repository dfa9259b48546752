"""Gradient fields: everything the dynamics need of a potential f, ∇f(x) and its derivatives."""

from .._mlp_ops import Schedule
from .affine import AffineForce, without_base
from .agreement import Checksum, Dependence, OtherGradient, raise_pending
from .autograd import AutogradField, Evaluation, FirstValue
from .contents import Contents, contents_of, modules_of
from .graph import Ancestry
from .layout import Layout
from .memory import memory_budget, memory_in_use, memory_setting, release_memory, set_memory_budget
from .mlp import MLPField, generalized_kicks
from .modules import is_tampered_with, pinned, probe_potential
from .surroundings import Draws, Inputs, Surroundings, is_observed, possible_inputs
from .unroll import (
    GradientMode,
    GradientSide,
    Plan,
    Sum,
    choose_plan,
    kept_per_gradient,
    refuse_observed,
    what_is_kept,
)
from .values import fused_sum, fused_value, fused_value_and_grad, fused_weighted_value

__all__ = [
    "AffineForce",
    "Ancestry",
    "AutogradField",
    "Checksum",
    "Contents",
    "Dependence",
    "Draws",
    "Evaluation",
    "FirstValue",
    "GradientMode",
    "GradientSide",
    "Inputs",
    "Layout",
    "MLPField",
    "OtherGradient",
    "Plan",
    "Schedule",
    "Sum",
    "Surroundings",
    "choose_plan",
    "contents_of",
    "fused_sum",
    "fused_value",
    "fused_value_and_grad",
    "fused_weighted_value",
    "generalized_kicks",
    "is_observed",
    "is_tampered_with",
    "kept_per_gradient",
    "memory_budget",
    "memory_in_use",
    "memory_setting",
    "modules_of",
    "pinned",
    "possible_inputs",
    "probe_potential",
    "raise_pending",
    "refuse_observed",
    "release_memory",
    "set_memory_budget",
    "what_is_kept",
    "without_base",
]
