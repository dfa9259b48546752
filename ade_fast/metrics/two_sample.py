"""A classifier two-sample test (Lopez-Paz and Oquab, 2017)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..initial.base import as_count
from .mmd import check_samples, random_splits

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

_PERMUTATION_CHUNK_ELEMENTS = 1 << 20


class ClassifierTest(NamedTuple):
    """How well a classifier tells x from y, and the permutation test's p-value; Python floats.

    accuracy: of held-out points, the mean of both samples' own, 0.5 if they do not differ.
    p: small if the samples differ.
    """

    accuracy: float
    p: float


def classifier_two_sample_test(
    x: Tensor,
    y: Tensor,
    *,
    n_neighbors: int | None = None,
    n_permutations: int = 1000,
    generator: torch.Generator | None = None,
) -> ClassifierTest:
    """Tests "x and y come from one distribution" by the accuracy of a classifier that has to tell them apart.

    The classifier is k-nearest neighbours on the pooled sample, each coordinate divided by its standard deviation, and
    cross-validation leaves one out: a point is said to be of the sample that has more than its share of the point's k
    neighbours (half a point for a tie). It has no training and no seed, follows shapes of any kind in few dimensions
    (thin spirals, holes, blur), and the neighbours stay the same under permutation of the labels: so
    ``p = (1 + #{permuted accuracy ≥ observed}) / (1 + n_permutations)`` is exact for independent points, where a
    binomial p-value would ignore that held-out predictions depend on each other. In many dimensions (images) distances
    say little, and a test in the space of some features is to be preferred.

    Source: Lopez-Paz and Oquab 2017, with a smaller k than their root of the number of points: it sees blur and thin
    gaps that the larger one averages out, and wide shapes as well.

    Args:
        x: ``(n, *event)``, n ≥ 2, floating point; each row is one independent point.
        y: ``(m, *event)``, m ≥ 2, the same event and device.
        n_neighbors: k; None is the odd number next to half the root of n + m.
        n_permutations: how many random labellings, at least 1.
        generator: where they come from.

    Raises:
        ImportError: scikit-learn is not installed.
        TypeError, ValueError: as `mmd2`; also for counts out of range.
    """
    name = "classifier_two_sample_test"
    check_samples(name, x, y)
    n, total = len(x), len(x) + len(y)
    if n_neighbors is None:
        n_neighbors = min(2 * round(math.sqrt(total) / 4) + 1, total - 1)
    n_neighbors = as_count(name, "n_neighbors", n_neighbors, least=1)
    if n_neighbors >= total:
        raise ValueError(f"{name}: n_neighbors must be below n + m = {total}, got {n_neighbors}")
    n_permutations = as_count(name, "n_permutations", n_permutations, least=1)
    with torch.no_grad():
        neighbors = _neighbors(torch.cat((x, y)).reshape(total, -1).double().cpu(), n_neighbors)
        labels = torch.zeros(1, total, dtype=torch.float64)
        labels[:, :n] = 1
        observed = _balanced_accuracy(labels, neighbors, n)
        reached, chunk = 0, max(1, _PERMUTATION_CHUNK_ELEMENTS // total)
        for start in range(0, n_permutations, chunk):
            splits = random_splits(min(chunk, n_permutations - start), n, total, generator, labels)
            # Sums of multiples of 1/n and 1/m: a tie must not be lost to rounding.
            reached += int((_balanced_accuracy(splits, neighbors, n) >= observed - 1e-12).sum())
    return ClassifierTest(observed.item(), (1 + reached) / (1 + n_permutations))


def _neighbors(points: Tensor, k: int) -> csr_matrix:
    """The k nearest other points of each, as a sparse ``(N, N)`` matrix of ones (scipy's)."""
    try:
        from sklearn.neighbors import NearestNeighbors
    except ImportError:
        raise ImportError("classifier_two_sample_test needs scikit-learn: pip install scikit-learn") from None
    spread = points.std(0)
    points = (points - points.mean(0)) / torch.where(spread > 0, spread, 1.0)
    return NearestNeighbors(n_neighbors=k).fit(points.numpy()).kneighbors_graph()


def _balanced_accuracy(labels: Tensor, neighbors: csr_matrix, n: int) -> Tensor:
    """Leave-one-out accuracy, the mean over both samples' own, for each row of labels ``(s, N)``, 1 for x."""
    total = labels.shape[1]
    votes = torch.from_numpy(neighbors @ labels.T.numpy()).T  # of the k neighbours, how many are x
    k = neighbors.nnz // total
    # What x's share of the other points would give, by whether the point itself is x.
    share = k * (n - labels) / (total - 1)
    says_x = (torch.sign(votes - share) + 1) / 2
    right_x = (labels * says_x).sum(1) / n
    right_y = ((1 - labels) * (1 - says_x)).sum(1) / (total - n)
    return (right_x + right_y) / 2
