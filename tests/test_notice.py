"""What a stop takes is measured, said after the first save, and compared with the platform's notice."""

import logging

import pytest

from maxlm.events import ATTRIBUTE
from maxlm.runtime.notice import VARIABLE, StopTime, notice_seconds


def steps(stop_time, now, *seconds):
    stop_time.step()
    for one in seconds:
        now[0] += one
        stop_time.step()


@pytest.mark.parametrize(("notice", "level"), [(60.0, "INFO"), (None, "INFO"), (14.0, "WARNING")])
def test_a_stop_is_a_step_the_copy_and_the_writing(caplog, notice, level):
    caplog.set_level(logging.INFO)
    now = [0.0]
    stop_time = StopTime(notice, clock=lambda: now[0])
    steps(
        stop_time, now, 2.0, 2.0, 30.0, 2.0
    )  # one with an evaluation counts as little as it should
    stop_time.saved(100, copy_seconds=3.0, write_seconds=10.0)
    (record,) = caplog.records
    assert record.levelname == level
    assert "a stop takes about 15.0 s: a step 2.0 s, the copy off the devices 3.0 s" in caplog.text
    assert ("waits 60 s" in caplog.text) == (notice == 60.0)
    assert ("raise its notice" in caplog.text) == (level == "WARNING")
    event = getattr(record, ATTRIBUTE)
    assert (event.kind, event.step) == ("stop_time", 100)
    assert event.values == {"seconds": 15.0, "notice_seconds": notice}
    # Said once; and again if it becomes much longer.
    stop_time.saved(200, copy_seconds=3.0, write_seconds=12.0)
    assert len(caplog.records) == 1
    stop_time.saved(300, copy_seconds=3.0, write_seconds=30.0)
    assert len(caplog.records) == 2


@pytest.mark.parametrize(("notice", "level"), [(60.0, "INFO"), (None, "INFO"), (14.0, "WARNING")])
def test_a_start_says_what_was_measured_before_it(caplog, notice, level):
    caplog.set_level(logging.INFO)
    stop_time = StopTime(notice)
    for damaged in (None, "15", [15.0]):
        stop_time.recall(100, damaged)
    assert not caplog.records
    stop_time.recall(100, 15.0)
    (record,) = caplog.records
    assert record.levelname == level
    assert "a stop took about 15.0 s when it was measured before this start, after" in caplog.text
    event = getattr(record, ATTRIBUTE)
    assert (event.kind, event.step) == ("stop_time", 100)
    assert event.values == {"seconds": 15.0, "notice_seconds": notice}
    # What this start measures is said all the same.
    stop_time.saved(200, copy_seconds=3.0, write_seconds=1.0)
    assert len(caplog.records) == 2


def test_the_notice_is_the_settings_or_the_launchers(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert notice_seconds(None) is None
    for text, seconds in {"120": 120.0, "soon": None, "-1": None, "nan": None}.items():
        monkeypatch.setenv(VARIABLE, text)
        assert notice_seconds(None) == seconds
    assert notice_seconds(30.0) == 30.0
