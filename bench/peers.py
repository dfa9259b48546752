"""The leapfrog unroll, as each peer's users would write it: `PEERS` forward and full backward, `SAMPLERS` forward.

All peers compute the same thing in float32: (x^T, v^T), and the derivatives of <x^T, a> + <v^T, b> for x0,
v0, the step size (a scalar) and every parameter of the potential. Samplers compute (x^T, v^T) and record nothing.
"""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import ade_fast as ade


@dataclass
class Problem:
    """One unroll to be timed.

    potential: f, with plain parameters. x0, v0: [B, *event]. step_size: [] . a, b: cotangents of x^T and v^T.
    """

    potential: nn.Module
    x0: Tensor
    v0: Tensor
    step_size: Tensor
    n_steps: int
    a: Tensor
    b: Tensor

    @property
    def inputs(self) -> list[Tensor]:
        return [self.x0, self.v0, self.step_size, *self.potential.parameters()]


STEP_SIZE = 0.1


def random_problem(
    potential: nn.Module, batch: int, event: tuple[int, ...], n_steps: int, device: torch.device
) -> Problem:
    """States and cotangents from N(0, I), by torch's generator on the CPU, whatever the device."""
    potential = potential.to(device)
    x0, v0, a, b = (torch.randn(batch, *event).to(device) for _ in range(4))
    step = torch.tensor(STEP_SIZE, device=device)
    for leaf in (x0, v0, step):
        leaf.requires_grad_()
    return Problem(potential, x0, v0, step, n_steps, a, b)


@dataclass
class Peer:
    """One implementation of one problem.

    run: forward and full backward, as cheap to call as its users have it; of a sampler, forward. outputs: what `run`
    returned as [x^T, v^T, dx0, dv0, dstep_size, *dparameters] or [x^T, v^T], a list of torch tensors in the problem's
    shapes and order; None is zero. forward: the forward pass with what the backward pass needs; None where the two
    cannot be separated. notes: for the results file. trial: what `outputs` judges in place of `run`, where that draws
    its own numbers.
    """

    run: Callable[[], Any]
    outputs: Callable[[Any], list[Tensor | None]] = list
    forward: Callable[[], Any] | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    trial: Callable[[], Any] | None = None


class Skipped(Exception):
    """This peer cannot run here; the message says why."""


@dataclass(frozen=True)
class Settings:
    """compile_limit_s: after how many seconds of compilation a peer is given up. precision: of float32 matrix products,
    as `torch.set_float32_matmul_precision` has it; the caller sets torch's."""

    compile_limit_s: float
    precision: str = "highest"


Make = Callable[[Any, Settings], Peer]
"""From a `Problem`, or from whatever else all peers of a benchmark solve."""
Judge = Callable[[str, Sequence[Tensor | None]], tuple[dict[str, Any], str | None]]


def build(
    makers: Mapping[str, Make], problem: Any, settings: Settings, judge: Judge
) -> tuple[dict[str, Peer], dict[str, dict[str, Any]]]:
    """The peers that run here and are right, and an entry of the results file for every one.

    judge: (name, outputs) -> (what the entry says of them, why they are wrong or None).
    """
    ready: dict[str, Peer] = {}
    entries: dict[str, dict[str, Any]] = {}
    for name, make in makers.items():
        try:
            peer = make(problem, settings)
            found, wrong = judge(name, peer.outputs((peer.trial or peer.run)()))
        except Skipped as why:
            entries[name] = {"skipped": str(why)}
            continue
        except torch.OutOfMemoryError:
            entries[name] = {"skipped": "out of memory"}
            continue
        entries[name] = {**peer.notes, **found}
        if wrong is None:
            ready[name] = peer
        else:
            entries[name]["skipped"] = wrong
    return ready, entries


def judged(error: float, tolerance: float) -> tuple[dict[str, Any], str | None]:
    """A `Judge`'s answer for a relative error; NaN is wrong too."""
    wrong = None if error <= tolerance else f"wrong: relative error {error:.1e}, allowed {tolerance:.0e}"
    return {"error": float(f"{error:.2g}")}, wrong


def _by_autograd(problem: Problem, forward: Callable[[], tuple[Tensor, Tensor]], inputs: list[Tensor]) -> Peer:
    def run() -> list[Tensor | None]:
        x, v = forward()
        return [x, v, *torch.autograd.grad((x, v), inputs, (problem.a, problem.b), allow_unused=True)]

    return Peer(run, forward=forward)


# --- Eager --------------------------------------------------------------------------------------------------


def eager_2t(problem: Problem, settings: Settings) -> Peer:
    """The equations as printed: two gradient evaluations per step, autograd throughout."""
    p = problem

    def forward() -> tuple[Tensor, Tensor]:
        return ade.reference.leapfrog(p.potential, p.x0, p.v0, p.step_size, p.n_steps)[:2]

    return _by_autograd(p, forward, p.inputs)


def merged_kicks(
    gradient: Callable[[Tensor], Tensor],
    x: Tensor,
    v: Tensor,
    eta: Tensor,
    n_steps: int,
    clip: Callable[[Tensor], Tensor] = lambda v: v,
) -> tuple[Tensor, Tensor]:
    """The same steps with T + 1 gradient evaluations: the last half kick of a step and the first of the next
    share theirs. clip: of v where it moves x."""
    v = v + eta / 2 * gradient(x)
    for t in range(n_steps):
        x = x + eta * clip(v)
        v = v + (eta if t < n_steps - 1 else eta / 2) * gradient(x)
    return x, v


def sample_eager_2t(problem: Problem, settings: Settings) -> Peer:
    p = problem

    @torch.no_grad()
    def run() -> tuple[Tensor, Tensor]:
        return ade.reference.leapfrog(p.potential, p.x0, p.v0, p.step_size, p.n_steps)[:2]

    return Peer(run)


def eager_t1(problem: Problem, settings: Settings) -> Peer:
    p = problem

    def gradient(x: Tensor) -> Tensor:
        return torch.autograd.grad(p.potential(x).sum(), x, create_graph=True)[0]

    def forward() -> tuple[Tensor, Tensor]:
        return merged_kicks(gradient, p.x0, p.v0, p.step_size, p.n_steps)

    return _by_autograd(p, forward, p.inputs)


def sample_eager_t1(problem: Problem, settings: Settings) -> Peer:
    p = problem

    @torch.no_grad()
    def run() -> tuple[Tensor, Tensor]:
        return merged_kicks(lambda x: ade.reference.gradient_field(p.potential, x), p.x0, p.v0, p.step_size, p.n_steps)

    return Peer(run)


# --- CUDA graphs --------------------------------------------------------------------------------------------


def _captured(make: Make) -> Make:
    """The peer's `run` as one captured CUDA graph, replayed: eager's kernels without the time to launch them."""

    def capture(problem: Problem, settings: Settings) -> Peer:
        device = problem.x0.device
        if device.type != "cuda":
            raise Skipped("CUDA graphs need a CUDA device")
        run = make(problem, settings).run
        start = time.perf_counter()
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):  # what is set up on first use must not be captured
            for _ in range(3):
                run()
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = run()

        def replay() -> Any:
            graph.replay()
            return results

        return Peer(replay, notes={"compile_s": round(time.perf_counter() - start, 1)})

    return capture


# --- torch.compile ------------------------------------------------------------------------------------------


class _TooLong(BaseException):
    """Not an Exception: the compiler catches those."""


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _compiled(problem: Problem) -> Callable[[], tuple[Tensor, Tensor]]:
    """torch.compile of the whole unroll with torch.func.grad inside; T + 1 gradient evaluations."""
    p = problem

    def gradient(x: Tensor) -> Tensor:
        return torch.func.grad(lambda y: p.potential(y).sum())(x)

    def unroll(x: Tensor, v: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
        return merged_kicks(gradient, x, v, eta, p.n_steps)

    torch.compiler.reset()
    function = torch.compile(unroll, fullgraph=True, dynamic=False)
    return lambda: function(p.x0, p.v0, p.step_size)


def within_limit(peer: Peer, settings: Settings) -> Peer:
    """The peer, after its first call: its compilation."""
    start = time.perf_counter()
    try:
        with _at_most(settings.compile_limit_s):
            peer.run()
    except _TooLong:
        raise Skipped(f"not compiled within {settings.compile_limit_s:g} s") from None
    except torch.OutOfMemoryError:
        raise
    except Exception as why:  # whatever the compiler throws is its reason
        reason = str(why).strip() or type(why).__name__
        raise Skipped(f"does not compile: {reason.splitlines()[0][:200]}") from why
    peer.notes["compile_s"] = round(time.perf_counter() - start, 1)
    return peer


def compiled(problem: Problem, settings: Settings) -> Peer:
    return within_limit(_by_autograd(problem, _compiled(problem), problem.inputs), settings)


def sample_compiled(problem: Problem, settings: Settings) -> Peer:
    return within_limit(Peer(torch.no_grad()(_compiled(problem))), settings)


# --- JAX ----------------------------------------------------------------------------------------------------


# torch's names of precisions -> JAX's.
_JAX_PRECISION = {"highest": "highest", "high": "high", "medium": "default"}


def jax_device(device: torch.device, settings: Settings) -> Any:
    """JAX's name of a device, with its matrix products set to the precision asked for.

    Raises: Skipped.
    """
    if importlib.util.find_spec("jax") is None:
        raise Skipped("jax is not installed")
    import jax

    platform = {"cuda": "gpu"}.get(device.type, device.type)
    try:
        found = jax.devices(platform)[0]
    except RuntimeError:
        raise Skipped(f"this jax has no {platform} support") from None
    jax.config.update("jax_default_matmul_precision", _JAX_PRECISION[settings.precision])
    return found


def jax_merged_kicks(
    gradient: Callable[[Any], Any],
    x: Any,
    v: Any,
    eta: Any,
    n_steps: int,
    clip: Callable[[Any], Any] = lambda v: v,
    unroll: bool = False,
) -> tuple[Any, Any]:
    """`merged_kicks` as one lax.scan over the steps."""
    import jax
    import jax.numpy as jnp

    def step(state: tuple[Any, Any], kick: Any) -> tuple[tuple[Any, Any], None]:
        x, v = state
        x = x + eta * clip(v)
        return (x, v + kick * gradient(x)), None

    kicks = jnp.broadcast_to(eta, (n_steps, *eta.shape)).at[-1].set(eta / 2)
    return jax.lax.scan(step, (x, v + eta / 2 * gradient(x)), kicks, unroll=unroll)[0]


def _jax_peer(problem: Problem, settings: Settings, backward: bool) -> Peer:
    """jax.jit of one lax.scan over the steps, or of forward and vjp of it; T + 1 gradient evaluations.

    Images are NHWC, and their scan is unrolled on the CPU: XLA's CPU convolutions are ten times slower inside
    a loop.
    """
    p = problem
    device = jax_device(p.x0.device, settings)
    import jax

    def array(x: Tensor, order: tuple[int, ...] | None = None) -> Any:
        x = x.detach().cpu()
        return jax.device_put((x if order is None else x.permute(order)).numpy(), device)

    image = p.x0.dim() == 4
    whole = image and device.platform == "cpu"
    to_jax, to_torch = ((0, 2, 3, 1), (0, 3, 1, 2)) if image else (None, None)
    weights = {n: array(w, (2, 3, 1, 0) if w.dim() == 4 else None) for n, w in p.potential.named_parameters()}
    potential = jax_potential(p.potential)

    def unroll(weights: dict[str, Any], x: Any, v: Any, eta: Any) -> tuple[Any, Any]:
        gradient = jax.grad(lambda x: potential(weights, x).sum())
        return jax_merged_kicks(gradient, x, v, eta, p.n_steps, unroll=whole)

    def forward_backward(inputs: tuple, cotangents: tuple) -> tuple:
        outputs, pull = jax.vjp(unroll, *inputs)
        return outputs, pull(cotangents)

    def forward(inputs: tuple, cotangents: tuple) -> tuple:
        return unroll(*inputs), None

    inputs = (weights, array(p.x0, to_jax), array(p.v0, to_jax), array(p.step_size))
    cotangents = (array(p.a, to_jax), array(p.b, to_jax))
    start = time.perf_counter()
    with jax.default_device(device):
        function = jax.jit(forward_backward if backward else forward).lower(inputs, cotangents).compile()
    compile_s = round(time.perf_counter() - start, 1)

    def tensor(x: Any, order: tuple[int, ...] | None) -> Tensor:
        x = torch.tensor(jax.device_get(x))
        return x if order is None else x.permute(order)

    def outputs(result: tuple) -> list[Tensor]:
        (x, v), derivatives = result
        if derivatives is None:
            return [tensor(s, to_torch) for s in (x, v)]
        dweights, dx0, dv0, dstep = derivatives
        states = [tensor(s, to_torch) for s in (x, v, dx0, dv0)]
        kernels = [
            tensor(dweights[n], (3, 2, 0, 1) if w.dim() == 4 else None) for n, w in p.potential.named_parameters()
        ]
        return [*states, tensor(dstep, None), *kernels]

    return Peer(lambda: jax.block_until_ready(function(inputs, cotangents)), outputs, notes={"compile_s": compile_s})


def jax_scan(problem: Problem, settings: Settings) -> Peer:
    return _jax_peer(problem, settings, backward=True)


def sample_jax(problem: Problem, settings: Settings) -> Peer:
    return _jax_peer(problem, settings, backward=False)


def jax_potential(potential: nn.Module) -> Callable[[dict[str, Any], Any], Any]:
    """The same layers in JAX, images as NHWC: a function of (weights by parameter name, x) -> [B]."""
    import jax
    from jax import lax

    layers = [(name, module) for name, module in potential.named_modules() if not list(module.children())]

    def apply(name: str, module: nn.Module, weights: dict[str, Any], x: Any) -> Any:
        match module:
            case nn.Linear():
                x = x.reshape(x.shape[0], -1)
                return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
            case nn.Conv2d():
                dimensions = ("NHWC", "HWIO", "NHWC")
                y = lax.conv_general_dilated(x, weights[f"{name}.weight"], (1, 1), "SAME", dimension_numbers=dimensions)
                return y + weights[f"{name}.bias"]
            case nn.AvgPool2d():
                window = (1, module.kernel_size, module.kernel_size, 1)
                return lax.reduce_window(x, 0.0, lax.add, window, window, "VALID") / module.kernel_size**2
            case nn.ReLU():
                return jax.nn.relu(x)
            case nn.LeakyReLU():
                return jax.nn.leaky_relu(x, module.negative_slope)
            case nn.SiLU():
                return jax.nn.silu(x)
            case nn.Softplus():
                return jax.nn.softplus(x)
        raise TypeError(f"jax_scan: no JAX counterpart of {type(module).__name__}")

    def f(weights: dict[str, Any], x: Any) -> Any:
        for name, module in layers:
            x = apply(name, module, weights, x)
        return x[:, 0]

    return f


# --- ade_fast -----------------------------------------------------------------------------------------------


def _layer(memory: str) -> Make:
    def make(problem: Problem, settings: Settings) -> Peer:
        p = problem
        layer = ade.Leapfrog(p.n_steps, p.step_size.detach(), memory=memory).to(p.x0.device)

        def forward() -> tuple[Tensor, Tensor]:
            return layer(p.potential, p.x0, p.v0)[:2]

        forward()
        peer = _by_autograd(p, forward, [p.x0, p.v0, layer.step_size, *p.potential.parameters()])
        peer.notes.update(plan=layer.last_plan.memory, field=layer.last_plan.field)
        return peer

    return make


def sample_layer(problem: Problem, settings: Settings) -> Peer:
    p = problem
    layer = ade.Leapfrog(p.n_steps, p.step_size.detach()).to(p.x0.device)

    @torch.no_grad()
    def run() -> tuple[Tensor, Tensor]:
        return layer(p.potential, p.x0, p.v0)[:2]

    layer(p.potential, p.x0, p.v0)  # a plan is that of a differentiable call
    return Peer(run, notes={"field": layer.last_plan.field})


PEERS: dict[str, Make] = {
    "eager-2t": eager_2t,
    "eager-t1": eager_t1,
    "compile": compiled,
    "cuda-graph": _captured(eager_t1),
    "jax": jax_scan,
    "ade-auto": _layer("auto"),
    "ade-graph": _layer("graph"),
    "ade-states": _layer("states"),
}

SAMPLERS: dict[str, Make] = {
    "eager-2t": sample_eager_2t,
    "eager-t1": sample_eager_t1,
    "compile": sample_compiled,
    "cuda-graph": _captured(sample_eager_t1),
    "jax": sample_jax,
    "ade-auto": sample_layer,
}
