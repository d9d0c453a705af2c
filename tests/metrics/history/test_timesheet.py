"""What a process writes down of its time, with clocks that the test moves."""

import json
import os
import subprocess
import sys

import pytest

from maxlm.metrics.history.goodput import LOSSES, STEPS
from maxlm.metrics.history.timesheet import TimeSheet, process_age_seconds
from maxlm.process import phases


class Clock:
    def __init__(self, now):
        self.now = now

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock(100.0)


def sheet_of(clock, age=0.0, offset=1e9):
    return TimeSheet(age, clock=clock, wall=lambda: clock.now + offset)


def lines_of(folder):
    return [json.loads(line) for line in (folder / "time.jsonl").read_text().splitlines()]


def nonzero(goodput):
    return {cause: seconds for cause, seconds in goodput.seconds.items() if seconds}


def test_a_whole_start(tmp_path, clock):
    sheet = sheet_of(clock, age=7.0)
    waited, compiled = [0.0], [2.0]
    sheet.meter("compile", lambda: compiled[0])
    clock.now += 1
    sheet.open(tmp_path)
    assert lines_of(tmp_path) == [
        {"start": 1, "time": 1e9 + 101, "step": None, "spent": {"start": 8.0}}
    ]
    with sheet.phase("restore"):
        clock.now += 2
    with sheet.phase("compile"):
        compiled[0] += 3  # the phase's own: not taken out twice
        clock.now += 4
    clock.now += 0.5
    sheet.count_steps(5)
    sheet.meter("input", lambda: waited[0])
    clock.now += 10
    waited[0] += 1.5
    sheet.at(7)
    sheet.mark()
    assert lines_of(tmp_path)[-1] == {
        "start": 1,
        "time": 1e9 + 117.5,
        "step": 7,
        "spent": {"input": 1.5, "steps": 8.5},
    }
    with sheet.phase("evaluation"):
        clock.now += 3
        compiled[0] += 1
    with sheet.phase("save"):
        clock.now += 1
    expected = {"start": 8.5, "restore": 2, "compile": 5, "steps": 8.5, "input": 1.5}
    assert nonzero(sheet.goodput) == {**expected, "evaluation": 2, "save": 1}
    assert sheet.goodput.total == clock.now - 100 + 7
    assert sheet.elsewhere_seconds == 8.5 + 2 + 4 + 3 + 1
    sheet.count_no_steps()
    clock.now += 0.25
    sheet.close()
    assert nonzero(sheet.goodput)["start"] == 8.75


def test_a_meter_takes_no_more_than_there_is(tmp_path, clock):
    sheet = sheet_of(clock)
    sheet.open(tmp_path)
    total = [0.0]
    sheet.count_steps(0)
    sheet.meter("input", lambda: total[0])
    total[0] = 99.0
    clock.now += 2
    sheet.mark()
    assert nonzero(sheet.goodput) == {"input": 2}
    total[0] = 0.0
    clock.now += 2
    sheet.mark()
    assert nonzero(sheet.goodput) == {"input": 2, "steps": 2}


def test_the_next_start_goes_on_after_a_kill(tmp_path, clock):
    first = sheet_of(clock)
    first.open(tmp_path)
    first.count_steps(0)
    clock.now += 8
    first.at(8)
    first.mark()
    with (tmp_path / "time.jsonl").open("ab") as file:
        file.write(b'{"start": 1, "time": 10')  # the line that the kill tore
    clock.now += 60
    second = sheet_of(clock, age=5.0)
    second.open(tmp_path)
    with second.phase("restore"):
        clock.now += 1
        second.at(6)
    second.count_steps(6)
    clock.now += 4
    second.at(10)
    second.close()
    found = {"steps": 10, "redone": 2, "restore": 1, "start": 5, "idle": 55}
    assert nonzero(second.goodput) == found
    third = sheet_of(clock)
    third.open(tmp_path)
    assert nonzero(third.goodput) == found
    starts = [json.loads(line)["start"] for line in whole_lines(tmp_path)]
    assert starts == [1, 2, 2, 2]


def whole_lines(folder):
    lines = (folder / "time.jsonl").read_bytes().splitlines()
    return [line for line in lines if line.endswith(b"}")]


def test_without_a_folder_time_is_measured_all_the_same(clock):
    sheet = sheet_of(clock)
    clock.now += 1
    sheet.count_steps(3)
    clock.now += 3
    sheet.mark()
    assert sheet.goodput.fraction == 0.75
    assert {STEPS, *LOSSES} == {*sheet.goodput.seconds}


def test_phases_are_repeated_from_the_second_time_on(clock):
    sheet = sheet_of(clock)
    clock.now += 1
    sheet.mark()
    assert not sheet.repeats  # a start is one, however long
    seen = []
    for _ in range(2):
        with sheet.phase("evaluation"):
            seen.append(sheet.repeats)
            clock.now += 1
    assert seen == [False, True]


def test_a_phase_has_the_limit_of_its_name(clock):
    sheet = sheet_of(clock)
    before = phases.current().phase
    with sheet.phase("save"):
        assert phases.current().phase == "save"
    assert phases.current().phase == before


def test_an_error_within_a_phase_closes_it(tmp_path, clock):
    sheet = sheet_of(clock)
    sheet.open(tmp_path)

    def restore():
        with sheet.phase("restore"):
            clock.now += 3
            raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        restore()
    clock.now += 1
    sheet.mark()
    assert nonzero(sheet.goodput) == {"restore": 3, "start": 1}


def test_a_full_disk_ends_the_sheet_and_not_the_run(tmp_path, clock, caplog):
    sheet = sheet_of(clock)
    sheet.open(tmp_path)
    os.dup2(os.open("/dev/full", os.O_WRONLY), sheet._journal._descriptor)
    for _ in range(2):
        clock.now += 1
        sheet.mark()
    assert caplog.text.count("goodput is not kept any more") == 1
    assert nonzero(sheet.goodput) == {"start": 2}


def test_age_of_a_process_counts_from_its_start():
    code = (
        "import time; time.sleep(0.3)\n"
        "from maxlm.metrics.history.timesheet import process_age_seconds\n"
        "print(process_age_seconds())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0.3 <= float(out.stdout) < 60
    assert process_age_seconds() > 0.3
