"""Events from marked lines of the log to files, and back."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from maxlm.config.errors import UserError
from maxlm.events import event, last_event
from maxlm.metrics.history import History
from maxlm.metrics.history.events import read_events

log = logging.getLogger("maxlm.some.module")


@pytest.fixture
def quiet_root():
    """The root logger as processes but the first have it."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    yield
    root.setLevel(before)


def kinds(folder):
    return [found.kind for found in read_events(folder)[0]]


def test_marked_lines_are_kept_whole_and_others_are_not(tmp_path):
    with History() as history:
        log.warning("early %d", 1, extra=event("early"))
        history.open(tmp_path, process=0)
        values = {"loss": float("nan"), "norm": np.float32(2.5), "names": ("a", "b"), "on": True}
        log.warning("step %d was <b>", 7, extra=event("skipped_step", step=7, **values))
        log.warning("nothing of note")
        log.info("for information", extra=event("quiet"))
        # On disk before anything is closed.
        lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
        told = history.events.untold()
    assert [line["kind"] for line in lines] == ["early", "skipped_step", "quiet"]
    line = lines[1]
    assert line["time"].endswith("Z")
    assert {key: line[key] for key in ("step", "process", "level", "text")} == {
        "step": 7,
        "process": 0,
        "level": "WARNING",
        "text": "step 7 was <b>",
    }
    assert line["values"] == {"loss": "nan", "norm": 2.5, "names": ["a", "b"], "on": True}
    found, damaged = read_events(tmp_path)
    assert damaged == 0
    assert abs(found[0].time - time.time()) < 60
    assert found[1]._replace(time=0) == told[1]._replace(time=0, values=line["values"])
    # Nothing is left behind.
    assert not [one for one in logging.getLogger().handlers if type(one).__name__ == "EventHandler"]
    log.warning("late", extra=event("late"))
    assert kinds(tmp_path) == ["early", "skipped_step", "quiet"]


def test_last_words_are_shown_at_once_by_the_thread_that_says_them(tmp_path):
    shown = []

    def show(happened):
        assert kinds(tmp_path)[-1] == happened.kind  # it is kept before anything else is tried
        shown.append((happened.kind, happened.text, threading.current_thread().name))
        raise OSError("the disk is full")

    with History() as history:
        history.open(tmp_path, process=0)
        history.events.show_last = show
        log.error("slow", extra=event("slow_step", step=7))
        late = {"extra": last_event("timeout", step=7, phase="step")}
        thread = threading.Thread(target=log.error, args=("too late",), kwargs=late, name="dog")
        thread.start()
        thread.join()
    assert shown == [("timeout", "too late", "dog")]
    assert kinds(tmp_path) == ["slow_step", "timeout"]


def test_other_processes_have_their_own_files(tmp_path, quiet_root):
    assert not log.isEnabledFor(logging.WARNING)
    with History() as first, History() as other:
        first.open(tmp_path, process=0)
        other.open(tmp_path, process=3)
        assert not (tmp_path / "events-3.jsonl").exists()
        log.info("both know", extra=event("known"))
        log.warning("both say", extra=event("said", step=2))
        other.events.note("lonely", "a bad host", level="ERROR")
    found, _ = read_events(tmp_path)
    assert [(one.kind, one.process) for one in found] == [("known", 0), ("said", 0), ("lonely", 3)]


def test_torn_and_damaged_lines_are_passed_over(tmp_path):
    with History() as history:
        history.open(tmp_path, process=0)
        history.events.note("one", "first")
    path = tmp_path / "events.jsonl"
    whole = path.read_bytes()
    damaged = [b"null", b"[1, 2]", b"{}", b"\xff\xfe", b'{"time": "yesterday"}', b"[" * 5000]
    damaged += [
        whole.strip().replace(b'"first"', b"5"),
        whole.strip().replace(b'"step": null', b'"step": 1.5'),
    ]
    path.write_bytes(whole + b"\n".join(damaged) + b"\n" + whole[:20])
    with History() as history:
        history.open(tmp_path, process=0)
        history.events.note("two", "second")
    found, count = read_events(tmp_path)
    assert [one.kind for one in found] == ["one", "two"]
    assert count == len(damaged) + 1


def test_a_killed_process_has_told_everything(tmp_path):
    code = f"""
import logging, os, pathlib, signal
from maxlm.events import event
from maxlm.metrics.history import History
with History() as history:
    history.open(pathlib.Path({str(tmp_path)!r}), process=0)
    history.events.note("start", "started")
    for step in range(100):
        logging.getLogger("maxlm.x").warning("step %d", step, extra=event("skipped_step", step=step))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [one.step for one in read_events(tmp_path)[0][1:]] == list(range(100))
    # The next start says that this one ended without a word.
    with History() as history:
        history.open(tmp_path, process=0)
        history.events.note("resume", "resumed", step=90)
    assert kinds(tmp_path)[-2:] == ["sudden_end", "resume"]
    sudden = read_events(tmp_path)[0][-2]
    assert (sudden.step, sudden.level) == (99, "WARNING")


def test_failures_are_events_and_the_next_start_knows(tmp_path):
    def fail(error):
        with History() as history:
            history.open(tmp_path, process=0)
            history.events.note("start", "started")
            history.time.at(4)
            raise error

    for error in (UserError("a mistake"), ValueError("a fault"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            fail(error)
    found = [one for one in read_events(tmp_path)[0] if one.kind != "start"]
    assert [one.kind for one in found] == ["failed"] * 3
    assert [one.text for one in found] == [
        "a mistake",
        "ValueError: a fault",
        "KeyboardInterrupt: ",
    ]
    assert all(one.step == 4 and one.level == "ERROR" for one in found)
    assert "traceback" not in found[0].values
    assert "raise error" in found[1].values["traceback"]


def test_threads_write_whole_lines(tmp_path):
    with History() as history:
        history.open(tmp_path, process=0)
        threads = [
            threading.Thread(
                target=lambda: [
                    log.warning("x" * 2000, extra=event("many", step=step)) for step in range(50)
                ]
            )
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert len([json.loads(line) for line in lines]) == 200


def test_a_disk_that_is_full_is_told_once_and_ends_nothing(tmp_path, capsys):
    with History() as history:
        history.open(tmp_path, process=0)
        history.events.note("one", "first")
        os.dup2(os.open("/dev/full", os.O_WRONLY), history.events._journal._descriptor)
        history.events.note("two", "second")
        history.events.note("three", "third")  # there is room again
    assert capsys.readouterr().err.count("events are not kept") == 1
    assert kinds(tmp_path) == ["one", "three"]


def test_a_file_in_the_way_is_a_message(tmp_path):
    (tmp_path / "time.jsonl").mkdir()
    with History() as history, pytest.raises(UserError, match=r"time\.jsonl: cannot write the run"):
        history.open(tmp_path, process=0)
    (tmp_path / "time.jsonl").rmdir()
    os.mkfifo(tmp_path / "events.jsonl")
    with History() as history, pytest.raises(UserError, match="not a regular file"):
        history.open(tmp_path, process=0)
