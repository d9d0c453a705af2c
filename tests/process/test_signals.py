import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from maxlm.config.cluster.exit_codes import Exit
from maxlm.process.signals import INSISTING, STOPPED, STOPPING, Listener, listening

ROOT = Path(__file__).parents[2]
USR1, HUP, TERM, INT = signal.SIGUSR1, signal.SIGHUP, signal.SIGTERM, signal.SIGINT


@pytest.fixture
def listener():
    """A listener and the list of exit codes with which it would have left."""
    codes = []
    return Listener(codes.append), codes


def test_the_exit_code_is_that_of_the_table():
    assert STOPPED == Exit.STOPPED


@pytest.mark.parametrize("number", STOPPING)
def test_with_nothing_to_save_a_signal_leaves_at_once(number, listener, caplog):
    heard, codes = listener
    heard.hear(number)
    assert codes == [Exit.STOPPED]
    assert f"{number.name} during start: stopped; there was nothing to save" in caplog.text
    marked = caplog.records[0].maxlm_event
    assert (marked.kind, marked.values) == ("stop", {"signal": number.name, "phase": "start"})


@pytest.mark.parametrize(
    ("numbers", "codes"),
    [
        ([TERM], []),
        ([TERM, TERM], [128 + TERM]),
        ([INT, TERM], [128 + TERM]),
        ([USR1, TERM], []),  # as Slurm: the notice, then the limit
        ([HUP, TERM], []),  # as a terminal that closes
        ([TERM, HUP, USR1], []),
        ([USR1, TERM, INT], [128 + INT]),
        ([USR1, USR1, HUP], []),
    ],
)
def test_while_training_the_first_asks_and_a_second_insists(numbers, codes, listener, capfd):
    heard, left = listener
    with heard.training():
        for number in numbers:
            heard.hear(number)
    assert heard.received is numbers[0]
    assert left == codes
    assert ("leaving at once" in capfd.readouterr().err) == bool(codes)


def test_after_training_the_first_changes_nothing(listener, caplog):
    heard, codes = listener
    with heard.training():
        pass
    heard.hear(TERM)
    assert codes == []
    assert "everything is saved, and ending already" in caplog.text
    heard.hear(INT)
    assert codes == [128 + INT]


def test_other_signals_are_not_ours(listener):
    heard, codes = listener
    heard.hear(signal.SIGCHLD)
    assert (heard.received, codes) == (None, [])


def test_handlers_are_given_back():
    before = [signal.getsignal(number) for number in STOPPING]
    with listening() as first, listening() as second:
        assert first is second
        assert all(signal.getsignal(number) not in before for number in STOPPING)
    assert [signal.getsignal(number) for number in STOPPING] == before
    with listening() as third:
        assert third is not first


def test_nohup_is_obeyed():
    before = signal.signal(HUP, signal.SIG_IGN)
    try:
        with listening():
            assert signal.getsignal(HUP) is signal.SIG_IGN
            assert signal.getsignal(TERM) is not before
    finally:
        signal.signal(HUP, before)


def test_what_a_library_has_ignored_is_heard_in_training():
    """As libtpu does with SIGHUP, past Python."""
    with listening() as listener:
        c_library = ctypes.CDLL(None)
        c_library.signal.argtypes, c_library.signal.restype = (
            [ctypes.c_int, ctypes.c_void_p],
            ctypes.c_void_p,
        )
        c_library.signal(HUP, 1)  # SIG_IGN
        os.kill(os.getpid(), HUP)
        time.sleep(0.1)
        with listener.training():
            assert listener.received is None
            os.kill(os.getpid(), HUP)
            deadline = time.monotonic() + 10
            while listener.received is None and time.monotonic() < deadline:
                time.sleep(0.01)
            assert listener.received == HUP


# Each busy for minutes where Python's own handlers would not run, or their exception is lost.
BUSY = {
    "in C": "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)",
    "in a callback of the garbage collector": """
import gc, time
gc.callbacks.append(lambda *_: time.sleep(100))
gc.collect()""",
}


@pytest.mark.parametrize("where", BUSY)
def test_a_signal_is_served_wherever_the_main_thread_is(where):
    code = f"""
from maxlm.process.signals import listening
with listening():
    print("ready", flush=True)
    {BUSY[where].strip().replace(chr(10), chr(10) + "    ")}
print("went on")
"""
    command = [sys.executable, "-c", code]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, cwd=ROOT, **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.1)
        began = time.monotonic()
        process.send_signal(INT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == Exit.STOPPED, err
    assert time.monotonic() - began < 5
    assert "SIGINT during start: stopped" in err
    assert out == ""


def test_the_command_line_hears_signals_before_it_loads_anything_large(tmp_path):
    """A module that is slow to load stands for all of them."""
    (tmp_path / "pydantic.py").write_text(
        "import time; print('loading', flush=True); time.sleep(60)"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    command = [sys.executable, "-m", "maxlm", "train", "run.yaml"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen(command, text=True, cwd=ROOT, env=environment, **pipes) as process:
        assert process.stdout.readline() == "loading\n"
        process.send_signal(TERM)
        _, err = process.communicate(timeout=30)
    assert process.returncode == Exit.STOPPED, err
    assert "SIGTERM during start: stopped" in err


def test_only_signals_that_people_repeat_insist():
    assert set(INSISTING) < set(STOPPING)
