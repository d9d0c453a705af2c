"""Join the other processes of a job, as its launcher tells of them."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from maxlm.config.errors import RunFailedError, UserError
from maxlm.process.phases import remaining

log = logging.getLogger(__name__)

# With JAX's default of 100 s, the survivors of a killed process sit in a collective for that long.
HEARTBEAT_SECONDS = 10
# How long a process that is done waits for the others to be done; process 0 may still be writing
# its summary.
SHUTDOWN_SECONDS = 60


# Of the time that start-up has left, for the processes to find each other: JAX then says which are
# missing, which the watchdog could not.
SHARE_OF_START = 0.8
FOR_EVER = 10**8
# After so long they are told what the wait is for.
TELL_SECONDS = 10.0
PROBE_SECONDS = 2.0


def connect(environment: Any, start_seconds: float | None = None) -> None:
    """Join the other processes of this job, if there are any.

    Args:
        environment: variables that say so.
        start_seconds: `runtime.timeouts.start_seconds`; of these, what the watchdog has left counts.

    Raises:
        UserError: the variables are not as they must be.
        RunFailedError: not all came in time.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # JAX's own handler for SIGTERM would hide the signal from StopSignal, which also knows SIGINT
    # and second signals.
    jax.config.update("jax_enable_preemption_service", False)
    left = remaining()  # loading libraries may have taken most of it
    seconds = start_seconds if left is None else max(left, 0.0)
    arguments: dict[str, Any] = {
        "heartbeat_timeout_seconds": HEARTBEAT_SECONDS,
        "shutdown_timeout_seconds": SHUTDOWN_SECONDS,
        "initialization_timeout": FOR_EVER
        if seconds is None
        else int(seconds * SHARE_OF_START) + 1,
    }
    launcher = launcher_of(environment)
    if launcher is None:
        return
    if launcher == "maxlm":
        arguments |= _place(environment)
    telling = threading.Timer(TELL_SECONDS, lambda: log.warning("%s", waiting_for(environment)))
    telling.daemon = True
    telling.start()
    try:
        jax.distributed.initialize(**arguments)
    except (ValueError, KeyError, RuntimeError) as error:
        # One machine, or no metadata server that would know of others.
        if launcher == "tpu machine":
            return
        failed = RunFailedError if "DEADLINE_EXCEEDED" in str(error) else UserError
        raise failed(
            f"this looks like one of several processes ({launcher}), but they did not find each other: {error}\n"
            f"{waiting_for(environment)}\n"
            "set MAXLM_COORDINATOR=HOST:PORT, MAXLM_NUM_PROCESSES and MAXLM_PROCESS_ID in every process, "
            "or unset the variables of the launcher to run alone"
        ) from error
    finally:
        telling.cancel()


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
