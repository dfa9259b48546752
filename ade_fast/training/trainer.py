"""A run in memory: both players, their optimizers, averages and random states, and how well they do."""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..initial import Empirical
from ..metrics import LogZ, log_z, mmd2
from ..weighted import evaluate as values_of
from ..weighted import evaluating
from ..weights import why_no_weights
from . import memory
from .build import OWN, Given, build_players, build_source, resolve_device
from .calibration import calibrated, can_scale
from .checkpoint import check_finite
from .config import Config
from .divergence import Watch
from .ema import EMA
from .evaluation import PURPOSES, Evaluation, evaluate
from .recipe import objective
from .sampler import DualSampler
from .score import Score
from .source import Source
from .stopwatch import Stopwatch
from .streams import stream
from .team import Team
from .trained import TrainedModel

SNAPSHOT_POINTS = 1000
# Of a replay buffer, at the end of a run.
_SETTLING_RUNS, _SETTLED_AT_ONCE = 20, 256


@dataclass
class Best:
    """The averaged players that did best on the validation points; scale: f's at the end, None before; settled: whether
    the chains of a replay buffer were moved on at the end."""

    update: int
    score: Score
    potential: dict[str, Tensor]
    sampler: dict[str, Tensor]
    scale: float | None = None
    settled: bool = False

    def state_dict(self) -> dict[str, Any]:
        return {**vars(self), "score": self.score.state_dict()}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Best:
        return cls(**{**state, "score": Score.from_state_dict(state["score"])})


class Test(NamedTuple):
    """Scores of the chosen players; the held-out points and samples that were compared, [n, *event] in z."""

    evaluation: Evaluation
    data: Tensor
    samples: Tensor
    exact: Tensor | None


class Trainer:
    """A run in memory: both players, their optimizers and averages, random states, the best players so far.

    Everything is in the coordinates of ``space``: standardised, unless the settings say otherwise.
    ``state_dict`` holds all of it; a trainer that loads it continues bit for bit (on the CPU). In several processes of
    torch.distributed, each has a part of the batch, and all hold the same players; they validate and test alike.

    Args:
        config: the settings.
        source: what to learn from, by ``config.data`` unless given.
        given: players that take the place of the settings'.

    Raises: ConfigError, DataError: what the settings name cannot be had; ValueError, TypeError: unfit players.
    """

    def __init__(self, config: Config, source: Source | None = None, given: Given = OWN):
        self.config = config
        self.team = Team.now()
        self.team.check(config)
        memory.check(config, resolve_device(config.device))
        self.source = build_source(config) if source is None else source
        self.space = self.source.space
        self.given = given
        self.potential, self.sampler = build_players(config, self.space, given)
        together = {"data_parallel": True} if self.team.count > 1 else {}
        self.ade = objective(config, self.potential, self.sampler, **together)
        self._replay = getattr(self.ade, "replay", None)  # of pcd's chains
        self.potential_average = EMA(self.potential, config.ema_decay)
        self.sampler_average = EMA(self.sampler, config.ema_decay)
        self.device = torch.device(config.device)
        self._generators = {name: self.generator(self.team.purpose(name)) for name in ("data", "samples")}
        points = self.source.validation(config.validation_samples, self.generator("validation_data"))
        self._validation_data = points.to(self.device)
        self._compared = self._validation_data[: config.validation_samples]  # what samples are held against
        self.ade.watch = self._watch = Watch(self._validation_data, config.max_gap)
        self._by_weights = why_no_weights(self.sampler, self.ade.momentum_weight) is None
        self._bandwidth: float | None = None
        self.update = 0
        self.stopwatch = Stopwatch()
        self.seconds = 0.0  # of the whole run up to the latest update, and by phase
        self.phases = dict(self.stopwatch.seconds)
        self.kernels = {"field": "unknown", "memory": "unknown"}  # how the latest unroll ran, by its plan
        self.best: Best | None = None
        self._lowest: Score | None = None
        self.density: LogZ | None = None  # of the best, as the final test found it
        self.history: list[dict[str, float]] = []  # "update" and the scores of the averaged players
        self.snapshots: list[tuple[int, Tensor]] = []

    def step(self) -> dict[str, float]:
        """One update of f and ``sampler_steps`` of the sampler, and of the averages; returns the metrics.

        Raises:
            NonFiniteError, DivergenceError: it has gone wrong.
        """
        self._set_schedule()
        phase = self.stopwatch.phase
        with phase("data"):
            generator = self._generators["data"]
            data = self._blurred(self._draw_data(self.config.batch_size // self.team.count, generator), generator)
        asked: dict[str, Any] = {"diagnostics": True} if self.diagnosed(self.update + 1) else {}
        metrics = self.ade.step(data, generator=self._generators["samples"], phase=phase, **asked)
        with phase("joint updates"):
            self.potential_average.update(self.potential)
            self.sampler_average.update(self.sampler)
        plan = getattr(self.sampler.dynamics, "last_plan", None)
        if plan is not None:
            self.kernels = {"field": plan.field, "memory": plan.memory}
        self.update += 1
        return metrics

    @property
    def validate_every(self) -> int:
        """Updates between validations: f learns a table by heart in a few hundred."""
        if self.config.validate_every is not None:
            return self.config.validate_every
        return 500 if self.source.endless else 50

    def diagnosed(self, update: int) -> bool:
        """Whether the unroll of this update is diagnosed."""
        return bool(self.config.diagnostics) and update % self.config.diagnostics == 0

    def validate(self) -> float:
        """Scores the averaged players on the validation points, and keeps them when none before did better.

        On fresh points, scores that differ by less than their standard error are ties, and the later players win them:
        they have seen more data, and are visibly sharper. On a table the lowest score wins: later players have learned
        more of it by heart. A likelihood whose log Z is not known (`Score.is_known`) wins against none that is.

        Returns:
            The score, lower is better; ``history`` has what belongs to it.

        Raises:
            DivergenceError: the samples are not finite, have collapsed, or fly apart.
        """
        with self.stopwatch.phase("validation"):
            return self._validate()

    def _validate(self) -> float:
        potential, sampler = self.potential_average.module, self.sampler_average.module
        samples = self._draw_samples(potential, sampler, len(self._compared), "validation_samples")
        self._watch.samples(self.update, samples)
        by_likelihood = self._by_weights and self.config.validate_by == "likelihood"
        now = self._likelihood(potential, sampler) if by_likelihood else self._mmd2(samples)
        self.history.append({"update": self.update, **now.entry()})
        if self._lowest is None or now.is_lower_than(self._lowest):
            self._lowest = now
        if now is self._lowest or (self.source.endless and not now.is_worse_than(self._lowest)):
            of_f, of_sampler = (copy.deepcopy(player.state_dict()) for player in (potential, sampler))
            self.best = Best(self.update, now, of_f, of_sampler)
            self.density = None  # of a finished run's best, where more updates found a better one
        return now.value

    def _likelihood(self, potential: nn.Module, sampler: DualSampler) -> Score:
        """The negative log-likelihood of the validation points, at temperature 1."""
        n, generator = self.config.likelihood_samples, self.generator("likelihood_samples")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of few effective samples: that is what the score says
            density = log_z(potential, sampler, n, self.ade.momentum_weight, generator)
        with evaluating(potential):
            values = values_of("validation", potential, self._validation_data)
        return Score.of_likelihood(values, density, self.space.log_det)

    def _mmd2(self, samples: Tensor) -> Score:
        """MMD^2 to the validation points, under one kernel for all validations; it scatters by 1/n if all is well."""
        if self._bandwidth is None:
            self._bandwidth = torch.pdist(self._compared.flatten(1)).median().item()
        return Score(float(mmd2(samples, self._compared, bandwidth=self._bandwidth)), 0.5 / len(samples))

    @property
    def done(self) -> bool:
        """Whether all updates are made, or (on a table) the patience for a better validation is at its end."""
        config = self.config
        if self.update >= config.updates:
            return True
        if self.source.endless or not config.patience or self.best is None:
            return False
        return sum(entry["update"] > self.best.update for entry in self.history) >= config.patience

    @property
    def calm(self) -> bool:
        """Whether the run shows no sign of divergence: only then is its state worth keeping."""
        return self._watch.calm

    def snapshot(self) -> None:
        """Keeps samples of the averaged players as they are now, for the convergence picture."""
        with self.stopwatch.phase("pictures"):
            _, samples = self.preview()
        self.snapshots.append((self.update, samples.cpu()))

    def preview(self) -> tuple[Tensor, Tensor]:
        """Data of the validation draw, and samples of the averaged players as they are now; each [n, *event]."""
        potential, sampler = self.potential_average.module, self.sampler_average.module
        samples = self._draw_samples(potential, sampler, SNAPSHOT_POINTS, "validation_samples")
        return self._compared[:SNAPSHOT_POINTS], samples

    def model(self) -> TrainedModel:
        """The players chosen on the validation points, as new modules in evaluation mode.

        Raises: RuntimeError: none are chosen yet.
        """
        if self.best is None:
            raise RuntimeError("Trainer: no players chosen yet; call validate() first")
        players = build_players(self.config, self.space, self.given)
        for player, weights in zip(players, (self.best.potential, self.best.sampler), strict=True):
            player.load_state_dict(weights)
            player.eval().requires_grad_(False)
        density = self.best.score.density if self.density is None else self.density
        best, source, given = self.best, self.source, self.given.which()
        return TrainedModel(*players, self.config, best.update, self.space, density, source.fingerprint, given)

    def settle(self) -> None:
        """Moves the replay buffer's chains on under the chosen f, once.

        Training left them to f as it was on the way, and some of them have just begun.
        """
        best, model = self.best, self.model()
        assert best is not None  # whose model it is
        start = model.sampler.initial
        if best.settled or not isinstance(start, Empirical) or start.buffer_size is None:
            return
        filled, generator = int(start.filled), self.generator("settling")
        for rows in start.buffer[:filled].split(_SETTLED_AT_ONCE):
            x = rows
            for _ in range(_SETTLING_RUNS):
                x = model.sampler.move(model.potential, x, generator)
            rows.copy_(x)
        best.sampler, best.settled = model.sampler.state_dict(), True

    def calibrate(self) -> None:
        """Scales the chosen f, once, to where the validation points have the highest likelihood.

        With the noise of training: on a curve's own points no scale would be large enough.
        """
        best = self.best
        assert best is not None
        if best.scale is not None or not (self.config.calibrate and self._by_weights and can_scale(self.potential)):
            return
        if self.config.objective != "ade":  # another factor would make it another estimate
            return
        model, n = self.model(), self.config.likelihood_samples
        generator = self.generator("calibration_data")
        points = self._blurred(self.source.validation(n, generator).to(self.device), generator)
        potential, best.scale, self.density = calibrated(
            model.potential, model.sampler, points, n, self.ade.momentum_weight,
            partial(self.generator, "calibration_samples"),
        )  # fmt: skip
        best.potential = potential.state_dict()

    def test(self) -> Test:
        """Scores the chosen players on held-out points; log Z as it is found there becomes the model's.

        Of a toy set as many points are drawn for the likelihood as samples for log Z: they cost less.
        """
        config = self.config
        n = max(config.test_samples, config.test_likelihood_samples if self._by_weights else 0)
        points = self.source.test(n, self.generator("test_data")).to(self.device)
        generators = {purpose: self.generator(purpose) for purpose in PURPOSES}
        found, samples, exact = evaluate(self.model(), points, generators)
        if found.log_z is not None and found.log_z_standard_error is not None and found.ess is not None:
            self.density = LogZ(found.log_z, found.log_z_standard_error, found.ess)
        return Test(found, points[: config.test_samples], samples, exact)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on, as tensors and plain values; of random states all processes'
        own, so that each of them makes this call."""
        return {
            "config": self.config.to_dict(),
            "update": self.update,
            "seconds": {"total": self.seconds, "phases": self.phases},
            "potential": self.potential.state_dict(),
            "sampler": self.sampler.state_dict(),
            "potential_optimizer": _optimizer_state(self.ade.potential_optimizer),
            "sampler_optimizer": _optimizer_state(self.ade.sampler_optimizer),
            "potential_average": self.potential_average.state_dict(),
            "sampler_average": self.sampler_average.state_dict(),
            "kernels": self.kernels,
            **({} if self._replay is None else {"replay": self._replay.state_dict()}),
            "generators": self.team.gathered({name: of.get_state() for name, of in self._generators.items()}),
            "data": self.source.fingerprint,
            "given": list(self.given.which()),
            "density": None if self.density is None else list(self.density),
            "best": None if self.best is None else self.best.state_dict(),
            "lowest": None if self._lowest is None else self._lowest.state_dict(),
            "space": self.space.state_dict(),
            "history": self.history,
            "snapshots": self.snapshots,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up the state of another trainer with the same configuration.

        Raises:
            Exception: of nearly any kind, where the state is not one; the trainer is of no use then.
        """
        own = self.team.own(state["generators"])
        best = state["best"]
        for player in ("potential", "sampler"):
            for weights in (state[player], state[f"{player}_average"], best[player] if best is not None else {}):
                check_finite(weights)
        self.potential.load_state_dict(state["potential"])
        self.sampler.load_state_dict(state["sampler"])
        for name in ("potential_optimizer", "sampler_optimizer"):
            optimizer = getattr(self.ade, name)
            if optimizer is not None:
                optimizer.load_state_dict(state[name])
        self.potential_average.load_state_dict(state["potential_average"])
        self.sampler_average.load_state_dict(state["sampler_average"])
        if self._replay is not None:
            self._replay.load_state_dict(state["replay"])
        for name, generator in self._generators.items():
            generator.set_state(own[name])
        self.kernels = state["kernels"]
        self.update = self.ade.updates = state["update"]
        self.seconds = state["seconds"]["total"]
        self.phases = state["seconds"]["phases"]
        self.stopwatch = Stopwatch(self.phases)
        self.best = None if best is None else Best.from_state_dict(best)
        self._lowest = None if best is None else Score.from_state_dict(state["lowest"])
        self.density = None if state["density"] is None else LogZ(*state["density"])
        self.history = list(state["history"])
        self.snapshots = [tuple(entry) for entry in state["snapshots"]]

    def generator(self, purpose: str) -> torch.Generator:
        """A new source of randomness for one purpose, the same whenever it is asked for."""
        return stream(self.config.seed, purpose)

    def _draw_data(self, n: int, generator: torch.Generator) -> Tensor:
        return self.source.draw(n, generator).to(self.device)

    def _blurred(self, data: Tensor, generator: torch.Generator) -> Tensor:
        """Training data with its noise: points on a curve have no density, and f would never come to rest."""
        if not self.config.data_noise:
            return data
        noise = torch.randn(data.shape, generator=generator, dtype=data.dtype)
        return data + self.config.data_noise * noise.to(data.device)

    def _draw_samples(self, potential: nn.Module, sampler: DualSampler, n: int, purpose: str) -> Tensor:
        with torch.no_grad():
            return sampler.sample(potential, n, self.generator(purpose)).x

    def _set_schedule(self) -> None:
        """Rates and penalties: constant at first, then a half cosine down; functions of the update alone."""
        config = self.config
        decayed = self._decayed_fraction()

        def scheduled(value: float, decay_to: float) -> float:
            return value * (1 - (1 - decay_to) * decayed)

        for optimizer, rate in (
            (self.ade.potential_optimizer, config.potential_lr),
            (self.ade.sampler_optimizer, config.sampler_lr),
        ):
            for group in optimizer.param_groups if optimizer is not None else ():
                group["lr"] = scheduled(rate, config.lr_decay_to)
        self.ade.gradient_penalty = scheduled(config.gradient_penalty, config.penalty_decay_to)
        self.ade.value_penalty = scheduled(config.value_penalty, config.penalty_decay_to)

    def _decayed_fraction(self) -> float:
        """0 until ``lr_decay_from``, then half a cosine up to 1 at the end of the run."""
        start, progress = self.config.lr_decay_from, self.update / self.config.updates
        if progress <= start:
            return 0.0
        return 0.5 * (1 - math.cos(math.pi * min((progress - start) / (1 - start), 1.0)))


def _optimizer_state(optimizer: torch.optim.Optimizer | None) -> dict[str, Any] | None:
    return None if optimizer is None else optimizer.state_dict()
