import signal
import time

import pytest

from maxlm import runtime
from maxlm.process.signals import listening

LOOP = """
import logging, sys, time, hashlib
from maxlm import runtime
logging.basicConfig(stream=sys.stdout, format="%(message)s")
with runtime.StopSignal() as stop:
    print("ready", flush=True)
    for step in range(1, 10**6):
        BODY
        if stop.requested(step):
            break
print("stopped cleanly", flush=True)
"""
IN_PYTHON = LOOP.replace("BODY", "time.sleep(0.01)")
# Minutes, deaf to Python's handlers.
IN_C = LOOP.replace("BODY", "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_first_signal_stops_after_the_step(number, start_script):
    process = start_script(IN_PYTHON)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert f"{number.name}: finishing this step" in out
    assert "stopping after step" in out
    assert out.endswith("stopped cleanly\n")


@pytest.mark.parametrize(
    "code", [IN_C, IN_PYTHON.replace("if stop", "if False and stop")], ids=["c", "python"]
)
def test_second_signal_leaves_at_once(code, start_script):
    process = start_script(code)
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert "SIGTERM: finishing" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGINT
    assert "second signal (SIGINT): leaving at once" in err
    assert time.monotonic() - begin < 5


def test_the_answer_stays_once_it_is_yes(caplog):
    with listening() as listener, runtime.StopSignal() as stop:
        assert not stop.requested(1)
        listener.hear(signal.SIGTERM)
        assert stop.requested(2)
        assert stop.requested(2)
    (marked,) = [one.maxlm_event for one in caplog.records if hasattr(one, "maxlm_event")]
    assert (marked.kind, marked.step, marked.values) == ("stop", 2, {"signal": "SIGTERM"})
