"""A trained model on held-out points: its likelihood, what its weights say, and two-sample tests of its samples."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ..data import load_table
from ..data.image_sets import IMAGE_SETS, is_image_set
from ..metrics import MMDTest, log_likelihood, mmd_test
from ..weighted import WeightedSampler, evaluating
from ..weighted import evaluate as values_of
from ..weights import effective_sample_size
from ._arguments import SEEDS, integer
from .build import build_source
from .config import GIVEN, ConfigError
from .image_source import ImageSource
from .source import Source
from .streams import stream
from .temperature import best_scale

if TYPE_CHECKING:
    from .sampler import DualSampler
    from .trained import TrainedModel


_NULL_QUANTILES = (50, 95, 99)
PURPOSES = ("test_samples", "permutations", "likelihood", "exact_samples", "temperature")
"""What `evaluate` needs randomness for."""

# What is read off the weights beside log Z takes fewer samples: the temperature, and q0's own effective sample size.
_FEWER = 20_000


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Two-sample tests are on standardised coordinates. Of a model without density all that follows from weights is None.

    points: how many held-out points the likelihood is the mean of.
    mmd2, p_value: of raw samples of the dual sampler against held-out points, and its permutation test.
    null_mmd2: quantiles of MMD^2 if both were from one distribution; "50", "95", "99".
    mmd2_fine, fine_p_value: of the same points under a kernel of a fifth of the median distance, which sees blur.
    nll, nll_standard_error: negative log-likelihood in nats per point, in the data's units, log Z's error included.
    log_z, log_z_standard_error, ess: of f in its own coordinates; the sampler's effective sample size, a fraction.
    initial_ess: that of q^0 alone.
    best_temperature: the c under which exp(c f) has the highest likelihood.
    exact_mmd2, exact_p_value: as mmd2, of samples of p_f: raw ones resampled by their weights.
    warnings: what the estimates warned about.
    """

    points: int
    mmd2: float
    p_value: float
    null_mmd2: Mapping[str, float]
    mmd2_fine: float
    fine_p_value: float
    nll: float | None = None
    nll_standard_error: float | None = None
    log_z: float | None = None
    log_z_standard_error: float | None = None
    ess: float | None = None
    initial_ess: float | None = None
    best_temperature: float | None = None
    exact_mmd2: float | None = None
    exact_p_value: float | None = None
    warnings: tuple[str, ...] = ()

    def lines(self, data: str, source: Source | None = None) -> list[str]:
        """The figures as text, beside the data's own entropy where the source knows it."""
        shown = [f"data            {data}, {self.points:,} held-out points"]
        if self.nll is None or self.ess is None or self.initial_ess is None:
            shown.append("log-likelihood  not known: the sampler has no density to form weights with")
        else:
            shown += [
                f"log-likelihood  {-self.nll:.4f} ± {self.nll_standard_error:.4f} nats per point",
                f"log Z           {self.log_z:.4f} ± {self.log_z_standard_error:.4f}, in standardised coordinates",
                f"ESS             {100 * self.ess:.1f} % (q0 alone {100 * self.initial_ess:.1f} %)",
                f"temperature     {self.best_temperature:.2f} is the best",
            ]
        if source is not None and source.entropy is not None:
            kind = "exact" if source.entropy_exact else "a sum over a fine grid"
            shown.append(f"data's entropy  {source.entropy:.4f} nats ({kind}): no likelihood is above minus that")
        tests = [("raw samples", self.mmd2, self.p_value), ("  fine scale", self.mmd2_fine, self.fine_p_value)]
        if self.exact_mmd2 is not None and self.exact_p_value is not None:
            tests.append(("exact samples", self.exact_mmd2, self.exact_p_value))
        shown += [f"{name:16}MMD² {1e3 * mmd2:+.2f}e-3, p = {p:.3f}" for name, mmd2, p in tests]
        return [*shown, *(f"warning         {warning}" for warning in self.warnings)]


def evaluate(
    model: TrainedModel, points: Tensor, generators: Mapping[str, torch.Generator]
) -> tuple[Evaluation, Tensor, Tensor | None]:
    """Scores a model; all points are in its own coordinates (``model.space``).

    Args:
        model: with the settings of its evaluation in ``model.config``.
        points: [n, *event], n >= 2, held-out: all of them for the likelihood, the first ``test_samples`` for the tests.
        generators: a source of randomness for each purpose, see `PURPOSES`.

    Returns:
        The figures, the raw samples, and the exact ones if the model has a density.
    """
    config, compared = model.config, points[: model.config.test_samples]
    with torch.no_grad():
        samples = model.sampler.sample(model.potential, len(compared), generators["test_samples"]).x
    seed = generators["permutations"].initial_seed()

    def test(points_: Tensor, bandwidth: Literal["median", "fine"] = "median") -> MMDTest:
        generator = torch.Generator().manual_seed(seed)
        return mmd_test(points_, compared, config.test_permutations, generator, bandwidth)

    raw, fine = test(samples), test(samples, "fine")
    levels = torch.tensor(_NULL_QUANTILES, dtype=raw.null.dtype).to(raw.null) / 100
    null = dict(zip(map(str, _NULL_QUANTILES), torch.quantile(raw.null, levels).tolist(), strict=True))
    found: dict[str, Any] = {"points": len(points), "mmd2": raw.mmd2, "p_value": raw.p, "null_mmd2": null}
    found |= {"mmd2_fine": fine.mmd2, "fine_p_value": fine.p}
    if model.density is None:
        return Evaluation(**found), samples, None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found |= _likelihood(model, points, generators)
        exact = model.sampler.resample(
            model.potential,
            len(compared),
            momentum_weight=model.momentum_weight,
            generator=generators["exact_samples"],
        ).x
    exactly = test(exact)
    found |= {"exact_mmd2": exactly.mmd2, "exact_p_value": exactly.p}
    said = tuple(dict.fromkeys(str(warning.message) for warning in caught))
    return Evaluation(**found, warnings=said), samples, exact


def initial_ess(potential: nn.Module, sampler: DualSampler, n: int, generator: torch.Generator) -> float:
    """The effective sample size of q^0 alone as a proposal for p_f, a fraction: what the dynamics must beat."""
    with evaluating(potential):
        x, _, log_q = sampler.initial.sample(n, generator=generator)
        return effective_sample_size(values_of("initial_ess", potential, x) - log_q.double()).item()


def evaluate_run(model: TrainedModel, data: str | None, seed: int) -> tuple[Evaluation, Source | None]:
    """Scores a run's model on points that are new to it.

    Args:
        model: of the run.
        data: a file of rows, of a run on images a set's name or folder, whose test images count; None: of a toy set a
            fresh draw, of the run's own file or images the test rows.
        seed: of all randomness.

    Returns:
        The figures, and where the points came from: with the data's own entropy, if it is known; None: from ``data``.
    """
    seed = integer("evaluate", "seed", seed, low=0, high=SEEDS - 1)
    generators = {purpose: stream(seed, f"evaluate {purpose}") for purpose in PURPOSES}
    if data is not None and model.config.of_images:
        return evaluate(model, _images(model, data, seed), generators)[0], None
    if data is not None:
        rows = load_table(data, columns=model.event[0], varied=False, dtype=torch.float64)
        return evaluate(model, model.space.to_z(rows), generators)[0], None
    if model.config.data == GIVEN:
        raise ConfigError("the run learned from rows given to ade.fit; give held-out ones by --data")
    source = build_source(model.config)
    if source.fingerprint != model.fingerprint:
        raise ConfigError(f"the rows of {model.config.data} are others than the run learned from; give --data")
    n = max(model.config.test_samples, model.config.test_likelihood_samples)
    points = source.test(n, stream(seed, "evaluate test_data"))
    return evaluate(model, points, generators)[0], source


def _images(model: TrainedModel, data: str, seed: int) -> Tensor:
    """The test images of a set, in z."""
    if not is_image_set(data):
        raise ConfigError(f"--data must be {', '.join(IMAGE_SETS)}, or the folder of such a set, got {data}")
    source = ImageSource(data, validation_fraction=0.1, test_fraction=0.1, seed=seed)
    if source.space != model.space:
        raise ConfigError(f"--data must have images of shape {model.event}, {data} has {source.space.event}")
    return source.test(model.config.test_samples, stream(seed, "evaluate test_data"))


def _likelihood(model: TrainedModel, points: Tensor, generators: Mapping[str, torch.Generator]) -> dict[str, float]:
    """All that follows from the weights but samples."""
    n = model.config.test_likelihood_samples
    found = log_likelihood(
        model.potential, model.sampler, points, n, model.momentum_weight, generator=generators["likelihood"]
    )
    n = min(n, _FEWER)
    source = WeightedSampler("evaluate", model.potential, model.sampler, model.momentum_weight)
    with evaluating(model.potential):
        x, log_w = map(torch.cat, zip(*source.chunks(n, generators["temperature"]), strict=True))
        values, at_data = (values_of("evaluate", model.potential, x_) for x_ in (x, points))
    return {
        "nll": -found.mean - model.space.log_det,
        "nll_standard_error": found.standard_error,
        "log_z": found.log_z,
        "log_z_standard_error": found.log_z_standard_error,
        "ess": found.ess,
        "initial_ess": initial_ess(model.potential, model.sampler, n, generators["temperature"]),
        "best_temperature": best_scale(values, at_data, log_w),
    }
