"""Figures 3, 4, 6 and 7: energies, completions, samples and chains of one run on each image set that is at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data.image_sets import IMAGE_SETS, image_set, is_at_hand
from ..dynamics import NonFiniteError
from ..metrics import EnergyHistogram
from ..training import Config, DivergenceError, TrainedModel, image_pictures, load, plots, train
from ..training.build import build_source
from ..training.image_source import ImageSource
from ..training.streams import stream
from .jobs import RUNS, Job, Row
from .targets import Options, Target, markdown
from .trainings import how

_UPDATES = {"quick": 300, "full": 2000}
_UPDATES_OF_DIGITS = 2000  # minutes
_COST_OF_OTHERS = 12  # of an update, beside one of digits: so many times the pixels
_PLAIN: dict[str, Any] = {"tensorboard": "off", "pictures_every": 0}
# Tests make everything smaller by this.
SMALLER: dict[str, Any] = {}
_SAMPLES, _CHAINS, _COMPLETED, _RUNS = 96, 16, 16, 20


def job(name: str, seed: int, budget: str) -> Job:
    """A run by the recipe for images."""
    updates = _UPDATES_OF_DIGITS if name == "digits" else _UPDATES[budget]
    every = max(1, updates // 10)
    settings = {**_PLAIN, "data": name, "seed": seed, "updates": updates, "validate_every": every, **SMALLER}
    arguments = {"settings": Config.with_recipe(settings).to_dict()}
    cost = updates * (1 if name == "digits" else _COST_OF_OTHERS)
    return Job((name, "images", f"seed {seed}"), "images", arguments, cost)


def at_hand(options: Options) -> list[str]:
    """The sets to make: those that were asked for, or those of all that are on this machine.

    Raises:
        FileNotFoundError, ValueError: one that was asked for is not there, or none is.
    """
    there = [name for name in options.only if is_at_hand(name)]
    absent = [name for name in options.only if name not in there]
    if absent and (options.only != IMAGE_SETS or not there):
        try:
            image_set(absent[0])
        except ImportError as error:
            raise ValueError(f"reproduce: {absent[0]}: {error}") from None
    return there


def jobs(options: Options) -> list[Job]:
    return [job(name, seed, options.budget) for name in at_hand(options) for seed in range(options.seeds)]


def row(arguments: dict[str, Any], directory: Path, stem: str) -> dict[str, Any]:
    """Trains, or goes on where a killed call was; how near samples are to training images, and what f tells apart."""
    config, folder = Config.from_dict(arguments["settings"]), directory / RUNS / stem
    try:
        summary = train(config, folder, progress=False, pictures=False, **how(config, folder))
    except (NonFiniteError, DivergenceError) as error:
        return {"diverged": str(error).partition(";")[0]}
    model, source = load(folder), build_source(config)
    histogram = _energies(model, source)
    shown = source.pixels(source.test_images[:_SAMPLES])
    return {
        "chosen_update": summary.chosen_update,
        "nearest": float(source.nearest(_samples(model))[0].mean()),
        "nearest_of_test": float(source.nearest(shown)[0].mean()),
        "auroc": {name: histogram.auroc("test", name) for name in histogram.values if name != "test"},
        "training_seconds": summary.seconds,
    }


def _samples(model: TrainedModel) -> Tensor:
    return model.sample(_SAMPLES, model.config.seed)


def _energies(model: TrainedModel, source: ImageSource) -> EnergyHistogram:
    generator = stream(model.config.seed, "reproduce images")
    return image_pictures.energies(model, source, model.space.to_z(_samples(model)), generator)


def lines(options: Options, rows: Mapping[str, Row]) -> list[str]:
    """A line for each run, and which sets are not there."""
    names = at_hand(options)
    table = []
    for name in names:
        for seed in range(options.seeds):
            found = rows.get(job(name, seed, options.budget).file)
            if found is None:
                continue
            if "diverged" in found:
                table.append([name, str(seed), "diverged", *["-"] * 3])
                continue
            told = ", ".join(f"{other} {area:.2f}" for other, area in found["auroc"].items())
            distances = [f"{found[key]:.2f}" for key in ("nearest", "nearest_of_test")]
            table.append([name, str(seed), f"{found['chosen_update']:,}", *distances, told])
    head = ["set", "seed", "chosen update", "nearest training image", "of test images", "AUROC of f, test against"]
    absent = [name for name in options.only if name not in names]
    return markdown(head, table) + (["", f"Not on this machine: {', '.join(absent)}."] if absent else [])


_Draw = Callable[[TrainedModel, Path], None]


def _drawing(stem: str, what: str, draw: _Draw) -> Callable[[Options, Path, Mapping[str, Row]], dict[str, str]]:
    """A picture of the first run on each set."""

    def pictures(options: Options, directory: Path, rows: Mapping[str, Row]) -> dict[str, str]:
        written = {}
        for name in at_hand(options):
            file = job(name, 0, options.budget).file
            if "diverged" not in rows[file]:
                picture = f"{stem}-{name}.png"
                draw(load(directory / RUNS / file), directory / picture)
                written[picture] = f"{name}: {what}."
        return written

    return pictures


def _draw_energies(model: TrainedModel, path: Path) -> None:
    plots.save_energies(path, _energies(model, build_source(model.config)), title=model.config.data)


def _draw_completions(model: TrainedModel, path: Path) -> None:
    image_pictures.draw_completion(model, path, n=_COMPLETED, runs=_RUNS, seed=model.config.seed)


def _draw_samples(model: TrainedModel, path: Path) -> None:
    samples = _samples(model)
    plots.save_images(path, samples, build_source(model.config).nearest(samples)[1], title=model.config.data)


def _draw_chains(model: TrainedModel, path: Path) -> None:
    rows = image_pictures.chains(model, _CHAINS, stream(model.config.seed, "reproduce chains"))
    plots.save_image_rows(path, rows, title=model.config.data)


def _target(number: int, title: str, what: str, draw: _Draw) -> Target:
    pictures = _drawing(f"figure{number}", what, draw)
    return Target(f"Figure {number}: {title}", {"quick": 1, "full": 1}, IMAGE_SETS, jobs, lines, pictures)


FIGURE3 = _target(3, "energies", "f at test images, at samples and at images that are none of the set", _draw_energies)
FIGURE4 = _target(4, "completions", "lower halves by the sampler, the upper ones given", _draw_completions)
FIGURE6 = _target(6, "samples", "samples, and beneath each, pale, its nearest training image", _draw_samples)
FIGURE7 = _target(7, "chains", "chains that begin in noise, by the number of steps", _draw_chains)
