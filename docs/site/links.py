"""Asks every address that the documents link to: `make links`. Without a network it says so, and is no failure."""

import re
import sys
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[2]


def addresses() -> dict[str, str]:
    """Each address, and a document that has it."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "bench" / "README.md", ROOT / "CITATION.cff"]
    return {
        found.rstrip(".,;"): str(page.relative_to(ROOT))
        for page in pages
        for found in re.findall(r"https?://[^\s)>\"'`]+", page.read_text(encoding="utf-8"))
    }


def answer(address: str) -> str | None:
    """What is wrong with an address; None: nothing, or a server that wants no programs to ask.

    Raises: OSError: there is no way there.
    """
    request = urllib.request.Request(address, headers={"User-Agent": "Mozilla/5.0"})
    try:
        with urllib.request.urlopen(request, timeout=20):
            return None
    except urllib.error.HTTPError as error:
        return None if error.code in (403, 429, 503) else f"{error.code} {error.reason}"


def main() -> int:
    wrong, unreached = [], []
    found = addresses()
    for address, page in found.items():
        try:
            problem = answer(address)
        except OSError as error:
            unreached.append(f"{page}: {address}: {error}")
        else:
            wrong += [f"{page}: {address}: {problem}"] if problem else []
    if len(unreached) == len(found):
        print(f"no network: none of {len(found)} links could be checked")
        return 0
    print("\n".join([*wrong, *unreached]) or f"{len(found)} links, all answered")
    return 1 if wrong or unreached else 0


if __name__ == "__main__":
    sys.exit(main())
