"""Write the lists of the documentation that follow from the code: docs/files.md, the tables of
docs/metrics.md and of differences in docs/checkpoints.md.

    .venv/bin/python scripts/write_lists.py

A file's line is the first line of its docstring. What stands outside the markers (`<!-- files -->`,
`<!-- metrics -->`, `<!-- differences -->`) is left as it is.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from maxlm.metrics.catalog import markdown_table
from maxlm.train.resume.rules import rules_table

ROOT = Path(__file__).parents[1]
PACKAGES = ("maxlm", "data_pipeline", "launch")


def main() -> None:
    replace_between("files", ROOT / "docs/files.md", file_list())
    replace_between("metrics", ROOT / "docs/metrics.md", markdown_table())
    replace_between("differences", ROOT / "docs/checkpoints.md", rules_table())


def file_list() -> str:
    """Return a line for each file, under a heading for each folder."""
    lines = []
    for folder in folders():
        files = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
        if files:
            lines += [f"\n### {folder.relative_to(ROOT).as_posix()}/", *map(line_of, files)]
    return "\n".join(lines).strip()


def folders() -> list[Path]:
    return sorted({path.parent for package in PACKAGES for path in (ROOT / package).rglob("*.py")})


def summary(docstring: str) -> str:
    """Return its first paragraph on one line."""
    return " ".join(docstring.split("\n\n")[0].split())


def line_of(path: Path) -> str:
    name = path.relative_to(ROOT).as_posix()
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return f"- [`{name}`](../{name}): {summary(docstring)}"


def replace_between(name: str, page: Path, text: str) -> None:
    """Put text between <!-- name --> and <!-- /name -->."""
    before, after = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
    old = page.read_text(encoding="utf-8")
    new, count = re.subn(
        f"{before}.*{after}", lambda _: before + text + after, old, flags=re.DOTALL
    )
    if count != 1:
        raise SystemExit(
            f"{page.relative_to(ROOT)} needs one {before.strip()} and, after it, one {after.strip()}"
        )
    page.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
