"""Diagnostics of an unroll against a plain loop; the alarm; what a run makes of them; Leapfrog.chain."""

from __future__ import annotations

import csv
import dataclasses
import math
import warnings
from collections.abc import Callable

import pytest
import torch
from cases import DOUBLE, assert_close, normal
from torch import Tensor, nn
from training_cases import TINY

import ade_fast as ade
from ade_fast import functional, plots, reference
from ade_fast.dynamics.base import Options
from ade_fast.dynamics.diagnostics import GROWTH, Alarm, Observed, Watched
from ade_fast.training import plots as training_plots

MOMENTUM_FIELDS = ("energy", "energy_error", "energy_error_max", "acceptance")


class Opaque(nn.Module):
    """A potential that no fused kernel knows."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def mlp(activation: str = "silu", dim: int = 2, gain: float = 2.0) -> ade.MLPPotential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ade.MLPPotential(dim, (32, 32), activation, input_gain=gain).to(DOUBLE)


def plain_leapfrog(potential, x: Tensor, v: Tensor, steps: Tensor, damping: float, layer: nn.Module) -> dict:
    """Figures of T damped leapfrog steps [T, D] (damping 1: leapfrog), step by step, the adjoint by autograd."""
    clip, momentum_clip = layer.options.grad_clip, layer.options.momentum_clip
    drift = steps if damping == 1 else torch.ones_like(steps)
    x, v = x.clone().requires_grad_(), v.clone().requires_grad_()
    n, states, found = len(steps), [], {}

    def note(**figures: Tensor) -> None:
        for name, value in figures.items():
            found.setdefault(name, []).append(value.detach())

    def fraction(rows: Tensor, bound: ade.Clip | None) -> Tensor:
        if bound is None:
            return torch.zeros((), dtype=DOUBLE)
        size = rows.abs() if bound.mode == "value" else rows.norm(dim=1)
        return (size > bound.bound).double().mean()

    energies = []
    for t in range(n + 1):
        x.retain_grad()
        v.retain_grad()
        states.append((x, v))
        x = x.clone()  # by which ∇f is taken: that is not to count
        force = reference.gradient_field(potential, x)
        kicked = reference.clip(force, clip)
        here = v if t == 0 else damping * v + steps[t - 1] / 2 * kicked
        energies.append((-potential(x) + here.square().sum(1) / 2).detach())
        error = energies[-1] - energies[0]
        log_det = 0.0 if t == 0 else (t + 1) * x.shape[1] * math.log(damping)
        note(
            value=potential(x).mean(), grad_norm=force.norm(dim=1).mean(), momentum_norm=here.norm(dim=1).mean(),
            energy=energies[-1].mean(), energy_error=error.mean(), energy_error_max=error.abs().max(),
            acceptance=(log_det - error).exp().clamp(max=1).mean(), grad_clipped=fraction(force, clip),
            log_det=torch.tensor(log_det, dtype=DOUBLE),
        )  # fmt: skip
        kick = (steps[t - 1] if t > 0 else 0) / 2 + (steps[t] if t < n else 0) / 2
        v = damping * v + kick * kicked
        if t < n:
            note(momentum_clipped=fraction(v, momentum_clip))
            x = x + drift[t] * reference.clip(v, momentum_clip)
            v = v.clone()  # beside x_{t+1}, which was made of it
    (potential(x) - v.square().sum(1)).sum().backward()
    norms = torch.stack([(x.grad.square().sum(1) + v.grad.square().sum(1)).sqrt() for x, v in states])
    return {name: torch.stack(values) for name, values in found.items()} | {
        "adjoint_norm": norms.mean(1), "adjoint_max": norms.amax(1),
    }  # fmt: skip


def run(layer: nn.Module, potential, x: Tensor, v: Tensor | None, **options) -> ade.Diagnostics:
    """The diagnostics of one unroll, with those of its backward pass."""
    out = layer(potential, x.clone().requires_grad_(), v, diagnostics=True, **options)
    loss = potential(out.x)
    if out.v is not None:
        loss = loss - out.v.square().flatten(2).sum((0, 2)) if out.v.dim() == 3 else loss - out.v.square().sum(1)
    loss.sum().backward()
    return layer.diagnostics


LAYERS = {
    "bare": lambda: ade.Leapfrog(4, 0.3),
    "clips by norm": lambda: ade.Leapfrog(4, 0.3, grad_clip=ade.Clip.norm(0.4), momentum_clip=ade.Clip.norm(1.2)),
    "clips by value": lambda: ade.Leapfrog(4, 0.3, grad_clip=ade.Clip.value(0.2), momentum_clip=ade.Clip.value(0.9)),
    "steps of their own": lambda: ade.Leapfrog(4, torch.tensor([[0.1, 0.2], [0.4, 0.3], [0.2, 0.5], [0.3, 0.1]])),
    "damped": lambda: ade.DampedLeapfrog(4, 0.3, 0.7, grad_clip=ade.Clip.norm(0.4)),
}


@pytest.mark.parametrize("how", ["fused", "graph", "states"])
@pytest.mark.parametrize("activation", ["silu", "relu"])
@pytest.mark.parametrize("name", LAYERS)
def test_they_are_those_of_a_plain_loop(name: str, activation: str, how: str) -> None:
    potential = ade.WithBase(mlp(activation), 0.3, 2.0).to(DOUBLE)
    if how != "fused":
        potential = ade.WithBase(Opaque(potential.potential), 0.3, 2.0).to(DOUBLE)
    layer = LAYERS[name]().to(DOUBLE)
    layer.options = dataclasses.replace(layer.options, memory="auto" if how == "fused" else how)
    x, v = normal(9, 2, seed=1), normal(9, 2, seed=2)
    steps = layer.step_size.detach().expand(4, 2)
    expected = plain_leapfrog(potential, x, v, steps, getattr(layer, "damping", 1.0), layer)
    found = run(layer, potential, x, v)
    assert (layer.last_plan.field == "mlp") is (how == "fused")
    assert len(found) == 5 and found.rows().keys() == expected.keys()
    for figure, values in expected.items():
        assert_close(getattr(found, figure), values, figure)
    assert found.adjoint_growth == found.adjoint_norm[0] / found.adjoint_norm[-1]


OTHERS = {
    "generalized": lambda: ade.GeneralizedLeapfrog(
        3, 0.3, scale_v=torch.tensor([0.1, -0.2]), scale_x=0.05, grad_clip=ade.Clip.norm(0.4)
    ),
    "tempered": lambda: ade.GeneralizedLeapfrog(3, 0.3, scale_v=torch.tensor([[0.1, 0.0], [-0.2, 0.1], [0.3, 0.2]])),
    "langevin": lambda: ade.Langevin(3, 0.2, grad_clip=ade.Clip.value(0.2), momentum_clip=ade.Clip.norm(0.4)),
    "annealed": lambda: ade.AnnealedLeapfrog(3, 0.2, grad_clip=ade.Clip.norm(0.4)),
    "deterministic": lambda: ade.DeterministicLangevin(3, 0.2),
}


@pytest.mark.parametrize("name", OTHERS)
def test_fused_and_general_way_agree(name: str) -> None:
    fused, general = OTHERS[name]().to(DOUBLE), OTHERS[name]().to(DOUBLE)
    x = normal(9, 2, seed=1)
    v = normal(9, 2, seed=2) if fused.momentum_shape((2,)) else None
    options = {"initial": (0.0, 1.0)} if name == "annealed" else {}
    found, expected = (
        run(layer, potential, x, v, **options, **_generator(name))
        for layer, potential in ((fused, mlp()), (general, Opaque(mlp())))
    )
    assert (fused.last_plan.field, general.last_plan.field) == ("mlp", "autograd")
    assert found.rows().keys() == expected.rows().keys()
    for figure, values in expected.rows().items():
        assert_close(getattr(found, figure), torch.tensor(values, dtype=DOUBLE), figure)
    conserves = "generalized" in name or name == "tempered"
    assert all((getattr(found, figure) is not None) is conserves for figure in MOMENTUM_FIELDS)
    if name in ("langevin", "annealed"):
        assert 0 < found.grad_clipped.max() < 1


def _record(
    dtype: torch.dtype, rows: int = 7, conserves: bool = True, step: str = "", **absent: None
) -> tuple[Tensor, Tensor, Observed]:
    """A record and what a program may make of it: value, gradient, `Observed`."""
    shapes = {"force": (4, rows, 3), "v": (4, rows, 3), "drifting": (3, rows, 3), "log_det": (4, rows)}
    observed = {name: normal(*shape, seed=i).to(dtype) for i, (name, shape) in enumerate(shapes.items())}
    value, gradient = normal(4, rows, seed=8).to(dtype), normal(4, rows, 2, seed=9).to(dtype)
    if step:
        observed |= {
            "v0": normal(rows, 3, seed=10).to(dtype),
            "step": normal(1 if step == "one" else 3, 3, seed=11).to(dtype),
            "damping": 0.7,
        }
    return value, gradient, Observed(**(observed | absent), conserves=conserves)


CLIPS = {"none": None, "norm": ade.Clip.norm(1.5), "value": ade.Clip.value(0.7)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "absent",
    [{}, {"log_det": None}, {"v": None, "drifting": None, "log_det": None}, {"force": None}, {"conserves": False},
     {"rows": 0}, {"step": "each"}, {"step": "one"}],
    ids=["everything", "no log_det", "value and gradient", "no force", "no energy", "no rows", "steps", "one step"],
)  # fmt: skip
@pytest.mark.parametrize("clip", CLIPS)
def test_one_operator_has_the_figures_of_torchs_own_operations(clip: str, absent: dict, dtype: torch.dtype) -> None:
    value, gradient, observed = _record(dtype, **absent)
    options = Options(CLIPS[clip], CLIPS[clip])
    watched = Watched("Leapfrog", Alarm(), options)
    found, expected = (f(value, gradient, observed) for f in (watched._figures_at_once, watched._figures_by_torch))
    assert found.keys() == expected.keys()
    for name, figure in expected.items():
        assert found[name].dtype == dtype
        tolerance = 1e-12 if dtype == DOUBLE else 1e-5
        torch.testing.assert_close(found[name], figure, rtol=tolerance, atol=tolerance, equal_nan=True, msg=name)
    if len(value[0]):  # means of nothing are NaN, which opcheck finds to differ
        *tensors, conserves = observed
        arguments = (value, gradient, *tensors, *options.clip_codes(), conserves)
        torch.library.opcheck(torch.ops.ade_fast.unroll_figures.default, arguments)


def test_what_is_not_a_number_stays_so_in_the_figures() -> None:
    value, gradient, observed = _record(DOUBLE)
    value[2, 3] = observed.v[3, 1, 0] = math.nan
    watched = Watched("Leapfrog", Alarm(), Options(ade.Clip.norm(1.0), None))
    found, expected = (f(value, gradient, observed) for f in (watched._figures_at_once, watched._figures_by_torch))
    for name, figure in expected.items():
        torch.testing.assert_close(found[name], figure, equal_nan=True, msg=name)
    assert found["energy_error_max"].isnan().tolist() == [False, False, True, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"value": torch.zeros(4, 7, dtype=torch.bfloat16)}, "value must be float32 or float64"),
     ({"gradient": torch.zeros(4, 6, 2)}, "gradient"), ({"v": torch.zeros(4, 7, 2)}, "v must"),
     ({"log_det": torch.zeros(4)}, "log_det"), ({"step": torch.zeros(3, 3)}, "v0 and step must come together"),
     ({"grad_bound": -1.0}, "grad")],
    ids=["value", "gradient", "v", "log_det", "step", "clip"],
)  # fmt: skip
def test_wrong_arguments_of_the_operator_are_refused(change: dict, message: str) -> None:
    value, gradient, observed = _record(torch.float32)
    given = {"value": value, "gradient": gradient, **observed._asdict()}
    given |= {"grad_clip": 2, "grad_bound": 1.0, "momentum_clip": 0, "momentum_bound": 0.0, "conserves": True}
    with pytest.raises(RuntimeError, match=f"unroll_figures: .*{message}"):
        torch.ops.ade_fast.unroll_figures(**(given | change))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_adjoints_figures_are_those_of_torchs_own_operations(dtype: torch.dtype) -> None:
    dx, dv = (normal(4, 7, seed=seed).abs().to(dtype) for seed in (1, 2))
    dx[3, 1] = math.nan
    for other, whole in ((dv, torch.hypot(dx, dv)), (None, dx)):
        watched = Watched("Leapfrog", Alarm(), Options())
        watched.with_momentum = other is not None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ade.ExplodingGradientWarning)
            watched.end_fused_backward(torch.stack([dx, dv], 1))
        for found, expected in zip(watched._adjoint, (whole.mean(1), whole.amax(1)), strict=True):
            torch.testing.assert_close(found, expected, equal_nan=True)
    if dtype != torch.bfloat16:
        torch.library.opcheck(torch.ops.ade_fast.adjoint_figures.default, (dv, dv.clone()))
        with pytest.raises(RuntimeError, match="adjoint_figures: other must have norm's shape"):
            torch.ops.ade_fast.adjoint_figures(dv, dv[:2])


def _generator(name: str) -> dict:
    if name not in ("langevin", "annealed"):
        return {}
    return {"generator": torch.Generator().manual_seed(3)}


def test_generalized_with_networks_ends_where_the_unroll_does() -> None:
    torch.manual_seed(0)
    net, other = nn.Linear(4, 2).to(DOUBLE), nn.Linear(2, 2).to(DOUBLE)
    layer = ade.GeneralizedLeapfrog(
        3, 0.3, scale_v=lambda g, x: 0.1 * net(torch.cat([g, x], 1)).tanh(), scale_x=lambda v: 0.1 * other(v).tanh(),
        shift_v=lambda g, x: g + 0.1 * x, grad_clip=ade.Clip.norm(0.5),
    ).to(DOUBLE)  # fmt: skip
    potential, x, v = mlp(), normal(6, 2, seed=1), normal(6, 2, seed=2)
    ends = []
    for n in (1, 2, 3):
        layer.n_steps = n
        with torch.no_grad():
            out = layer(potential, x, v, diagnostics=True)
        assert layer.diagnostics.adjoint_norm is None
        energy = -potential(out.x) + out.v.square().sum(1) / 2
        assert_close(layer.diagnostics.energy[-1], energy.detach().mean(), "energy")
        assert_close(layer.diagnostics.log_det[-1], out.log_det.mean(), "log_det")
        ends.append(layer.diagnostics)
    for figure in ("energy", "log_det", "acceptance"):  # a longer unroll begins as a shorter one
        assert_close(getattr(ends[2], figure)[:3], getattr(ends[1], figure), figure)


@pytest.mark.parametrize("opaque", [False, True], ids=["fused", "general"])
@pytest.mark.parametrize("activation", ["silu", "relu"])
def test_outputs_and_gradients_are_the_same_bit_for_bit(activation: str, opaque: bool) -> None:
    def all_of(diagnostics: bool) -> list[Tensor]:
        potential = ade.WithBase(Opaque(mlp(activation)) if opaque else mlp(activation), 0.0, 3.0).float()
        layer = ade.Leapfrog(3, 0.2, grad_clip=ade.Clip.norm(0.5))
        x, v = (normal(40, 2, seed=seed).float().requires_grad_() for seed in (1, 2))
        out = layer(potential, x, v, diagnostics=diagnostics)
        (potential(out.x) + out.v.square().sum(1)).sum().backward()
        assert (layer.diagnostics is not None) is diagnostics
        return [out.x, out.v, x.grad, v.grad, layer.step_size.grad, *(p.grad for p in potential.parameters())]

    assert all(torch.equal(a, b) for a, b in zip(all_of(False), all_of(True), strict=True))


def test_nothing_is_kept_unless_asked_for() -> None:
    layer = ade.Leapfrog(3, 0.2).to(DOUBLE)
    layer(mlp(), normal(4, 2, seed=1))
    assert layer.diagnostics is None
    with pytest.raises(TypeError, match="Leapfrog: diagnostics must be True or False, got 1"):
        layer(mlp(), normal(4, 2, seed=1), diagnostics=1)


def test_they_do_not_depend_on_the_number_of_threads() -> None:
    potential, x, v = mlp(), normal(700, 2, seed=1), normal(700, 2, seed=2)
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(run(ade.Leapfrog(3, 0.2).to(DOUBLE), potential, x, v).rows())
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]


@pytest.mark.parametrize("opaque", [False, True], ids=["fused", "general"])
def test_the_alarm_fires_on_an_exploding_unroll_once_and_on_no_healthy_one(opaque: bool) -> None:
    x, v = normal(20, 2, seed=1), normal(20, 2, seed=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for potential in (mlp(), ade.WithBase(mlp("relu"), 0.0, 1.0).to(DOUBLE)):
            healthy = run(ade.Leapfrog(30, 0.2).to(DOUBLE), Opaque(potential) if opaque else potential, x, v)
            assert healthy.adjoint_growth < GROWTH / 20
    steep = ade.WithBase(mlp(), 0.0, 0.05).to(DOUBLE)  # η / std = 4, beyond leapfrog's stability at 2
    layer = ade.Leapfrog(6, 0.2).to(DOUBLE)
    with pytest.warns(ade.ExplodingGradientWarning, match=r"Leapfrog: the adjoint grows .* times on its way back"):
        found = run(layer, Opaque(steep) if opaque else steep, x, v)
    assert found.adjoint_growth > GROWTH
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(layer, steep, x, v)  # once is enough


def test_the_alarm_fires_where_the_adjoint_is_not_finite() -> None:
    layer = ade.Leapfrog(2, 0.2).to(DOUBLE)
    out = layer(mlp(), normal(3, 2, seed=1).requires_grad_(), normal(3, 2, seed=2), diagnostics=True)
    with pytest.warns(ade.ExplodingGradientWarning, match="the adjoint is not finite"):
        (out.x * math.inf).sum().backward()


def test_an_unroll_on_autograds_own_graph_has_those_of_the_forward_pass() -> None:
    potential, layers = mlp(), [ade.Leapfrog(3, 0.2).to(DOUBLE) for _ in range(2)]
    factor = torch.ones((), dtype=DOUBLE, requires_grad=True).exp() / math.e
    x, v = normal(5, 2, seed=1), normal(5, 2, seed=2)
    for layer, f in zip(layers, (lambda x: factor * potential(x), potential), strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ade.SlowPathWarning)
            layer(f, x, v, diagnostics=True).x.sum().backward()
    found, expected = (layer.diagnostics for layer in layers)
    assert found.adjoint_norm is None and expected.adjoint_norm is not None
    for figure in ("value", "grad_norm", "momentum_norm", "acceptance"):
        assert_close(getattr(found, figure), getattr(expected, figure), figure)


def test_where_there_are_no_steps_they_are_refused() -> None:
    layer = ade.ContinuousLangevin(0.1)
    with pytest.raises(ValueError, match="ContinuousLangevin: diagnostics must be False: there are no steps"):
        layer(mlp(), normal(3, 2, seed=1), diagnostics=True)
    with pytest.raises(ValueError, match="configuration: diagnostics must be 0 with the continuous dynamics"):
        dataclasses.replace(TINY, dynamics="continuous", diagnostics=2)


def test_sampler_and_sequence_pass_them_on() -> None:
    layers = ade.Sequential(ade.Leapfrog(2, 0.1), ade.Leapfrog(3, 0.1)).to(DOUBLE)
    layers(mlp(), normal(3, 2, seed=1), diagnostics=True)
    assert [len(found) for found in layers.diagnostics] == [3, 4]
    sampler = ade.DualSampler(ade.initial.Gaussian(2), ade.Leapfrog(2, 0.1))
    sampler.sample(mlp().float(), 5)
    assert sampler.dynamics.diagnostics is None
    sampler.sample(mlp().float(), 5, diagnostics=True)
    assert len(sampler.dynamics.diagnostics) == 3


def test_a_run_writes_them_down_and_draws_them(tmp_path, monkeypatch) -> None:
    for name in ("save_learned", "save_convergence"):
        monkeypatch.setattr(training_plots, name, lambda *_, **__: None)
    settings = dataclasses.replace(TINY, diagnostics=3, log_every=4, validate_every=8, validate_by="mmd2")
    ade.training.train(settings, tmp_path, progress=False)
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = {int(row["update"]): row for row in csv.DictReader(file)}
    assert list(rows) == [3, 4, 6, 8]
    assert [update for update, row in rows.items() if row["unroll_acceptance"]] == [3, 6]
    assert 0 < float(rows[3]["unroll_acceptance"]) <= 1 and float(rows[3]["unroll_adjoint_growth"]) > 0
    assert (tmp_path / "diagnostics.png").read_bytes()[:4] == b"\x89PNG"
    plain = ade.training.Trainer(dataclasses.replace(settings, diagnostics=0))
    losses = [plain.step()["loss"] for _ in range(4)]  # the same run
    assert [float(rows[update]["loss"]) for update in (3, 4)] == pytest.approx(losses[2:], rel=1e-5)


def test_pictures() -> None:
    from matplotlib.figure import Figure

    layer = ade.Leapfrog(3, 0.2).to(DOUBLE)
    found = run(layer, mlp(), normal(5, 2, seed=1), normal(5, 2, seed=2))
    ax = plots.diagnostics(found, Figure().subplots())
    assert ax.lines[0].get_ydata().tolist() == found.energy_error.tolist()
    assert len(plots.unroll(found).axes) == 4
    plain = ade.DeterministicLangevin(3, 0.2).to(DOUBLE)
    with torch.no_grad():
        plain(mlp(), normal(5, 2, seed=1), diagnostics=True)
    assert [ax.get_title() for ax in plots.unroll(plain.diagnostics).axes] == [
        "acceptance and clipped fractions", "norms",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="there is no energy in these diagnostics of DeterministicLangevin"):
        plots.diagnostics(plain.diagnostics)
    with pytest.raises(ValueError, match="panel must be one of energy, acceptance, norms, adjoint, got 'x'"):
        plots.diagnostics(found, panel="x")
    with pytest.raises(TypeError, match=r"diagnostics must be those of a dynamics .* got NoneType"):
        plots.diagnostics(None)


@pytest.mark.parametrize("opaque", [False, True], ids=["fused", "general"])
def test_a_chain_leaves_its_target_as_it_is(opaque: bool) -> None:
    """Exact samples stay exact; ten thousand of them would show a bias of 0.03 in the mean square, three deviations."""
    target = ade.GaussianPotential(1).to(DOUBLE)  # N(0, 1)
    potential = Opaque(target) if opaque else target
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(10_000, 1, dtype=DOUBLE, generator=generator)
    layer = ade.Leapfrog(2, 1.3, grad_clip=ade.Clip.value(1.0)).to(DOUBLE)  # coarse, and no gradient of f
    found = layer.chain(potential, x, 8, generator=generator)
    assert abs(found.x.square().mean() - 1) < 0.045 and abs(found.x.mean()) < 0.03
    assert found.acceptance.shape == (8,) and found.acceptance.min() > 0.3 and found.acceptance.max() < 0.95
    with torch.no_grad():
        uncorrected = layer(potential, x, generator=generator).x
    assert abs(uncorrected.square().mean() - 1) > 0.1


def test_a_chain_moves_to_its_target_and_has_no_density() -> None:
    potential = ade.WithBase(mlp("relu"), 1.0, 0.5).to(DOUBLE)
    found = ade.Leapfrog(5, 0.2).to(DOUBLE).chain(potential, normal(300, 2, seed=1) - 4, 20)
    assert abs(found.x.mean() - 1) < 0.3 and found.acceptance[-5:].mean() > 0.8
    assert not found.x.requires_grad
    for name in ("log_q", "log_det"):
        with pytest.raises(RuntimeError, match=r"Leapfrog\.chain: there is no log_q: .* Call the layer itself"):
            getattr(found, name)


@pytest.mark.parametrize(
    ("layer", "x", "n", "error", "message"),
    [
        (ade.Leapfrog(2, 0.1), torch.zeros(3, 2, requires_grad=True), 2, ValueError, "x0 must not require grad"),
        (ade.Leapfrog(2, 0.1, sample_range=(-1, 1)), torch.zeros(3, 2), 2, ValueError, "sample_range must be None"),
        (ade.Leapfrog(2, torch.tensor([[0.1, 0.1], [0.2, 0.1]])), torch.zeros(3, 2), 2, ValueError, "step_size must"),
        (ade.Leapfrog(2, 0.1), torch.zeros(3, 2), 0, ValueError, "n_transitions must be at least 1, got 0"),
        (ade.Leapfrog(2, 0.1), torch.zeros(3, 2), 1.5, TypeError, "n_transitions must be an integer, got float"),
    ],
)
def test_what_a_chain_refuses(layer, x, n, error, message: str) -> None:
    with pytest.raises(error, match=rf"Leapfrog\.chain: {message}"):
        layer.chain(mlp().float(), x, n)


# ------------------------------------------------------------------------------------------------- functional forms

CLIP = ade.Clip.norm(0.6)
_FORMS: dict[str, tuple[nn.Module, Callable]] = {
    "leapfrog": (ade.Leapfrog(3, 0.125, grad_clip=CLIP), lambda *a, **k: functional.leapfrog(*a, None, 0.125, 3, **k)),
    "damped_leapfrog": (
        ade.DampedLeapfrog(3, 0.125, 0.5, grad_clip=CLIP),
        lambda *a, **k: functional.damped_leapfrog(*a, None, 0.125, 3, 0.5, **k),
    ),
    "generalized_leapfrog": (
        ade.GeneralizedLeapfrog(3, 0.125, grad_clip=CLIP),
        lambda *a, **k: functional.generalized_leapfrog(*a, None, 0.125, 3, **k),
    ),
    "langevin": (ade.Langevin(3, 0.125, grad_clip=CLIP), lambda *a, **k: functional.langevin(*a, 0.125, 3, **k)),
    "deterministic_langevin": (
        ade.DeterministicLangevin(3, 0.125),
        lambda *a, **k: functional.deterministic_langevin(*a, 0.125, 3, **k),
    ),
}


@pytest.mark.parametrize("name", _FORMS)
def test_functional_forms_have_those_of_the_layers(name: str) -> None:
    layer, form = _FORMS[name]
    layer, f = layer.double(), mlp().double()
    x = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    options = {"grad_clip": CLIP} if name != "deterministic_langevin" else {}
    watch = functional.Watch()
    assert watch.diagnostics is None
    for call in (
        lambda **k: layer(f, x.requires_grad_(), diagnostics=True, **k),
        lambda **k: form(f, x.requires_grad_(), diagnostics=watch, **options, **k),
    ):
        drawn = {} if name == "deterministic_langevin" else {"generator": torch.Generator().manual_seed(2)}
        call(**drawn).x.square().sum().backward()
    found = [layer.diagnostics.rows(), watch.diagnostics.rows()]
    assert found[0] == found[1] and "adjoint_norm" in found[0]


def test_a_functional_form_takes_a_watch_alone() -> None:
    with pytest.raises(TypeError, match=r"leapfrog: diagnostics must be None or an ade.functional.Watch, got bool"):
        functional.leapfrog(mlp(), torch.zeros(2, 2), None, 0.125, 3, diagnostics=True)
    with pytest.raises(TypeError, match="continuous_langevin: unknown option 'diagnostics'"):
        functional.continuous_langevin(mlp(), torch.zeros(2, 2), diagnostics=functional.Watch())
