import logging
import os

import pytest

from maxlm.process.heartbeat import (
    Heartbeat,
    read_heartbeat,
    stragglers,
    suspects,
    write_heartbeat,
)
from maxlm.process.peers import Peers
from maxlm.process.phases import Place


def beat(process=0, step=10, *, phase="step", waits=False, own=None):
    return Heartbeat(process, f"n{process}", 100, 1, phase, step, 5.0, waits, own)


def test_a_heartbeat_is_read_as_it_was_written_and_nothing_else_is(tmp_path):
    path = tmp_path / "0.json"
    long, short = beat(step=10**12, own=0.1234567), beat(step=None)
    for one in (long, short, long):
        write_heartbeat(path, one)
        assert read_heartbeat(path) == one
    assert path.stat().st_size == 512
    for damaged in (b"", b"null", b"[]", b"{}", b"\0" * 512, b'{"process": 1', b"\xff"):
        path.write_bytes(damaged)
        assert read_heartbeat(path) is None
    assert read_heartbeat(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("beats", "expected"),
    [
        ([], []),
        ([beat(0, waits=True), beat(1), beat(2, waits=True)], [1]),  # it never came
        ([beat(0, 12), beat(1, 11), beat(2, 12)], [1]),
        ([beat(0, 12), beat(1, None, phase="compile")], [1]),
        ([beat(0, waits=True), beat(1, waits=True)], []),  # a device, or the network
        ([beat(0), beat(1)], []),
    ],
)
def test_who_is_suspected(beats, expected):
    assert [one.process for one in suspects(beats)] == expected


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ([0.1, 0.1, 0.1, 0.16], [3]),
        ([0.1, 0.1, 0.1, 0.149], []),
        ([0.2, 0.1], [0]),  # the median of two is the faster one
        ([0.001, 0.001, 0.015], []),  # noise
        ([0.1, 0.1, 0.5, 0.5], [2, 3]),
        ([None, 0.5], []),
    ],
)
def test_who_straggles(own, expected):
    beats = [beat(index, own=seconds) for index, seconds in enumerate(own)]
    assert [one.process for one, _ in stragglers(beats)] == expected


class Job:
    """Processes of one run, all in this one, with a clock that passes when it is told to."""

    def __init__(self, folder, count):
        self.now = 0.0
        self.places = [Place("step", 5, 0.0, True, 0.1)] * count
        self.dead = set()
        self.peers = [self._join(folder, index, count) for index in range(count)]

    def _join(self, folder, index, count):
        return Peers(
            folder,
            index,
            count,
            place=lambda: self.places[index],
            clock=lambda: self.now,
            pause=self.turns,
        )

    def turns(self, seconds=5.0):
        self.now += seconds
        for index, one in enumerate(self.peers):
            if index not in self.dead:
                one.turn()


def test_all_write_their_stacks_when_one_asks_and_it_names_who_hangs(tmp_path):
    job = Job(tmp_path, 3)
    job.turns()
    assert not list((tmp_path / "stacks").iterdir())
    job.places[1] = Place("step", 5, 90.0, False, 0.1)
    job.peers[2].ask_for_stacks()
    (line,) = job.peers[2].explain()
    assert line.startswith("process 1 (pid ")
    assert line.endswith("is in step after step 5 for 90 s; the others wait for it")
    for index in range(3):
        text = (tmp_path / "stacks" / f"process-{index}.txt").read_text()
        assert text.startswith(f"process {index} (pid {os.getpid()} on ")
        assert "test_all_write_their_stacks" in text


def test_a_process_that_does_not_answer_is_named(tmp_path):
    job = Job(tmp_path, 3)
    job.turns()
    job.dead = {1}
    job.peers[0].ask_for_stacks()
    (line,) = job.peers[0].explain()
    assert line.startswith("process 1 (pid ")
    assert "did not answer; it is stopped, or its machine is gone" in line
    assert "step after step 5" in line
    # The next start of the run does not answer an old question, and can ask anew.
    again = Job(tmp_path, 3)
    for path in (tmp_path / "stacks").glob("process-*"):
        os.utime(path, (1, 1))
    again.turns()
    assert all(path.stat().st_mtime == 1 for path in (tmp_path / "stacks").glob("process-*"))
    again.peers[0].ask_for_stacks()
    assert again.peers[0].explain() == [
        "no process is behind the others; their stacks say what they wait for"
    ]


def test_of_thousands_two_read_what_the_others_wrote(tmp_path):
    one = Peers(tmp_path, 7, 4000, place=lambda: Place("save", 5, 1.0, False, None), pause=id)
    assert one.period == 80  # 50 writes a second over all of them
    one.ask_for_stacks()
    assert "the logs of process 0 and 1 name who hangs" in one.explain()[0]


def test_a_process_alone_waits_for_nobody(tmp_path):
    one = Peers(tmp_path, 0, 1, pause=lambda seconds: pytest.fail("waited"))
    one.ask_for_stacks()
    assert one.explain() == []
    assert (tmp_path / "stacks" / "process-0.txt").exists()


@pytest.mark.parametrize("phase", ["step", "evaluation", "save"])
def test_a_slow_phase_is_looked_into_and_named_once(phase, tmp_path, caplog):
    job = Job(tmp_path, 3)
    job.places = [Place(phase, 5, 61.0, True, 0.1)] * 3
    job.places[2] = Place(phase, 5, 61.0, False, 0.1)
    for _ in range(4):
        job.turns()
    (message,) = caplog.messages
    assert message.startswith(f"the {phase} after step 5 has taken 61 s; all wait for process 2 (")
    marked = caplog.records[0].maxlm_event
    assert (marked.kind, marked.step, marked.values["processes"]) == ("hang", 5, [2])
    assert marked.values["phase"] == phase
    caplog.clear()
    job.places, job.dead = [Place("step", 6, 61.0, True, 0.1)] * 3, {1}
    for _ in range(3):
        job.turns()
    (message,) = caplog.messages
    assert "process 1 (pid " in message
    assert "gives no sign" in message


@pytest.mark.parametrize(
    ("dead", "speaker"), [({0}, 1), ({0, 1}, 2), ({0, 1, 2}, None), ({1}, 0), ({3}, 0)]
)
def test_the_first_that_is_alive_names_who_is_not(dead, speaker, tmp_path, caplog):
    job = Job(tmp_path, 4)
    job.turns()
    job.places, job.dead = [Place("step", 5, 61.0, True, 0.1)] * 4, dead
    for _ in range(5):
        job.turns()
    expected = [] if speaker is None else [dead]
    assert [set(one.maxlm_event.values["processes"]) for one in caplog.records] == expected
    for record in caplog.records:
        assert record.levelname == ("ERROR" if speaker else "WARNING")
        assert all(f"process {one} (pid " in record.getMessage() for one in dead)


def test_a_heartbeat_that_is_late_once_is_a_sign(tmp_path, caplog):
    job = Job(tmp_path, 2)
    job.places = [Place("step", 5, 61.0, True, 0.1)] * 2
    for number in range(6):
        job.dead = {1} if number % 2 else set()
        job.turns()
    assert caplog.messages == []


@pytest.mark.parametrize("phase", ["start", "restore", "compile"])
def test_what_takes_long_before_training_is_no_hang(phase, tmp_path, caplog):
    job = Job(tmp_path, 2)
    job.places = [Place(phase, None, 600.0, True, None), Place(phase, None, 600.0, False, None)]
    for _ in range(20):
        job.turns()
    assert not caplog.messages


def test_the_phase_after_a_slow_one_is_looked_into_anew(tmp_path, caplog):
    job = Job(tmp_path, 2)
    for phase in ("evaluation", "save"):
        job.places = [Place(phase, 5, 61.0, True, 0.1), Place(phase, 5, 61.0, False, 0.1)]
        for _ in range(3):
            job.turns()
    assert [message.split(" after")[0] for message in caplog.messages] == [
        "the evaluation",
        "the save",
    ]


def test_a_straggler_is_named_once_until_it_has_caught_up(tmp_path, caplog):
    job = Job(tmp_path, 3)
    slow, quick = Place("step", 5, 0.0, True, 0.5), Place("step", 5, 0.0, True, 0.1)
    job.places = [quick, slow, quick]
    for _ in range(40):
        job.turns()
    (message,) = caplog.messages
    assert "process 1 (pid " in message
    assert "its own work takes 0.500 s of a step, the median of all is 0.100 s" in message
    assert caplog.records[0].levelno == logging.WARNING
    assert caplog.records[0].maxlm_event.values["process"] == 1
    for place in (quick, slow):
        job.places = [quick, place, quick]
        for _ in range(20):
            job.turns()
    assert len(caplog.messages) == 2


def test_a_folder_that_is_gone_is_an_error_of_the_system(tmp_path):
    one = Peers(tmp_path, 0, 2, place=lambda: Place("step", 5, 0.0, False, None))
    (tmp_path / "heartbeats").rmdir()
    with pytest.raises(OSError, match="heartbeats"):
        one.turn()
