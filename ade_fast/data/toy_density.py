"""True log-densities and entropies of the toy sets, in float64: one function for each draw of ``toy.py``.

``LOG_DENSITIES[name]`` maps points ``(n, 2)`` to ``(n,)``. Four kinds: densities in closed form; rings, whose angle is
uniform; the pinwheel, by a change of variables; noise around a curve, integrated over the curve by Gauss-Legendre
quadrature, with nodes so close that its error is that of rounding.

``ENTROPIES[name]`` is the differential entropy in nats.
"""

import itertools
import math
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_TWO_PI = 2 * math.pi
_LOG_2PI_E = math.log(_TWO_PI) + 1


class Entropy(NamedTuple):
    """A differential entropy in nats: its value, a bound of its numerical error, and whether it is a closed form."""

    value: float
    accuracy: float
    exact: bool


def _log_normal(x: Tensor, mean: Tensor | float = 0.0, std: float = 1.0) -> Tensor:
    return -0.5 * ((x - mean) / std).square() - math.log(std * math.sqrt(_TWO_PI))


def _where(inside: Tensor, value: float | Tensor) -> Tensor:
    """``value`` inside, -inf outside."""
    return torch.where(inside, torch.as_tensor(value, dtype=torch.float64, device=inside.device), -math.inf)


# --- closed forms ---


def _uniform(x: Tensor) -> Tensor:
    return _where(((x >= -3) & (x < 3)).all(dim=1), -math.log(36))


def _checkerboard(x: Tensor) -> Tensor:
    same_colour = (x / 2).floor().sum(dim=1).remainder(2) == 0
    return _where(((x >= -4) & (x < 4)).all(dim=1) & same_colour, -math.log(32))


def _eight_gaussians(x: Tensor) -> Tensor:
    angle = torch.arange(8, dtype=x.dtype, device=x.device) * (math.pi / 4)
    centres = 4 / math.sqrt(2) * torch.stack((angle.cos(), angle.sin()), dim=1)
    return _log_normal(x[:, None], centres, 0.5 / math.sqrt(2)).sum(dim=2).logsumexp(dim=1) - math.log(8)


def _banana(x: Tensor) -> Tensor:
    x, y = x.unbind(1)
    return _log_normal(x, 0.0, 2.0) + _log_normal(y, 0.2 * (x.square() - 4))


def _cosine(x: Tensor) -> Tensor:
    x, y = x.unbind(1)
    return _where((x >= -4) & (x < 4), _log_normal(y, 3 * (2 * x).cos()) - math.log(8))


def _funnel(x: Tensor) -> Tensor:
    x, y = x.unbind(1)
    log_var = (-x).clamp(max=math.log(10))
    squared = (2 * y.abs().log() - log_var).exp()  # y² / variance, whose denominator may underflow
    return _log_normal(x, 0.0, 2.0) - 0.5 * (squared + log_var + math.log(_TWO_PI))


def _circles(x: Tensor) -> Tensor:
    """A circle of radius R blurred by N(0, s²): N(r; R, s) i0e(r R / s²) / sqrt(2π s²), i0e(u) = exp(-u) I_0(u)."""
    radii, std = x.new_tensor((3.0, 1.5)), 3 * 0.08
    r = x.norm(dim=1, keepdim=True)
    log_i0e = torch.special.i0e(r * radii / std**2).log()
    return (_log_normal(r, radii, std) + log_i0e).logsumexp(dim=1) - math.log(2 * std * math.sqrt(_TWO_PI))


# --- rings ---

# The density grows as 1 / r towards the centre of a ring: one point without mass, where a grid may well have a node.
_CENTRE = 1e-6


def _rings(x: Tensor, radii: tuple[float, ...]) -> Tensor:
    """p(|radius| = r) / (2π r): a radius drawn below 0 comes out on the other side of the centre."""
    r = x.norm(dim=1, keepdim=True).clamp(min=_CENTRE)
    mean = x.new_tensor(radii)
    folded = torch.logaddexp(_log_normal(r, mean, 0.2), _log_normal(r, -mean, 0.2))
    return (folded + (mean / mean.sum()).log()).logsumexp(dim=1) - (_TWO_PI * r[:, 0]).log()


def _multiring(x: Tensor) -> Tensor:
    return _rings(x, (1.0, 3.0, 5.0))


def _ring(x: Tensor) -> Tensor:
    return _rings(x, (5.0,))


# --- pinwheel ---

# Beyond this distance (13 standard deviations of the radial draw, densities below 1e-38) the arms are wound so tightly
# that the density is given averaged over the angle.
_WOUND = 5.0
_BISECTIONS = 54


def _log_pinwheel_draws(radial: Tensor, tangential: Tensor) -> Tensor:
    return _log_normal(radial, 1.0, 0.3) + _log_normal(tangential, 0.0, 0.1)


def _pinwheel_turn(s: Tensor, phi: Tensor) -> Tensor:
    """How far clockwise the arm at angle 0 takes the draw (radial, tangential) = s (cos φ, sin φ) from angle 0."""
    return 0.25 * (s * phi.cos()).exp() - phi


def _pinwheel(x: Tensor) -> Tensor:
    """The five arms' densities at x/2, each the sum over the draws (radial, tangential) that the turn takes there.

    A turn by an angle keeps the distance s; with (radial, tangential) = s (cos φ, sin φ) it remains to find every φ
    whose turned angle is that of x/2, modulo a fifth of a circle. The map's Jacobian is 1 + angle'(radial) tangential:
    where it changes its sign (far in the tails) an arm folds, and a point comes from several draws.
    """
    points = x / 2
    s = points.norm(dim=1)
    out = torch.empty_like(s)
    wound = s > _WOUND
    out[wound] = _wound_pinwheel(s[wound])
    out[~wound] = _log_sum_over_draws(s[~wound], torch.atan2(points[~wound, 1], points[~wound, 0]))
    return out - math.log(4)  # x = 2 * point


def _wound_pinwheel(s: Tensor) -> Tensor:
    """The mean over φ of the density of (radial, tangential) = s (cos φ, sin φ), by Laplace's method at φ = 0."""
    precision = s.square() / 0.01 - s * (s - 1) / 0.09
    return _log_pinwheel_draws(s, torch.zeros_like(s)) - 0.5 * (_TWO_PI * precision).log()


def _log_sum_over_draws(s: Tensor, angle: Tensor) -> Tensor:
    total = torch.full_like(s, -math.inf)
    for lo, hi in itertools.pairwise(_monotone_pieces(s)):
        turn_lo, turn_hi = _pinwheel_turn(s, lo), _pinwheel_turn(s, hi)
        # Turns -angle + k fifths of a circle, from the first k above the smaller end to the last below the larger.
        fifth = _TWO_PI / 5
        first = ((torch.minimum(turn_lo, turn_hi) + angle) / fifth).ceil()
        last = ((torch.maximum(turn_lo, turn_hi) + angle) / fifth).ceil() - 1
        for k in range(int((last - first).max().item()) + 1 if len(s) else 0):
            rows = (first + k <= last).nonzero()[:, 0]
            target = (first[rows] + k) * fifth - angle[rows]
            s_, lo_, hi_ = s[rows], lo[rows], hi[rows]
            rising = turn_hi[rows] > turn_lo[rows]
            for _ in range(_BISECTIONS):
                middle = (lo_ + hi_) / 2
                beyond = (_pinwheel_turn(s_, middle) > target) == rising
                lo_, hi_ = torch.where(beyond, lo_, middle), torch.where(beyond, middle, hi_)
            radial, tangential = s_ * lo_.cos(), s_ * lo_.sin()
            log_jacobian = (1 + 0.25 * radial.exp() * tangential).abs().log()
            total[rows] = torch.logaddexp(total[rows], _log_pinwheel_draws(radial, tangential) - log_jacobian)
    return total - math.log(5)


def _monotone_pieces(s: Tensor) -> list[Tensor]:
    """-π, two turning points, π: the turn is monotone in φ between them.

    Its derivative is -1 - s sin φ exp(s cos φ) / 4. For φ in (-π, 0) the product is largest in size at ``peak``; where
    it does not reach 4 there, there is no turning point, and the middle piece is left empty.
    """

    def steepness(phi: Tensor) -> Tensor:
        return -s * phi.sin() * (s * phi.cos()).exp()

    # cos(peak) = (sqrt(1 + 4 s²) - 1) / (2 s), written so that s = 0 divides nothing by nothing.
    peak = -torch.acos(2 * s / ((1 + 4 * s.square()).sqrt() + 1))
    folds = steepness(peak) > 4
    turning = []
    for end in (torch.full_like(s, -math.pi), torch.zeros_like(s)):
        flat, steep = end, peak
        for _ in range(_BISECTIONS):
            middle = (flat + steep) / 2
            inside = steepness(middle) > 4
            flat, steep = torch.where(inside, flat, middle), torch.where(inside, middle, steep)
        turning.append(torch.where(folds, flat, peak))
    return [torch.full_like(s, -math.pi), *turning, torch.full_like(s, math.pi)]


# --- noise around a curve ---

_CHUNK = 2**17  # pairs of a point and a node in memory at once


@cache
def _legendre(n: int) -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return (nodes + 1) / 2, weights / 2


def _nodes(n: int, lo: float, hi: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes in [lo, hi] and the logarithms of their weights, which sum to 1: a uniform parameter's quadrature."""
    nodes, weights = _legendre(n)
    return lo + (hi - lo) * like.new_tensor(nodes), like.new_tensor(weights).log()


def _polar(radius: Tensor, angle: Tensor) -> Tensor:
    return torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1)


def _gaussians(x: Tensor, centres: Tensor, std: Tensor, log_weights: Tensor) -> Tensor:
    """log Σ_m w_m N(x; centre_m, std_m²), a piece of ``x`` at a time."""

    def piece(rows: Tensor) -> Tensor:
        squared = (rows[:, None, 0] - centres[:, 0]).square_().add_((rows[:, None, 1] - centres[:, 1]).square_())
        return squared.mul_(-0.5 / std**2).add_(log_factors).logsumexp(dim=1)

    log_factors = log_weights - (_TWO_PI * std.square()).log()
    return torch.cat([piece(rows) for rows in x.split(max(1, _CHUNK // len(centres)))]) if len(x) else x[:, 0]


def _moons(x: Tensor) -> Tensor:
    t, log_weights = _nodes(192, 0.0, math.pi, x)
    arc = _polar(torch.ones_like(t), t)
    shift = x.new_tensor((-1.0, -0.2))
    centres = torch.cat((2 * arc + shift, 2 * (x.new_tensor((1.0, 0.5)) - arc) + shift))
    return _gaussians(x, centres, x.new_tensor(0.2), log_weights.repeat(2) - math.log(2))


def _swissroll(x: Tensor) -> Tensor:
    t, log_weights = _nodes(320, 1.5 * math.pi, 4.5 * math.pi, x)
    return _gaussians(x, _polar(t, t) / 5, x.new_tensor(0.2), log_weights)


def _spiral(x: Tensor) -> Tensor:
    a, log_weights = _nodes(128, 0.0, 1.0, x)
    arms = [_polar(1.5 * math.pi * a, math.pi * a + k * _TWO_PI / 3) for k in range(3)]
    return _gaussians(x, torch.cat(arms), (0.5 * a + 0.1).repeat(3), log_weights.repeat(3) - math.log(3))


_SIDE, _BLUR = 0.5 / 3, 0.1  # of the 2spirals: a box, blurred


def _two_spirals(x: Tensor) -> Tensor:
    """An arm's points lie in a box beside a point of the spiral, blurred by N(0, 0.1²); the other arm mirrors it."""
    v, log_weights = _nodes(384, 0.0, 1.0, x)
    log_weights = log_weights + (2 * v).log()  # the square root of a uniform number has the density 2 v
    r = v * math.radians(540)
    corners = torch.stack((-r.cos() * r, r.sin() * r), dim=1) / 3
    mirrored = torch.stack((x, -x), dim=1).view(-1, 2)
    pieces = mirrored.split(2 * max(1, _CHUNK // (2 * len(corners))))
    arms = [_box_kernel(piece, corners, log_weights) for piece in pieces] if len(x) else [x[:, 0]]
    return torch.cat(arms).view(-1, 2).logsumexp(dim=1) - math.log(2)


def _box_kernel(x: Tensor, corners: Tensor, log_weights: Tensor) -> Tensor:
    """log Σ_m w_m Π_i (Φ(a_i + h) - Φ(a_i - h)) / side, a and h: offset from a box's middle, half its side, in stds."""
    half = _SIDE / 2 / _BLUR
    # |a|: both terms lie in the upper tail, and their difference keeps its digits.
    offset = ((x[:, None] - corners - _SIDE / 2) / _BLUR).abs_()
    root2 = math.sqrt(2)
    sides = torch.special.erfc((offset - half) / root2) - torch.special.erfc((offset + half) / root2)
    total = (sides.prod(dim=2) / (2 * _SIDE) ** 2) @ log_weights.exp()
    log_total = total.log()
    far = (total < 1e-280).nonzero()[:, 0]  # erfc underflows: the same in logarithms, five times as slow
    if len(far):
        upper = torch.special.log_ndtr(half - offset[far])
        lower = torch.special.log_ndtr(-half - offset[far])
        log_sides = upper + torch.log1p(-(lower - upper).exp()) - math.log(_SIDE)
        log_total[far] = (log_sides.sum(dim=2) + log_weights).logsumexp(dim=1)
    return log_total


LOG_DENSITIES = {
    "2spirals": _two_spirals,
    "Banana": _banana,
    "circles": _circles,
    "Cosine": _cosine,
    "Funnel": _funnel,
    "swissroll": _swissroll,
    "moons": _moons,
    "Multiring": _multiring,
    "pinwheel": _pinwheel,
    "Ring": _ring,
    "Spiral": _spiral,
    "Uniform": _uniform,
    "checkerboard": _checkerboard,
    "8gaussians": _eight_gaussians,
}
"""All but ``cos`` and ``line``, which lie on a curve."""


# --- entropies ---


def _funnel_entropy() -> float:
    """H(x) + H(y | x) with E[min(-x, log 10)] of -x ~ N(0, 2²), the expectation of the logarithm of y's variance."""
    std, most = 2.0, math.log(10)
    at = most / std
    density, below = math.exp(-0.5 * at**2) / math.sqrt(_TWO_PI), 0.5 * (1 + math.erf(at / math.sqrt(2)))
    return _LOG_2PI_E + math.log(std) + 0.5 * (most * (1 - below) - std * density)


def _closed(value: float) -> Entropy:
    return Entropy(value, 0.0, True)


def _summed(value: float) -> Entropy:
    """-Σ p log p over square grids that hold all but 1e-9 of the mass, in steps of 0.05 and 0.03, which agree."""
    return Entropy(value, 1e-6, False)


ENTROPIES = {
    "2spirals": _summed(2.645450),
    "Banana": _closed(_LOG_2PI_E + math.log(2)),
    "circles": _summed(3.268136),
    "Cosine": _closed(math.log(8) + 0.5 * _LOG_2PI_E),
    "Funnel": _closed(_funnel_entropy()),
    "swissroll": _summed(2.669646),
    "moons": _summed(2.393879),
    "Multiring": _summed(3.841031),
    "pinwheel": _summed(2.317788),
    "Ring": _summed(3.256014),
    "Spiral": _summed(3.518960),
    "Uniform": _closed(math.log(36)),
    "checkerboard": _closed(math.log(32)),
    "8gaussians": _summed(2.831578),
}
