"""A conditional energy-based model: f(x, label), one potential and one sampler for three classes.

Weights of samples at different conditions have no common log Z, so that both bounds are the paper's (20).
"""

import sys

import torch
from torch import Tensor, nn

import ade_fast as ade


class Conditional(nn.Module):
    """(B, 2) and labels (B,) -> (B,), on a Gaussian base measure so that exp f has an integral."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.label = nn.Embedding(n_classes, 16)
        self.net = nn.Sequential(nn.Linear(2 + 16, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 1))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        f = self.net(torch.cat([x, self.label(label)], 1)).squeeze(1)
        return f - 0.5 * (x / 3).square().sum(1)


def draw(n: int) -> tuple[Tensor, Tensor]:
    """Three clouds: the class says where."""
    label = torch.randint(3, (n,))
    angle = label * (2 * torch.pi / 3)
    centre = 1.5 * torch.stack([angle.cos(), angle.sin()], 1)
    return centre + 0.3 * torch.randn(n, 2), label


def main(smoke: bool = False) -> dict[str, float]:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    potential = Conditional(3)
    sampler = ade.DualSampler(ade.initial.Gaussian(2, 1.5), ade.Leapfrog(10, 0.1, grad_clip=ade.Clip.norm(10.0)))
    model = ade.ADE(potential, sampler, gradient_penalty=0.02, grad_norm_clip=1.0)
    for _ in range(3 if smoke else 600):
        x, label = draw(256)
        model.step(x, condition=label)  # samples are drawn at the data's labels

    errors = []
    for k in range(3):
        x, label = draw(3000)
        samples = sampler.sample(potential, 1000, condition=torch.full((1,), k)).x.detach()
        errors.append((samples.mean(0) - x[label == k].mean(0)).norm().item())
        print(f"class {k}: mean of samples {samples.mean(0).tolist()}, off by {errors[-1]:.2f}")
    return {"error": max(errors)}


if __name__ == "__main__":
    main("--smoke" in sys.argv)
