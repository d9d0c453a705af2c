"""Join the other processes of a job, as its launcher tells of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from maxlm.config.errors import UserError

# With JAX's default of 100 s, the survivors of a killed process sit in a collective for that long.
HEARTBEAT_SECONDS = 10
# How long a process that is done waits for the others to be done; process 0 may still be writing
# its summary.
SHUTDOWN_SECONDS = 60


def connect(environment: Any) -> None:
    """Join the other processes of this job, if there are any."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # JAX's own handler for SIGTERM would hide the signal from StopSignal, which also knows SIGINT
    # and second signals.
    jax.config.update("jax_enable_preemption_service", False)
    arguments: dict[str, Any] = {
        "heartbeat_timeout_seconds": HEARTBEAT_SECONDS,
        "shutdown_timeout_seconds": SHUTDOWN_SECONDS,
    }
    launcher = launcher_of(environment)
    if launcher is None:
        return
    if launcher == "maxlm":
        arguments |= _place(environment)
    try:
        jax.distributed.initialize(**arguments)
    except (ValueError, KeyError, RuntimeError) as error:
        # One machine, or no metadata server that would know of others.
        if launcher == "tpu machine":
            return
        raise UserError(
            f"this looks like one of several processes ({launcher}), but they did not find each other: {error}\n"
            "set MAXLM_COORDINATOR=HOST:PORT, MAXLM_NUM_PROCESSES and MAXLM_PROCESS_ID in every process, "
            "or unset the variables of the launcher to run alone"
        ) from error


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
