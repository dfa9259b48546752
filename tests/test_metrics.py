"""MMD² against a double loop over pairs, its permutation test under the null and off it, inception score."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from ade_fast import metrics
from ade_fast.metrics import mmd


def brute_force_mmd2(x: torch.Tensor, y: torch.Tensor, variance: float) -> float:
    def k(a: torch.Tensor, b: torch.Tensor) -> float:
        return math.exp(-(a - b).square().sum().item() / (2 * variance))

    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    xy = sum(k(a, b) for a in x for b in y) / (n * m)
    return xx + yy - 2 * xy


def pair_distances(z: torch.Tensor) -> list[float]:
    return [(z[i] - z[j]).square().sum().item() for i in range(len(z)) for j in range(i)]


@pytest.mark.parametrize(("n", "m"), [(2, 2), (7, 5), (6, 9)])
@pytest.mark.parametrize("event", [(), (2,), (1, 3, 2)])
def test_mmd2_equals_a_double_loop(n: int, m: int, event: tuple[int, ...]) -> None:
    """With the median of an even (6 pairs) and of an odd number of pairs, and with a given bandwidth."""
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, *event, generator=generator, dtype=torch.float64) + 100
    y = torch.randn(m, *event, generator=generator, dtype=torch.float64) * 2 + 101
    distances = sorted(pair_distances(torch.cat((x, y))))
    half = len(distances) // 2
    median = distances[half] if len(distances) % 2 else (distances[half - 1] + distances[half]) / 2
    assert metrics.mmd2(x, y).item() == pytest.approx(brute_force_mmd2(x, y, median), abs=1e-11)
    assert metrics.mmd2(x, y, bandwidth=0.7).item() == pytest.approx(brute_force_mmd2(x, y, 0.49), abs=1e-11)
    assert metrics.mmd2(x, y, bandwidth=2).item() == pytest.approx(brute_force_mmd2(x, y, 4.0), abs=1e-11)


def test_mmd2_is_unbiased() -> None:
    """The mean over small samples is the closed form for N(0, 1) against N(1, 1), kernel width 1."""
    generator = torch.Generator().manual_seed(1)
    estimates = torch.stack(
        [
            metrics.mmd2(
                torch.randn(5, 1, generator=generator, dtype=torch.float64),
                torch.randn(4, 1, generator=generator, dtype=torch.float64) + 1,
                bandwidth=1.0,
            )
            for _ in range(4000)
        ]
    )
    # E k(a, b) for a - b ~ N(shift, 2): exp(-shift² / 6) / √3.
    wanted = 2 / math.sqrt(3) - 2 * math.exp(-1 / 6) / math.sqrt(3)
    assert abs(estimates.mean().item() - wanted) < 4 * estimates.std().item() / math.sqrt(len(estimates))
    assert estimates.min() < 0  # the price of being unbiased


def test_mmd2_dtype_and_symmetry() -> None:
    x, y = torch.randn(8, 2), torch.randn(9, 2)
    assert metrics.mmd2(x, y).dtype == torch.float32 and metrics.mmd2(x, y).shape == ()
    assert metrics.mmd2(x, y.double()).dtype == torch.float64
    assert metrics.mmd2(x.bfloat16(), y.bfloat16()).dtype == torch.bfloat16
    assert metrics.mmd2(x, y).item() == pytest.approx(metrics.mmd2(y, x).item(), abs=1e-7)


def test_mmd2_gradient() -> None:
    x = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    y = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: metrics.mmd2(a, b, bandwidth=1.3), (x, y))
    # Equal points: the distance is not differentiable there, its square is.
    both = torch.autograd.grad(metrics.mmd2(x, x.detach(), bandwidth=1.0), x)[0]
    assert both.isfinite().all()
    w = torch.rand(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *a: metrics.mmd2(a[0], a[1], 1.3, weights=a[2]), (x, y, w))


def test_mmd2_coincident_points() -> None:
    """Equal points count as distance 0, far from the origin as well."""
    x = torch.tensor([[1e6, 1.0]] * 3 + [[1e6, 2.0]], dtype=torch.float64)
    # 7 points, of which 6 coincide: 15 of 21 pairs have distance 0.
    with pytest.raises(ValueError, match=r"mmd2: the median distance is 0 .* give bandwidth a number"):
        metrics.mmd2(x, x[:3])
    assert metrics.mmd2(x, x[:3], bandwidth=1.0).item() == pytest.approx(brute_force_mmd2(x, x[:3], 1.0), abs=1e-12)


@pytest.mark.parametrize("offset", [1e3, 1e7])
def test_mmd2_of_far_clusters(offset: float) -> None:
    """Distances within a cluster are not lost in those between clusters, for a bandwidth of their size."""
    generator = torch.Generator().manual_seed(0)
    far = torch.where(torch.rand(60, 1, generator=generator) < 0.5, -offset, offset).double()
    x, y = (torch.randn(60, 2, generator=generator, dtype=torch.float64) + shift + far for shift in (0.0, 0.3))
    assert metrics.mmd2(x, y, 1.0).item() == pytest.approx(brute_force_mmd2(x, y, 1.0), abs=1e-10)
    assert metrics.mmd2(x, y, 0.01).item() == pytest.approx(brute_force_mmd2(x, y, 1e-4), abs=1e-10)
    moved = torch.autograd.functional.jacobian(lambda a: metrics.mmd2(a, y, 1.0), x)
    near = torch.autograd.functional.jacobian(lambda a: metrics.mmd2(a, y - far, 1.0), x - far)
    assert moved.abs().max() > 1e-4 and near.abs().max() > 1e-4  # other pairs, but neither is rounding


def test_mmd2_fine_bandwidth() -> None:
    x, y = torch.randn(20, 2, dtype=torch.float64), torch.randn(21, 2, dtype=torch.float64) + 1
    distances = torch.tensor(pair_distances(torch.cat((x, y))), dtype=torch.float64)
    variance = distances.quantile(0.5).item() * metrics.FINE**2
    assert metrics.FINE == 0.2
    assert metrics.mmd2(x, y, "fine").item() == pytest.approx(brute_force_mmd2(x, y, variance), abs=1e-11)


def test_fine_test_sees_blur() -> None:
    """Sixteen blobs, sharp ones against blurred ones: the same as a whole."""
    generator = torch.Generator().manual_seed(6)

    def blobs(width: float) -> torch.Tensor:
        which = torch.randint(4, (400, 2), generator=generator).double()
        return 4 * which + width * torch.randn(400, 2, generator=generator)

    sharp, blurred = blobs(0.2), blobs(1.2)
    assert metrics.mmd_test(sharp, blurred, 199, generator).p > 0.05
    assert metrics.mmd_test(sharp, blurred, 199, generator, "fine").p == pytest.approx(0.005)
    assert metrics.mmd_test(sharp, blobs(0.2), 199, generator, bandwidth="fine").p > 0.05


def test_mmd2_weights_equal_a_double_loop() -> None:
    x, y = torch.randn(7, 2, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64) + 1
    w = torch.rand(7, dtype=torch.float64)
    w[2] = 0
    k = lambda a, b: math.exp(-(a - b).square().sum().item() / (2 * 0.49))  # noqa: E731
    pairs = [(i, j) for i in range(7) for j in range(7) if i != j]
    xx = sum(w[i].item() * w[j].item() * k(x[i], x[j]) for i, j in pairs) / sum((w[i] * w[j]).item() for i, j in pairs)
    yy = sum(k(y[i], y[j]) for i in range(5) for j in range(5) if i != j) / 20
    xy = sum(w[i].item() * k(x[i], b) for i in range(7) for b in y) / (5 * w.sum().item())
    assert metrics.mmd2(x, y, 0.7, weights=w).item() == pytest.approx(xx + yy - 2 * xy, abs=1e-12)
    assert metrics.mmd2(x, y, 0.7, weights=1e-300 * w).item() == pytest.approx(xx + yy - 2 * xy, abs=1e-12)
    equal = metrics.mmd2(x, y, weights=torch.full((7,), 3.0))
    assert equal.item() == pytest.approx(metrics.mmd2(x, y).item(), abs=1e-12)
    rest = metrics.mmd2(x[torch.arange(7) != 2], y, 0.7, weights=w[torch.arange(7) != 2])
    assert rest.item() == pytest.approx(xx + yy - 2 * xy, abs=1e-12)


def test_mmd2_weights_turn_one_distribution_into_another() -> None:
    """Wide samples with the weights of a narrow Gaussian, against samples of that."""
    generator = torch.Generator().manual_seed(9)
    x = 2 * torch.randn(600, 2, generator=generator, dtype=torch.float64)
    y = torch.randn(400, 2, generator=generator, dtype=torch.float64)
    weights = (-0.5 * x.square().sum(1) + 0.125 * x.square().sum(1)).exp()
    assert metrics.mmd2(x, y).item() > 0.05
    assert abs(metrics.mmd2(x, y, weights=weights).item()) < 5e-3


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ([1.0] * 4, TypeError, r"weights must be a tensor, got list"),
        (torch.ones(5), ValueError, r"weights must have shape \(4,\), one per point of x, got \(5,\)"),
        (torch.tensor([1.0, 1.0, 1.0, -1.0]), ValueError, r"weights must be finite and >= 0"),
        (torch.tensor([1.0, 1.0, 1.0, math.nan]), ValueError, r"weights must be finite and >= 0"),
        (torch.tensor([1.0, 0.0, 0.0, 0.0]), ValueError, r"at least 2 weights must be positive, got 1"),
        (torch.ones(4, device="meta"), ValueError, r"weights must be on x's device cpu, got meta"),
    ],
)
def test_mmd2_misuse_of_weights(weights, error, message: str) -> None:
    with pytest.raises(error, match=rf"^mmd2: {message}"):
        metrics.mmd2(torch.randn(4, 2), torch.randn(4, 2), weights=weights)


def test_mmd_takes_numpy_numbers() -> None:
    x, y = torch.randn(10, 2), torch.randn(10, 2)
    plain = metrics.mmd_test(x, y, 20, torch.Generator().manual_seed(0), 1.5)
    for scalar in (np.float64(1.5), np.float32(1.5)):
        assert metrics.mmd_test(x, y, np.int64(20), torch.Generator().manual_seed(0), scalar) == plain
    assert metrics.mmd2(x, y, np.int32(2)) == metrics.mmd2(x, y, 2.0)


def test_mmd_test_statistic_is_mmd2() -> None:
    x, y = torch.randn(30, 3, dtype=torch.float64), torch.randn(20, 3, dtype=torch.float64)
    for bandwidth in ("median", 0.5):
        found, p = metrics.mmd_test(x, y, n_permutations=10, bandwidth=bandwidth)
        assert isinstance(found, float) and isinstance(p, float)
        assert found == pytest.approx(metrics.mmd2(x, y, bandwidth).item(), abs=1e-13)


def test_mmd_test_p_value_against_all_splits() -> None:
    """On a sample so small that every split can be enumerated by a double loop."""
    from itertools import combinations

    z = torch.randn(8, 2, dtype=torch.float64)
    z[:3] += 1
    observed = brute_force_mmd2(z[:3], z[3:], 1.0)
    splits = [
        brute_force_mmd2(z[list(c)], z[[i for i in range(8) if i not in c]], 1.0) for c in combinations(range(8), 3)
    ]
    exact = sum(s >= observed - 1e-12 for s in splits) / len(splits)
    generator = torch.Generator().manual_seed(0)
    p = metrics.mmd_test(z[:3], z[3:], 20_000, generator, bandwidth=1.0).p
    assert p == pytest.approx(exact, abs=5 * math.sqrt(exact * (1 - exact) / 20_000) + 1e-4)


def test_mmd_test_is_calibrated_under_the_null() -> None:
    """p is uniform when x and y come from one distribution (Kolmogorov-Smirnov), unequal sizes included."""
    generator = torch.Generator().manual_seed(3)
    p = []
    for _ in range(200):
        z = torch.randn(70, 2, generator=generator)
        p.append(metrics.mmd_test(z[:30], z[30:], 99, generator).p)
    p = torch.tensor(p, dtype=torch.float64).sort().values
    uniform = torch.arange(1, 201, dtype=torch.float64) / 200
    assert (p - uniform).abs().max() < 1.63 / math.sqrt(200) + 0.01  # the 1 % level, and a grid of 0.01
    assert p.min() >= 0.01


def test_mmd_test_rejects_a_shifted_sample() -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(300, 2, generator=generator)
    shifted = torch.randn(300, 2, generator=generator) + torch.tensor((0.4, 0.0))
    found = metrics.mmd_test(x, shifted, 999, generator)
    assert found.mmd2 > 0.005
    assert found.p == pytest.approx(0.001)
    wider = torch.randn(300, 2, generator=generator) * 1.5
    assert metrics.mmd_test(x, wider, 999, generator).p < 0.01


def test_mmd_test_constant_data_never_rejects() -> None:
    """Every split ties with the observed one, whatever the rounding: p is 1."""
    x = torch.full((10, 2), 0.3)
    assert metrics.mmd_test(x, x[:7], 200, bandwidth=1.0) == (pytest.approx(0.0, abs=1e-12), 1.0)


def test_mmd_test_is_reproducible_and_chunks_do_not_matter(monkeypatch) -> None:
    x, y = torch.randn(20, 2), torch.randn(30, 2)
    results = [metrics.mmd_test(x, y, 100, torch.Generator().manual_seed(7)) for _ in range(2)]
    assert results[0] == results[1]
    monkeypatch.setattr(mmd, "_PERMUTATION_CHUNK_ELEMENTS", 7 * 50)  # 7 permutations at a time
    p = metrics.mmd_test(x, y, 100, torch.Generator().manual_seed(7)).p
    assert p == results[0].p


def test_mmd_test_keeps_the_null_distribution() -> None:
    x, y = torch.randn(40, 2), torch.randn(30, 2)
    found = metrics.mmd_test(x, y, 99, torch.Generator().manual_seed(1))
    assert found.null.shape == (99,) and found.null.dtype == torch.float64
    assert found.p == (1 + int((found.null >= found.mmd2).sum())) / 100
    assert abs(float(found.null.mean())) < 3 * float(found.null.std()) / 99**0.5  # unbiased: its mean is 0


def test_mmd_test_needs_no_gradient() -> None:
    x = torch.randn(10, 2, requires_grad=True)
    assert metrics.mmd_test(x, torch.randn(10, 2), 10).p > 0


@pytest.mark.parametrize("function", [metrics.mmd2, metrics.mmd_test])
@pytest.mark.parametrize(
    ("x", "y", "kwargs", "error", "message"),
    [
        ([[1.0]], torch.ones(3, 1), {}, TypeError, r"x must be a tensor, got list"),
        (
            torch.ones(3, 1).int(),
            torch.ones(3, 1),
            {},
            TypeError,
            r"x must be floating point, got torch\.int32",
        ),
        (
            torch.ones(3, 2),
            torch.ones(3, 3),
            {},
            ValueError,
            r"y must have x's event shape \(2,\), got \(3,\)",
        ),
        (torch.ones(3, 2), torch.ones(1, 2), {}, ValueError, r"y must have at least 2 points, got 1"),
        (torch.tensor(1.0), torch.ones(3, 2), {}, ValueError, r"x must be \(n, \*event\), got a scalar"),
        (
            torch.ones(3, 2),
            torch.ones(3, 2, device="meta"),
            {},
            ValueError,
            r"y must be on x's device cpu, got meta",
        ),
        (torch.ones(3, 2), torch.full((3, 2), math.nan), {}, ValueError, r"y must be finite, got NaN"),
        (torch.ones(3, 2), torch.zeros(3, 2), {"bandwidth": 0.0}, ValueError, r"bandwidth must be positive"),
        (torch.ones(3, 2), torch.zeros(3, 2), {"bandwidth": "mean"}, ValueError, r"or 'median', got 'mean'"),
        (
            torch.ones(3, 2),
            torch.zeros(3, 2),
            {"bandwidth": None},
            TypeError,
            r"a number or 'median', got NoneType",
        ),
        (torch.ones(3, 2), torch.ones(3, 2), {}, ValueError, r"the median distance is 0"),
    ],
)
def test_mmd_misuse(function, x, y, kwargs, error, message: str) -> None:
    with pytest.raises(error, match=rf"{function.__name__}: .*{message}"):
        function(x, y, **kwargs)


def test_mmd_test_misuse() -> None:
    x = torch.randn(4, 2)
    with pytest.raises(ValueError, match=r"mmd_test: n_permutations must be at least 1, got 0"):
        metrics.mmd_test(x, x, 0)
    with pytest.raises(TypeError, match=r"mmd_test: n_permutations must be an int, got float"):
        metrics.mmd_test(x, x, 10.0)


# --- inception score ---


def test_inception_score_closed_forms() -> None:
    """Certain and balanced predictions score the number of classes; uninformative ones score 1."""
    certain = torch.eye(4).repeat(10, 1)
    assert metrics.inception_score(certain, lambda x: 200 * x, splits=10).mean == pytest.approx(4.0, abs=1e-9)
    assert metrics.inception_score(certain, lambda x: 0 * x, splits=5) == (
        pytest.approx(1.0),
        pytest.approx(0.0),
    )
    # Half of the images certain of class 0, half undecided between the two: by hand.
    logits = torch.tensor([[200.0, 0.0], [0.0, 0.0]]).repeat(6, 1)
    kl = 0.5 * math.log(1 / 0.75) + 0.5 * (0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25))
    assert metrics.inception_score(logits, lambda x: x, splits=3).mean == pytest.approx(math.exp(kl), abs=1e-9)


def test_inception_score_splits_and_batches() -> None:
    """Consecutive splits: the first sees one class only and scores 1, the second sees both and scores 2."""
    logits = torch.cat((torch.tensor([[200.0, 0.0]]).repeat(6, 1), torch.eye(2).repeat(3, 1) * 200))
    found = metrics.inception_score(logits, lambda x: x, splits=2, batch_size=5)
    assert found.mean == pytest.approx(1.5, abs=1e-9)
    assert found.std == pytest.approx(0.5, abs=1e-9)


def test_inception_score_evaluates_the_module_and_restores_it() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.9), nn.Linear(3, 2))
    model[0].eval()
    images = torch.randn(20, 3)
    first, again = (metrics.inception_score(images, model, splits=2) for _ in range(2))
    assert first == again  # no dropout
    assert model.training and model[1].training and not model[0].training
    assert first == metrics.inception_score(images, model.eval(), splits=2)


def test_inception_score_misuse() -> None:
    images = torch.randn(20, 3)
    with pytest.raises(ValueError, match=r"inception_score: images must hold at least 30 images"):
        metrics.inception_score(images, lambda x: x, splits=30)
    with pytest.raises(ValueError, match=r"inception_score: splits must be at least 1, got 0"):
        metrics.inception_score(images, lambda x: x, splits=0)
    with pytest.raises(TypeError, match=r"inception_score: batch_size must be an int, got float"):
        metrics.inception_score(images, lambda x: x, batch_size=0.5)
    with pytest.raises(TypeError, match=r"inception_score: images must be a tensor, got list"):
        metrics.inception_score([1.0], lambda x: x)
    with pytest.raises(TypeError, match=r"inception_score: classifier must be callable, got int"):
        metrics.inception_score(images, 3)
    with pytest.raises(ValueError, match=r"classifier must return logits \(20, classes\), got \(20,\)"):
        metrics.inception_score(images, lambda x: x.sum(1))
    with pytest.raises(ValueError, match=r"classifier must return finite logits"):
        metrics.inception_score(images, lambda x: x.log())
