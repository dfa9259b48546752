"""The specification itself: reference.py against closed forms, dense Jacobians and physics."""

import math

import pytest
import torch
from cases import (
    DOUBLE,
    SMOOTH,
    DriftNetwork,
    KickNetwork,
    PlainClip,
    assert_close,
    dense_slogdet,
    energy,
    fitted_order,
    make_potential,
    merged_leapfrog,
    normal,
)
from torch import Tensor, nn

from ade_fast import reference


def inputs(event: tuple[int, ...], batch: int = 4) -> tuple[Tensor, Tensor]:
    return normal(batch, *event, seed=1), normal(batch, *event, seed=2)


def gradients(outputs: tuple[Tensor, ...], wanted: list[Tensor]) -> list[Tensor | None]:
    """Gradients of a fixed random functional of the outputs."""
    total = sum((out * normal(*out.shape, seed=7 + i)).sum() for i, out in enumerate(outputs))
    return list(torch.autograd.grad(total, wanted, allow_unused=True))


# --- Clips --------------------------------------------------------------------------------------------------


def test_clip_norm_is_the_formula_and_its_derivative() -> None:
    u = normal(6, 2, 3, seed=3).requires_grad_()
    bound = u.flatten(1).norm(dim=1).median().item() * 1.01
    norms = u.detach().flatten(1).norm(dim=1)
    assert (norms > bound).any() and (norms < bound).any()
    clipped = reference.clip_norm(u, bound)
    expected = u * torch.clamp(bound / norms, max=1).reshape(-1, 1, 1)
    assert_close(clipped.detach(), expected.detach(), "clip_norm")
    torch.testing.assert_close(clipped.flatten(1).norm(dim=1).detach(), norms.clamp(max=bound), rtol=1e-14, atol=0)
    assert torch.autograd.gradcheck(lambda u: reference.clip_norm(u, bound), u)


def test_clip_norm_at_zero_is_the_identity_to_first_order() -> None:
    u = torch.zeros(2, 3, dtype=DOUBLE, requires_grad=True)
    dy = normal(2, 3, seed=4)
    (du,) = torch.autograd.grad(reference.clip_norm(u, 0.5), u, dy)
    assert torch.equal(du, dy)


def test_clip_value_has_the_derivative_of_clamp() -> None:
    u = torch.tensor([[-2.0, -0.5, 0.25, 0.5, 2.0]], dtype=DOUBLE, requires_grad=True)
    clipped = reference.clip_value(u, 0.5)
    (du,) = torch.autograd.grad(clipped.sum(), u)
    assert clipped.tolist() == [[-0.5, -0.5, 0.25, 0.5, 0.5]]
    assert du.tolist() == [[0.0, 1.0, 1.0, 1.0, 0.0]]


def test_clip_follows_its_mode() -> None:
    u = normal(5, 3, seed=5)
    assert reference.clip(u, None) is u
    assert torch.equal(reference.clip(u, PlainClip("value", 0.3)), u.clamp(-0.3, 0.3))
    assert torch.equal(reference.clip(u, PlainClip("norm", 0.3)), reference.clip_norm(u, 0.3))


def test_clip_sample_is_clamp() -> None:
    x = normal(5, 3, seed=5)
    assert reference.clip_sample(x, None) is x
    assert torch.equal(reference.clip_sample(x, (-0.2, 0.4)), x.clamp(-0.2, 0.4))


# --- The gradient field and its modes -----------------------------------------------------------------------


def test_gradient_field_of_the_gaussian_is_closed_form() -> None:
    potential = make_potential("quadratic")
    x, _ = inputs((3,))
    expected = -(x - potential.mean) * (-2 * potential.log_std).exp()
    assert_close(reference.gradient_field(potential, x).detach(), expected.detach(), "F(x)")


def test_gradient_field_accepts_a_column_of_values(any_potential: tuple[nn.Module, tuple[int, ...]]) -> None:
    potential, event = any_potential
    potential.eval()
    x, _ = inputs(event)
    column = reference.gradient_field(lambda x: potential(x).reshape(-1, 1), x)
    flat = reference.gradient_field(lambda x: potential(x).reshape(-1), x)
    assert torch.equal(column, flat)
    assert column.abs().max() > 1e-3


def test_gradient_modes_cut_what_they_say() -> None:
    potential = make_potential("silu")
    parameters = list(potential.parameters())
    x0, v0 = inputs((3,))
    step = torch.tensor(0.1, dtype=DOUBLE, requires_grad=True)
    x0.requires_grad_(), v0.requires_grad_()

    def run(gradient: str) -> tuple[tuple[Tensor, Tensor], list[Tensor | None]]:
        x, v, _ = reference.leapfrog(potential, x0, v0, step, 3, gradient=gradient)
        return (x, v), gradients((x, v), [x0, v0, step, *parameters])

    outputs, full = run("full")
    assert any(g is not None and g.abs().max() > 1e-3 for g in full[3:])

    truncated_outputs, truncated = run("truncated")
    for name, a, b in zip(("x0", "v0", "step"), truncated[:3], full[:3], strict=True):
        assert_close(a, b, name)
    assert truncated[3:] == [None] * len(parameters)

    stopped_outputs, stopped = run("stopped")
    assert stopped[3:] == [None] * len(parameters)
    # With ∇f constant the unroll is linear in x0: its Jacobian with respect to x0 is the identity.
    assert_close(stopped[0], normal(4, 3, seed=7), "d x0, stopped")

    x, v, log_det = reference.leapfrog(potential, x0, v0, step, 3, gradient="none")
    assert not (x.requires_grad or v.requires_grad or log_det.requires_grad)
    for others in (truncated_outputs, stopped_outputs, (x, v)):
        for a, b in zip(others, outputs, strict=True):
            assert torch.equal(a, b), "the mode must not change values"


def test_gradient_field_refuses_what_it_cannot_do() -> None:
    x, _ = inputs((3,))
    with pytest.raises(ValueError, match=r"gradient must be one of .* got 'half'"):
        reference.gradient_field(make_potential("silu"), x, "half")
    with pytest.raises(TypeError, match=r"potential must be an nn\.Module, got function"):
        reference.gradient_field(lambda x: x.sum(1), x, "truncated")


def test_works_under_no_grad() -> None:
    potential = make_potential("silu")
    x0, v0 = inputs((3,))
    expected = reference.leapfrog(potential, x0, v0, 0.1, 3)
    with torch.no_grad():
        actual = reference.leapfrog(potential, x0, v0, 0.1, 3)
    assert not actual[0].requires_grad and expected[0].requires_grad
    assert torch.equal(actual[0], expected[0])


# --- Leapfrog (10), (11) ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMOOTH)
def test_leapfrog_is_time_reversible(name: str) -> None:
    potential = make_potential(name).eval()
    x0, v0 = inputs((3,))
    with torch.no_grad():
        x, v, _ = reference.leapfrog(potential, x0, v0, 0.15, 20)
        assert (x - x0).abs().max() > 0.1
        x_back, v_back, _ = reference.leapfrog(potential, x, -v, 0.15, 20)
    assert_close(x_back, x0, "x", 1e-11)
    assert_close(-v_back, v0, "v", 1e-11)


@pytest.mark.parametrize("name", SMOOTH)
def test_leapfrog_energy_error_falls_as_the_square_of_the_step(name: str) -> None:
    potential = make_potential(name).eval()
    x0, v0 = inputs((3,), batch=32)
    steps = [0.1, 0.05, 0.025]
    errors = []
    with torch.no_grad():
        start = energy(potential, x0, v0)
        for eta in steps:
            x, v, _ = reference.leapfrog(potential, x0, v0, eta, round(1.0 / eta))
            errors.append((energy(potential, x, v) - start).abs().mean().item())
    assert fitted_order(steps, errors) == pytest.approx(2, abs=0.1), errors


def test_leapfrog_is_the_closed_form_on_the_harmonic_oscillator() -> None:
    """f = -x²/2: (x, v) turns by θ, cos θ = 1 - η²/2, on an ellipse with axes 1 and √(1 - η²/4)."""
    eta, n_steps = 0.3, 17
    x0, v0 = inputs((1,))
    with torch.no_grad():
        x, v, log_det = reference.leapfrog(lambda x: -0.5 * x.square().sum(1), x0, v0, eta, n_steps)
    theta = math.acos(1 - eta**2 / 2)
    axis = math.sqrt(1 - eta**2 / 4)
    cos, sin = math.cos(n_steps * theta), math.sin(n_steps * theta)
    assert_close(x, cos * x0 + sin / axis * v0, "x", 1e-13)
    assert_close(v, cos * v0 - sin * axis * x0, "v", 1e-13)
    assert torch.equal(log_det, torch.zeros(4, dtype=DOUBLE))


def test_leapfrog_converges_to_the_exact_flow() -> None:
    """Global error O(η²) against x(1) = x0 cos 1 + v0 sin 1."""
    x0, v0 = inputs((2,))
    exact = math.cos(1.0) * x0 + math.sin(1.0) * v0
    steps = [0.1, 0.05, 0.025]
    with torch.no_grad():
        ends = [reference.leapfrog(lambda x: -0.5 * x.square().sum(1), x0, v0, s, round(1 / s))[0] for s in steps]
    errors = [(x - exact).abs().max().item() for x in ends]
    assert fitted_order(steps, errors) == pytest.approx(2, abs=0.05), errors


def test_one_step_is_the_printed_equation() -> None:
    potential = make_potential("silu")
    x, v = inputs((3,))
    eta = 0.2

    def force(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(potential(x).sum(), x)[0]

    v_half = v + eta / 2 * force(x)
    x_next = x + eta * v_half
    v_next = v_half + eta / 2 * force(x_next)
    actual = reference.leapfrog_step(potential, x, v, eta)
    assert_close(actual[0].detach(), x_next, "x'", 1e-14)
    assert_close(actual[1].detach(), v_next, "v'", 1e-14)


def test_step_sizes_per_step_and_per_dimension() -> None:
    """A leading T axis is one entry per step; the same numbers spelled out step by step give the same end."""
    potential = make_potential("silu")
    x0, v0 = inputs((3,))
    table = torch.tensor([[0.1, 0.2, 0.3], [0.3, 0.1, 0.2]], dtype=DOUBLE)
    x, v, _ = reference.leapfrog(potential, x0, v0, table, 2)
    x_one, v_one = reference.leapfrog_step(potential, x0, v0, table[0])
    x_two, v_two = reference.leapfrog_step(potential, x_one, v_one, table[1])
    assert torch.equal(x, x_two) and torch.equal(v, v_two)
    per_step = reference.leapfrog(potential, x0, v0, table[:, :1], 2)
    spelled = reference.leapfrog(potential, x0, v0, table[:, :1].expand(2, 3), 2)
    assert torch.equal(per_step[0], spelled[0])


@pytest.mark.parametrize("mode", [None, "value", "norm"])
def test_merging_the_kicks_changes_nothing(mode: str | None) -> None:
    """T + 1 gradients instead of 2T: the last kick of a step and the first of the next see the same F(x)."""
    potential = make_potential("silu")
    x0, v0 = inputs((3,))
    steps = torch.tensor([[0.1, 0.2, 0.3], [0.3, 0.1, 0.2], [0.2, 0.2, 0.1]], dtype=DOUBLE)
    how = None if mode is None else PlainClip(mode, 0.4)
    wanted = [x0.requires_grad_(), v0.requires_grad_(), steps.requires_grad_(), *potential.parameters()]

    printed = reference.leapfrog(
        potential, x0, v0, steps, 3, grad_clip=how, momentum_clip=how, sample_range=(-1.5, 1.5)
    )[:2]
    shared = merged_leapfrog(potential, x0, v0, steps, how, (-1.5, 1.5))
    for name, a, b in zip("xv", shared, printed, strict=True):
        assert_close(a.detach(), b.detach(), name, 1e-14)
    for i, (a, b) in enumerate(zip(gradients(shared, wanted), gradients(printed, wanted), strict=True)):
        assert_close(a, b, f"gradient {i}", 1e-12)


def test_gradients_of_the_unroll_are_those_of_finite_differences() -> None:
    potential = make_potential("silu")
    x0, v0 = inputs((3,), batch=2)
    step = torch.tensor([0.1, 0.2, 0.15], dtype=DOUBLE, requires_grad=True)
    weight = potential[0].weight

    def run(x0: Tensor, v0: Tensor, step: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        def f(x: Tensor) -> Tensor:
            return torch.func.functional_call(potential, {"0.weight": weight}, (x,))

        return reference.leapfrog(f, x0, v0, step, 2)[:2]

    assert torch.autograd.gradcheck(run, (x0.requires_grad_(), v0.requires_grad_(), step, weight))


# --- Log-determinants ---------------------------------------------------------------------------------------


def test_leapfrog_keeps_volume() -> None:
    potential = make_potential("silu")
    x0, v0 = inputs((3,), batch=3)
    step = torch.tensor([0.3, 0.2, 0.1], dtype=DOUBLE)
    dense = dense_slogdet(lambda x, v: reference.leapfrog(potential, x, v, step, 3)[:2], x0, v0)
    assert_close(dense, torch.zeros(3, dtype=DOUBLE), "slogdet", 1e-12)


@pytest.mark.parametrize("momentum", [(3,), (2,)], ids=["l=d", "l<d"])
def test_generalized_leapfrog_log_det_is_that_of_the_dense_jacobian(momentum: tuple[int, ...]) -> None:
    potential = make_potential("silu")
    x0, v0 = normal(3, 3, seed=1), normal(3, *momentum, seed=2)
    options = {
        "scale_v": KickNetwork((3,), momentum, 0.4),
        "shift_v": KickNetwork((3,), momentum, 1.0),
        "scale_x": DriftNetwork(momentum, (3,), 0.4),
        "shift_x": DriftNetwork(momentum, (3,), 1.0),
    }

    def run(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return reference.generalized_leapfrog(potential, x, v, 0.3, 3, **options)

    log_det = run(x0, v0)[2].detach()
    assert log_det.abs().min() > 1e-3
    assert_close(log_det, dense_slogdet(lambda x, v: run(x, v)[:2], x0, v0), "log_det", 1e-11)


@pytest.mark.parametrize("scale", [0.2, torch.tensor([0.1, -0.2, 0.3], dtype=DOUBLE)], ids=["number", "tensor"])
def test_constant_scales_count_once_per_element(scale: float | Tensor) -> None:
    potential = make_potential("silu")
    x0, v0 = inputs((3,), batch=2)

    def run(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return reference.generalized_leapfrog(potential, x, v, 0.2, 2, scale_v=scale, scale_x=scale)

    total = 3 * scale if isinstance(scale, float) else scale.sum().item()
    log_det = run(x0, v0)[2].detach()
    assert_close(log_det, torch.full((2,), 2 * 3 * total, dtype=DOUBLE), "log_det", 1e-13)
    assert_close(log_det, dense_slogdet(lambda x, v: run(x, v)[:2], x0, v0), "dense", 1e-11)


def test_damped_leapfrog_log_det_is_that_of_the_dense_jacobian() -> None:
    potential = make_potential("silu")
    x0, v0 = inputs((3,), batch=2)

    def run(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return reference.damped_leapfrog(potential, x, v, 0.2, 4, damping=0.7)

    log_det = run(x0, v0)[2].detach()
    assert_close(log_det, torch.full((2,), 5 * 3 * math.log(0.7), dtype=DOUBLE), "log_det", 1e-13)
    assert_close(log_det, dense_slogdet(lambda x, v: run(x, v)[:2], x0, v0), "dense", 1e-11)


# --- Relations between the dynamics -------------------------------------------------------------------------


def test_generalized_leapfrog_without_networks_is_leapfrog() -> None:
    potential = make_potential("silu")
    x0, v0 = inputs((3,))
    how = PlainClip("norm", 0.7)
    options = {"grad_clip": how, "momentum_clip": how, "sample_range": (-1.0, 1.0)}
    plain = reference.leapfrog(potential, x0, v0, 0.2, 3, **options)
    general = reference.generalized_leapfrog(potential, x0, v0, 0.2, 3, **options)
    for a, b in zip(general, plain, strict=True):
        assert_close(a.detach(), b.detach(), "output", 1e-14)


def test_damped_leapfrog_without_damping_is_leapfrog_in_other_units() -> None:
    """m = 1, kicks η, drifts δ: with w = √(η/δ)⁻¹ v it is leapfrog with step √(ηδ)."""
    potential = make_potential("silu")
    x0, v0 = inputs((3,))
    eta, delta = 0.08, 0.5
    unit = math.sqrt(delta / eta)
    x, v, log_det = reference.damped_leapfrog(potential, x0, v0, eta, 4, damping=1.0, drift_step=delta)
    x_plain, v_plain, _ = reference.leapfrog(potential, x0, unit * v0, math.sqrt(eta * delta), 4)
    assert_close(x.detach(), x_plain.detach(), "x", 1e-13)
    assert_close(unit * v.detach(), v_plain.detach(), "v", 1e-13)
    assert torch.equal(log_det, torch.zeros(4, dtype=DOUBLE))


def test_damped_leapfrog_is_the_released_update() -> None:
    potential = make_potential("relu")
    x0, v0 = inputs((3,))
    eta, m, how = 0.2, 0.5, PlainClip("value", 0.1)

    def force(x: Tensor) -> Tensor:
        return reference.gradient_field(potential, x).clamp(-0.1, 0.1)

    v = m * v0 + eta / 2 * force(x0)
    x = (x0 + v).clamp(-1, 1)
    v = m * v + eta * force(x)
    x = (x + v).clamp(-1, 1)
    v = m * v + eta / 2 * force(x)
    actual = reference.damped_leapfrog(potential, x0, v0, eta, 2, m, grad_clip=how, sample_range=(-1, 1))
    assert_close(actual[0].detach(), x.detach(), "x", 1e-14)
    assert_close(actual[1].detach(), v.detach(), "v", 1e-14)


# --- Densities and objective --------------------------------------------------------------------------------


def normal_log_density(z: Tensor) -> Tensor:
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)


def test_density_of_the_end_point_integrates_to_one() -> None:
    """(17) corrected: the areas of mapped grid cells know nothing of log_det, yet q^T times area sums to 1.

    With the sign of (17) as printed the sum is far from 1.
    """
    grid = torch.linspace(-6, 6, 301, dtype=DOUBLE)
    x0, v0 = (z.reshape(-1, 1) for z in torch.meshgrid(grid, grid, indexing="ij"))
    with torch.no_grad():
        x, v, log_det = reference.generalized_leapfrog(
            lambda x: -0.5 * x.square().sum(1),
            x0,
            v0,
            0.2,
            2,
            scale_v=lambda grad, x: 0.3 + 0.2 * torch.tanh(x),
            scale_x=-0.05,
        )
        log_q0 = normal_log_density(x0) + normal_log_density(v0)
        corners = torch.cat([x, v], 1).reshape(301, 301, 2)
        one, two = corners[2:, 2:] - corners[:-2, :-2], corners[:-2, 2:] - corners[2:, :-2]
        # A node's own cell: half the diagonals' cross product is the area of four cells.
        area = ((one[..., 0] * two[..., 1] - one[..., 1] * two[..., 0]).abs() / 2 / 4).flatten()
        inner = torch.zeros(301, 301, dtype=torch.bool)
        inner[1:-1, 1:-1] = True

        def mass(log_q: Tensor) -> float:
            return (log_q[inner.flatten()].exp() * area).sum().item()

    assert mass(reference.log_density(log_q0, log_det)) == pytest.approx(1, abs=1e-3)
    assert mass(log_q0 + log_det) > 2


def test_log_density_agrees_with_the_transformed_gaussian() -> None:
    """A linear map of a Gaussian is Gaussian: constant scales on the harmonic oscillator, in closed form."""
    x0, v0 = inputs((1,), batch=5)

    def run(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return reference.generalized_leapfrog(
            lambda x: -0.5 * x.square().sum(1), x, v, 0.3, 2, scale_v=0.2, scale_x=-0.1
        )

    with torch.no_grad():
        x, v, log_det = run(x0, v0)
        columns = [torch.cat(run(*basis)[:2], 1) for basis in (_unit(0), _unit(1))]
    matrix = torch.cat(columns).T
    gaussian = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=DOUBLE), matrix @ matrix.T)
    log_q = reference.log_density(normal_log_density(torch.cat([x0, v0], 1)), log_det)
    assert_close(log_q, gaussian.log_prob(torch.cat([x, v], 1)), "log q", 1e-12)


def _unit(axis: int) -> tuple[Tensor, Tensor]:
    unit = torch.eye(2, dtype=DOUBLE)[axis]
    return unit[:1].reshape(1, 1), unit[1:].reshape(1, 1)


def test_objective_is_the_saddle_objective_of_the_end_point() -> None:
    potential = make_potential("quadratic")
    data, x, v = (normal(4, 3, seed=s) for s in (1, 2, 3))
    log_q0, log_det = normal(4, seed=4), normal(4, seed=5)
    by_hand = potential(data).mean() - (potential(x) - 0.35 * v.square().sum(1)).mean() + (log_q0 - log_det).mean()
    actual = reference.objective(potential, data, x, v, log_q0, log_det, momentum_weight=0.7)
    assert_close(actual.detach(), by_hand.detach(), "objective", 1e-13)


def test_objective_has_no_gap_at_the_saddle() -> None:
    """At q = p(x, v) of a Gaussian f, (8) is E_data[f] - log Z whatever the draws: E_q's term is constant."""
    potential = make_potential("quadratic")
    data = normal(6, 3, seed=1)
    with torch.no_grad():
        mean, std = potential.mean, potential.log_std.exp()
        x, v = mean + std * normal(6, 3, seed=2), normal(6, 3, seed=3)
        log_q = normal_log_density((x - mean) / std) - potential.log_std.sum() + normal_log_density(v)
        log_z = 3 * math.log(2 * math.pi) + potential.log_std.sum()
        actual = reference.saddle_objective(potential, data, x, v, log_q)
    assert_close(actual, potential(data).mean().detach() - log_z.detach(), "saddle", 1e-13)


def test_kinetic_term_of_the_potentials_gradient_has_the_sign_of_20() -> None:
    """Differentiating (20) gives +λ v^T ∂v^T/∂f inside ℓ; the released code follows (21) as printed."""
    potential = make_potential("silu")
    parameters = list(potential.parameters())[:-1]  # the last bias does not move samples
    x0, v0 = inputs((3,))
    x, v, log_det = reference.leapfrog(potential, x0, v0, 0.2, 2)
    zero = torch.zeros(4, dtype=DOUBLE)
    with_kinetic = reference.objective(potential, x0, x, v, zero, log_det, momentum_weight=1.0)
    without = reference.objective(potential, x0, x, v, zero, log_det, momentum_weight=0.0)
    kinetic = 0.5 * v.square().sum(1).mean()
    difference = torch.autograd.grad(with_kinetic - without, parameters, retain_graph=True)
    expected = torch.autograd.grad(kinetic, parameters)
    for a, b in zip(difference, expected, strict=True):
        assert_close(a, b, "kinetic gradient", 1e-13)


# --- Planar flow and MMD ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_planar_flow_log_det_is_that_of_the_dense_jacobian(seed: int) -> None:
    x, u, w, b = normal(4, 3, seed=seed), normal(3, seed=10 + seed), normal(3, seed=20 + seed), normal(seed=3)
    u = u - 3 * w  # w·u well below -1: without the constraint not invertible
    assert w @ u < -1 < w @ reference.planar_flow_direction(u, w)
    _, log_det = reference.planar_flow(x, u, w, b)
    jacobians = [
        torch.autograd.functional.jacobian(lambda z: reference.planar_flow(z[None], u, w, b)[0][0], row) for row in x
    ]
    expected = torch.stack([torch.linalg.slogdet(j).logabsdet for j in jacobians])
    assert_close(log_det, expected, "log_det", 1e-12)


def test_mmd2_is_the_double_sum() -> None:
    x, y = normal(5, 2, seed=1), normal(4, 2, seed=2) + 0.5
    h = 0.8

    def k(a: Tensor, b: Tensor) -> float:
        return math.exp(-(a - b).square().sum().item() / (2 * h * h))

    expected = (
        sum(k(x[i], x[j]) for i in range(5) for j in range(5) if i != j) / 20
        + sum(k(y[i], y[j]) for i in range(4) for j in range(4) if i != j) / 12
        - 2 * sum(k(a, b) for a in x for b in y) / 20
    )
    assert reference.mmd2(x, y, h).item() == pytest.approx(expected, abs=1e-14)


def test_mmd2_is_unbiased_and_sees_a_shift() -> None:
    same = torch.stack([reference.mmd2(normal(40, 2, seed=s), normal(40, 2, seed=100 + s)) for s in range(50)])
    standard_error = same.std() / math.sqrt(len(same))
    assert same.mean().abs() < 3 * standard_error
    assert (same < 0).any(), "an unbiased estimate is negative about half of the time"
    assert reference.mmd2(normal(40, 2, seed=1), normal(40, 2, seed=2) + 2) > 5 * same.abs().max()


def test_mmd2_median_bandwidth_is_scale_free() -> None:
    x, y = normal(20, 2, seed=1), normal(21, 2, seed=2) + 0.5
    a, b = reference.mmd2(x, y), reference.mmd2(1000 * x, 1000 * y)
    assert a.item() == pytest.approx(b.item(), abs=1e-12)
