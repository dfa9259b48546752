"""The convolutional potential of the image experiments."""

import numbers
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrizations

from ._checks import batch_of, positive_int


class ConvPotential(nn.Module):
    """Table 4a: ``f: (B, channels, height, width) -> (B,)``.

    3x3 convolutions of 64, 128, (2x2 average pool) 128, 256, (2x2 average pool) 256 channels, stride 1, same
    padding, leaky ReLU (0.1) after each; 7x7 average pool; a linear layer from 256 to 1. Spectral norm on
    every layer.

    The 7x7 pool fits the 7x7 map of a 28x28 image. A 32x32 image leaves an 8x8 map, of which it drops the
    last row and column, as the released code does: pixels at the right and lower border count for less.

    Args:
        channels: of the image.
        image_size: height and width, one int for both. Each must be 28 to 55, so that the pool leaves one
            position for the linear layer.
        spectral_norm: divide every weight by its largest singular value
            (``torch.nn.utils.parametrizations.spectral_norm``, one power iteration per use in training mode).
        negative_slope: of leaky ReLU; the paper's text leaves it open, 0.1 is the released code's.

    Attributes:
        channels, image_size, spectral_norm, negative_slope: as given, ``image_size`` as (height, width).
        features: the ``nn.Sequential`` of convolutions, activations and pools; ``head`` the linear layer.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range; an x of another shape.
    """

    def __init__(
        self,
        channels: int,
        image_size: int | Sequence[int],
        *,
        spectral_norm: bool = True,
        negative_slope: float = 0.1,
    ) -> None:
        super().__init__()
        self.channels = positive_int("ConvPotential", "channels", channels)
        sizes: Any = (image_size, image_size) if isinstance(image_size, numbers.Integral) else image_size
        if isinstance(sizes, str) or not isinstance(sizes, Sequence) or len(sizes) != 2:
            raise ValueError(f"ConvPotential: image_size must be an int or (height, width), got {image_size!r}")
        sizes = tuple(positive_int("ConvPotential", "image_size", size) for size in sizes)
        for size in sizes:
            if size // 4 // 7 != 1:
                raise ValueError(
                    "ConvPotential: image_size must be 28 to 55 "
                    f"(two 2x2 pools and one 7x7 pool leave one position), got {image_size!r}"
                )
        self.image_size = sizes
        self.spectral_norm = bool(spectral_norm)
        self.negative_slope = float(negative_slope)
        self.features = nn.Sequential(
            *self._conv(self.channels, 64),
            *self._conv(64, 128),
            nn.AvgPool2d(2),
            *self._conv(128, 128),
            *self._conv(128, 256),
            nn.AvgPool2d(2),
            *self._conv(256, 256),
            nn.AvgPool2d(7),
        )
        self.head = self._normalised(nn.Linear(256, 1))

    def _conv(self, inputs: int, outputs: int) -> tuple[nn.Module, nn.Module]:
        conv = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1)
        return self._normalised(conv), nn.LeakyReLU(self.negative_slope)

    def _normalised(self, layer: nn.Module) -> nn.Module:
        return parametrizations.spectral_norm(layer) if self.spectral_norm else layer

    def forward(self, x: Tensor) -> Tensor:
        batch_of("ConvPotential", x, (self.channels, *self.image_size))
        return self.head(self.features(x).flatten(1)).squeeze(-1)
