"""An `ADE` in a file, optimizers included, so that hand-written training goes on where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from .checkpoint import CheckpointError, check_finite, load_checkpoint, save_checkpoint, understanding
from .objective import ADE
from .sharding import has_parts
from .trained import TrainedModel

_KIND = "ADE"
_OPTIMIZERS = ("potential_optimizer", "sampler_optimizer")


def save(model: ADE | TrainedModel, path: str | Path) -> None:
    """Writes a model to a file, atomically.

    Of an `ADE` both players, both optimizers and the number of updates. (No random state, and no settings: `restore`
    fills a model that was built the same way. Of an `ade.shard` potential, by all processes together, the path becomes
    a directory of torch.distributed.checkpoint.) Of a `TrainedModel` all there is: `load` makes it again.

    Raises: TypeError if ``model`` is neither; ValueError if its potential is no module, whose parameters nobody knows.
    """
    if isinstance(model, TrainedModel):
        return model.save(path)
    _check("save", model, " or what ade.fit returns")
    if has_parts(model):
        return _save_parts(model, Path(path))
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
    if has_parts(model):
        return _restore_parts(model, Path(path))
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


def _optimizers(model: ADE) -> list[Optimizer]:
    return [optimizer for name in _OPTIMIZERS if (optimizer := getattr(model, name)) is not None]


def _parts(model: ADE) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import get_state_dict

    players, optimizers = get_state_dict(model, _optimizers(model))
    return {"kind": _KIND, "players": players, "optimizers": optimizers, "updates": model.updates}


def _save_parts(model: ADE, path: Path) -> None:
    from torch.distributed.checkpoint import state_dict_saver

    state_dict_saver.save(_parts(model), checkpoint_id=path)


def _restore_parts(model: ADE, path: Path) -> ADE:
    from torch.distributed.checkpoint import state_dict_loader
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict import set_state_dict

    state = _parts(model)
    try:
        state_dict_loader.load(state, checkpoint_id=path)
    except (CheckpointException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"checkpoint: {path} is not one of this model, written by ade.save: {reason}") from error
    of_players, of_optimizers = state["players"], state["optimizers"]
    set_state_dict(model, _optimizers(model), model_state_dict=of_players, optim_state_dict=of_optimizers)
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
