import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from maxlm.config.cluster.exit_codes import Exit
from maxlm.config.cluster.retries import Retries

LAUNCHER = Path(__file__).parents[2] / "launch" / "local.py"


@pytest.fixture
def launch():
    """Return a function that starts the launcher with Python code as the command; the launcher is
    killed in the end.
    """
    started = []

    def start(count, code):
        command = [sys.executable, LAUNCHER, "-n", str(count), "--", sys.executable, "-c", code]
        started.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert condition()


def test_each_process_knows_its_place_and_process_0_has_the_terminal(launch, tmp_path):
    job = launch(
        3,
        f"""
import os, pathlib
e = os.environ
place = e["MAXLM_NUM_PROCESSES"] + " " + e["MAXLM_COORDINATOR"] + " " + e["MAXLM_LAUNCHER"]
pathlib.Path({str(tmp_path)!r}, e["MAXLM_PROCESS_ID"]).write_text(place)
print("hello from", e["MAXLM_PROCESS_ID"])
""",
    )
    out, err = job.communicate(timeout=30)
    assert (job.returncode, out, err) == (0, "hello from 0\n", "")
    texts = [(tmp_path / str(index)).read_text() for index in range(3)]
    assert len(set(texts)) == 1
    assert texts[0].startswith("3 127.0.0.1:")
    assert texts[0].endswith(f" python {shlex.quote(str(LAUNCHER))} -n 3 --")


def test_the_line_that_resumes_a_run_has_all_of_the_launchers_options():
    options = ["-n", "1", "--retries", "3", "--pause", "5"]
    program = [sys.executable, "-c", "import os; print(os.environ['MAXLM_LAUNCHER'])"]
    job = subprocess.run(
        [sys.executable, LAUNCHER, *options, "--", *program],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert job.stdout == f"python {shlex.quote(str(LAUNCHER))} {shlex.join(options)} --\n"


def test_a_dry_run_prints_what_each_process_would_be_and_starts_none(tmp_path):
    show = "import os, sys; print(os.environ['MAXLM_PROCESS_ID'], os.environ['MAXLM_NUM_PROCESSES'], *sys.argv[1:])"
    program = [sys.executable, "-c", f"open({str(tmp_path / 'ran')!r}, 'a'); {show}", "a b"]
    options = ["-n", "2", "--retries", "2", "--pause", "5"]
    job = subprocess.run(
        [sys.executable, LAUNCHER, *options, "--dry-run", "--", *program],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert not (tmp_path / "ran").exists()
    *lines, last = job.stdout.splitlines()
    assert "started again after 5 s, 10 s" in last
    launcher = f"MAXLM_LAUNCHER=python {shlex.quote(str(LAUNCHER))} {shlex.join(options)} --"
    addresses = set()
    for index, line in enumerate(lines):
        assert line.startswith("$ env ")
        words = shlex.split(line[2:])
        assert launcher in words
        addresses.update(word.split("=")[1] for word in words if "ADDRESS=" in word)
        # What it prints is what a shell can run.
        done = subprocess.run(
            line[2:], shell=True, capture_output=True, text=True, check=True, timeout=30
        )
        assert done.stdout == f"{index} 2 a b\n"
    assert (len(lines), len(addresses)) == (2, 1)


@pytest.mark.parametrize(
    ("death", "code", "words"),
    [
        ("os.kill(os.getpid(), 9)", 1, "was killed by SIGKILL"),
        ("os.kill(os.getpid(), 40)", 1, "was killed by signal 40"),
        ("sys.exit(2)", 2, "exited with code 2"),
        ("1 / 0", 1, "exited with code 1"),
    ],
)
def test_one_dead_process_ends_the_others_and_is_named(death, code, words, launch, tmp_path):
    job = launch(
        3,
        f"""
import os, pathlib, sys, time
me = os.environ["MAXLM_PROCESS_ID"]
pathlib.Path({str(tmp_path)!r}, me).write_text(str(os.getpid()))
if me == "1":
    for line in range(100): print("line", line, flush=True)
    {death}
time.sleep(100)
""",
    )
    begin = time.monotonic()
    _, err = job.communicate(timeout=30)
    assert time.monotonic() - begin < 10
    assert job.returncode == code
    pids = [int((tmp_path / str(index)).read_text()) for index in range(3)]
    assert f"process 1 (pid {pids[1]}) {words}; ended the others (process 0, process 2)" in err
    assert "[process 1] line 99" in err
    assert "line 60" not in err
    assert ("ZeroDivisionError" in err) == ("/" in death)
    wait_until(lambda: not any(alive(pid) for pid in pids))


def test_the_one_that_says_why_is_named_before_those_that_crash_in_its_wake(launch):
    job = launch(
        2,
        """
import os, signal, sys, time
if os.environ["MAXLM_PROCESS_ID"] == "1":
    sys.stderr.write("no such file: run.yaml\\n")
    sys.exit(2)
time.sleep(0.3)
os.abort()
""",
    )
    _, err = job.communicate(timeout=30)
    assert job.returncode == 2
    assert "[process 1] no such file: run.yaml" in err
    assert "process 1" in err.splitlines()[-1]
    assert "ended the others" not in err


WAITS = """
import os, pathlib, signal, sys, time
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
signal.signal(signal.SIGINT, lambda *_: stopped.append(2))
signal.signal(signal.SIGUSR1, lambda *_: stopped.append(3))
signal.signal(signal.SIGHUP, lambda *_: stopped.append(4))
pathlib.Path({path!r}, os.environ["MAXLM_PROCESS_ID"]).write_text(str(os.getpid()))
while not (stopped and {polite}):
    time.sleep(0.01)
time.sleep(0.2)
pathlib.Path({path!r}, os.environ["MAXLM_PROCESS_ID"]).write_text(repr(stopped))
"""


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (signal.SIGTERM, "[1]"),
        (signal.SIGINT, "[2]"),
        (signal.SIGUSR1, "[3]"),
        (signal.SIGHUP, "[4]"),
    ],
)
def test_first_signal_reaches_every_process_once(number, told, launch, tmp_path):
    job = launch(2, WAITS.format(path=str(tmp_path), polite=True))
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    time.sleep(0.1)
    job.send_signal(number)
    _, err = job.communicate(timeout=30)
    assert (job.returncode, err) == (0, "")
    assert [(tmp_path / str(index)).read_text() for index in range(2)] == [told, told]


def test_a_signal_while_processes_begin_reaches_all_of_them_once(monkeypatch):
    local = runpy.run_path(str(LAUNCHER))
    monkeypatch.setattr(local["signal"], "signal", lambda number, handler: None)
    told = []
    monkeypatch.setitem(local["send"].__globals__, "send", lambda *sent: told.append(sent))
    signals = local["Signals"]()
    with signals.held_back():
        signals.workers.append("first")
        signals._handle(signal.SIGHUP, None)
        signals.workers.append("second")
        assert told == []
    assert told == [(["first", "second"], signal.SIGHUP)]
    signals._handle(signal.SIGTERM, None)  # comes along with it
    assert len(told) == 1
    signals._handle(signal.SIGTERM, None)
    assert told[1:] == [(["first", "second"], signal.SIGKILL)]


def test_second_signal_kills(launch, tmp_path):
    job = launch(2, WAITS.format(path=str(tmp_path), polite=False))
    wait_until(lambda: len([p for p in tmp_path.iterdir() if p.read_text()]) == 2)
    pids = [int((tmp_path / str(index)).read_text()) for index in range(2)]
    for number in (signal.SIGUSR1, signal.SIGHUP, signal.SIGTERM):  # as Slurm and shells send them
        job.send_signal(number)
        time.sleep(0.1)
    assert all(alive(pid) for pid in pids)
    job.send_signal(signal.SIGTERM)
    _, err = job.communicate(timeout=30)
    assert job.returncode == 128 + signal.SIGTERM
    assert "second signal" in err
    wait_until(lambda: not any(alive(pid) for pid in pids))


@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")
def test_a_process_that_somebody_stopped_is_named_before_the_one_that_waited_for_it(launch):
    job = launch(
        2,
        """
import os, signal, sys, time
if os.environ["MAXLM_PROCESS_ID"] == "1":
    os.kill(os.getpid(), signal.SIGSTOP)
time.sleep(0.5)
os.abort()
""",
    )
    _, err = job.communicate(timeout=30)
    assert job.returncode == Exit.FAILED
    first, *_, last = err.splitlines()
    assert re.match(r"launch/local.py: process 1 \(pid \d+\) is stopped \(SIGSTOP", first)
    assert "process 0" in last
    assert "was killed by SIGABRT; ended the others (process 1)" in last


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        # Process 1 heard a signal in start-up, and process 0 lost it.
        ("sys.exit(75) if me else (time.sleep(0.5), os.abort())", Exit.STOPPED),
        # Process 0 failed by itself.
        ("sys.exit(75) if me else (time.sleep(0.5), sys.exit(1))", Exit.FAILED),
        ("(time.sleep(0.5), sys.exit(75)) if me else os.abort()", Exit.FAILED),
    ],
)
def test_a_stop_in_start_up_is_no_failure(ends, code, launch):
    job = launch(2, f"import os, sys, time\nme = os.environ['MAXLM_PROCESS_ID'] == '1'\n{ends}")
    _, err = job.communicate(timeout=30)
    assert job.returncode == code, err


def test_a_signal_before_the_processes_can_hear_it_is_a_stop(launch, tmp_path):
    job = launch(
        2,
        f"import os, pathlib, time\n"
        f"pathlib.Path({str(tmp_path)!r}, os.environ['MAXLM_PROCESS_ID']).touch()\ntime.sleep(100)",
    )
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    job.send_signal(signal.SIGTERM)
    _, err = job.communicate(timeout=30)
    assert job.returncode == Exit.STOPPED, err


@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")
def test_killed_launcher_leaves_no_orphans(launch, tmp_path):
    job = launch(2, WAITS.format(path=str(tmp_path), polite=False))
    wait_until(lambda: len([p for p in tmp_path.iterdir() if p.read_text()]) == 2)
    pids = [int((tmp_path / str(index)).read_text()) for index in range(2)]
    os.kill(job.pid, signal.SIGKILL)
    wait_until(lambda: not any(alive(pid) for pid in pids))


@pytest.mark.parametrize(
    "arguments", [["-n", "0", "--", "true"], ["-n", "2"], ["-n", "1", "--", "no-such-command"]]
)
def test_mistakes_of_the_user(arguments):
    job = subprocess.run(
        [sys.executable, LAUNCHER, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert job.returncode == 2
    assert "local.py" in job.stderr
    assert "Traceback" not in job.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["-n", "1", "--", "/nowhere/command"],
            "'/nowhere/command' cannot be started: No such file or directory",
        ),
        (["-n", "1", "--", "/etc"], "'/etc' cannot be started: Permission denied"),
        (["-n", "0", "--", "true"], "-n 0: from 1 to 1024 processes can run on one machine"),
        (["-n", "1000000", "--", "true"], "-n 1000000: from 1 to 1024 processes"),
    ],
)
def test_commands_and_counts_that_cannot_be(arguments, expected):
    command = [sys.executable, LAUNCHER, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


# --- exit codes -----------------------------------------------------------------------------------

# They end together, however long one of them takes to start.
ENDS = """
import os, pathlib, sys, time
me = os.environ["MAXLM_PROCESS_ID"]
folder = pathlib.Path({path!r})
count = len(list(folder.glob(me + ".*")))
(folder / f"{{me}}.{{count}}").touch()
while not (folder / f"{{1 - int(me)}}.{{count}}").exists():
    time.sleep(0.01)
sys.exit({codes}[min(count, len({codes}) - 1)][int(me)])
"""


@pytest.mark.parametrize(
    ("codes", "retries", "starts", "code"),
    [
        ([[0, 0]], 3, 1, Exit.DONE),
        ([[75, 75]], 3, 1, Exit.STOPPED),  # who stopped it knows when it may go on
        ([[2, 2]], 3, 1, Exit.MISTAKE),
        ([[1, 2]], 3, 1, Exit.MISTAKE),
        ([[1, 1], [134, 1], [0, 0]], 3, 3, Exit.DONE),
        ([[1, 1], [2, 2]], 3, 2, Exit.MISTAKE),
        ([[1, 1]], 2, 3, Exit.FAILED),
        ([[1, 1]], 0, 1, Exit.FAILED),
    ],
)
def test_what_codes_mean_together_and_which_are_tried_again(codes, retries, starts, code, tmp_path):
    program = [sys.executable, "-c", ENDS.format(path=str(tmp_path), codes=codes)]
    options = ["-n", "2", "--retries", str(retries), "--pause", "0.05"]
    job = subprocess.run(
        [sys.executable, LAUNCHER, *options, "--", *program],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert job.returncode == code, job.stderr
    assert len(list(tmp_path.glob("0.*"))) == starts
    pauses = [float(text) for text in re.findall(r"starting again in ([\d.]+) s", job.stderr)]
    assert pauses == [0.05 * 2**number for number in range(starts - 1)]


def test_a_signal_during_the_pause_ends_the_launcher(launch, tmp_path):
    command = [sys.executable, LAUNCHER, "-n", "1", "--retries", "1", "--pause", "600", "--"]
    job = subprocess.Popen([*command, "false"], stderr=subprocess.PIPE, text=True)
    assert "exited with code 1" in job.stderr.readline()
    assert "starting again in 600 s" in job.stderr.readline()
    job.send_signal(signal.SIGTERM)
    job.communicate(timeout=30)
    assert job.returncode == 128 + signal.SIGTERM


def test_pauses_double_up_to_a_limit_and_begin_anew_after_a_long_run():
    retries = Retries(most=8, pause_seconds=30.0, reset_after_seconds=100.0)
    assert retries.pauses == (30, 60, 120, 240, 480, 900, 900, 900)
    assert retries.next_failures(3, 99.0) == 4
    assert retries.next_failures(3, 100.0) == 1
