"""A job on the hosts of TPU slices: what is done there, and what comes next by how they are."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from maxlm.config.cluster.exit_codes import Exit, judge
from maxlm.config.cluster.tpu import TpuCluster

FOLDER = ".maxlm"
"""On a host, in the home directory: the output, the process' id and its exit code."""
ARCHIVE = "maxlm-code.tar.gz"

LOST = ("SUSPENDED", "FAILED")
"""States of a queued resource that it does not leave: spot slices that were taken away, and a request
that Google cannot grant, for its quota or its kind of machine, or because its time is over.
"""
MISSING = "MISSING"
"""There is no queued resource, because gcloud refused to ask for it anew."""


def unpack(cluster: TpuCluster) -> str:
    """Return the command that puts the code in its place and installs what its locks say."""
    folder = shlex.quote(cluster.remote_dir)
    return f"set -e; mkdir -p {folder}; tar xzf {ARCHIVE} -C {folder}; cd {folder}; {cluster.setup}"


def start(cluster: TpuCluster, command: Sequence[str], launcher: str) -> str:
    """Return the command that starts the process and lets it run on when ssh ends.

    A process that still runs from before would hold the TPU: it is killed first. The shell that
    writes its exit code outlives a SIGTERM to both.
    """
    notice = {"MAXLM_NOTICE_SECONDS": str(cluster.stop_seconds)}
    variables = {**notice, **cluster.environment, "MAXLM_LAUNCHER": launcher}
    words = shlex.join(["env", *(f"{name}={value}" for name, value in variables.items()), *command])
    inner = f"trap : TERM; PATH=$PWD/.venv/bin:$PATH; {words}; echo $? > ~/{FOLDER}/exit"
    return (
        f"mkdir -p ~/{FOLDER}; {kill('KILL')}; rm -f ~/{FOLDER}/exit; cd {shlex.quote(cluster.remote_dir)}; "
        f"setsid nohup bash -c {shlex.quote(inner)} >> ~/{FOLDER}/log 2>&1 < /dev/null & "
        f"echo $! > ~/{FOLDER}/pid"
    )


def kill(signal: str) -> str:
    """Return the command that signals the process and what it has started."""
    return f'test ! -e ~/{FOLDER}/pid || kill -{signal} -- "-$(cat ~/{FOLDER}/pid)" 2>/dev/null || true'


REPORT = (
    f"if test -e ~/{FOLDER}/exit; then echo maxlm ended $(cat ~/{FOLDER}/exit); "
    f'elif kill -0 -- "-$(cat ~/{FOLDER}/pid)" 2>/dev/null; then echo maxlm runs; '
    "else echo maxlm gone; fi"
)
"""Says of a host: the process has ended with a code, runs, or is gone without a word."""


class Hosts(NamedTuple):
    """How the processes are.

    Attributes:
      running: how many run.
      codes: exit codes of those that ended.
      gone: how many are gone without a word: their hosts were restarted.
      reached: whether all hosts answered.
    """

    running: int
    codes: tuple[int, ...]
    gone: int
    reached: bool


def read_report(output: str, *, reached: bool) -> Hosts:
    """Read what `REPORT` says on all hosts."""
    codes = tuple(int(code) for code in re.findall(r"maxlm ended (\d+)", output))
    return Hosts(output.count("maxlm runs"), codes, output.count("maxlm gone"), reached)


class Move(Enum):
    """What the launcher does next."""

    WAIT = "wait"
    RECREATE = "ask for the slices again"
    ASK_LATER = "ask for the slices again after a pause: the request failed"
    RESTART = "start again: a host was restarted"
    RESUME = "start again: the run was stopped and has saved"
    RETRY = "start again after a pause: the run failed"
    DONE = "done"
    GIVE_UP = "the user's mistake: it would end the same way again"


def next_move(state: str, hosts: Hosts | None) -> Move:
    """Return what to do.

    Args:
      state: of the queued resource.
      hosts: how the processes are, None if no host could be asked.
    """
    if state in (*LOST, MISSING):
        return Move.RECREATE if state == "SUSPENDED" else Move.ASK_LATER
    # A host that does not answer is being restarted, or its slice is about to be suspended.
    if state != "ACTIVE" or hosts is None or not hosts.reached:
        return Move.WAIT
    if hosts.gone:
        return Move.RESTART
    # Those that still run are about to notice.
    if hosts.running or not hosts.codes:
        return Move.WAIT
    by_code = {
        Exit.DONE: Move.DONE,
        Exit.STOPPED: Move.RESUME,
        Exit.MISTAKE: Move.GIVE_UP,
        Exit.FAILED: Move.RETRY,
    }
    return by_code[judge(hosts.codes)]
