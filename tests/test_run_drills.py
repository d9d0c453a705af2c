"""What drills state becomes rows of benchmarks/reliability.md; older rows stay until theirs runs again."""

import subprocess
import sys

import pytest

from scripts.run_drills import DRILLS as NAMED
from scripts.run_drills import PAGE, ROOT, Row, Table, with_rows
from tests import audit

PAGE_TEXT = "Before\n<!-- drills -->\n| drill |\n|---|\n<!-- /drills -->\nAfter\n"
DRILLS = """
import os
import pytest

def test_fifty_random_kills(record_property):
    record_property("kills", 50)
    record_property("seed", "7 | 8")

@pytest.mark.parametrize("what", ["two"])
def test_a_lost_disk(what, record_property):
    record_property("lost", 1)
    assert False

def test_slurm():
    pytest.skip("no slurm")

def test_that_is_cut_off():
    os._exit(9)
"""
PROGRAM = """
import sys
from pathlib import Path
import pytest
from scripts.run_drills import Table
sys.exit(pytest.main(["-q", "-c", "/dev/null", sys.argv[2]], plugins=[Table(Path(sys.argv[1]))]))
"""


@pytest.fixture(scope="module")
def drilled(tmp_path_factory):
    """The page after drills that were cut off in their last."""
    folder = tmp_path_factory.mktemp("drills")
    page, drills = folder / "page.md", folder / "test_drills.py"
    page.write_text(PAGE_TEXT)
    drills.write_text(DRILLS)
    command = [sys.executable, "-c", PROGRAM, str(page), str(drills)]
    ended = subprocess.run(command, cwd=ROOT, check=False, capture_output=True)
    assert ended.returncode == 9, ended.stdout.decode()
    return page.read_text()


def test_rows_of_what_ran_are_there_after_a_cut(drilled):
    lost, kills = drilled.split("-->")[1].splitlines()[3:-1]
    assert lost.startswith("| a lost disk[two] | **failed** | lost 1 | 0 | ")
    assert kills.startswith("| fifty random kills | passed | kills 50, seed 7 / 8 | 0 | ")
    assert "jax" in kills


def test_a_row_is_no_finding_of_the_audit(drilled, tmp_path, monkeypatch):
    """The page is in the repository, where maxlm may not write while tests run."""
    monkeypatch.setattr(audit, "_may_be_written", lambda place: False)
    page = tmp_path / "page.md"
    page.write_text(PAGE_TEXT)
    phases = [
        pytest.TestReport("a::test_b", ("a", 1, "b"), {}, "passed", None, when)
        for when in ("setup", "call", "teardown")
    ]
    table = Table(page)
    for report in phases:
        table.pytest_runtest_logreport(report)
    assert "| b | passed | - | 0 |" in page.read_text()
    assert audit.take() == []


def test_new_rows_replace_those_of_the_same_drill(drilled):
    assert drilled.startswith("Before\n")
    assert drilled.endswith("\nAfter\n")
    again = with_rows(
        drilled, [Row("fifty random kills", "passed", "kills 60", "9", "now", "here")]
    )
    before, after = (page.split("-->")[1].splitlines() for page in (drilled, again))
    assert after[:4] == before[:4]
    assert after[4:] == [
        "| fifty random kills | passed | kills 60 | 9 | now | here |",
        "<!-- /drills ",
    ]


def test_drills_that_are_named_are_there():
    for drill in NAMED:
        path, _, name = drill.partition("::")
        assert (ROOT / path).exists(), path
        assert not name or f"def {name}(" in (ROOT / path).read_text(), name


def test_the_page_has_a_table():
    text = PAGE.read_text()
    assert with_rows(text, []) == text
    with pytest.raises(SystemExit, match="needs a table"):
        with_rows("no table", [])
