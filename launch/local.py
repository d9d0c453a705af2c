#!/usr/bin/env python3
"""Run N processes of one job on this machine:
`python launch/local.py -n 2 -- maxlm train RUN.yaml`.

Process 0 has the terminal. Of the others only the last lines are kept, and shown when one of them
fails. When a process dies, the others are ended within seconds and the message names it, or the one
that somebody has stopped (SIGSTOP) and that it waited for. The first SIGTERM, SIGINT, SIGHUP or
SIGUSR1 goes on to all processes, which finish their step, save and stop; a second SIGTERM or SIGINT
kills them.

Exit code: what the processes' own codes mean together (`maxlm.config.cluster.exit_codes`): 0 done, 75 stopped
by a signal and saved, 2 the user's mistake, 1 failed; 128 + the signal when a signal ended them. With
`--retries N` a job that fails is started again, after pauses that double. `--dry-run` prints each process'
command line and environment.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from maxlm.config.cluster.exit_codes import Exit, judge
from maxlm.config.cluster.retries import Retries

# Processes that fail over the same mistake end one shortly after the other; process 0 gets to say
# what it is.
GRACE_SECONDS = 2.0
GONE_SECONDS = 10.0
POLL_SECONDS = 0.05
LINES_KEPT = 30
MOST_PROCESSES = 1024

# A second one of these kills; the others are sent along with them, or before.
INSISTING = (signal.SIGTERM, signal.SIGINT)
STOPPING = (*INSISTING, signal.SIGHUP, signal.SIGUSR1)

# What tells a process how it finds the others.
PLACE = (
    "MAXLM_COORDINATOR",
    "MAXLM_NUM_PROCESSES",
    "MAXLM_PROCESS_ID",
    "JAX_COORDINATOR_BIND_ADDRESS",
)

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux's prctl


class Worker:
    """One process of the job."""

    def __init__(self, index: int, command: Sequence[str], environment: dict[str, str]) -> None:
        self.index = index
        output = None if index == 0 else subprocess.PIPE
        # A process group of its own: a Ctrl-C in the terminal reaches the processes once, through
        # the launcher.
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdout=output,
            stderr=None if index == 0 else subprocess.STDOUT,
            text=True,
            errors="replace",
            process_group=0,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509 - no threads yet
        )
        self._lines: deque[str] = deque(maxlen=LINES_KEPT)
        self._reader: threading.Thread | None = None

    def start_reading(self) -> None:
        """Drain the output in the background; a full pipe would stop the process."""
        if self.process.stdout is not None:
            self._reader = threading.Thread(
                target=self._lines.extend, args=(self.process.stdout,), daemon=True
            )
            self._reader.start()

    @property
    def is_stopped(self) -> bool:
        """Whether somebody has stopped it (SIGSTOP, a debugger); known on Linux alone."""
        try:
            state = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (OSError, IndexError):
            return False
        return state in "Tt"

    def describe_end(self) -> str:
        """Say how the process ended, and its last lines where they were not shown yet."""
        code = self.process.returncode
        names = {int(number): number.name for number in signal.Signals}
        how = (
            f"exited with code {code}"
            if code >= 0
            # Those of real time have no names but the first and the last.
            else f"was killed by {names.get(-code, f'signal {-code}')}"
        )
        if self._reader is not None:
            self._reader.join(timeout=1)
        lines = "".join(f"[process {self.index}] {line.rstrip()}\n" for line in list(self._lines))
        return f"{lines}launch/local.py: process {self.index} (pid {self.process.pid}) {how}"


class Signals:
    """Pass the first signal that asks for a stop on to all workers, and kill them at a second SIGTERM
    or SIGINT.
    """

    def __init__(self) -> None:
        self.workers: list[Worker] = []
        self.received: list[int] = []
        self._is_starting, self._held = False, False
        # nohup has SIGHUP ignored: the job is to outlive its terminal.
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        for number in STOPPING:
            if number != signal.SIGHUP or not ignored:
                signal.signal(number, self._handle)

    @property
    def insisted(self) -> bool:
        """Whether the workers were killed."""
        return len(self.received) > 1 and sum(one in INSISTING for one in self.received) > 1

    @contextlib.contextmanager
    def held_back(self) -> Iterator[None]:
        """Begin the workers within the block: what comes meanwhile reaches all of them, once, at its
        end.
        """
        self._is_starting, self._held = True, bool(self.received)
        try:
            yield
        finally:
            self._is_starting = False  # from here on, the handler passes on what comes
            if self._held:
                send(self.workers, self.received[0])
                if self.insisted:
                    send(self.workers, signal.SIGKILL)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.received.append(number)
        if self._is_starting:
            self._held = True
        elif len(self.received) == 1:
            send(self.workers, number)
        elif self.insisted:
            send(self.workers, signal.SIGKILL)

    def wait(self, seconds: float) -> None:
        """Wait so long, or until a signal comes."""
        deadline = time.monotonic() + seconds
        while not self.received and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Start the processes, watch them to the end, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="launch/local.py", description="Run N processes of one job on this machine."
    )
    parser.add_argument("-n", type=int, required=True, metavar="N", help="number of processes")
    parser.add_argument(
        "--retries", type=int, default=0, metavar="N", help="starts after failures (default: none)"
    )
    parser.add_argument(
        "--pause", type=float, default=Retries().pause_seconds, help="seconds before the first"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what each process would be, and start none"
    )
    parser.add_argument("command", nargs="+", metavar="-- COMMAND", help="what each process runs")
    options = parser.parse_args(arguments)
    if not 1 <= options.n <= MOST_PROCESSES:
        parser.error(f"-n {options.n}: from 1 to {MOST_PROCESSES} processes can run on one machine")
    try:
        retries = Retries(most=options.retries, pause_seconds=options.pause)
    except ValueError:
        parser.error(f"--retries {options.retries} --pause {options.pause}: 0 to 1000, and a time")
    own = list(sys.argv[1:] if arguments is None else arguments)[: -len(options.command)]
    # What stands before the command in the line that resumes a run.
    before = [word for word in own if word not in ("--", "--dry-run")]
    os.environ["MAXLM_LAUNCHER"] = shlex.join(["python", sys.argv[0], *before, "--"])
    if options.dry_run:
        print_job(options.n, options.command, retries)
        return Exit.DONE
    return run_again(options.n, options.command, retries)


def print_job(count: int, command: Sequence[str], retries: Retries) -> None:
    """Print the command line of each process with the environment that the launcher gives it, for a
    shell, and when all are started again.
    """
    for environment in environments(count):
        given = [f"{name}={environment[name]}" for name in (*PLACE, "MAXLM_LAUNCHER", "PATH")]
        print(f"$ {shlex.join(['env', *given, *command])}")
    pauses = ", ".join(f"{pause:g} s" for pause in retries.pauses)
    again = f"are started again after {pauses}" if pauses else "are not started again"
    print(f"# the port is any that is free; processes that fail {again}")


def run_again(count: int, command: Sequence[str], retries: Retries) -> int:
    """Run the job, again while it fails as `retries` allows; return the last exit code."""
    failures, signals = 0, Signals()
    while True:
        began = time.monotonic()
        code = run(count, command, signals)
        if code != Exit.FAILED or signals.received:
            return code
        failures = retries.next_failures(failures, time.monotonic() - began)
        if failures > retries.most:
            return code
        pause = retries.pauses[failures - 1]
        sys.stderr.write(
            f"launch/local.py: failure {failures} in a row of {retries.most} that may be: "
            f"starting again in {pause:g} s\n"
        )
        signals.wait(pause)
        if signals.received:
            return 128 + signals.received[0]


def run(count: int, command: Sequence[str], signals: Signals) -> int:
    """Start the processes once, watch them to the end, and return the exit code."""
    workers: list[Worker] = signals.workers
    workers.clear()
    try:
        with signals.held_back():
            for environment in environments(count):
                workers.append(Worker(len(workers), command, environment))
        for worker in workers:
            worker.start_reading()
        return watch(workers, signals)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        sys.stderr.write(f"launch/local.py: {command[0]!a} cannot be started: {reason}\n")
        return Exit.MISTAKE
    finally:
        end(workers)


def environments(count: int) -> list[dict[str, str]]:
    """Return the environment of each process: how it finds the others, on the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    # `maxlm` is found when the launcher runs with the Python of an environment that is not
    # activated.
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return [
        {
            **os.environ,
            "PATH": search,
            **dict(zip(PLACE, (address, str(count), str(index), address), strict=True)),
        }
        for index in range(count)
    ]


def watch(workers: Sequence[Worker], signals: Signals) -> int:
    """Wait until all workers are done or one has failed; end the others then; return the exit code."""
    stopped_first = False
    while any(worker.process.poll() is None for worker in workers) and not failed(workers):
        stopped_first = any(worker.process.returncode == Exit.STOPPED for worker in workers)
        time.sleep(POLL_SECONDS)
    if signals.insisted:
        sys.stderr.write("launch/local.py: second signal: killed all processes\n")
        return 128 + signals.received[-1]
    first = failed(workers)
    if not first:
        return judge(worker.process.returncode for worker in workers)
    ending = _end_in_wake(workers)
    for worker in first:
        sys.stderr.write(f"{worker.describe_end()}{ending}\n")
    codes = [worker.process.returncode for worker in first]
    if all(_is_of_the_stop(code, signals, stopped_first=stopped_first) for code in codes):
        return Exit.STOPPED
    if signals.received:
        return 128 + signals.received[0]
    return judge(codes)


def _end_in_wake(workers: Sequence[Worker]) -> str:
    """Give the workers that are alive a moment, end them, and say so; name those that somebody has
    stopped first.
    """
    stopped = [worker for worker in workers if worker.process.poll() is None and worker.is_stopped]
    for worker in stopped:
        sys.stderr.write(
            f"launch/local.py: process {worker.index} (pid {worker.process.pid}) is stopped (SIGSTOP, or a "
            "debugger): the others could not go on without it; `kill -CONT PID` would have let it run\n"
        )
    deadline = time.monotonic() + GRACE_SECONDS
    while any(worker.process.poll() is None for worker in workers) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    ended = [worker for worker in workers if worker.process.poll() is None]
    end(ended)
    if not ended:
        return ""
    return f"; ended the others ({', '.join(f'process {worker.index}' for worker in ended)})"


def _is_of_the_stop(code: int, signals: Signals, *, stopped_first: bool) -> bool:
    """Tell whether a process that ended badly belongs to a stop in start-up, when there was nothing to
    save: the signal found it before it could hear it, or it lost one that had heard it.
    """
    if signals.received and code == -signals.received[0]:
        return True
    return stopped_first and code == -signal.SIGABRT


def failed(workers: Sequence[Worker]) -> list[Worker]:
    """Return the workers that ended badly so far: those that chose to exit before those that
    crashed in their wake.
    """
    well = (None, Exit.DONE, Exit.STOPPED)
    bad = [worker for worker in workers if worker.process.poll() not in well]
    return sorted(bad, key=lambda worker: worker.process.returncode < 0)


def send(workers: Sequence[Worker], number: int) -> None:
    """Send a signal to the process groups of the workers that are alive."""
    for worker in workers:
        if worker.process.poll() is None:
            os.killpg(worker.process.pid, number)


def end(workers: Sequence[Worker]) -> None:
    """Kill the workers that are alive, and wait until they are gone: who starts the job again needs
    their devices.
    """
    send(workers, signal.SIGKILL)
    for worker in workers:
        # In the kernel's hands: a disk that does not answer.
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.process.wait(timeout=GONE_SECONDS)


def _die_with_parent() -> None:
    """Ask the kernel to kill this process when the launcher is killed; runs between fork and exec."""
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
