"""An MLP's gradient and Laplacian from one forward sweep, as a graph that autograd differentiates as often as it likes.

Every unit carries its value, its derivatives by x, and its Laplacian:
h = φ(z), ∇h = φ'(z) ∇z, ∇²h = φ'(z) ∇²z + φ''(z) ‖∇z‖². So D + 2 products with each weight, all in one, take the place
of f's backward pass and one more through that for each dimension.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..fields.mlp import Base, MLPField

Jet = tuple[Tensor, Tensor, Tensor]


def gradient_and_laplacian(field: MLPField, x: Tensor, base: Base | None = None) -> tuple[Tensor, Tensor]:
    """(∇f(x), [B, D], and ∇²f(x), [B]) at rows x [B, D] of a smooth MLP; with a base, those of the sum.

    Raises: ValueError for an activation that has no second derivative.
    """
    if field.spec.piecewise_linear:
        raise ValueError(f"gradient_and_laplacian: {field.spec.activation} has no second derivative")
    jet = _JETS[field.spec.activation]
    weights, biases = field.weights()
    dim, last = x.shape[1], len(weights) - 2
    z = F.linear(x, weights[0], biases[0])
    slope = weights[0].t().unsqueeze(1)  # ∇z, [D, 1 or B, n]
    curvature: Tensor | None = None  # ∇²z, [B, n]
    for layer, weight in enumerate(weights[1:]):
        value, first, second = jet(z, field.spec.parameter)
        bent = second * slope.square().sum(0)
        curvature = bent if curvature is None else torch.addcmul(bent, first, curvature)
        slope = first * slope
        if layer == last:
            break
        swept = torch.cat([value.unsqueeze(0), slope, curvature.unsqueeze(0)]) @ weight.t()
        z, slope, curvature = swept.split((1, dim, 1))  # whose derivative is one tensor, and not three full of zeros
        z, curvature = z[0] + biases[layer + 1], curvature[0]
    assert curvature is not None  # there is a hidden layer
    gradient, laplacian = (slope @ weights[-1][0]).t(), curvature @ weights[-1][0]
    if base is None:
        return gradient, laplacian
    pull, centre = base
    return torch.addcmul(gradient, pull, x - centre, value=-1), laplacian - pull.sum()


# φ, φ' and φ'' at z, by the activation's parameter. In C++: csrc/potentials/mlp_activations.h.


def _softplus(z: Tensor, _: float) -> Jet:
    first = torch.sigmoid(z)
    return F.softplus(z), first, first - first.square()


def _silu(z: Tensor, _: float) -> Jet:
    gate = torch.sigmoid(z)
    value = z * gate
    first = gate * (1 + z - value)
    return value, first, (gate - gate.square()) * (2 + z - 2 * value)


def _tanh(z: Tensor, _: float) -> Jet:
    value = torch.tanh(z)
    first = 1 - value.square()
    return value, first, -2 * value * first


def _elu(z: Tensor, alpha: float) -> Jet:
    above = z > 0
    decaying = alpha * z.clamp(max=0).exp()
    return F.elu(z, alpha), torch.where(above, 1.0, decaying), torch.where(above, 0.0, decaying)


_JETS: dict[str, Callable[[Tensor, float], Jet]] = {
    "softplus": _softplus,
    "silu": _silu,
    "tanh": _tanh,
    "elu": _elu,
}
