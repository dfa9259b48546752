"""Score matching: exact (Hyvärinen 2005), denoising (Vincent 2011), sliced (Song et al. 2019)."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from ..dynamics.laplacian import gradient_and_laplacian
from ..dynamics.trace import rademacher
from ..fields import fused_sum
from ..initial.base import as_count
from ..potentials.with_base import WithBase
from ._values import (
    Potential,
    check_generator,
    check_like,
    check_positive,
    estimating,
    gradients,
    gradients_with_graph,
    normal,
)


def score_matching(
    potential: Potential,
    data: Tensor,
    *,
    laplacian: str = "exact",
    n_probes: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``E_D[ ½ ‖∇f(x)‖² + ∇²f(x) ]``.

    Source: (43) with its sign turned, D.2; Hyvärinen 2005. Dual sampler: the data and one step of Langevin dynamics, of
    which this is the Taylor expansion: η/2 times its parameter gradient is that of one Langevin step of size η with
    the sampler held fixed, up to O(η²). The values do not correspond.

    Args:
        potential: f, [B, *event] -> [B] or [B, 1], twice differentiable in x, and once more in its parameters.
        data: [B, *event], B >= 1.
        laplacian: "exact", of smooth MLPs that have kernels by one sweep forwards, of anything else by D Hessian-vector
            products; or "hutchinson", ``n_probes`` of these: unbiased.
        n_probes: of Hutchinson's estimate.
        generator: source of the probes, Rademacher vectors.

    Returns:
        A scalar to minimise, differentiable in whatever f depends on.

    Warns:
        UserWarning: f is piecewise linear (ReLU): ∇²f is 0 wherever it exists, and the loss's minimum is a constant f.

    Raises: TypeError, ValueError: an argument of the wrong kind, shape or range.
    """
    layer = "score_matching"
    if laplacian not in ("exact", "hutchinson"):
        raise ValueError(f"{layer}: laplacian must be 'exact' or 'hutchinson', got {laplacian!r}")
    n_probes = as_count(layer, "n_probes", n_probes, least=1)
    check_generator(layer, generator)
    with estimating(layer, potential, data):
        learning = torch.is_grad_enabled()
        curves, pull = _apart(potential)
        swept = _swept(layer, curves, data) if laplacian == "exact" else None
        with torch.enable_grad():
            if swept is not None:
                rows, grad, trace = swept
            else:
                rows, grad = gradients_with_graph(layer, curves, data)
                probes = _units(rows) if laplacian == "exact" else rademacher((n_probes, *rows.shape), rows, generator)
                trace = _trace(layer, rows, grad, probes, learning) / (1 if laplacian == "exact" else n_probes)
            for base in pull:  # of a base measure gradient and Laplacian are known
                pulls, mean, _ = base.precision(data.shape[1:], data.dtype)
                grad = grad - pulls * (rows - mean)
                trace = trace - pulls.sum()
            loss = (0.5 * grad.square().sum(1) + trace).mean()
        return loss if learning else loss.detach()


def sliced_score_matching(
    potential: Potential,
    data: Tensor,
    n_projections: int = 1,
    *,
    variance_reduced: bool = True,
    projections: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``E_D E_u[ uᵀ ∇²f(x) u + ½ ‖∇f(x)‖² ]``, or with ½ (u·∇f)² in place of the square where not ``variance_reduced``.

    Source: Song, Garg, Shi, Ermon 2019, eqs. (7), (8). Dual sampler: that of `score_matching`, of which this is an
    unbiased estimate by random directions.

    Args:
        potential, data: as in `score_matching`; on a piecewise-linear f it warns as well.
        n_projections: directions per point, Rademacher vectors.
        variance_reduced: the square in closed form (SSM-VR).
        projections: [P, B, *event], the directions themselves, with E[u uᵀ] = I.
        generator: where they come from otherwise.

    Returns, warns, raises: as `score_matching`.
    """
    layer = "sliced_score_matching"
    n_projections = as_count(layer, "n_projections", n_projections, least=1)
    check_generator(layer, generator)
    with estimating(layer, potential, data):
        learning = torch.is_grad_enabled()
        if projections is not None:
            probes = check_like(layer, "projections", projections, data, ("P", *data.shape)).flatten(2)
        else:
            probes = rademacher((n_projections, *data.flatten(1).shape), data, generator)
        curves, pull = _apart(potential)
        with torch.enable_grad():
            rows, grad = gradients_with_graph(layer, curves, data)
            curvature = _trace(layer, rows, grad, probes, learning) / len(probes)
            for base in pull:
                pulls, mean, _ = base.precision(data.shape[1:], data.dtype)
                grad = grad - pulls * (rows - mean)
                curvature = curvature - (pulls * probes.square()).sum(2).mean(0)
            along = grad.square().sum(1) if variance_reduced else (grad * probes).sum(2).square().mean(0)
            loss = (0.5 * along + curvature).mean()
        return loss if learning else loss.detach()


def denoising_score_matching(
    potential: Potential,
    data: Tensor,
    noise_std: float = 0.1,
    *,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``½ E_D E_ε ‖∇f(x + σ ε) + ε/σ‖²``, ε ~ N(0, I): p_f becomes the data's density blurred by N(0, σ²).

    Source: Vincent 2011. Equal to `score_matching` of the blurred data up to a constant in f, so its dual sampler is
    the same one, started at blurred data. No second derivatives in x: it suits piecewise-linear f too.

    Args:
        potential, data: as in `score_matching`.
        noise_std: σ > 0.
        noise: ε, of data's shape, in place of a draw.
        generator: source of the draw.

    Returns, raises: as `score_matching`.
    """
    layer = "denoising_score_matching"
    std = check_positive(layer, "noise_std", noise_std)
    check_generator(layer, generator)
    with estimating(layer, potential, data):
        if noise is None:
            noise = normal(tuple(data.shape), data, generator)
        check_like(layer, "noise", noise, data, tuple(data.shape))
        score = gradients(layer, potential, data + std * noise)
        return 0.5 * (score + noise.flatten(1) / std).square().sum(1).mean()


def _apart(potential: Potential) -> tuple[Potential, list[WithBase]]:
    """f without its Gaussian bases, and these: they would hide that the rest is piecewise linear."""
    bases: list[WithBase] = []
    while type(potential) is WithBase and not (potential.mean.requires_grad or potential.std.requires_grad):
        bases.append(potential)
        potential = potential.potential
    return potential, bases


def _swept(layer: str, potential: Potential, data: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """(data as rows [B, D], ∇f [B, D], ∇²f [B]) of a smooth MLP that has kernels, by one sweep forwards; or None."""
    with torch.inference_mode(False):
        rows = data.detach().clone() if data.is_inference() else data.detach()
    found = fused_sum(potential, rows)
    if found is None or found.field.spec.piecewise_linear:
        return None
    grad, trace = gradient_and_laplacian(found.field, rows, found.base)
    if found.base is None and not bool((trace != 0).any()):
        _warn_flat(layer)
    return rows, grad, trace


def _units(rows: Tensor) -> Tensor:
    """The unit vectors, [D, B, D]."""
    dim = rows.shape[1]
    return torch.eye(dim, dtype=rows.dtype, device=rows.device).unsqueeze(1).expand(dim, len(rows), dim)


def _trace(layer: str, rows: Tensor, grad: Tensor, probes: Tensor, learning: bool) -> Tensor:
    """Σ_p zᵀ ∇²f z of each sample, [B], probes z [P, B, D]; warns where all products are 0."""
    total, bent = rows.new_zeros(len(rows)), torch.zeros((), dtype=torch.bool, device=rows.device)
    if grad.requires_grad:
        for z in probes:
            (product,) = torch.autograd.grad(grad, rows, z, retain_graph=True, create_graph=learning, allow_unused=True)
            if product is not None:
                bent = bent | (product != 0).any()
                total = total + (product * z).sum(1)
    if not bool(bent):
        _warn_flat(layer)
    return total


def _warn_flat(layer: str) -> None:
    warnings.warn(
        f"{layer}: potential is piecewise linear at the data (ReLU?): ∇²f is 0 wherever it exists, so that a "
        "constant f has the lowest loss; take a smooth activation (silu, softplus), or denoising_score_matching",
        UserWarning,
        stacklevel=4,
    )
