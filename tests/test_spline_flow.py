"""The spline flow: densities against dense Jacobians and its own inverse, its box, state, misuse."""

import sys

import pytest
import torch
from cases import DOUBLE, assert_close
from torch import Tensor
from torch.distributions import Normal

pytest.importorskip("zuko")

from ade_fast import initial

SHAPES = {"one-dimensional": (1, 2, (8,)), "two": (2, 2, (16, 16)), "one layer": (2, 1, 8), "four": (4, 3, (12,))}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scrambled(name: str) -> initial.SplineFlow:
    """Float64, with parameters far from their gentle starting values."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        q = initial.SplineFlow(*SHAPES[name]).double()
        with torch.no_grad():
            for parameter in q.parameters():
                parameter.add_(0.5 * torch.randn_like(parameter))
    return q


@pytest.mark.parametrize("name", SHAPES)
def test_log_q_is_that_of_the_dense_jacobian(name: str) -> None:
    q = scrambled(name)
    x, _, log_q = q.sample(5, generator=generator())
    noise = torch.randn((5, q.dim), dtype=DOUBLE, generator=generator())
    jacobian = torch.stack(
        [torch.autograd.functional.jacobian(lambda z: q.transform(z[None])[0][0], row) for row in noise]
    )
    expected = Normal(0.0, 1.0).log_prob(noise).sum(1) - torch.linalg.slogdet(jacobian).logabsdet
    assert_close(log_q.detach(), expected, "log_q")
    assert_close(x.detach(), q.transform(noise)[0].detach(), "x")
    assert (x - noise).abs().max() > 0.1, "the map is no identity"


@pytest.mark.parametrize("name", SHAPES)
def test_log_prob_inverts_the_samples(name: str) -> None:
    q = scrambled(name)
    x, _, log_q = q.sample(50, generator=generator())
    assert_close(q.log_prob(x.detach()).detach(), log_q.detach(), "log_prob", 1e-8)


def test_log_prob_integrates_to_one() -> None:
    q = scrambled("one-dimensional")
    points = torch.linspace(-8, 8, 20_001, dtype=DOUBLE)
    mass = torch.trapezoid(q.log_prob(points[:, None]).exp().detach(), points)
    assert abs(mass.item() - 1) < 1e-4


def test_gradients_are_those_of_finite_differences() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        q = initial.SplineFlow(2, 1, (3,), 3).double()
    z = torch.randn((2, 2), dtype=DOUBLE, generator=generator()).requires_grad_()

    def outputs(z: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
        return q.transform(z)

    assert torch.autograd.gradcheck(outputs, (z, *q.parameters()))


def test_outside_of_its_box_it_is_the_identity() -> None:
    q = scrambled("two")
    z = torch.tensor([[5.5, -7.0], [-5.01, 100.0]], dtype=DOUBLE)
    x, log_det = q.transform(z)
    assert torch.equal(x, z) and torch.equal(log_det, torch.zeros(2, dtype=DOUBLE))


def test_it_starts_close_to_the_identity() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        q = initial.SplineFlow(2)
    z = torch.randn((1000, 2), generator=generator())
    assert (q.transform(z)[0] - z).std() < 0.2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [0, 1, 5])
def test_shapes_and_dtypes(n: int, dtype: torch.dtype) -> None:
    q = initial.SplineFlow(3, hidden=8).to(dtype)
    x, v, log_q = q.sample(n, (3,), generator())
    assert x.shape == v.shape == (n, 3) and log_q.shape == (n,)
    assert x.dtype == v.dtype == log_q.dtype == dtype


def test_sampling_is_reproducible_and_leaves_the_global_generator_alone() -> None:
    q = initial.SplineFlow(2, hidden=8)
    before = torch.random.get_rng_state()
    first, again, other = (q.sample(6, (2,), generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.x, other.x)


def test_base_is_where_the_samples_come_from() -> None:
    momentum = initial.Gaussian(2, 0.5)
    q = initial.SplineFlow(2, hidden=8, momentum=momentum)
    z, v, log_q_base = q.base.sample(6, (2,), generator())
    x, v_of_x, log_q = q.sample(6, (2,), generator())
    mapped, log_det = q.transform(z)
    torch.testing.assert_close(mapped, x)  # the samples' splines come from the operator
    assert torch.equal(v, v_of_x) and q.base.momentum is momentum
    assert torch.allclose(log_q_base - log_det, log_q)
    assert not any(name.startswith("base") for name in q.state_dict())


def test_state_dict_carries_everything() -> None:
    q, other = initial.SplineFlow(2, hidden=8), initial.SplineFlow(2, hidden=8)
    assert not torch.equal(q.sample(4, generator=generator()).x, other.sample(4, generator=generator()).x)
    other.load_state_dict(q.state_dict())
    assert torch.equal(q.sample(4, generator=generator()).x, other.sample(4, generator=generator()).x)


MISUSE = {
    "dim": (lambda: initial.SplineFlow(0), ValueError, "SplineFlow: dim must be at least 1, got 0"),
    "dim text": (lambda: initial.SplineFlow("2"), TypeError, "SplineFlow: dim must be an int, got str"),
    "n_layers": (lambda: initial.SplineFlow(2, 0), ValueError, "SplineFlow: n_layers must be at least 1, got 0"),
    "hidden": (lambda: initial.SplineFlow(2, hidden=(8, 0)), ValueError, "SplineFlow: hidden must have sizes"),
    "bins": (lambda: initial.SplineFlow(2, bins=1), ValueError, "SplineFlow: bins must be at least 2, got 1"),
    "transform": (
        lambda: initial.SplineFlow(2).transform(torch.zeros(3, 3)),
        ValueError,
        "SplineFlow: z must have the shape (n, 2), got (3, 3)",
    ),
    "log_prob": (
        lambda: initial.SplineFlow(2).log_prob(torch.zeros(2)),
        ValueError,
        "SplineFlow: x must have the shape (n, 2), got (2,)",
    ),
}


@pytest.mark.parametrize(("run", "error", "message"), MISUSE.values(), ids=MISUSE.keys())
def test_misuse(run, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        run()
    assert message in str(caught.value)


def test_without_zuko_there_is_one_line_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "zuko"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "zuko", None)
    with pytest.raises(ImportError) as caught:
        initial.SplineFlow(2)
    assert str(caught.value) == "SplineFlow: needs zuko: pip install zuko"
