"""The temperature at which exp(c f) would suit the data best: near 1 where f is a density and not just a score."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOWEST, HIGHEST = 0.01, 10.0
_HALVINGS = 50


def best_scale(values: Tensor, data_values: Tensor, log_weights: Tensor | None = None) -> float:
    """The c in [0.01, 10] for which exp(c f), normalised, gives the data the highest likelihood.

    c E_data[f] - log Z(c) is concave in c, so its maximum is where E_data[f] = E_{p_c}[f], p_c ∝ exp(c f): found by
    bisection of log c. On a grid the points of p_c have weights exp(c f), and of samples with importance weights w
    (which are of exp f) w exp((c - 1) f): the first is the second with w = exp f.

    Args:
        values: [K], f at the centres of equal cells that cover the mass of every exp(c f), or at samples.
        data_values: [n], f at held-out data.
        log_weights: [K], log w of the samples, up to a constant; None: the values are on a grid.

    Raises:
        ValueError: a shape is another, or a value is not finite.
    """
    log_w = values if log_weights is None else log_weights
    for name, tensor in (("values", values), ("data_values", data_values), ("log_weights", log_w)):
        if tensor.dim() != 1 or len(tensor) == 0:
            raise ValueError(f"best_scale: {name} must be a vector, got shape {tuple(tensor.shape)}")
        if name != "log_weights" and not bool(tensor.isfinite().all()):
            raise ValueError(f"best_scale: {name} must be finite, got NaN or infinity")
    if log_w.shape != values.shape:
        raise ValueError(
            f"best_scale: log_weights must have values' shape {tuple(values.shape)}, got {tuple(log_w.shape)}"
        )
    f, log_w, at_data = values.detach().double(), log_w.detach().double(), data_values.detach().double().mean()
    low, high = math.log(LOWEST), math.log(HIGHEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        expected = torch.softmax(log_w + (math.exp(middle) - 1) * f, 0) @ f
        low, high = (middle, high) if bool(expected < at_data) else (low, middle)
    return math.exp((low + high) / 2)
