"""Gradient fields: everything the dynamics need of a potential f, ∇f(x) and its derivatives."""

from .._mlp_ops import Schedule
from .affine import AffineForce, without_base
from .agreement import Checksum, Dependence, OtherGradient, raise_pending
from .autograd import AutogradField, Evaluation, FirstValue
from .contents import Contents, contents_of, modules_of
from .layout import Layout
from .memory import memory_budget, memory_in_use, memory_setting, release_memory, set_memory_budget
from .mlp import MLPField, generalized_kicks, matmul_precision
from .modules import is_tampered_with, pinned, probe_potential
from .surroundings import Draws, Inputs, Surroundings, is_observed, torch_settings
from .unroll import (
    GradientMode,
    GradientSide,
    Plan,
    Sum,
    choose_plan,
    kept_per_gradient,
    refuse_observed,
)
from .values import fused_sum, fused_value, fused_value_and_grad, fused_weighted_value

__all__ = [
    "AffineForce",
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
    "matmul_precision",
    "memory_budget",
    "memory_in_use",
    "memory_setting",
    "modules_of",
    "pinned",
    "probe_potential",
    "raise_pending",
    "refuse_observed",
    "release_memory",
    "set_memory_budget",
    "torch_settings",
    "without_base",
]
