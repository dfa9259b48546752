"""The deep latent-variable model (39), (40): the initial distribution of the image experiments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NoReturn, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from .base import InitialDistribution, InitialSample, as_count, as_shape, as_std, standard_normal_log_density

# Table 4b: the map that the dense layer makes, and the strided layers, each of which doubles its sides.
_FIRST = 512
_STRIDED = (256, 128, 64)
_DOUBLED = 2 ** len(_STRIDED)


class _Vectors(nn.Module):
    """An MLP from v ``(n, latent)`` to mean and the logit of the scale, ``(n, *event)`` each."""

    def __init__(self, latent: int, event: tuple[int, ...], hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.event = event
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((latent, *hidden)):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        width = hidden[-1] if hidden else latent
        self.layers = nn.Sequential(*layers, nn.Linear(width, 2 * math.prod(event)))

    def forward(self, v: Tensor) -> tuple[Tensor, Tensor]:
        mean, logit = self.layers(v).chunk(2, dim=1)
        return mean.reshape(len(v), *self.event), logit.reshape(len(v), *self.event)


class _Images(nn.Module):
    """Table 4b's network and its twin: v ``(n, latent)`` to mean and the logit of the scale, ``(n, C, H, W)`` each.

    The first map has an eighth of the image's sides, rounded up (4 by 4 for 32 by 32); what is then too much is cut off
    at the lower and right border.
    """

    def __init__(self, latent: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.channels, *self.sides = image_shape
        self.first = (_FIRST, *(-(-side // _DOUBLED) for side in self.sides))
        self.dense = nn.Linear(latent, math.prod(self.first), bias=False)
        self.start = nn.Sequential(nn.BatchNorm2d(_FIRST), nn.ReLU())
        self.mean, self.scale = (self._tower(self.channels) for _ in range(2))

    @staticmethod
    def _tower(channels: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((_FIRST, *_STRIDED)):
            deconvolution = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)
            layers += [deconvolution, nn.BatchNorm2d(outputs), nn.ReLU()]
        return nn.Sequential(*layers, nn.ConvTranspose2d(_STRIDED[-1], channels, 3, padding=1))

    def forward(self, v: Tensor) -> tuple[Tensor, Tensor]:
        height, width = self.sides
        if len(v) == 0:  # of which batch norm would keep the statistics: NaN
            empty = v.new_zeros(0, self.channels, height, width)
            return empty, empty
        first = self.start(self.dense(v).view(len(v), *self.first))
        return self.mean(first)[..., :height, :width], self.scale(first)[..., :height, :width]


class DeepLatent(InitialDistribution):
    """``v ~ q(v)``, ``x = φ(v) + σ(v) ⊙ ε`` with ``ε ~ N(0, I)``: the joint density ``N(x; φ(v), diag σ(v)²) q(v)``.

    v is the momentum at once: :meth:`sample` wants ``momentum_shape=(latent_dim,)``, that of a
    ``GeneralizedLeapfrog(..., momentum_shape=latent_dim)`` where latent_dim is not x's. x alone has no density that is
    known, so that dynamics without q⁰'s momentum are refused.

    Its samples lie within ``max_std`` of a sheet of ``latent_dim`` dimensions. Where that is thin (1e-3 for images, as
    in the experiments) importance weights are defined, and useless: a likelihood found with them means nothing.

    Source: eqs. (39), (40); Table 4b and F.2 for images. ``σ = max_std · sigmoid(·)`` comes from a twin of φ's tower
    behind the same first map. The towers have batch norm: in training mode φ(v) depends on the other v of the batch,
    and the sum of ``log_q`` is the log-density of the batch as a whole.

    Args:
        latent_dim: length of one v.
        image_shape: shape of one x. ``(channels, height, width)`` has the networks of Table 4b; any other shape, of
            which an int is a vector's length, an MLP.
        hidden: widths of the MLP's hidden layers.
        max_std: the upper limit of σ. None is 1e-3 for images, else 1.
        momentum: q(v), of event ``(latent_dim,)``; None is N(0, I).

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range.
    """

    def __init__(
        self,
        latent_dim: int,
        image_shape: int | Sequence[int],
        hidden: int | Sequence[int] = (128, 128),
        *,
        max_std: float | None = None,
        momentum: InitialDistribution | None = None,
    ) -> None:
        layer = "DeepLatent"
        super().__init__(as_shape(layer, "image_shape", image_shape), momentum=momentum)
        self.latent_dim = as_count(layer, "latent_dim", latent_dim, least=1)
        if momentum is not None and momentum.event != (self.latent_dim,):
            raise ValueError(f"{layer}: momentum must have the event ({self.latent_dim},) of v, got {momentum.event}")
        images = len(self.event) == 3
        self.max_std = as_std(layer, "max_std", (1e-3 if images else 1.0) if max_std is None else max_std)
        hidden = as_shape(layer, "hidden", hidden)
        self.network = (
            _Images(self.latent_dim, cast(tuple[int, int, int], self.event))
            if images
            else _Vectors(self.latent_dim, self.event, hidden)
        )

    def decode(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """``(φ(v), log σ(v))``: ``(n, latent_dim)`` to ``(n, *event)`` twice.

        Raises: ValueError: v has another shape.
        """
        if v.ndim != 2 or v.shape[1] != self.latent_dim:
            raise ValueError(f"DeepLatent: v must have the shape (n, {self.latent_dim}), got {tuple(v.shape)}")
        mean, logit = self.network(v)
        return mean, functional.logsigmoid(logit) + math.log(self.max_std)

    def sample(
        self, n: int, momentum_shape: Sequence[int] | None = None, generator: torch.Generator | None = None
    ) -> InitialSample:
        """Draw ``(x⁰, v⁰)`` with their joint log-density; arguments as in `InitialDistribution.sample`.

        Raises:
            ValueError: ``momentum_shape`` is not ``(latent_dim,)``.
        """
        n = as_count("DeepLatent", "n", n, least=0)
        if momentum_shape is None:
            self._refuse_x_alone()
        if as_shape("DeepLatent", "momentum_shape", momentum_shape) != (self.latent_dim,):
            raise ValueError(
                f"DeepLatent: momentum_shape must be ({self.latent_dim},), v's, got {tuple(momentum_shape)}: use a "
                f"dynamics with momentum_shape={self.latent_dim} (ade.GeneralizedLeapfrog)"
            )
        with torch.autocast(self._anchor.device.type, enabled=False):
            v, log_q_v = self._sample_v(n, (self.latent_dim,), generator)
            mean, log_std = self.decode(v)
            noise = self._normal((n, *self.event), generator)
            x = torch.addcmul(mean, log_std.exp(), noise)
            log_q_x = standard_normal_log_density(noise) - log_std.reshape(n, math.prod(self.event)).sum(1)
            return InitialSample(x, v, None if log_q_v is None else log_q_v + log_q_x)

    def sample_x(self, n: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        self._refuse_x_alone()

    def _refuse_x_alone(self) -> NoReturn:
        raise ValueError(
            f"DeepLatent: momentum_shape must be ({self.latent_dim},), got None: the density that is known is that of "
            f"x and v together, with v as the momentum of a dynamics that takes one"
        )

    def extra_repr(self) -> str:
        return f"latent_dim={self.latent_dim}, event={self.event}, max_std={self.max_std:g}"
