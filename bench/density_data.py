"""The tables that `bench/density.py` compares densities on: scikit-learn's own, split, reduced and standardised."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

VALIDATION, TEST = 0.2, 0.2
"""Fractions of the rows; the rest is for training."""


class Split(NamedTuple):
    """Rows [n, d] of one set, float32, in the standardised coordinates of the training rows."""

    train: Tensor
    validation: Tensor
    test: Tensor

    @property
    def dim(self) -> int:
        return self.train.shape[1]


class Source(NamedTuple):
    """rows: [n, columns] from a random generator. components: how many principal components of the training rows are
    kept, None: the columns as they are. scaled: the columns are standardised before that."""

    rows: Callable[[np.random.Generator], np.ndarray]
    components: int | None = None
    scaled: bool = False


def split(name: str, seed: int) -> Split:
    """The rows of a set, shuffled by `seed`, reduced and standardised by what the training rows say.

    Raises:
        ValueError: there is no such set.
    """
    if name not in SETS:
        raise ValueError(f"no set {name!r}: choose from {', '.join(SETS)}")
    source, random = SETS[name], np.random.default_rng(seed)
    rows = source.rows(random)
    rows = rows[random.permutation(len(rows))]
    n_validation, n_test = round(VALIDATION * len(rows)), round(TEST * len(rows))
    train = slice(n_validation + n_test, None)
    if source.scaled:
        rows = _standardised(rows, rows[train])
    if source.components is not None:
        rows = _principal(rows, rows[train], source.components)
    z = torch.from_numpy(_standardised(rows, rows[train])).float()
    return Split(z[train], z[:n_validation], z[n_validation : n_validation + n_test])


def _standardised(rows: np.ndarray, train: np.ndarray) -> np.ndarray:
    return (rows - train.mean(0)) / train.std(0)


def _principal(rows: np.ndarray, train: np.ndarray, components: int) -> np.ndarray:
    mean = train.mean(0)
    axes = np.linalg.svd(train - mean, full_matrices=False)[2][:components]
    return (rows - mean) @ axes.T


def _breast_cancer(random: np.random.Generator) -> np.ndarray:
    from sklearn.datasets import load_breast_cancer

    return load_breast_cancer().data


def _wine(random: np.random.Generator) -> np.ndarray:
    from sklearn.datasets import load_wine

    return load_wine().data


def _digits(random: np.random.Generator) -> np.ndarray:
    from sklearn.datasets import load_digits

    pixels = load_digits().data
    return pixels + random.random(pixels.shape)  # whole numbers have no density


SETS = {
    "breast cancer": Source(_breast_cancer, components=10, scaled=True),
    "wine": Source(_wine),
    "digits": Source(_digits, components=16),
}
