#!/usr/bin/env python3
"""Run a job on a Slurm cluster:
`python launch/slurm.py submit CLUSTER.yaml -- maxlm train RUN.yaml`.

`submit` writes the sbatch file and gives it to Slurm; `--dry-run` shows both instead. `--array FILE`
submits a command of each line as an array of jobs. Slurm tells the processes to stop before the time
limit and before it takes the nodes away; they save, and the job goes back into the queue. So does a
job that fails, after a pause; one that ends by the user's mistake does not (docs/launch.md).

`status` shows of each job its starts, how each ended, and the first failing line of its logs.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.command_line import split_command
from launch.failures import first_failure
from launch.queue import queued, record
from launch.slurm_script import Job, make_script
from maxlm.config.cluster.exit_codes import Exit
from maxlm.config.cluster.file import load_cluster
from maxlm.config.cluster.slurm import SlurmCluster
from maxlm.config.errors import UserError, make_possible

MEANING = {
    Exit.DONE: "done",
    Exit.STOPPED: "stopped and saved",
    Exit.MISTAKE: "a mistake in settings, files or usage",
    Exit.FAILED: "failed",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what was asked, and return the exit code."""
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    try:
        cluster = load_cluster(options.cluster, SlurmCluster)
        if options.action == "submit":
            return submit(cluster, options)
        return status(cluster, options.jobs)
    except UserError as error:
        sys.stderr.write(f"launch/slurm.py: {error}\n")
        return Exit.MISTAKE


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="launch/slurm.py",
        description="Run a job under Slurm.",
        usage="launch/slurm.py submit CLUSTER.yaml [--dry-run] -- COMMAND | status CLUSTER.yaml [JOB ...]",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    submitting = actions.add_parser("submit", help="give a job to Slurm")
    submitting.add_argument("cluster", metavar="CLUSTER.yaml")
    submitting.add_argument("--dry-run", action="store_true", help="show it and do nothing")
    submitting.add_argument("--array", metavar="FILE", help="a job for each line, a command")
    submitting.add_argument(
        "--at-a-time", type=int, metavar="N", help="jobs of the array that may run together"
    )
    showing = actions.add_parser("status", help="say how jobs are, and what broke first")
    showing.add_argument("cluster", metavar="CLUSTER.yaml")
    showing.add_argument("jobs", nargs="*", metavar="JOB", help="ids (default: all)")
    own, command = split_command(arguments)
    options = parser.parse_args(own)
    options.command = command
    if options.action == "submit" and bool(options.command) == bool(options.array):
        parser.error("submit needs a command after --, or --array FILE")
    if options.action == "submit" and options.at_a_time is not None:
        if not options.array:
            parser.error("--at-a-time is for --array FILE; leave it out")
        if options.at_a_time < 1:
            parser.error(f"--at-a-time {options.at_a_time}: give 1 or more, or leave it out")
    return options


def submit(cluster: SlurmCluster, options: argparse.Namespace) -> int:
    """Write the sbatch file and give it to Slurm; return the exit code.

    Raises:
      UserError: Slurm is not there or refuses it, or a file is not as it must be.
    """
    commands = read_commands(Path(options.array)) if options.array else [options.command]
    if options.array and not options.dry_run:
        commands = _not_in_queue(Path(cluster.log_dir), commands)
        if not commands:
            print("all of it is in the queue: nothing was submitted")
            return Exit.DONE
    again = shlex.join(["python", "launch/slurm.py", "submit", options.cluster, "--"])
    job = Job(
        cluster, commands, array=bool(options.array), at_a_time=options.at_a_time, launcher=again
    )
    script = make_script(job)
    path = Path(cluster.log_dir) / f"{cluster.job_name}.sbatch"
    call = ["sbatch", "--parsable", str(path)]
    if options.dry_run:
        print(f"{script}\n$ {shlex.join(call)}")
        return Exit.DONE
    if shutil.which("sbatch") is None:
        raise UserError("there is no sbatch on PATH; run this where Slurm's commands are")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(script)
    except OSError as error:
        raise UserError(
            f"cluster.log_dir={cluster.log_dir}: {error.strerror or error}; {make_possible(error)}, "
            "or name another folder"
        ) from error
    identity = _call(call).split(";")[0].strip()
    if options.array:
        record(path.parent, identity, commands)
    print(
        f"job {identity}; python launch/slurm.py status {shlex.quote(options.cluster)} {identity}"
    )
    return Exit.DONE


def _not_in_queue(folder: Path, commands: list[list[str]]) -> list[list[str]]:
    """Return the commands that no job of an earlier array waits or runs for; name the others."""
    there = queued(folder)
    for command in commands:
        if job := there.get(tuple(command)):
            print(f"{shlex.join(command)}: is in the queue as job {job}")
    return [command for command in commands if tuple(command) not in there]


def read_commands(path: Path) -> list[list[str]]:
    """Return the commands of a file, one a line.

    Raises:
      UserError: the file cannot be read, a line is no command, or there is none.
    """
    try:
        lines = path.read_text().splitlines()
        commands = [words for words in map(shlex.split, lines) if words]
    except (OSError, ValueError) as error:
        raise UserError(f"--array {path}: {error}; give a file with a command a line") from error
    if not commands:
        raise UserError(f"--array {path} has no command; give a file with a command a line")
    return commands


def status(cluster: SlurmCluster, wanted: Sequence[str]) -> int:
    """Show jobs; return the exit code: FAILED if the last start of one failed.

    Raises:
      UserError: there is no such job.
    """
    folder = Path(cluster.log_dir)
    # Not what else a folder of logs has.
    jobs = [path for path in folder.glob("*") if path.name.split("_")[0].isdecimal()]
    if wanted:
        jobs = [job for job in jobs if job.name in wanted or job.name.split("_")[0] in wanted]
    if not jobs:
        raise UserError(
            f"cluster.log_dir={folder} has no job {' '.join(wanted)}; one has its folder from its first start on"
        )
    ended = [show_job(job) for job in sorted(jobs, key=lambda job: job.stat().st_mtime)]
    bad = any(code in (Exit.FAILED, Exit.MISTAKE) for code in ended)
    return Exit.FAILED if bad else Exit.DONE


def show_job(job: Path) -> int | None:
    """Show one job; return how its last start ended, None if it runs."""
    print(f"job {job.name}: {queue_state(job.name)}")
    code = None
    folders = (path for path in job.glob("*") if path.name.isdecimal())
    starts = sorted(folders, key=lambda path: int(path.name))
    for start in starts:
        verdict = start / "verdict"
        text = verdict.read_text().strip() if verdict.exists() else ""
        code = int(text) if text else None  # an empty one is being written
        nodes = {path.name.split(".")[0] for path in start.glob("*.*.log")}
        last = start is starts[-1]
        how = MEANING[Exit(code)] if code is not None else "runs" if last else "ended by Slurm"
        print(f"  start {start.name} on {', '.join(sorted(nodes)) or 'no node yet'}: {how}")
        failure = first_failure(start) if code in (Exit.FAILED, Exit.MISTAKE) else None
        if failure:
            print(f"    {failure}\n    all of it: {failure.log}")
    return code


def queue_state(job: str) -> str:
    """Return what Slurm says of a job's state."""
    if shutil.which("squeue") is None:
        return "no squeue here"
    try:
        state = _call(["squeue", "--noheader", "--jobs", job, "--format", "%T, %r"]).strip()
    except UserError:  # it no longer knows the job
        state = ""
    return state.removesuffix(", None").lower() or "not in the queue"


def _call(command: Sequence[str]) -> str:
    """Run one of Slurm's commands and return what it prints.

    Raises:
      UserError: it fails.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{shlex.join(command)}: {done.stderr.strip()}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
