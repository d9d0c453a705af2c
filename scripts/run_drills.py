"""Run the drills by pytest, and put what they state by `record_property` into the table of
benchmarks/reliability.md, after each; called by scripts/drills.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import platform
import re
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "benchmarks/reliability.md"
DRILLS = (
    "tests/drills",
    "tests/launch/test_slurm_nodes.py",
    # Faults that are done to real runs at every change of the code as well.
    *(
        f"tests/train/test_faults.py::test_{name}"
        for name in (
            "steps_with_nan_are_skipped_and_counted_and_training_goes_on",
            "a_disk_that_fills_up_during_a_run_loses_nothing",
            "a_disk_that_cannot_be_written_is_told_before_training",
        )
    ),
)
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


class Table:
    """Writes the row of each test into a page as soon as the test is over, so that what is cut off
    loses only the test that it was in; a plugin of pytest.
    """

    def __init__(self, page: Path) -> None:
        self.rows: list[Row] = []
        self._page = page
        self._phases: list[pytest.TestReport] = []  # of the test that runs

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Gather a test's set-up, call and tear-down; its row is written after the last."""
        if report.when == "setup":
            self._phases = []
        self._phases.append(report)
        if report.when != "teardown" or any(phase.skipped for phase in self._phases):
            return
        row = row_of(self._phases)
        self.rows.append(row)
        text = with_rows(self._page.read_text(encoding="utf-8"), [row])
        # By maxlm.files it would be a write of maxlm's outside of the test's folder, which the audit
        # tells the next test.
        unfinished = self._page.with_name(f"{self._page.name}.unfinished")
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(self._page)


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/drills", description=__doc__)
    parser.add_argument("--minutes", type=float, help="how long the soak takes")
    arguments, for_pytest = parser.parse_known_args()
    if arguments.minutes:
        os.environ["MAXLM_SOAK_MINUTES"] = str(arguments.minutes)
    if not any(word.startswith("tests") for word in for_pytest):
        for_pytest = [*DRILLS, *for_pytest]
    os.chdir(ROOT)
    table = Table(PAGE)
    # Short and full ones; each states its figures.
    code = pytest.main(["-m", "", *for_pytest], plugins=[table])
    print(f"{len(table.rows)} rows in {PAGE.relative_to(ROOT)}")
    sys.exit(code)


def row_of(phases: Sequence[pytest.TestReport]) -> Row:
    """Return the row of a test from the reports of its phases."""
    name = phases[-1].nodeid.rpartition("::")[2]
    # Each report has what was stated until then.
    figures = ", ".join(f"{key} {value}" for key, value in phases[-1].user_properties)
    return Row(
        drill=name.removeprefix("test_").replace("_", " "),
        result="**failed**" if any(phase.failed for phase in phases) else "passed",
        figures=figures,
        seconds=f"{sum(phase.duration for phase in phases):.0f}",
        when=dt.datetime.now(dt.UTC).date().isoformat(),
        versions=versions(),
    )


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
