"""Inception score (Salimans et al., 2016), for any classifier."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..initial.base import as_count


class InceptionScore(NamedTuple):
    """Mean and (population) standard deviation of the score over the splits, Python floats."""

    mean: float
    std: float


def inception_score(
    images: Tensor, classifier: Callable[[Tensor], Tensor], splits: int = 10, *, batch_size: int = 100
) -> InceptionScore:
    """``exp( E_x KL( p(y|x) ‖ p(y) ) )``, with ``p(y)`` the mean of ``p(y|x)``, in each of ``splits`` parts.

    Table 3's scores use the Inception v3 network that comes with the original code; a score is comparable
    only to scores of the same classifier, preprocessing and number of images (50,000 in 10 splits).

    Args:
        images: ``(N, *event)`` as the classifier wants them, at least one per split.
        classifier: maps ``(b, *event)`` to logits ``(b, classes)`` (log-probabilities are logits too,
            probabilities are not). A module is put in evaluation mode for the call and restored after it.
        splits: number of consecutive parts, whose sizes differ by at most one.
        batch_size: images per call of the classifier.

    Returns:
        ``(mean, std)`` over the splits. The score lies between 1 and the number of classes.

    Raises:
        TypeError: ``images`` is no tensor, the classifier is not callable, or a count is no integer.
        ValueError: too few images, counts below 1, logits of a wrong shape or not finite.
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"inception_score: images must be a tensor, got {type(images).__name__}")
    if not callable(classifier):
        raise TypeError(f"inception_score: classifier must be callable, got {type(classifier).__name__}")
    splits = as_count("inception_score", "splits", splits, least=1)
    batch_size = as_count("inception_score", "batch_size", batch_size, least=1)
    if images.ndim < 1 or len(images) < splits:
        raise ValueError(
            f"inception_score: images must hold at least {splits} images, one per split, got {tuple(images.shape)}"
        )
    with torch.no_grad(), _evaluating(classifier):
        log_p = torch.cat([_log_probabilities(classifier, batch) for batch in images.split(batch_size)])
    scores = torch.stack([_score(part) for part in log_p.tensor_split(splits)])
    return InceptionScore(scores.mean().item(), scores.std(correction=0).item())


def _log_probabilities(classifier: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    logits = classifier(batch)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(batch):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"inception_score: classifier must return logits ({len(batch)}, classes), got {got}")
    if not bool(logits.isfinite().all()):
        raise ValueError("inception_score: classifier must return finite logits, got NaN or infinity")
    return logits.double().log_softmax(dim=1)


def _score(log_p: Tensor) -> Tensor:
    log_marginal = log_p.logsumexp(dim=0) - torch.log(log_p.new_tensor(len(log_p)))
    return (log_p.exp() * (log_p - log_marginal)).sum(dim=1).mean().exp()


@contextmanager
def _evaluating(classifier: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Evaluation mode for the block; each submodule gets its own flag back."""
    training = [m for m in classifier.modules() if m.training] if isinstance(classifier, nn.Module) else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
