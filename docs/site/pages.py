"""A hook of MkDocs: documents that stand outside docs/ are pages too, as they are, without a copy in the repository."""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
OUTSIDE = {"equations.md": "EQUATIONS.md", "maintainers.md": "CONTRIBUTING.md", "benchmarks.md": "bench/README.md"}


def on_files(files, config):
    for page, path in OUTSIDE.items():
        # Links to sources lead nowhere on the site: their text stays.
        text = re.sub(r"(?<!!)\[([^\]]*)\]\((?!https?:)[^)]*\)", r"\1", (ROOT / path).read_text(encoding="utf-8"))
        files.append(File.generated(config, page, content=text))
    return files
