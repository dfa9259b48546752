"""Maximum mean discrepancy (Gretton et al., 2012) with a Gaussian kernel: Table 2's number, and a test on it.

All arithmetic is in float64, whatever the samples are: the estimate is a difference of nearly equal means.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .._tensors import floating_tensor
from ..dynamics.base import is_number
from ..initial.base import as_count

FINE = 0.2
"""The kernel of ``bandwidth="fine"`` is this much narrower than the median distance, and sees blur."""

Bandwidth = float | Literal["median", "fine"]

# Below this fraction of |a|² + |b|², |a|² + |b|² - 2ab has lost too many digits of |a - b|²: 4 of 16 are left to lose.
_CANCELLED = 1e-4
_PAIR_CHUNK_ELEMENTS = 1 << 22
_PERMUTATION_CHUNK_ELEMENTS = 1 << 20  # 8 MiB of float64 weights at a time


class _Found(NamedTuple):
    mmd2: float
    p: float


class MMDTest(_Found):
    """``(mmd2, p)``, the unbiased MMD² and the permutation test's p-value, both Python floats.

    Attributes:
        null: ``(n_permutations,)`` float64, MMD² of every random split: what it is when the samples do not differ.
    """

    null: Tensor


def mmd2(x: Tensor, y: Tensor, bandwidth: Bandwidth = "median", *, weights: Tensor | None = None) -> Tensor:
    """Unbiased estimate of MMD² between the distributions that ``x`` and ``y`` were drawn from.

    ``mean_{i≠j} k(x_i, x_j) + mean_{i≠j} k(y_i, y_j) - 2 mean_{ij} k(x_i, y_j)`` with the Gaussian kernel
    ``k(a, b) = exp(-‖a - b‖² / (2 sigma²))``. Zero in expectation when the distributions agree, so it can be
    negative.

    Args:
        x: ``(n, *event)``, n ≥ 2, floating point; each row is one independent point.
        y: ``(m, *event)``, m ≥ 2, the same event and device; another floating dtype is allowed.
        bandwidth: the kernel's sigma (a length, in the units of the data), or ``"median"``: sigma² is the
            median of the squared distances between all pairs of two points of the pooled sample. ``"fine"``: a
            fifth of that sigma.
        weights: ``(n,)``, of the points of ``x``, ≥ 0 up to a common factor (importance weights): the distribution
            is then that of the weighted points, ``Σ_{i≠j} w_i w_j k(x_i, x_j) / Σ_{i≠j} w_i w_j`` and likewise
            between x and y. Self-normalised, so unbiased only as n grows. The median is that of all points alike.

    Returns:
        A scalar in the promoted dtype of ``x`` and ``y``, computed in float64. Differentiable in both, with
        the median held constant. Memory: ``(n + m)²`` float64 numbers, a few times over.

    Raises:
        TypeError: an argument is no floating point tensor.
        ValueError: shapes or devices differ, a point is not finite, there are too few, or the bandwidth is
            not positive (or the median is 0: over half of the pairs coincide); weights are negative, not finite, or
            fewer than two are positive.
    """
    check_samples("mmd2", x, y)
    kernel = _pooled_kernel("mmd2", x, y, bandwidth)
    n, m = len(x), len(y)
    result = torch.promote_types(x.dtype, y.dtype)
    within_y = kernel[n:, n:].sum()
    if weights is None:
        return _unbiased(kernel[:n, :n].sum(), within_y, kernel[:n, n:].sum(), n, m).to(result)
    w = _normalised_weights("mmd2", weights, x)
    within_x = w @ kernel[:n, :n] @ w / (1 - w.square().sum())
    return (within_x + within_y / (m * (m - 1)) - 2 * (w @ kernel[:n, n:]).mean()).to(result)


def mmd_test(
    x: Tensor,
    y: Tensor,
    n_permutations: int = 1000,
    generator: torch.Generator | None = None,
    bandwidth: Bandwidth = "median",
) -> MMDTest:
    """Permutation test of "x and y come from one distribution" with the unbiased MMD² as statistic.

    The pooled sample is split at random, again and again, into parts of the sizes of ``x`` and ``y``;
    ``p = (1 + #{permuted MMD² ≥ observed}) / (1 + n_permutations)``, exact at any level for independent
    points. The kernel matrix is computed once (the median bandwidth does not change under permutation), and a
    batch of permutations is one product with it.

    Args:
        x: ``(n, *event)``, n ≥ 2, floating point; each row is one independent point.
        y: ``(m, *event)``, m ≥ 2, the same event and device.
        n_permutations: how many random splits, at least 1.
        generator: where they come from.
        bandwidth: as in :func:`mmd2`; ``"median"`` sees that a part is missing or moved, ``"fine"`` sees blur.

    Returns:
        ``(mmd2, p)``, Python floats, with the permuted values as ``.null``. A small p says the samples differ.

    Raises:
        TypeError, ValueError: as :func:`mmd2`; also for a wrong ``n_permutations``.
    """
    check_samples("mmd_test", x, y)
    n_permutations = as_count("mmd_test", "n_permutations", n_permutations, least=1)
    n, m = len(x), len(y)
    with torch.no_grad():
        kernel = _pooled_kernel("mmd_test", x, y, bandwidth)
        row_sums = kernel.sum(dim=1)
        total = row_sums.sum()

        def statistic(selected: Tensor) -> Tensor:
            """MMD² of each split; ``selected`` [splits, n + m] is 1 for points of the first part, else 0."""
            within_x = (selected @ kernel).mul_(selected).sum(dim=1)
            from_x = selected @ row_sums
            return _unbiased(within_x, total - 2 * from_x + within_x, from_x - within_x, n, m)

        first = kernel.new_zeros(1, n + m)
        first[:, :n] = 1
        observed = statistic(first)
        # Splits that differ by a swap of equal points tie exactly but for rounding; a tie counts against
        # rejection.
        threshold = observed - 1e-12
        null = []
        chunk = max(1, _PERMUTATION_CHUNK_ELEMENTS // (n + m))
        for start in range(0, n_permutations, chunk):
            splits = random_splits(min(chunk, n_permutations - start), n, n + m, generator, kernel)
            null.append(statistic(splits))
    permuted = torch.cat(null)
    found = MMDTest(observed.item(), (1 + int((permuted >= threshold).sum())) / (1 + n_permutations))
    found.null = permuted
    return found


def check_samples(name: str, x: Tensor, y: Tensor) -> None:
    for argument, value in (("x", x), ("y", y)):
        floating_tensor(name, argument, value)
        if value.ndim == 0:
            raise ValueError(f"{name}: {argument} must be (n, *event), got a scalar")
        if len(value) < 2:
            raise ValueError(f"{name}: {argument} must have at least 2 points, got {len(value)}")
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(f"{name}: y must have x's event shape {tuple(x.shape[1:])}, got {tuple(y.shape[1:])}")
    if x.device != y.device:
        raise ValueError(f"{name}: y must be on x's device {x.device}, got {y.device}")
    for argument, value in (("x", x), ("y", y)):
        if not bool(value.isfinite().all()):
            raise ValueError(f"{name}: {argument} must be finite, got NaN or infinity")


def _normalised_weights(name: str, weights: Tensor, x: Tensor) -> Tensor:
    """The weights with a sum of 1, float64."""
    if not isinstance(weights, Tensor):
        raise TypeError(f"{name}: weights must be a tensor, got {type(weights).__name__}")
    if tuple(weights.shape) != (len(x),):
        raise ValueError(f"{name}: weights must have shape ({len(x)},), one per point of x, got {tuple(weights.shape)}")
    if weights.device != x.device:
        raise ValueError(f"{name}: weights must be on x's device {x.device}, got {weights.device}")
    w = weights.double()
    if not bool((w.isfinite() & (w >= 0)).all()):
        raise ValueError(f"{name}: weights must be finite and >= 0")
    if int((w > 0).sum()) < 2:
        raise ValueError(f"{name}: at least 2 weights must be positive, got {int((w > 0).sum())}")
    return w / w.sum()


def _pooled_kernel(name: str, x: Tensor, y: Tensor, bandwidth: Bandwidth) -> Tensor:
    """Kernel matrix of x and y together, ``(n + m, n + m)`` float64, with zeros on the diagonal."""
    distances = squared_distances(torch.cat((x.flatten(1), y.flatten(1)) if x.ndim > 1 else (x[:, None], y[:, None])))
    kernel = (distances * (-0.5 / kernel_variance(name, distances.detach(), bandwidth))).exp()
    return kernel - torch.diag(kernel.diagonal())


def squared_distances(points: Tensor) -> Tensor:
    """``(n, n)`` float64 of ``(n, d)``, each right relative to itself, whatever the offset and the spread."""
    points = points.double()
    # Centred, so that fewer of |a|² + |b|² - 2ab cancel.
    centred = points - points.mean(dim=0).detach()
    squares = centred.square().sum(dim=1)
    scale = squares[:, None] + squares
    distances = torch.addmm(scale, centred, centred.T, alpha=-2)
    # The rest by their differences, from the points as given: those are exact where two points are close.
    i, j = (distances.detach() <= _CANCELLED * scale.detach()).nonzero(as_tuple=True)
    size = max(1, _PAIR_CHUNK_ELEMENTS // max(1, points.shape[1]))
    near = [(points[a] - points[b]).square().sum(dim=1) for a, b in zip(i.split(size), j.split(size), strict=True)]
    return distances.index_put((i, j), torch.cat(near))


def kernel_variance(name: str, distances: Tensor, bandwidth: Bandwidth) -> float:
    """The kernel's sigma² from the bandwidth argument and the squared distances."""
    if isinstance(bandwidth, str):
        if bandwidth not in ("median", "fine"):
            raise ValueError(f"{name}: bandwidth must be a number, 'fine' or 'median', got {bandwidth!r}")
        variance = _median_of_pairs(distances)
        if variance == 0:
            raise ValueError(
                f"{name}: the median distance is 0 (over half of the pairs coincide); give bandwidth a number"
            )
        return variance if bandwidth == "median" else FINE**2 * variance
    if not is_number(bandwidth):
        raise TypeError(f"{name}: bandwidth must be 'fine', a number or 'median', got {type(bandwidth).__name__}")
    if not (math.isfinite(bandwidth) and bandwidth > 0):
        raise ValueError(f"{name}: bandwidth must be positive and finite, got {bandwidth}")
    return float(bandwidth) ** 2


def _median_of_pairs(distances: Tensor) -> float:
    """Median of what stands above the diagonal of a square matrix."""
    pairs = torch.cat([row[i + 1 :] for i, row in enumerate(distances)])  # three times as fast as a mask
    count = len(pairs)
    # torch.median takes the lower of the two middle elements of an even number; the median is their mean.
    middle = pairs.kthvalue((count + 1) // 2).values.item()
    return middle if count % 2 else 0.5 * (middle + pairs.kthvalue(count // 2 + 1).values.item())


def _unbiased(within_x: Tensor, within_y: Tensor, between: Tensor, n: int, m: int) -> Tensor:
    """MMD² from sums of the kernel: over pairs i ≠ j within each sample, and over all pairs between them."""
    return within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * between / (n * m)


def random_splits(count: int, n: int, size: int, generator: torch.Generator | None, like: Tensor) -> Tensor:
    """``(count, size)`` rows with ones at a random n-subset, uniform over subsets, zeros elsewhere."""
    device = like.device if generator is None else generator.device
    # float64 keys: in float32 ties among 2**24 values would favour low indices.
    keys = torch.rand(count, size, generator=generator, dtype=torch.float64, device=device)
    subset = keys.topk(n, dim=1, sorted=False).indices.to(like.device)
    return like.new_zeros(count, size).scatter_(1, subset, 1.0)
