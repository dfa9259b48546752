"""True densities of the toy sets: mass 1, independent formulas, and the points that the sets really draw."""

import math

import numpy as np
import pytest
import torch

from ade_fast import data

SINGULAR = ("cos", "line")
WITH_DENSITY = tuple(name for name in data.TOY_NAMES if name not in SINGULAR)
# Half the sides of squares that hold all but 1e-9 of the mass, for sets smooth enough for sums over a grid.
SMOOTH = {"2spirals": 4.5, "circles": 5.0, "swissroll": 4.5, "moons": 4.5, "Multiring": 6.5, "pinwheel": 6.0,
          "Ring": 6.5, "Spiral": 9.0, "8gaussians": 5.5}  # fmt: skip


def points(name: str, n: int, seed: int = 0) -> torch.Tensor:
    return data.toy(name).sample(n, torch.Generator().manual_seed(seed), dtype=torch.float64)


def grid(half: float, step: float) -> torch.Tensor:
    axis = torch.arange(-half, half, step, dtype=torch.float64) + 0.3 * step
    return torch.cartesian_prod(axis, axis)


# --- against the mass, the entropy and the draws ---


@pytest.mark.parametrize("name", SMOOTH)
def test_density_sums_to_one_and_to_its_entropy(name: str) -> None:
    step = 0.12
    p = data.toy(name).log_prob(grid(SMOOTH[name], step)).exp()
    assert abs(p.sum().item() * step**2 - 1) < 1e-5
    entropy = data.toy(name).entropy()
    assert not entropy.exact and 0 < entropy.accuracy <= 1e-6
    assert abs(torch.special.entr(p).sum().item() * step**2 - entropy.value) < 2e-4


@pytest.mark.parametrize("name", ["Uniform", "checkerboard", "Banana", "Funnel", "Cosine"])
def test_closed_forms_sum_to_one_and_to_their_entropy(name: str) -> None:
    """Conditional on x, y is a normal or uniform: sums over a grid in x and, in units that x sets, in y."""
    n = 400
    if name in ("Uniform", "checkerboard"):
        x = y = -4.2 + 8.4 * (torch.arange(840, dtype=torch.float64) + 0.5) / 840
        xy, area = torch.cartesian_prod(x, y), (8.4 / 840) ** 2
    else:
        half, middle, std = {
            "Banana": (20.0, lambda x: 0.2 * (x**2 - 4), torch.ones_like),
            "Funnel": (20.0, torch.zeros_like, lambda x: (-x).exp().clamp(max=10).sqrt()),
            "Cosine": (4.0, lambda x: 3 * (2 * x).cos(), torch.ones_like),
        }[name]
        x = half * (2 * (torch.arange(n, dtype=torch.float64) + 0.5) / n - 1)
        z = 9.0 * (2 * (torch.arange(n, dtype=torch.float64) + 0.5) / n - 1)
        y = middle(x)[:, None] + std(x)[:, None] * z
        xy = torch.stack((x[:, None].expand_as(y), y), dim=-1).view(-1, 2)
        area = (std(x) * (2 * half / n) * (18.0 / n)).repeat_interleave(n)
    p = data.toy(name).log_prob(xy).exp()
    assert abs((p * area).sum().item() - 1) < 1e-6
    entropy = data.toy(name).entropy()
    assert entropy.exact and entropy.accuracy == 0
    assert abs((torch.special.entr(p) * area).sum().item() - entropy.value) < 1e-4  # the funnel's kink at -log 10


@pytest.mark.parametrize("name", WITH_DENSITY)
def test_mean_log_density_of_draws_is_minus_the_entropy(name: str) -> None:
    log_p = data.toy(name).log_prob(points(name, 4_000))
    assert log_p.shape == (4_000,) and log_p.dtype == torch.float64 and log_p.isfinite().all()
    error = log_p.std().item() / math.sqrt(len(log_p))
    assert abs(log_p.mean().item() + data.toy(name).entropy().value) < 4 * error + 1e-12


@pytest.mark.parametrize("name", WITH_DENSITY)
def test_draws_fall_where_the_density_is(name: str) -> None:
    """Counts of draws in cells, and integrals of the density over these cells, agree by a chi-square."""
    lo, hi = data.toy(name).range
    cells, fine, n = 16, 13 if name == "Cosine" else 8, 50_000  # 13: Cosine's edge at 4 is an edge of the finer cells
    width = (hi - lo) / cells
    axis = lo + (torch.arange(cells * fine, dtype=torch.float64) + 0.5) * (width / fine)
    p = data.toy(name).log_prob(torch.cartesian_prod(axis, axis)).exp().view(cells, fine, cells, fine)
    expected = n * p.mean(dim=(1, 3)) * width**2
    index = ((points(name, n, seed=1) - lo) / width).floor().long()
    index = index[((index >= 0) & (index < cells)).all(dim=1)]
    counts = torch.bincount(index[:, 0] * cells + index[:, 1], minlength=cells**2).view(cells, cells)
    filled = expected > 20
    chi2 = ((counts - expected).square() / expected)[filled].sum().item()
    df = int(filled.sum())
    assert df >= 15
    assert abs(chi2 - df) < 5 * math.sqrt(2 * df)
    assert counts[expected < 1e-3].sum() <= 3


# --- against independent formulas ---


def panels(count: int = 1_000) -> tuple[torch.Tensor, torch.Tensor]:
    """Nodes and weights of an eight-point rule on each of ``count`` panels of [0, 1]."""
    nodes, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(8))
    starts = torch.arange(count, dtype=torch.float64)[:, None]
    return ((starts + (nodes + 1) / 2) / count).flatten(), (weights / 2 / count).repeat(count)


def by_panels(name: str, x: torch.Tensor) -> torch.Tensor:
    """log E[N(x; c(U), s(U)²)] over the uniform number U of the set's draw, by a fine composite rule."""
    u, weights = panels()
    std = torch.full_like(u, 0.2)
    if name == "circles":
        t, std = 2 * math.pi * u, torch.full_like(u, 0.24)
        centres = [3 * r * torch.stack((t.cos(), t.sin()), 1) for r in (1.0, 0.5)]
    elif name == "moons":
        t = math.pi * u
        centres = [
            torch.stack((2 * t.cos() - 1, 2 * t.sin() - 0.2), 1),
            torch.stack((1 - 2 * t.cos(), 0.8 - 2 * t.sin()), 1),
        ]
    elif name == "swissroll":
        t = math.pi * (1.5 + 3 * u)
        centres = [torch.stack((t * t.cos(), t * t.sin()), 1) / 5]
    else:
        std = 0.5 * u + 0.1
        turns = [math.pi * u + 2 * math.pi * k / 3 for k in range(3)]
        centres = [1.5 * math.pi * u[:, None] * torch.stack((t.cos(), t.sin()), 1) for t in turns]
    normals = [torch.distributions.Normal(centre, std[:, None].expand(-1, 2)) for centre in centres]
    log_p = torch.stack([normal.log_prob(x[:, None]).sum(dim=2) + weights.log() for normal in normals])
    return log_p.logsumexp(dim=(0, 2)) - math.log(len(centres))


@pytest.mark.parametrize("name", ["circles", "moons", "swissroll", "Spiral"])
def test_noise_around_a_curve(name: str) -> None:
    x = torch.cat((points(name, 12), torch.tensor([[0.0, 0.0], [9.0, -7.0], [-3.0, 5.0]], dtype=torch.float64)))
    torch.testing.assert_close(data.toy(name).log_prob(x), by_panels(name, x), rtol=1e-10, atol=1e-10)


def test_two_spirals_by_their_box() -> None:
    """Box and blur on each axis by a difference of scipy's normal tails, the spiral by a fine composite rule."""
    norm = pytest.importorskip("scipy.stats", reason="scipy's normal tails").norm
    x = torch.cat((points("2spirals", 12), torch.tensor([[0.1, -0.2], [4.5, 3.0]], dtype=torch.float64)))
    w, weights = panels()
    u = w**2  # the draw's uniform number: its square root w is smooth at 0
    r = 3 * math.pi * u.sqrt()
    wanted = 0
    for sign in (1, -1):  # minus an arm is an arm drawn for minus the point
        sides = []
        for i, corner in enumerate((-r.cos() * r, r.sin() * r)):
            offset = np.abs((sign * x[:, i : i + 1] - (corner + 0.25) / 3).numpy())
            sides.append((norm.sf(offset - 0.25 / 3, scale=0.1) - norm.sf(offset + 0.25 / 3, scale=0.1)) * 6)
        wanted = wanted + torch.from_numpy(sides[0] * sides[1]) @ (weights * 2 * w) / 2
    torch.testing.assert_close(data.toy("2spirals").log_prob(x), wanted.log(), rtol=1e-10, atol=1e-10)


def test_two_spirals_far_away_goes_on_in_logarithms() -> None:
    """Where erfc underflows the density is continued in logarithms: no step, and a Gaussian's slope."""
    x = torch.linspace(5.0, 30.0, 300, dtype=torch.float64)
    log_p = data.toy("2spirals").log_prob(torch.stack((x, torch.zeros_like(x)), 1))
    assert log_p.isfinite().all() and log_p[0] > math.log(1e-280) > log_p[-1]
    curvature = log_p.diff().diff() / (x[1] - x[0]) ** 2
    assert (curvature < -90).all() and (curvature > -110).all()  # -1 / 0.1²


def test_rings_by_their_radius() -> None:
    x = points("Multiring", 50)
    r = x.norm(dim=1).numpy()
    mixture = sum(
        m / 9 * np.exp(-((s * r - m) ** 2) / 0.08) / np.sqrt(0.08 * np.pi) for m in (1, 3, 5) for s in (1, -1)
    )
    np.testing.assert_allclose(data.toy("Multiring").log_prob(x), np.log(mixture / (2 * np.pi * r)), rtol=1e-10)
    centre = torch.zeros(1, 2)
    for name in ("Ring", "Multiring"):  # the density is unbounded there: a grid through the centre stays finite
        assert data.toy(name).log_prob(centre).isfinite().all()


def pinwheel_points(radial: torch.Tensor, tangential: torch.Tensor, arm: torch.Tensor) -> torch.Tensor:
    angle = arm * (2 * math.pi / 5) + 0.25 * radial.exp()
    cos, sin = angle.cos(), angle.sin()
    return 2 * torch.stack((radial * cos + tangential * sin, tangential * cos - radial * sin), dim=-1)


def test_pinwheel_by_its_jacobian() -> None:
    """Within three standard deviations each arm's map is one to one; the five arms' draws at a point come from
    Newton's method on the map itself, its Jacobian from autograd."""
    random = torch.Generator().manual_seed(0)
    radial = 1 + 0.3 * torch.randn(10, generator=random, dtype=torch.float64).clamp(-3, 3)
    tangential = 0.1 * torch.randn(10, generator=random, dtype=torch.float64).clamp(-3, 3)
    x = pinwheel_points(radial, tangential, torch.zeros(()))

    def term(arm: int, draw: torch.Tensor) -> torch.Tensor:
        point = lambda d: pinwheel_points(d[0], d[1], torch.tensor(float(arm)))  # noqa: E731
        log_q = -0.5 * (((draw[0] - 1) / 0.3) ** 2 + (draw[1] / 0.1) ** 2) - math.log(2 * math.pi * 0.3 * 0.1)
        return log_q - torch.linalg.slogdet(torch.autograd.functional.jacobian(point, draw)).logabsdet - math.log(5)

    own = torch.stack([term(0, draw) for draw in torch.stack((radial, tangential), 1)])
    log_p = data.toy("pinwheel").log_prob(x)
    assert (log_p >= own - 1e-12).all()  # the other arms add to it
    apart = log_p - own < 1e-9
    assert apart.sum() >= 5  # and where they are far, they add nothing
    # Everything that the five arms could have drawn there, found on a fine grid of φ: (radial, tangential) = s e(φ).
    phi = torch.linspace(-math.pi, math.pi, 100_001, dtype=torch.float64)
    for row, value in zip(x, log_p, strict=True):
        s = row.norm() / 2
        found = []
        for arm in range(5):
            at = pinwheel_points(s * phi.cos(), s * phi.sin(), torch.tensor(float(arm)))
            side = row[0] * at[:, 1] - row[1] * at[:, 0]  # 0 and changing sign where the directions agree
            front = (at * row).sum(dim=1) > 0
            root = ((side[:-1] * side[1:] <= 0) & front[:-1]).nonzero()[:, 0]
            middle = (phi[root] + phi[root + 1]) / 2
            found += [term(arm, torch.stack((s * m.cos(), s * m.sin()))) for m in middle]
        assert len(found) >= 5
        assert abs(torch.stack(found).logsumexp(0) - value) < 1e-3


def test_pinwheel_where_an_arm_folds() -> None:
    """In the tails an arm folds, and a point comes from several draws: mass 1 still holds on a ring there.

    p of the ring is that of (radial, tangential), whose distance the turn keeps: a one-dimensional integral.
    """
    n = 20_000
    angle = (torch.arange(n, dtype=torch.float64) + 0.5) * (2 * math.pi / 5 / n)  # the other fifths are the same
    for s in (2.6, 3.2):
        t = torch.arange(-math.pi, math.pi, 1e-4, dtype=torch.float64)
        log_draw = -0.5 * (((s * t.cos() - 1) / 0.3) ** 2 + (s * t.sin() / 0.1) ** 2)
        wanted = log_draw.logsumexp(0) - math.log(2 * math.pi * 0.03) + math.log(1e-4)
        ring = 2 * s * torch.stack((angle.cos(), angle.sin()), 1)
        got = data.toy("pinwheel").log_prob(ring).logsumexp(0) + math.log(4 * 2 * math.pi / n)
        # On the caustics the density is unbounded, though integrable: an even sum is not exact there.
        assert abs(got - wanted) < 1e-2
    far = torch.tensor([[10.0 + 1e-9, 0.0], [30.0, 1.0]])  # wound up: averaged over the angle
    assert data.toy("pinwheel").log_prob(far).isfinite().all()
    assert data.toy("pinwheel").log_prob(torch.zeros(1, 2)).isfinite().all()


# --- the interface ---


@pytest.mark.parametrize("name", SINGULAR)
def test_sets_on_a_curve_have_no_density(name: str) -> None:
    toy = data.toy(name)
    assert not toy.has_density
    with pytest.raises(ValueError, match=rf"toy\('{name}'\)\.log_prob: its points lie on a curve"):
        toy.log_prob(torch.zeros(1, 2))
    with pytest.raises(ValueError, match=rf"toy\('{name}'\)\.entropy: its points lie on a curve"):
        toy.entropy()


@pytest.mark.parametrize("name", WITH_DENSITY)
def test_log_prob_shapes_and_dtypes(name: str) -> None:
    toy = data.toy(name)
    assert toy.has_density
    x = points(name, 5).float().requires_grad_()
    log_p = toy.log_prob(x)
    assert log_p.dtype == torch.float64 and not log_p.requires_grad
    assert torch.equal(log_p, toy.log_prob(x.double()))
    assert toy.log_prob(x[:0]).shape == (0,)
    nan, inf = math.nan, math.inf
    odd = torch.tensor([[nan, 0], [0, inf], [-inf, nan], [15, 15], [1e12, -1], [3e3, 0], [0, 0]], dtype=torch.float64)
    log_p = toy.log_prob(odd)
    assert log_p.isnan().tolist() == [True, False, True] + [False] * 4
    assert log_p[1] == -inf and (log_p[3:6] < -20).all()


def test_log_prob_refusals() -> None:
    moons = data.toy("moons")
    with pytest.raises(TypeError, match=r"toy\('moons'\)\.log_prob: x must be a floating-point tensor, got ndarray"):
        moons.log_prob(np.zeros((1, 2)))
    with pytest.raises(TypeError, match=r"x must be a floating-point tensor, got torch\.int64"):
        moons.log_prob(torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"x must be \(n, 2\), got \(4, 3\)"):
        moons.log_prob(torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"x must be \(n, 2\), got \(2,\)"):
        moons.log_prob(torch.zeros(2))


def test_sample_takes_numpy_integers() -> None:
    assert data.toy("moons").sample(np.int64(3)).shape == (3, 2)
