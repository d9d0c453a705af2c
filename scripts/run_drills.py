"""Run the drills by pytest, and put what they state by `record_property` into the table of
benchmarks/reliability.md; called by scripts/drills.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import platform
import re
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as ET

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "benchmarks/reliability.md"
DRILLS = ("tests/drills", "tests/launch/test_slurm_nodes.py")
HEAD = (
    "| drill | result | figures | seconds | when | with |",
    "|---|---|---|---|---|---|",
)


class Row(NamedTuple):
    """A line of the table; `drill` is the test's name, with what it is parametrised by."""

    drill: str
    result: str
    figures: str
    seconds: str
    when: str
    versions: str


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/drills", description=__doc__)
    parser.add_argument("--minutes", type=float, help="how long the soak takes")
    arguments, for_pytest = parser.parse_known_args()
    if arguments.minutes:
        os.environ["MAXLM_SOAK_MINUTES"] = str(arguments.minutes)
    if not any(word.startswith("tests") for word in for_pytest):
        for_pytest = [*DRILLS, *for_pytest]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "drills.xml"
        # Short and full ones; each states its figures.
        family = ["-o", "junit_family=xunit1"]  # the one with properties
        command = ["-m", "pytest", "-m", "", "--junitxml", str(report), *family, *for_pytest]
        code = subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode
        rows = read_rows(report.read_text(encoding="utf-8")) if report.exists() else []
    PAGE.write_text(with_rows(PAGE.read_text(encoding="utf-8"), rows), encoding="utf-8")
    print(f"{len(rows)} rows in {PAGE.relative_to(ROOT)}")
    sys.exit(code)


def read_rows(report: str) -> list[Row]:
    """Return a row for each test of a JUnit report, without those that were skipped."""
    when = dt.datetime.now(dt.UTC).date().isoformat()
    rows = []
    for case in ET.fromstring(report).iter("testcase"):
        if case.find("skipped") is not None:
            continue
        failed = case.find("failure") is not None or case.find("error") is not None
        properties = {one.get("name"): one.get("value") for one in case.iter("property")}
        rows.append(
            Row(
                drill=case.get("name", "").removeprefix("test_").replace("_", " "),
                result="**failed**" if failed else "passed",
                figures=", ".join(f"{name} {value}" for name, value in properties.items()),
                seconds=f"{float(case.get('time', 0)):.0f}",
                when=when,
                versions=versions(),
            )
        )
    return rows


def versions() -> str:
    return (
        f"jax {version('jax')}, orbax {version('orbax-checkpoint')}, Python "
        f"{platform.python_version()}, {os.cpu_count()} cores"
    )


def with_rows(page: str, rows: list[Row]) -> str:
    """Return the page with these rows in its table, in place of older ones of the same drills."""
    before, after = "<!-- drills -->\n", "\n<!-- /drills -->"
    found = re.search(f"{before}(.*){after}", page, re.DOTALL)
    if not found:
        raise SystemExit(f"{PAGE} needs a table between <!-- drills --> and <!-- /drills -->")
    old = [line.strip("| ").split(" | ") for line in found[1].splitlines()[len(HEAD) :]]
    table = {cells[0]: Row(*cells) for cells in old}
    table |= {row.drill: Row(*(escape(cell) for cell in row)) for row in rows}
    lines = [*HEAD, *(f"| {' | '.join(table[name])} |" for name in sorted(table))]
    return page[: found.start(1)] + "\n".join(lines) + page[found.end(1) :]


def escape(cell: str) -> str:
    """Return a cell that ends neither itself nor its row; an empty one would be two."""
    return " ".join(cell.replace("|", "/").split()) or "-"


if __name__ == "__main__":
    main()
