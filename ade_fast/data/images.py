"""Image sets as tensors: MNIST and CIFAR-10 from their published files, scikit-learn's digits from the
package.

Nothing is downloaded. Pixels come back as float32 in [0, 1], shape ``(N, channels, height, width)``, labels
as int64.
"""

import gzip
import math
import pickle
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class LabelledImages(NamedTuple):
    """Images ``(N, C, H, W)`` float32 in [0, 1] and their labels ``(N,)`` int64."""

    images: Tensor
    labels: Tensor


def _as_images(pixels: np.ndarray, largest: float, labels: np.ndarray) -> LabelledImages:
    images = torch.from_numpy(pixels.astype(np.float32)).div_(largest)
    return LabelledImages(images, torch.from_numpy(labels.astype(np.int64)))


def digits() -> LabelledImages:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels: images ``(1797, 1, 8, 8)``, labels ``(1797,)``.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("data.digits: scikit-learn holds the data; `pip install scikit-learn`") from error
    loaded = load_digits()
    return _as_images(loaded.images[:, None], 16.0, loaded.target)


# --- MNIST ---

_IDX_UINT8 = 0x08  # third byte of the magic number: the element type


def _read_idx(path: Path, n_dims: int) -> np.ndarray:
    """An idx file of unsigned bytes, gzipped or not (header: 0, 0, type, dimensions, then each size)."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"data.mnist: {path} is not a readable gzip file ({error})") from error
    header = 4 + 4 * n_dims
    if len(content) < header or content[:4] != bytes((0, 0, _IDX_UINT8, n_dims)):
        raise ValueError(
            f"data.mnist: {path} must be an idx file of {n_dims}-dimensional unsigned bytes, "
            f"got a header of {content[:4].hex() or 'no bytes'}"
        )
    shape = struct.unpack(f">{n_dims}I", content[4:header])
    if len(content) - header != math.prod(shape):
        raise ValueError(
            f"data.mnist: {path} must hold {math.prod(shape)} bytes of data, got {len(content) - header}: cut short?"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


def _find_idx(root: Path, stem: str) -> Path:
    for folder in (root, root / "MNIST" / "raw", root / "raw"):
        for name in (stem, stem + ".gz", stem.replace("-idx", ".idx"), stem.replace("-idx", ".idx") + ".gz"):
            if (folder / name).is_file():
                return folder / name
    raise FileNotFoundError(
        f"data.mnist: wanted {stem} or {stem}.gz in {root} (or its MNIST/raw): "
        "download it from https://ossci-datasets.s3.amazonaws.com/mnist/ or, for the original page, "
        "http://yann.lecun.com/exdb/mnist/"
    )


def mnist(root: str | Path, train: bool = True) -> LabelledImages:
    """MNIST from the published idx files, gzipped or not.

    Args:
        root: the folder with ``train-images-idx3-ubyte[.gz]`` and its three companions; torchvision's layout
            (``root/MNIST/raw``) is found too.
        train: the 60,000 training images, else the 10,000 test images.

    Returns:
        Images ``(N, 1, 28, 28)`` float32 in [0, 1] and labels ``(N,)`` int64.

    Raises:
        FileNotFoundError: a file is missing; the message names it and says where it is published.
        ValueError: a file is damaged.
    """
    part = "train" if train else "t10k"
    images = _read_idx(_find_idx(Path(root), f"{part}-images-idx3-ubyte"), 3)
    labels = _read_idx(_find_idx(Path(root), f"{part}-labels-idx1-ubyte"), 1)
    if len(images) != len(labels):
        raise ValueError(f"data.mnist: {root} has {len(images)} {part} images but {len(labels)} labels")
    return _as_images(images[:, None], 255.0, labels)


# --- CIFAR-10 ---

_CIFAR_SHAPE = (3, 32, 32)
_CIFAR_PIXELS = math.prod(_CIFAR_SHAPE)


def _latin1(text: str, encoding: str) -> bytes:
    """``_codecs.encode(text, "latin1")``: how Python 3 puts bytes into a protocol 2 pickle."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"the codec {encoding!r} is not allowed in a CIFAR-10 batch")
    return text.encode("latin1")


class _CifarUnpickler(pickle.Unpickler):
    """Reads dictionaries of numpy arrays and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            # Renamed in numpy 2; what an array itself pickles as is right under either.
            return np.empty(0).__reduce__()[0]
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a CIFAR-10 batch")


def _read_cifar_pickle(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        batch = _CifarUnpickler(BytesIO(path.read_bytes()), encoding="bytes").load()
        pixels, labels = np.asarray(batch[b"data"]), np.asarray(batch[b"labels"])
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ValueError(f"data.cifar10: {path} is not a CIFAR-10 python batch ({error})") from error
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != _CIFAR_PIXELS or labels.ndim != 1:
        raise ValueError(
            f"data.cifar10: {path} must hold uint8 data (N, {_CIFAR_PIXELS}) and a list of labels, "
            f"got {pixels.dtype} {pixels.shape} and labels {labels.shape}"
        )
    if len(pixels) != len(labels):
        raise ValueError(f"data.cifar10: {path} has {len(pixels)} images but {len(labels)} labels")
    return pixels, labels


def _read_cifar_binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    if content.size == 0 or content.size % (1 + _CIFAR_PIXELS):
        raise ValueError(
            f"data.cifar10: {path} must be records of {1 + _CIFAR_PIXELS} bytes, got {content.size} bytes: cut short?"
        )
    records = content.reshape(-1, 1 + _CIFAR_PIXELS)
    return records[:, 1:], records[:, 0]


_CIFAR_VERSIONS = (
    ("cifar-10-batches-py", "", _read_cifar_pickle),
    ("cifar-10-batches-bin", ".bin", _read_cifar_binary),
)


def cifar10(root: str | Path, train: bool = True) -> LabelledImages:
    """CIFAR-10 from the published "python" or "binary" version, unpacked.

    Pickles are read by a restricted unpickler: a file that asks for anything but numpy arrays is refused.

    Args:
        root: the folder ``cifar-10-batches-py`` or ``cifar-10-batches-bin``, or one that contains either.
        train: the 50,000 training images (``data_batch_1`` to ``5``, in order), else the 10,000 test images.

    Returns:
        Images ``(N, 3, 32, 32)`` float32 in [0, 1] and labels ``(N,)`` int64.

    Raises:
        FileNotFoundError: a file is missing; the message names it and says where it is published.
        ValueError: a file is damaged.
    """
    root = Path(root)
    stems = [f"data_batch_{i}" for i in range(1, 6)] if train else ["test_batch"]
    for folder_name, suffix, read in _CIFAR_VERSIONS:
        for folder in (root, root / folder_name):
            paths = [folder / (stem + suffix) for stem in stems]
            missing = [path for path in paths if not path.is_file()]
            if len(missing) == len(paths):
                continue
            if missing:
                raise FileNotFoundError(f"data.cifar10: {missing[0]} is missing; {folder} is incomplete")
            pixels, labels = zip(*map(read, paths), strict=True)
            pixels = np.concatenate(pixels).reshape(-1, *_CIFAR_SHAPE)
            return _as_images(pixels, 255.0, np.concatenate(labels))
    raise FileNotFoundError(
        f"data.cifar10: wanted {stems[0]} (or {stems[0]}.bin) in {root} or its cifar-10-batches-py: "
        "download and unpack https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    )
