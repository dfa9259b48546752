"""Scores runs of `ade-fast train` on images, as a user made them: samples beside as many test images.

    python bench/image_runs.py runs/digits runs/fashion      adds a row for each to bench/results/

Three classifiers (scikit-learn's, seeds 0 to 2) are trained on the run's training images, at most 10,000 of them. The
Inception-style score exp E KL(p(y|x) || p(y)) is the mean over them and over groups of as many samples as there are
test images, at most 1,000, with its standard error over the groups; it is comparable to no other score. "kinds" is exp
of the entropy of p(y), "wavering" exp of that of p(y|x): the score is about the one over the other. "frechet" is the
Fréchet distance between Gaussians of the classifiers' hidden features at the training images they learned and at the
same groups of samples; it falls with a group's size, so that only the test images' own, of as many, is its measure, and
it is comparable to no other. Distances are to the nearest training image, pixels in [0, 1]. The AUROC is that of f at
test images against other images.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import image_rows
import image_tables
import torch
from torch import Tensor

from ade_fast.training import image_pictures, load
from ade_fast.training.build import build_source
from ade_fast.training.directory import SUMMARY
from ade_fast.training.image_source import ImageSource
from ade_fast.training.streams import stream

SAMPLES, COMPARED, LEARNED, CLASSIFIERS = 900, 1000, 10_000, 3


class Judges:
    """Classifiers of the training images, which saw them with and without noise, and how near to them images are."""

    def __init__(self, source: ImageSource, iterations: int = 40) -> None:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPClassifier

        self.source = source
        clean = source.pixels(source.images[:LEARNED]).flatten(1)
        self._classifiers, self._learned = [], []
        for seed in range(CLASSIFIERS):
            noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
            images = torch.cat([clean, clean + 0.05 * noise]).numpy()
            classifier = MLPClassifier((128,), max_iter=iterations, alpha=1e-3, random_state=seed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                classifier.fit(images, source.labels[:LEARNED].repeat(2).numpy())
            self._classifiers.append(classifier)
            self._learned.append(moments(features(classifier, clean)))

    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        found = [c.score(self.source.pixels(images).flatten(1).numpy(), labels.numpy()) for c in self._classifiers]
        return statistics.fmean(found)

    def scores(self, pixels: Tensor, group: int) -> dict[str, float]:
        """score, its standard error over the groups, exp of both entropies, the Fréchet distance, and the distances'
        mean and tenth."""
        found = []
        for part in (part.flatten(1) for part in pixels.split(group) if len(part) == group):
            each = [
                (*entropies(c.predict_proba(part.numpy())), frechet(moments(features(c, part)), learned))
                for c, learned in zip(self._classifiers, self._learned, strict=True)
            ]
            found.append([statistics.fmean(values) for values in zip(*each, strict=True)])
        score, kinds, wavering, distances = (list(values) for values in zip(*found, strict=True))
        distance = self.source.nearest(pixels)[0]
        spread = statistics.stdev(score) / math.sqrt(len(score)) if len(score) > 1 else math.nan
        return {
            "score": round(statistics.fmean(score), 3),
            "score_error": None if math.isnan(spread) else round(spread, 3),
            "kinds": round(statistics.fmean(kinds), 3),
            "wavering": round(statistics.fmean(wavering), 3),
            "frechet": round(statistics.fmean(distances), 2),
            "nearest": round(distance.mean().item(), 3),
            "nearest_low": round(distance.quantile(0.1).item(), 3),
        }


def entropies(probabilities: Any) -> tuple[float, float, float]:
    """The score, and exp of the entropies of p(y) and of p(y|x)."""
    p = torch.from_numpy(probabilities).double()
    marginal, conditional = (torch.special.entr(q).sum(-1).mean().item() for q in (p.mean(0), p))
    return math.exp(marginal - conditional), math.exp(marginal), math.exp(conditional)


Moments = tuple[Tensor, Tensor]


def features(classifier: Any, pixels: Tensor) -> Tensor:
    """The hidden layer's values [n, 128], float64."""
    weights, shift = (torch.from_numpy(found[0]).double() for found in (classifier.coefs_, classifier.intercepts_))
    return (pixels.double() @ weights + shift).relu()


def moments(values: Tensor) -> Moments:
    return values.mean(0), torch.cov(values.T)


def frechet(first: Moments, second: Moments) -> float:
    """|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)), the root's trace by eigenvalues, as torchmetrics has it: C C' may be
    singular."""
    (mean, covariance), (other_mean, other) = first, second
    root = torch.linalg.eigvals(covariance @ other).sqrt().real.sum()
    return float((mean - other_mean).square().sum() + covariance.trace() + other.trace() - 2 * root)


def measure(directory: Path, iterations: int = 40) -> dict[str, Any]:
    model, summary = load(directory), json.loads((directory / SUMMARY).read_text())
    source = build_source(model.config)
    assert isinstance(source, ImageSource)
    judges = Judges(source, iterations)
    test = source.pixels(source.test_images[:COMPARED])
    samples = model.sample(SAMPLES, model.config.seed)
    generator = stream(model.config.seed, "outliers")
    histogram = image_pictures.energies(model, source, model.space.to_z(samples), generator)
    return {
        "data": Path(model.config.data).name,
        "seed": model.config.seed,
        "updates": summary["updates"],
        "chosen_update": summary["chosen_update"],
        "seconds": round(summary["seconds"]),
        "images": len(test),
        "accuracy": round(judges.accuracy(source.test_images[:COMPARED], source.test_labels[:COMPARED]), 3),
        "test": judges.scores(test, len(test)),
        **judges.scores(samples, min(len(test), SAMPLES)),
        "auroc": {n: round(histogram.auroc("test", n), 3) for n in histogram.values if n != "test"},
        "settings": model.config.to_dict(),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", nargs="+", type=Path, help="of `ade-fast train --out`")
    parser.add_argument("--out", type=Path, help="results file (default: in bench/results/)")
    print(image_tables.runs(image_rows.by_directories("image_runs", parser.parse_args(argv), measure)))


if __name__ == "__main__":
    main()
