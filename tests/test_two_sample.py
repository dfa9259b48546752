"""The classifier two-sample test: its accuracy by a double loop, its p-value under the null and off it."""

import builtins
import math
from itertools import combinations

import numpy as np
import pytest
import torch

from ade_fast import metrics

test = metrics.classifier_two_sample_test
test.__test__ = False


def by_hand(x: torch.Tensor, y: torch.Tensor, k: int) -> float:
    """Leave-one-out k-NN with plain loops."""
    pooled = torch.cat((x, y)).double()
    pooled = pooled / pooled.std(0)
    n, total, right = len(x), len(pooled), [0.0, 0.0]
    for i in range(total):
        others = sorted((j for j in range(total) if j != i), key=lambda j: (pooled[j] - pooled[i]).norm().item())[:k]
        votes, own = sum(j < n for j in others), i < n
        share = k * (n - own) / (total - 1)
        says_x = 0.5 if votes == share else float(votes > share)
        right[0 if own else 1] += says_x if own else 1 - says_x
    return (right[0] / n + right[1] / (total - n)) / 2


@pytest.mark.parametrize(("n", "m", "k"), [(12, 12, 3), (9, 15, 4), (20, 6, None)])
def test_accuracy_equals_loops(n: int, m: int, k: int | None) -> None:
    x, y = torch.randn(n, 3) * torch.tensor([1.0, 10.0, 0.1]), torch.randn(m, 3)
    wanted = by_hand(x, y, k or 3)  # half the root of 26 is 2.5
    assert test(x, y, n_neighbors=k, n_permutations=1).accuracy == pytest.approx(wanted, abs=1e-12)


def test_p_value_against_all_splits() -> None:
    z = torch.randn(8, 2, dtype=torch.float64)
    z[:3] += 1
    accuracy = lambda c: by_hand(z[list(c)], z[[i for i in range(8) if i not in c]], 2)  # noqa: E731
    observed = accuracy((0, 1, 2))
    splits = [accuracy(c) for c in combinations(range(8), 3)]
    exact = sum(a >= observed - 1e-12 for a in splits) / len(splits)
    found = test(z[:3], z[3:], n_neighbors=2, n_permutations=20_000, generator=torch.Generator().manual_seed(0))
    assert found.accuracy == pytest.approx(observed, abs=1e-12)
    assert found.p == pytest.approx(exact, abs=5 * math.sqrt(exact * (1 - exact) / 20_000) + 1e-4)


def test_is_calibrated_under_the_null() -> None:
    """p is never below uniform (Kolmogorov-Smirnov, one-sided: accuracies tie), unequal sizes included."""
    generator = torch.Generator().manual_seed(3)
    p = []
    for _ in range(200):
        z = torch.randn(70, 2, generator=generator)
        p.append(test(z[:30], z[30:], n_permutations=99, generator=generator).p)
    p = torch.tensor(p, dtype=torch.float64).sort().values
    uniform = torch.arange(1, 201, dtype=torch.float64) / 200
    assert (uniform - p).max() < 1.52 / math.sqrt(200)  # the 1 % level
    assert p.min() >= 0.01 and p.min() < 0.1


def test_rejects_what_mmd_does_not_see() -> None:
    """A thin spiral beside a blurred one: the same at the scale of the data."""
    generator = torch.Generator().manual_seed(4)

    def spiral(width: float) -> torch.Tensor:
        angle = 12 * torch.rand(800, generator=generator).sqrt()
        clean = torch.stack((angle * angle.cos(), angle * angle.sin()), 1)
        return clean + width * torch.randn(800, 2, generator=generator)

    thin, blurred = spiral(0.1), spiral(1.0)
    assert metrics.mmd_test(thin, blurred, 199, generator).p > 0.05
    found = test(thin, blurred, n_permutations=199, generator=generator)
    assert found.accuracy > 0.6 and found.p == pytest.approx(0.005)
    same = test(thin, spiral(0.1), n_permutations=199, generator=generator)
    assert 0.4 < same.accuracy < 0.58 and same.p > 0.05


def test_is_reproducible_for_any_event_and_number() -> None:
    x, y = torch.randn(20, 1, 2, 2), torch.randn(30, 1, 2, 2)
    run = lambda **options: test(x, y, generator=torch.Generator().manual_seed(7), **options)  # noqa: E731
    assert run() == run() and isinstance(run().accuracy, float)
    assert run(n_permutations=np.int64(50), n_neighbors=np.int32(3)) == run(n_permutations=50, n_neighbors=3)
    constant = torch.zeros(12, 2)
    assert test(constant[:5], constant[5:], n_permutations=20).p > 0.05  # no spread to divide by


def test_misuse(monkeypatch) -> None:
    x = torch.randn(6, 2)
    name = "^classifier_two_sample_test: "
    with pytest.raises(ValueError, match=name + r"n_neighbors must be below n \+ m = 12, got 12"):
        test(x, x, n_neighbors=12)
    with pytest.raises(TypeError, match=name + "n_permutations must be an int, got float"):
        test(x, x, n_permutations=2.0)
    with pytest.raises(ValueError, match=name + r"y must have x's event shape \(2,\), got \(3,\)"):
        test(x, torch.randn(6, 3))
    with pytest.raises(ValueError, match=name + "x must be finite, got NaN or infinity"):
        test(x * math.nan, x)
    found = builtins.__import__

    def without(module, *args, **kwargs):
        if module.startswith("sklearn"):
            raise ImportError(module)
        return found(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"needs scikit-learn: pip install scikit-learn"):
        test(x, x)
