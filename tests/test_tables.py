"""Own data: files and objects that become tables, what is refused and in which words, splits and standardisation."""

import math
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from ade_fast import data

ROWS = [[1.0, -2.5], [3.0, 4.0], [0.25, 1e-3]]
TABLE = torch.tensor(ROWS)


@contextmanager
def refused(message: str):
    """A DataError that says exactly this, in one line."""
    with pytest.raises(data.DataError) as info:
        yield
    assert str(info.value) == message and "\n" not in message


# --- files ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_load_table_reads_every_kind(tmp_path, dtype) -> None:
    array = np.array(ROWS)
    np.save(tmp_path / "a.npy", array)
    np.save(tmp_path / "fortran.npy", np.asfortranarray(array.astype(">f8")))
    np.savez(tmp_path / "one.npz", anything=array)
    np.savez_compressed(tmp_path / "named.npz", labels=np.zeros(3), X=array)
    np.savez(tmp_path / "lower.npz", labels=np.zeros(3), data=array)
    torch.save(torch.from_numpy(array), tmp_path / "a.pt")
    np.savetxt(tmp_path / "a.txt", array)
    for name in ("a.npy", "fortran.npy", "one.npz", "named.npz", "lower.npz", "a.pt", "a.txt"):
        table = data.load_table(tmp_path / name, dtype=dtype)
        assert table.dtype == dtype and torch.equal(table, torch.tensor(ROWS, dtype=dtype)), name
    assert data.load_table(str(tmp_path / "a.npy")).dtype == torch.float32


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".txt", ".CSV"])
@pytest.mark.parametrize(
    "text",
    [
        "1,-2.5\n3,4\n0.25,1e-3\n",
        "a,b\n1,-2.5\n3,4\n0.25,1e-3",
        '\ufeff"length, cm";"width"\r\n1;-2.5\r\n3;4\r\n\r\n0.25;1e-3\r\n',
        "a\tb\n1\t-2.5\n3\t4\n0.25\t1e-3\n",
        "# made by hand\n  1   -2.5\n3 4\n0.25 1e-3\n",
        '"1", "-2.5"\n3 , 4\n .25, +0.001\n',
    ],
)
def test_load_table_reads_text(tmp_path, text: str, suffix: str) -> None:
    path = tmp_path / ("a" + suffix)
    path.write_bytes(text.encode())
    assert torch.equal(data.load_table(path), TABLE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3,x\n", " line 3, column 2 ('b') must be a number, got 'x'"),
        ("1,2\n3,1_000\n", " line 2, column 2 must be a number, got '1_000'"),
        ("1,x\n3,4\n", " line 1, column 2 must be a number, got 'x'"),
        ("a,b\n1,2\n\n3,\n", " line 4, column 2 ('b') must be a number, got an empty cell"),
        ("1 2\n3 " + "y" * 99 + "\n", f" line 2, column 2 must be a number, got '{'y' * 36}...'"),
        ("a,b\n1,2\n3,4,5\n", " line 3 has 3 columns, line 1 has 2"),
        ("1,2\n3\n", " line 2 has 1 columns, line 1 has 2"),
        ("a,b\n1,2\n3,nan\n4,inf\n", " 2 values are NaN or infinite, the first in line 3, column 2 ('b')"),
        ("a,b\n1,2\n1,3\n", " column 1 ('a') is constant in float32, where no density exists: leave it out"),
        ("a,b\n1,2\n", " must have at least 2 rows, got 1"),
        ("a,b\n", " has a header but no rows"),
        ("\n# nothing\n", " has no rows"),
        ("", " is empty"),
    ],
)
def test_load_table_text_errors(tmp_path, text: str, message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    colon = "" if message.startswith((" must", " has", " is")) else ":"
    with refused(f"data.load_table: {path}{colon}{message}"):
        data.load_table(path)


class _Malicious:
    def __reduce__(self):
        return print, ("this must not run",)


def test_load_table_file_errors(tmp_path, capsys) -> None:
    def path(name: str) -> str:
        return f"data.load_table: {tmp_path / name}"

    with refused(f"{path('none.npy')}: no such file"):
        data.load_table(tmp_path / "none.npy")
    (tmp_path / "folder.npy").mkdir()
    with refused(f"{path('folder.npy')} is a folder, a file wanted"):
        data.load_table(tmp_path / "folder.npy")
    with refused(f"{path('a.xlsx')}: its suffix must be one of .npy, .npz, .pt, .csv, .tsv, .txt, got '.xlsx'"):
        data.load_table(tmp_path / "a.xlsx")
    with refused(f"{path('a')}: its suffix must be one of .npy, .npz, .pt, .csv, .tsv, .txt, got 'none'"):
        data.load_table(tmp_path / "a")
    (tmp_path / "binary.csv").write_bytes(b"1,2\n\xff\n")
    with refused(f"{path('binary.csv')} is no text in UTF-8: byte 4 is 0xff"):
        data.load_table(tmp_path / "binary.csv")

    np.savez(tmp_path / "two.npz", a=np.eye(2), b=np.eye(2))
    with refused(f"{path('two.npz')} must hold one array, or one named X, x or data; got a, b"):
        data.load_table(tmp_path / "two.npz")
    np.savez(tmp_path / "nothing.npz")
    with refused(f"{path('nothing.npz')} is empty"):
        data.load_table(tmp_path / "nothing.npz")
    objects = np.array([[1, None]], dtype=object)
    np.save(tmp_path / "objects.npy", objects)
    np.savez(tmp_path / "objects.npz", objects)
    with refused(
        f"{path('objects.npy')} is no readable .npy file: it holds Python objects, an array of numbers wanted"
    ):
        data.load_table(tmp_path / "objects.npy")
    with refused(
        f"{path('objects.npz')}: its array arr_0 cannot be read: it holds Python objects, an array of numbers wanted"
    ):
        data.load_table(tmp_path / "objects.npz")
    for name in ("damaged.npy", "damaged.npz"):
        (tmp_path / name).write_bytes(b"no array at all")
        with refused(f"{path(name)} is no readable {name[-4:]} file: it is damaged"):
            data.load_table(tmp_path / name)
    np.save(tmp_path / "cut.npy", np.eye(9))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-8])
    with pytest.raises(data.DataError, match=r"cut\.npy is no readable \.npy file: [^\n]+$"):
        data.load_table(tmp_path / "cut.npy")
    (tmp_path / "zipped.npy").write_bytes((tmp_path / "two.npz").read_bytes())
    with refused(f"{path('zipped.npy')} is no .npy file but an .npz one"):
        data.load_table(tmp_path / "zipped.npy")
    np.save(tmp_path / "eye.npy", np.eye(2))
    (tmp_path / "plain.npz").write_bytes((tmp_path / "eye.npy").read_bytes())
    with refused(f"{path('plain.npz')} is no .npz file but an .npy one"):
        data.load_table(tmp_path / "plain.npz")

    torch.save({"weight": TABLE, "bias": TABLE}, tmp_path / "dict.pt")
    with refused(f"{path('dict.pt')} must hold one tensor, got a dict with the keys weight, bias"):
        data.load_table(tmp_path / "dict.pt")
    torch.save([TABLE], tmp_path / "list.pt")
    with refused(f"{path('list.pt')} must hold one tensor, got a list"):
        data.load_table(tmp_path / "list.pt")
    torch.save(_Malicious(), tmp_path / "code.pt")
    (tmp_path / "damaged.pt").write_bytes(b"no tensor")
    for name in ("code.pt", "damaged.pt"):
        with pytest.raises(data.DataError, match=rf"{name} is no readable file of one tensor: [^\n]+$"):
            data.load_table(tmp_path / name)
    assert capsys.readouterr().out == ""


# --- objects ---


class Frame:
    """What as_table needs of a data frame."""

    def __init__(self, array: np.ndarray, columns: list[str]):
        self.array, self.columns = array, columns

    def to_numpy(self) -> np.ndarray:
        return self.array


class Labelled(Dataset):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, i: int):
        return torch.tensor(ROWS[i]), i


class Stream(IterableDataset):
    def __iter__(self):
        return iter(np.array(ROWS))


class Lists(Dataset):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, i: int):
        return ROWS[i]


@pytest.mark.parametrize(
    "X",
    [
        TABLE,
        TABLE.double().requires_grad_(),
        np.array(ROWS),
        np.array(ROWS, dtype=">f4")[::-1][::-1],
        ROWS,
        tuple(map(tuple, ROWS)),
        [torch.tensor(row) for row in ROWS],
        [np.array(row) for row in ROWS],
        Frame(np.array(ROWS), ["a", "b"]),
        TensorDataset(TABLE, torch.arange(3)),
        Labelled(),
        Stream(),
        Lists(),
        DataLoader(TensorDataset(TABLE), batch_size=2),
        DataLoader(Labelled(), batch_size=2),
        DataLoader(TABLE, batch_size=2),
        DataLoader(Stream(), batch_size=2),
    ],
    ids=lambda X: type(X).__name__,
)
def test_as_table_takes_nearly_anything(X) -> None:
    table = data.as_table(X)
    assert table.dtype == torch.float32 and table.device.type == "cpu" and not table.requires_grad
    assert torch.equal(table, TABLE)
    table.zero_()  # a copy: what it came from stays
    assert torch.equal(data.as_table(X), TABLE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.float64])
def test_as_table_converts_dtypes(dtype) -> None:
    X = torch.tensor([[1, 2], [3, 5]], dtype=dtype)
    assert torch.equal(data.as_table(X), X.float())
    assert torch.equal(data.as_table(X, dtype=torch.float64), X.double())
    if dtype != torch.bfloat16:
        assert torch.equal(data.as_table(X.numpy()), X.float())


def test_points_to_evaluate_may_be_one_row_or_constant() -> None:
    assert data.as_table([[1.0, 2.0]], varied=False).shape == (1, 2)
    assert data.as_table([[1.0, 2.0], [1.0, 2.0]], varied=False, columns=2).shape == (2, 2)
    with refused("data.as_table: X must have 3 columns, got 2"):
        data.as_table([[1.0, 2.0]], varied=False, columns=3)


KINDS = " must be a tensor, an array, a list of lists, a data frame, a Dataset or a DataLoader"


@pytest.mark.parametrize(
    ("X", "message"),
    [
        ("moons.csv", KINDS + ", got str"),
        (None, KINDS + ", got NoneType"),
        ([], " is empty"),
        (np.zeros((0, 2)), " is empty, got shape (0, 2)"),
        (torch.zeros(3, 0), " is empty, got shape (3, 0)"),
        (np.arange(3.0), " must be a table of vectors, (n, d) wanted, got shape (3,): one column is X[:, None]"),
        (np.float64(1), KINDS + ", got float64"),
        (torch.rand(2, 1, 4, 4), " must be a table of vectors, (n, d) wanted, got shape (2, 1, 4, 4)"),
        (torch.eye(2).bool(), " must hold real numbers, got bool"),
        (np.eye(2, dtype=bool), " must hold real numbers, got bool"),
        (torch.eye(2).to(torch.complex64), " must hold real numbers, got complex64"),
        (np.eye(2) * 1j, " must hold real numbers, got complex128"),
        (torch.eye(2).to_sparse(), " must be dense, got layout torch.sparse_coo"),
        (np.zeros((2, 2), dtype="M8[s]"), " must hold real numbers, got datetime64[s]"),
        (np.zeros(2, dtype=[("a", "f8"), ("b", "f8")]), " must hold real numbers, got records with the fields a, b"),
        ([[1, "a"], [2, "b"]], " must hold real numbers, got '1' in row 1, column 1"),
        ([[1, None], [2, 3]], " must hold real numbers, got a NoneType in row 1, column 2"),
        (np.array([[1, 2], [3, 4.5]], dtype=object),
         " must hold real numbers, got numbers kept as Python objects: convert them to floats"),
        ([[1, 2], [3]], ": row 2 has 1 values, row 1 has 2 values"),
        ([[1, 2], 3], ": row 2 has no list, row 1 has 2 values"),
        (Frame(np.array([[1, "x"]], dtype=object), ["a", "b"]),
         " must hold real numbers, got 'x' in row 1, column 2 ('b')"),
        (Frame(np.array([[1.0, 2.0], [2.0, 2.0]]), ["a", "b"]),
         ": column 2 ('b') is constant in float32, where no density exists: leave it out"),
        (np.array([[1.0, 2.0], [3.0, np.nan]]), ": 1 value is NaN or infinite, the first in row 2, column 2"),
        (np.array([[1.0, -np.inf], [np.nan, 0.0]]), ": 2 values are NaN or infinite, the first in row 1, column 2"),
        (np.ma.masked_array(np.eye(2), mask=[[0, 0], [1, 0]]),
         ": 1 value is NaN or infinite, the first in row 2, column 1"),
        (np.array([[1.0, 2.0], [3.0, 1e39]]), ": 1 value is beyond the range of float32, the first in row 2, column 2"),
        (np.array([[1.0, 2.0]]), " must have at least 2 rows, got 1"),
        (np.array([[1.0, 2.0, 5], [1.0, 3.0, 5]]),
         ": column 1, column 3 are constant in float32, where no density exists: leave it out"),
        (np.array([[1e9, 2.0], [1e9 + 1, 3.0]]),
         ": column 1 is constant in float32, where no density exists: leave it out"),
        (TensorDataset(torch.rand(3, 2, 2)), " must be a table of vectors, (n, d) wanted, got shape (3, 2, 2)"),
        (DataLoader(TensorDataset(torch.rand(3, 2, 2))),
         " must be a table of vectors, (n, d) wanted, got shape (3, 2, 2)"),
        (DataLoader([{"x": torch.rand(2)}]), ": its items must be vectors, or tuples that begin with one, got dict"),
        (DataLoader([torch.rand(2), torch.rand(3)]),
         ": batch 2 has vectors of shape (3,), batch 1 of (2,): (d,) wanted"),
    ],
)  # fmt: skip
def test_as_table_errors(X, message: str) -> None:
    with refused("data.as_table: X" + message):
        data.as_table(X)


def test_as_table_dtype() -> None:
    X = np.array([[1e9, 1e39], [1e9 + 1, 3.0]])  # what float32 cannot hold, float64 can
    assert torch.equal(data.as_table(X, dtype=torch.float64), torch.from_numpy(X))
    with pytest.raises(TypeError, match=r"dtype must be torch\.float32 or torch\.float64, got torch\.int64"):
        data.as_table(X, dtype=torch.int64)


# --- standardisation ---


def test_standardizer_loses_no_digits() -> None:
    z = torch.randn(5_000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = z * torch.tensor([100.0, 1e-3, 1.0]) + torch.tensor([1000.0, 1.0, -1e6])
    plain = data.Standardizer.of(z)
    moved = data.Standardizer.of(x)
    torch.testing.assert_close(moved(x), plain(z), rtol=0, atol=1e-8)
    torch.testing.assert_close(moved.inverse(moved(x)), x, rtol=1e-14, atol=0)
    assert moved(x).mean(dim=0).abs().max() < 1e-9
    torch.testing.assert_close(moved(x).square().mean(dim=0), torch.ones(3, dtype=torch.float64), rtol=1e-9, atol=0)
    single = moved(x.float())
    assert single.dtype == torch.float32 and moved.inverse(single).dtype == torch.float32
    torch.testing.assert_close(single[:, 0], moved(x)[:, 0].float(), rtol=0, atol=1e-6)


def test_standardizer_log_det_is_that_of_its_jacobian() -> None:
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.tensor([7, 0.1, 2])
    standardizer = data.Standardizer.of(x)
    jacobian = torch.autograd.functional.jacobian(standardizer, x[0])
    assert abs(torch.linalg.slogdet(jacobian).logabsdet.item() - standardizer.log_det) < 1e-12
    # A normal density of z becomes x's, with mean and covariance.
    normal = torch.distributions.Normal(standardizer.mean, standardizer.std)
    unit = torch.distributions.Normal(torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    log_p = unit.log_prob(standardizer(x)).sum(dim=1) + standardizer.log_det
    torch.testing.assert_close(log_p, normal.log_prob(x).sum(dim=1), rtol=1e-12, atol=1e-12)


def test_standardizer_state_and_shapes() -> None:
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    standardizer = data.Standardizer.of(x)
    other = data.Standardizer.identity(2)
    assert other.log_det == 0 and torch.equal(other(x), x)
    other.load_state_dict(standardizer.state_dict())
    assert torch.equal(other(x), standardizer(x)) and other.log_det == standardizer.log_det
    assert standardizer.mean.dtype == torch.float64 and not list(standardizer.parameters())
    assert standardizer(x[0]).shape == (2,) and standardizer(x.view(4, 5, 2)).shape == (4, 5, 2)


def test_standardizer_refusals() -> None:
    two, one = torch.ones(2), torch.ones(1)
    with pytest.raises(TypeError, match=r"Standardizer: mean must be a floating-point tensor, got list"):
        data.Standardizer([0.0], one)
    with pytest.raises(TypeError, match=r"Standardizer: std must be a floating-point tensor, got torch\.int64"):
        data.Standardizer(one, torch.ones(1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"Standardizer: mean must be \(d,\) and finite, got shape \(1, 1\)"):
        data.Standardizer(one[None], one)
    with pytest.raises(ValueError, match=r"Standardizer: std must be \(d,\) and finite, got \[inf\]"):
        data.Standardizer(one, one * math.inf)
    with pytest.raises(ValueError, match=r"Standardizer: std must have mean's shape \(1,\), got \(2,\)"):
        data.Standardizer(one, two)
    with pytest.raises(ValueError, match=r"Standardizer: std must be positive, got \[1\.0, 0\.0\]"):
        data.Standardizer(two, torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match=r"Standardizer\.of: train must be a tensor \(n, d\) .*, got \(1, 2\)"):
        data.Standardizer.of(torch.ones(1, 2))
    with refused(
        "Standardizer.of: train: column 2 is constant in float32, where no density exists: leave it out"
    ):  # 0.1 is no binary number: a mean of many need not be it, nor their spread 0
        data.Standardizer.of(torch.stack((torch.arange(7.0), torch.full((7,), 0.1)), dim=1))
    with pytest.raises(ValueError, match=r"Standardizer: x must be \(\.\.\., 2\), got \(4, 3\)"):
        data.Standardizer.identity(2)(torch.ones(4, 3))
    with pytest.raises(ValueError, match=r"Standardizer: z must be \(\.\.\., 2\), got \(\)"):
        data.Standardizer.identity(2).inverse(torch.ones(()))
    with pytest.raises(TypeError, match=r"Standardizer: x must be a floating-point tensor, got torch\.int64"):
        data.Standardizer.identity(2)(torch.ones(4, 2, dtype=torch.int64))


# --- splits and rows ---


def test_split_deals_every_row_once() -> None:
    X = torch.arange(100.0)[:, None] * torch.ones(1, 2)
    parts = data.split(X, 0.1, 0.25)
    assert [len(part) for part in parts] == [65, 10, 25]
    assert torch.cat(parts)[:, 0].sort().values.equal(X[:, 0])
    assert not parts.train[:, 0].equal(parts.train[:, 0].sort().values)
    again, other = data.split(X, 0.1, 0.25), data.split(X, 0.1, 0.25, generator=torch.Generator().manual_seed(1))
    assert all(a.equal(b) for a, b in zip(parts, again, strict=True))
    assert not parts.train.equal(other.train)
    assert [len(part) for part in data.split(X)] == [90, 10, 0]
    assert [len(part) for part in data.split(X[:2], 0.0)] == [2, 0, 0]
    assert [len(part) for part in data.split(X[:6], 0.1, 0.1)] == [2, 2, 2]
    assert data.split(X[:6], 0.1, 0.1).test.shape == (2, 2)


def test_split_refusals() -> None:
    X = torch.zeros(5, 2)
    with refused("data.split: validation=0.1 and test=0.1 with at least 2 rows in each part need 6 rows, got 5"):
        data.split(X, 0.1, 0.1)
    with refused("data.split: validation=0.9 and test=0.0 with at least 2 rows in each part need 16 rows, got 5"):
        data.split(X, 0.9)
    assert [len(part) for part in data.split(torch.zeros(16, 2), 0.9)] == [2, 14, 0]
    assert len(data.split(torch.zeros(100, 2), 0.6, 0.3).train) == 10
    with pytest.raises(ValueError, match=r"data\.split: validation must be a fraction in \[0, 0\.9\], got 2"):
        data.split(X, 2)
    with pytest.raises(ValueError, match=r"data\.split: test must be a fraction in \[0, 0\.9\], got 'none'"):
        data.split(X, 0.1, "none")
    with pytest.raises(ValueError, match=r"validation \+ test must be at most 0\.9, got 0\.5 \+ 0\.5"):
        data.split(X, 0.5, 0.5)
    with pytest.raises(ValueError, match=r"data\.split: X must be a tensor \(n, d\), got \(5,\)"):
        data.split(X[:, 0])


def test_table_draws_like_a_toy() -> None:
    rows = torch.arange(30.0).view(10, 3)
    table = data.Table(rows, name="mine")
    assert (table.name, table.event, table.range, len(table)) == ("mine", (3,), (0.0, 29.0), 10)
    assert not table.has_density

    def generator(seed: int = 0) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    x = table.sample(20_000, generator())
    assert x.shape == (20_000, 3) and x.dtype == torch.float32
    counts = torch.bincount((x[:, 0] / 3).long(), minlength=10)
    assert torch.equal(rows[(x[:, 0] / 3).long()], x)  # whole rows
    chi2 = ((counts - 2000).square() / 2000).sum().item()
    assert chi2 < 9 + 5 * math.sqrt(18)
    assert x.equal(table.sample(20_000, generator())) and not x.equal(table.sample(20_000, generator(1)))
    assert table.sample(np.int64(0)).shape == (0, 3)

    drawn = table.draw(4, generator())
    assert len(drawn[:, 0].unique()) == 4
    assert drawn.equal(table.draw(100, generator())[:4])
    assert table.draw(100).sort(dim=0).values.equal(rows)


def test_table_refusals() -> None:
    with pytest.raises(TypeError, match=r"data\.Table: rows must be a floating-point tensor, got list"):
        data.Table(ROWS)
    with pytest.raises(ValueError, match=r"data\.Table: rows must be \(n, d\) .*, got \(0, 2\)"):
        data.Table(torch.zeros(0, 2))
    table = data.Table(TABLE)
    with pytest.raises(TypeError, match=r"data\.Table\.sample: n must be an int, got float"):
        table.sample(2.0)
    with pytest.raises(ValueError, match=r"data\.Table\.draw: n must be at least 0, got -1"):
        table.draw(-1)
