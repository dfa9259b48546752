"""What the tests of the MLP's CUDA kernels share: problems, the ops on the CPU in float64, the kernels on the host."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from types import ModuleType

import torch
from torch import Tensor

ACTIVATIONS = {"relu": 0, "leaky_relu": 1, "softplus": 2, "silu": 3, "tanh": 4, "elu": 5}
PARAMETERS = {"leaky_relu": 0.2, "elu": 0.7}
PRECISIONS = {"medium": 1, "high": 2, "highest": 3}
NONE, VALUE, NORM = 0, 1, 2
LARGE_MEMORY = 227 * 1024  # of a block on Hopper


@dataclass(frozen=True)
class Problem:
    """One network and one unroll through it. Clips are (mode, bound)."""

    activation: str
    hidden: tuple[int, ...] = (32, 64)
    dim: int = 3
    rows: int = 17
    steps: int = 2
    grad_clip: tuple[int, float] = (NONE, 0.0)
    momentum_clip: tuple[int, float] = (NONE, 0.0)
    bounds: tuple[float, float] = (-math.inf, math.inf)
    damping: float = 1.0
    scaled: bool = False
    stopped: bool = False
    bridge: bool = False  # a scale of the force
    gaussian: bool = False  # beside f, in the unroll and in the field
    noise: bool = False
    momenta: bool = False  # have cotangents
    forgets: bool = False  # with `scaled`: from the second kick on nothing is left of the momentum, as in Langevin

    @property
    def linear(self) -> bool:
        return self.activation in ("relu", "leaky_relu")

    @property
    def kind(self) -> str:
        return "kinked" if self.linear or self.activation == "elu" else "smooth"  # elu's slope jumps unless alpha = 1

    @property
    def bounded(self) -> bool:
        return any(map(math.isfinite, self.bounds))

    @property
    def units(self) -> int:
        return sum(self.hidden)


BARE = Problem("silu")
OPTIONS = {
    "leapfrog": {},
    "leapfrog, norm clips": {"grad_clip": (NORM, 0.6), "momentum_clip": (NORM, 1.0)},
    "damped, value clips, range": {
        "grad_clip": (VALUE, 0.4), "momentum_clip": (VALUE, 0.7), "bounds": (-0.9, 1.0), "damping": 0.7,
    },
    "generalized, norm and value clip, range": {
        "grad_clip": (NORM, 0.6), "momentum_clip": (VALUE, 0.7), "bounds": (-0.9, 1.0), "scaled": True,
    },
    "Gaussian": {"gaussian": True},
    "Gaussian, value clip": {"gaussian": True, "grad_clip": (VALUE, 0.4)},
    "noise, norm clips, range": {
        "noise": True, "momenta": True, "grad_clip": (NORM, 0.6), "momentum_clip": (NORM, 1.0), "bounds": (-0.9, 1.0),
    },
    "Langevin, norm and value clip, range": {
        "scaled": True, "forgets": True, "noise": True, "momenta": True, "grad_clip": (NORM, 0.6),
        "momentum_clip": (VALUE, 0.7), "bounds": (-0.9, 1.0),
    },
    "annealed, norm and value clip, range": {
        "bridge": True, "gaussian": True, "noise": True, "momenta": True, "grad_clip": (NORM, 0.6),
        "momentum_clip": (VALUE, 0.7), "bounds": (-0.9, 1.0), "scaled": True,
    },
}  # fmt: skip
BRIDGE = ("scale", "pull", "centre", "noise_v", "noise_x")  # that have gradients
SHIFT = 0.75  # of the field's value, with a Gaussian


def with_option(problem: Problem, option: str) -> Problem:
    return replace(problem, **OPTIONS[option])


@dataclass
class Data:
    """Float32 numbers of a problem."""

    problem: Problem
    weights: list[Tensor]
    biases: list[Tensor]
    x0: Tensor  # [B, D]
    v0: Tensor  # [B, D]
    kick: Tensor  # [T+1, D]
    drift: Tensor  # [T, D]
    log_decay: Tensor | None  # [T+1, D]
    log_stretch: Tensor | None  # [T, D]
    dx: Tensor  # [B, D]
    dv: Tensor  # [B, D]
    dvalue: Tensor  # [B]
    scale: Tensor | None  # [T+1]
    pull: Tensor | None  # [T+1, D]
    centre: Tensor | None  # [T+1, D]
    noise_v: Tensor | None  # [T, D]
    noise_x: Tensor | None  # [T, D]
    noise: Tensor | None  # [T, B, D]
    dv_all: Tensor | None  # [T+1, B, D]

    @staticmethod
    def draw(problem: Problem, seed: int = 0, margin: float = 0.0) -> Data:
        """Random; with a margin, samples that come nearer than that to a kink are drawn again."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        p, sizes = problem, [problem.dim, *problem.hidden, 1]
        states = (p.rows, p.dim)
        scaled = [0.3 * normal(p.steps + 1, p.dim), 0.2 * normal(p.steps, p.dim)] if p.scaled else [None, None]
        if p.forgets:
            scaled[0][1:] = -math.inf
        data = Data(
            p,
            [1.7 * normal(n, m) / math.sqrt(m) for m, n in itertools.pairwise(sizes)],
            [0.3 * normal(n) for n in sizes[1:]],
            0.8 * normal(*states),
            normal(*states),
            0.05 + 0.2 * torch.rand(p.steps + 1, p.dim, generator=generator),
            0.05 + 0.2 * torch.rand(p.steps, p.dim, generator=generator),
            *scaled,
            normal(*states),
            normal(*states),
            normal(p.rows),
            0.8 + 0.3 * normal(p.steps + 1) if p.bridge else None,
            0.7 + 0.2 * normal(p.steps + 1, p.dim) if p.gaussian else None,
            normal(p.steps + 1, p.dim) if p.gaussian else None,
            0.3 * normal(p.steps, p.dim) if p.noise else None,
            0.2 * normal(p.steps, p.dim) if p.noise else None,
            normal(p.steps, *states) if p.noise else None,
            normal(p.steps + 1, *states) if p.momenta else None,
        )
        while margin and (near := kink_distance(data) < margin).any():
            count = int(near.sum())
            data.x0[near], data.v0[near] = 0.8 * normal(count, p.dim), normal(count, p.dim)
        return data

    def clips(self) -> list[float]:
        p = self.problem
        return [p.damping, *p.grad_clip, *p.momentum_clip, *p.bounds, p.stopped]

    def network(self, precision: str) -> list[float]:
        name = self.problem.activation
        return [ACTIVATIONS[name], PARAMETERS.get(name, 0.0), PRECISIONS[precision]]

    def steps(self) -> list[Tensor | None]:
        return [self.kick, self.drift, self.log_decay, self.log_stretch]

    def bridge(self) -> dict[str, Tensor | None]:
        return {name: getattr(self, name) for name in ("scale", "pull", "centre", "noise_v", "noise_x", "noise")}

    def base(self) -> dict[str, Tensor | None]:
        """The Gaussian beside the field."""
        return {name: None if (rows := getattr(self, name)) is None else rows[0] for name in ("pull", "centre")}

    @property
    def shift(self) -> float:
        return SHIFT if self.problem.gaussian else 0.0

    def to(self, **to: object) -> Data:
        def move(value):
            if isinstance(value, list):
                return [move(v) for v in value]
            return value.to(**to) if isinstance(value, Tensor) else value

        return Data(**{name: move(value) for name, value in vars(self).items()})


def kink_distance(data: Data) -> Tensor:
    """How near each sample's trajectory, in float64, comes to where a derivative jumps: kinks of units, clips, and the
    range of x. [B]"""
    p, d = data.problem, data.to(dtype=torch.float64)
    slope = PARAMETERS.get(p.activation, 0.0)
    nearest = d.x0.new_full((p.rows,), math.inf)

    def near(distance: Tensor) -> None:
        nonlocal nearest
        nearest = torch.minimum(nearest, distance.abs().reshape(p.rows, -1).amin(1))

    def clipped(u: Tensor, mode: int, bound: float) -> Tensor:
        if mode == VALUE:
            near(u.abs() - bound)
            return u.clamp(-bound, bound)
        if mode == NORM:
            norm = u.norm(dim=1, keepdim=True)
            near(norm - bound)
            return u * (bound / norm.clamp_min(bound))
        return u

    x, v = d.x0, d.v0
    for t in range(p.steps + 1):
        h = x
        for weight, bias in zip(d.weights[:-1], d.biases[:-1], strict=True) if p.kind == "kinked" else ():
            z = h @ weight.T + bias
            near(z)
            h = z.where(z > 0, slope * (z if p.linear else z.clamp_max(0).expm1()))
        if p.kind == "smooth" and not (p.grad_clip[0] or p.momentum_clip[0] or p.bounded):
            return nearest
        force = op_field(replace(d, x0=x, pull=None, centre=None))["grad"]
        force = force if d.scale is None else d.scale[t] * force
        force = force if d.pull is None else force - d.pull[t] * (x - d.centre[t])
        decay = p.damping if d.log_decay is None else d.log_decay[t].exp()
        v = v * decay + d.kick[t] * clipped(force, *p.grad_clip)
        v = v if d.noise is None or t == 0 else v + d.noise_v[t - 1] * d.noise[t - 1]
        if t == p.steps:
            return nearest
        x = x * (1.0 if d.log_stretch is None else d.log_stretch[t].exp()) + d.drift[t] * clipped(v, *p.momentum_clip)
        x = x if d.noise is None else x + d.noise_x[t] * d.noise[t]
        if p.bounded:
            near(x - p.bounds[0])
            near(x - p.bounds[1])
        x = x.clamp(*p.bounds)
    return nearest


Results = dict[str, Tensor]


def named(outputs: tuple, *names: str) -> Results:
    """Outputs of an op by name; a list's by name and layer. Empty ones are absent."""
    found = {}
    for name, output in zip(names, outputs, strict=True):
        for layer, tensor in enumerate(output if isinstance(output, list) else [output]):
            found[f"{name}[{layer}]" if isinstance(output, list) else name] = tensor
    return {name: tensor for name, tensor in found.items() if tensor.shape != (0,)}


# -------------------------------------------------------------------------------------------------- by torch.ops


def op_unroll(data: Data, precision: str = "highest") -> Results:
    out = torch.ops.ade_fast.mlp_unroll(
        data.x0,
        data.v0,
        *data.steps(),
        data.weights,
        data.biases,
        *data.network(precision),
        *data.clips(),
        True,
        True,
        False,
        *data.bridge().values(),
        True,
    )
    ends = ("start_value", "end_value", "end_gradient", "hidden")  # of the CPU alone
    return named(out, "x_end", "v_end", "x", "v", "bits", "products", "value", "gradient", *ends)


def op_unroll_backward(data: Data, kept: Results, precision: str = "highest", weights: bool = True) -> Results:
    bits = kept["bits"] if "bits" in kept else torch.empty(0, dtype=torch.uint8, device=data.x0.device)
    out = torch.ops.ade_fast.mlp_unroll_backward(
        data.dx, data.dv, data.v0, *data.steps(), data.weights, data.biases, kept["x"], kept["v"], bits,
        data.x0.new_empty(0), *data.network(precision), *data.clips(), weights, data.dv_all,
        *data.bridge().values(), True,
    )  # fmt: skip
    steps = ("dkick", "ddrift", "dlog_decay", "dlog_stretch")
    return named(out, "dx0", "dv0", *steps, *(f"d{name}" for name in BRIDGE), "adjoint", "dweights", "dbiases")


def op_field(data: Data, precision: str = "highest") -> Results:
    out = torch.ops.ade_fast.mlp_field(
        data.x0, data.weights, data.biases, *data.network(precision), True, True, *data.base().values(), data.shift
    )
    return named(out[:2], "value", "grad")


def op_field_backward(
    data: Data, precision: str = "highest", value: bool = True, grad: bool = True, weights: bool = True
) -> Results:
    out = torch.ops.ade_fast.mlp_field_backward(
        data.dvalue if value else None, data.dx if grad else None, data.x0, data.weights, data.biases,
        *data.network(precision), weights, *data.base().values(),
    )  # fmt: skip
    return named(out, "dx", "dweights", "dbiases")


# --------------------------------------------------------------------------------------------------- on the host


@dataclass
class Host:
    """The kernels on the host: which precision, which order of warps, how much shared memory."""

    testing: ModuleType
    precision: str = "highest"
    descending: bool = False
    memory: int = LARGE_MEMORY

    def _run(self, name: str, data: Data, outputs: Results, **fields: object) -> Results:
        p = data.problem
        network = {
            "dim": p.dim, "widths": list(p.hidden), "weights": arrays(data.weights), "biases": arrays(data.biases),
            **dict(zip(("activation", "parameter", "precision"), data.network(self.precision), strict=True)),
        }  # fmt: skip
        given = {n: f.contiguous().numpy() if isinstance(f, Tensor) else f for n, f in fields.items()}
        lists = {n: arrays(f) for n, f in outputs.items() if isinstance(f, list)}
        single = {n: None if f is None else f.numpy() for n, f in outputs.items() if not isinstance(f, list)}
        getattr(self.testing.cuda, name)(self.descending, self.memory, **network, **given, **single, **lists)
        return named(
            tuple(f for f in outputs.values() if f is not None), *(n for n, f in outputs.items() if f is not None)
        )

    @staticmethod
    def _dynamics(data: Data) -> dict[str, object]:
        p = data.problem
        return {
            "rows": p.rows, "steps": p.steps, "damping": p.damping, "grad_clip": p.grad_clip,
            "momentum_clip": p.momentum_clip, "lo": p.bounds[0], "hi": p.bounds[1],
            **dict(zip(("kick", "drift", "log_decay", "log_stretch"), data.steps(), strict=True)), **data.bridge(),
        }  # fmt: skip

    def unroll(self, data: Data, keep: bool = True) -> Results:
        p = data.problem
        states, bits = (p.rows, p.dim), (p.steps + 1, p.rows, p.units // 8)
        outputs = {
            "x_end": unwritten(*states), "v_end": unwritten(*states),
            **{name: unwritten(p.steps + 1, *states) if keep else None for name in ("x", "v", "gradient")},
            "value": unwritten(p.steps + 1, p.rows) if keep else None,
            "bits": torch.zeros(bits, dtype=torch.uint8) if p.linear and keep else None,
        }  # fmt: skip
        return self._run("mlp_unroll", data, outputs, **self._dynamics(data), x0=data.x0, v0=data.v0)

    def unroll_backward(self, data: Data, kept: Results, weights: bool = True, adjoint: bool = True) -> Results:
        p = data.problem
        outputs = {
            "dx0": unwritten(p.rows, p.dim), "dv0": unwritten(p.rows, p.dim),
            "dkick": unwritten(p.steps + 1, p.dim), "ddrift": unwritten(p.steps, p.dim),
            "dlog_decay": unwritten(p.steps + 1, p.dim) if p.scaled else None,
            "dlog_stretch": unwritten(p.steps, p.dim) if p.scaled else None,
            **{f"d{name}": None if (t := getattr(data, name)) is None else unwritten(*t.shape) for name in BRIDGE},
            "adjoint": unwritten(p.steps + 1, 2, p.rows) if adjoint else None,
            **gradients(data, weights),
        }  # fmt: skip
        return self._run(
            "mlp_unroll_backward", data, outputs, **self._dynamics(data), v0=data.v0, x=kept["x"], v=kept["v"],
            bits=kept.get("bits"), stopped=int(p.stopped), dx_end=data.dx, dv_end=data.dv, dv_all=data.dv_all,
        )  # fmt: skip

    def field(self, data: Data, value: bool = True, grad: bool = True) -> Results:
        p = data.problem
        outputs = {
            "value": unwritten(p.rows) if value else None, "grad": unwritten(p.rows, p.dim) if grad else None,
        }  # fmt: skip
        return self._run("mlp_field", data, outputs, rows=p.rows, x=data.x0, **data.base(), value_shift=data.shift)

    def field_backward(self, data: Data, value: bool = True, grad: bool = True, weights: bool = True) -> Results:
        p = data.problem
        outputs = {"dx": unwritten(p.rows, p.dim), **gradients(data, weights)}
        dvalue, dgrad = data.dvalue if value else None, data.dx if grad else None
        return self._run(
            "mlp_field_backward", data, outputs, rows=p.rows, x=data.x0, **data.base(), dvalue=dvalue, dgrad=dgrad
        )


def gradients(data: Data, wanted: bool) -> dict[str, list[Tensor]]:
    return {
        "dweights": [unwritten(*w.shape) for w in data.weights] if wanted else [],
        "dbiases": [unwritten(*b.shape) for b in data.biases] if wanted else [],
    }


def unwritten(*shape: int) -> Tensor:
    return torch.full(shape, math.nan)


def arrays(tensors: list[Tensor]) -> list:
    return [t.contiguous().numpy() for t in tensors]


# ------------------------------------------------------------------------------------------------------- errors


def error(got: Tensor, want: Tensor) -> float:
    """‖got − want‖ / ‖want‖, with the norm's floor of one unit in the last place of a 1."""
    if not want.numel():
        return 0.0
    return ((got.double() - want.double()).norm() / want.double().norm().clamp_min(1e-3)).item()


def errors(got: Results, want: Results) -> dict[str, float]:
    assert got.keys() == want.keys(), (got.keys(), want.keys())
    return {name: error(got[name], want[name]) for name in want if name != "bits"}


# What each precision promises of `error`, for any output of any op and networks as drawn here (docs/precision.md). A
# kinked potential's field jumps where a rounding error takes a unit to the other side of its kink; so do the
# derivatives of clips. Samples that come nearer than this to one are drawn again; at "medium" they are passed all the
# same.
KINK_MARGIN = 2e-4
TOLERANCE = {
    "highest": {"smooth": 5e-6, "kinked": 5e-6},
    "high": {"smooth": 2e-4, "kinked": 2e-4},
    "medium": {"smooth": 0.1, "kinked": 0.5},
}


def everything_on_the_cpu(data: Data, value: bool = True, grad: bool = True) -> dict[str, Results]:
    """All ops in float64. The backward pass of the unroll is that of "kept", states as float32 holds them."""
    double = data.to(dtype=torch.float64)
    unroll = op_unroll(double)
    kept = {k: t if k == "bits" else t.float() for k, t in unroll.items() if k in ("x", "v", "bits")}
    exact = {k: t if k == "bits" else t.double() for k, t in kept.items()}
    return {
        "kept": kept,
        "unroll": unroll,
        "unroll_backward": op_unroll_backward(double, exact, weights=not data.problem.stopped),
        "field": op_field(double),
        "field_backward": op_field_backward(double, value=value, grad=grad),
    }


def everything(host: Host, data: Data, want: dict[str, Results]) -> dict[str, Results]:
    """All ops by the kernels, the backward pass from the same kept states."""
    return {
        "kept": want["kept"],
        "unroll": host.unroll(data),
        "unroll_backward": host.unroll_backward(data, want["kept"], weights=not data.problem.stopped),
        "field": host.field(data),
        "field_backward": host.field_backward(data),
    }


# ------------------------------------------------------------------- the table of docs/precision.md: python host_mlp.py

QUANTITIES = {
    "end x, v": ("x_end", "v_end"),
    "dx, dv, steps": ("dx0", "dv0", "dkick", "ddrift"),
    "weights": ("dweights[0]", "dweights[1]", "dweights[2]", "dbiases[0]", "dbiases[1]"),
}


def unroll_errors(data: Data, host: Host | None) -> dict[str, float]:
    """Of the kernels or, without a host, of the CPU op in float32."""
    double = data.to(dtype=torch.float64)
    want, got = op_unroll(double), host.unroll(data) if host else op_unroll(data)
    gradients_of = host.unroll_backward if host else op_unroll_backward
    return errors(got, want) | errors(gradients_of(data, got), op_unroll_backward(double, want))


def table(testing: ModuleType, hidden: tuple[int, ...] = (128, 128), rows: int = 64, steps: int = 10) -> str:
    """Forward and backward from the same numbers, each from its own states: median and largest error of each kind."""
    lines = ["| precision | activation | " + " | ".join(QUANTITIES) + " |", "|---" * (2 + len(QUANTITIES)) + "|"]
    for precision in ("CPU, float32", *reversed(PRECISIONS)):
        for activation in ACTIVATIONS:
            found: dict[str, list[float]] = {kind: [] for kind in QUANTITIES}
            for seed in range(5):
                data = Data.draw(Problem(activation, hidden, 2, rows, steps), seed)
                all_errors = unroll_errors(data, Host(testing, precision) if precision in PRECISIONS else None)
                for kind, names in QUANTITIES.items():
                    found[kind] += [all_errors[name] for name in names]
            cells = [f"{sorted(e)[len(e) // 2]:.0e}, {max(e):.0e}" for e in found.values()]
            lines.append(f"| {precision} | {activation} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    import ade_fast_testing

    import ade_fast  # noqa: F401  (registers the ops)

    print(table(ade_fast_testing))
