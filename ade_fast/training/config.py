"""Every setting of a training run, defined once: defaults, checks, configuration keys and command-line flags.

A field of :class:`Config` named ``potential_lr`` is the key ``potential_lr`` of a configuration file and the
flag ``--potential-lr``; its metadata carries the help text and the values it may take.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import math
import numbers
import operator
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data import TOY_NAMES
from ..data.image_sets import IMAGE_SETS, is_image_set
from ..dynamics.ode import SOLVERS
from . import image_config, yaml_config
from .dynamics_config import CONTINUOUS, DYNAMICS, recipe_of
from .errors import ConfigError as ConfigError  # which is had from here
from .image_config import TABLE_SUFFIXES

SETTINGS_GROUPS = ("data", "potential", "sampler", "objective", "optimisation", "evaluation", "machine")


GIVEN = "given"
"""The setting ``data`` of a run whose data came as an array from Python."""

# Numbers beyond these are slips of the hand, and would end in an overflow somewhere below.
_SMALLEST, _LARGEST = 1e-20, 1e20
_MANY = 10**9


def _setting(
    default: Any,
    group: str,
    help: str,
    *,
    choices: tuple[str, ...] | None = None,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    below: float | None = None,
    absent: Mapping[str, str] | None = None,
) -> Any:
    """A field with its help, its group and its limits: ``above < value < below``, ``low <= value <= high``.

    absent: choices that people look for in vain, and why they are not there.
    """
    limits = {"above": above, "low": low, "high": high, "below": below}
    words = {"group": group, "help": help, "choices": choices, "absent": absent or {}}
    return dataclasses.field(default=default, metadata={**words, **limits})


_NO_CONDITIONALS = (
    "conditionals of continuous coordinates have to be normalised by quadrature, on nodes whose range and spacing no "
    "setting here knows, and one block of all coordinates is maximum likelihood on a grid; "
    "ade.estimators.pseudo_likelihood and composite_likelihood take nodes as states, with their weights"
)


@dataclass(frozen=True)
class Config:
    """The settings of a run. The defaults are the recipe for the two-dimensional sets.

    Raises: ConfigError: a value of another kind or beyond its limits; settings that exclude each other.
    """

    data: str = _setting(
        "moons",
        "data",
        "what to learn: a two-dimensional set by name, a file (.npy, .npz, .csv, .pt), or images: digits, mnist, "
        "fashion-mnist, cifar10, or the folder of such a set",
    )
    seed: int = _setting(
        0, "data", "seed of everything random: weights, data, samples, evaluation", low=0, high=2**64 - 1
    )
    batch_size: int = _setting(256, "data", "data points per update", low=1, high=2**20)
    standardise: bool = _setting(True, "data", "train on data of mean 0 and standard deviation 1 in each coordinate")
    data_noise: float = _setting(
        0.01, "data", "standard deviation of noise on the training data, in the coordinates of training", low=0
    )
    validation_fraction: float = _setting(
        0.1, "data", "fraction of a table's rows that the players are chosen on", above=0, below=1
    )
    test_fraction: float = _setting(
        0.1, "data", "fraction of a table's rows that the result is scored on; 0: those of validation", low=0, below=1
    )

    network: str = _setting(
        "mlp",
        "potential",
        "what f is: an MLP, or of images Table 4's convolutions or residual blocks",
        choices=("mlp", "conv", "residual"),
    )
    hidden: tuple[int, ...] = _setting(
        (128, 128, 128), "potential", "widths of f's hidden layers, or channels of its convolutions", low=1, high=2**16
    )
    activation: str = _setting(
        "silu",
        "potential",
        "f's activation; relu and leaky_relu make the exact gradient cheap",
        choices=("relu", "leaky_relu", "softplus", "silu", "tanh", "elu"),
    )
    spectral_norm: bool = _setting(False, "potential", "divide f's weights by their spectral norm")
    input_gain: float | None = _setting(
        None,
        "potential",
        "factor on the initial weights of f's first layer: above 1, finer structure sooner; none: 3 in two dimensions, "
        "falling to 1 in six",
        above=0,
    )
    base_std: float | None = _setting(
        3.0, "potential", "width of f's Gaussian base measure in standard deviations of the data, or none", above=0
    )

    initial: str = _setting(
        "spline",
        "sampler",
        "initial distribution q0: spline flow, planar flow, Langevin flow, a fixed Gaussian, or (of images) chains "
        "that persist in a replay buffer",
        choices=("spline", "planar", "langevin-flow", "gaussian", "replay"),
    )
    buffer_size: int = _setting(2000, "sampler", "samples in the replay buffer", low=1, high=10**7)
    reinit: float = _setting(
        0.05, "sampler", "part of the chains that begin again from noise at an update (replay)", low=0, high=1
    )
    flow_layers: int = _setting(10, "sampler", "layers of the planar or the Langevin flow", low=1, high=1000)
    spline_layers: int = _setting(2, "sampler", "maps of the spline flow", low=1, high=100)
    spline_hidden: tuple[int, ...] = _setting(
        (64, 64), "sampler", "widths of the hidden layers of each spline map", low=1, high=2**16
    )
    spline_bins: int = _setting(8, "sampler", "pieces of each spline", low=2, high=1000)
    initial_std: float = _setting(1.0, "sampler", "standard deviation of q0's Gaussian", above=0)
    dynamics: str = _setting(
        "leapfrog",
        "sampler",
        "how samples move on f; some have defaults of their own: deterministic one step of 0.01, continuous "
        "1000 updates of 128 points at an rtol of 0.01",
        choices=DYNAMICS,
    )
    noise_std: float | None = _setting(
        None,
        "sampler",
        "noise of each step (langevin dynamics), or none: the square root of the step size; with a replay buffer also "
        "the standard deviation of the other dynamics' momenta, or none: 1",
        above=0,
    )
    learn_noise_std: bool = _setting(False, "sampler", "learn the noise of each step (langevin dynamics)")
    log_det: str = _setting(
        "exact",
        "sampler",
        "how the log-determinant is found (deterministic dynamics); all but exact are estimates, without weights",
        choices=("exact", "taylor", "chebyshev", "laplacian"),
    )
    time: float = _setting(0.1, "sampler", "how long samples flow (continuous dynamics)", above=0)
    solver: str = _setting("bosh3", "sampler", "torchdiffeq's solver (continuous dynamics)", choices=SOLVERS)
    rtol: float = _setting(
        1e-3,
        "sampler",
        "error of the solver's step, relative, and a tenth of it absolute (continuous dynamics)",
        above=0,
    )
    n_steps: int = _setting(2, "sampler", "steps T of the dynamics", low=1, high=10_000)
    step_size: float = _setting(0.1, "sampler", "step size at the start", above=0)
    step_size_per: str = _setting(
        "step",
        "sampler",
        "one step size for all, one per dimension, or one per step and dimension",
        choices=("all", "dimension", "step"),
    )
    learn_step_size: bool = _setting(True, "sampler", "learn the step sizes")
    damping: float = _setting(0.5, "sampler", "momentum factor per kick (damped dynamics)", above=0, high=1)
    refresh: float = _setting(
        0.5, "sampler", "part of the momentum that is drawn anew in each step (annealed dynamics)", above=0, high=1
    )
    network_hidden: int = _setting(
        32, "sampler", "width of the networks S, g and h (generalized dynamics)", low=1, high=2**16
    )
    clip: str = _setting("norm", "sampler", "clip whole vectors by norm, or each element", choices=("norm", "value"))
    grad_clip: float | None = _setting(10.0, "sampler", "limit of f's gradient in the kick, or none", above=0)
    momentum_clip: float | None = _setting(10.0, "sampler", "limit of the momentum in the drift, or none", above=0)
    # Off: samples that rest on the boundary get no gradient, and a run that gathers them there does not recover.
    clip_samples: bool = _setting(False, "sampler", "keep samples inside the data's range while they move")
    gradient: str = _setting(
        "full",
        "sampler",
        "f's gradient through the unroll: full (21), truncated (38), or stopped (the released code)",
        choices=("full", "truncated", "stopped"),
    )
    memory: str = _setting(
        "auto",
        "sampler",
        "how the backward pass gets its states",
        choices=("auto", "graph", "masks", "states", "reversible"),
    )

    objective: str = _setting(
        "ade",
        "objective",
        "what f is trained by: ade, or another estimator of Table 1, whose f the sampler then follows",
        choices=("ade", "cd", "pcd", "icd", "sm", "dsm", "ssm", "ksd", "nlco", "mpf", "nce"),
        absent=dict.fromkeys(("pl", "cl", "pseudo_likelihood", "composite_likelihood"), _NO_CONDITIONALS),
    )
    chain_steps: int = _setting(15, "objective", "Langevin steps k of cd, pcd and icd", low=1, high=10_000)
    chain_step_size: float = _setting(0.01, "objective", "their step size", above=0)
    chain_accept: bool = _setting(True, "objective", "a Metropolis test of each of their steps (cd, pcd)")
    denoising_std: float = _setting(0.1, "objective", "standard deviation of dsm's noise", above=0)
    radius: float = _setting(0.2, "objective", "how far nlco and mpf look around each data point", above=0)
    bound: str = _setting(
        "importance",
        "objective",
        "f's bound of log Z: elbo (20), or importance, which is maximum likelihood as the batch grows",
        choices=("elbo", "importance"),
    )
    sampler_bound: str = _setting(
        "renyi", "objective", "the sampler's bound of log Z", choices=("elbo", "renyi", "importance")
    )
    samples_per_point: int = _setting(1, "objective", "samples of the sampler per data point", low=1, high=2**20)
    min_ess: float | None = _setting(
        None, "objective", "temper f's bound to at least this effective sample size, or none", above=0, below=1
    )
    sampler_min_ess: float | None = _setting(
        0.1, "objective", "temper the sampler's bound to at least this effective sample size, or none", above=0, below=1
    )
    defensive: float = _setting(
        0.5, "objective", "fraction of all samples drawn from f's base measure (bound importance)", low=0, below=1
    )
    coverage: float = _setting(
        1.0, "objective", "weight of the data's likelihood under q0, so that it loses no mode (spline flow)", low=0
    )
    ess_pace: float | None = _setting(
        0.3,
        "objective",
        "below this effective sample size f's steps are shortened in proportion, or none",
        above=0,
        below=1,
    )
    # At 1 leapfrog conserves f - |v|^2 / 2 and volume: the weights are those of q0, whatever the steps.
    momentum_weight: float | None = _setting(
        None,
        "objective",
        "lambda, weight of the kinetic energy, or none: 1, and of langevin dynamics 1 / noise_std^2 at the start",
        low=0,
    )
    entropy_weight: float = _setting(1.0, "objective", "weight of the sampler's entropy", low=0)
    gradient_penalty: float = _setting(0.0, "objective", "weight of E|grad f|^2, which keeps f smooth", low=0)
    value_penalty: float = _setting(0.0, "objective", "weight of E f^2, which keeps f small", low=0)

    updates: int = _setting(4000, "optimisation", "updates of f", low=1, high=_MANY)
    sampler_steps: int = _setting(1, "optimisation", "updates of the sampler per update of f", low=1, high=_MANY)
    potential_lr: float = _setting(3e-3, "optimisation", "learning rate of f (Adam)", above=0)
    sampler_lr: float = _setting(3e-3, "optimisation", "learning rate of the sampler (Adam)", above=0)
    beta1: float = _setting(0.5, "optimisation", "Adam's beta1, of both players", low=0, below=1)
    beta2: float = _setting(0.999, "optimisation", "Adam's beta2, of both players", low=0, below=1)
    grad_norm_clip: float | None = _setting(
        1.0, "optimisation", "limit of each player's gradient norm, or none", above=0
    )
    lr_decay_from: float = _setting(
        0.3, "optimisation", "fraction of the run after which rates and penalties decay", low=0, high=1
    )
    lr_decay_to: float = _setting(0.02, "optimisation", "factor on both learning rates at the end", low=0, high=1)
    # A gradient penalty of weight c makes the samples the data blurred by a Gaussian of variance 4 c: needed while the
    # players move fast, and nearly gone at the end.
    penalty_decay_to: float = _setting(
        0.1, "optimisation", "factor on both penalties at the end, on the schedule of the rates", low=0, high=1
    )
    ema_decay: float = _setting(
        0.99, "optimisation", "decay per update of the running average of both players", low=0, below=1
    )

    validate_by: str = _setting(
        "likelihood",
        "evaluation",
        "what the players are chosen by: held-out likelihood (MMD² where q^T has no density), or MMD² of samples",
        choices=("likelihood", "mmd2"),
    )
    calibrate: bool = _setting(
        True,
        "evaluation",
        "multiply f at the end by the number under which the validation points are likeliest (f an MLP)",
    )
    validate_every: int | None = _setting(
        None, "evaluation", "updates between validations, or none: 500, and 50 on a table", low=1, high=_MANY
    )
    validation_samples: int = _setting(2000, "evaluation", "points of a toy set's validation draw", low=2, high=2**20)
    likelihood_samples: int = _setting(
        20_000, "evaluation", "samples of the sampler that log Z is estimated from at a validation", low=2, high=_MANY
    )
    patience: int = _setting(
        20, "evaluation", "on a table, stop after so many validations without a better one; 0: never", low=0, high=_MANY
    )
    test_samples: int = _setting(
        1000, "evaluation", "points of the held-out draw that the result is scored on", low=2, high=2**20
    )
    test_likelihood_samples: int = _setting(
        100_000, "evaluation", "samples that the result's log Z is estimated from", low=2, high=_MANY
    )
    test_permutations: int = _setting(1000, "evaluation", "permutations of the MMD test", low=1, high=10**6)
    checkpoint_every: int = _setting(200, "evaluation", "updates between checkpoints", low=1, high=_MANY)
    log_every: int = _setting(10, "evaluation", "updates between rows of metrics.csv", low=1, high=_MANY)
    tensorboard: str = _setting(
        "auto", "evaluation", "event files for TensorBoard; auto: if it is installed", choices=("auto", "on", "off")
    )
    diagnostics: int = _setting(
        0,
        "evaluation",
        "updates between diagnostics of the unroll, in metrics.csv and as a picture; 0: none",
        low=0,
        high=_MANY,
    )
    pictures_every: int = _setting(
        1000, "evaluation", "updates between pictures; 0: only at the end", low=0, high=_MANY
    )
    max_gap: float = _setting(
        100.0, "evaluation", "stop as diverged when f tells data from samples by more than this on average", above=0
    )

    device: str = _setting("cpu", "machine", "torch device: cpu, cuda, cuda:1, ...")
    # One: a second thread gains little at these sizes, and on a busy machine the two wait for each other.
    threads: int = _setting(1, "machine", "CPU threads of torch; 0 leaves torch's choice", low=0, high=1024)

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = _coerced(field.name, getattr(self, field.name), hints[field.name])
            _check_limits(field, value)
            object.__setattr__(self, field.name, value)

        if self.of_images or is_image_set(self.data):
            image_config.check(self)
        else:
            _check_data(self.data)
        if not self.of_images and self.initial == "replay":
            raise ConfigError("configuration: initial must be another where data are no images, got replay")
        if self.diagnostics and self.dynamics in CONTINUOUS:
            raise ConfigError(
                "configuration: diagnostics must be 0 with the continuous dynamics, whose steps are the solver's, got "
                f"{self.diagnostics}"
            )

    @property
    def of_images(self) -> bool:
        """Whether the data are images: f says so, as a folder may be gone when a run is opened."""
        return self.network != "mlp"

    def recipe(self) -> Config:
        """The defaults: those for images where the data are images, else those of the dynamics."""
        if self.of_images:
            return self.from_dict({**image_config.RECIPE, "data": self.data})
        return self.from_dict(dict(recipe_of(self.dynamics)))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """A configuration from keys and values; an unknown key is an error."""
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                close = difflib.get_close_matches(key, known, 1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise ConfigError(f"configuration: unknown key {key!r}{hint}")
        return cls(**values)

    @classmethod
    def with_recipe(cls, values: dict[str, Any]) -> Config:
        """As `from_dict`; what is not given is of images the recipe for images, `image_config.RECIPE`, and else that of
        the dynamics, `dynamics_config.RECIPES`."""
        images = is_image_set(values["data"]) if isinstance(values.get("data"), str) else False
        return cls.from_dict({**(image_config.RECIPE if images else recipe_of(values.get("dynamics"))), **values})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON and for :meth:`from_dict`."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}


def read_config(path: str | Path) -> dict[str, Any]:
    """The keys and values of a configuration file: JSON, or YAML where it is named .yaml or .yml."""
    path = Path(path)
    is_yaml = path.suffix.lower() in yaml_config.SUFFIXES
    kind = "YAML" if is_yaml else "JSON"
    try:
        text = path.read_text(encoding="utf-8-sig")
        values = yaml_config.parse(text) if is_yaml else json.loads(text, object_pairs_hook=_without_duplicates)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"configuration: {path} is YAML, and PyYAML is not installed: pip install 'ade_fast[yaml]', or write JSON"
        ) from error
    except OSError as error:
        raise ConfigError(f"configuration: cannot read {path}: {error.strerror}") from error
    except RecursionError as error:
        raise ConfigError(f"configuration: {path} is not a configuration: nested too deeply") from error
    except ValueError as error:  # of the format, of its encoding, of a number with thousands of digits
        raise ConfigError(f"configuration: {path} is not valid {kind}: {error}") from error
    if not isinstance(values, dict):
        wanted = "keys and their values" if is_yaml else "one JSON object"
        raise ConfigError(f"configuration: {path} must hold {wanted}, got a {type(values).__name__}")
    return values


def is_config_file(path: str | Path) -> bool:
    """Whether a run wrote ``path``, be it one of another release: most of its keys are settings."""
    try:
        keys = read_config(path).keys()
    except ConfigError:
        return False
    return 2 * len(keys & {field.name for field in dataclasses.fields(Config)}) > len(dataclasses.fields(Config))


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"it has the key {next(key for key in keys if keys.count(key) > 1)!r} twice")
    return values


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for every setting. Only flags that were given appear in the parsed namespace."""
    hints = typing.get_type_hints(Config)
    groups = {name: parser.add_argument_group(name) for name in SETTINGS_GROUPS}
    for field in dataclasses.fields(Config):
        flag = "--" + field.name.replace("_", "-")
        group, hint = groups[field.metadata["group"]], hints[field.name]
        shown = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        text = f"{field.metadata['help']} (default: {'none' if shown is None else shown})"
        if hint is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
            continue
        choices = field.metadata["choices"]
        metavar = "{" + ",".join(choices) + "}" if choices else field.name.rsplit("_", 1)[-1].upper()
        group.add_argument(flag, type=flag_type(hint), default=argparse.SUPPRESS, metavar=metavar, help=text)


def given_settings(namespace: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given as flags."""
    names = {field.name for field in dataclasses.fields(Config)}
    return {key: value for key, value in vars(namespace).items() if key in names}


def flag_type(hint: Any) -> Callable[[str], Any]:
    """A function from a flag's text to its value, or to an error that says what was wanted."""

    def parse(text: str) -> Any:
        try:
            if hint == tuple[int, ...]:
                return tuple(int(part) for part in text.split(","))
            if isinstance(hint, types.UnionType):
                return None if text.lower() == "none" else _number_of(hint)(text)
            return hint(text)
        except ValueError:
            wanted = "whole numbers separated by commas" if hint == tuple[int, ...] else _wanted(hint)
            raise argparse.ArgumentTypeError(f"must be {wanted}, got {_short(text)}") from None

    return parse


def _number_of(hint: types.UnionType) -> Any:
    """int or float: what a setting is that may be none."""
    return next(kind for kind in typing.get_args(hint) if kind is not types.NoneType)


def _wanted(hint: Any) -> str:
    if isinstance(hint, types.UnionType):
        return "an integer or none" if _number_of(hint) is int else "a number or none"
    names = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}
    return names.get(hint, "a list of integers")


def _short(value: Any) -> str:
    """``repr(value)``, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return "an integer of thousands of digits"
    return text if len(text) <= 60 else f"{text[:50]}... ({len(text)} characters)"


def _coerced(name: str, value: Any, hint: Any) -> Any:
    """``value`` as its type (an int is a float, a list a tuple), or a ConfigError."""
    optional = isinstance(hint, types.UnionType)
    if optional and (value is None or value == "none"):  # the second as on the command line
        return None
    if hint is bool and isinstance(value, bool):
        return value
    whole = hint is int or (optional and _number_of(hint) is int)
    if whole and isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    if (hint is float or (optional and not whole)) and isinstance(value, numbers.Real) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf  # type: ignore[operator]
    if hint is str and isinstance(value, str):
        return value
    if hint == tuple[int, ...] and isinstance(value, (list, tuple)) and value:
        return tuple(_coerced(name, item, int) for item in value)
    raise ConfigError(f"configuration: {name} must be {_wanted(hint)}, got {_short(value)}")


def _check_data(name: str) -> None:
    """Refuses what is neither a toy set nor the name of a file that could hold a table."""
    if name in TOY_NAMES or name == GIVEN or Path(name).suffix.lower() in TABLE_SUFFIXES:
        return
    close = difflib.get_close_matches(name, (*TOY_NAMES, *IMAGE_SETS), 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ConfigError(
        f"configuration: data must be one of {', '.join(TOY_NAMES)}, or a file ({', '.join(TABLE_SUFFIXES)}), or "
        f"images ({', '.join(IMAGE_SETS)}, or the folder of their published files), got {_short(name)}{hint}"
    )


_RELATIONS = {"above": (">", operator.gt), "low": (">=", operator.ge), "high": ("<=", operator.le),
              "below": ("<", operator.lt)}  # fmt: skip


def _check_limits(field: dataclasses.Field[Any], value: Any) -> None:
    choices = field.metadata["choices"]
    if choices and value not in choices:
        close = difflib.get_close_matches(value, choices, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        if value in field.metadata["absent"]:
            hint = f": {field.metadata['absent'][value]}"
        raise ConfigError(f"configuration: {field.name} must be one of {', '.join(choices)}, got {_short(value)}{hint}")
    limits = [(*_RELATIONS[k], field.metadata[k]) for k in _RELATIONS if field.metadata[k] is not None]
    for item in value if isinstance(value, tuple) else (value,):
        if not isinstance(item, (int, float)) or isinstance(item, bool):
            continue
        if not all(holds(item, limit) for _, holds, limit in limits):
            wanted = " and ".join(f"{sign} {limit}" for sign, _, limit in limits)
            raise ConfigError(f"configuration: {field.name} must be {wanted}, got {_short(item)}")
        if isinstance(item, float) and item != 0 and not _SMALLEST <= abs(item) <= _LARGEST:
            raise ConfigError(
                f"configuration: {field.name} must be between {_SMALLEST:g} and {_LARGEST:g}, got {_short(item)}"
            )
