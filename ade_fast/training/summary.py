"""What a finished run found, as numbers and as one screen of text."""

from __future__ import annotations

import dataclasses
import shlex
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..metrics.mmd import FINE
from .config import SETTINGS_GROUPS, Config
from .directory import CHECKPOINT, CONVERGENCE, FIGURE

# Settings that the summary tells in words, or that change nothing about the result.
_ELSEWHERE = ("data", "seed", "updates", "batch_size", "device", "threads")
_NO_MATTER = ("checkpoint_every", "log_every", "tensorboard", "pictures_every")


@dataclass(frozen=True)
class Summary:
    """MMD² and p are of the chosen players, on held-out data that neither training nor the choice has seen.

    mmd2, p_value: of ``test_samples`` samples against as many held-out points, and its permutation test.
    null_mmd2: quantiles of MMD² under the permutations, that is if both were from one distribution; "50", "95", "99".
    mmd2_fine: MMD² of the same points under a kernel of a fifth of the median distance, which sees blur; no test.
    chosen_update: the update whose averaged players did best on the validation draw, at validation_mmd2.
    field, plan: how ∇f was computed ("mlp": fused kernels, "autograd") and what the backward pass got to see.
    seconds: of the whole run, final test and pictures included; time is where they went, by part.
    milliseconds_per_update: of training, validations, pictures and checkpoints on the way included.
    """

    data: str
    seed: int
    updates: int
    chosen_update: int
    validation_mmd2: float
    mmd2: float
    p_value: float
    null_mmd2: Mapping[str, float]
    permutations: int
    mmd2_fine: float
    field: str
    plan: str
    seconds: float
    milliseconds_per_update: float
    time: Mapping[str, float]

    def lines(self, directory: Path, config: Config) -> list[str]:
        """The summary as text: one screen of at most 100 columns, unless paths are longer."""
        verdict = "not rejected at 5 %" if self.p_value >= 0.05 else "rejected at 5 %"
        null = ", ".join(f"{q} %: {1e3 * value:+.2f}" for q, value in self.null_mmd2.items())
        total = sum(self.time.values()) or 1.0
        split = ", ".join(f"{name} {100 * part / total:.0f}%" for name, part in self.time.items() if part > 0)
        threads = f"threads {config.threads or 'as torch chose'}"
        sample = shlex.join(["ade-fast", "sample", str(directory), "--n", "1000", "--out", "samples.npy"])
        return [
            f"data            {self.data}, seed {self.seed}, {self.updates} updates of {config.batch_size} points",
            f"chosen          update {self.chosen_update}, by MMD² {1e3 * self.validation_mmd2:+.2f}e-3 on a "
            "validation draw",
            f"held-out test   MMD² {1e3 * self.mmd2:+.2f}e-3, p = {self.p_value:.3f}: {verdict}",
            f"  if equal      MMD² in 1e-3 over {self.permutations} permutations: {null}",
            f"  fine scale    MMD² {1e3 * self.mmd2_fine:+.2f}e-3 with a kernel of {FINE:g} of the width (sees blur)",
            f"time            {self.seconds:.0f} s, {self.milliseconds_per_update:.1f} ms per update",
            *_wrapped("  of which", split),
            *_settings(config),
            f"kernels         field {self.field}, memory plan {self.plan}, on {config.device}, {threads}",
            f"pictures        {directory / FIGURE}, {directory / CONVERGENCE}",
            f"checkpoint      {directory / CHECKPOINT}",
            f"next            {sample}",
        ]


def _settings(config: Config) -> list[str]:
    """The settings in effect, by group; a star marks what is not the default."""
    default, lines = Config(), []
    for group in SETTINGS_GROUPS:
        shown = [
            f"{field.name}={_text(value)}{'' if value == getattr(default, field.name) else '*'}"
            for field in dataclasses.fields(config)
            if field.metadata["group"] == group and field.name not in (*_ELSEWHERE, *_NO_MATTER)
            for value in (getattr(config, field.name),)
        ]
        lines += _wrapped(f"  {group}", " ".join(shown)) if shown else []
    return ["settings        (* differs from the default)", *lines]


def _wrapped(head: str, text: str) -> list[str]:
    """``text`` beside ``head`` in as many lines of 100 columns as it takes."""
    return textwrap.wrap(text, 100, initial_indent=f"{head:16}", subsequent_indent=" " * 16, break_on_hyphens=False)


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return str(value)


def to_dict(summary: Summary) -> dict[str, Any]:
    """Plain values, ready for JSON."""
    return dataclasses.asdict(summary)
