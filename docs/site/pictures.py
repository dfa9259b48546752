"""Makes the pictures of docs/method.md: `python docs/site/pictures.py`, some minutes on one core."""

import io
import tempfile
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image

import ade_fast as ade
from ade_fast import plots
from ade_fast.training.plots import stages

HERE = Path(__file__).parents[1] / "pictures"


def save(figure: Figure, name: str) -> None:
    """With few colours, as small files: they are in the repository."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=90)
    Image.open(buffer).convert("RGB").quantize(96).save(HERE / f"{name}.png", optimize=True)


def trained() -> None:
    """What a run of defaults learns: densities and samples, training curves."""
    seen: list[tuple[int, torch.Tensor]] = []

    def watch(progress: ade.training.Progress) -> None:
        seen.append((progress.update, progress.model().sample(1000)))
        history.append(progress.scores)

    history: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as out:
        model = ade.fit("2spirals", validate_every=250, callbacks=watch, out=out, pictures_every=0)
    toy = ade.data.toy("2spirals")
    points = toy.sample(2000, torch.Generator().manual_seed(1))
    exact = model.sample(2000, exact="resample")
    save(plots.learned(points, model.sample(2000), exact, model.log_prob, toy.log_prob), "learned")
    save(plots.convergence(points, seen, [], history, model.update, entropy=toy.entropy()[0]), "training")


def chains() -> None:
    """x^0 ... x^T on a density that is not learned, and the diagnostics of that unroll."""
    torch.manual_seed(0)
    rings = ade.data.toy("circles")
    net = ade.MLPPotential(2, activation="silu", input_gain=3.0)
    data = rings.sample(4000) / rings.sample(4000).std()
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(600):
        x = data[torch.randint(len(data), (256,))]
        loss = ade.estimators.denoising_score_matching(net, x, noise_std=0.2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    layer = ade.Leapfrog(12, 0.06, grad_clip=ade.Clip.norm(10.0))
    sampler = ade.DualSampler(ade.initial.Gaussian(2), layer)
    steps = stages(net, sampler, 1000, torch.Generator().manual_seed(2))
    save(plots.convergence(data[:2000], [], steps, []), "chains")
    x, v, _ = layer(net, torch.randn(1000, 2), diagnostics=True)
    (x.square().sum() + v.square().sum()).backward()
    save(plots.unroll(layer.diagnostics), "unroll")


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    chains()
    trained()
