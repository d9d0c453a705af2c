import subprocess
import sys
from pathlib import Path

import pytest

from maxlm.process.phases import Overdue, Place
from maxlm.process.watchdog import Watchdog

ROOT = Path(__file__).parents[2]


def run(code):
    """Run Python code; return (exit code, stdout, stderr)."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("phase", "step", "expected"),
    [
        (
            "compile",
            None,
            "compile has taken longer than runtime.timeouts.compile_seconds=60: ended",
        ),
        ("step", 7, "a step after step 7 has taken longer than runtime.timeouts.step_seconds=60"),
        ("evaluation", 7, "evaluation after step 7 has taken longer than runtime.timeouts.evaluat"),
    ],
)
def test_the_message_names_phase_and_setting(phase, step, expected, caplog):
    codes = []
    late = Overdue(Place(phase, step, 61.0, False, None), 60.0)
    Watchdog(lambda: late, codes.append).check()
    assert codes == [1]
    assert expected in caplog.text
    assert "raise that setting (null: no limit)" in caplog.text
    marked = caplog.records[0].maxlm_event
    assert (marked.kind, marked.step, marked.values["phase"]) == ("timeout", step, phase)


def test_in_time_nothing_happens(caplog):
    codes = []
    Watchdog(lambda: None, codes.append).check()
    assert (codes, caplog.text) == ([], "")


HANGS = """
import ctypes, time
from maxlm.process import watchdog
from maxlm.process.phases import beat, phase
watchdog.CHECK_SECONDS, watchdog.DEAF_SECONDS = 0.05, 0.3
with watchdog.watching({{"start": 0.1, "step": 0.5}}), phase("step"):
    for _ in range(4):
        time.sleep(0.2)  # longer than the limit in total, but each is short enough
        beat()
    print("in time", flush=True)
    def a_step_that_hangs():
        {hang}
    a_step_that_hangs()
"""


@pytest.mark.parametrize(
    ("hang", "message"),
    [
        ("time.sleep(60)", "runtime.timeouts.step_seconds=0.5: ended"),
        # It holds the interpreter's lock, so that no other thread of Python's runs.
        ("ctypes.PyDLL(None).usleep(60_000_000)", "Timeout (0:00:0"),
    ],
)
def test_what_hangs_is_ended_with_its_stacks(hang, message):
    code, out, err = run(HANGS.format(hang=hang))
    assert (code, out) == (1, "in time\n"), err
    assert message in err
    assert "a_step_that_hangs" in err


def test_it_is_silent_where_it_is_off_or_over():
    code = """
import time
from maxlm.process import watchdog
watchdog.CHECK_SECONDS, watchdog.DEAF_SECONDS = 0.05, 0.05
with watchdog.watching({"start": 0.2}):
    pass
with watchdog.watching({"start": None}):
    time.sleep(0.5)
"""
    assert run(code) == (0, "", "")
