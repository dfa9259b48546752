"""An `ADE` in a file, optimizers included, so that hand-written training goes on where it was."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from .checkpoint import CheckpointError, check_finite, load_checkpoint, save_checkpoint, understanding
from .objective import ADE
from .trained import TrainedModel

_KIND = "ADE"
_OPTIMIZERS = ("potential_optimizer", "sampler_optimizer")


def save(model: ADE | TrainedModel, path: str | Path) -> None:
    """Writes a model to a file, atomically.

    Of an `ADE` both players, both optimizers and the number of updates. (No random state, and no settings: `restore`
    fills a model that was built the same way.) Of a `TrainedModel` all there is: `load` makes it again.

    Raises: TypeError if ``model`` is neither; ValueError if its potential is no module, whose parameters nobody knows.
    """
    if isinstance(model, TrainedModel):
        return model.save(path)
    _check("save", model, " or what ade.fit returns")
    optimizers = {name: getattr(model, name) for name in _OPTIMIZERS}
    save_checkpoint(
        path,
        {
            "kind": _KIND,
            "players": model.state_dict(),
            "updates": model.updates,
            **{name: None if o is None else o.state_dict() for name, o in optimizers.items()},
        },
    )


def restore(model: ADE, path: str | Path) -> ADE:
    """Fills a model, built as the one that was saved, from the file; returns it.

    Raises: TypeError, ValueError as `save`; CheckpointError if the file is missing, damaged, or of another model. What
        was loaded by then is overwritten: build the model anew.
    """
    _check("restore", model)
    state = load_checkpoint(path)
    if state.get("kind") != _KIND:
        raise CheckpointError(f"checkpoint: {path} has no ADE of ade.save; ade.load reads trained models, and runs")
    with understanding(path):
        check_finite(state["players"])
        model.load_state_dict(state["players"])
        for name in _OPTIMIZERS:
            optimizer = getattr(model, name)
            if (optimizer is None) != (state[name] is None):
                raise ValueError(f"{name} is there in one of model and file alone")
            if optimizer is not None:
                optimizer.load_state_dict(state[name])
        model.updates = int(state["updates"])
    return model


def _check(name: str, model: object, other: str = "") -> None:
    if not isinstance(model, ADE):
        raise TypeError(f"{name}: model must be an ade.ADE{other}, got {type(model).__name__}")
    if not isinstance(model.potential, nn.Module):
        raise ValueError(
            f"{name}: potential must be an nn.Module, so that its parameters can be seen, got "
            f"{type(model.potential).__name__}"
        )
