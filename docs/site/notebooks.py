"""Runs the notebooks of docs/notebooks and keeps their outputs in them: `python docs/site/notebooks.py`, minutes."""

import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parents[1] / "notebooks"


def run(book: nbformat.NotebookNode, folder: str | Path) -> None:
    """All cells, in ``folder``. Raises: nbclient.exceptions.CellExecutionError."""
    NotebookClient(book, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()


def main() -> None:
    for path in sorted(HERE.glob("*.ipynb")):
        book = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            run(book, folder)
        for cell in book.cells:
            cell.metadata.pop("execution", None)  # times
            if cell.cell_type == "code":  # what warnings say has this machine's paths
                cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        book.metadata.language_info.pop("version", None)
        nbformat.write(book, path)


if __name__ == "__main__":
    main()
