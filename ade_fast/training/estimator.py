"""`ade.fit` in the manner of scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

try:
    from sklearn.base import BaseEstimator, DensityMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError("ade.EnergyEstimator needs scikit-learn >= 1.6: pip install scikit-learn") from error

from .config import Config
from .fit import fit


class EnergyEstimator(DensityMixin, BaseEstimator):
    """A density p ∝ exp f, by adversarial dynamics embedding.

    Args:
        updates, batch_size, hidden, activation, initial, dynamics, n_steps: as the settings of
            `ade.training.Config`, with their defaults.
        settings: any other of its settings, by name.
        random_state: an int, a ``numpy.random.RandomState``, or None (another seed every time).
        verbose: show a progress bar.

    Attributes:
        model_: the `ade.TrainedModel`.
        n_features_in_: columns of X.
    """

    def __init__(
        self,
        *,
        updates: int = Config.updates,
        batch_size: int = Config.batch_size,
        hidden: Sequence[int] = Config.hidden,
        activation: str = Config.activation,
        initial: str = Config.initial,
        dynamics: str = Config.dynamics,
        n_steps: int = Config.n_steps,
        settings: Mapping[str, Any] | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ):
        self.updates = updates
        self.batch_size = batch_size
        self.hidden = hidden
        self.activation = activation
        self.initial = initial
        self.dynamics = dynamics
        self.n_steps = n_steps
        self.settings = settings
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> EnergyEstimator:
        """Learns the density of the rows of X, (n, d); y is ignored. Raises: as `ade.fit`."""
        rows = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        own = {**self.get_params(deep=False), **(self.settings or {})}
        for name in ("settings", "random_state", "verbose"):
            own.pop(name)
        self.model_ = fit(rows, seed=_seed(self.random_state), progress=self.verbose, **own)
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """log p of each row, normalised: (n, d) -> (n,)."""
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=np.float64, reset=False)
        return self.model_.log_prob(rows).detach().cpu().numpy()

    def score(self, X: Any, y: Any = None) -> float:
        """The mean of `score_samples`: the log-likelihood in nats per row."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1, random_state: int | np.random.RandomState | None = None) -> np.ndarray:
        """Samples of p itself, (n_samples, d): draws of the dual sampler, resampled by their weights."""
        check_is_fitted(self)
        return self.model_.sample(n_samples, _seed(random_state), exact="resample").numpy()


def _seed(random_state: int | np.random.RandomState | None) -> int:
    return int(check_random_state(random_state).randint(2**31 - 1))
