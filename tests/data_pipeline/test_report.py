import io

import pytest
from rich.console import Console

from data_pipeline.report import Report


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""
    now = [1000.0]
    monkeypatch.setattr("data_pipeline.report.time.perf_counter", lambda: now[0])
    return now


def test_lines_where_there_is_no_terminal(clock):
    out = io.StringIO()
    with Report(Console(file=out, width=80)).stage("read", 10) as advance:
        advance(10)
    assert out.getvalue().startswith("read: 0.0 s")
    assert "\x1b" not in out.getvalue()


def test_a_bar_in_a_terminal(clock):
    out = io.StringIO()
    with Report(Console(file=out, width=80, force_terminal=True, highlight=False)).stage(
        "read", 10
    ) as advance:
        advance(10)
    assert "100%" in out.getvalue()
    assert "read: 0.0 s" in out.getvalue()


def test_text_that_looks_like_markup_is_shown_as_it_is():
    out = io.StringIO()
    Report(Console(file=out, width=80)).line("data[bold]/x")
    assert out.getvalue() == "data[bold]/x\n"


def test_what_two_steps_drop_for_one_reason_is_added_up():
    manifest = {
        "reading": {"documents": 9, "skipped": {}},
        "steps": [{"reasons": {"near_dedup": 2}}, {"reasons": {"near_dedup": 1, "sample": 3}}],
        "splits": {"train": {"documents": 3, "tokens": 20, "bytes": 50}},
        "baselines": {"targets": 7, "bits_per_byte": {"uniform": 8.0}},
    }
    out = io.StringIO()
    Report(Console(file=out, width=80)).summary({"text": manifest})
    lines = [" ".join(line.strip(" \u2502").split()) for line in out.getvalue().splitlines()]
    assert [line for line in lines if line.startswith("dropped")] == [
        "dropped: near_dedup \u2502 3",
        "dropped: sample \u2502 3",
    ]


def test_progress_says_how_fast_it_is_and_what_is_left(clock):
    out = io.StringIO()
    report = Report(Console(file=out, width=200, highlight=False, soft_wrap=True))
    with report.progress("read", 1000, 80_000_000) as advance:
        clock[0] += 20
        advance(100, 10_000_000)  # too soon for a line
        clock[0] += 20
        advance(100, 10_000_000)
        clock[0] += 160
        advance(700, 50_000_000)
        clock[0] += 20
        advance(100, 10_000_000)
    assert out.getvalue().splitlines() == [
        "read: 25%, 5 documents/s, 0.5 MB/s, 2 min left",
        "read: 88%, 4 documents/s, 0.3 MB/s, 29 s left",
        "read: 220.0 s, 5 documents/s, 0.4 MB/s",
    ]


def test_progress_of_documents_whose_number_is_not_known_before(clock):
    out = io.StringIO()
    report = Report(Console(file=out, width=200, highlight=False, soft_wrap=True))
    with report.progress("read", 0, 40_000_000) as advance:
        clock[0] += 40
        advance(0, 10_000_000)  # files without a document
        clock[0] += 40
        advance(160, 30_000_000)
    with report.progress("of unknown size", 0, 0) as advance:
        clock[0] += 40
        advance(80, 0)
    assert out.getvalue().splitlines() == [
        "read: 25%, 0.2 MB/s, 2 min left",
        "read: 100%, 2 documents/s, 0.5 MB/s, 0 s left",
        "read: 80.0 s, 2 documents/s, 0.5 MB/s",
        "of unknown size: 80 documents, 2 documents/s",
        "of unknown size: 40.0 s, 2 documents/s",
    ]


def test_progress_without_sizes_is_that_of_documents(clock):
    out = io.StringIO()
    report = Report(Console(file=out, width=200, highlight=False, soft_wrap=True))
    with report.progress("keys", 10, 0) as advance:
        clock[0] += 40
        advance(5, 0)
    with report.progress("links", 0, 0):
        pass
    assert out.getvalue().splitlines() == [
        "keys: 50%, 0 documents/s, 40 s left",
        "keys: 40.0 s, 0 documents/s",
        "links: 0.0 s",
    ]
