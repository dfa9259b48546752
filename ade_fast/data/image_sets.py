"""Image sets by name or folder, as unsigned bytes: a whole set in memory takes a quarter of what floats would."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .images import LabelledImages, cifar10, digits, mnist

IMAGE_SETS = ("digits", "mnist", "fashion-mnist", "cifar10")
"""Sets that `image_set` knows by name."""

# The parts of a set that may be looked for, by what its folder holds.
_READERS = (("train-images-idx3-ubyte", mnist), ("train-images.idx3-ubyte", mnist), ("data_batch_1", cifar10))
_INSIDE = ("", "MNIST/raw", "raw", "cifar-10-batches-py", "cifar-10-batches-bin")
_LEVELS = {"digits": 17}  # of grey; all other sets have bytes


class ImageSet(NamedTuple):
    """Pixels as levels 0 .. ``levels`` - 1.

    train, test: ``(N, C, H, W)`` uint8; test has no rows where the set has no part of its own for it.
    train_labels, test_labels: ``(N,)`` int64.
    levels: how many there are.
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    levels: int


def is_image_set(name: str) -> bool:
    """Whether ``name`` is a set's, or a folder's that holds one."""
    return name in IMAGE_SETS or (os.path.isdir(name) and _reader(Path(name)) is not None)


def image_set(name: str) -> ImageSet:
    """A set by its name or by its folder. Nothing is downloaded.

    ``digits`` are scikit-learn's. The others' published files are looked for in ``$ADE_FAST_DATA/NAME``, ``data/NAME``
    and ``/usr/share/datasets/NAME``, where Debian's package dataset-fashion-mnist puts them.

    Raises:
        FileNotFoundError: the files are nowhere; the message names the folders.
        ImportError: scikit-learn is not installed (digits). ValueError: a file is damaged.
    """
    if name == "digits":
        return _joined(digits(), None, _LEVELS[name])
    folders = [Path(name)] if name not in IMAGE_SETS else _folders(name)
    for folder in folders:
        read = _reader(folder)
        if read is not None:
            return _joined(read(folder, train=True), read(folder, train=False), 256)
    looked = ", ".join(map(str, folders))
    raise FileNotFoundError(
        f"data.image_set: the published files of {name} are in none of {looked}; put them there, or give their folder"
    )


def _folders(name: str) -> list[Path]:
    own = os.environ.get("ADE_FAST_DATA")
    roots = [*([Path(own)] if own else []), Path("data"), Path("/usr/share/datasets")]
    return [root / name for root in roots]


def _reader(folder: Path) -> Callable[..., Any] | None:
    """The reader of what a folder holds; None: of nothing."""
    for stem, read in _READERS:
        for inside in _INSIDE:
            if any((folder / inside / (stem + suffix)).is_file() for suffix in ("", ".gz", ".bin")):
                return read
    return None


def _joined(train: LabelledImages, test: LabelledImages | None, levels: int) -> ImageSet:
    if test is None:
        test = LabelledImages(train.images[:0], train.labels[:0])
    pixels = (part.images.mul(levels - 1).round_().to(torch.uint8) for part in (train, test))
    first, second = pixels
    return ImageSet(first, train.labels, second, test.labels, levels)
