"""Potentials against the formula written out; attributes and state, spectral norm, shapes, misuse."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import ade_fast as ade
from ade_fast import potentials

WRITTEN_OUT = {
    "relu": lambda x: x.clamp(min=0),
    "leaky_relu": lambda x: torch.where(x > 0, x, 0.1 * x),
    "softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
    "silu": lambda x: x / (1 + (-x).exp()),
    "tanh": lambda x: 1 - 2 / (1 + (2 * x).exp()),
    "elu": lambda x: torch.where(x > 0, x, x.exp() - 1),
}


def test_every_activation_is_written_out_here() -> None:
    assert set(WRITTEN_OUT) == set(potentials.ACTIVATIONS)


@pytest.mark.parametrize("activation", WRITTEN_OUT)
@pytest.mark.parametrize("hidden", [(128, 128, 128), (5,), ()])
def test_mlp_equals_the_formula_on_its_state_dict(activation: str, hidden: tuple[int, ...]) -> None:
    f = potentials.MLPPotential(3, hidden, activation).double()
    x = torch.randn(6, 3, dtype=torch.float64)
    state, h = f.state_dict(), x
    for i in range(len(hidden) + 1):
        h = h @ state[f"layers.{2 * i}.weight"].T + state[f"layers.{2 * i}.bias"]
        h = WRITTEN_OUT[activation](h) if i < len(hidden) else h
    assert len(state) == 2 * (len(hidden) + 1)
    assert f(x).shape == (6,)
    torch.testing.assert_close(f(x), h[:, 0], rtol=1e-12, atol=1e-12)
    assert f(x[:0]).shape == (0,)


def test_mlp_attributes() -> None:
    f = potentials.MLPPotential(2)
    assert (f.dim, f.hidden, f.activation, f.spectral_norm) == (2, (128, 128, 128), "relu", False)
    assert [(m.in_features, m.out_features) for m in f.linears] == [
        (2, 128),
        (128, 128),
        (128, 128),
        (128, 1),
    ]
    assert all(type(m) is nn.Linear for m in f.linears)
    assert potentials.MLPPotential(2, activation="leaky_relu").negative_slope == 0.1
    steep = potentials.MLPPotential(2, (4,), "leaky_relu", negative_slope=0.3)
    assert steep.negative_slope == 0.3 and steep.layers[1].negative_slope == 0.3


@pytest.mark.parametrize(
    "make",
    [
        lambda: potentials.MLPPotential(4, (16, 16), spectral_norm=True),
        lambda: potentials.ConvPotential(1, 28),
    ],
)
def test_spectral_norm_bounds_every_weight(make) -> None:
    f = make()
    with torch.no_grad():
        for module in f.modules():
            if hasattr(module, "parametrizations"):
                module.parametrizations.weight.original.mul_(7)
    x = torch.randn(1, 4) if isinstance(f, potentials.MLPPotential) else torch.randn(1, 1, 28, 28)
    for _ in range(60):  # power iterations, one per call in training mode
        f(x)
    f.eval()
    layers = [m for m in f.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    assert layers and all(hasattr(m, "parametrizations") for m in layers)
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1.0, abs=0.05)
    assert torch.equal(f(x), f(x))  # evaluation mode: fixed weights


def test_spectral_norm_can_be_left_off() -> None:
    for f in (potentials.MLPPotential(2), potentials.ConvPotential(1, 28, spectral_norm=False)):
        assert not f.spectral_norm
        assert not any(hasattr(m, "parametrizations") for m in f.modules())


def test_gaussian_is_the_log_density_up_to_its_constant() -> None:
    f = potentials.GaussianPotential(3).double()
    assert torch.equal(f.mean, torch.zeros(3)) and torch.equal(f.log_std, torch.zeros(3))
    with torch.no_grad():
        f.mean.copy_(torch.tensor((-1.0, 0.5, 2.0)))
        f.log_std.copy_(torch.tensor((0.1, 2.0, 0.7)).log())
    x = torch.randn(5, 3, dtype=torch.float64)
    normal = torch.distributions.Normal(f.mean, f.log_std.exp())
    wanted = normal.log_prob(x).sum(1) - normal.log_prob(f.mean).sum()
    torch.testing.assert_close(f(x), wanted, rtol=1e-12, atol=1e-12)
    assert set(dict(f.named_parameters())) == {"mean", "log_std"}


def test_gaussian_gradients() -> None:
    f = potentials.GaussianPotential(2).double()
    x = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, m, s: torch.func.functional_call(f, {"mean": m, "log_std": s}, (x,)), (x, f.mean, f.log_std)
    )
    assert torch.autograd.gradgradcheck(f, (x,))


@pytest.mark.parametrize("trailing", [False, True])
def test_negative_energy(trailing: bool) -> None:
    energy = nn.Sequential(nn.Linear(3, 1)) if trailing else nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))
    f = potentials.NegativeEnergy(energy)
    for n in (0, 1, 5):
        x = torch.randn(n, 3)
        assert f(x).shape == (n,)
        assert torch.equal(f(x), -energy(x).reshape(n))
    assert f.module is energy and set(f.state_dict()) == {"module.0.weight", "module.0.bias"}
    assert potentials.NegativeEnergy(lambda x: x.sum(1))(torch.ones(2, 2)).tolist() == [-2.0, -2.0]


@pytest.mark.parametrize("size", [28, 32, (28, 35)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_conv_equals_table_4a(size, channels_last: bool) -> None:
    f = potentials.ConvPotential(3, size).double().eval()
    height, width = size if isinstance(size, tuple) else (size, size)
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    convolutions = [m for m in f.modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [64, 128, 128, 256, 256]
    h = x
    for i, conv in enumerate(convolutions):
        h = functional.leaky_relu(functional.conv2d(h, conv.weight, conv.bias, padding=1), 0.1)
        if i in (1, 3):
            h = functional.avg_pool2d(h, 2)
    # The 7x7 average leaves out whatever a map of 8x8 has more.
    wanted = h[:, :, :7, :7].mean(dim=(2, 3)) @ f.head.weight[0] + f.head.bias
    given = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    torch.testing.assert_close(f(given), wanted, rtol=1e-9, atol=1e-11)
    assert f(x[:0]).shape == (0,)
    assert f.image_size == (height, width) and f.channels == 3 and f.negative_slope == 0.1


@pytest.mark.parametrize("size", [8, 27, 56, (28, 9)])
def test_conv_averages_the_whole_map_of_other_sizes(size) -> None:
    f = potentials.ConvPotential(1, size, widths=(3, 4, 5, 6, 7), spectral_norm=False).double()
    x = torch.randn(2, 1, *f.image_size, dtype=torch.float64)
    wanted = f.features[:-1](x).mean((2, 3)) @ f.head.weight[0] + f.head.bias
    torch.testing.assert_close(f(x), wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("size", [8, (9, 12)])
def test_residual_potential_is_its_blocks(size) -> None:
    f = potentials.ResidualPotential(2, size, widths=(4, 6, 6), negative_slope=0.2).double()
    x = torch.randn(3, 2, *f.image_size, dtype=torch.float64)
    weights = dict(f.state_dict())

    def conv(x, name):
        weight = weights[f"{name}.weight"]
        return functional.conv2d(x, weight, weights[f"{name}.bias"], padding=weight.shape[-1] // 2)

    h = conv(x, "features.0")
    for i in range(1, 7):
        inner = functional.leaky_relu(conv(functional.leaky_relu(h, 0.2), f"features.{i}.branch.1"), 0.2)
        skip = conv(h, f"features.{i}.skip") if f"features.{i}.skip.weight" in weights else h
        h = skip + conv(inner, f"features.{i}.branch.3")
        if i % 2 == 0 and min(h.shape[2:]) >= 4:
            h = functional.avg_pool2d(h, 2)
    wanted = functional.leaky_relu(h, 0.2).sum((2, 3)) @ f.head.weight[0] + f.head.bias
    torch.testing.assert_close(f(x), wanted, rtol=1e-9, atol=1e-11)
    assert f(x[:0]).shape == (0,)


def test_residual_potential_is_piecewise_linear_and_normalised_where_asked() -> None:
    f = potentials.ResidualPotential(1, 8, widths=(4, 8), spectral_norm=True)
    layers = [m for m in f.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    assert len(layers) == 11 and all(hasattr(layer, "parametrizations") for layer in layers)
    dynamics = ade.Leapfrog(2, 0.1)
    dynamics(f, torch.randn(3, 1, 8, 8)).x.sum().backward()
    assert dynamics.last_plan.piecewise_linear


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: potentials.MLPPotential(0), ValueError, r"MLPPotential: dim must be at least 1, got 0"),
        (lambda: potentials.MLPPotential(2.0), TypeError, r"MLPPotential: dim must be an int, got float"),
        (lambda: potentials.MLPPotential(2, 128), TypeError, r"hidden must be a tuple of widths, got 128"),
        (lambda: potentials.MLPPotential(2, (4, 0)), ValueError, r"MLPPotential: hidden must be at least 1"),
        (lambda: potentials.MLPPotential(2, activation="gelu"), ValueError, r"one of relu, .*, got 'gelu'"),
        (lambda: potentials.MLPPotential(2)(torch.ones(3)), ValueError, r"shape \(B, 2\), got \(3,\)"),
        (lambda: potentials.MLPPotential(2)(torch.ones(3, 1, 2)), ValueError, r"\(B, 2\), got \(3, 1, 2\)"),
        (lambda: potentials.GaussianPotential(True), TypeError, r"GaussianPotential: dim must be an int"),
        (lambda: potentials.GaussianPotential(2)(torch.ones(4, 1)), ValueError, r"\(B, 2\), got \(4, 1\)"),
        (lambda: potentials.NegativeEnergy(3), TypeError, r"NegativeEnergy: module must be .*, got int"),
        (
            lambda: potentials.NegativeEnergy(nn.Linear(3, 2))(torch.ones(4, 3)),
            ValueError,
            r"NegativeEnergy: module must return \(4,\) or \(4, 1\), got \(4, 2\)",
        ),
        (lambda: potentials.NegativeEnergy(torch.sum)(torch.ones(4, 3)), ValueError, r"got \(\)"),
        (lambda: potentials.ConvPotential(0, 28), ValueError, r"ConvPotential: channels must be at least 1"),
        (lambda: potentials.ConvPotential(1, 7), ValueError, r"image_size must be at least 8, got 7"),
        (lambda: potentials.ConvPotential(1, (28, 7)), ValueError, r"at least 8, got \(28, 7\)"),
        (lambda: potentials.ConvPotential(1, 28, widths=(4, 4)), ValueError, r"widths must be 5 channel counts, got"),
        (lambda: potentials.ResidualPotential(1, 28, widths=()), ValueError, r"at least one channel count, got \(\)"),
        (lambda: potentials.ResidualPotential(1, 4), ValueError, r"ResidualPotential: image_size must be at least 8"),
        (lambda: potentials.ConvPotential(1, (28,)), ValueError, r"an int or \(height, width\), got \(28,\)"),
        (lambda: potentials.ConvPotential(1, 28.0), ValueError, r"an int or \(height, width\), got 28\.0"),
        (
            lambda: potentials.ConvPotential(1, 28)(torch.ones(2, 3, 28, 28)),
            ValueError,
            r"ConvPotential: x must have the shape \(B, 1, 28, 28\), got \(2, 3, 28, 28\)",
        ),
    ],
)
def test_misuse(make, error, message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_input_gain_scales_the_first_layers_start():
    torch.manual_seed(0)
    plain = potentials.MLPPotential(3, (32, 32), "silu")
    torch.manual_seed(0)
    gained = potentials.MLPPotential(3, (32, 32), "silu", input_gain=3.0)
    for name, parameter in plain.named_parameters():
        factor = 3.0 if name.startswith("layers.0.") else 1.0
        torch.testing.assert_close(dict(gained.named_parameters())[name], factor * parameter)
    with pytest.raises(ValueError, match="MLPPotential: input_gain must be positive and finite, got 0"):
        potentials.MLPPotential(3, input_gain=0)
    with pytest.raises(TypeError, match="MLPPotential: input_gain must be a number, got str"):
        potentials.MLPPotential(3, input_gain="3")
    with pytest.raises(ValueError, match="input_gain must be 1 with spectral_norm"):
        potentials.MLPPotential(3, spectral_norm=True, input_gain=3.0)
