"""``step_size_positive=True``: step sizes that stay positive however they are learned."""

import copy
import io

import pytest
import torch
from cases import DOUBLE as D
from torch import Tensor

import ade_fast as ade

LAYERS = {
    "leapfrog": lambda **o: ade.Leapfrog(3, torch.tensor([0.1, 0.2]), **o),
    "leapfrog per step": lambda **o: ade.Leapfrog(3, torch.tensor([[0.1], [0.2], [0.3]]), **o),
    "damped": lambda **o: ade.DampedLeapfrog(3, 0.1, **o),
    "generalized": lambda **o: ade.GeneralizedLeapfrog(3, 0.1, momentum_step_size=0.2, **o),
    "annealed": lambda **o: ade.AnnealedLeapfrog(3, 0.1, **o),
    "langevin": lambda **o: ade.Langevin(3, 0.1, **o),
    "deterministic": lambda **o: ade.DeterministicLangevin(3, 0.1, **o),
}


def run(layer: torch.nn.Module, potential: torch.nn.Module, x0: Tensor) -> Tensor:
    more = {"initial": ade.initial.Gaussian(2).double()} if getattr(layer, "anneals", False) else {}
    out = layer(potential, x0, generator=torch.Generator().manual_seed(0), **more)
    return out.x.square().sum() + out.log_det.sum()


@pytest.mark.parametrize("width", [7, 32], ids=["general", "fused"])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.filterwarnings("ignore:DeterministicLangevin")
def test_the_gradient_is_that_of_the_logarithm(kind: str, width: int) -> None:
    raw, positive = (LAYERS[kind](step_size_positive=p).double() for p in (False, True))
    potential, x0 = ade.MLPPotential(2, (width,), "silu").double(), torch.randn(5, 2, dtype=D)
    names = [n for n, _ in raw.named_parameters() if n in ("step_size", "momentum_step_size")]
    losses = [run(layer, potential, x0) for layer in (raw, positive)]
    torch.testing.assert_close(*losses, rtol=1e-6, atol=1e-6)
    wanted = torch.autograd.grad(losses[0], [getattr(raw, n) for n in names])
    found = torch.autograd.grad(losses[1], [getattr(positive, f"log_{n}") for n in names])
    for name, a, b in zip(names, found, wanted, strict=True):
        torch.testing.assert_close(a, b * getattr(raw, name), rtol=1e-5, atol=1e-5)
    assert "step_size" not in dict(positive.named_parameters()) and "step_size_positive=True" in repr(positive)


@pytest.mark.parametrize("learn", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_it_is_saved_as_such(kind: str, learn: bool) -> None:
    layer, fresh = (LAYERS[kind](step_size_positive=True, learn_step_size=learn) for _ in range(2))
    with torch.no_grad():
        layer.log_step_size.add_(0.5)
    fresh.load_state_dict(layer.state_dict())
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    for other in (fresh, copy.deepcopy(layer), torch.load(buffer, weights_only=False)):
        assert torch.equal(other.step_size, layer.step_size)
    assert "log_step_size" in layer.state_dict() and "step_size" not in layer.state_dict()


def test_learned_steps_stay_positive() -> None:
    torch.manual_seed(0)
    layer = ade.Leapfrog(3, 0.05, step_size_positive=True)
    sampler = ade.DualSampler(ade.initial.Gaussian(2), layer)
    model = ade.ADE(
        ade.WithBase(ade.MLPPotential(2, (32,)), 0.0, 2.0), sampler, sampler_bound="renyi",
        sampler_optimizer=lambda p: torch.optim.SGD(p, lr=2.0),
    )  # fmt: skip
    steps = [(model.step(torch.randn(32, 2)), layer.step_size.item())[1] for _ in range(20)]
    assert min(steps) > 0 and max(steps) != min(steps)


def test_a_wrong_argument_is_one_sentence() -> None:
    with pytest.raises(TypeError, match="Leapfrog: step_size_positive must be True or False, got 1"):
        ade.Leapfrog(3, step_size_positive=1)
    with pytest.raises(AttributeError, match="no attribute 'momentum_step_size'"):
        _ = ade.Leapfrog(3, step_size_positive=True).momentum_step_size
