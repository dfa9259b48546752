"""What a run on images draws: samples beside their neighbours, chains along the unroll, energies of other images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..data.image_sets import image_set
from ..metrics import EnergyHistogram, energy_histogram
from ._arguments import integer
from .build import build_source
from .completion import complete
from .directory import CONVERGENCE, ENERGIES, FIGURE, PICTURE
from .image_source import ImageSource

if TYPE_CHECKING:
    from .trained import TrainedModel
    from .trainer import Test, Trainer

# `plots` is imported where it is used: `import ade_fast` is not to load matplotlib.

SHOWN, _CHAINS, _POINTS, _COMPLETIONS = 96, 16, 1000, 3
_GREY = 0.5
# Sets that are each other's outliers, where both are at hand.
_OTHERS = ("mnist", "fashion-mnist")


def draw_progress(trainer: Trainer, directory: Path) -> None:
    """Samples of the averaged players as they are now."""
    assert isinstance(trainer.source, ImageSource)
    samples = trainer.space.to_data(trainer.preview()[1][:SHOWN])
    save_samples(trainer.source, samples, directory / PICTURE.format(trainer.update), _title(trainer, "averaged"))


def draw_result(trainer: Trainer, test: Test, directory: Path) -> None:
    """The chosen players: samples, chains from noise, and f at samples, held-out and other images."""
    model, source = trainer.model(), trainer.source
    assert isinstance(source, ImageSource)
    save_samples(source, trainer.space.to_data(test.samples[:SHOWN]), directory / FIGURE, _title(trainer, "chosen"))
    draw_chains(model, directory / CONVERGENCE, trainer.generator("test_samples"))
    draw_energies(model, source, test.samples, directory / ENERGIES, trainer.generator("outliers"))


def draw_chains(model: TrainedModel, path: Path, generator: torch.Generator) -> None:
    """`chains`."""
    from . import plots

    rows = chains(model, _CHAINS, generator)
    plots.save_image_rows(path, rows, title=f"{model.config.data}: chains from noise, by steps")


def draw_energies(
    model: TrainedModel, source: ImageSource, samples: Tensor, path: Path, generator: torch.Generator
) -> None:
    """`energies`, of samples in z."""
    from . import plots

    histogram = energies(model, source, samples, generator)
    plots.save_energies(path, histogram, title=_told(histogram))


def chains(model: TrainedModel, n: int, generator: torch.Generator) -> dict[str, Tensor]:
    """n chains that begin in noise, after 0, 1, 2, 4, ... unrolls, as pixels by the number of steps made."""
    low, high = model.space.range
    device = next(model.potential.parameters()).device
    x = low + (high - low) * torch.rand(n, *model.event, generator=generator).to(device)
    rows, done = {"0": model.space.to_data(x)}, 0
    for unrolls in (1, 1, 2, 4, 8, 16):
        for _ in range(unrolls):
            x = model.sampler.move(model.potential, x, generator)
        done += unrolls
        rows[f"{done * model.config.n_steps}"] = model.space.to_data(x)
    return rows


def energies(model: TrainedModel, source: ImageSource, samples: Tensor, generator: torch.Generator) -> EnergyHistogram:
    """f at held-out images, at samples, and at images that are none of the data: `outliers`."""
    sets = {"test": source.test(_POINTS, generator), "samples": samples[:_POINTS]}
    sets |= outliers(source, generator)
    device = next(model.potential.parameters()).device
    return energy_histogram(model.potential, {name: images.to(device) for name, images in sets.items()})


def outliers(source: ImageSource, generator: torch.Generator) -> dict[str, Tensor]:
    """Images that are none of the data, in z: the test images with each pixel dealt anew among them, and turned by a
    quarter where they are square; the test images of another set of the same size, where one is on this machine."""
    levels = source.test_images[:_POINTS]
    order = torch.rand(levels.shape, generator=generator).argsort(0)
    found = {"pixels dealt anew": levels.gather(0, order)}
    if levels.shape[2] == levels.shape[3]:
        found["turned by 90°"] = levels.rot90(1, (2, 3))
    for name in _OTHERS:
        try:
            other = image_set(name)
        except FileNotFoundError:
            continue
        if other.test.shape[1:] == levels.shape[1:] and not torch.equal(other.test[: len(levels)], levels):
            found[name] = other.test[:_POINTS]
    return {name: source.continuous(images, generator) for name, images in found.items()}


def draw_completion(model: TrainedModel, path: Path, *, n: int, runs: int, seed: int) -> None:
    """Test images, their upper halves, and three completions of each by `complete`."""
    from . import plots

    source = build_source(model.config)
    assert isinstance(source, ImageSource)
    n = integer("complete", "n", n, low=1, high=len(source.test_images))
    whole = source.pixels(source.test_images[:n])
    given = whole.clone()
    given[:, :, model.event[1] // 2 :] = _GREY
    rows = {"test image": whole, "given": given}
    rows |= {f"completed {i + 1}": complete(model, whole, runs=runs, seed=seed + i) for i in range(_COMPLETIONS)}
    plots.save_image_rows(path, rows, title=f"{model.config.data}: the lower halves by {runs} runs of the sampler")


def _told(histogram: EnergyHistogram) -> str:
    """The areas under the curves, in words."""
    others = [name for name in histogram.values if name != "test"]
    return "AUROC of f, test against " + ", ".join(f"{name} {histogram.auroc('test', name):.2f}" for name in others)


def save_samples(source: ImageSource, samples: Tensor, path: Path, title: str) -> None:
    from . import plots

    distances, nearest = source.nearest(samples)
    scores = f"beneath each, pale, its nearest training image · mean distance {distances.mean():.2f}"
    plots.save_images(path, samples, nearest, title=title, scores=scores)


def _title(trainer: Trainer, players: str) -> str:
    update = trainer.best.update if players == "chosen" and trainer.best is not None else trainer.update
    return f"{Path(trainer.config.data).name}, update {update:,}"
