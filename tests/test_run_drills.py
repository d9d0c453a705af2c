"""What drills state becomes rows of benchmarks/reliability.md; older rows stay until theirs runs again."""

import pytest

from scripts.run_drills import PAGE, Row, read_rows, with_rows

REPORT = """<testsuites><testsuite>
<testcase classname="tests.drills.test_kills" name="test_fifty_random_kills" time="301.6"><properties>
<property name="kills" value="50"/><property name="seed" value="7 | 8"/></properties></testcase>
<testcase name="test_a_lost_disk[two]" time="2"><failure message="no">no</failure></testcase>
<testcase name="test_slurm" time="0"><skipped/></testcase>
</testsuite></testsuites>"""
PAGE_TEXT = "Before\n<!-- drills -->\n| drill |\n|---|\n<!-- /drills -->\nAfter\n"


def test_rows_say_what_was_run_and_how_it_ended():
    kills, lost = read_rows(REPORT)
    assert kills[:4] == ("fifty random kills", "passed", "kills 50, seed 7 | 8", "302")
    assert lost[:4] == ("a lost disk[two]", "**failed**", "", "2")
    assert "jax" in kills.versions


def test_new_rows_replace_those_of_the_same_drill():
    rows = read_rows(REPORT)
    page = with_rows(PAGE_TEXT, rows)
    assert page.startswith("Before\n")
    assert page.endswith("\nAfter\n")
    assert "| fifty random kills | passed | kills 50, seed 7 / 8 | 302 |" in page
    again = with_rows(page, [Row("fifty random kills", "passed", "kills 60", "9", "now", "here")])
    table = again.split("-->")[1].splitlines()
    assert table[3:] == [
        f"| a lost disk[two] | **failed** | - | 2 | {rows[1].when} | {rows[1].versions} |",
        "| fifty random kills | passed | kills 60 | 9 | now | here |",
        "<!-- /drills ",
    ]


def test_the_page_has_a_table():
    text = PAGE.read_text()
    assert with_rows(text, []) == text
    with pytest.raises(SystemExit, match="needs a table"):
        with_rows("no table", [])
