"""Runs of `ade-fast train` on images as densities: f's held-out likelihood at several temperatures, by annealing.

    python bench/image_density.py runs/digits        adds a row for each to bench/results/

The density at a temperature t is p(x) ∝ exp(f(x) / t) N(x; mean, 1), x in [-1, 1] and around it, with the mean of the
training images: a Gaussian with half the pixels' range for its standard deviation, without which f need not have a
normaliser. Its log Z comes from annealed importance sampling from that Gaussian (`ade.metrics.log_z_bracket`): by more
than b nats too high with a probability of at most exp(-b), too low by what its chains did not find. So the bits per
pixel, (log Z - E f / t) of the test images, dequantised as in training, in units of a grey level, are at least what is
said here. "down" is the other end, of chains that begin at the run's samples: no bound, as they are no exact ones. By
default the last temperature is that of the recipe's own chains, noise_std^2 / step_size.

Beside them, on the same images: one Gaussian and a mixture of Gaussians (scikit-learn), number of components and least
variance chosen on the run's validation images; and `ade.fit` with its defaults (an MLP, a spline flow, the tight bound)
on the images as rows, dequantised once, with noise of the run's `data_noise` standard deviations of a pixel: its f at
temperature 1, on its own Gaussian, with both ends of the bracket.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import image_rows
import image_tables
import torch
from torch import Tensor, nn

import ade_fast as ade
from ade_fast.training import load
from ade_fast.training.build import build_source
from ade_fast.training.image_source import ImageSource
from ade_fast.training.streams import stream

TEMPERATURES = (1.0, 0.1, 0.02, 0.005, 0.002)
COMPONENTS = (1, 5, 10, 20, 40)
VALIDATION = 1000  # images at most
FIT: dict[str, Any] = {"test_fraction": 0.0, "tensorboard": "off", "threads": 1, "test_permutations": 20}
BRACKET = {"n_steps": 2000, "n_chains": 200}
VARIANCES = (3e-3, 1e-3, 3e-4)  # added to the covariances: that of one dequantised level of 17 is 1.2e-3


class Tempered(nn.Module):
    """f / temperature."""

    def __init__(self, potential: nn.Module, temperature: float) -> None:
        super().__init__()
        self.potential, self.temperature = potential, temperature

    def forward(self, x: Tensor) -> Tensor:
        return self.potential(x) / self.temperature


def bits(nats: float, levels: int, pixels: int) -> float:
    """Bits per pixel, in units of a grey level, of a negative log-density in nats by x in [-1, 1]."""
    return (nats / pixels + math.log(levels / 2)) / math.log(2)


def by_gaussians(train: Tensor, validation: Tensor, test: Tensor) -> dict[str, Any]:
    """Nats of one Gaussian and of the mixture that is likeliest at the validation images."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    rows = [part.flatten(1).numpy() for part in (train, validation, test)]
    fitted = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for components, variance in itertools.product(COMPONENTS, VARIANCES):
            mixture = GaussianMixture(components, reg_covar=variance, random_state=0).fit(rows[0])
            fitted.append((mixture.score(rows[1]), components, -mixture.score(rows[2])))
    alone = max(found for found in fitted if found[1] == 1)
    _, components, best = max(fitted)
    return {"gaussian": alone[2], "mixture": best, "components": components}


def by_tight_bound(train: Tensor, validation: Tensor, test: Tensor, updates: int, **settings: Any) -> dict[str, Any]:
    """Nats of `ade.fit`'s f by log Z from below and from above, where the chains begin at test images."""
    start = time.process_time()
    rows, held_out, points = (part.flatten(1) for part in (train, validation, test))
    model = ade.fit(rows, validation=held_out, progress=False, updates=updates, **FIT, **settings)
    z = model.space.to_z(points)
    generator = stream(model.config.seed, "density")
    bracket = ade.metrics.log_z_bracket(
        model.potential, samples=z[: BRACKET["n_chains"]], generator=generator, **BRACKET
    )
    with torch.no_grad():
        value = model.potential(z).mean().item() + float(model.space.log_det)
    return {
        "updates": updates,
        "lower": bracket.lower - value,
        "upper": bracket.upper - value,
        "ess": None if model.density is None else round(model.density.ess, 4),
        "seconds": round(time.process_time() - start),
    }


def measure(
    directory: Path, temperatures: Sequence[float], n_steps: int, n_chains: int, updates: int
) -> dict[str, Any]:
    model = load(directory)
    source = build_source(model.config)
    assert isinstance(source, ImageSource)
    generator = stream(model.config.seed, "density")
    train, test = (source.continuous(images, generator) for images in (source.images, source.test_images))
    levels, pixels, mean = source.levels, train[0].numel(), train.mean(0)
    validation = source.validation(VALIDATION, generator)
    gaussians = by_gaussians(train, validation, test)
    noise = {"seed": model.config.seed, "data_noise": model.config.data_noise}
    tight = by_tight_bound(train, validation, test, updates, **noise)
    tight |= {end: round(bits(tight[end], levels, pixels), 3) for end in ("lower", "upper")}
    print(tight, file=sys.stderr, flush=True)
    samples = model.space.to_z(model.sample(n_chains, model.config.seed))
    found = []
    for temperature in temperatures:
        start = time.process_time()
        f = ade.WithBase(Tempered(model.potential, temperature), mean, torch.ones_like(mean))
        options = {"n_steps": n_steps, "n_chains": n_chains, "n_leapfrog": 3, "generator": generator}
        bracket = ade.metrics.log_z_bracket(f, samples=samples, **options)
        with torch.no_grad():
            value = f(test).mean().item()
        found.append(
            {
                "temperature": temperature,
                "log_z": round(bracket.lower, 2),
                "log_z_se": round(bracket.lower_se, 2),
                "bits": round(bits(bracket.lower - value, levels, pixels), 3),
                "down": round(bits(bracket.upper - value, levels, pixels), 3),
                "seconds": round(time.process_time() - start),
            }
        )
        print(found[-1], file=sys.stderr, flush=True)
    return {
        "data": Path(model.config.data).name,
        "seed": model.config.seed,
        "images": len(test),
        "levels": levels,
        "gaussian": round(bits(gaussians["gaussian"], levels, pixels), 3),
        "mixture": round(bits(gaussians["mixture"], levels, pixels), 3),
        "components": gaussians["components"],
        "tight": tight,
        "sampler_temperature": model.config.noise_std**2 / model.config.step_size,
        "n_steps": n_steps,
        "n_chains": n_chains,
        "temperatures": found,
        "settings": model.config.to_dict(),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", nargs="+", type=Path, help="of `ade-fast train --out`")
    parser.add_argument("--temperatures", type=lambda text: [float(t) for t in text.split(",")], default=TEMPERATURES)
    parser.add_argument("--steps", type=int, default=1000, help="temperatures on the way (default 1000)")
    parser.add_argument("--chains", type=int, default=100, help="default 100")
    parser.add_argument("--updates", type=int, default=3000, help="of ade.fit on the images as rows (default 3000)")
    parser.add_argument("--out", type=Path, help="results file (default: in bench/results/)")
    args = parser.parse_args(argv)

    def row(directory: Path) -> dict[str, Any]:
        return measure(directory, args.temperatures, args.steps, args.chains, args.updates)

    print(image_tables.density(image_rows.by_directories("image_density", args, row)))


if __name__ == "__main__":
    main()
