"""Every python block of the documents runs, in the order of its page, in one namespace per page.

Where a block takes its time, its numbers are made small before it runs: what the reader sees stays as it is.
"""

import re
import warnings
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

import ade_fast as ade

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# What a block says, and what runs in its place; every entry must be found somewhere, or is out of date.
SMALLER = {
    "updates=500": "updates=10, **SMALL",
    "range(1000)": "range(3)",
    "range(300)": "range(3)",
    "20_000": "1000",
    "data.sample(5000)": "data.sample(200)",
}
SMALL = {"progress": False, "likelihood_samples": 500, "test_likelihood_samples": 500, "test_samples": 50}
SMALL |= {"test_permutations": 20}


def blocks(page: Path) -> list[tuple[int, str]]:
    """Each python block of a page, with the line it begins at."""
    text = page.read_text()
    return [
        (text.count("\n", 0, match.start()) + 2, match.group(1))
        for match in re.finditer(r"^```python\n(.*?)^```", text, re.M | re.S)
    ]


WITH_BLOCKS = [page for page in PAGES if blocks(page)]


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=lambda page: page.name)
def test_every_block_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a reader's folder: blocks keep their files there
    namespace = {"__name__": "__main__", "SMALL": SMALL}
    for line, code in blocks(page):
        for shown, small in SMALLER.items():
            code = code.replace(shown, small)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # so few samples are told
            # Blank lines before it: an error names the page's own line.
            exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)


def test_what_is_made_smaller_is_there() -> None:
    text = "".join(code for page in WITH_BLOCKS for _, code in blocks(page))
    assert [shown for shown in SMALLER if shown not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Of links within the repository the file, and the heading where one is named."""
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.S)):
        if target.startswith(("http://", "https://")):
            continue
        file, _, heading = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), f"{page.name}: {target}"
        if heading:
            assert heading in anchors(path), f"{page.name}: {target}"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("module", [ade, ade.functional, ade.initial, ade.estimators, ade.metrics, ade.data])
def test_every_public_name_is_in_the_api_reference(module: ModuleType) -> None:
    """Modules have their own names there, and constants are told by what they belong to."""
    page = (ROOT / "docs/api.md").read_text()
    documented = set(re.findall(r"^::: (\S+)$", page, re.MULTILINE))
    names = {name for name in module.__all__ if isinstance(getattr(module, name), (type, FunctionType))}
    assert {f"{module.__name__}.{name}" for name in names} <= documented
