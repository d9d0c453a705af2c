#!/usr/bin/env python3
"""Run a job on TPU slices of Google Cloud, as a queued resource:
`python launch/tpu.py run CLUSTER.yaml -- maxlm train RUN.yaml`.

`run` asks for the slices, waits until they are there, copies the code with its locks, installs what
these say, starts the command on all hosts and stays: it starts the run again after maintenance and
failures, and asks for slices anew that were taken away. `--dry-run` prints the command lines.
`watch` goes on from there when `run` itself was ended; `tail` follows the first host's output, `stop`
lets the processes save and end, `delete` gives the slices back.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from launch import gcloud, tpu_job
from launch.command_line import split_command
from launch.tpu_job import Hosts, Move
from maxlm.config.cluster.exit_codes import Exit
from maxlm.config.cluster.file import load_cluster
from maxlm.config.cluster.tpu import TpuCluster
from maxlm.config.errors import RunFailedError, UserError

# Looks in a row that do not find the queued resource: one that was just asked for may not be known yet.
GONE_LOOKS = 3
# How long gcloud may fail to say the state, for a network or a login that is gone for a while.
UNANSWERED_SECONDS = 3600.0

# What is never part of the code, where no git says what is.
NOT_CODE = {".git", "__pycache__", "runs", "data", "logs", ".venv", ".jax_cache"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what was asked, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="launch/tpu.py",
        description="Run a job on TPU slices.",
        usage="launch/tpu.py run|watch|tail|stop|delete CLUSTER.yaml [--dry-run] [-- COMMAND]",
    )
    parser.add_argument("action", choices=["run", "watch", "tail", "stop", "delete"])
    parser.add_argument("cluster", metavar="CLUSTER.yaml")
    parser.add_argument("--dry-run", action="store_true", help="print it and do nothing")
    own, command = split_command(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(own)
    if (options.action in ("run", "watch")) != bool(command):
        parser.error("run and watch need a command after --, and the others take none")
    try:
        cluster = load_cluster(options.cluster, TpuCluster)
        if not options.dry_run and shutil.which("gcloud") is None:
            raise UserError("there is no gcloud on PATH; install Google Cloud's CLI, or --dry-run")
        job = Job(cluster, command, options.cluster, dry_run=options.dry_run)
        try:
            return act(job, options.action)
        except KeyboardInterrupt:
            rest = after_interruption(job, options.action)
            sys.stderr.write(f"launch/tpu.py: interrupted{rest}\n")
            return 128 + signal.SIGINT
    except UserError as error:
        sys.stderr.write(f"launch/tpu.py: {error}\n")
        return Exit.MISTAKE
    except RunFailedError as error:
        sys.stderr.write(f"launch/tpu.py: {error}\n")
        return Exit.FAILED


def act(job: Job, action: str) -> int:
    """Do one action; return the exit code."""
    if action == "run":
        job.call(gcloud.create(job.cluster))
        return job.dry() if job.dry_run else job.watch(begun=False)
    if action == "watch":
        return job.dry() if job.dry_run else job.watch(begun=True)
    one = {
        "tail": gcloud.ssh(
            job.cluster, f"tail --lines=100 --follow=name ~/{tpu_job.FOLDER}/log", everywhere=False
        ),
        "stop": gcloud.ssh(job.cluster, tpu_job.kill("TERM")),
        "delete": gcloud.delete(job.cluster),
    }[action]
    job.call(one)
    return Exit.DONE


def after_interruption(job: Job, action: str) -> str:
    """Say what goes on without the launcher, and what takes its place."""
    if action not in ("run", "watch"):
        return ""
    return (
        f"; the slices and what runs on them are left as they are. To go on: {job.again('watch')}\n"
        f"To give them back: {shlex.join(job.words('delete'))}"
    )


class Job:
    """A command on all hosts of a queued resource."""

    def __init__(
        self, cluster: TpuCluster, command: Sequence[str], path: str, *, dry_run: bool
    ) -> None:
        self.cluster, self.command, self.path = cluster, command, path
        self.dry_run = dry_run
        self.failures = 0
        # The slices were to be asked for anew, and gcloud has refused.
        self.is_recreating = False
        # Looks in a row that did not find the queued resource, and when gcloud last said its state.
        self.gone_looks, self.answered = 0, time.monotonic()
        # When the processes were started, None while none are: neither a wait in the queue nor an
        # installation that fails is a run that went well for long. `watch` finds them started.
        self.began: float | None = time.monotonic()

    def words(self, action: str) -> list[str]:
        """Return the command line of an action on this job."""
        return ["python", "launch/tpu.py", action, self.path]

    def again(self, action: str) -> str:
        """Return the line that does an action with the job's command."""
        return shlex.join([*self.words(action), "--", *self.command])

    def call(self, words: Sequence[str]) -> None:
        """Run a command whose output the user sees, or print it.

        Raises:
          UserError: it fails.
        """
        if self.dry_run:
            print(f"$ {shlex.join(words)}")
            return
        done = subprocess.run(words, check=False)
        if done.returncode:
            raise UserError(
                f"{shlex.join(words)}: exit code {done.returncode}; its reason is above"
            )

    def ask(self, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a command and return what it prints."""
        return subprocess.run(words, capture_output=True, text=True, check=False)

    def dry(self) -> int:
        """Print everything that is done on the slices."""
        print(f"$ {shlex.join(gcloud.describe(self.cluster))}")
        print(f"# every {self.cluster.poll_seconds:g} s, until it is ACTIVE; then")
        self.sync()
        self.start()
        print(f"$ {shlex.join(gcloud.ssh(self.cluster, tpu_job.REPORT))}")
        print(f"# every {self.cluster.poll_seconds:g} s; what it does then:")
        for move in Move:
            print(f"#   {move.value}")
        print(f"$ {shlex.join(gcloud.delete(self.cluster))}")
        print(
            f"# where the slices are {' or '.join(tpu_job.LOST)}, before they are asked for again"
        )
        return Exit.DONE

    def sync(self) -> None:
        """Copy the code to all hosts, and install what its locks say."""
        with tempfile.TemporaryDirectory() as folder:
            archive = Path("" if self.dry_run else folder) / tpu_job.ARCHIVE
            if not self.dry_run:
                pack(Path(self.cluster.code_dir), archive)
            self.call(gcloud.copy(self.cluster, str(archive), tpu_job.ARCHIVE))
        self.call(gcloud.ssh(self.cluster, tpu_job.unpack(self.cluster)))

    def begin(self) -> bool:
        """Copy, install and start; return False where a host cannot be reached yet, or refuses."""
        self.began = None
        try:
            self.sync()
            self.start()
        except UserError as error:
            self.say(str(error))
            return False
        return True

    def start(self) -> None:
        """Start the command on all hosts."""
        launcher = shlex.join([*self.words("run"), "--"])
        command = tpu_job.start(self.cluster, self.command, launcher)
        self.call(gcloud.ssh(self.cluster, command))
        self.began = time.monotonic()

    def watch(self, *, begun: bool) -> int:
        """Stay with the job to its end; return its exit code.

        Args:
          begun: whether its processes were started before.
        """
        started, before = begun, ""
        while True:
            state = self.state()
            if state != before:
                self.say(state)
            before = state
            move = Move.RETRY
            if state != "ACTIVE" or started or self.begin():
                move = tpu_job.next_move(state, self.hosts() if state == "ACTIVE" else None)
                started = started or state == "ACTIVE"
            if move is Move.DONE:
                return Exit.DONE
            if move is Move.GIVE_UP:
                self.say(f"{move.value}; its words: {shlex.join(self.words('tail'))}")
                return Exit.MISTAKE
            if move is Move.RECREATE and self.is_recreating:  # gcloud has refused it before
                move = Move.ASK_LATER
            if move in (Move.RETRY, Move.ASK_LATER) and not self.may_retry():
                return Exit.FAILED
            started = self.make(move, state, started=started)
            time.sleep(self.cluster.poll_seconds)

    def state(self) -> str:
        """Return the state of the queued resource.

        Raises:
          UserError: somebody has deleted it.
          RunFailedError: gcloud has not said it for too long.
        """
        done = self.ask(gcloud.describe(self.cluster))
        if done.returncode:
            if self.is_recreating:
                return tpu_job.MISSING
            self.look_again(done.stderr.strip())
            return "UNKNOWN"
        self.gone_looks, self.answered = 0, time.monotonic()
        state = done.stdout.strip()
        if state not in (*tpu_job.LOST, "DELETING"):
            self.is_recreating = False  # gcloud has said that it failed, and it had not
        elif state == "FAILED":
            self.say(
                f"`{shlex.join(gcloud.describe(self.cluster)[:-1])}` says why the request failed"
            )
        return state

    def look_again(self, refusal: str) -> None:
        """Bear with a look that gcloud has refused, so many times or so long.

        Raises:
          UserError: somebody has deleted the queued resource.
          RunFailedError: gcloud has not said its state for too long.
        """
        self.gone_looks = self.gone_looks + 1 if "NOT_FOUND" in refusal else 0
        if self.gone_looks >= GONE_LOOKS:
            raise UserError(
                f"there is no queued resource {self.cluster.name} in {self.cluster.zone}: somebody has deleted "
                f"it, or cluster.project is another. To ask for it anew: {self.again('run')}\n{refusal}"
            )
        seconds = time.monotonic() - self.answered
        if seconds > UNANSWERED_SECONDS:
            raise RunFailedError(
                f"gcloud has not said the state of {self.cluster.name} for {seconds:.0f} s; the slices and what "
                f"runs on them are left as they are. Look at the network and at `gcloud auth list`; then to go "
                f"on: {self.again('watch')}\n{refusal}"
            )

    def hosts(self) -> Hosts:
        """Ask all hosts how their processes are."""
        done = self.ask(gcloud.ssh(self.cluster, tpu_job.REPORT))
        return tpu_job.read_report(done.stdout, reached=done.returncode == 0)

    def make(self, move: Move, state: str, *, started: bool) -> bool:
        """Make a move in a state of the slices; return whether the processes are started."""
        if move is Move.WAIT:
            return started
        self.say(move.value)
        if move in (Move.RECREATE, Move.ASK_LATER):
            self.recreate(state)
        # Copied again as well: a host that was repaired comes back empty.
        return False

    def recreate(self, state: str) -> None:
        """Delete the queued resource, where there is one, and ask for it anew; what gcloud refuses is
        tried again later.
        """
        self.is_recreating = True
        try:
            if state != tpu_job.MISSING:
                self.call(gcloud.delete(self.cluster))
            self.call(gcloud.create(self.cluster))
        except UserError as error:
            self.say(str(error))
        else:
            self.is_recreating = False

    def may_retry(self) -> bool:
        """Count a failure and wait its pause out; return False after too many in a row."""
        retries = self.cluster.retries
        seconds = 0.0 if self.began is None else time.monotonic() - self.began
        self.failures = retries.next_failures(self.failures, seconds)
        self.began = None  # that run counts once
        if self.failures > retries.most:
            self.say(f"failure {self.failures} in a row: giving up")
            return False
        pause = retries.pauses[self.failures - 1]
        self.say(f"failure {self.failures} in a row of {retries.most} that may be: {pause:g} s")
        time.sleep(pause)
        return True

    def say(self, text: str) -> None:
        """Tell the user, with the time."""
        print(f"{time.strftime('%H:%M:%S')} {self.cluster.name}: {text}", flush=True)


def pack(folder: Path, archive: Path) -> None:
    """Write the code into an archive: the files that git knows or would add, else all but results.

    Raises:
      UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"cluster.code_dir={folder} is no folder; give the folder of the code")
    command = [
        "git",
        "-C",
        str(folder),
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]
    listed = (
        subprocess.run(command, capture_output=True, check=False) if shutil.which("git") else None
    )
    if listed is not None and listed.returncode == 0:
        names = [os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]
    else:
        every = (path.relative_to(folder) for path in folder.rglob("*"))
        names = [str(path) for path in every if not NOT_CODE & set(path.parts)]
    with tarfile.open(archive, "w:gz") as tar:
        for name in sorted(names):
            if (folder / name).is_file():  # a file that was removed is still in git's list
                tar.add(folder / name, arcname=name, recursive=False)


if __name__ == "__main__":
    sys.exit(main())
