"""When a run draws what: on the way, and at its end; in the data's own units."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from ..dynamics import AnnealedLeapfrog, Diagnostics
from ..dynamics.base import Dynamics
from . import image_pictures
from .config import GIVEN
from .directory import CONVERGENCE, DIAGNOSTICS, FIGURE, PICTURE
from .evaluation import Evaluation
from .image_source import ImageSource
from .sampler import DualSampler
from .summary import headline
from .trainer import SNAPSHOT_POINTS, Test, Trainer

# `plots` is imported where it is used: `import ade_fast` is not to load matplotlib.


def draw_progress(trainer: Trainer, directory: Path) -> None:
    """The averaged players as they are now, and how they came there."""
    if isinstance(trainer.source, ImageSource):
        return image_pictures.draw_progress(trainer, directory)
    from . import plots

    data, samples = map(trainer.space.to_data, trainer.preview())
    title = f"{_name(trainer)}, update {trainer.update:,}"
    plots.save_learned(directory / PICTURE.format(trainer.update), data, samples, title=title)
    _draw_convergence(trainer, directory, data, trainer.potential_average.module, trainer.sampler_average.module)


def draw_result(trainer: Trainer, test: Test, directory: Path) -> None:
    """The chosen players, beside the truth where that is known."""
    if isinstance(trainer.source, ImageSource):
        return image_pictures.draw_result(trainer, test, directory)
    from . import plots

    model, to_data, name = trainer.model(), trainer.space.to_data, _name(trainer)
    data, samples = to_data(test.data), to_data(test.samples)
    plots.save_learned(
        directory / FIGURE,
        data,
        samples,
        None if test.exact is None else to_data(test.exact),
        None if model.density is None else model.log_prob,
        trainer.source.log_prob,
        title=name,
        scores=_scores(test.evaluation, trainer.source.entropy),
    )
    _draw_convergence(trainer, directory, data, model.potential, model.sampler)
    unroll = getattr(trainer.sampler.dynamics, "diagnostics", None)
    if isinstance(unroll, Diagnostics):
        plots.save_diagnostics(directory / DIAGNOSTICS, unroll, title=f"{name}, last unroll diagnosed")


def _draw_convergence(
    trainer: Trainer, directory: Path, data: Tensor, potential: nn.Module, sampler: DualSampler
) -> None:
    from . import plots

    to_data = trainer.space.to_data
    stages: list[Tensor] = []
    # Of an unroll that is not ours nothing is known, and the first steps of an annealed one are no shorter one's.
    if isinstance(sampler.dynamics, Dynamics) and not isinstance(sampler.dynamics, AnnealedLeapfrog):
        stages = plots.stages(potential, sampler, SNAPSHOT_POINTS, trainer.generator("test_samples"), to_data)
    snapshots = [(update, to_data(samples)) for update, samples in trainer.snapshots]
    plots.save_convergence(
        directory / CONVERGENCE,
        data,
        snapshots,
        stages,
        trainer.history,
        None if trainer.best is None else trainer.best.update,
        entropy=trainer.source.entropy,
        title=_name(trainer),
    )


def _name(trainer: Trainer) -> str:
    data = trainer.config.data
    return "rows given to ade.fit" if data == GIVEN else Path(data).name


def _scores(found: Evaluation, entropy: float | None) -> str:
    return headline(
        nll=found.nll,
        nll_standard_error=found.nll_standard_error,
        entropy=entropy,
        ess=found.ess,
        initial_ess=found.initial_ess,
        p_value=found.p_value,
        exact_p_value=found.exact_p_value,
    )
