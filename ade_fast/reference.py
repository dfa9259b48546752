"""The paper's equations as eager PyTorch code: the specification of this package.

One function per equation, in the paper's order ("Exponential Family Estimation via Adversarial Dynamics
Embedding", NeurIPS 2019), with no tricks: plain autograd with ``create_graph=True``, two gradient evaluations
per step as printed, everything differentiable as often as PyTorch allows. Nothing here is fast, and nothing
fast may disagree with it. It imports only ``math``, ``collections.abc`` and ``torch``; ``EQUATIONS.md`` maps
every equation to its kernel and test.

Conventions. ``B`` is the batch, ``event`` the shape of one sample, ``T`` is ``n_steps``. A potential ``f``
maps ``(B, *event)`` to ``(B,)`` or ``(B, 1)`` with p(x) ∝ exp f(x), and ``F(x) = ∇_x f(x)``. A clip is None
or any object with ``mode`` in {"value", "norm"} and a positive ``bound``. Nothing is checked here: the
layers check their arguments.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Potential = Callable[[Tensor], Tensor]
Range = tuple[float, float]

GRADIENT_MODES = ("full", "truncated", "stopped", "none")


# --- Small helpers, so that the equations below read like the paper -----------------------------------------


def sum_over_event(values: Tensor) -> Tensor:
    """Sum over everything but the batch: ``(B, *event)`` to ``(B,)``."""
    return values.flatten(1).sum(1) if values.dim() > 1 else values


def value(potential: Potential, x: Tensor) -> Tensor:
    """f(x), shape ``(B,)``, whether the potential returns ``(B,)`` or ``(B, 1)``."""
    return potential(x).reshape(len(x))


def step_at(step_size: Any, t: int, event: torch.Size) -> Any:
    """The step size (or scale) of step ``t``, broadcastable to ``event``.

    A number, None, a callable or a tensor broadcastable to ``event`` serves every step. A tensor with
    ``1 + len(event)`` dimensions has a leading axis of length T, one entry per step.
    """
    if isinstance(step_size, Tensor) and step_size.dim() == 1 + len(event):
        return step_size[t]
    return step_size


# --- Clips (F.1 "we clip the norm of ∇f when updating v, and clip v when updating x"; F.2) ------------------


def clip_value(u: Tensor, bound: float) -> Tensor:
    """Each element to [-bound, bound], with derivative 1 on the closed interval, else 0."""
    return _clamped(u, -bound, bound)


def clip_norm(u: Tensor, bound: float) -> Tensor:
    """Each sample's L2 norm to at most ``bound``: u · min(1, bound / ‖u‖), ``u`` of shape ``(B, *event)``.

    The derivative is that of the formula. At ‖u‖ = 0 the factor is 1 with zero derivative (the formula's
    limit), so nothing is divided by zero there.
    """
    square = sum_over_event(u.square())
    acts = square.sqrt() > bound
    # Never 0, so that neither branch of the second `where` has a NaN derivative.
    norm = torch.where(acts, square, torch.ones_like(square)).sqrt()
    factor = torch.where(acts, bound / norm, torch.ones_like(norm))
    return u * factor.reshape(-1, *(1,) * (u.dim() - 1))


def clip(u: Tensor, how: Any | None) -> Tensor:
    """``u`` clipped as ``how`` says: None, or an object with ``mode`` in {"value", "norm"} and ``bound``."""
    if how is None:
        return u
    return {"value": clip_value, "norm": clip_norm}[how.mode](u, how.bound)


def clip_sample(x: Tensor, sample_range: Range | None) -> Tensor:
    """x to the data's range (F.1, trick 1), with derivative 1 on the closed interval, else 0."""
    return x if sample_range is None else _clamped(x, *sample_range)


def _clamped(u: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """`torch.clamp`, whose derivative on the bounds is 1 up to torch 2.13 and 0 since."""
    return torch.where((u >= low) & (u <= high), u, u.detach().clamp(low, high))  # type: ignore[arg-type]  # a number and a tensor too


# --- The gradient field, and how much of it is differentiated: (21), (38) -----------------------------------


def with_constant_parameters(potential: Potential) -> Potential:
    """f with its parameters taken as constants: the same values, no gradient to f (38).

    Raises:
        TypeError: a potential that is no ``nn.Module``: its parameters cannot be named.
    """
    if not isinstance(potential, torch.nn.Module):
        got = type(potential).__name__
        raise TypeError(f"with_constant_parameters: potential must be an nn.Module, got {got}")
    constants = {name: parameter.detach() for name, parameter in potential.named_parameters()}

    def f(x: Tensor) -> Tensor:
        return torch.func.functional_call(potential, constants, (x,))

    return f


def gradient_field(potential: Potential, x: Tensor, gradient: str = "full") -> Tensor:
    """F(x) = ∇_x f(x), shape ``(B, *event)``; the place where (21) and its truncations differ.

    Args:
        potential: f. It must not mix the samples of a batch.
        x: points ``(B, *event)``.
        gradient: ``"full"``: differentiable with respect to x and everything f depends on (21).
            ``"truncated"``: with respect to x only; f's parameters are constants (38). ``"stopped"``: a
            constant (the released code). ``"none"``: a constant; the unrolls then also detach their outputs.

    Raises:
        ValueError: an unknown ``gradient``.
        TypeError: ``"truncated"`` with a potential that is no ``nn.Module``.
    """
    if gradient not in GRADIENT_MODES:
        raise ValueError(f"gradient_field: gradient must be one of {GRADIENT_MODES}, got {gradient!r}")
    f = with_constant_parameters(potential) if gradient == "truncated" else potential
    differentiable = torch.is_grad_enabled() and gradient in ("full", "truncated")
    if not (differentiable and x.requires_grad):
        x = x.detach().requires_grad_()
    with torch.enable_grad():
        (grad,) = torch.autograd.grad(f(x).sum(), x, create_graph=differentiable)
    return grad


# --- (6), (8): the augmented model and its saddle problem ---------------------------------------------------


def augmented_log_density(potential: Potential, x: Tensor, v: Tensor, momentum_weight: float = 1.0) -> Tensor:
    """Eq. (6) without its normaliser: log p(x, v) + log Z = f(x) - λ/2 ‖v‖², shape ``(B,)``."""
    return value(potential, x) - momentum_weight / 2 * sum_over_event(v.square())


def with_base(potential: Potential, x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Eq. (1): f(x) = potential(x) + log p₀(x) with the base measure p₀ = N(mean, diag(std²)), shape ``(B,)``."""
    log_base = -0.5 * ((x - mean) / std) ** 2 - (std * math.sqrt(2 * math.pi)).log()
    return value(potential, x) + sum_over_event(log_base)


def saddle_objective(
    potential: Potential, data: Tensor, x: Tensor, v: Tensor, log_q: Tensor, momentum_weight: float = 1.0
) -> Tensor:
    """Eq. (8), a Monte-Carlo estimate: E_data[f] - E_q[f(x) - λ/2 ‖v‖² - log q(x, v)].

    f ascends it, q descends it. ``(x, v)`` are draws from q and ``log_q`` ``(B,)`` their log-densities.
    """
    model = augmented_log_density(potential, x, v, momentum_weight)
    return value(potential, data).mean() - (model - log_q).mean()


# --- (10), (11): leapfrog -----------------------------------------------------------------------------------


def leapfrog_kick(v: Tensor, grad: Tensor, eta: float | Tensor, *, grad_clip: Any | None = None) -> Tensor:
    """Eq. (10), first and third line: v½ = v + η/2 · F(x), with F(x) clipped (F.1)."""
    return v + eta / 2 * clip(grad, grad_clip)


def leapfrog_drift(
    x: Tensor,
    v: Tensor,
    eta: float | Tensor,
    *,
    momentum_clip: Any | None = None,
    sample_range: Range | None = None,
) -> Tensor:
    """Eq. (10), second line: x' = x + η · v½, v clipped where it acts and x' clipped to the data (F.1)."""
    return clip_sample(x + eta * clip(v, momentum_clip), sample_range)


def leapfrog_step(
    potential: Potential,
    x: Tensor,
    v: Tensor,
    eta: float | Tensor,
    *,
    grad_clip: Any | None = None,
    momentum_clip: Any | None = None,
    sample_range: Range | None = None,
    gradient: str = "full",
) -> tuple[Tensor, Tensor]:
    """Eq. (10): one step (x, v) -> (x', v'), with the two gradient evaluations it prints."""
    v_half = leapfrog_kick(v, gradient_field(potential, x, gradient), eta, grad_clip=grad_clip)
    x = leapfrog_drift(x, v_half, eta, momentum_clip=momentum_clip, sample_range=sample_range)
    v = leapfrog_kick(v_half, gradient_field(potential, x, gradient), eta, grad_clip=grad_clip)
    return x, v


def leapfrog(
    potential: Potential,
    x0: Tensor,
    v0: Tensor,
    step_size: float | Tensor,
    n_steps: int,
    *,
    grad_clip: Any | None = None,
    momentum_clip: Any | None = None,
    sample_range: Range | None = None,
    gradient: str = "full",
) -> tuple[Tensor, Tensor, Tensor]:
    """Eq. (11): T steps of (10).

    Args:
        potential: f, ``(B, *event)`` to ``(B,)`` or ``(B, 1)``.
        x0, v0: ``(B, *event)``.
        step_size: η; a number, a tensor broadcastable to ``event``, or one with a leading axis of length T.
        n_steps: T.
        grad_clip: clips F where v is updated. ``momentum_clip``: clips v where x is updated; v itself is not
        clipped.
        sample_range: ``(lo, hi)``, x is clipped to it after every drift.
        gradient: see :func:`gradient_field`.

    Returns:
        ``(x, v, log_det)``: ``(B, *event)`` twice, and ``(B,)`` zeros: every line of (10) is a shear. The
        sample clip is left out of ``log_det`` (it is not invertible, so it has none).
    """
    x, v = x0, v0
    for t in range(n_steps):
        x, v = leapfrog_step(
            potential,
            x,
            v,
            step_at(step_size, t, x0.shape[1:]),
            grad_clip=grad_clip,
            momentum_clip=momentum_clip,
            sample_range=sample_range,
            gradient=gradient,
        )
    return _outputs(x, v, x0.new_zeros(len(x0)), gradient)


# --- (13): generalized leapfrog -----------------------------------------------------------------------------


def log_scale(scale: Any | None, *inputs: Tensor, like: Tensor) -> Tensor:
    """S_v(F(x), x) or S_x(v) in the shape of the state it scales (``like``): it counts once per element.

    ``scale`` is None (0), a number or tensor broadcastable to the state, or a callable.
    """
    if scale is None:
        return torch.zeros_like(like)
    s = scale(*inputs) if callable(scale) else scale
    return torch.as_tensor(s, dtype=like.dtype, device=like.device).expand(like.shape)


def shift(g: Callable[..., Tensor] | None, *inputs: Tensor) -> Tensor:
    """g_v(F(x), x) or g_x(v); None is the identity of the first argument."""
    return inputs[0] if g is None else g(*inputs)


def generalized_leapfrog_kick(
    v: Tensor, force: Tensor, scale: Tensor, eta: float | Tensor, *, grad_clip: Any | None = None
) -> tuple[Tensor, Tensor]:
    """Eq. (13), first and third line: v½ = v ⊙ exp S_v + η/2 · g_v, and its log|det ∂v½/∂v| = Σ S_v.

    ``force`` is g_v(F(x), x) and ``scale`` is S_v(F(x), x), both ``(B, *momentum)``. The clip acts on g_v's
    output.
    """
    return v * scale.exp() + eta / 2 * clip(force, grad_clip), sum_over_event(scale)


def generalized_leapfrog_drift(
    x: Tensor,
    velocity: Tensor,
    scale: Tensor,
    eta: float | Tensor,
    *,
    momentum_clip: Any | None = None,
    sample_range: Range | None = None,
) -> tuple[Tensor, Tensor]:
    """Eq. (13), second line: x' = x ⊙ exp S_x + η · g_x, and its log|det ∂x'/∂x| = Σ S_x.

    The log-determinant leaves the sample clip out.
    ``velocity`` is g_x(v½) and ``scale`` is S_x(v½), both ``(B, *event)``. The clip acts on g_x's output.
    """
    x = clip_sample(x * scale.exp() + eta * clip(velocity, momentum_clip), sample_range)
    return x, sum_over_event(scale)


def generalized_leapfrog_step(
    potential: Potential,
    x: Tensor,
    v: Tensor,
    eta: float | Tensor,
    *,
    scale_v: Any | None = None,
    scale_x: Any | None = None,
    shift_v: Callable[[Tensor, Tensor], Tensor] | None = None,
    shift_x: Callable[[Tensor], Tensor] | None = None,
    momentum_eta: float | Tensor | None = None,
    grad_clip: Any | None = None,
    momentum_clip: Any | None = None,
    sample_range: Range | None = None,
    gradient: str = "full",
) -> tuple[Tensor, Tensor, Tensor]:
    """Eq. (13): one step (x, v) -> (x', v', log|det ∂(x', v')/∂(x, v)|).

    Named deviation from print: (18) gives both kicks of a step the same S_v, at x^t. The two kicks see x and
    x' respectively, so the log-determinant is Σ S_v(F(x), x) + Σ S_x(v½) + Σ S_v(F(x'), x').

    ``momentum_eta`` is the step size of the kicks where the momentum's shape differs from x's; None is
    ``eta``.
    """
    kick_eta = eta if momentum_eta is None else momentum_eta

    def kick(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        grad = gradient_field(potential, x, gradient)
        s_v = log_scale(scale_v, grad, x, like=v)
        return generalized_leapfrog_kick(v, shift(shift_v, grad, x), s_v, kick_eta, grad_clip=grad_clip)

    v_half, first = kick(x, v)
    x, drift = generalized_leapfrog_drift(
        x,
        shift(shift_x, v_half),
        log_scale(scale_x, v_half, like=x),
        eta,
        momentum_clip=momentum_clip,
        sample_range=sample_range,
    )
    v, second = kick(x, v_half)
    return x, v, first + drift + second


def generalized_leapfrog(
    potential: Potential,
    x0: Tensor,
    v0: Tensor,
    step_size: float | Tensor,
    n_steps: int,
    *,
    scale_v: Any | None = None,
    scale_x: Any | None = None,
    shift_v: Callable[[Tensor, Tensor], Tensor] | None = None,
    shift_x: Callable[[Tensor], Tensor] | None = None,
    momentum_step_size: float | Tensor | None = None,
    grad_clip: Any | None = None,
    momentum_clip: Any | None = None,
    sample_range: Range | None = None,
    gradient: str = "full",
) -> tuple[Tensor, Tensor, Tensor]:
    """T steps of eq. (13), and the sum of their log-determinants.

    Args:
        potential, step_size, n_steps, sample_range, gradient: as in :func:`leapfrog`.
        x0: ``(B, *event)``. v0: ``(B, *momentum)``, of any shape once ``shift_v`` and ``shift_x`` map between
        the two.
        scale_v, scale_x: S_v, called with ``(F(x), x)``, and S_x, called with ``(v,)``: None (0), a number, a
            tensor broadcastable to the state (with a leading T: one per step, in both its kicks), or a callable.
        shift_v, shift_x: g_v, called with ``(F(x), x)``, and g_x, called with ``(v,)``; None is the identity
            of F(x), of v.
        momentum_step_size: η of the kicks, broadcastable to ``momentum`` (or with a leading T); None is
        ``step_size``.
        grad_clip, momentum_clip: act on the outputs of g_v and g_x; all four networks see raw values.

    Returns:
        ``(x, v, log_det)``: ``(B, *event)``, ``(B, *momentum)``, ``(B,)``.
    """
    x, v = x0, v0
    log_det = x0.new_zeros(len(x0))
    kick_step = step_size if momentum_step_size is None else momentum_step_size
    for t in range(n_steps):
        x, v, step_log_det = generalized_leapfrog_step(
            potential,
            x,
            v,
            step_at(step_size, t, x0.shape[1:]),
            momentum_eta=step_at(kick_step, t, v0.shape[1:]),
            scale_v=step_at(scale_v, t, v0.shape[1:]),
            scale_x=step_at(scale_x, t, x0.shape[1:]),
            shift_v=shift_v,
            shift_x=shift_x,
            grad_clip=grad_clip,
            momentum_clip=momentum_clip,
            sample_range=sample_range,
            gradient=gradient,
        )
        log_det = log_det + step_log_det
    return _outputs(x, v, log_det, gradient)


# --- (14), (15), (19): stochastic Langevin -------------------------------------------------------------------


def langevin(
    potential: Potential,
    x0: Tensor,
    step_size: float | Tensor,
    n_steps: int,
    noise: Tensor,
    *,
    noise_std: float | Tensor | None = None,
    shift_v: Callable[[Tensor, Tensor], Tensor] | None = None,
    shift_x: Callable[[Tensor], Tensor] | None = None,
    grad_clip: Any | None = None,
    momentum_clip: Any | None = None,
    sample_range: Range | None = None,
    gradient: str = "full",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Eqs. (14), (15): T steps v' = ξ + η/2 g_v(F(x), x), x' = x + g_x(v') with ξ = σ · noise; (19)'s log-density of ξ.

    Named deviation from print: the index of (19)'s product runs over the ξ, each of which counts once.

    Args:
        potential, x0, n_steps, grad_clip, momentum_clip, sample_range, gradient: as in :func:`leapfrog`; the clips act
            on the outputs of g_v and g_x.
        step_size: η, as in :func:`leapfrog`, broadcastable to ``momentum``.
        noise: standard normals ``(T, B, *momentum)``.
        noise_std: σ, in the forms of ``step_size``; None is √η.
        shift_v, shift_x: g_v and g_x; None is the identity in F and v.

    Returns:
        ``(x, v, log_det, log_noise)``: ``(B, *event)``; the momenta of all steps ``(T, B, *momentum)``; ``(B,)`` zeros,
        as (x⁰, ξ) to (x^T, v) is a composition of shears; and Σ_t log N(ξ^t; 0, σ_t²), ``(B,)``.
    """
    x, momenta = x0, []
    log_noise = x0.new_zeros(len(x0))
    for t in range(n_steps):
        eta = torch.as_tensor(step_at(step_size, t, noise.shape[2:]), dtype=x0.dtype, device=x0.device)
        sigma = eta.sqrt() if noise_std is None else step_at(noise_std, t, noise.shape[2:])
        sigma = torch.as_tensor(sigma, dtype=x0.dtype, device=x0.device).expand(noise.shape[2:])
        xi = sigma * noise[t]
        log_density = -((xi / sigma) ** 2) / 2 - (sigma * math.sqrt(2 * math.pi)).log()
        log_noise = log_noise + sum_over_event(log_density)
        force = shift(shift_v, gradient_field(potential, x, gradient), x)
        v = xi + eta / 2 * clip(force, grad_clip)
        x = clip_sample(x + clip(shift(shift_x, v), momentum_clip), sample_range)
        momenta.append(v)
    x, v, log_det = _outputs(x, torch.stack(momenta), x0.new_zeros(len(x0)), gradient)
    return x, v, log_det, log_noise.detach() if gradient == "none" else log_noise


# --- B.1, (30): deterministic Langevin ----------------------------------------------------------------------


def hessian(potential: Potential, x: Tensor) -> Tensor:
    """H(x) = ∇²f(x) of each sample, ``(B, D, D)`` over the flattened event."""
    x = x if x.requires_grad else x.detach().requires_grad_()
    grad = gradient_field(potential, x).flatten(1)
    if not grad.requires_grad:  # f is linear
        return x.new_zeros(len(x), grad.shape[1], grad.shape[1])
    zero = torch.zeros_like(x)
    rows = [torch.autograd.grad(g.sum(), x, create_graph=True, allow_unused=True)[0] for g in grad.unbind(1)]
    return torch.stack([(zero if row is None else row).flatten(1) for row in rows], 1)


def exact_log_det(a: Tensor) -> Tensor:
    """log|det(I + A)| of each ``(D, D)``."""
    return torch.linalg.slogdet(torch.eye(a.shape[-1], dtype=a.dtype, device=a.device) + a).logabsdet


def taylor_log_det(a: Tensor, bound: Tensor | float, order: int, probes: Tensor | None = None) -> Tensor:
    """B.1, stochastic Taylor expansion: d log(1 + b) - Σ_{i=1}^k tr(Cⁱ)/i, C = (b I - A)/(1 + b), shape ``(B,)``.

    Named deviation from print: A = ηH and b = ηβ, where the paper's C has no η.

    Args:
        a: A, ``(B, D, D)``, of spectral radius at most ``bound``, a number or ``(B,)``. order: k.
        probes: z ``(P, B, D)`` of entries ±1: tr(Cⁱ) is estimated by the mean of zᵀCⁱz; None is the trace itself.
    """
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    bound = torch.as_tensor(bound, dtype=a.dtype, device=a.device).reshape(-1, 1, 1)
    c = (bound * eye - a) / (1 + bound)
    total = a.shape[-1] * torch.log1p(bound).reshape(-1).expand(len(a))
    power = c
    for i in range(1, order + 1):
        total = total - trace(power, probes) / i
        power = power @ c
    return total


def chebyshev_log_det(a: Tensor, bound: Tensor | float, order: int, probes: Tensor | None = None) -> Tensor:
    """B.1, stochastic Chebyshev expansion of tr log(I + A) to degree n: Σ_{j=0}^n c_j tr R_j(S), shape ``(B,)``.

    Named deviations from print: the coefficients are those of log(1 + b s) on s ∈ [-1, 1], S = A / b, where the paper
    expands log(1 - s) on [-1, 1], which is not the spectrum of its C. Where b > 0.99 that interval would reach the
    singularity: then [-0.99, b] is mapped to [-1, 1].

    Args:
        a, bound, probes: as in :func:`taylor_log_det`. order: n.
    """
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    high = torch.as_tensor(bound, dtype=a.dtype, device=a.device).reshape(-1)
    low = -high.clamp(max=0.99)
    centre, half = (high + low) / 2, (high - low) / 2
    angles = math.pi * (torch.arange(order + 1, dtype=a.dtype, device=a.device) + 0.5) / (order + 1)
    values = torch.log1p(centre.unsqueeze(1) + half.unsqueeze(1) * torch.cos(angles))
    s = (a - centre.reshape(-1, 1, 1) * eye) / half.reshape(-1, 1, 1)
    before, now = eye.expand_as(a), s
    total = a.shape[-1] * values.mean(1).expand(len(a))
    for j in range(1, order + 1):
        coefficient = 2 * (values * torch.cos(j * angles)).mean(1)
        total = total + coefficient * trace(now, probes)
        before, now = now, 2 * s @ now - before
    return total


def trace(a: Tensor, probes: Tensor | None = None) -> Tensor:
    """tr A of each ``(D, D)``, or its estimate mean zᵀAz (Hutchinson 1990) from probes z ``(P, B, D)``."""
    if probes is None:
        return a.diagonal(dim1=-2, dim2=-1).sum(-1)
    return torch.einsum("pbi,bij,pbj->pb", probes, a, probes).mean(0)


def deterministic_langevin(
    potential: Potential,
    x0: Tensor,
    step_size: float | Tensor,
    n_steps: int,
    *,
    log_det: str = "exact",
    order: int = 10,
    probes: Tensor | None = None,
    spectral_bound: float | None = None,
    gradient: str = "full",
) -> tuple[Tensor, Tensor]:
    """Eq. (30)'s sampler: T steps x' = x + η F(x), and Σ log|det(I + η H(x))|.

    Args:
        potential, x0, step_size, n_steps, gradient: as in :func:`leapfrog`.
        log_det: ``"exact"``; ``"taylor"`` and ``"chebyshev"`` of that ``order``; ``"laplacian"``, tr(ηH).
        probes: ``(P, T, B, *event)`` of entries ±1, for the two expansions; None takes their traces themselves.
        spectral_bound: β, a bound of ‖H‖₂, for the two expansions; those take max(η) β for the bound of ηH.

    Returns:
        ``(x, log_det)``: ``(B, *event)`` and ``(B,)``.
    """
    f = with_constant_parameters(potential) if gradient == "truncated" else potential
    x, total = x0, x0.new_zeros(len(x0))
    for t in range(n_steps):
        eta = torch.as_tensor(step_at(step_size, t, x0.shape[1:]), dtype=x0.dtype, device=x0.device)
        h = hessian(f, x)
        h = h.detach() if gradient in ("stopped", "none") else h
        a = eta.expand(x0.shape[1:]).reshape(-1, 1) * h
        if log_det == "exact":
            total = total + exact_log_det(a)
        elif log_det == "laplacian":
            total = total + trace(a)
        else:
            expansion = {"taylor": taylor_log_det, "chebyshev": chebyshev_log_det}[log_det]
            z = None if probes is None else probes[:, t].flatten(2)
            assert spectral_bound is not None
            total = total + expansion(a, eta.abs().max() * spectral_bound, order, z)
        x = x + eta * gradient_field(potential, x, gradient)
    return (x.detach(), total.detach()) if gradient == "none" else (x, total)


# --- Annealed leapfrog (not in the paper): Zhang et al. 2021, "Differentiable annealed importance sampling"; Geffner
# and Domke 2021, "MCMC variational inference via uncorrected Hamiltonian annealing" -------------------------


def bridge_force(
    potential: Potential,
    x: Tensor,
    beta: float | Tensor,
    mean: Tensor,
    std: Tensor,
    *,
    grad_clip: Any | None = None,
    gradient: str = "full",
) -> Tensor:
    """The force of β f + (1 - β) log N(mean, diag(std²)) at x, clipped: ``(B, *event)``.

    ``gradient="stopped"`` takes all of it for a constant, the Gaussian's part too.
    """
    force = beta * gradient_field(potential, x, gradient) - (1 - beta) * (x - mean) / std**2
    return clip(force.detach() if gradient == "stopped" else force, grad_clip)


def annealed_leapfrog(
    potential: Potential,
    x0: Tensor,
    v0: Tensor,
    step_size: float | Tensor,
    n_steps: int,
    mean: Tensor,
    std: Tensor,
    noise: Tensor,
    *,
    refresh: float | Tensor = 0.5,
    bridges: Tensor | None = None,
    grad_clip: Any | None = None,
    gradient: str = "full",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """T leapfrog steps, position first, on bridges from N(mean, diag(std²)) to f, with partly refreshed momenta.

    Step t: x ← x + η/2 v; v ← v + η F_t(x); x ← x + η/2 v, with F_t the :func:`bridge_force` of β_t; then, except
    after the last, v' = √(1 - r) v + √r ξ. A refresh is reversible with respect to N(0, I), so the density of the path
    over that of its reversal gains N(v') / N(v): log_noise = Σ ½ (‖v‖² - ‖v'‖²). With log q = log q⁰ + log_noise and
    w = exp(f(x^T) - ½ ‖v^T‖²) / q, E[w] = Z (2π)^{d/2}, whatever the steps are.

    Args:
        potential, x0, v0, step_size, n_steps, gradient: as in :func:`leapfrog`.
        mean, std: of the Gaussian that the bridges start at, broadcastable to ``event``.
        noise: ξ, ``(T - 1, B, *event)``.
        refresh: r in (0, 1], the part of the momentum's variance that is drawn anew.
        bridges: β, ``(T,)``, the last 1; None is (t + 1) / T.
        grad_clip: clips the bridge's whole force.

    Returns:
        ``(x, v, log_det, log_noise)``: ``(B, *event)`` twice, ``(B,)`` zeros, as every line is a shear, and ``(B,)``.
    """
    x, v = x0, v0
    log_noise = x0.new_zeros(len(x0))
    for t in range(n_steps):
        eta = step_at(step_size, t, x0.shape[1:])
        beta = (t + 1) / n_steps if bridges is None else bridges[t]
        x = x + eta / 2 * v
        v = v + eta * bridge_force(potential, x, beta, mean, std, grad_clip=grad_clip, gradient=gradient)
        x = x + eta / 2 * v
        if t < n_steps - 1:
            before, v = v, (1 - refresh) ** 0.5 * v + refresh**0.5 * noise[t]
            log_noise = log_noise + sum_over_event(before.square() - v.square()) / 2
    x, v, log_det = _outputs(x, v, x0.new_zeros(len(x0)), gradient)
    return x, v, log_det, log_noise.detach() if gradient == "none" else log_noise


# --- (16) to (18): the density of the end point -------------------------------------------------------------


def log_density(log_q0: Tensor, log_det: Tensor) -> Tensor:
    """Eqs. (16) to (18), corrected: log q^T(x^T, v^T) = log q⁰(x⁰, v⁰) - log|det ∂(x^T, v^T)/∂(x⁰, v⁰)|.

    Named deviation from print: (17) multiplies q⁰ by the determinants where the change of variables divides
    by them. With ``log_det`` 0 (leapfrog) this is (16).
    """
    return log_q0 - log_det


def log_weights(potential: Potential, x: Tensor, v: Tensor, log_q: Tensor, momentum_weight: float = 1.0) -> Tensor:
    """log w of draws from q^T under (6), less its momenta's normaliser l/2 log(2π/λ): E_q[w] = Z, shape ``(B,)``."""
    normaliser = 0.5 * v[0].numel() * math.log(2 * math.pi / momentum_weight)
    return augmented_log_density(potential, x, v, momentum_weight) - log_q - normaliser


def renyi_bound(log_w: Tensor, order: float) -> Tensor:
    """Rényi's bound of log Z from log-weights ``(B,)`` (Li and Turner 2016): (1/(1-α)) log mean w^(1-α).

    Order α = 1, the mean of log w, is what (20) has in the place of log Z; α = 0 the importance-weighted bound.
    """
    if order == 1:
        return log_w.mean()
    return ((1 - order) * log_w).exp().mean().log() / (1 - order)


# --- (20): the objective ------------------------------------------------------------------------------------


def objective(
    potential: Potential,
    data: Tensor,
    x: Tensor,
    v: Tensor,
    log_q0: Tensor,
    log_det: Tensor,
    momentum_weight: float = 1.0,
) -> Tensor:
    """Eq. (20): ℓ = E_data[f] - E_{q⁰}[f(x^T) - λ/2 ‖v^T‖²] - H(q^T), with H(q^T) = H(q⁰) + E[log_det].

    It is (8) with the dual sampler's own density: Θ descends it, f ascends it, both through ``(x, v)`` (21).
    Named deviation from print: (21)'s kinetic term has the wrong sign; autograd's derivative of this is
    right.
    """
    return saddle_objective(potential, data, x, v, log_density(log_q0, log_det), momentum_weight)


# --- C.2: planar flow, the 2-D experiments' initial distribution (Rezende and Mohamed 2015, eqs. 10-12) -----


def planar_flow_direction(u: Tensor, w: Tensor) -> Tensor:
    """û = u + (m(w·u) - w·u) w / ‖w‖², so that w·û = m(w·u) > -1 and the flow is invertible.

    Named deviation from print: m(a) = -1 + log(1 + (e - 1) e^a), their -1 + log(1 + e^a) shifted so that
    m(0) = 0; then u = 0 is the identity map.
    """
    dot = w @ u
    m = torch.nn.functional.softplus(dot + math.log(math.e - 1)) - 1
    return u + (m - dot) * w / w.square().sum()


def planar_flow(x: Tensor, u: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """One planar layer y = x + û tanh(w·x + b) and log|det ∂y/∂x| = log|1 + û·w (1 - tanh²(w·x + b))|.

    Shapes: x ``(B, d)``; u, w ``(d,)``; b scalar. Returns ``(B, d)`` and ``(B,)``.
    """
    u_hat = planar_flow_direction(u, w)
    h = torch.tanh(x @ w + b)
    return x + u_hat * h.unsqueeze(1), torch.log(torch.abs(1 + (w @ u_hat) * (1 - h.square())))


def rational_quadratic_spline(
    x: Tensor, widths: Tensor, heights: Tensor, slopes: Tensor, bound: float = 5.0, least: float = 1e-3
) -> tuple[Tensor, Tensor]:
    """A monotonic spline of K pieces on [-bound, bound], the identity outside (Durkan et al. 2019), as zuko has it.

    Widths and heights of pieces are softmaxes of numbers squashed to |log least| / 2; slopes at the inner knots are
    exponentials of numbers squashed to |log least|, and 1 at both ends.

    Args:
        x: ``(*,)``. widths, heights: ``(*, K)``, and slopes ``(*, K - 1)``: unconstrained.

    Returns:
        ``(y, log ∂y/∂x)``, both ``(*,)``.
    """
    limit = -math.log(least)

    def squash(a: Tensor, most: float) -> Tensor:
        return a / (1 + a.abs() / most)

    def knots(a: Tensor) -> Tensor:
        ends = squash(a, limit / 2).softmax(-1).cumsum(-1)
        return bound * (2 * torch.cat([torch.zeros_like(ends[..., :1]), ends], -1) - 1)

    one = torch.ones_like(slopes[..., :1])
    at_x, at_y = knots(widths), knots(heights)
    slope = torch.cat([one, squash(slopes, limit).exp(), one], -1)
    inside = (x > -bound) & (x <= bound)
    last = widths.shape[-1] - 1
    piece = ((at_x < x.unsqueeze(-1)).sum(-1) - 1).clamp(0, last).unsqueeze(-1)
    (x0, x1), (y0, y1), (d0, d1) = (
        (t.gather(-1, piece).squeeze(-1), t.gather(-1, piece + 1).squeeze(-1)) for t in (at_x, at_y, slope)
    )
    s = (y1 - y0) / (x1 - x0)
    z = torch.where(inside, (x - x0) / (x1 - x0), 0.5)
    q = z * (1 - z)
    below = s + (d0 + d1 - 2 * s) * q
    y = y0 + (y1 - y0) * (s * z**2 + d0 * q) / below
    derivative = s**2 * (2 * s * q + d0 * (1 - z) ** 2 + d1 * z**2) / below**2
    return torch.where(inside, y, x), torch.where(inside, derivative.log(), 0.0)


# --- (39), (40): deep latent-variable model ------------------------------------------------------------------


def deep_latent(v: Tensor, mean: Tensor, std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Eqs. (39), (40): x = φ(v) + σ ⊙ ε, and log N(x; φ(v), diag(σ²)) + log N(v; 0, I).

    Shapes: v ``(B, l)``; mean φ(v), std σ and noise ε ``(B, *event)``. Returns ``(B, *event)`` and ``(B,)``.
    """
    x = mean + std * noise
    log_x = -0.5 * ((x - mean) / std) ** 2 - (std * math.sqrt(2 * math.pi)).log()
    log_v = -0.5 * v**2 - 0.5 * math.log(2 * math.pi)
    return x, sum_over_event(log_x) + sum_over_event(log_v)


# --- F.1: maximum mean discrepancy (Gretton et al. 2012, lemma 6) -------------------------------------------


def mmd2(x: Tensor, y: Tensor, bandwidth: float | str = "median") -> Tensor:
    """Unbiased MMD² with the Gaussian kernel k(a, b) = exp(-‖a - b‖² / (2 h²)).

    ``x`` is ``(n, d)``, ``y`` ``(m, d)``. ``bandwidth`` is h; ``"median"`` takes h² to be the median of
    ‖a - b‖² over the pairs of distinct points of the pooled sample, as a constant.
    """
    pooled = torch.cat([x, y])
    square = (pooled.unsqueeze(1) - pooled.unsqueeze(0)).square().sum(-1)
    if bandwidth == "median":
        rows, columns = torch.triu_indices(len(pooled), len(pooled), offset=1)
        h2 = square[rows, columns].detach().quantile(0.5)
    else:
        h2 = torch.as_tensor(bandwidth, dtype=x.dtype) ** 2
    k = torch.exp(-square / (2 * h2))
    n, m = len(x), len(y)
    within_x = (k[:n, :n].sum() - k[:n, :n].trace()) / (n * (n - 1))
    within_y = (k[n:, n:].sum() - k[n:, n:].trace()) / (m * (m - 1))
    return within_x + within_y - 2 * k[:n, n:].mean()


# --- F.2: the released image code's update ------------------------------------------------------------------


def damped_leapfrog_kick(
    v: Tensor, grad: Tensor, step: float | Tensor, damping: float, *, grad_clip: Any | None = None
) -> Tensor:
    """One kick of the released image code: v' = m v + step · clip(F(x))."""
    return damping * v + step * clip(grad, grad_clip)


def damped_leapfrog(
    potential: Potential,
    x0: Tensor,
    v0: Tensor,
    step_size: float | Tensor,
    n_steps: int,
    damping: float = 0.5,
    *,
    drift_step: float | Tensor = 1.0,
    grad_clip: Any | None = None,
    momentum_clip: Any | None = None,
    sample_range: Range | None = None,
    gradient: str = "full",
) -> tuple[Tensor, Tensor, Tensor]:
    """The released image code's dynamics (F.2): T + 1 damped kicks around T drifts.

    v ← m v + k_t F(x), and x ← x + δ v between two kicks. The first and last kick have k = η/2, the others η:
    with one step size per step that is k_0 = η⁰/2, k_t = (ηᵗ⁻¹ + ηᵗ)/2, k_T = ηᵀ⁻¹/2.

    Named deviations. From print: the text's "(13) with η fixed to 0.5" is not what the code runs; that 0.5 is
    the damping m, and the drift has no η in it. From the code: its log-det counts T kicks once each; each of
    the T + 1 kicks multiplies all d momenta by m, so ``log_det`` is (T + 1) d log|m|.

    Args and returns: as in :func:`leapfrog`; ``damping`` is m, ``drift_step`` is δ, in the
    forms of ``step_size``.
    """
    event = x0.shape[1:]
    x, v = x0, v0
    for t in range(n_steps + 1):
        before = step_at(step_size, t - 1, event) if t > 0 else 0.0
        after = step_at(step_size, t, event) if t < n_steps else 0.0
        grad = gradient_field(potential, x, gradient)
        v = damped_leapfrog_kick(v, grad, (before + after) / 2, damping, grad_clip=grad_clip)
        if t < n_steps:
            delta = step_at(drift_step, t, event)
            x = leapfrog_drift(x, v, delta, momentum_clip=momentum_clip, sample_range=sample_range)
    per_kick = event.numel() * math.log(abs(damping))
    return _outputs(x, v, x0.new_full((len(x0),), (n_steps + 1) * per_kick), gradient)


def _outputs(x: Tensor, v: Tensor, log_det: Tensor, gradient: str) -> tuple[Tensor, Tensor, Tensor]:
    """``gradient="none"``: the end point as constants, for every player."""
    return (x.detach(), v.detach(), log_det.detach()) if gradient == "none" else (x, v, log_det)
