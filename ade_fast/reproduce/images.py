"""Figures 3, 4, 6 and 7: f on samples and other images, completions, samples and chains, by the recipe for images.

The paper has CIFAR-10, and MNIST for completions; ``--only`` names another set. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data.image_sets import image_set
from ..dynamics import NonFiniteError
from ..training import Config, DivergenceError, TrainedModel, image_pictures, load, train
from ..training.build import build_source
from ..training.image_source import ImageSource
from ..training.streams import stream
from .jobs import RUNS, Job, Row
from .targets import Options, Target, markdown
from .trainings import how

SETS = ("cifar10", "mnist", "fashion-mnist", "digits")
UPDATES = {"quick": 2000, "full": 20_000}
# What only costs time: nothing is looked at on the way.
_PLAIN: dict[str, Any] = {"tensorboard": "off", "pictures_every": 0, "test_permutations": 100}
# Tests make everything smaller by this.
SMALLER: dict[str, Any] = {}
_SAMPLES = 1000
_RUNS = 20  # of the dynamics, for a completion: F.2
# Of an update beside one on digits, by the number of pixels.
_COST = {"cifar10": 16.0, "mnist": 12.0, "fashion-mnist": 12.0, "digits": 1.0}

Draw = Callable[[TrainedModel, Path], None]


def row(arguments: dict[str, Any], directory: Path, stem: str) -> dict[str, Any]:
    """Trains, or goes on where a killed call was; f at test images, samples and others, and how near samples are."""
    config, folder = Config.from_dict(arguments["settings"]), directory / RUNS / stem
    try:
        summary = train(config, folder, progress=False, pictures=False, **how(config, folder))
    except (NonFiniteError, DivergenceError) as error:
        return {"diverged": str(error).partition(";")[0]}
    model, source = load(folder), source_of(config)
    samples = _drawn(model)
    test = source.pixels(source.test_images[:_SAMPLES])
    histogram = image_pictures.energies(model, source, model.space.to_z(samples), stream(config.seed, "outliers"))
    others = [name for name in histogram.values if name != "test"]
    return {
        "chosen_update": summary.chosen_update,
        "nearest": source.nearest(samples)[0].mean().item(),
        "nearest_of_test": source.nearest(test)[0].mean().item(),
        "auroc": {name: histogram.auroc("test", name) for name in others},
    }


def job(name: str, seed: int, budget: str) -> Job:
    updates = UPDATES[budget]
    often = {"validate_every": max(1, updates // 4), "checkpoint_every": min(200, max(1, updates // 4))}
    config = Config.with_recipe({**_PLAIN, **often, "updates": updates, **SMALLER, "data": name, "seed": seed})
    arguments = {"settings": config.to_dict()}
    return Job((name, "images", f"seed {seed}"), "images", arguments, _COST[name] * updates)


def jobs(options: Options) -> list[Job]:
    """Raises: ValueError: as `check_at_hand`."""
    check_at_hand(options)
    return _wanted(options)


def check_at_hand(options: Options, names: Sequence[str] = SETS) -> None:
    """Raises: ValueError: a set is not on this machine; the message is one line and says what to do."""
    for name in options.only:
        try:
            image_set(name)
        except FileNotFoundError as error:
            other = f"; or choose another set by --only (of {', '.join(names)})" if len(names) > 1 else ""
            raise ValueError(f"reproduce: {error}{other}") from None


def _wanted(options: Options) -> list[Job]:
    return [job(name, seed, options.budget) for name in options.only for seed in range(options.seeds)]


def lines(options: Options, rows: Mapping[str, Row]) -> list[str]:
    table = []
    for made in _wanted(options):
        found, name = rows.get(made.file), [made.name[0], made.name[-1]]
        if found is None:
            continue
        if "diverged" in found:
            table.append([*name, found["diverged"], "-", "-"])
            continue
        auroc = ", ".join(f"{other} {value:.2f}" for other, value in found["auroc"].items())
        table.append([*name, auroc, f"{found['nearest']:.2f}", f"{found['nearest_of_test']:.2f}"])
    head = ["set", "", "AUROC of f, test images against", "nearest training image, of samples", "of test images"]
    return [
        *markdown(head, table, left=3),
        "",
        "Trained by the recipe for images of `ade-fast train`, not by the paper's settings. The AUROC is the "
        "probability that f is higher at a test image; distances are in pixels from 0 to 1.",
    ]


def target(figure: str, title: str, default: str, caption: str, drawn: Draw) -> Target:
    def draw(options: Options, directory: Path, rows: Mapping[str, Row]) -> dict[str, str]:
        written = {}
        for name in options.only:
            made = job(name, 0, options.budget)
            if "diverged" in rows[made.file]:
                continue
            file = f"{figure}-{name}.png"
            drawn(load(directory / RUNS / made.file), directory / file)
            written[file] = f"{name}: {caption}"
        return written

    return Target(title, {"quick": 1, "full": 1}, SETS, jobs, lines, draw, (default,))


def source_of(config: Config) -> ImageSource:
    source = build_source(config)
    assert isinstance(source, ImageSource)  # by `SETS`
    return source


def _drawn(model: TrainedModel) -> Tensor:
    return model.sample(_SAMPLES, model.config.seed)


def _histograms(model: TrainedModel, path: Path) -> None:
    samples, generator = _drawn(model), stream(model.config.seed, "outliers")
    image_pictures.draw_energies(model, source_of(model.config), model.space.to_z(samples), path, generator)


def _completions(model: TrainedModel, path: Path) -> None:
    image_pictures.draw_completion(model, path, n=12, runs=_RUNS, seed=model.config.seed)


def _samples(model: TrainedModel, path: Path) -> None:
    shown = _drawn(model)[: image_pictures.SHOWN]
    image_pictures.save_samples(source_of(model.config), shown, path, model.config.data)


def _chains(model: TrainedModel, path: Path) -> None:
    image_pictures.draw_chains(model, path, stream(model.config.seed, "chains"))


FIGURE3 = target(
    "figure3", "Figure 3: f on samples and on test images", "cifar10",
    "histograms of f at test images, samples, and images that are none of the set", _histograms,
)  # fmt: skip
FIGURE4 = target(
    "figure4", "Figure 4: completions", "mnist", "test images, what is given of them, and three completions",
    _completions,
)  # fmt: skip
FIGURE6 = target(
    "figure6", "Figure 6: samples", "cifar10", "samples, and beneath each, pale, its nearest training image", _samples
)
FIGURE7 = target("figure7", "Figure 7: chains", "cifar10", "chains from noise, by the number of steps made", _chains)
