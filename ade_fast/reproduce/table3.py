"""Table 3: Inception scores on CIFAR-10, by the recipe for images, beside the printed ones.

The network is torchmetrics' Inception v3, that of the original score with its weights converted. It is fetched by
torch-fidelity when it is first used, and nothing begins before it is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..training import load
from . import images
from .jobs import RUNS, Job, Row
from .targets import Options, Target, markdown

PRINTED = {
    "WGAN-GP": 6.50,
    "Spectral GAN": 7.42,
    "Langevin PCD": 6.02,
    "Langevin PCD, 10 ensemble": 6.78,
    "ADE: deep latent q⁰, without HMC": 7.26,
    "ADE: deep latent q⁰, with HMC": 7.55,
}
NAMES = ("cifar10",)
SAMPLES = {"quick": 2000, "full": 50_000}
_SPLITS, _AT_ONCE = 10, 100


def scorer() -> Any:
    """torchmetrics' `InceptionScore`.

    Raises: ValueError: it, or its network, cannot be had here; one line that says what to do.
    """
    try:
        from torchmetrics.image.inception import InceptionScore

        return InceptionScore(splits=_SPLITS)
    except ModuleNotFoundError as error:
        first = str(error).splitlines()[0]
        raise ValueError(
            f"reproduce: table3 needs torchmetrics' Inception score: pip install torchmetrics torch-fidelity ({first})"
        ) from None
    except OSError as error:
        raise ValueError(
            f"reproduce: the weights of table3's Inception network could not be fetched ({error}); put the file that "
            f"torch-fidelity names into {torch.hub.get_dir()}/checkpoints"
        ) from None


def row(arguments: dict[str, Any], directory: Path, stem: str) -> dict[str, Any]:
    """As `images.row`, of the run that the figures have too, and the score of its samples and of test images."""
    found = images.row(arguments, directory, arguments["run"])
    if "diverged" in found:
        return found
    model, n = load(directory / RUNS / arguments["run"]), arguments["samples"]
    source = images.source_of(model.config)
    test = source.pixels(source.test_images[:n])
    return {**found, "score": score(model.sample(n, model.config.seed)), "score_of_test": score(test)}


def score(pixels: Tensor) -> list[float]:
    """Mean and standard deviation over the splits; grey images in three equal channels."""
    network = scorer()
    for part in pixels.split(_AT_ONCE):
        network.update((255 * part).round().to(torch.uint8).expand(-1, 3, -1, -1))
    return [float(value) for value in network.compute()]


def jobs(options: Options) -> list[Job]:
    """Raises: ValueError: the images, or the network, are not on this machine."""
    images.check_at_hand(options, NAMES)
    scorer()
    return _wanted(options)


def _wanted(options: Options) -> list[Job]:
    made = []
    for name in options.only:
        for seed in range(options.seeds):
            run = images.job(name, seed, options.budget)
            arguments = {**run.arguments, "run": run.file, "samples": SAMPLES[options.budget]}
            made.append(Job((name, "inception", f"seed {seed}"), "inception", arguments, run.cost))
    return made


def lines(options: Options, rows: Mapping[str, Row]) -> list[str]:
    table = [[f"{name}, printed", f"{value:.2f}"] for name, value in PRINTED.items()]
    for job in _wanted(options):
        found = rows.get(job.file)
        if found is None:
            continue
        name = f"**recipe for images**, {', '.join(job.name[::2])}"
        if "diverged" in found:
            table.append([f"{name}: {found['diverged']}", "-"])
            continue
        for what, key in ((name, "score"), ("test images, as many", "score_of_test")):
            mean, deviation = found[key]
            table.append([what, f"{mean:.2f} ± {deviation:.2f}"])
    return [
        *markdown(["", "Inception score"], table),
        "",
        f"Trained by the recipe for images of `ade-fast train`, not by the paper's settings. "
        f"{SAMPLES[options.budget]:,} samples in {_SPLITS} splits; the printed scores are of 50,000, and a score grows "
        f"with their number.",
    ]


def draw(options: Options, directory: Path, rows: Mapping[str, Row]) -> dict[str, str]:
    return {}


TARGET = Target("Table 3: Inception scores", {"quick": 1, "full": 1}, NAMES, jobs, lines, draw)
