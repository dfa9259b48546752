"""mlp_chain against the same chain step by step on an eager potential, its randomness, its law, its callers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import torch
from test_philox import as_seed, philox4x32
from torch import Tensor, nn

import ade_fast as ade
from ade_fast import _slow_paths, reference
from ade_fast import estimators as E
from ade_fast._mlp_chain_op import mlp_chain
from ade_fast._philox_op import draw_seed, philox_normal
from ade_fast.dynamics import base, fused_chain
from ade_fast.dynamics.base import Clip, Options
from ade_fast.dynamics.chain import metropolis_by_steps
from ade_fast.fields import Layout, fused_sum

DOUBLE = torch.float64
SEED = as_seed(0xFEDC_BA98_7654_3210)
EVERY = [
    ("relu", 2, (64, 32, 32)), ("relu", 1, (32, 32, 64)), ("relu", 3, (32, 32, 32)), ("relu", 2, (32, 64)),
    ("relu", 2, (32,)), ("leaky_relu", 2, (32, 64, 32, 32)), ("silu", 2, (32, 32)), ("tanh", 5, (32,)),
]  # fmt: skip


class Opaque(nn.Module):
    """f that no kernel knows."""

    def __init__(self, f: nn.Module) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x)


def make(activation: str = "relu", dim: int = 2, hidden: tuple[int, ...] = (64, 32, 32), dtype=DOUBLE) -> nn.Module:
    torch.manual_seed(3)
    f = ade.MLPPotential(dim, hidden, activation, input_gain=2.0)
    with torch.no_grad():
        f.layers[-1].weight.mul_(5)
    return ade.WithBase(f, 0.2, 1.4).to(dtype)


def draws(k: int, n: int, dim: int, dtype=DOUBLE) -> tuple[Tensor, Tensor, Tensor]:
    """x0, normals, uniforms."""
    generator = torch.Generator().manual_seed(1)
    shape = partial(torch.randn, generator=generator, dtype=dtype)
    return shape(n, dim), shape(k, n, dim), torch.rand(k, n, generator=generator, dtype=dtype)


def run(f: nn.Module, x: Tensor, eta: float | Tensor, n_steps: int, n: int, test: bool = True, seed=SEED, **options):
    kick, drift = base.MergedSteps("test", n_steps, Layout.of(x), torch.as_tensor(eta, dtype=x.dtype)).rows(x)
    return fused_chain.run_chain_op(fused_sum(f, x), x, seed, kick, drift, n, test, **options)


@pytest.mark.parametrize(("activation", "dim", "hidden"), EVERY, ids=str)
@pytest.mark.parametrize("clip", [None, Clip.norm(0.8), Clip.value(0.5)], ids=["", "norm", "value"])
@pytest.mark.parametrize(("eta", "n_steps"), [(0.05, 1), (0.7, 3)], ids=["near", "far"])
def test_agrees_with_the_chain_step_by_step(activation, dim, hidden, clip, eta: float, n_steps: int) -> None:
    """Few and many units change sides from point to point, over more points than sums are followed for."""
    f, (x, v, u) = make(activation, dim, hidden), draws(21, 9, dim)
    options = Options(grad_clip=clip, momentum_clip=clip and Clip.norm(2.0))
    step = torch.full((dim,), eta, dtype=DOUBLE) * torch.linspace(0.8, 1.2, dim, dtype=DOUBLE)
    with torch.no_grad():
        wanted, moved = metropolis_by_steps("t", Opaque(f), x, 21, step, n_steps, options, lambda k: (v[k], u[k]))
    clips = {"grad_clip": clip, "momentum_clip": options.momentum_clip}
    found, acceptance = run(f, x, step, n_steps, 21, normals=v, uniforms=u, **clips)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    assert torch.equal(acceptance, moved)
    assert 0 < moved.mean() <= 1 and (n_steps == 1 or clip is not None or moved.mean() < 1)


@pytest.mark.parametrize(("activation", "dim", "hidden"), EVERY, ids=str)
def test_agrees_with_langevin_of_the_reference(activation: str, dim: int, hidden: tuple[int, ...]) -> None:
    f, (x, v, _) = make(activation, dim, hidden), draws(20, 9, dim)
    std, half = torch.linspace(0.2, 0.4, dim, dtype=DOUBLE), torch.full((1, dim), 0.15, dtype=DOUBLE)
    limits = {"grad_clip": Clip.norm(1.0), "momentum_clip": Clip.value(0.5)}
    wanted = reference.langevin(f, x, 0.3, 20, v, noise_std=std, sample_range=(-0.5, 0.4), **limits)[0]
    kick = torch.cat([half, torch.zeros_like(half)])
    found, acceptance = fused_chain.run_chain_op(
        fused_sum(f, x), x, SEED, kick, torch.ones_like(half), 20, False, noise_std=std, bounds=(-0.5, 0.4), normals=v,
        **limits,
    )  # fmt: skip
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    assert acceptance.numel() == 0 and found.max() == 0.4 and found.min() >= -0.5


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE], ids=str)
def test_random_numbers_are_philoxs(dtype: torch.dtype) -> None:
    """Normals as `philox_normal` has them; uniforms by numpy, of the row's last block."""
    f, (x, _, _) = make(dtype=dtype), draws(5, 70, 2, dtype)
    normals = torch.stack([philox_normal(x, SEED, k) for k in range(5)])
    counter = np.zeros((5, 70, 4), np.uint64)
    counter[..., 0], counter[..., 1], counter[..., 3] = 0xFFFFFFFF, np.arange(70), np.arange(5)[:, None]
    words = philox4x32(counter, 0xFEDC_BA98_7654_3210)
    if dtype == DOUBLE:
        bits = (words[..., 0] << np.uint64(32)) | words[..., 1]
        u = ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    else:
        u = words[..., 0].astype(np.float32) * np.float32(2.0**-32) + np.float32(2.0**-33)
    drawn = run(f, x, 0.9, 2, 5)
    given = run(f, x, 0.9, 2, 5, normals=normals, uniforms=torch.from_numpy(u))
    assert torch.equal(drawn[1], given[1]) and 0.2 < drawn[1].mean() < 0.98
    torch.testing.assert_close(drawn[0], given[0], rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("test", [True, False])
def test_neither_threads_nor_the_batch_matter(activation: str, test: bool, threads: None) -> None:
    f, x = make(activation, 2, (64, 32, 32), torch.float32), draws(1, 300, 2, torch.float32)[0]
    results = []
    for count in (1, 2, 3, 7, 2):
        torch.set_num_threads(count)
        results.append(run(f, x, 0.4, 2, 20, test))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    assert torch.equal(run(f, x[:41], 0.4, 2, 20, test)[0], results[0][0][:41])


@pytest.mark.parametrize("instructions", ["base", "avx2", "avx512"])
def test_every_instruction_set(instructions: str, isa) -> None:
    if not isa(instructions):
        pytest.skip(f"this processor has no {instructions}")
    f, (x, v, u) = make(), draws(20, 60, 2)
    with torch.no_grad():
        eta = torch.tensor(0.3, dtype=DOUBLE)
        wanted = metropolis_by_steps("t", Opaque(f), x, 20, eta, 2, Options(), lambda k: (v[k], u[k]))
    found = run(f, x, 0.3, 2, 20, normals=v, uniforms=u)
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-10, atol=1e-10)
    assert torch.equal(found[1], wanted[1])


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_the_model_is_stationary_under_the_test_and_not_without(activation: str) -> None:
    """From exact samples of p_f, by its distribution function on a grid, with coarse steps."""
    f = make(activation, 1, (32, 32, 32))
    grid = torch.linspace(-8, 8, 40_001, dtype=DOUBLE)
    with torch.no_grad():
        p = f(grid[:, None]).softmax(0)
    n = 20_000
    u = (torch.arange(n, dtype=DOUBLE) + 0.5) / n
    x = grid[torch.searchsorted(p.cumsum(0), u).clamp(max=40_000)][:, None]
    moments = [(p * grid**k).sum() for k in (1, 2, 3)]
    # At most this far by chance: the fourth deviation of a mean of independent draws.
    bounds = [
        4 * ((p * grid ** (2 * k)).sum() - m**2).sqrt() / math.sqrt(n) for k, m in zip((1, 2, 3), moments, strict=True)
    ]
    tested, free = run(f, x, 1.7, 1, 12), run(f, x, 1.7, 1, 12, test=False)
    assert tested[1].min() > 0.3 and tested[1].max() < 0.97

    def errors(end: Tensor) -> list[float]:
        return [(end.pow(k).mean() - m).abs().item() for k, m in zip((1, 2, 3), moments, strict=True)]

    found = errors(tested[0])
    assert all(error < bound for error, bound in zip(found, bounds, strict=True)), (found, bounds)
    assert any(error > 2 * bound for error, bound in zip(errors(free[0]), bounds, strict=True))


def test_what_is_not_a_number_stays_where_it_is() -> None:
    f, (x, v, u) = make(), draws(4, 6, 2)
    x[2, 1] = math.nan
    v[1, 4, 0] = math.inf
    found, acceptance = run(f, x, 0.1, 1, 4, normals=v, uniforms=u)
    assert torch.equal(found[2].isnan(), torch.tensor([False, True]))
    assert found[[0, 1, 3, 4, 5]].isfinite().all() and acceptance.max() <= 5 / 6
    alone = run(f, x[:2], 0.1, 1, 4, normals=v[:, :2], uniforms=u[:, :2])[0]
    assert torch.equal(found[:2], alone)


def test_no_samples() -> None:
    found, acceptance = run(make(), torch.zeros(0, 2, dtype=DOUBLE), 0.1, 1, 3)
    assert found.shape == (0, 2) and acceptance.isnan().all()


def test_the_estimators_chains_and_leapfrogs_are_this_operator() -> None:
    f, x = make("silu"), draws(1, 8, 2)[0]
    seeded = partial(torch.Generator().manual_seed, 7)
    eta = torch.tensor(0.5, dtype=DOUBLE)
    leapfrog, langevin = ade.Leapfrog(3, eta, grad_clip=Clip.norm(1.0)), ade.Langevin(4, eta)
    seed = draw_seed(x.device, seeded())
    wanted = run(f, x, eta, 3, 5, seed=seed, grad_clip=Clip.norm(1.0))
    found = leapfrog.chain(f, x, 5, generator=seeded())
    assert torch.equal(found.x, wanted[0]) and torch.equal(found.acceptance, wanted[1])
    chain = E.Chain(leapfrog, 5, accept_reject=True).run(f, x, generator=seeded())
    assert torch.equal(chain.x, wanted[0]) and chain.acceptance == wanted[1].mean()
    mala = E.Chain(langevin, 2, accept_reject=True).run(f, x, generator=seeded())
    assert torch.equal(mala.x, run(f, x, eta.sqrt(), 1, 8, seed=seed)[0])
    free = E.Chain(langevin).run(f, x, generator=seeded())
    torch.testing.assert_close(free.x, langevin(f, x, generator=seeded()).x.detach(), rtol=0, atol=1e-12)


def test_step_by_step_where_the_operator_does_not_know_the_chain() -> None:
    """One step size per step, networks, another f: the layers themselves, with their own randomness."""
    f, x = make("silu"), draws(1, 8, 2)[0]
    seeded = partial(torch.Generator().manual_seed, 7)
    for layer in (
        ade.Langevin(3, torch.tensor([[0.1], [0.2], [0.1]], dtype=DOUBLE)),
        ade.Langevin(3, torch.tensor(0.1, dtype=DOUBLE), shift_v=lambda force, _: 2 * force),
        ade.Langevin(3, torch.tensor(0.1, dtype=DOUBLE), check_finite=True),
    ):
        end = E.Chain(layer).run(f, x, generator=seeded())
        torch.testing.assert_close(end.x, layer(f, x, generator=seeded()).x.detach(), rtol=0.0, atol=1e-15)
    opaque = ade.Leapfrog(2, torch.tensor(0.5, dtype=DOUBLE)).chain(Opaque(f), x, 3, generator=seeded())
    assert opaque.acceptance.shape == (3,) and not torch.equal(opaque.x, x)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"check_finite": True}, "check_finite=True"),
        ({"check_potential": True}, "check_potential=True"),
        ({"memory": "reversible"}, "memory='reversible'"),
        ({"sample_range": (-3.0, torch.tensor([3.0, 4.0], dtype=DOUBLE))}, "sample_range per dimension"),
        ({"shift_v": lambda force, _: 2 * force}, "shift_v or shift_x"),
        ({"step_size": torch.full((3, 1), 0.1, dtype=DOUBLE)}, "step_size or noise_std per step"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_chain_that_the_operator_might_have_taken_says_once_why_not(
    options: dict, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_slow_paths, "_TAKEN", {})
    x, options = draws(1, 8, 2)[0], {"step_size": torch.tensor(0.1, dtype=DOUBLE)} | options
    kind = ade.Leapfrog if options.get("memory") == "reversible" else ade.Langevin
    chain = E.Chain(kind(3, **options), accept_reject=kind is ade.Leapfrog)
    with pytest.warns(ade.SlowPathWarning, match=f"Chain: the operators that run whole chains .*{why}"):
        chain.run(make("silu"), x)
    assert any(why in said for said in ade.slow_paths())
    with warnings.catch_warnings():  # once, and not of a potential that nobody expects them to know
        warnings.simplefilter("error", ade.SlowPathWarning)
        chain.run(make("silu"), x)
        monkeypatch.setattr(_slow_paths, "_TAKEN", {})
        chain.run(Opaque(make("silu")), x)


@pytest.mark.parametrize("wrapped", [True, False], ids=["on a base", "alone"])
def test_a_chain_of_an_mlp_that_the_operators_do_not_know_says_why(wrapped: bool, monkeypatch) -> None:
    monkeypatch.setattr(_slow_paths, "_TAKEN", {})
    f, x = ade.MLPPotential(2, (33,)).to(DOUBLE), draws(1, 8, 2)[0]
    layer = ade.Leapfrog(2, torch.tensor(0.1, dtype=DOUBLE))
    with pytest.warns(ade.SlowPathWarning, match=r"Leapfrog.chain: the operators .*\(33,\) are not multiples of 32"):
        layer.chain(ade.WithBase(f, 0.0, 1.0).to(DOUBLE) if wrapped else f, x, 3)


@pytest.mark.parametrize("test", [True, False])
def test_opcheck(test: bool) -> None:
    f, (x, v, u) = make("relu", 2, (32, 32), torch.float32), draws(3, 5, 2, torch.float32)
    found = fused_sum(f, x)
    kick, drift = base.MergedSteps("t", 2, Layout.of(x), torch.tensor(0.3)).rows(x)
    weights, biases = ([t.detach() for t in tensors] for tensors in found.field.weights())
    arguments = (
        x, SEED, kick, drift, weights, biases, *found.field.spec.numbers, 3, test, 2, 0.5, 0, 0.0, -math.inf,
        math.inf, None, *found.base, *((v, u) if test else ()),
    )  # fmt: skip
    torch.library.opcheck(torch.ops.ade_fast.mlp_chain.default, arguments)


def test_there_is_no_graph() -> None:
    f, x = make(), draws(1, 5, 2)[0].requires_grad_()
    assert not any(out.requires_grad for out in run(f, x, 0.1, 1, 2))


X = torch.zeros(4, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transitions": 0}, r"transitions must be from 1 to 2\^32, got 0"),
        ({"drift": X[:0]}, "drift must have one row per step and at least one"),
        ({"kick": X[:3]}, r"kick must have one row per kick, shape \(2, 2\), got \(3, 2\)"),
        ({"seed": X[0]}, r"seed must have one entry, shape \(1,\), got \(2,\)"),
        ({"noise_std": X[0]}, "test must come without noise_std, lo and hi"),
        ({"lo": -1.0}, "test must come without noise_std, lo and hi"),
        ({"pull": X[0]}, "pull and centre must come together"),
        ({"uniforms": X[:3, 0]}, "uniforms must come with normals and test, and normals with test only with uniforms"),
        ({"normals": torch.zeros(3, 4, 2)}, "uniforms must come with normals and test"),
        ({"normals": X, "uniforms": X}, r"normals must have one batch of states per transition, shape \(3, 4, 2\)"),
        ({"x0": X.bfloat16()}, "states must be float32 or float64, got bfloat16"),
        ({"lo": 2.0, "hi": 1.0, "test": False}, "lo must not exceed hi"),
    ],
)
def test_misuse_is_named(change: dict, message: str) -> None:
    weights = [torch.zeros(32, 2), torch.zeros(1, 32)]
    given = {
        "x0": X, "seed": SEED, "kick": X[:2], "drift": X[:1], "weights": weights,
        "biases": [torch.zeros(32), torch.zeros(1)], "activation": 0, "parameter": 0.0, "precision": 3,
        "transitions": 3, "test": True, "grad_clip": 0, "grad_bound": 0.0, "momentum_clip": 0, "momentum_bound": 0.0,
        "lo": -math.inf, "hi": math.inf, "noise_std": None, "pull": None, "centre": None, "normals": None,
        "uniforms": None,
    }  # fmt: skip
    with pytest.raises(RuntimeError, match=f"mlp_chain: .*{message}"):
        mlp_chain(*(given | change).values())
