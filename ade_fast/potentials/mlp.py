"""A multi-layer perceptron as potential: the f of the two-dimensional experiments."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from ._checks import batch_of, positive_int, positive_number

ACTIVATIONS: dict[str, Callable[[float], nn.Module]] = {
    "relu": lambda slope: nn.ReLU(),
    "leaky_relu": lambda slope: nn.LeakyReLU(slope),
    "softplus": lambda slope: nn.Softplus(),
    "silu": lambda slope: nn.SiLU(),
    "tanh": lambda slope: nn.Tanh(),
    "elu": lambda slope: nn.ELU(),
}
"""The activations by name, each made from leaky ReLU's slope; else with torch's default parameters."""


class MLPPotential(nn.Module):
    """``f: (B, dim) -> (B,)``, a stack of ``nn.Linear`` with an activation after each but the last.

    Source: appendix F.1 (3 hidden layers of 128 units, ReLU).

    Args:
        dim: length of one x.
        hidden: widths of the hidden layers; () makes f linear.
        activation: one of :data:`ACTIVATIONS`. ReLU and leaky ReLU make f piecewise linear: its x-Hessian is
            0 almost everywhere.
        spectral_norm: divide every weight by its largest singular value
            (``torch.nn.utils.parametrizations.spectral_norm``, one power iteration per use in training mode).
        negative_slope: of leaky ReLU; 0.1 as in the image networks, not torch's default of 0.01.
        input_gain: factor on the first layer's initial weights and biases. Above 1 a smooth f starts with sharper
            bends, and learns fine structure in fewer updates; of a positively homogeneous activation (ReLU, leaky ReLU)
            it scales the layer's output alone.

    Attributes:
        dim, hidden, activation, spectral_norm, negative_slope, input_gain: as given.
        layers: the ``nn.Sequential`` of linear layers and activations; ``state_dict`` keys are
            ``layers.0.weight``, ...
        linears: the linear layers, first to last.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range; an x of another shape.
    """

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (128, 128, 128),
        activation: str = "relu",
        spectral_norm: bool = False,
        *,
        negative_slope: float = 0.1,
        input_gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.dim = positive_int("MLPPotential", "dim", dim)
        if isinstance(hidden, str) or not isinstance(hidden, Sequence):
            raise TypeError(f"MLPPotential: hidden must be a tuple of widths, got {hidden!r}")
        self.hidden = tuple(positive_int("MLPPotential", "hidden", width) for width in hidden)
        if activation not in ACTIVATIONS:
            raise ValueError(f"MLPPotential: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        self.activation = activation
        self.spectral_norm = bool(spectral_norm)
        self.negative_slope = float(negative_slope)

        layers: list[nn.Module] = []
        width = self.dim
        for next_width in self.hidden:
            layers += [self._linear(width, next_width), ACTIVATIONS[activation](self.negative_slope)]
            width = next_width
        layers.append(self._linear(width, 1))
        self.layers = nn.Sequential(*layers)
        self.input_gain = positive_number("MLPPotential", "input_gain", input_gain)
        if self.input_gain != 1.0:
            if self.spectral_norm:
                raise ValueError(
                    f"MLPPotential: input_gain must be 1 with spectral_norm, which takes it away, got {input_gain!r}"
                )
            with torch.no_grad():
                for parameter in self.linears[0].parameters():
                    parameter.mul_(self.input_gain)

    def _linear(self, inputs: int, outputs: int) -> nn.Linear:
        linear = nn.Linear(inputs, outputs)
        if self.spectral_norm:
            parametrizations.spectral_norm(linear)
        return linear

    @property
    def linears(self) -> list[nn.Linear]:
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    def forward(self, x: Tensor) -> Tensor:
        batch_of("MLPPotential", x, (self.dim,))
        return self.layers(x).squeeze(-1)
