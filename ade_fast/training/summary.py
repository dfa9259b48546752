"""What a finished run found, as numbers and as one screen of text."""

from __future__ import annotations

import dataclasses
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data import TOY_NAMES
from ..metrics.mmd import FINE
from .config import SETTINGS_GROUPS, Config
from .directory import CHECKPOINT, CONVERGENCE, ENERGIES, FIGURE
from .dynamics_config import CONTINUOUS, LANGEVIN, WITH_NETWORKS, WITHOUT_MOMENTUM

# Settings that the summary tells in words, or that change nothing about the result.
_ELSEWHERE = ("data", "seed", "updates", "batch_size", "device", "threads")
NO_MATTER = (
    *("checkpoint_every", "log_every", "tensorboard", "pictures_every", "max_gap"),
    *("validation_samples", "likelihood_samples", "test_samples", "test_likelihood_samples", "test_permutations"),
)
_OF_STEPS = ("n_steps", "step_size", "step_size_per", "learn_step_size", "gradient", "memory")
# Settings, and when they have something to say; the others always do.
_MATTER_WHERE = {
    "standardise": lambda config: config.data not in TOY_NAMES or not config.standardise,
    "validation_fraction": lambda config: config.data not in TOY_NAMES,
    "test_fraction": lambda config: config.data not in TOY_NAMES,
    "patience": lambda config: config.data not in TOY_NAMES and not config.of_images,
    "flow_layers": lambda config: config.initial in ("planar", "langevin-flow"),
    "spline_layers": lambda config: config.initial == "spline",
    "spline_hidden": lambda config: config.initial == "spline",
    "spline_bins": lambda config: config.initial == "spline",
    "initial_std": lambda config: config.initial not in ("spline", "replay"),
    "refresh": lambda config: config.dynamics == "annealed",
    "momentum_clip": lambda config: config.dynamics not in ("annealed", *WITHOUT_MOMENTUM),
    "grad_clip": lambda config: config.dynamics not in WITHOUT_MOMENTUM,
    "clip": lambda config: config.dynamics not in WITHOUT_MOMENTUM,
    "clip_samples": lambda config: config.dynamics not in ("annealed", *WITHOUT_MOMENTUM),
    "momentum_weight": lambda config: config.dynamics not in WITHOUT_MOMENTUM,
    "noise_std": lambda config: config.dynamics in LANGEVIN or config.initial == "replay",
    **{name: lambda config: config.initial == "replay" for name in ("buffer_size", "reinit")},
    "potential": lambda config: config.of_images,
    "activation": lambda config: not config.of_images,
    "learn_noise_std": lambda config: config.dynamics in LANGEVIN,
    "log_det": lambda config: config.dynamics == "deterministic",
    **{name: lambda config: config.dynamics in CONTINUOUS for name in ("time", "solver", "rtol")},
    **{name: lambda config: config.dynamics not in CONTINUOUS for name in _OF_STEPS},
    "damping": lambda config: config.dynamics == "damped",
    "network_hidden": lambda config: config.dynamics in WITH_NETWORKS,
    "input_gain": lambda config: not config.spectral_norm,
    "chain_steps": lambda config: config.objective in ("cd", "pcd", "icd"),
    "chain_step_size": lambda config: config.objective in ("cd", "pcd", "icd"),
    "chain_accept": lambda config: config.objective in ("cd", "pcd"),
    "denoising_std": lambda config: config.objective == "dsm",
    "radius": lambda config: config.objective in ("nlco", "mpf"),
    "bound": lambda config: config.objective == "ade",
    "sampler_min_ess": lambda config: config.sampler_bound != "elbo",
    "ess_pace": lambda config: config.bound == "importance" and config.objective == "ade",
    "calibrate": lambda config: not config.spectral_norm and config.objective == "ade" and config.bound == "importance",
    "min_ess": lambda config: config.bound == "importance" and config.objective == "ade",
    "defensive": lambda config: (
        config.bound == "importance" and config.base_std is not None and config.objective == "ade"
    ),
    "penalty_decay_to": lambda config: config.gradient_penalty > 0 or config.value_penalty > 0,
}


@dataclass(frozen=True)
class Summary:
    """Scores are of the chosen players, on held-out data that neither training nor the choice has seen.

    Likelihoods are of the density p_f = exp f / Z itself, at temperature 1 and in the data's units; they and what
    follows from the importance weights are None where the sampler has no density to form weights with.

    mmd2, p_value: of ``test_samples`` raw samples against as many held-out points, and its permutation test.
    null_mmd2: quantiles of MMD² under the permutations, that is if both were from one distribution; "50", "95", "99".
    mmd2_fine, fine_p_value: MMD² of the same points under a kernel of a fifth of the median distance, which sees blur,
        and its test (None: not made).
    chosen_update: the update whose averaged players did best on the validation draw, at validation_nll (else
        validation_mmd2).
    field, plan: how ∇f was computed ("mlp": fused kernels, "autograd") and what the backward pass got to see.
    seconds: of the whole run, final test and pictures included; time is where they went, by part.
    milliseconds_per_update: of training, validations, pictures and checkpoints on the way included; 0 without any.
    nll, nll_standard_error: the held-out negative log-likelihood in nats per point, log Z's error included.
    entropy, entropy_exact: the data's own, which no model's NLL is below on average; exact, or an estimate.
    log_z, log_z_standard_error: log ∫ exp f.
    ess, initial_ess: effective sample size of the sampler and of q⁰ alone, fractions.
    best_temperature: the c under which exp(c f) gives the held-out data the highest likelihood; near 1 for a density.
    scale: what f was multiplied by at the end, for the validation points' sake (None: it was not).
    exact_mmd2, exact_p_value: as mmd2, of samples of p_f (resampled by their weights).
    validation_nll: the score by which the players were chosen.
    warnings: what the checks at the end found, a sentence each.
    """

    data: str
    seed: int
    updates: int
    chosen_update: int
    validation_mmd2: float | None
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
    nll: float | None = None
    nll_standard_error: float | None = None
    entropy: float | None = None
    entropy_exact: bool | None = None
    log_z: float | None = None
    log_z_standard_error: float | None = None
    ess: float | None = None
    initial_ess: float | None = None
    best_temperature: float | None = None
    scale: float | None = None
    exact_mmd2: float | None = None
    exact_p_value: float | None = None
    fine_p_value: float | None = None
    validation_nll: float | None = None
    warnings: Sequence[str] = ()

    def lines(self, directory: Path, config: Config) -> list[str]:
        """The summary as text: one screen of at most 100 columns, unless paths are longer."""
        total = sum(self.time.values()) or 1.0
        split = ", ".join(f"{name} {100 * part / total:.0f}%" for name, part in self.time.items() if part > 0)
        threads = f"threads {config.threads or 'as torch chose'}"
        pictures = [str(directory / name) for name in (FIGURE, CONVERGENCE, ENERGIES) if (directory / name).exists()]
        sample = shlex.join(["ade-fast", "sample", str(directory), "--n", "1000", "--out", "samples.npy"])
        return [
            f"data            {self.data}, seed {self.seed}, {self.updates} updates of {config.batch_size} points",
            *self._scores(),
            *(line for warning in self.warnings for line in _wrapped("warning", warning)),
            f"time            {self.seconds:.0f} s, {self.milliseconds_per_update:.1f} ms per update",
            *_wrapped("  of which", split),
            *_settings(config),
            f"kernels         field {self.field}, memory plan {self.plan}, on {config.device}, {threads}",
            *([f"pictures        {', '.join(pictures)}"] if pictures else []),
            f"checkpoint      {directory / CHECKPOINT}",
            f"next            {sample}",
        ]

    def _scores(self) -> list[str]:
        """Likelihood and weights first, then MMD² of exact and of raw samples."""
        null = ", ".join(f"{q} %: {1e3 * value:+.2f}" for q, value in self.null_mmd2.items())
        raw = _mmd2(self.mmd2, self.p_value)
        fine = f"{_mmd2(self.mmd2_fine, self.fine_p_value)}, with a kernel of {FINE:g} of the width"
        equal = f"  if equal      MMD² in 1e-3 over {self.permutations} permutations: {null}"
        if self.nll is None:
            heads = [f"held-out test   {raw}"]
        else:
            heads = [f"held-out test   {_likelihood(self)}", *_weights(self)]
            if self.exact_mmd2 is not None:
                heads.append(f"  exact samples {_mmd2(self.exact_mmd2, self.exact_p_value)}")
            heads.append(f"  raw samples   {raw}")
        return [*heads, equal, f"  fine scale    {fine}", self._choice()]

    def _choice(self) -> str:
        if self.validation_nll is None:
            assert self.validation_mmd2 is not None  # what they are chosen by
            by = f"MMD² {1e3 * self.validation_mmd2:+.2f}e-3"
        else:
            by = f"NLL {self.validation_nll:.3f}"
        scaled = "" if self.scale is None else f"; f scaled by {self.scale:.2f}"
        return f"chosen          update {self.chosen_update}, by {by} on a validation draw{scaled}"


def headline(
    *,
    nll: float | None = None,
    nll_standard_error: float | None = None,
    entropy: float | None = None,
    ess: float | None = None,
    initial_ess: float | None = None,
    p_value: float | None = None,
    exact_p_value: float | None = None,
) -> str:
    """The scores in one line, for a picture's heading; names as in :class:`Summary`, None is left out."""
    parts = []
    if nll is not None:
        own = "" if entropy is None else f" (the data's entropy {entropy:.3f})"
        parts.append(f"held-out NLL {nll:.3f}{_error(nll_standard_error)} nats{own}")
    if ess is not None:
        own = "" if initial_ess is None else f" (q⁰ alone {100 * initial_ess:.0f} %)"
        parts.append(f"ESS {100 * ess:.0f} %{own}")
    tests = [f"{p:.2g} {name}" for name, p in (("exact", exact_p_value), ("raw", p_value)) if p is not None]
    if tests:
        parts.append(f"MMD² test: p = {', '.join(tests)}")
    return "   ·   ".join(parts)


def _likelihood(summary: Summary) -> str:
    text = f"NLL {summary.nll:.3f}{_error(summary.nll_standard_error)} nats"
    if summary.entropy is None or summary.nll is None:
        return text
    kind = "" if summary.entropy_exact is None else " (exact)" if summary.entropy_exact else " (an estimate)"
    return f"{text}; the data's entropy{kind} {summary.entropy:.3f}, {summary.nll - summary.entropy:+.3f}"


def _weights(summary: Summary) -> list[str]:
    """What the importance weights say, in a line; none where nothing is known."""
    parts = []
    if summary.log_z is not None:
        parts.append(f"log Z {summary.log_z:.3f}{_error(summary.log_z_standard_error)}")
    if summary.ess is not None:
        own = "" if summary.initial_ess is None else f" (q0 alone {100 * summary.initial_ess:.1f} %)"
        parts.append(f"ESS {100 * summary.ess:.1f} %{own}")
    if summary.best_temperature is not None:
        parts.append(f"best temperature {summary.best_temperature:.2f}")
    return [f"  weights       {', '.join(parts)}"] if parts else []


def _mmd2(mmd2: float, p_value: float | None) -> str:
    text = f"MMD² {1e3 * mmd2:+.2f}e-3"
    if p_value is None:
        return text
    return f"{text}, p = {p_value:.3f}: {'not rejected' if p_value >= 0.05 else 'rejected'} at 5 %"


def _error(standard_error: float | None) -> str:
    return "" if standard_error is None else f" ± {standard_error:.3f}"


def _settings(config: Config) -> list[str]:
    """The settings in effect, by group; a star marks what is not the default."""
    default, lines = config.recipe(), []
    for group in SETTINGS_GROUPS:
        shown = [
            f"{field.name}={_text(value)}{'' if value == getattr(default, field.name) else '*'}"
            for field in dataclasses.fields(config)
            if field.metadata["group"] == group
            and field.name not in (*_ELSEWHERE, *NO_MATTER)
            and _MATTER_WHERE.get(field.name, lambda _: True)(config)
            and (getattr(config, field.name) or field.default)  # what is off, as by default, is not in effect
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
