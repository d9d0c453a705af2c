"""The sbatch file of a job: its options, its steps, and what becomes of it by its exit codes."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from maxlm.config.cluster.exit_codes import Exit
from maxlm.config.cluster.slurm import SlurmCluster


class Job(NamedTuple):
    """What is submitted.

    Attributes:
      cluster: where it runs.
      commands: one, or one for each job of an array.
      array: whether it is an array.
      at_a_time: jobs of an array that may run together, None for all.
      launcher: what stands before the command in the line that resumes a run.
    """

    cluster: SlurmCluster
    commands: Sequence[Sequence[str]]
    array: bool = False
    at_a_time: int | None = None
    launcher: str = ""


# A task ends with 0 where it was stopped: to Slurm everything else is a failure, for which it ends
# the other tasks, which may still be saving. The trap lets the shell live on; Slurm signals every
# process of a task.
_TASK = f"""trap : TERM USR1
"${{@:2}}"
code=$?
echo "$code" > "$1/$SLURM_PROCID.exit"
[[ $code == {Exit.STOPPED} ]] || exit "$code\""""

JUDGE = f"""judge() {{ # NUMBER-OF-TASKS < their exit codes: what they mean together
  local code count=0 stopped=0 failed=0
  while read -r code; do
    count=$((count + 1))
    case $code in
      {Exit.MISTAKE}) echo {Exit.MISTAKE}; return ;;
      {Exit.STOPPED}) stopped=1 ;;
      {Exit.DONE}) ;;
      *) failed=1 ;;
    esac
  done
  if ((failed || count < $1)); then echo {Exit.FAILED}
  elif ((stopped)); then echo {Exit.STOPPED}
  else echo {Exit.DONE}; fi
}}"""

# The state tells a job that was cancelled, which is not to come back. Slurm ends a script whose job
# it has put back; one that ended by itself could be taken for the end of the next start. A script that
# outlives the death of another node, and finds the next start running, would put that one back.
_AGAIN = """ours() { # whether this start is the one that runs
  scontrol show job --oneliner "$SLURM_JOB_ID" |
    grep -q "JobState=RUNNING .*Restarts=${SLURM_RESTART_COUNT:-0} "
}
again() { # CODE: back into the queue, unless somebody has cancelled the job, or it is there already
  trap - TERM
  if ours && scontrol requeue "$SLURM_JOB_ID"; then
    sleep 3600
  fi
  exit "$1"
}"""

_STEP = """mkdir -p "$folder"
trap : TERM # what is told to stop is the step; this script then says what comes next
{step} &
step=$!
while kill -0 "$step" 2>/dev/null; do wait "$step"; done
verdict=$(cat "$folder"/*.exit 2>/dev/null | judge "$tasks")
echo "$verdict" > "$folder/verdict\""""

_NEXT = f"""case $verdict in
  {Exit.STOPPED}) rm -f "$logs/failures"; again {Exit.STOPPED} ;;
  {Exit.FAILED})
    ours || exit {Exit.FAILED}
    failures=$(cat "$logs/failures" 2>/dev/null || echo 0)
    ((SECONDS < reset_after)) || failures=0
    failures=$((failures + 1))
    echo "$failures" > "$logs/failures"
    if ((failures > ${{#pauses[@]}})); then
      echo "failure $failures in a row: giving up"
      exit {Exit.FAILED}
    fi
    echo "failure $failures in a row of ${{#pauses[@]}} that may be: again in ${{pauses[failures - 1]}} s"
    sleep "${{pauses[failures - 1]}}"
    again {Exit.FAILED} ;;
esac
exit "$verdict\""""


def make_script(job: Job) -> str:
    """Return the sbatch file."""
    cluster = job.cluster
    folder = f"{_folder(cluster)}/"
    identity = "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" if job.array else "$SLURM_JOB_ID"
    pauses = " ".join(f"{pause:g}" for pause in cluster.retries.pauses)
    parts = [
        "#!/usr/bin/env bash",
        *(f"#SBATCH {option}" for option in options(job)),
        "# Made by launch/slurm.py. Exit codes: maxlm/config/cluster/exit_codes.py.",
        "",
        f"logs={shlex.quote(folder)}{identity}",
        'folder="$logs/${SLURM_RESTART_COUNT:-0}"',
        f"pauses=({pauses})",
        f"reset_after={cluster.retries.reset_after_seconds:.0f}",
        *_environment(job),
        *_command(job),
        "",
        JUDGE,
        _AGAIN,
        "",
        f"tasks=$((SLURM_JOB_NUM_NODES * {cluster.processes_per_node}))",
        _STEP.format(step=_srun(cluster)),
        _NEXT,
    ]
    return "\n".join(parts) + "\n"


def options(job: Job) -> Iterator[str]:
    """Yield the options of sbatch."""
    cluster = job.cluster
    name = "%A_%a" if job.array else "%j"
    values = {
        "job-name": cluster.job_name,
        "nodes": cluster.node_range,
        **_tasks(cluster),
        # Of all tasks of a node, not bound to one each: JAX gives each process its own of them.
        "gpus-per-node": cluster.gpus_per_node or None,
        "mem": cluster.memory,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "time": cluster.time,
        "array": f"0-{len(job.commands) - 1}{f'%{job.at_a_time}' if job.at_a_time else ''}"
        if job.array
        else None,
        # To all steps, that is to every process, and not to this script. Not SIGTERM, which the limit
        # brings: a second one would end processes that still save.
        "signal": f"USR1@{cluster.stop_seconds}",
        "output": shlex.quote(f"{_folder(cluster)}/{name}.log"),
        "open-mode": "append",
    }
    yield from (f"--{option}={value}" for option, value in values.items() if value is not None)
    yield "--requeue"
    if cluster.exclusive:
        yield "--exclusive"
    yield from cluster.options


def _tasks(cluster: SlurmCluster) -> dict[str, int | None]:
    """Return the options of how many tasks a node has, and how many CPUs."""
    tasks, cpus = cluster.processes_per_node, cluster.cpus_per_process
    if not cluster.least_nodes:
        return {"ntasks-per-node": tasks, "cpus-per-task": cpus}
    # Of a range of nodes Slurm takes no more than there are tasks, and it counts those of the least
    # nodes. So a job is given none, and a node the CPUs of all its processes; srun says how many
    # processes there are.
    if cpus:
        return {"cpus-per-task": tasks * cpus}
    return {"mincpus": tasks if tasks > 1 else None}


def _folder(cluster: SlurmCluster) -> str:
    return str(Path(cluster.log_dir).absolute())


def _environment(job: Job) -> Iterator[str]:
    cluster = job.cluster
    if cluster.modules:
        yield f"module load {shlex.join(cluster.modules)}"
    if cluster.venv:
        yield f"export PATH={shlex.quote(str(Path(cluster.venv).absolute() / 'bin'))}:$PATH"
    variables = {"MAXLM_NOTICE_SECONDS": str(cluster.stop_seconds), **cluster.environment}
    if cluster.network_interface:
        variables.setdefault("NCCL_SOCKET_IFNAME", cluster.network_interface)
    if job.launcher:
        variables["MAXLM_LAUNCHER"] = job.launcher
    yield from (f"export {name}={shlex.quote(value)}" for name, value in variables.items())


def _command(job: Job) -> Iterator[str]:
    if not job.array:
        yield f"command=({shlex.join(job.commands[0])})"
        return
    yield "case $SLURM_ARRAY_TASK_ID in"
    for index, command in enumerate(job.commands):
        yield f"  {index}) command=({shlex.join(command)}) ;;"
    yield "esac"


def _srun(cluster: SlurmCluster) -> str:
    words, tasks = ["srun", "--kill-on-bad-exit=1", "--unbuffered"], ""
    if cluster.least_nodes:
        tasks = ' --ntasks="$tasks"'
        words.append(f"--ntasks-per-node={cluster.processes_per_node}")
        if cluster.cpus_per_process:
            words.append(f"--cpus-per-task={cluster.cpus_per_process}")
    if cluster.container:
        words.append(f"--container-image={cluster.container}")
    if cluster.container_mounts:
        words.append(f"--container-mounts={','.join(cluster.container_mounts)}")
    return (
        f'{shlex.join(words)}{tasks} --output="$folder/%N.%t.log" \\\n'
        f'  bash -c {shlex.quote(_TASK)} task "$folder" "${{command[@]}}"'
    )
