"""Join the other processes of a job, as its launcher tells of them."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from maxlm.config.cluster.exit_codes import Exit
from maxlm.config.errors import UserError
from maxlm.process.last_words import tell
from maxlm.process.phases import remaining

log = logging.getLogger(__name__)

# With JAX's default of 100 s, the survivors of a killed process sit in a collective for that long.
HEARTBEAT_SECONDS = 10
# How long a process that is done waits for the others to be done; process 0 may still be writing
# its summary.
SHUTDOWN_SECONDS = 60


# Of the time that start-up has left, for the processes to find each other: it is then said what they
# wait for, which the watchdog could not.
SHARE_OF_START = 0.8
FOR_EVER = 10**8
# After so long they are told what the wait is for.
TELL_SECONDS = 10.0
PROBE_SECONDS = 2.0


def connect(
    environment: Any,
    start_seconds: float | None = None,
    leave: Callable[[int], None] = os._exit,
) -> None:
    """Join the other processes of this job, if there are any; if they do not come in time, say so and
    leave with `Exit.FAILED`.

    Args:
        environment: variables that say so.
        start_seconds: `runtime.timeouts.start_seconds`; of these, what the watchdog has left counts.
        leave: ends the process.

    Raises:
        UserError: the variables are not as they must be.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # JAX's own handler for SIGTERM would hide the signal from StopSignal, which also knows SIGINT
    # and second signals.
    jax.config.update("jax_enable_preemption_service", False)
    launcher = launcher_of(environment)
    if launcher is None:
        return
    left = remaining()  # loading libraries may have taken most of it
    seconds = start_seconds if left is None else max(left, 0.0)
    deadline = None if seconds is None else seconds * SHARE_OF_START
    # Maybe a machine on its own, which then goes on alone: no process waits for it.
    is_unsure = launcher == "tpu machine"
    arguments: dict[str, Any] = {
        "heartbeat_timeout_seconds": HEARTBEAT_SECONDS,
        "shutdown_timeout_seconds": SHUTDOWN_SECONDS,
        # At this one JAX aborts the process with a page of C++, and raises nothing.
        "initialization_timeout": int(deadline) + 1 if is_unsure and deadline else FOR_EVER,
    }
    if launcher == "maxlm":
        arguments |= _place(environment)

    def give_up() -> None:
        tell(
            lambda: log.error("%s", _apart(launcher, waiting_for(environment))),
            seconds=2 * PROBE_SECONDS,
        )
        leave(Exit.FAILED)

    timers = [threading.Timer(TELL_SECONDS, lambda: log.warning("%s", waiting_for(environment)))]
    if deadline is not None and not is_unsure:
        timers.append(threading.Timer(deadline, give_up))
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        jax.distributed.initialize(**arguments)
    except (ValueError, KeyError, RuntimeError) as error:
        # One machine, or no metadata server that would know of others.
        if is_unsure:
            return
        raise UserError(_apart(launcher, f"{error}\n{waiting_for(environment)}")) from error
    finally:
        for timer in timers:
            timer.cancel()


def _apart(launcher: str, reason: str) -> str:
    """Say that the processes did not find each other, and the cure."""
    return (
        f"this looks like one of several processes ({launcher}), but they did not find each other: {reason}\n"
        "set MAXLM_COORDINATOR=HOST:PORT, MAXLM_NUM_PROCESSES and MAXLM_PROCESS_ID in every process, "
        "or unset the variables of the launcher to run alone; where hosts come late, raise "
        "runtime.timeouts.start_seconds"
    )


def waiting_for(environment: Any, probe: Callable[..., Any] = socket.create_connection) -> str:
    """Say what a process that does not find the others waits for."""
    address = environment.get("MAXLM_COORDINATOR", "")
    index, count = (environment.get(f"MAXLM_{name}") for name in ("PROCESS_ID", "NUM_PROCESSES"))
    me = f"process {index} of {count} waits for the others"
    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        return "this process waits for the others: have all of the job's started, on all its nodes?"
    try:
        probe((host.strip("[]"), int(port)), timeout=PROBE_SECONDS).close()
    except socket.gaierror:
        return f"{me}: MAXLM_COORDINATOR={address}, but no host of that name is known here"
    except OSError as error:
        return (
            f"{me}: nothing answers at MAXLM_COORDINATOR={address} ({error.strerror or error}): has process 0 "
            "started there, and does the network let others reach that port?"
        )
    return (
        f"{me}: process 0 answers at {address}, but not all {count} have come: is MAXLM_NUM_PROCESSES right, "
        "and has each process another MAXLM_PROCESS_ID?"
    )


def _place(environment: Any) -> dict[str, Any]:
    """Return which process of how many this one is, as the environment says.

    Raises:
        UserError: a variable is missing or no number, or the place is none of theirs.
    """
    missing = [
        name for name in ("MAXLM_COORDINATOR", "MAXLM_PROCESS_ID") if not environment.get(name)
    ]
    if missing:
        raise UserError(
            f"MAXLM_NUM_PROCESSES is set without {' and '.join(missing)}; set all three, or none"
        )
    texts = {name: environment[name] for name in ("MAXLM_NUM_PROCESSES", "MAXLM_PROCESS_ID")}
    if not all(text.isdecimal() for text in texts.values()) or int(
        texts["MAXLM_PROCESS_ID"]
    ) >= int(texts["MAXLM_NUM_PROCESSES"]):
        both = " and ".join(f"{name}={text}" for name, text in texts.items())
        raise UserError(
            f"{both}: give whole numbers, the ids from 0 to one less than the processes"
        )
    return {
        "coordinator_address": environment["MAXLM_COORDINATOR"],
        "num_processes": int(texts["MAXLM_NUM_PROCESSES"]),
        "process_id": int(texts["MAXLM_PROCESS_ID"]),
        "cluster_detection_method": "deactivate",
    }


def launcher_of(environment: Any) -> str | None:
    """Name what started several processes; None for a process on its own."""
    if "MAXLM_NUM_PROCESSES" in environment:
        return "maxlm"
    # A batch script without srun sees SLURM_NTASKS of the whole job but is a step of one task.
    if environment.get("SLURM_STEP_NUM_TASKS", "1") not in ("", "0", "1"):
        return "Slurm"
    if "OMPI_MCA_orte_hnp_uri" in environment:
        return "Open MPI"
    if "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment:
        return "Kubernetes"
    if "JAX_COORDINATOR_ADDRESS" in environment:
        return "JAX_COORDINATOR_ADDRESS"
    if "," in environment.get("TPU_WORKER_HOSTNAMES", environment.get("TPU_PROCESS_ADDRESSES", "")):
        return "TPU slice"
    if "TPU_SKIP_MDS_QUERY" not in environment and any(Path("/dev").glob("accel[0-9]*")):
        return "tpu machine"
    return None
