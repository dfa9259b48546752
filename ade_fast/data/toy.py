"""The 14 two-dimensional distributions of Table 2, plus ``checkerboard`` and ``8gaussians``.

Each is a small function from a source of random numbers to ``n`` points, registered under its Table 2 name
with the interval that holds its points; its density is in ``toy_density.py``. Every draw is independent: arms,
moons and rings are chosen per point and angles are uniform, where the usual numpy generators fix the count per
arm and lay the angles on a grid (which makes a permutation test on them invalid). The distributions are those of
the usual generators.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .._integers import as_integer
from .._tensors import floating_tensor
from .toy_density import ENTROPIES, LOG_DENSITIES, Entropy

_TWO_PI = 2 * math.pi


@dataclass(frozen=True)
class _Random:
    """Draws of one dtype from one generator; keeps the formulas below free of keyword arguments."""

    generator: torch.Generator | None
    dtype: torch.dtype
    device: torch.device

    def uniform(self, n: int, lo: float = 0.0, hi: float = 1.0) -> Tensor:
        unit = torch.rand(n, generator=self.generator, dtype=self.dtype, device=self.device)
        return unit * (hi - lo) + lo

    def normal(self, n: int, std: float = 1.0) -> Tensor:
        return torch.randn(n, generator=self.generator, dtype=self.dtype, device=self.device) * std

    def normal_2d(self, n: int, std: float = 1.0) -> Tensor:
        return torch.randn(n, 2, generator=self.generator, dtype=self.dtype, device=self.device) * std

    def integers(self, n: int, k: int) -> Tensor:
        """``n`` draws from 0 .. k-1, in the working dtype (an int64 times a number would be float32)."""
        return torch.randint(k, (n,), generator=self.generator, device=self.device).to(self.dtype)

    def choice(self, n: int, values: tuple[float, ...], weights: tuple[float, ...]) -> Tensor:
        """``n`` draws from ``values``, with probabilities in proportion to ``weights``."""
        edges = torch.tensor(weights, dtype=self.dtype, device=self.device).cumsum(0)
        index = torch.searchsorted(edges, self.uniform(n, 0.0, sum(weights)), right=True)
        return torch.tensor(values, dtype=self.dtype, device=self.device)[index.clamp_(max=len(values) - 1)]


def _polar(radius: Tensor, angle: Tensor) -> Tensor:
    return torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1)


def _two_spirals(n: int, rng: _Random) -> Tensor:
    r = rng.uniform(n).sqrt() * math.radians(540)
    arm = torch.stack((-r.cos() * r + rng.uniform(n, 0, 0.5), r.sin() * r + rng.uniform(n, 0, 0.5)), dim=-1)
    sign = 1 - 2 * rng.integers(n, 2)
    return arm * sign[:, None] / 3 + rng.normal_2d(n, 0.1)


def _banana(n: int, rng: _Random) -> Tensor:
    x = rng.normal(n, 2.0)
    return torch.stack((x, rng.normal(n) + 0.2 * (x.square() - 4)), dim=-1)


def _circles(n: int, rng: _Random) -> Tensor:
    radius = 1 - 0.5 * rng.integers(n, 2)  # the outer circle, or the inner one at half its radius
    return 3 * (_polar(radius, rng.uniform(n, 0, _TWO_PI)) + rng.normal_2d(n, 0.08))


def _cos(n: int, rng: _Random) -> Tensor:
    x = rng.uniform(n, -2.5, 2.5)
    return torch.stack((x, 2.5 * x.sin()), dim=-1)


def _cosine(n: int, rng: _Random) -> Tensor:
    x = rng.uniform(n, -4, 4)
    return torch.stack((x, 3 * (2 * x).cos() + rng.normal(n)), dim=-1)


def _funnel(n: int, rng: _Random) -> Tensor:
    x = rng.normal(n, 2.0)
    return torch.stack((x, rng.normal(n) * (-x).exp().clamp(0, 10).sqrt()), dim=-1)


def _swissroll(n: int, rng: _Random) -> Tensor:
    t = rng.uniform(n, 1.5 * math.pi, 4.5 * math.pi)
    return (_polar(t, t) + rng.normal_2d(n)) / 5


def _line(n: int, rng: _Random) -> Tensor:
    x = rng.uniform(n, -2.5, 2.5)
    return torch.stack((x, x), dim=-1)


def _moons(n: int, rng: _Random) -> Tensor:
    arc = _polar(torch.ones((), dtype=rng.dtype, device=rng.device), rng.uniform(n, 0, math.pi))
    inner = arc.new_tensor((1.0, 0.5)) - arc  # the outer moon turned by half a circle and shifted
    points = torch.where(rng.integers(n, 2).bool()[:, None], inner, arc)
    return 2 * (points + rng.normal_2d(n, 0.1)) + arc.new_tensor((-1.0, -0.2))


def _rings(n: int, rng: _Random, radii: tuple[float, ...]) -> Tensor:
    """Circles weighted by their length, N(0, 0.2²) along the radius."""
    radius = rng.choice(n, radii, radii) + rng.normal(n, 0.2)
    return _polar(radius, rng.uniform(n, 0, _TWO_PI))


def _multiring(n: int, rng: _Random) -> Tensor:
    return _rings(n, rng, (1.0, 3.0, 5.0))


def _ring(n: int, rng: _Random) -> Tensor:
    return _rings(n, rng, (5.0,))


def _pinwheel(n: int, rng: _Random) -> Tensor:
    radial = 1 + rng.normal(n, 0.3)
    tangential = rng.normal(n, 0.1)
    angle = rng.integers(n, 5) * (_TWO_PI / 5) + 0.25 * radial.exp()
    cos, sin = angle.cos(), angle.sin()
    return 2 * torch.stack((radial * cos + tangential * sin, tangential * cos - radial * sin), dim=-1)


def _spiral(n: int, rng: _Random) -> Tensor:
    a = rng.uniform(n)
    start = rng.integers(n, 3) * (_TWO_PI / 3)
    return _polar(1.5 * math.pi * a, math.pi * a + start) + rng.normal_2d(n) * (0.5 * a + 0.1)[:, None]


def _uniform(n: int, rng: _Random) -> Tensor:
    return torch.stack((rng.uniform(n, -3, 3), rng.uniform(n, -3, 3)), dim=-1)


def _checkerboard(n: int, rng: _Random) -> Tensor:
    x = rng.uniform(n, -2, 2)
    y = rng.uniform(n) - 2 * rng.integers(n, 2) + x.floor().remainder(2)
    return 2 * torch.stack((x, y), dim=-1)


def _eight_gaussians(n: int, rng: _Random) -> Tensor:
    angle = rng.integers(n, 8) * (math.pi / 4)
    centre = _polar(torch.full((), 4.0, dtype=rng.dtype, device=rng.device), angle)
    return (centre + rng.normal_2d(n, 0.5)) / math.sqrt(2)


@dataclass(frozen=True)
class Toy:
    """A two-dimensional distribution to draw from; made by :func:`toy`.

    Attributes:
        name: its name in Table 2.
        range: ``(lo, hi)``, an interval that holds each coordinate of all but about one point in a thousand
            (of every point where the support is bounded and noiseless): for ``sample_range`` and for plots.
        event: ``(2,)``, the shape of one point.
    """

    name: str
    range: tuple[float, float]
    _draw: Callable[[int, _Random], Tensor]
    event: tuple[int, ...] = (2,)

    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """``n`` independent points.

        Args:
            n: how many, of any integer type; 0 is allowed.
            generator: where the randomness comes from (torch's default generator of the device unless given).
            dtype: torch.float32 or torch.float64.
            device: where to draw; the generator's device, else the CPU.

        Returns:
            Points ``(n, 2)``.

        Raises:
            TypeError: ``n`` is no integer, or the dtype is neither of the two.
            ValueError: ``n`` is negative, or the generator lives on another device than ``device``.
        """
        where = f"data.toy('{self.name}').sample"
        try:
            n = as_integer(n)
        except TypeError:
            raise TypeError(f"{where}: n must be an int, got {type(n).__name__}") from None
        if n < 0:
            raise ValueError(f"{where}: n must be at least 0, got {n}")
        if dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{where}: dtype must be torch.float32 or torch.float64, got {dtype}")
        if device is None:
            device = generator.device if generator is not None else "cpu"
        device = torch.device(device)
        if generator is not None and generator.device.type != device.type:
            raise ValueError(f"{where}: generator must be on device {device}, got one on {generator.device}")
        return self._draw(n, _Random(generator, dtype, device))

    @property
    def has_density(self) -> bool:
        """Whether it has one: all but ``cos`` and ``line``, whose points lie on a curve, do."""
        return self.name in LOG_DENSITIES

    @torch.no_grad()
    def log_prob(self, x: Tensor) -> Tensor:
        """The true log-density, exact to about float64's rounding; no gradient goes through it.

        Args:
            x: points ``(n, 2)`` of any floating dtype, on any device.

        Returns:
            ``(n,)`` float64 in nats, on the device of ``x``; -inf outside a bounded support, nan where ``x`` has one.

        Raises:
            TypeError: ``x`` is no tensor of floating point numbers.
            ValueError: ``x`` is not ``(n, 2)``, or the set has no density.
        """
        where = self._check_density("log_prob")
        floating_tensor(where, "x", x, "a floating-point tensor")
        if x.dim() != 2 or x.shape[1] != 2:
            raise ValueError(f"{where}: x must be (n, 2), got {tuple(x.shape)}")
        finite = x.isfinite().all(dim=1)
        log_p = torch.where(x.isnan().any(dim=1), math.nan, -math.inf).double()
        log_p[finite] = LOG_DENSITIES[self.name](x[finite].double())
        return log_p

    def entropy(self) -> Entropy:
        """Its differential entropy in nats, ``-E[log_prob]``: what a perfect model's held-out NLL is on average.

        Returns:
            ``Entropy(value, accuracy, exact)``: a closed form (``exact``, accuracy 0), or a sum over a fine grid whose
            error is at most ``accuracy``.

        Raises:
            ValueError: the set has no density.
        """
        self._check_density("entropy")
        return ENTROPIES[self.name]

    def _check_density(self, method: str) -> str:
        where = f"data.toy('{self.name}').{method}"
        if not self.has_density:
            raise ValueError(f"{where}: its points lie on a curve, where no density exists (see has_density)")
        return where


_REGISTRY = {
    entry.name: entry
    for entry in (
        Toy("2spirals", (-4.0, 4.0), _two_spirals),
        Toy("Banana", (-8.0, 12.0), _banana),
        Toy("circles", (-4.0, 4.0), _circles),
        Toy("cos", (-2.5, 2.5), _cos),
        Toy("Cosine", (-6.5, 6.5), _cosine),
        Toy("Funnel", (-10.0, 10.0), _funnel),
        Toy("swissroll", (-3.5, 3.5), _swissroll),
        Toy("line", (-2.5, 2.5), _line),
        Toy("moons", (-4.0, 4.0), _moons),
        Toy("Multiring", (-6.0, 6.0), _multiring),
        Toy("pinwheel", (-4.5, 4.5), _pinwheel),
        Toy("Ring", (-6.0, 6.0), _ring),
        Toy("Spiral", (-6.0, 6.0), _spiral),
        Toy("Uniform", (-3.0, 3.0), _uniform),
        Toy("checkerboard", (-4.0, 4.0), _checkerboard),
        Toy("8gaussians", (-4.5, 4.5), _eight_gaussians),
    )
}
_BY_LOWER_NAME = {name.lower(): entry for name, entry in _REGISTRY.items()}

TOY_NAMES: tuple[str, ...] = tuple(_REGISTRY)
"""Names that :func:`toy` knows: Table 2's fourteen in its order, then ``checkerboard`` and ``8gaussians``."""


def toy(name: str) -> Toy:
    """A two-dimensional toy distribution by name; case is ignored (``cos`` and ``Cosine`` are two sets).

    Args:
        name: one of :data:`TOY_NAMES`.

    Returns:
        The distribution, with ``.sample(n, generator=None)``, ``.name``, ``.range`` and ``.event``, and where
        ``.has_density`` with ``.log_prob(x)`` and ``.entropy()``.

    Raises:
        TypeError: ``name`` is no string.
        ValueError: no set has that name.
    """
    if not isinstance(name, str):
        raise TypeError(f"data.toy: name must be a str, got {type(name).__name__}")
    entry = _BY_LOWER_NAME.get(name.lower())
    if entry is None:
        raise ValueError(f"data.toy: name must be one of {', '.join(TOY_NAMES)}, got {name!r}")
    return entry
