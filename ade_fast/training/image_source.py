"""Images to learn from: bytes in memory, made continuous as they are drawn, in coordinates from -1 to 1."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.image_sets import ImageSet, image_set
from .streams import stream


@dataclass(frozen=True)
class ImageSpace:
    """The coordinates z = 2 x - 1 of pixels x in [0, 1]; the interface of `Space`.

    event: (channels, height, width).
    """

    event: tuple[int, ...]

    range = (-1.0, 1.0)

    @property
    def log_det(self) -> float:
        """log|dz/dx|."""
        return math.prod(self.event) * math.log(2.0)

    def to_z(self, x: Tensor) -> Tensor:
        """Pixels [n, *event] in [0, 1] -> z, float32."""
        return 2 * x.float() - 1

    def to_data(self, z: Tensor) -> Tensor:
        """z [n, *event] -> pixels, float32, those beyond black and white brought back to them."""
        return ((z.float() + 1) / 2).clamp(0, 1)

    def state_dict(self) -> dict[str, Any]:
        return {"image": list(self.event)}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> ImageSpace:
        return cls(tuple(state["image"]))


class ImageSource:
    """An image set; every draw of an image is made continuous anew: (level + U[0, 1)) / levels.

    Attributes:
        space: the coordinates that all points are in.
        endless: True. The noise is new in every draw, and what training on images looks for are the latest players that
            do not do worse: no early stop.
        log_prob, entropy, entropy_exact: None, nothing is known.
        fingerprint: of all pixels.

    Args:
        name: a set or its folder, see `data.image_sets`.
        validation_fraction, test_fraction: of the training images; test only where the set has no test images.
        seed: of the split.
        images: the set itself, read already.
    """

    endless = True
    log_prob = entropy = entropy_exact = None

    def __init__(
        self, name: str, *, validation_fraction: float, test_fraction: float, seed: int, images: ImageSet | None = None
    ):
        found = image_set(name) if images is None else images
        self.levels = found.levels
        order = torch.randperm(len(found.train), generator=stream(seed, "split"))
        held = [max(2, round(validation_fraction * len(order)))]
        held.append(0 if len(found.test) else max(2, round(test_fraction * len(order))))
        validation, test, train = order.split([*held, len(order) - sum(held)])
        self.images, self.labels = found.train[train], found.train_labels[train]
        self._validation = found.train[validation]
        own = len(found.test) > 0
        self.test_images = found.test if own else found.train[test]
        self.test_labels = found.test_labels if own else found.train_labels[test]
        self.space = ImageSpace(tuple(found.train.shape[1:]))
        self.fingerprint = _fingerprint(found.train, found.test)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n of the training images, at random with replacement, in z."""
        rows = torch.randint(len(self.images), (n,), generator=generator)
        return self.continuous(self.images[rows], generator)

    def validation(self, n: int, generator: torch.Generator) -> Tensor:
        """The first n images to choose by, in z."""
        return self.continuous(self._validation[:n], generator)

    def test(self, n: int, generator: torch.Generator) -> Tensor:
        """The first n images to score the result on, in z."""
        return self.continuous(self.test_images[:n], generator)

    def continuous(self, levels: Tensor, generator: torch.Generator) -> Tensor:
        """Bytes [n, *event] as z, each level spread over its own interval."""
        noise = torch.rand(levels.shape, generator=generator)
        return self.space.to_z((levels + noise) / self.levels)

    def pixels(self, levels: Tensor) -> Tensor:
        """Bytes as pixels in [0, 1]."""
        return levels.float() / (self.levels - 1)

    def nearest(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Of each image [n, *event] the distance to its nearest training image [n], in pixels, and that image."""
        distances, images = [], []
        train = self.pixels(self.images).flatten(1)
        for part in pixels.flatten(1).cpu().split(256):
            distance, row = torch.cdist(part, train).min(1)
            distances.append(distance)
            images.append(train[row])
        return torch.cat(distances), torch.cat(images).reshape(pixels.shape)


def _fingerprint(*sets: Tensor) -> str:
    digest = hashlib.sha256()
    for images in sets:
        digest.update(repr(tuple(images.shape)).encode())
        digest.update(images.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
