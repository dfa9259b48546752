"""Densities with a known normaliser, and dual samplers for them: for the tests of likelihoods and exact samples."""

import math

import torch
from torch import Tensor, nn

import ade_fast as ade

DIM = 2


class Mixture(nn.Module):
    """exp f is ``exp(2)`` times a density: 0.7 N((-2, 0), 0.5²) + 0.3 N((2, 1), diag(1, 0.4²))."""

    log_z = 2.0
    weights = torch.tensor([0.7, 0.3], dtype=torch.float64)
    means = torch.tensor([[-2.0, 0.0], [2.0, 1.0]], dtype=torch.float64)
    stds = torch.tensor([[0.5, 0.5], [1.0, 0.4]], dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.log_z + self.log_prob(x)

    def log_prob(self, x: Tensor) -> Tensor:
        z = (x[:, None] - self.means) / self.stds
        log_p = -0.5 * z.square().sum(-1) - self.stds.log().sum(-1) - math.log(2 * math.pi)
        return torch.logsumexp(log_p + self.weights.log(), 1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        which = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, DIM, generator=generator, dtype=torch.float64)
        return self.means[which] + self.stds[which] * noise


def gaussian() -> tuple[nn.Module, float]:
    """A Gaussian potential without its normaliser, and log Z."""
    f = ade.GaussianPotential(DIM).double().requires_grad_(False)
    f.mean.copy_(torch.tensor([0.5, -1.0]))
    f.log_std.copy_(torch.tensor([0.3, -0.2]))
    return f, math.log(2 * math.pi) + 0.3 - 0.2


def network(inputs: int) -> nn.Module:
    """A small S or g of (F(x), x) or of v."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(inputs * DIM, DIM)

        def forward(self, *arguments: Tensor) -> Tensor:
            return 0.05 * torch.tanh(self.layer(torch.cat(arguments, 1)))

    return Net()


DYNAMICS = {
    "leapfrog": lambda: ade.Leapfrog(3, 0.2),
    "generalized": lambda: ade.GeneralizedLeapfrog(3, 0.2, scale_v=network(2), scale_x=network(1)),
    "damped": lambda: ade.DampedLeapfrog(2, 0.2, 0.9, drift_step=0.3),
}


def sampler(kind: str = "leapfrog", std: float = 2.5) -> ade.DualSampler:
    """From a Gaussian wider than the densities here, in x and, where the dynamics scales momenta, in v."""
    momentum = ade.initial.Gaussian(DIM, 1.3) if kind == "generalized" else None
    start = ade.initial.Gaussian(DIM, std, momentum=momentum)
    return ade.DualSampler(start, DYNAMICS[kind]()).double().requires_grad_(False)
