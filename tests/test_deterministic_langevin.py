"""Gradient steps and their log-determinants: against the reference, dense Jacobians, closed forms; inside ADE."""

import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import DOUBLE, POTENTIALS, assert_close, covering, make_potential, mlp, normal, row_id
from density_cases import DIM, gaussian
from torch import Tensor, nn

import ade_fast as ade
from ade_fast import metrics, reference, weights
from ade_fast.dynamics import log_det as expansions

EVENT = (3,)
MODES = ("exact", "taylor", "chebyshev", "laplacian")
# Of order 4: for the expansions agreement with the reference is one of truncated sums.
BOUND = {"taylor": {"order": 4, "spectral_bound": 4.0}, "chebyshev": {"order": 4, "spectral_bound": 4.0}}


def signs(*shape: int, seed: int = 3) -> Tensor:
    return torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed)).to(DOUBLE) * 2 - 1


def all_signs(dim: int) -> Tensor:
    """Every probe there is, [2^D, D]: their mean is the expectation."""
    return torch.tensor(list(itertools.product((-1.0, 1.0), repeat=dim)), dtype=DOUBLE)


def steps(form: str, event: tuple[int, ...], n_steps: int) -> Tensor:
    """Step sizes that keep b below 1 for the bound above."""
    size = torch.Size(event).numel()
    per_dim = torch.linspace(0.05, 0.15, size, dtype=DOUBLE).reshape(event)
    per_step = torch.linspace(0.6, 1.2, n_steps, dtype=DOUBLE).reshape(n_steps, *(1,) * len(event))
    return {
        "number": torch.tensor(0.1, dtype=DOUBLE),
        "per_dim": per_dim,
        "per_step": 0.1 * per_step,
        "per_step_per_dim": per_dim * per_step,
    }[form]


def gradients(outputs: tuple[Tensor, ...], wanted: list[Tensor]) -> list[Tensor | None]:
    """Gradients of a fixed random functional of the outputs."""
    total = sum((out * normal(*out.shape, seed=7 + i)).sum() for i, out in enumerate(outputs))
    return list(torch.autograd.grad(total, wanted, allow_unused=True))


# --- Against the reference ----------------------------------------------------------------------------------

ROWS = covering(
    {
        "name": ["silu", "spectral_silu", "quadratic"],
        "mode": list(MODES),
        "memory": ["graph", "states", "auto"],
        "gradient": ["full", "truncated", "stopped", "none"],
        "step": ["number", "per_dim", "per_step", "per_step_per_dim"],
        "n_steps": [1, 4],
    }
)


@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_layer_is_the_reference(row: dict[str, Any]) -> None:
    """Values, and gradients of both outputs with respect to x0, step sizes and every parameter of f."""
    potential, mode, n_steps = make_potential(row["name"]).eval(), row["mode"], row["n_steps"]
    x0 = normal(5, *EVENT, seed=1).requires_grad_()
    options = BOUND.get(mode, {})
    probes = signs(2, n_steps, 5, *EVENT) if options else None
    layer = ade.DeterministicLangevin(
        n_steps, steps(row["step"], EVENT, n_steps), log_det=mode, memory=row["memory"], gradient=row["gradient"],
        n_probes=2, **options,
    )  # fmt: skip
    x, v, log_det = layer(potential, x0, probes=probes)
    expected = reference.deterministic_langevin(
        potential, x0, layer.step_size, n_steps, log_det=mode, gradient=row["gradient"], probes=probes, **options
    )
    assert v is None and log_det.detach().abs().min() > 1e-6
    assert_close(x.detach(), expected[0].detach(), "x", 1e-12)
    assert_close(log_det.detach(), expected[1].detach(), "log_det", 1e-12)
    if row["gradient"] == "none":
        assert not x.requires_grad and not log_det.requires_grad
        return
    names = ["x0", "step_size", *(name for name, _ in potential.named_parameters())]
    wanted = [x0, layer.step_size, *potential.parameters()]
    actual, right = gradients((x, log_det), wanted), gradients(expected, wanted)
    for name, a, e in zip(names, actual, right, strict=True):
        assert_close(a, e, name, 1e-10)
    if row["gradient"] != "full":
        assert actual[2:] == [None] * len(actual[2:])


@pytest.mark.parametrize("mode", MODES)
def test_functional_form_is_the_layer(mode: str) -> None:
    potential, x0, probes = make_potential("silu"), normal(4, *EVENT, seed=1), signs(1, 3, 4, *EVENT)
    probes = probes if mode in BOUND else None
    layer = ade.DeterministicLangevin(3, steps("per_dim", EVENT, 3), log_det=mode, **BOUND.get(mode, {}))
    expected = layer(potential, x0, probes=probes)
    actual = ade.functional.deterministic_langevin(
        potential, x0, layer.step_size, 3, log_det=mode, probes=probes, **BOUND.get(mode, {})
    )
    assert torch.equal(actual.x, expected.x) and torch.equal(actual.log_det, expected.log_det) and actual.v is None


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("base", [False, True])
@pytest.mark.parametrize("n_steps", [1, 4])
def test_the_fused_unroll_is_the_reference(activation: str, base: bool, n_steps: int) -> None:
    potential = ade.MLPPotential(3, (32, 32), activation).double()
    f = ade.WithBase(potential, 0.3, 2.0) if base else potential
    x0 = normal(5, *EVENT, seed=1).requires_grad_()
    layer = ade.DeterministicLangevin(n_steps, steps("per_step_per_dim", EVENT, n_steps) * 4)
    out = layer(f, x0)
    assert (layer.last_plan.field == "mlp") is (n_steps > 1)
    expected = reference.deterministic_langevin(f, x0, layer.step_size, n_steps)
    wanted = [x0, layer.step_size, *f.parameters()]
    for name, a, e in zip(("x", "log_det"), (out.x, out.log_det), expected, strict=True):
        assert_close(a.detach(), e.detach(), name, 1e-12)
    for a, e in zip(gradients((out.x, out.log_det), wanted), gradients(expected, wanted), strict=True):
        assert_close(a, e, "gradient", 1e-10)


# --- Finite differences, dense Jacobians --------------------------------------------------------------------


@pytest.mark.parametrize("memory", ["graph", "states"])
@pytest.mark.parametrize(
    ("mode", "bound"), [*((mode, "given") for mode in MODES), *((mode, "estimated") for mode in BOUND)]
)
def test_gradcheck(mode: str, memory: str, bound: str) -> None:
    """All outputs with respect to x0, step sizes and f's parameters; with its own bound, at an order that has
    converged: the bound counts as a constant."""
    torch.manual_seed(3)
    potential = mlp((3, 4, 1), nn.SiLU).double()
    options = {"order": 12} if bound == "estimated" else BOUND.get(mode, {})
    layer = ade.DeterministicLangevin(2, steps("per_step", EVENT, 2), log_det=mode, memory=memory, **options)
    probes = signs(1, 2, 2, *EVENT) if mode in BOUND else None
    x0 = normal(2, *EVENT, seed=1).requires_grad_()

    def run(x0: Tensor, *moved_in_place: Tensor) -> tuple[Tensor, Tensor]:
        out = layer(potential, x0, probes=probes, generator=torch.Generator().manual_seed(0))
        return out.x, out.log_det

    inputs = (x0, *layer.parameters(), *potential.parameters())
    assert torch.autograd.gradcheck(run, inputs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["silu", "spectral_silu", "quadratic", "image"])
@pytest.mark.parametrize("step", ["number", "per_step_per_dim"])
def test_log_det_is_that_of_the_dense_jacobian(name: str, step: str) -> None:
    event = (2, 2, 2) if name == "image" else EVENT
    potential = _image_potential() if name == "image" else make_potential(name).eval()
    x0 = normal(4, *event, seed=1)
    layer = ade.DeterministicLangevin(3, 4 * steps(step, event, 3))
    found = layer(potential, x0).log_det.detach()
    for i in range(len(x0)):
        jacobian = torch.autograd.functional.jacobian(lambda x: layer(potential, x[None]).x[0], x0[i])
        sign, wanted = torch.linalg.slogdet(jacobian.reshape(x0[i].numel(), -1))
        assert sign == 1 and wanted.abs() > 1e-3
        assert found[i].item() == pytest.approx(wanted.item(), abs=1e-12)


def _image_potential() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(2, 3, 2, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(27, 1)).double()


def test_channels_last_images() -> None:
    potential = _image_potential()
    x0, probes = normal(4, 2, 2, 2, seed=1), signs(2, 3, 4, 2, 2, 2)
    layer = ade.DeterministicLangevin(
        3, steps("per_dim", (2, 2, 2), 3), log_det="chebyshev", n_probes=2, spectral_bound=4.0
    )
    plain = layer(potential, x0, probes=probes)
    last = layer(potential, x0.to(memory_format=torch.channels_last), probes=probes)
    assert last.x.is_contiguous(memory_format=torch.channels_last) and not last.x.is_contiguous()
    assert_close(last.x.detach(), plain.x.detach(), "x", 1e-12)
    assert_close(last.log_det.detach(), plain.log_det.detach(), "log_det", 1e-12)


# --- The expansions themselves ------------------------------------------------------------------------------


def symmetric(eigenvalues: Tensor, seed: int = 0) -> Tensor:
    """[N, D] -> [N, D, D] with these eigenvalues."""
    q, _ = torch.linalg.qr(normal(*eigenvalues.shape, eigenvalues.shape[-1], seed=seed))
    return q @ torch.diag_embed(eigenvalues) @ q.mT


def expected_value(expansion: Callable, a: Tensor, bound: Tensor, order: int) -> Tensor:
    """The mean over every probe, [N]."""
    probes = all_signs(a.shape[1])
    return sum(
        expansion(lambda u: torch.einsum("nij,nj->ni", a, u), z.expand(len(a), -1), bound, order) for z in probes
    ) / len(probes)


@pytest.mark.parametrize("name", ["taylor", "chebyshev"])
@pytest.mark.parametrize("b", [0.2, 0.6, 0.9])
def test_expansions_converge_at_their_rates(name: str, b: float) -> None:
    """The error per order falls by the predicted factor, with eigenvalues at the bound on either side."""
    a = symmetric(torch.tensor([[-b, 0.3 * b, -0.5 * b, b]], dtype=DOUBLE))
    bound, truth = torch.tensor([b], dtype=DOUBLE), torch.linalg.slogdet(torch.eye(4, dtype=DOUBLE) + a).logabsdet
    errors = {n: abs((expected_value(getattr(expansions, name), a, bound, n) - truth).item()) for n in range(2, 17)}
    for order, error in errors.items():
        if name == "taylor":  # the tail of Σ cⁱ/i for the worst of four eigenvalues c of C, all of one sign
            rate = 2 * b / (1 + b)
            tail = -math.log1p(-rate) - sum(rate**i / i for i in range(1, order + 1))
            assert tail - 1e-12 <= error <= 4 * tail + 1e-12
        else:
            rate = 1 / (1 / b + math.sqrt(1 / b**2 - 1))
            assert error <= 16 * rate ** (order + 1) / (1 - rate) + 1e-13
    if name == "chebyshev":
        fell = math.log(errors[3] / errors[11]) / 8
        assert fell == pytest.approx(-math.log(rate), rel=0.25) or errors[11] < 1e-10  # where rounding is what is left


@pytest.mark.parametrize("name", ["taylor", "chebyshev"])
def test_expansions_are_the_references(name: str) -> None:
    """Unbiased: the mean over all probes is the sum of the traces themselves; and each probe's own value."""
    a = symmetric(torch.linspace(-0.5, 0.7, 12, dtype=DOUBLE).reshape(3, 4))
    bound = torch.tensor([0.75, 0.8, 1.4], dtype=DOUBLE)
    written = getattr(reference, f"{name}_log_det")
    for order in (1, 2, 7):
        found = expected_value(getattr(expansions, name), a, bound, order)
        assert_close(found, written(a, bound, order), "expectation", 1e-12)
        z = signs(3, 4)
        one = getattr(expansions, name)(lambda u: torch.einsum("nij,nj->ni", a, u), z, bound, order)
        assert_close(one, written(a, bound, order, z.unsqueeze(0)), "one probe", 1e-12)
        assert (one - found).abs().max() > 1e-4


@pytest.mark.parametrize("name", ["taylor", "chebyshev"])
def test_expansions_converge_beyond_a_bound_of_one(name: str) -> None:
    """Steep upwards is no obstacle while no eigenvalue is below -0.99."""
    a = symmetric(torch.tensor([[-0.6, 0.2, 1.1, 1.5]], dtype=DOUBLE))
    bound, truth = torch.tensor([1.5], dtype=DOUBLE), torch.linalg.slogdet(torch.eye(4, dtype=DOUBLE) + a).logabsdet
    few, many = (abs(expected_value(getattr(expansions, name), a, bound, n).item() - truth.item()) for n in (10, 60))
    assert many < 1e-2 * few and many < 2e-3


@pytest.mark.parametrize("mode", ["taylor", "chebyshev"])
def test_the_layers_estimate_is_unbiased(mode: str) -> None:
    """Over all probes at once: value and gradient of what the reference finds with the traces themselves."""
    potential, layer_options = make_potential("silu"), {"log_det": mode, **BOUND[mode]}
    probes = all_signs(3)[:, None, None, :].expand(8, 2, 4, 3)
    layer = ade.DeterministicLangevin(2, steps("per_dim", EVENT, 2), n_probes=8, **layer_options)
    x0 = normal(4, *EVENT, seed=1).requires_grad_()
    actual = layer(potential, x0, probes=probes).log_det
    expected = reference.deterministic_langevin(potential, x0, layer.step_size, 2, **layer_options)[1]
    assert_close(actual.detach(), expected.detach(), "log_det", 1e-12)
    wanted = [x0, layer.step_size, *potential.parameters()]
    for a, e in zip(gradients((actual,), wanted), gradients((expected,), wanted), strict=True):
        assert_close(a, e, "gradient", 1e-10)


def test_power_iteration_bounds_the_spectral_radius() -> None:
    """Above the radius of diag(η) H, and by no more than a fifth, for well separated and for crowded spectra."""
    n, dim = 500, 6
    spread = torch.linspace(-1, 1, n * dim, dtype=DOUBLE)[torch.randperm(n * dim)].reshape(n, dim)
    for eta in (torch.full((n, dim), 0.3, dtype=DOUBLE), 0.05 + 0.5 * torch.rand(n, dim, dtype=DOUBLE)):
        h = symmetric(spread)
        product = lambda u, h=h, eta=eta: eta * torch.einsum("nij,nj->ni", h, u)  # noqa: E731
        bound = expansions.power_iteration(product, normal(n, dim, seed=1), eta)
        root = eta.sqrt()
        radius = torch.linalg.eigvalsh(root[:, :, None] * h * root[:, None, :]).abs().amax(1)
        assert (bound <= 1.2 * radius * (1 + 1e-12)).all()
        assert ((bound >= radius).double().mean() > 0.98) and (bound > 0.8 * radius).all()
    zero = expansions.power_iteration(torch.zeros_like, normal(3, dim, seed=1), torch.ones(3, dim, dtype=DOUBLE))
    assert torch.equal(zero, torch.zeros(3, dtype=DOUBLE))


@pytest.mark.parametrize("mode", ["taylor", "chebyshev"])
def test_with_its_own_bound_a_high_order_is_exact(mode: str) -> None:
    """On a diagonal Hessian probes have no variance."""
    potential, x0 = make_potential("quadratic"), normal(5, *EVENT, seed=1)
    truth = ade.DeterministicLangevin(3, 0.2).double()(potential, x0).log_det
    found = ade.DeterministicLangevin(3, 0.2, log_det=mode, order=60).double()(potential, x0).log_det
    assert truth.detach().abs().min() > 0.1
    assert_close(found.detach(), truth.detach(), "log_det", 1e-8)


def test_laplacian_is_the_first_order() -> None:
    potential, x0 = make_potential("silu"), normal(5, *EVENT, seed=1)
    errors = []
    for eta in (0.02, 0.01):
        exact, first = (
            ade.DeterministicLangevin(1, torch.tensor(eta, dtype=DOUBLE), log_det=mode)(potential, x0).log_det
            for mode in ("exact", "laplacian")
        )
        errors.append((exact - first).abs().max().item())
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.05)


def test_draws_are_reproducible_and_leave_the_global_generator_alone() -> None:
    potential, x0 = make_potential("silu"), normal(4, *EVENT, seed=1)
    layer = ade.DeterministicLangevin(3, steps("number", EVENT, 3), log_det="taylor")
    before = torch.random.get_rng_state()
    first, again, other = (
        layer(potential, x0, generator=torch.Generator().manual_seed(seed)).log_det for seed in (0, 0, 1)
    )
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(first, again) and not torch.equal(first, other)
    exact = ade.DeterministicLangevin(3, steps("number", EVENT, 3))
    assert torch.equal(exact(potential, x0).log_det, exact(potential, x0).log_det)


# --- Piecewise-linear potentials ----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["relu", "leaky_cnn", "spectral_relu", "fused"])
@pytest.mark.parametrize("base", [False, True])
def test_piecewise_linear_potentials_have_the_bases_log_det(name: str, mode: str, base: bool) -> None:
    """0 exactly, or (with a Gaussian beside) the closed form, under every mode; gradients those of the reference."""
    event = EVENT if name == "fused" else POTENTIALS[name].event
    potential = ade.MLPPotential(3, (32,)).double() if name == "fused" else make_potential(name).eval()
    f = ade.WithBase(potential, 0.2, 1.5) if base else potential
    x0 = normal(4, *event, seed=1).requires_grad_()
    layer = ade.DeterministicLangevin(3, steps("per_step", event, 3), log_det=mode)
    with pytest.warns(UserWarning, match=r"potential is piecewise linear: .* jumps where f bends"):
        out = layer(f, x0)
    assert layer.last_plan.piecewise_linear
    size = torch.Size(event).numel()
    per_step = torch.log1p(-layer.step_size / 1.5**2).sum() * size if base else torch.zeros((), dtype=DOUBLE)
    assert_close(out.log_det.detach(), per_step.detach().expand(4), "log_det", 1e-12)
    x, log_det = reference.deterministic_langevin(f, x0, layer.step_size, 3)
    wanted = [x0, layer.step_size, *potential.parameters()]
    for a, e in zip(gradients((out.x, out.log_det), wanted), gradients((x, log_det), wanted), strict=True):
        assert_close(a, e, "gradient", 1e-10)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [nn.PReLU, nn.Hardtanh])
def test_potentials_of_other_kinked_functions_say_so_too(kind: Callable[[], nn.Module], mode: str) -> None:
    """By their second derivatives, which are 0."""
    potential = nn.Sequential(nn.Linear(3, 8), kind(), nn.Linear(8, 1)).double()
    layer = ade.DeterministicLangevin(3, torch.tensor(0.1, dtype=DOUBLE), log_det=mode)
    with pytest.warns(UserWarning, match=r"potential is piecewise linear: .* jumps where f bends"):
        out = layer(potential, normal(4, 3, seed=1).requires_grad_())
    assert out.log_det.abs().max() < 1e-15
    out.log_det.sum().backward()


def test_an_affine_potential_has_no_kinks() -> None:
    layer = ade.DeterministicLangevin(3, torch.tensor(0.5, dtype=DOUBLE))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = layer(lambda x: 2 * x.sum(1), torch.zeros(4, 3, dtype=DOUBLE))
    assert torch.equal(out.x, torch.full((4, 3), 3.0, dtype=DOUBLE))
    assert torch.equal(out.log_det, torch.zeros(4, dtype=DOUBLE))


class Bending(nn.Module):
    """Linear left of 0, quadratic right of it, by control flow on the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(1.0, dtype=DOUBLE))

    def forward(self, x: Tensor) -> Tensor:
        return (self.slope * x).sum(1) if bool((x < 0).all()) else (self.slope * x - 0.5 * x.square()).sum(1)


def test_a_potential_that_bends_at_a_later_step_has_its_log_det() -> None:
    potential, x0 = Bending(), torch.full((2, 2), -0.3, dtype=DOUBLE, requires_grad=True)
    layer = ade.DeterministicLangevin(3, torch.tensor(0.2, dtype=DOUBLE))
    out = layer(potential, x0)
    x, log_det = reference.deterministic_langevin(potential, x0, layer.step_size, 3)
    assert_close(out.log_det.detach(), log_det.detach(), "log_det", 1e-12)
    assert log_det.detach()[0] == pytest.approx(2 * math.log(0.8))
    wanted = [x0, layer.step_size, potential.slope]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ade.SlowPathWarning)
        actual = gradients((out.x, out.log_det), wanted)
    for a, e in zip(actual, gradients((x, log_det), wanted), strict=True):
        assert_close(a, e, "gradient", 1e-10)


# --- Where a step is no one-to-one map ----------------------------------------------------------------------


def test_folding_steps_are_warned_of() -> None:
    potential, x0 = make_potential("quadratic"), normal(4, *EVENT, seed=1)  # H is about -1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ade.DeterministicLangevin(2, 0.4).double()(potential, x0)
        for mode in BOUND:
            ade.DeterministicLangevin(2, 0.4, log_det=mode).double()(potential, x0)
    with pytest.warns(UserWarning, match=r"DeterministicLangevin: .* no one-to-one map at 8 of 8 points .* reduce"):
        out = ade.DeterministicLangevin(2, 3.0).double()(potential, x0)
    wanted = reference.deterministic_langevin(potential, x0, 3.0, 2)[1]
    assert_close(out.log_det.detach(), wanted.detach(), "log_det", 1e-12)
    steep = ade.WithBase(make_potential("relu"), 0.0, 0.5)
    with pytest.warns(UserWarning, match=r"no one-to-one map at 8 of 8 points"):
        ade.DeterministicLangevin(2, 0.3).double()(steep, x0)
    for mode in BOUND:
        layer = ade.DeterministicLangevin(2, 3.0, log_det=mode, spectral_bound=1.5).double()
        with pytest.warns(UserWarning, match=r"spectral bound is 4\.5, not below 1.*reduce step_size"):
            assert layer(potential, x0).log_det.isfinite().all()


# --- What is called and kept --------------------------------------------------------------------------------


class Counted(nn.Module):
    def __init__(self, potential: nn.Module) -> None:
        super().__init__()
        self.potential = potential
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.potential(x)


@pytest.mark.parametrize("memory, again", [("graph", 0), ("states", 2 * 12)])
def test_calls_of_the_potential(memory: str, again: int) -> None:
    """T for the steps and T for log_det; again where graphs are not kept."""
    potential = Counted(make_potential("silu"))
    layer = ade.DeterministicLangevin(12, steps("number", EVENT, 12), memory=memory)
    out = layer(potential, normal(4, *EVENT, seed=1).requires_grad_())
    assert potential.calls == 2 * 12
    potential.calls = 0
    (out.x.sum() + out.log_det.sum()).backward()
    assert potential.calls == again


@pytest.mark.parametrize("passed", [True, False], ids=["context", "captured"])
@pytest.mark.parametrize("memory", ["graph", "states"])
def test_gradients_reach_what_f_captured(passed: bool, memory: str) -> None:
    """A tensor that another network made: as context=, or found and gone through by autograd, aloud."""
    potential, condition = make_potential("silu"), nn.Linear(2, 3, dtype=DOUBLE)
    shift = condition(normal(1, 2, seed=5))
    f = lambda x: potential(x * shift).reshape(-1)  # noqa: E731
    x0 = normal(4, *EVENT, seed=1).requires_grad_()
    layer = ade.DeterministicLangevin(3, steps("number", EVENT, 3), memory=memory)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ade.SlowPathWarning)
        out = layer(f, x0, context=shift if passed else None)
    wanted = [x0, layer.step_size, *list(potential.parameters())[:-1], *condition.parameters()]  # f's last: a constant
    total = out.x.sin().sum() + out.log_det.square().sum()
    actual = torch.autograd.grad(total, wanted, retain_graph=True)
    x, log_det = reference.deterministic_langevin(f, x0, layer.step_size, 3)
    for a, e in zip(actual, torch.autograd.grad(x.sin().sum() + log_det.square().sum(), wanted), strict=True):
        assert_close(a, e, "gradient", 1e-10)


@pytest.mark.parametrize("memory", ["graph", "states"])
def test_changes_between_the_passes_are_refused(memory: str) -> None:
    potential, x0 = make_potential("silu"), normal(4, *EVENT, seed=1).requires_grad_()
    frozen = normal(3, seed=4)
    layer = ade.DeterministicLangevin(1, steps("number", EVENT, 1), memory=memory)
    out = layer(lambda x: potential(x * frozen), x0)
    frozen.mul_(2)
    with pytest.raises(RuntimeError, match=r"was modified between|modified by an inplace operation"):
        out.log_det.sum().backward()
    out = layer(potential, x0)
    with torch.no_grad():
        next(potential.parameters()).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.log_det.sum().backward()


def test_gradients_are_differentiable_once() -> None:
    potential, x0 = make_potential("silu"), normal(4, *EVENT, seed=1).requires_grad_()
    out = ade.DeterministicLangevin(2, steps("number", EVENT, 2))(potential, x0)
    (dx,) = torch.autograd.grad(out.log_det.sum(), x0, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable only once"):
        dx.sum().backward()


@pytest.mark.parametrize("mode", MODES)
def test_without_gradients_and_without_samples(mode: str) -> None:
    potential, layer = make_potential("silu"), ade.DeterministicLangevin(3, 0.1, log_det=mode, **BOUND.get(mode, {}))
    layer, x0 = layer.double(), normal(4, *EVENT, seed=1)
    probes = signs(1, 3, 4, *EVENT) if mode in BOUND else None
    plain = layer(potential, x0, probes=probes)
    for block in (torch.no_grad, torch.inference_mode):
        with block():
            out = layer(potential, x0, probes=probes)
        assert not out.x.requires_grad and not out.log_det.requires_grad
        assert_close(out.x.clone(), plain.x.detach(), "x", 1e-13)
        assert_close(out.log_det.clone(), plain.log_det.detach(), "log_det", 1e-13)
    empty = layer(potential, x0[:0])
    assert empty.x.shape == (0, *EVENT) and empty.log_det.shape == (0,)
    (empty.x.sum() + empty.log_det.sum()).backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision(dtype: torch.dtype) -> None:
    potential, x0 = make_potential("silu"), normal(6, *EVENT, seed=1)
    wanted = ade.DeterministicLangevin(3, 0.1)(potential, x0)
    out = ade.DeterministicLangevin(3, 0.1)(make_potential("silu").to(dtype), x0.to(dtype))
    assert out.x.dtype == dtype and out.log_det.dtype == torch.float32
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(out.x.double(), wanted.x, rtol=0, atol=tolerance)
    torch.testing.assert_close(out.log_det.double(), wanted.log_det, rtol=0, atol=tolerance)


# --- In the dual sampler and ADE ----------------------------------------------------------------------------


def test_there_is_no_momentum() -> None:
    potential, _ = gaussian()
    sampler = ade.DualSampler(ade.initial.Gaussian(DIM), ade.DeterministicLangevin(2, 0.1)).double()
    sample = sampler.sample(potential, 5)
    assert sample.v is None and sample.v0 is None
    assert not sampler.has_momentum() and not sampler.draws_own_momenta()
    assert ade.DualSampler(ade.initial.Gaussian(DIM), ade.Leapfrog(2)).has_momentum()
    # A weight of momenta that are not there is no reason to refuse.
    assert weights.why_no_weights(sampler, torch.tensor(0.0)) is None


@pytest.mark.parametrize("bound", ["elbo", "importance"])
def test_loss_and_every_gradient_are_the_references(bound: str) -> None:
    torch.manual_seed(1)
    potential = ade.MLPPotential(2, (32,), "tanh").double()
    sampler = ade.DualSampler(
        ade.initial.Gaussian(2, 1.5, learnable=True), ade.DeterministicLangevin(3, torch.tensor([0.3, 0.2]))
    ).double()
    data = normal(6, 2, seed=1)
    ade.ADE(potential, sampler, bound=bound, sampler_bound=bound).loss(
        data, generator=torch.Generator().manual_seed(1)
    ).backward()
    x0, _, log_q0 = sampler.initial.sample(6, generator=torch.Generator().manual_seed(1))
    x, log_det = reference.deterministic_langevin(potential, x0, sampler.dynamics.step_size, 3)
    log_w = potential(x) - reference.log_density(log_q0, log_det)
    wanted = potential(data).mean() - reference.renyi_bound(log_w, 1 if bound == "elbo" else 0)
    parameters = [*potential.parameters(), *sampler.parameters()]
    for p, e in zip(parameters, torch.autograd.grad(wanted, parameters), strict=True):
        assert_close(p.grad, e, "gradient", 1e-10)


@pytest.mark.parametrize("mode", MODES)
def test_ade_takes_steps(mode: str) -> None:
    potential = ade.MLPPotential(2, (32,), "softplus")
    dynamics = ade.DeterministicLangevin(3, 0.1, log_det=mode, order=4)
    players = ade.ADE(potential, ade.DualSampler(ade.initial.PlanarFlow(2, 2), dynamics), sampler_steps=2)
    before = [p.detach().clone() for p in players.parameters()]
    for _ in range(2):
        metrics_ = players.step(torch.randn(32, 2))
    assert all(math.isfinite(value) for value in metrics_.values())
    assert ("ess" in metrics_) == (mode == "exact") and metrics_["kinetic"] == 0
    moved = [not torch.equal(a, b) for a, b in zip(before, players.parameters(), strict=True)]
    last_bias = len(list(potential.parameters())) - 1  # a constant of f, which its normaliser takes away
    assert all(m for i, m in enumerate(moved) if i != last_bias)


def test_weights_of_exact_log_dets_find_log_z() -> None:
    """E[w] = Z for a Gaussian, to three standard errors, after steps that move and shrink the samples."""
    potential, log_z = gaussian()
    start = ade.initial.Gaussian(DIM, 2.5)
    sampler = ade.DualSampler(start, ade.DeterministicLangevin(4, torch.tensor([0.3, 0.1]))).double()
    found = metrics.log_z(potential, sampler, 20_000, generator=torch.Generator().manual_seed(0))
    assert 1e-4 < found.standard_error < 0.02
    assert found.log_z == pytest.approx(log_z, abs=3 * found.standard_error)
    plain = metrics.log_z(
        potential, ade.DualSampler(start, ade.Leapfrog(1, 1e-6)).double(), 20_000,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert found.ess > 1.5 * plain.ess


@pytest.mark.parametrize("mode", MODES[1:])
def test_estimated_log_dets_have_no_weights(mode: str) -> None:
    potential, _ = gaussian()
    sampler = ade.DualSampler(ade.initial.Gaussian(DIM), ade.DeterministicLangevin(2, 0.1, log_det=mode)).double()
    with pytest.raises(ValueError, match=r"bound='importance'.* need weights: dynamics only estimates its log_det"):
        ade.ADE(potential, sampler, bound="importance")
    with pytest.raises(ValueError, match=r"no weights: dynamics only estimates its log_det"):
        sampler.resample(potential, 10)
    assert weights.why_no_weights(sampler, torch.tensor(1.0)).startswith("dynamics only estimates")


# --- Misuse -------------------------------------------------------------------------------------------------


def _layer(**options: Any) -> ade.DeterministicLangevin:
    return ade.DeterministicLangevin(2, 0.1, **options)


def _call(layer: nn.Module | None = None, **options: Any) -> Any:
    return (layer or _layer())(make_potential("silu"), normal(4, *EVENT, seed=1), **options)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ade.DeterministicLangevin(0), ValueError, r"DeterministicLangevin: n_steps must be at least 1, got 0"),
        (lambda: ade.DeterministicLangevin(2, -0.1), ValueError, r"step_size must be positive, got -0\.1"),
        (lambda: _layer(log_det="dense"), ValueError, r"log_det must be one of \('exact', .*got 'dense'"),
        (lambda: _layer(order=0), ValueError, r"order must be at least 1, got 0"),
        (lambda: _layer(order=2.5), TypeError, r"order must be an integer, got float"),
        (lambda: _layer(n_probes=True), TypeError, r"n_probes must be an integer, got bool"),
        (lambda: _layer(n_probes=-1), ValueError, r"n_probes must be at least 1, got -1"),
        (lambda: _layer(spectral_bound="1"), TypeError, r"spectral_bound must be a number or None, got str"),
        (lambda: _layer(spectral_bound=0.0), ValueError, r"spectral_bound must be positive and finite, got 0\.0"),
        (lambda: _layer(gradient="half"), ValueError, r"DeterministicLangevin: gradient must be one of"),
        (lambda: _layer(grad_clip=ade.Clip.norm(1.0)), TypeError, r"unexpected keyword argument 'grad_clip'"),
        (lambda: _call(v0=torch.zeros(4, 3)), ValueError, r"v0 must be None: there is no momentum"),
        (lambda: _call(generator=3), TypeError, r"generator must be a torch\.Generator or None, got int"),
        (lambda: _call(probes=signs(1, 2, 4, 3)), ValueError, r"probes are of log_det='taylor' .*got log_det='exact'"),
        (
            lambda: _call(_layer(log_det="taylor"), probes=signs(1, 4, 3)),
            ValueError,
            r"probes must have shape \(1, 2, 4, 3\), \(n_probes, n_steps, \*x0\.shape\), got \(1, 4, 3\)",
        ),
        (
            lambda: _call(_layer(log_det="taylor"), probes=[1.0]),
            TypeError,
            r"probes must be a tensor or None, got list",
        ),
        (
            lambda: ade.functional.deterministic_langevin(lambda x: x.sum(1), torch.ones(2, 2), 0.1, 1, grad_clip=None),
            TypeError,
            r"deterministic_langevin: unknown option 'grad_clip'; options are \['check_finite'",
        ),
        (
            lambda: _layer()(lambda x: x.detach().sum(1), normal(4, 3, seed=1)),
            ValueError,
            r"DeterministicLangevin: potential's output does not depend on x through autograd",
        ),
        (
            lambda: _layer(check_finite=True)(lambda x: 1e308 * x.pow(4).sum(1), normal(4, 3, seed=1)),
            ade.NonFiniteError,
            r"DeterministicLangevin: a state is not finite after step",
        ),
    ],
)
def test_misuse(make: Callable, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
