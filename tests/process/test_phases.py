import os
import time

import pytest

from maxlm.config.schema import TimeoutsConfig
from maxlm.process.phases import PHASES, Phases


class Clock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_every_phase_has_a_limit():
    assert set(TimeoutsConfig().by_phase()) == set(PHASES)
    assert TimeoutsConfig(step_seconds=None).by_phase()["step"] is None


def test_each_phase_has_a_limit_of_its_own_and_begins_anew(clock):
    phases = Phases(clock)
    phases.limit({"start": 10, "compile": 5, "step": None})
    clock.now += 9
    assert (phases.overdue(), phases.remaining()) == (None, 1)
    with phases.phase("compile"):
        assert phases.remaining() == 5
        clock.now += 6
        late = phases.overdue()
        assert (late.place.phase, late.place.seconds, late.limit) == ("compile", 6, 5)
        assert late.setting == "runtime.timeouts.compile_seconds"
        phases.beat()
        assert phases.overdue() is None
    assert phases.remaining() == 10  # back in the start, which begins anew
    with phases.phase("step"):
        clock.now += 1e6
        assert (phases.overdue(), phases.remaining()) == (None, None)
    with phases.phase("save"):  # no limit is given for it
        assert phases.remaining() is None
    assert Phases(clock).remaining() is None


def test_a_phase_ends_with_an_error_too(clock):
    phases = Phases(clock)
    with pytest.raises(KeyError), phases.phase("step"), phases.phase("evaluation"):
        raise KeyError
    assert phases.current().phase == "start"


def test_own_seconds_are_those_of_steps_without_waits_evaluations_and_saves(clock):
    phases = Phases(clock)

    def step(number, own):
        clock.now += own
        with phases.waiting():
            with phases.waiting():  # counts once
                clock.now += 25
            assert phases.current().waits
            clock.now += 25
        phases.stepped(number)

    with phases.phase("step"):
        step(7, 9)  # the first compiles and reads ahead
        assert phases.current() == ("step", 7, 0, False, None)
        step(8, 1)
        with phases.phase("evaluation"), phases.waiting():
            clock.now += 1000
        step(9, 3)
        step(10, 2)
        assert phases.current() == ("step", 10, 0, False, 2)
        for number in range(11, 80):
            step(number, 5)
        assert phases.current().own_seconds == 5


def test_getting_on_touches_the_file_of_probes_once_training_has_begun(tmp_path, monkeypatch):
    path = tmp_path / "heartbeat"
    monkeypatch.setenv("MAXLM_HEARTBEAT", str(path))
    phases = Phases()
    for name in ("restore", "compile"):
        with phases.phase(name):
            phases.beat()
    assert not path.exists()  # a pod's start has a limit of its own
    with phases.phase("step"):
        for beat in (lambda: phases.stepped(1), phases.beat):
            os.utime(path, (1, 1))
            beat()
            assert time.time() - path.stat().st_mtime < 60
        for name in PHASES:  # such as the restore of a roll-back
            os.utime(path, (1, 1))
            with phases.phase(name):
                assert time.time() - path.stat().st_mtime < 60, name
