"""Digits: the recipe for images, the exact gradient in its place, and torchebm's persistent CD on the same f.

    python bench/images.py                       every row that is not in bench/results/ yet
    python bench/images.py --methods recipe      of those, one method's; --seeds 0,1

Rows: f is `ConvPotential` of the recipe's widths on scikit-learn's 8x8 digits; everyone takes the same number of
updates of 64 images and 15 steps from 2,000 persistent chains, and at the end moves them on under the last f, averaged,
as `ade-fast train` does. As many of the chains as there are test digits are scored: by the Inception-style score of a
classifier that was trained on the training digits (scikit-learn's; comparable to no other score), and by the distance
to the nearest training digit, both beside those of the test digits. Times are of the process, on one thread. Each row
is written as soon as it has ended. torchebm is optional.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import image_rows
import image_tables
import torch
from torch import Tensor, nn

import ade_fast as ade
from ade_fast.training import Config, DivergenceError
from ade_fast.training.ema import EMA
from ade_fast.training.image_source import ImageSource
from ade_fast.training.trainer import Trainer

SAMPLES = 300
"""At most: as many are scored as there are test digits, as a score grows with their number."""
SETTLING_RUNS = 20
METHODS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "exact": {"gradient": "full"},
    "exact, lambda of (9)": {"gradient": "full", "momentum_weight": None, "max_gap": 1e5},
    "T = 30": {"n_steps": 30, "buffer_size": 1000},
    "T = 30, exact": {"n_steps": 30, "buffer_size": 1000, "gradient": "full"},
    "leapfrog, exact, lambda 0": {"gradient": "full", "dynamics": "leapfrog", "step_size": 0.05},
    "torchebm": {},
}
"""Settings that differ from the recipe's. "stopped" has no row: f's gradient is then that of the recipe's "truncated",
as the sampler learns nothing."""


def config(method: str, seed: int, updates: int) -> Config:
    settings = {"data": "digits", "seed": seed, "updates": updates, "validate_every": updates, **METHODS[method]}
    return Config.with_recipe(settings)


def by_trainer(settings: Config) -> tuple[Tensor, float]:
    """Chains [n, 1, 8, 8] in pixels, and seconds of process time of all updates."""
    trainer = Trainer(settings)
    start = time.process_time()
    for _ in range(settings.updates):
        trainer.step()
    seconds = time.process_time() - start
    trainer.validate()
    trainer.settle()
    model = trainer.model()
    return model.sample(SAMPLES, settings.seed), seconds


def by_torchebm(settings: Config) -> tuple[Tensor, float]:
    """The same f by torchebm's persistent CD, at the same step size and noise, its other settings as they come."""
    from torchebm.core import BaseModel
    from torchebm.losses import ContrastiveDivergence
    from torchebm.samplers import LangevinDynamics

    class Energy(BaseModel):
        def __init__(self, potential: nn.Module) -> None:
            super().__init__()
            self.potential = potential

        def forward(self, x: Tensor) -> Tensor:
            return -self.potential(x)

    trainer = Trainer(settings)  # for its data, and f where it begins
    energy = Energy(trainer.potential)
    # Its step is x - s grad E + sqrt(2 s) c xi.
    step = settings.step_size / 2
    sampler = LangevinDynamics(energy, step_size=step, noise_scale=settings.noise_std / (2 * step) ** 0.5)
    loss = ContrastiveDivergence(
        energy, sampler, k_steps=settings.n_steps, persistent=True, buffer_size=settings.buffer_size
    )
    optimizer = torch.optim.Adam(energy.parameters(), settings.potential_lr, (settings.beta1, settings.beta2))
    average = EMA(energy.potential, settings.ema_decay)
    generator = torch.Generator().manual_seed(settings.seed)
    torch.manual_seed(settings.seed)
    start = time.process_time()
    for update in range(settings.updates):
        trainer.update = update
        rate = 1 - (1 - settings.lr_decay_to) * trainer._decayed_fraction()
        for group in optimizer.param_groups:
            group["lr"] = settings.potential_lr * rate
        data = trainer.source.draw(settings.batch_size, generator)
        data = data + settings.data_noise * torch.randn(data.shape, generator=generator)
        optimizer.zero_grad()
        loss(data)[0].backward()
        nn.utils.clip_grad_norm_(energy.parameters(), settings.grad_norm_clip)
        optimizer.step()
        average.update(energy.potential)
    seconds = time.process_time() - start
    x = loss.replay_buffer[torch.randperm(settings.buffer_size, generator=generator)[:SAMPLES]].clone()
    for _ in range(SETTLING_RUNS):
        x = trainer.sampler.move(average.module, x, generator)
    return trainer.space.to_data(x), seconds


class Judge:
    """A classifier of the training digits, and how near to them images are."""

    def __init__(self, source: ImageSource, iterations: int = 60) -> None:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPClassifier

        self.source = source
        clean = source.pixels(source.images).flatten(1)
        noisy = clean + 0.05 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
        labels = source.labels.repeat(2).numpy()
        self.classifier = MLPClassifier((128,), max_iter=iterations, alpha=1e-3, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            self.classifier.fit(torch.cat([clean, noisy]).numpy(), labels)

    def log_probabilities(self, pixels: Tensor) -> Tensor:
        return torch.from_numpy(self.classifier.predict_log_proba(pixels.flatten(1).numpy())).clamp_min(-30)

    def scores(self, pixels: Tensor) -> dict[str, float]:
        """score: the classifier's. sure: its mean highest probability. nearest, nearest_low: mean and lowest tenth of
        the distances to the nearest training digit, pixels in [0, 1]."""
        found = ade.metrics.inception_score(pixels, self.log_probabilities, splits=1)
        distance = self.source.nearest(pixels)[0]
        sure = self.log_probabilities(pixels).exp().amax(1).mean().item()
        return {
            "score": round(found.mean, 3),
            "sure": round(sure, 3),
            "nearest": round(distance.mean().item(), 3),
            "nearest_low": round(distance.quantile(0.1).item(), 3),
        }


def measure(method: str, seed: int, updates: int) -> dict[str, Any]:
    """One row, scores of as many test digits included."""
    settings = config(method, seed, updates)
    row: dict[str, Any] = {"method": method, "seed": seed, "updates": updates, "settings": settings.to_dict()}
    source = Trainer(settings).source
    judge = Judge(source)
    test = source.pixels(source.test_images[:SAMPLES])
    row |= {"images": len(test), "test": judge.scores(test)}
    run: Callable[[Config], tuple[Tensor, float]] = by_torchebm if method == "torchebm" else by_trainer
    try:
        samples, seconds = run(settings)
    except ImportError as error:
        return {**row, "skipped": str(error)}
    except (DivergenceError, ade.NonFiniteError) as error:
        return {**row, "skipped": str(error).split(";")[0]}
    return {**row, "ms": round(1e3 * seconds / updates, 1), **judge.scores(samples[: len(test)])}


def main(argv: Sequence[str] | None = None) -> None:
    args = image_rows.parser(__doc__, [*METHODS], [0]).parse_args(argv)
    results = image_rows.by_methods("images", args, config, lambda method, seed: measure(method, seed, args.updates))
    print(image_tables.digits(results))


if __name__ == "__main__":
    main()
