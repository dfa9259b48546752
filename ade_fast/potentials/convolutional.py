"""The convolutional potentials of images: Table 4a's, and a residual one."""

import numbers
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrizations

from ._checks import batch_of, positive_int

# Table 4a's pool, and the sizes that it takes to one position; any other image is averaged over its whole last map.
_POOL, _TABLE_SIZES = 7, range(28, 56)
_SMALLEST = 8
"""Two halvings have to leave a map."""


def _image_size(layer: str, image_size: int | Sequence[int]) -> tuple[int, int]:
    """``image_size`` as (height, width), each at least 8."""
    sizes: Any = (image_size, image_size) if isinstance(image_size, numbers.Integral) else image_size
    if isinstance(sizes, str) or not isinstance(sizes, Sequence) or len(sizes) != 2:
        raise ValueError(f"{layer}: image_size must be an int or (height, width), got {image_size!r}")
    height, width = (positive_int(layer, "image_size", size) for size in sizes)
    if min(height, width) < _SMALLEST:
        raise ValueError(f"{layer}: image_size must be at least {_SMALLEST}, got {image_size!r}")
    return height, width


def _widths(layer: str, widths: Sequence[int], count: int) -> tuple[int, ...]:
    if isinstance(widths, str) or not isinstance(widths, Sequence) or len(widths) != count:
        raise ValueError(f"{layer}: widths must be {count} channel counts, got {widths!r}")
    return tuple(positive_int(layer, "widths", width) for width in widths)


class ConvPotential(nn.Module):
    """Table 4a: ``f: (B, channels, height, width) -> (B,)``.

    3x3 convolutions of 64, 128, (2x2 average pool) 128, 256, (2x2 average pool) 256 channels, stride 1, same
    padding, leaky ReLU (0.1) after each; 7x7 average pool; a linear layer from 256 to 1. Spectral norm on
    every layer.

    The 7x7 pool fits the 7x7 map of a 28x28 image. A 32x32 image leaves an 8x8 map, of which it drops the
    last row and column, as the released code does: pixels at the right and lower border count for less. Where a
    7x7 pool would not leave one position (a side below 28 or above 55) it is an average over the whole map.

    Args:
        channels: of the image.
        image_size: height and width, one int for both; each at least 8.
        widths: channels of the five convolutions.
        spectral_norm: divide every weight by its largest singular value
            (``torch.nn.utils.parametrizations.spectral_norm``, one power iteration per use in training mode).
        negative_slope: of leaky ReLU; the paper's text leaves it open, 0.1 is the released code's.

    Attributes:
        channels, image_size, widths, spectral_norm, negative_slope: as given, ``image_size`` as (height, width).
        features: the ``nn.Sequential`` of convolutions, activations and pools; ``head`` the linear layer.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range; an x of another shape.
    """

    def __init__(
        self,
        channels: int,
        image_size: int | Sequence[int],
        *,
        widths: Sequence[int] = (64, 128, 128, 256, 256),
        spectral_norm: bool = True,
        negative_slope: float = 0.1,
    ) -> None:
        super().__init__()
        self.channels = positive_int("ConvPotential", "channels", channels)
        self.image_size = _image_size("ConvPotential", image_size)
        self.widths = _widths("ConvPotential", widths, 5)
        self.spectral_norm = bool(spectral_norm)
        self.negative_slope = float(negative_slope)
        tabled = all(size in _TABLE_SIZES for size in self.image_size)
        a, b, c, d, e = self.widths
        self.features = nn.Sequential(
            *self._conv(self.channels, a),
            *self._conv(a, b),
            nn.AvgPool2d(2),
            *self._conv(b, c),
            *self._conv(c, d),
            nn.AvgPool2d(2),
            *self._conv(d, e),
            nn.AvgPool2d(_POOL if tabled else (self.image_size[0] // 4, self.image_size[1] // 4)),
        )
        self.head = _normalised(nn.Linear(e, 1), self.spectral_norm)

    def _conv(self, inputs: int, outputs: int) -> tuple[nn.Module, nn.Module]:
        conv = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1)
        return _normalised(conv, self.spectral_norm), nn.LeakyReLU(self.negative_slope)

    def forward(self, x: Tensor) -> Tensor:
        batch_of("ConvPotential", x, (self.channels, *self.image_size))
        return self.head(self.features(x).flatten(1)).squeeze(-1)


class _ResidualBlock(nn.Module):
    """x + conv(φ(conv(φ(x)))), both sides brought to ``outputs`` channels, then halved where ``halve``."""

    def __init__(self, inputs: int, outputs: int, halve: bool, spectral_norm: bool, negative_slope: float) -> None:
        super().__init__()
        conv = [nn.Conv2d(i, outputs, kernel_size=3, padding=1) for i in (inputs, outputs)]
        first, second = (_normalised(layer, spectral_norm) for layer in conv)
        self.branch = nn.Sequential(nn.LeakyReLU(negative_slope), first, nn.LeakyReLU(negative_slope), second)
        skip = nn.Identity() if inputs == outputs else _normalised(nn.Conv2d(inputs, outputs, 1), spectral_norm)
        self.skip = skip
        self.pool = nn.AvgPool2d(2) if halve else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.skip(x) + self.branch(x))


class ResidualPotential(nn.Module):
    """Residual blocks without normalisation, in the manner of IGEBM (Du and Mordatch, 2019, their Figure 17):
    ``f: (B, channels, height, width) -> (B,)``.

    A 3x3 convolution; for each width two residual blocks of two 3x3 convolutions, the first of which brings the
    channels to that width, the second halves the map by a 2x2 average while it has at least 4 positions to a side;
    leaky ReLU; a sum over the last map's positions; a linear layer. IGEBM's own blocks take a class label; these do
    not. Piecewise linear, as `ConvPotential` is: the exact gradient takes the same short way.

    Args:
        channels: of the image.
        image_size: height and width, one int for both; each at least 8.
        widths: channels of each pair of blocks, at least one.
        spectral_norm, negative_slope: as in `ConvPotential`.

    Attributes:
        channels, image_size, widths, spectral_norm, negative_slope: as given, ``image_size`` as (height, width).

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range; an x of another shape.
    """

    def __init__(
        self,
        channels: int,
        image_size: int | Sequence[int],
        *,
        widths: Sequence[int] = (128, 256, 256),
        spectral_norm: bool = False,
        negative_slope: float = 0.2,
    ) -> None:
        super().__init__()
        self.channels = positive_int("ResidualPotential", "channels", channels)
        self.image_size = _image_size("ResidualPotential", image_size)
        if isinstance(widths, str) or not isinstance(widths, Sequence) or not len(widths):
            raise ValueError(f"ResidualPotential: widths must be at least one channel count, got {widths!r}")
        self.widths = _widths("ResidualPotential", widths, len(widths))
        self.spectral_norm = bool(spectral_norm)
        self.negative_slope = float(negative_slope)
        side, inputs = min(self.image_size), self.widths[0]
        stem = nn.Conv2d(self.channels, inputs, kernel_size=3, padding=1)
        layers: list[nn.Module] = [_normalised(stem, self.spectral_norm)]
        for outputs in self.widths:
            halve = side >= 4
            side = side // 2 if halve else side
            for ends, width in ((False, inputs), (True, outputs)):
                layers.append(_ResidualBlock(width, outputs, halve and ends, self.spectral_norm, self.negative_slope))
            inputs = outputs
        self.features = nn.Sequential(*layers, nn.LeakyReLU(self.negative_slope))
        self.head = _normalised(nn.Linear(inputs, 1), self.spectral_norm)

    def forward(self, x: Tensor) -> Tensor:
        batch_of("ResidualPotential", x, (self.channels, *self.image_size))
        return self.head(self.features(x).sum((2, 3))).squeeze(-1)


def _normalised(layer: nn.Module, spectral_norm: bool) -> nn.Module:
    return parametrizations.spectral_norm(layer) if spectral_norm else layer
