import io

from rich.console import Console

from data_pipeline.report import Report


def test_lines_where_there_is_no_terminal():
    out = io.StringIO()
    with Report(Console(file=out, width=80)).stage("read", 10) as advance:
        advance(10)
    assert out.getvalue().startswith("read: 0.0 s")
    assert "\x1b" not in out.getvalue()


def test_a_bar_in_a_terminal():
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
