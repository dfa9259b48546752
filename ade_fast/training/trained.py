"""A trained model, as a density and a sampler in the data's own units; and a run's directory opened as one."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data import as_table
from ..dynamics import NonFiniteError
from ..metrics import LogZ
from ..weighted import chunk_rows
from ..weights import default_momentum_weight
from . import memory
from ._arguments import SEEDS, integer
from .build import Given, build_players, check_given, resolve_device
from .checkpoint import CheckpointError, check_finite, load_checkpoint, save_checkpoint, understanding
from .config import Config
from .directory import CHECKPOINT
from .sampler import DualSampler
from .score import Score
from .source import AnySpace, space_of

_CHUNK = 10_000
_KIND = "TrainedModel"
EXACT = ("none", "resample", "metropolis")
"""How `TrainedModel.sample` may draw."""


class NoDensityError(ValueError):
    """A log-probability was asked for that is not known; the message is one line and says why."""


@dataclass(frozen=True)
class TrainedModel:
    """The players that did best on the validation points.

    Potential and sampler live in standardised coordinates z (``space``); `log_prob`, `score` and `sample` are in the
    data's own units.

    Attributes:
        potential: f, [B, *event] -> [B], unnormalised log-density of z.
        sampler: the dual sampler; ``sampler.sample(potential, n)`` is differentiable.
        config: the settings of the run.
        update: the update at which the players were taken.
        space: the coordinates z.
        fingerprint: of the rows it learned from; None for a toy set.
        density: log Z of f in z with its standard error, and the sampler's effective sample size; None where the
            sampler has no density to form weights with.
        given: whether potential and sampler came from the caller of `ade.fit` instead of from the settings.
    """

    potential: nn.Module
    sampler: DualSampler
    config: Config
    update: int
    space: AnySpace
    density: LogZ | None
    fingerprint: str | None = None
    given: tuple[bool, bool] = (False, False)

    def __repr__(self) -> str:
        """In one line: the settings and the modules are attributes, and fill screens."""
        parts = (type(getattr(self.potential, "potential", self.potential)), type(self.sampler.dynamics))
        known = "no density" if self.density is None else f"log_z={self.density.log_z:.4g}, ess={self.density.ess:.3g}"
        kinds = ", ".join(part.__name__ for part in parts)
        return f"TrainedModel({self.config.data}, event={self.event}, {kinds}, update={self.update}, {known})"

    @property
    def event(self) -> tuple[int, ...]:
        """Shape of one point."""
        return self.space.event

    @property
    def momentum_weight(self) -> float | Tensor:
        """lambda, as in the run; [T] where it differs between the steps."""
        if self.config.momentum_weight is None:
            return default_momentum_weight(self.sampler)
        return self.config.momentum_weight

    @property
    def log_z(self) -> float:
        """log Z of f, in z. Raises: NoDensityError."""
        return self._known("log_z").log_z

    @property
    def log_z_standard_error(self) -> float:
        """Of `log_z`, and so of every `log_prob`. Raises: NoDensityError."""
        return self._known("log_z_standard_error").standard_error

    @property
    def ess(self) -> float:
        """The sampler's effective sample size, a fraction. Raises: NoDensityError."""
        return self._known("ess").ess

    def save(self, path: str | Path) -> None:
        """Writes the model, in one file, atomically: `ade.load` reads it. (Of what a run needs to go on, nothing.)

        Raises: OSError.
        """
        density = None if self.density is None else list(self.density)
        state = {
            "kind": _KIND,
            "config": self.config.to_dict(),
            "given": list(self.given),
            "best": {
                "potential": self.potential.state_dict(),
                "sampler": self.sampler.state_dict(),
                "update": self.update,
            },
            "space": self.space.state_dict(),
            "density": density,
            "data": self.fingerprint,
        }
        save_checkpoint(path, state)

    def log_prob(self, x: Any) -> Tensor:
        """log p(x), normalised, in the data's units: f(z) - log Z + log|dz/dx|.

        Args:
            x: [B, d], a tensor or whatever `data.as_table` takes; differentiable where it is a tensor that needs it.

        Returns:
            [B], float64, on the model's device.

        Raises:
            NoDensityError: log Z is not known.
            DataError: x is no table of finite numbers with d columns.
        """
        log_z = self._known("log_prob").log_z
        z = self._to_z("log_prob", x)
        values = [self.potential(rows).reshape(-1) for rows in z.split(chunk_rows(self.event))]
        return torch.cat(values).double() - log_z + self.space.log_det if values else z.new_empty(0).double()

    @torch.no_grad()
    def score(self, x: Any) -> float:
        """The mean of `log_prob` over x: the log-likelihood in nats per point. Raises: as `log_prob`."""
        return self.log_prob(x).mean().item()

    def sample(self, n: int, seed: int = 0, exact: str = "none") -> Tensor:
        """n samples [n, *event], float32 on the CPU, in the data's units, the same for the same seed; piece by piece.

        Args:
            n: how many, >= 0.
            seed: of all randomness.
            exact: "none": the dual sampler's own, raw. "resample": chosen among ten times as many by their weights;
                "metropolis": by Metropolis-Hastings with the dual sampler as proposal, a hundred proposals for each.
                Both are samples of p_f itself.

        Raises:
            ValueError: n is negative, or more than memory holds; the seed is not one; there is no such ``exact``.
            NoDensityError: exact samples need weights.
            NonFiniteError: a sample is not finite.
        """
        # Room for the samples, and for a copy of them in the file's format.
        most = memory.total(torch.device("cpu")) // (2 * 4 * math.prod(self.event))
        n = integer("sample", "n", n, low=0, high=most)
        seed = integer("sample", "seed", seed, low=0, high=SEEDS - 1)
        if exact not in EXACT:
            raise ValueError(f"sample: exact must be one of {', '.join(EXACT)}, got {exact!r}")
        if exact != "none":
            self._known(f"sample with exact={exact!r}")
        generator = torch.Generator().manual_seed(seed)
        samples = torch.empty((n, *self.event), dtype=torch.float32)
        for start in range(0, n, _CHUNK):
            count = min(_CHUNK, n - start)
            samples[start : start + count] = self.space.to_data(self._draw(count, generator, exact))
        bad = n - int(torch.isfinite(samples).flatten(1).all(1).sum())
        if bad:
            raise NonFiniteError(f"sample: {bad} of {n} samples are not finite: training had diverged; train again")
        return samples

    def _draw(self, n: int, generator: torch.Generator, exact: str) -> Tensor:
        if exact == "none":
            with torch.no_grad():
                return self.sampler.sample(self.potential, n, generator).x
        draw = self.sampler.resample if exact == "resample" else self.sampler.metropolis
        return draw(self.potential, n, momentum_weight=self.momentum_weight, generator=generator).x

    def _to_z(self, name: str, x: Any) -> Tensor:
        """Points x [B, d] in the data's units, as z on the model's device."""
        if isinstance(x, Tensor) and x.requires_grad:  # which as_table would cut off
            if x.dim() != 2 or x.shape[1:] != self.event:
                raise ValueError(f"{name}: x must be (B, {self.event[0]}), got {tuple(x.shape)}")
        else:
            x = as_table(x, columns=self.event[0], varied=False, dtype=torch.float64)
        device = next((p.device for p in self.sampler.parameters()), torch.device("cpu"))
        return self.space.to_z(x).to(device)

    def _known(self, name: str) -> LogZ:
        if self.density is None:
            raise NoDensityError(
                f"{name}: this model has no density: its sampler has no weights to estimate log Z from (q^T is not "
                "known: Empirical, clip_samples or momentum_weight 0)"
            )
        return self.density


def load(
    path: str | Path,
    device: str | torch.device = "cpu",
    *,
    potential: nn.Module | None = None,
    sampler: DualSampler | None = None,
) -> TrainedModel:
    """Opens what was trained: the directory of a run of ``ade-fast train``, `ade.fit` or :func:`train`, or a file of
    `TrainedModel.save`.

    Args:
        path: of the directory, or of the file.
        device: where the players are to be.
        potential, sampler: where `ade.fit` was given modules of its caller's own: modules of the same making, which
            are copied and get the trained weights.

    Raises:
        CheckpointError: there is no checkpoint, or it cannot be read.
        ConfigError: there is no such device.
        TypeError, ValueError: a module is missing, or was not asked for.
    """
    named, device = Path(path), resolve_device(device)
    if not os.path.lexists(named):
        raise CheckpointError(f"load: {named} is not a directory or file; give a run's --out, or what ade.save wrote")
    path = named / CHECKPOINT if os.path.isdir(named) else named
    state, given = load_checkpoint(path), Given(potential, sampler)
    with understanding(path):
        config = Config.from_dict({**state["config"], "device": "cpu"})
        wanted = tuple(state["given"])
        best, space = state["best"], space_of(state["space"])
        density = None if state["density"] is None else LogZ(*state["density"])
        if density is None and state.get("kind") != _KIND:  # a run that was stopped, and not scored at its end
            density = Score.from_state_dict(best["score"]).density
    check_given("load", given, wanted, named)
    with understanding(path):
        players = build_players(config, space, given)
        for module, weights in zip(players, (best["potential"], best["sampler"]), strict=True):
            check_finite(weights)
            module.load_state_dict(weights)
            module.eval().requires_grad_(False)
        config = dataclasses.replace(config, device=state["config"]["device"])
        model = TrainedModel(*players, config, best["update"], space, density, state["data"], wanted)
    model.potential.to(device)
    model.sampler.to(device)
    return model
