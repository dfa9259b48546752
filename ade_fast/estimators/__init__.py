"""Estimators of Table 1: losses to minimise, on any potential f with p(x) ∝ exp f(x).

``loss = ade.estimators.score_matching(potential, data); loss.backward()``. Each is a scalar, differentiable in whatever
f depends on, and a special case of the saddle problem (5) under a fixed dual sampler (appendix D), which its
documentation names.
"""

from .chain import Chain, ChainEnd
from .conditional import composite_likelihood, pseudo_likelihood
from .contrastive import contrastive_divergence, persistent_contrastive_divergence
from .improved_contrastive import improved_contrastive_divergence
from .noise_contrastive import noise_contrastive
from .nonlocal_contrastive import nonlocal_contrastive
from .probability_flow import minimum_probability_flow
from .score_matching import denoising_score_matching, score_matching, sliced_score_matching
from .stein import kernel_stein_discrepancy

__all__ = [
    "Chain",
    "ChainEnd",
    "composite_likelihood",
    "contrastive_divergence",
    "denoising_score_matching",
    "improved_contrastive_divergence",
    "kernel_stein_discrepancy",
    "minimum_probability_flow",
    "noise_contrastive",
    "nonlocal_contrastive",
    "persistent_contrastive_divergence",
    "pseudo_likelihood",
    "score_matching",
    "sliced_score_matching",
]
