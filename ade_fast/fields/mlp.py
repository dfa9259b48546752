"""MLP potentials by fused kernels: the whole unroll as one operator, and the field's own value, gradient and vjp.

`MLPField.match` recognises the potentials that the kernels know. The unroll goes through all T + 1 kicks and T drifts
without leaving the kernel, and its backward pass is one operator too: exact, by the second-order products of
``csrc/potentials/mlp.h``.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from .._ends import Ends
from .._mlp_ops import Schedule, field_columns, product_columns, scheduled_unroll, wants_grad
from .._ops import build_info, ops
from .._record import Record
from .._slow_paths import note_slow_path
from ..potentials.mlp import MLPPotential
from .memory import memory_budget
from .modules import is_patched, is_tampered_with

MAX_DIM = 128
MAX_LAYERS = 4
MAX_WIDTH = 256
WIDTH_STEP = 32

# The operators' codes (csrc/common/mlp_shape.h).
_CODES = {"relu": 0, "leaky_relu": 1, "softplus": 2, "silu": 3, "tanh": 4, "elu": 5}
_BFLOAT16_GPUS = (8, 0)
_TILE = 16  # to which the kernels pad
_RESERVED_SHARED_MEMORY = 1024  # csrc/cuda/device.cuh
_PRECISIONS = {"medium": 1, "high": 2, "highest": 3}
_NO_CLIP = (0, 0.0)
_LINEAR = torch._C._nn.linear
_NO_RANGE = (-math.inf, math.inf)


@dataclass(frozen=True)
class MLPSpec:
    """What the kernels know of an MLP apart from its weights.

    dim: length of one x. hidden: widths of the hidden layers. activation: a key of `ade.MLPPotential`'s. parameter:
    leaky ReLU's slope, ELU's alpha, else 0.
    """

    dim: int
    hidden: tuple[int, ...]
    activation: str
    parameter: float

    @property
    def piecewise_linear(self) -> bool:
        return self.activation in ("relu", "leaky_relu")

    def product_bytes(self, rows: int, n_steps: int, dtype: torch.dtype) -> int:
        """What ``mlp_unroll(keep_products=True)`` keeps on the CPU, of an unroll of `n_steps` for `rows` samples."""
        columns = product_columns(self.dim, self.hidden, self.piecewise_linear)
        return (n_steps + 1) * columns * rows * dtype.itemsize

    def weight_bytes(self, precision: str) -> int:
        """What the weights take in a CUDA block's shared memory, at one of torch's precisions of matrix products."""
        sizes = [-(-n // _TILE) * _TILE for n in (self.dim, *self.hidden)]
        return 2 * _PRECISIONS[precision] * sum(n * m for n, m in itertools.pairwise(sizes))

    @property
    def numbers(self) -> tuple[int, float, int]:
        """The operators' numbers: on CUDA, torch's precision of float32 matrix products holds here too."""
        return _CODES[self.activation], self.parameter, _precision()


def matmul_precision() -> str:
    """Torch's precision of float32 matrix products, by whichever of its names it was set."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # set by its newer name, which the older one refuses to tell
        return "high" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "highest"


def _precision() -> int:
    """The same as the operators' code."""
    return _PRECISIONS[matmul_precision()]


def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a block of the MLP kernels may have on a CUDA device."""
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin - _RESERVED_SHARED_MEMORY  # type: ignore[attr-defined]


@functools.lru_cache(maxsize=64)
def _beyond_shared_memory(spec: MLPSpec, precision: str, device: torch.device) -> str | None:
    """Why the weights are read from the GPU's memory at every use; None where they stay on the chip."""
    needed, there = spec.weight_bytes(precision), shared_memory(device)
    if needed <= there:
        return None
    return (
        f"an MLP {spec.dim}-{'-'.join(map(str, spec.hidden))}-1 at matmul precision {precision!r} takes "
        f"{needed >> 10} KiB for its weights, and a block of {device} has {there >> 10} KiB of shared memory: they are "
        f"read from its L2 cache at every step (a lower torch.set_float32_matmul_precision takes less)"
    )


def _note_weights(spec: MLPSpec, device: torch.device) -> None:
    """On CUDA, weights that do not stay on the chip are a slow path."""
    if device.type != "cuda" or torch.compiler.is_compiling():
        return
    why = _beyond_shared_memory(spec, matmul_precision(), device)
    if why is not None:
        note_slow_path(why, why)


class UnrollEnd(NamedTuple):
    """x: x^T rows, [B, D]. v: v^T rows, [B, D]. log_det: [B]. momenta: if wanted, v_t after every kick, [T+1, B, D]."""

    x: Tensor
    v: Tensor
    log_det: Tensor
    momenta: Tensor | None = None


Base = tuple[Tensor, Tensor]
"""A Gaussian beside f, log N(x; centre, diag 1/pull): (pull [D], centre [D]), constants."""


class MLPField:
    """A potential that the MLP kernels know: its spec, and its weights as they are when a method is called.

    Methods take rows [B, D]: float32 or float64 on the CPU, float32 on CUDA, where `torch.set_float32_matmul_precision`
    holds for their matrix products. They are differentiable once, with respect to their tensors and the weights; a
    parametrised weight (spectral norm) is read once per call, and autograd carries its gradient on.
    """

    def __init__(self, spec: MLPSpec, linears: Sequence[nn.Linear]) -> None:
        self.spec = spec
        self._linears = tuple(linears)

    @staticmethod
    def match(potential: Callable[..., Tensor]) -> MLPField | str:
        """The field of a potential that the kernels know, or the reason why they do not know it.

        Known are `ade.MLPPotential` and a plain ``nn.Sequential`` of linear layers with the same activation after each
        but the last, of output width 1.
        """
        whole: Any = potential
        layers = whole.layers if type(whole) is MLPPotential else whole
        if type(layers) is not nn.Sequential:
            return f"a {type(layers).__name__} is no MLPPotential and no nn.Sequential"
        modules: list[Any] = list(layers)
        if _has_any_global_hook():
            return "there are hooks on all modules (torch.nn.modules.module.register_module_*_hook)"
        if any(map(is_tampered_with, (whole, layers, *modules))):
            return "a module of it has hooks or a forward of its own"
        linears, activations = modules[0::2], modules[1::2]
        if not activations or len(linears) != len(activations) + 1 or not all(map(_is_linear, linears)):
            return "its layers are not linear layers with an activation between each pair"
        kinds = set(map(_activation_of, activations))
        kind = kinds.pop()
        if kinds or kind is None:
            names = ", ".join(sorted({type(module).__name__ for module in activations}))
            return f"its activations ({names}) are not one of {', '.join(_CODES)} with torch's defaults throughout"
        if is_patched(nn.Sequential, nn.Linear, type(activations[0])) or F.linear is not _LINEAR:
            return "torch's own modules or functions are replaced (Linear.forward, say)"
        if any(mode for mode in _get_current_function_mode_stack() if type(mode) is not DeviceContext):
            return "a torch function mode is on, which the kernels do not call"
        if not all(map(_has_plain_weights, linears)):
            return "its weights are of a class of their own"
        spec = _spec_of(
            tuple([linear.in_features for linear in linears]),
            tuple([linear.out_features for linear in linears]),
            *kind,
        )
        return spec if isinstance(spec, str) else MLPField(spec, linears)

    def refuses(self, x: Tensor) -> str | None:
        """The reason why the kernels cannot take these states, or None."""
        device, dtype = x.device, x.dtype
        if device.type == "cuda":
            if not build_info()["cuda"]:
                return "this build of ade_fast has no CUDA kernels: install nvcc and rebuild with ADE_FAST_CUDA=1"
            if dtype == torch.float64:
                return "the states are torch.float64, and the CUDA kernels take float32 alone"
            if torch.cuda.get_device_capability(device) < _BFLOAT16_GPUS:
                return f"{device} has no bfloat16 tensor cores (compute capability below 8.0)"
        elif device.type != "cpu":
            return f"the states are on {device}: there are CPU and CUDA kernels alone"
        if dtype not in (torch.float32, torch.float64):
            return f"the states are {dtype}, not float32 or float64"
        first = self._linears[0]
        weight = first.bias if _is_parametrized(first) else first.weight  # a parametrised one is computed when read
        if weight.dtype != dtype or weight.device != device:
            return f"the weights are {weight.dtype} on {weight.device}, the states {dtype} on {device}"
        if torch.is_autocast_enabled(device.type):
            return "autocast is on, and the kernels run in the states' dtype"
        return None

    def weights(self) -> tuple[list[Tensor], list[Tensor]]:
        """(weights, biases) of the layers, first to last; each read once."""
        return [linear.weight for linear in self._linears], [linear.bias for linear in self._linears]

    def value(self, x: Tensor, base: Base | None = None, shift: float = 0.0) -> Tensor:
        """f(x), [B]; with a base, f(x) - ½ Σ pull (x - centre)² + shift."""
        return self._evaluate(x, True, False, base, shift)[0]

    def grad(self, x: Tensor, base: Base | None = None) -> Tensor:
        """∇f(x), [B, D]; with a base, that of the sum."""
        return self._evaluate(x, False, True, base)[1]

    def value_and_grad(self, x: Tensor, base: Base | None = None, shift: float = 0.0) -> tuple[Tensor, Tensor]:
        """(f(x), ∇f(x)) from one evaluation; with a base, those of the sum."""
        value, grad, *_ = self._evaluate(x, True, True, base, shift)
        return value, grad

    def _evaluate(
        self, x: Tensor, want_value: bool, want_grad: bool, base: Base | None, shift: float = 0.0
    ) -> Sequence[Tensor]:
        _note_weights(self.spec, x.device)
        weights, biases = self.weights()
        # What its backward pass would compute again.
        keep = want_grad and wants_grad(x, *weights, *biases) and self._keeps(x)
        optional = (*(base or (None, None)), shift, keep) if base or shift or keep else ()
        return ops.mlp_field.default(x, weights, biases, *self.spec.numbers, want_value, want_grad, *optional)

    def _keeps(self, x: Tensor) -> bool:
        """Whether there is memory for it; on CUDA, computing it again is cheaper than fetching it."""
        if x.device.type == "cuda":
            return False
        columns = field_columns(self.spec.dim, self.spec.hidden, self.spec.piecewise_linear)
        return len(x) * columns * x.dtype.itemsize <= memory_budget(x.device)

    def vjp(self, x: Tensor, u: Tensor, base: Base | None = None) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """(H u, ∂⟨∇f(x), u⟩ by the weights, and by the biases), H the Hessian at each row of x of f, or of the sum with
        a base."""
        _note_weights(self.spec, x.device)
        return tuple(
            ops.mlp_field_backward.default(None, u, x, *self.weights(), *self.spec.numbers, True, *(base or ()))
        )

    @torch.no_grad()
    def grad_and_trace(
        self, x: Tensor, directions: Iterable[Tensor], base: Base | None = None
    ) -> tuple[Tensor, Tensor]:
        """(∇f(x), [B, D], and Σ z·H z over directions z [B, D], [B]); with a base, those of the sum. Without a graph.

        Directions are the unit vectors for the Laplacian. Each costs about an evaluation: what the products H z have
        in common is computed once, where there is memory for it.
        """
        _note_weights(self.spec, x.device)
        network, rows = (*self.weights(), *self.spec.numbers), base or (None, None)
        _, grad, *kept = ops.mlp_field.default(x, *network, False, True, *rows, 0.0, self._keeps(x))
        trace = x.new_zeros(len(x))
        for z in directions:
            product, *_ = ops.mlp_field_backward.default(None, z, x, *network, False, *rows, *kept)
            trace += (product * z).sum(1)
        return grad, trace

    def unroll(self, x0: Tensor, v0: Tensor, kick: Tensor, drift: Tensor, **options: Any) -> UnrollEnd:
        """`mlp_unroll` with this potential's weights."""
        return mlp_unroll(self.spec, *self.weights(), x0, v0, kick, drift, **options)

    def scheduled_unroll(
        self,
        x0: Tensor,
        v0: Tensor,
        schedule: Schedule,
        *,
        keep_bits: bool,
        keep_products: bool,
        gradient: str,
        base: Base | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor]:
        """(x^T, v^T) of `mlp_unroll`, with kicks and drifts of a schedule, and derivatives by its tensors; with a base,
        ∇ of f and the Gaussian."""
        _note_weights(self.spec, x0.device)
        return scheduled_unroll(
            schedule, x0, v0, *_as_inputs(*self.weights(), gradient),
            (*_unroll_numbers(self.spec, gradient, **options), keep_bits, keep_products),
            () if base is None else [row.expand(schedule.kick.shape) for row in base],
            Ends.current() if gradient == "full" and x0.device.type == "cpu" else None,
        )  # fmt: skip


def mlp_unroll(
    spec: MLPSpec,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    x0: Tensor,
    v0: Tensor,
    kick: Tensor,
    drift: Tensor,
    *,
    scale: Tensor | None = None,
    pull: Tensor | None = None,
    centre: Tensor | None = None,
    noise: Tensor | None = None,
    noise_v: Tensor | None = None,
    noise_x: Tensor | None = None,
    damping: float = 1.0,
    log_decay: Tensor | None = None,
    log_stretch: Tensor | None = None,
    grad_clip: tuple[int, float] = _NO_CLIP,
    momentum_clip: tuple[int, float] = _NO_CLIP,
    bounds: tuple[float, float] = _NO_RANGE,
    gradient: str = "full",
    keep_bits: bool = True,
    keep_products: bool = False,
    want_momenta: bool = False,
) -> UnrollEnd:
    """T + 1 merged kicks and T drifts of leapfrog, damped or generalized leapfrog with constant scales: one operator.

    v_t = v_{t-1} · decay_t + kick_t · clip(∇f(x_t)),  x_{t+1} = clamp(x_t · stretch_t + drift_t · clip(v_t), *bounds),
    with decay = exp(log_decay) or `damping`, and stretch = exp(log_stretch) or 1.

    A Gaussian beside f, and annealing: the force in place of ∇f(x_t) is scale_t ∇f(x_t) - pull_t (x_t - centre_t).
    Noise ξ_t, which partly refreshes the momenta: v_{t+1} gains noise_v_t ξ_t, and x_{t+1} noise_x_t ξ_t within bounds.

    Source: eqs. (10), (11), (13) with g the identity; (1) for the Gaussian, (9) for the noise. Reference:
    ``reference.leapfrog``, ``damped_leapfrog``, ``generalized_leapfrog``.

    Shapes: weights[l] [n_l, n_{l-1}], biases[l] [n_l]; x0, v0 [B, D]; kick, log_decay, pull, centre [T+1, D]; drift,
    log_stretch, noise_v, noise_x [T, D]; scale [T+1]; noise [T, B, D]; one dtype, float32 or float64.
    Returns: x^T, v^T, log_det [B] = Σ log decay + Σ log stretch, the same for every sample (at given noise), and with
    `want_momenta` v_0 … v_T, [T+1, B, D], else None.
    Gradients: of every tensor but the noise; once differentiable. gradient "truncated" gives none to the weights,
    "stopped" takes the forces for constants: none to scale, pull and centre either.
    Raises: RuntimeError for tensors that do not fit each other, or miss one of pull and centre, or of noise, noise_v
    and noise_x; ValueError for noise that requires grad.
    Memory: x_t, v_t (the momenta, where those are wanted); with `keep_bits` one bit per hidden unit of a
    piecewise-linear potential; with `keep_products` on the CPU `MLPSpec.product_bytes` for the matrix products that the
    backward pass would compute again (CUDA computes them again in any case). Each makes the backward pass faster by
    about a quarter. Only a call that autograd records keeps anything. The results do not depend on the number of
    threads.
    """
    if keep_products and spec.piecewise_linear and not keep_bits:
        raise ValueError("mlp_unroll: keep_products needs keep_bits where the potential is piecewise linear")
    if gradient not in ("full", "truncated", "stopped"):
        raise ValueError(f"mlp_unroll: gradient must be 'full', 'truncated' or 'stopped', got {gradient!r}")
    weights, biases = _as_inputs(weights, biases, gradient)
    numbers = _unroll_numbers(spec, gradient, damping, grad_clip, momentum_clip, bounds)
    _note_weights(spec, x0.device)
    bridge = (scale, pull, centre, noise_v, noise_x, noise)
    recorded = wants_grad(x0, v0, kick, drift, log_decay, log_stretch, *bridge, *weights, *biases)
    record = Record.current()
    figures = () if record is None else (True,)
    x, v, states, momenta, _, _, value, grad, *_ = ops.mlp_unroll.default(
        x0, v0, kick, drift, log_decay, log_stretch, weights, biases, *numbers, want_momenta or record is not None,
        recorded and keep_bits, recorded and keep_products, *bridge, *figures,
    )  # fmt: skip
    if record is not None:
        record.unrolled(states, momenta.detach(), value, grad)
    log_det = x0.new_zeros(len(x0))
    if log_decay is not None:
        log_det = log_det + log_decay.sum()
    elif damping != 1.0:
        log_det = log_det + kick.numel() * math.log(damping)
    if log_stretch is not None:
        log_det = log_det + log_stretch.sum()
    return UnrollEnd(x, v, log_det, momenta if want_momenta else None)


def _unroll_numbers(
    spec: MLPSpec,
    gradient: str,
    damping: float = 1.0,
    grad_clip: tuple[int, float] = _NO_CLIP,
    momentum_clip: tuple[int, float] = _NO_CLIP,
    bounds: tuple[float, float] = _NO_RANGE,
) -> tuple[float, ...]:
    """The numbers of the operator's schema, up to what is kept."""
    return (*spec.numbers, damping, *grad_clip, *momentum_clip, *bounds, gradient == "stopped")


def _as_inputs(weights: Sequence[Tensor], biases: Sequence[Tensor], gradient: str) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and biases as the operator takes them: without a gradient where there is to be none."""
    if gradient == "full":
        return list(weights), list(biases)
    return [w.detach() for w in weights], [b.detach() for b in biases]


def generalized_kicks(half: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """(kick, log_decay), both [T+1, D], of the merged kicks of eq. (13).

    v ← (v e^{S_a} + a F) e^{S_b} + b F with a the half step η/2 and S_a the scale of the step that ends, b and S_b
    those of the step that begins; the first kick has only b, the last only a. half [T, D] holds η/2; scale is a
    constant S_v, [D], [1, D], or [T, D] with one per step, or None.
    """
    if scale is None:
        return torch.cat([half[:1], half[:-1] + half[1:], half[-1:]]), None
    scale = scale.expand(len(half), -1)
    kick = torch.cat([half[:1], half[:-1] * scale[1:].exp() + half[1:], half[-1:]])
    return kick, torch.cat([scale[:1], scale[:-1] + scale[1:], scale[-1:]])


def _has_plain_weights(linear: nn.Linear) -> bool:
    plain = (Tensor, nn.Parameter)
    return _is_parametrized(linear) or (type(linear.weight) in plain and type(linear.bias) in plain)


def _is_parametrized(module: nn.Module) -> bool:
    return type(module) is not nn.Linear and is_parametrized(module)  # torch derives a class from the module's own


def _is_linear(module: nn.Module) -> bool:
    kind = type(module).__mro__[1] if _is_parametrized(module) else type(module)
    return kind is nn.Linear and module.bias is not None


def _activation_of(module: nn.Module) -> tuple[str, float] | None:
    """(name, parameter), or None for a module that the kernels do not know."""
    if type(module) is nn.ReLU:
        return "relu", 0.0
    if type(module) is nn.LeakyReLU and module.negative_slope >= 0:
        return "leaky_relu", float(module.negative_slope)
    if type(module) is nn.Softplus and (module.beta, module.threshold) == (1, 20):
        return "softplus", 0.0
    if type(module) is nn.SiLU:
        return "silu", 0.0
    if type(module) is nn.Tanh:
        return "tanh", 0.0
    if type(module) is nn.ELU:
        return "elu", float(module.alpha)
    return None


@functools.lru_cache(maxsize=256)
def _spec_of(ins: tuple[int, ...], outs: tuple[int, ...], activation: str, parameter: float) -> MLPSpec | str:
    """The spec of linear layers from `ins` to `outs`, or the reason why the kernels do not know it."""
    spec = MLPSpec(ins[0], outs[:-1], activation, parameter)
    if ins != (spec.dim, *spec.hidden) or outs[-1] != 1:
        return f"its linear layers do not lead from {spec.dim} numbers to one"
    if spec.dim > MAX_DIM:
        return f"x has {spec.dim} dimensions, more than {MAX_DIM}"
    if len(spec.hidden) > MAX_LAYERS:
        return f"it has {len(spec.hidden)} hidden layers, more than {MAX_LAYERS}"
    if any(width % WIDTH_STEP or width > MAX_WIDTH for width in spec.hidden):
        return f"its hidden widths {spec.hidden} are not multiples of {WIDTH_STEP} up to {MAX_WIDTH}"
    return spec
