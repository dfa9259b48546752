"""Toy distributions against closed-form moments and supports; image readers against files written here."""

import gzip
import math
import pickle
import struct

import numpy as np
import pytest
import torch

from ade_fast import data

N = 40_000


def points(name: str, n: int = N, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return data.toy(name).sample(n, torch.Generator().manual_seed(seed), dtype=dtype)


def assert_mean(values: torch.Tensor, wanted: float, sigmas: float = 5.0) -> None:
    """The sample mean of independent values is within ``sigmas`` standard errors of what it should be."""
    error = values.std().item() / math.sqrt(len(values))
    assert abs(values.mean().item() - wanted) < sigmas * error + 1e-12


# --- what every toy set promises ---


def test_names_are_those_of_table_2_and_two_more() -> None:
    table_2 = ("2spirals", "Banana", "circles", "cos", "Cosine", "Funnel", "swissroll", "line", "moons")
    table_2 += ("Multiring", "pinwheel", "Ring", "Spiral", "Uniform")
    assert data.TOY_NAMES == (*table_2, "checkerboard", "8gaussians")  # noqa: SIM300


@pytest.mark.parametrize("name", data.TOY_NAMES)
def test_toy_shape_dtype_and_name(name: str) -> None:
    toy = data.toy(name)
    assert toy.name == name and toy.event == (2,)
    for dtype in (torch.float32, torch.float64):
        x = toy.sample(7, dtype=dtype)
        assert x.shape == (7, 2) and x.dtype == dtype and x.device.type == "cpu"
    assert toy.sample(3).dtype == torch.float32
    assert toy.sample(0).shape == (0, 2)
    assert data.toy(name.upper()) is toy


@pytest.mark.parametrize("name", data.TOY_NAMES)
def test_toy_is_reproducible_and_leaves_the_global_generator_alone(name: str) -> None:
    before = torch.random.get_rng_state()
    first, again, other = points(name, 50), points(name, 50), points(name, 50, seed=1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("name", data.TOY_NAMES)
def test_toy_range_holds_the_points_and_is_not_too_wide(name: str) -> None:
    lo, hi = data.toy(name).range
    x = points(name)
    outside = ((x < lo) | (x > hi)).any(dim=1).double().mean().item()
    assert outside < 1e-3
    assert (x.max() - x.min()).item() > 0.6 * (hi - lo)


@pytest.mark.parametrize("name", data.TOY_NAMES)
def test_toy_draws_are_independent(name: str) -> None:
    """Independent draws have uncorrelated neighbours, and random counts: a fixed split of the points over
    arms or moons, or angles on a grid, would make the mean of a batch vary too little."""
    x = points(name)
    centred = (x - x.mean(dim=0)) / x.std(dim=0)
    for lag in (1, 2, 3, 5, N // 2):
        correlation = (centred[lag:] * centred[:-lag]).mean(dim=0)
        assert correlation.abs().max().item() < 5 / math.sqrt(N - lag)
    features = torch.cat((centred, centred.square(), centred.prod(dim=1, keepdim=True)), dim=1)
    batches = features.view(400, N // 400, -1)
    ratio = batches.mean(dim=1).var(dim=0) * (N // 400) / features.var(dim=0)
    assert (ratio - 1).abs().max().item() < 5 * math.sqrt(2 / 400)


def test_toy_float64_draws_have_float64_precision() -> None:
    """No constant of a generator is rounded to float32 on the way."""
    x = points("cos", 100)
    assert torch.equal(x[:, 1], 2.5 * x[:, 0].sin())
    for name in data.TOY_NAMES:
        assert not torch.equal(points(name, 20), points(name, 20).float().double())


# --- each generator ---


def test_two_spirals() -> None:
    x = points("2spirals")
    assert_mean(x[:, 0], 0.0)
    assert_mean(x[:, 1], 0.0)
    # |arm|² = r² + b² + c² + 2r (c sin r - b cos r), with b, c ~ U(0, 1/2) and r² ~ U(0, a²).
    a = math.radians(540)
    r = torch.linspace(0, a, 200_001, dtype=torch.float64)
    cross = torch.trapezoid(2 * r * 0.25 * (r.sin() - r.cos()) * 2 * r / a**2, r).item()
    assert_mean(x.square().sum(dim=1), (a**2 / 2 + 2 / 12 + cross) / 9 + 2 * 0.01)


def test_banana() -> None:
    x, y = points("Banana").unbind(1)
    residual = y - 0.2 * (x.square() - 4)
    for value, std in ((x, 2.0), (residual, 1.0)):
        assert_mean(value, 0.0)
        assert_mean(value.square(), std**2)
    assert_mean(x * residual, 0.0)


def test_circles() -> None:
    x = points("circles")
    r = x.norm(dim=1)
    outer = r > 2.25
    assert_mean(outer.double(), 0.5)
    for radius, on in ((3.0, outer), (1.5, ~outer)):
        assert_mean(x[on].square().sum(dim=1), radius**2 + 2 * 0.24**2)
        assert_mean(x[on][:, 0], 0.0)
        assert_mean(x[on].prod(dim=1), 0.0)


def test_cos() -> None:
    x, y = points("cos").unbind(1)
    assert torch.equal(y, 2.5 * x.sin())
    assert x.abs().max() <= 2.5
    assert_mean(x.square(), 25 / 12)
    assert_mean(x, 0.0)


def test_cosine() -> None:
    x, y = points("Cosine").unbind(1)
    assert x.abs().max() <= 4
    assert_mean(x.square(), 64 / 12)
    residual = y - 3 * (2 * x).cos()
    assert_mean(residual, 0.0)
    assert_mean(residual.square(), 1.0)
    assert_mean(residual * x, 0.0)


def test_funnel() -> None:
    x, y = points("Funnel").unbind(1)
    assert_mean(x.square(), 4.0)
    scaled = y / (-x).exp().clamp(max=10).sqrt()
    assert_mean(scaled, 0.0)
    assert_mean(scaled.square(), 1.0)
    assert_mean(scaled.pow(4), 3.0)
    assert_mean(y[x < -math.log(10)].square(), 10.0)


def test_swissroll() -> None:
    x = points("swissroll")
    t = torch.linspace(1.5 * math.pi, 4.5 * math.pi, 200_001, dtype=torch.float64)
    assert_mean(x[:, 0], ((t * t.cos()).mean() / 5).item())
    assert_mean(x[:, 1], ((t * t.sin()).mean() / 5).item())
    assert_mean(x.square().sum(dim=1), (t.square().mean().item() + 2) / 25)


def test_line() -> None:
    x, y = points("line").unbind(1)
    assert torch.equal(x, y)
    assert x.abs().max() <= 2.5
    assert_mean(x.square(), 25 / 12)
    assert_mean(x, 0.0)


def test_moons() -> None:
    """One arc is the other turned by half a circle, so the centre and the symmetry are known."""
    x = (points("moons") + torch.tensor((1.0, 0.2), dtype=torch.float64)) / 2  # scikit-learn's coordinates
    assert_mean(x[:, 0], 0.5)
    assert_mean(x[:, 1], 0.25)
    assert_mean((x[:, 1] > 0.25).double(), 0.5)
    distance = torch.minimum(
        (x.norm(dim=1) - 1).abs(), ((x - torch.tensor((1.0, 0.5), dtype=torch.float64)).norm(dim=1) - 1).abs()
    )
    assert distance.max() < 0.5
    # Each moon: the arc's mean, (0, 2/π), and 1 + 2 · 0.1² for the mean of the squared norm.
    assert_mean(x[:, 1].square(), 0.5 * ((0.5 + 0.01) + (0.25 - 2 / math.pi + 0.5 + 0.01)))
    assert_mean(x[:, 0].square(), 0.5 * ((0.5 + 0.01) + (1.0 + 0.5 + 0.01)))


@pytest.mark.parametrize(("name", "radii"), [("Ring", (5.0,)), ("Multiring", (1.0, 3.0, 5.0))])
def test_rings(name: str, radii: tuple[float, ...]) -> None:
    x = points(name)
    r, angle = x.norm(dim=1), torch.atan2(x[:, 1], x[:, 0])
    for k in (1, 2, 3):
        assert_mean((k * angle).cos(), 0.0)
        assert_mean((k * angle).sin(), 0.0)
    nearest = (r[:, None] - torch.tensor(radii, dtype=torch.float64)).abs().argmin(dim=1)
    for i, radius in enumerate(radii):
        on = nearest == i
        assert_mean(on.double(), radius / sum(radii))
        assert_mean(r[on], radius)
        assert_mean((r[on] - radius).square(), 0.04)


def test_pinwheel() -> None:
    x = points("pinwheel")
    # Rotations leave the norm: 4 (radial² + tangential²).
    assert_mean(x.square().sum(dim=1), 4 * (1 + 0.09 + 0.01))
    # Undo the twist. Rotations are clockwise, and an arm's angle grows with exp(radius).
    r = x.norm(dim=1) / 2
    turns = (-torch.atan2(x[:, 1], x[:, 0]) - 0.25 * r.exp()) / (2 * math.pi / 5)
    off_arm = (turns - turns.round())[(r > 0.7) & (r < 1.3)]
    assert off_arm.abs().median() < 0.1
    arm = turns.round().long().remainder(5)
    for k in range(5):
        assert_mean((arm == k).double(), 0.2)


def test_spiral() -> None:
    x = points("Spiral", 4 * N)
    # |x|² = (1.5 πa)² + 2 (0.5a + 0.1)² in the mean over a ~ U(0, 1).
    assert_mean(x.square().sum(dim=1), (1.5 * math.pi) ** 2 / 3 + 2 * (0.25 / 3 + 0.1 / 2 + 0.01))
    # The third arm starts at 4π/3: the three arms turned by 2π/3 are the same set.
    angle = 2 * math.pi / 3
    turn = torch.tensor(((math.cos(angle), -math.sin(angle)), (math.sin(angle), math.cos(angle))), dtype=x.dtype)
    assert_mean(x[:, 0], 0.0)
    assert_mean(x[:, 1], 0.0)
    cubes, turned_cubes = x[:, 0] ** 3, (x @ turn.T)[:, 0] ** 3
    assert_mean(cubes - turned_cubes, 0.0)
    # Third harmonic of the arms' phase: E[r³ cos 3θ] with r = 1.5πa, θ = πa; the isotropic noise adds
    # nothing.
    a = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    wanted = torch.trapezoid((1.5 * math.pi * a) ** 3 * (3 * math.pi * a).cos(), a).item()
    z = torch.view_as_complex(x.contiguous())
    assert_mean((z**3).real, wanted)


def test_uniform() -> None:
    x = points("Uniform")
    assert x.abs().max() <= 3
    for i in (0, 1):
        assert_mean(x[:, i], 0.0)
        assert_mean(x[:, i].square(), 3.0)
    assert_mean(x.prod(dim=1), 0.0)


def test_checkerboard() -> None:
    x = points("checkerboard")
    assert x.abs().max() <= 4
    cell = (x / 2).floor().long()
    assert bool(((cell[:, 0] + cell[:, 1]) % 2 == 0).all())
    counts = torch.bincount((cell[:, 0] + 2) * 4 + cell[:, 1] + 2, minlength=16).double() / len(x)
    occupied = counts[counts > 0]
    assert len(occupied) == 8
    assert (occupied - 1 / 8).abs().max() < 5 * math.sqrt(1 / 8 / N)


def test_eight_gaussians() -> None:
    x = points("8gaussians") * math.sqrt(2)
    sector = (torch.atan2(x[:, 1], x[:, 0]) / (math.pi / 4)).round().long().remainder(8)
    for k in range(8):
        on = sector == k
        assert_mean(on.double(), 1 / 8)
        assert (x[on].mean(dim=0).norm() - 4).abs() < 0.05
    assert_mean(x.square().sum(dim=1), 16 + 2 * 0.25)


# --- the generators once more, as numpy users write them: another hand, another library ---


def rotate(features: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Rows times [[cos, -sin], [sin, cos]]."""
    matrix = np.stack((np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)), axis=-1)
    return np.einsum("ti,tij->tj", features, matrix.reshape(-1, 2, 2))


def numpy_rings(rng: np.random.Generator, n: int, radii: np.ndarray) -> np.ndarray:
    angle = rng.random(n) * 2 * np.pi
    radius = rng.choice(radii, n, p=radii / radii.sum()) + rng.normal(0, 0.2, n)
    return np.stack((radius * np.sin(angle), radius * np.cos(angle)), axis=1)


def numpy_points(name: str, rng: np.random.Generator, n: int) -> np.ndarray:
    """Section F.1's generators as published by the projects it names; n is a multiple of 30."""
    if name in ("moons", "circles", "swissroll"):
        made = pytest.importorskip("sklearn.datasets", reason="compares against scikit-learn's generators")
        if name == "moons":
            return made.make_moons(n, noise=0.1, random_state=0)[0] * 2 + (-1, -0.2)
        if name == "circles":
            return made.make_circles(n, factor=0.5, noise=0.08, random_state=0)[0] * 3
        return made.make_swiss_roll(n, noise=1.0, random_state=0)[0][:, [0, 2]] / 5
    if name == "2spirals":
        r = np.sqrt(rng.random(n // 2)) * 540 * (2 * np.pi) / 360
        arm = np.stack((-np.cos(r) * r, np.sin(r) * r), axis=1) + rng.random((n // 2, 2)) * 0.5
        return np.concatenate((arm, -arm)) / 3 + rng.normal(0, 0.1, (n, 2))
    if name == "pinwheel":
        features = rng.normal((1, 0), (0.3, 0.1), (n, 2))
        arm = np.repeat(np.arange(5), n // 5) * 2 * np.pi / 5
        return 2 * rotate(features, arm + 0.25 * np.exp(features[:, 0]))
    if name == "Spiral":
        a, start = rng.random(n), np.repeat(np.array((0, 2 / 3, 4 / 3)) * np.pi, n // 3)
        mean = np.stack((np.cos(np.pi * a + start), np.sin(np.pi * a + start)), axis=1) * (1.5 * np.pi * a)[:, None]
        return mean + rng.normal(size=(n, 2)) * (a * 0.5 + 0.1)[:, None]
    if name == "8gaussians":
        axes, diagonals = [(1, 0), (-1, 0), (0, 1), (0, -1)], [(1, 1), (1, -1), (-1, 1), (-1, -1)]
        centres = 4 * np.concatenate((np.array(axes), np.array(diagonals) / np.sqrt(2)))
        return (centres[rng.integers(8, size=n)] + rng.normal(0, 0.5, (n, 2))) / np.sqrt(2)
    if name == "Ring":
        return numpy_rings(rng, n, np.array((5.0,)))
    if name == "Multiring":
        return numpy_rings(rng, n, np.array((1.0, 3.0, 5.0)))
    if name == "Uniform":
        return rng.uniform(-3, 3, (n, 2))
    if name in ("Banana", "Funnel"):
        x = rng.normal(0, 2, n)
        if name == "Banana":
            return np.stack((x, rng.normal(0.2 * (x**2 - 4), 1)), axis=1)
        return np.stack((x, rng.normal(0, np.sqrt(np.clip(np.exp(-x), 0, 10)))), axis=1)
    if name == "checkerboard":
        x = rng.uniform(-2, 2, n)
        y = rng.random(n) - rng.integers(0, 2, n) * 2 + np.floor(x) % 2
        return 2 * np.stack((x, y), axis=1)
    x = rng.uniform(-4, 4, n) if name == "Cosine" else rng.uniform(-2.5, 2.5, n)
    y = {"cos": 2.5 * np.sin(x), "line": x, "Cosine": rng.normal(3 * np.cos(2 * x), 1)}[name]
    return np.stack((x, y), axis=1)


@pytest.mark.parametrize("name", data.TOY_NAMES)
def test_density_is_that_of_the_published_generator(name: str) -> None:
    """Two-sample chi-squared test on a 40 x 40 grid: moments and supports say less than the whole density."""
    n = 600_000
    theirs = numpy_points(name, np.random.default_rng(1), n)
    ours = points(name, n, seed=1).numpy()
    bins = [np.linspace(*data.toy(name).range, 41)] * 2
    a, b = (np.histogram2d(*sample.T, bins=bins)[0].ravel() for sample in (theirs, ours))
    # Rare cells are taken together, with what falls outside.
    common = a + b >= 50
    a, b = (np.append(counts[common], n - counts[common].sum()) for counts in (a, b))
    filled = a + b > 0
    chi_squared = ((a - b)[filled] ** 2 / (a + b)[filled]).sum()
    freedom = filled.sum() - 1
    assert freedom >= 25
    assert chi_squared < freedom + 5 * math.sqrt(2 * freedom)


# --- misuse ---


def test_toy_misuse() -> None:
    with pytest.raises(ValueError, match=r"data\.toy: name must be one of 2spirals, Banana.*, got 'moon'"):
        data.toy("moon")
    with pytest.raises(TypeError, match=r"data\.toy: name must be a str, got int"):
        data.toy(3)
    moons = data.toy("moons")
    with pytest.raises(ValueError, match=r"toy\('moons'\)\.sample: n must be at least 0, got -1"):
        moons.sample(-1)
    with pytest.raises(TypeError, match=r"sample: n must be an int, got float"):
        moons.sample(10.0)
    with pytest.raises(TypeError, match=r"sample: dtype must be .*, got torch\.int64"):
        moons.sample(10, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"sample: generator must be on device meta, got one on cpu"):
        moons.sample(10, torch.Generator(), device="meta")


# --- images ---


def test_digits() -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    images, labels = data.digits()
    assert images.shape == (1797, 1, 8, 8) and images.dtype == torch.float32
    assert labels.shape == (1797,) and labels.dtype == torch.int64
    assert images.min() == 0 and images.max() == 1
    assert labels.unique().tolist() == list(range(10))
    # The first digit is a 0, its first row as printed in scikit-learn's documentation.
    assert labels[0] == 0
    assert (images[0, 0, 0] * 16).tolist() == [0, 0, 5, 13, 9, 1, 0, 0]


def idx(array: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def mnist_arrays() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (5, 28, 28), dtype=np.uint8), rng.integers(0, 10, 5, dtype=np.uint8)


@pytest.mark.parametrize("folder", [".", "MNIST/raw"])
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("train", [False, True])
def test_mnist(tmp_path, mnist_arrays, folder: str, zipped: bool, train: bool) -> None:
    pixels, labels = mnist_arrays
    where = tmp_path / folder
    where.mkdir(parents=True, exist_ok=True)
    part, other = ("train", "t10k") if train else ("t10k", "train")
    for name, array in (("images-idx3-ubyte", pixels), ("labels-idx1-ubyte", labels)):
        content = idx(array)
        (where / f"{part}-{name}{'.gz' if zipped else ''}").write_bytes(gzip.compress(content) if zipped else content)
        (where / f"{other}-{name}").write_bytes(idx(array[:2]))
    read = data.mnist(tmp_path, train=train)
    assert read.images.dtype == torch.float32 and read.labels.dtype == torch.int64
    assert torch.equal(read.images, torch.from_numpy(pixels)[:, None].float() / 255)
    assert read.labels.tolist() == labels.tolist()


def test_mnist_errors(tmp_path, mnist_arrays) -> None:
    pixels, labels = mnist_arrays
    with pytest.raises(FileNotFoundError, match=r"data\.mnist: wanted train-images-idx3-ubyte .*https://"):
        data.mnist(tmp_path)
    images_file, labels_file = tmp_path / "train-images-idx3-ubyte", tmp_path / "train-labels-idx1-ubyte"
    images_file.write_bytes(idx(pixels))
    with pytest.raises(FileNotFoundError, match="train-labels-idx1-ubyte"):
        data.mnist(tmp_path)
    labels_file.write_bytes(idx(labels[:-1]))
    with pytest.raises(ValueError, match=r"5 train images but 4 labels"):
        data.mnist(tmp_path)
    images_file.write_bytes(idx(pixels)[:-1])
    with pytest.raises(ValueError, match=r"must hold 3920 bytes of data, got 3919"):
        data.mnist(tmp_path)
    damaged = bytearray(gzip.compress(idx(pixels)))
    damaged[10:14] = b"\xff" * 4  # in the middle of the compressed data
    zipped = tmp_path / "train-images-idx3-ubyte.gz"
    zipped.write_bytes(damaged)
    images_file.unlink()
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz is not a readable gzip file"):
        data.mnist(tmp_path)
    zipped.unlink()
    images_file.write_bytes(idx(labels))
    with pytest.raises(ValueError, match=r"must be an idx file of 3-dimensional unsigned bytes, got .*00000801"):
        data.mnist(tmp_path)
    images_file.unlink()
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match=r"is not a readable gzip file"):
        data.mnist(tmp_path)


def cifar_batches(n_each: int = 2) -> dict[str, tuple[np.ndarray, list[int]]]:
    rng = np.random.default_rng(0)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    return {
        name: (rng.integers(0, 256, (n_each, 3072), dtype=np.uint8), rng.integers(0, 10, n_each).tolist())
        for name in names
    }


def write_cifar(folder, binary: bool) -> dict[str, tuple[np.ndarray, list[int]]]:
    folder.mkdir(parents=True)
    batches = cifar_batches()
    for name, (pixels, labels) in batches.items():
        if binary:
            records = np.concatenate((np.array(labels, dtype=np.uint8)[:, None], pixels), axis=1)
            (folder / f"{name}.bin").write_bytes(records.tobytes())
        else:
            content = {
                b"batch_label": name.encode(),
                b"labels": labels,
                b"data": pixels,
                b"filenames": [b"a"],
            }
            (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return batches


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("binary", [False, True])
def test_cifar10(tmp_path, binary: bool, nested: bool) -> None:
    folder = tmp_path / ("cifar-10-batches-bin" if binary else "cifar-10-batches-py")
    batches = write_cifar(folder, binary)
    root = tmp_path if nested else folder
    train, test = data.cifar10(root), data.cifar10(str(root), train=False)
    pixels = np.concatenate([batches[f"data_batch_{i}"][0] for i in range(1, 6)])
    labels = [label for i in range(1, 6) for label in batches[f"data_batch_{i}"][1]]
    assert train.images.shape == (10, 3, 32, 32) and train.images.dtype == torch.float32
    assert torch.equal(train.images, torch.from_numpy(pixels).view(10, 3, 32, 32).float() / 255)
    assert train.labels.tolist() == labels and train.labels.dtype == torch.int64
    assert test.labels.tolist() == batches["test_batch"][1]
    assert test.images.shape == (2, 3, 32, 32)


def test_cifar10_as_python_2_wrote_it(tmp_path) -> None:
    """A dictionary of Python 2 strings and a numpy.core array: the opcodes of the published files."""
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    dtype = b"cnumpy\ndtype\n(S'u1'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI0\ntb"
    state = b"(I1\n(I1\nI3072\nt" + dtype + b"I00\nS'" + b"A" * 3072 + b"'\ntb"
    (tmp_path / "test_batch").write_bytes(b"(dS'data'\n" + array + state + b"sS'labels'\n(lI7\nas.")
    images, labels = data.cifar10(tmp_path, train=False)
    assert labels.tolist() == [7]
    assert torch.equal(images, torch.full((1, 3, 32, 32), ord("A") / 255))


class _Malicious:
    def __reduce__(self):
        return print, ("this must not run",)


class _OtherCodec:
    def __reduce__(self):
        import codecs

        return codecs.encode, ("text", "rot13")


@pytest.mark.parametrize(("payload", "named"), [(_Malicious(), r"print"), (_OtherCodec(), r"rot13")])
def test_cifar10_refuses_pickles_that_run_code(tmp_path, capsys, payload, named: str) -> None:
    (tmp_path / "test_batch").write_bytes(pickle.dumps({b"data": payload, b"labels": [0]}, protocol=2))
    with pytest.raises(ValueError, match=rf"is not a CIFAR-10 python batch \(.*{named}.* is not allowed"):
        data.cifar10(tmp_path, train=False)
    assert capsys.readouterr().out == ""


def test_cifar10_errors(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data\.cifar10: wanted data_batch_1 .*https://"):
        data.cifar10(tmp_path)
    (tmp_path / "data_batch_1.bin").write_bytes(bytes(3073))
    with pytest.raises(FileNotFoundError, match=r"data_batch_2\.bin is missing"):
        data.cifar10(tmp_path)
    (tmp_path / "test_batch.bin").write_bytes(bytes(3072))
    with pytest.raises(ValueError, match=r"must be records of 3073 bytes, got 3072 bytes"):
        data.cifar10(tmp_path, train=False)
    (tmp_path / "test_batch").write_bytes(pickle.dumps({b"data": np.zeros((1, 5)), b"labels": [0]}, protocol=2))
    with pytest.raises(ValueError, match=r"must hold uint8 data \(N, 3072\).*got float64 \(1, 5\)"):
        data.cifar10(tmp_path, train=False)
    batches = write_cifar(tmp_path / "shifted", binary=False)  # as many labels as images, but not in each file
    for name, n_labels in (("data_batch_1", 1), ("data_batch_2", 3)):
        content = {b"data": batches[name][0], b"labels": [0] * n_labels}
        (tmp_path / "shifted" / name).write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ValueError, match=r"data_batch_1 has 2 images but 1 labels"):
        data.cifar10(tmp_path / "shifted")
    (tmp_path / "test_batch").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"test_batch is not a CIFAR-10 python batch"):
        data.cifar10(tmp_path, train=False)
