"""A Lightning module: one optimizer for both players, made from `ADE.parameter_groups`."""

import sys

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import ade_fast as ade


class Model(lightning.LightningModule):
    """Both players and their objective. Lightning moves, saves and restores what is in ``self.ade``."""

    def __init__(self) -> None:
        super().__init__()
        potential = ade.WithBase(ade.MLPPotential(2, activation="silu", input_gain=3.0), 0.0, 3.0)
        sampler = ade.DualSampler(ade.initial.SplineFlow(2), ade.Leapfrog(2, 0.1, grad_clip=ade.Clip.norm(10.0)))
        self.ade = ade.recipe(potential, sampler, optimizer=False)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.ade(batch[0])  # the objective, with the sign as it stands: f's group has maximize=True
        self.log("gap", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.ade.parameter_groups(), 2e-3, betas=(0.5, 0.999))


def main(smoke: bool = False) -> dict[str, float]:
    lightning.seed_everything(0, verbose=False)
    torch.set_num_threads(1)
    points = ade.data.toy("moons").sample(512 if smoke else 50_000) / 2
    model = Model()
    trainer = lightning.Trainer(
        max_steps=3 if smoke else 1000,
        max_epochs=-1,
        gradient_clip_val=1.0,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=not smoke,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(TensorDataset(points), batch_size=256, shuffle=True))
    held_out = ade.data.toy("moons").sample(2000) / 2
    found = ade.metrics.log_likelihood(
        model.ade.potential, model.ade.sampler, held_out, n_samples=2000 if smoke else 20_000
    )
    print(found)
    return {"log_likelihood": found.mean, "ess": found.ess}


if __name__ == "__main__":
    main("--smoke" in sys.argv)
