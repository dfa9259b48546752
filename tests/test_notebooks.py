"""The notebooks of docs/notebooks run, with their numbers made small; `docs/site/notebooks.py` runs them whole."""

import re
from pathlib import Path

import pytest

pytest.importorskip("ipykernel")
nbformat = pytest.importorskip("nbformat")
client = pytest.importorskip("nbclient")

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))
SMALLER = {
    "updates=1000": "updates=5, likelihood_samples=300, test_likelihood_samples=300, test_permutations=10",
    "range(1000)": "range(3)",
    "20_000": "500",
    "sample(5000)": "sample(200)",
}


def test_the_notebooks_run(tmp_path: Path) -> None:
    """One after another in one kernel, which takes longest to begin."""
    whole = nbformat.v4.new_notebook()
    for path in NOTEBOOKS:
        whole.cells += [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    for cell in whole.cells:
        for shown, small in SMALLER.items():
            cell.source = cell.source.replace(shown, small)
    client.NotebookClient(whole, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_with_its_outputs_and_small(path: Path) -> None:
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    kinds = {kind for cell in book.cells for output in cell.get("outputs", ()) for kind in output.get("data", {})}
    assert "image/png" in kinds and path.stat().st_size < 400_000
    assert not re.search(r"/(home|root|tmp|work)/", path.read_text())


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) >= 2
