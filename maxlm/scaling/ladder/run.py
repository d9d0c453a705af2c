"""Train the rungs of a ladder, cheapest first; one that fails does not stop the others."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from maxlm.checkpoint import RunDirectory
from maxlm.checkpoint.layout import saved_steps, step_path
from maxlm.config.cluster.exit_codes import Exit
from maxlm.config.ladder import LadderConfig
from maxlm.config.reading.loader import LoadedRun
from maxlm.config.show import to_yaml
from maxlm.files import write_whole
from maxlm.scaling.ladder.results import read_results, settings_of
from maxlm.scaling.ladder.rung import Rung


def run_ladder(
    ladder: LadderConfig, rungs: list[Rung], *, jobs: int, say: Callable[[str], None]
) -> list[Rung]:
    """Train what is not done yet, `jobs` rungs at a time; return those that failed.

    Each rung is `maxlm train` in a process of its own, which resumes what an earlier call began.
    One that goes on from another waits until that one has saved the state. A rung's YAML and its
    output stand in the ladder's folders `rungs` and `logs`.
    """
    waiting = _not_done(ladder, rungs, say)
    running: dict[str, tuple[Rung, subprocess.Popen[bytes]]] = {}
    failed: list[Rung] = []
    try:
        while True:
            for rung in [rung for rung in waiting if missing_start(rung) is None]:
                if len(running) < jobs:
                    waiting.remove(rung)
                    steps = rung.config.train.num_steps - rung.start
                    say(f"{rung.name}: {steps} steps, {rung.own_flops:.2e} FLOPs")
                    running[rung.name] = rung, _start(ladder, rung)
            if not running:
                break
            ended = _one_that_ended(running)
            if ended is not None:
                rung, process = running.pop(ended)
                failed += [] if _ended(ladder, rung, process.returncode, say) else [rung]
    finally:
        for _, process in running.values():  # an interrupted ladder's rungs save and stop
            process.terminate()
        for _, process in running.values():
            process.wait()
    for rung in waiting:
        say(f"{rung.name}: not begun; {_lacking(rung)}")
    return failed + waiting


def _lacking(rung: Rung) -> str:
    """Say what a rung that cannot start waits for, and how it comes."""
    assert rung.after is not None
    return (
        f"it goes on from {missing_start(rung)}, which is not there; give the same command again once "
        f"{rung.after.name} has saved it (one that is done and has lost it: move {rung.after.config.run_dir} away)"
    )


def launch_ladder(
    ladder: LadderConfig,
    rungs: list[Rung],
    *,
    cluster: str,
    jobs: int | None,
    say: Callable[[str], None],
) -> int:
    """Submit what is not done yet to Slurm, as an array of jobs; return the launcher's exit code.

    A rung that goes on from a state which is not saved yet is left for a later call: its job would
    end at once, by a mistake.

    Args:
      ladder: the ladder.
      rungs: all of its rungs.
      cluster: YAML file of the cluster.
      jobs: how many may run together, None for all.
      say: tells the user.
    """
    waiting = _not_done(ladder, rungs, say)
    if not waiting:
        return Exit.DONE
    later = [rung for rung in waiting if missing_start(rung) is not None]
    for rung in later:
        say(f"{rung.name}: not submitted; {_lacking(rung)}")
    waiting = [rung for rung in waiting if rung not in later]
    if not waiting:
        return Exit.FAILED
    lines = [shlex.join(["maxlm", "train", str(_write(ladder, rung))]) for rung in waiting]
    path = Path(ladder.run_dir) / "rungs" / "commands"
    write_whole(path, "".join(f"{line}\n" for line in lines).encode())
    at_a_time = ["--at-a-time", str(jobs)] if jobs else []
    command = [sys.executable, "-m", "launch.slurm", "submit", cluster, "--array", str(path)]
    return subprocess.run([*command, *at_a_time], check=False).returncode


def _not_done(ladder: LadderConfig, rungs: list[Rung], say: Callable[[str], None]) -> list[Rung]:
    states = {result.rung.name: result.state for result in read_results(ladder, rungs)}
    waiting = [rung for rung in rungs if states[rung.name] not in ("done", "diverged")]
    say(f"{len(rungs) - len(waiting)} of {len(rungs)} rungs are done")
    return waiting


def _write(ladder: LadderConfig, rung: Rung) -> Path:
    """Write the YAML of a rung, and return its path."""
    path = settings_of(ladder, rung)
    for folder in (path.parent, path.parents[1] / "logs"):
        folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, to_yaml(LoadedRun(rung.config, {})).encode())
    return path


def _start(ladder: LadderConfig, rung: Rung) -> subprocess.Popen[bytes]:
    folder, path = Path(ladder.run_dir), _write(ladder, rung)
    _failure_of(ladder, rung).unlink(missing_ok=True)
    with (folder / "logs" / f"{rung.name}.log").open("ab") as log:
        command = [sys.executable, "-m", "maxlm", "train", str(path)]
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def _one_that_ended(running: dict[str, tuple[Rung, subprocess.Popen[bytes]]]) -> str | None:
    """Return the name of a rung that has ended, None if none does within a moment."""
    for name, (_, process) in running.items():
        try:
            process.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            continue
        return name
    return None


def _ended(ladder: LadderConfig, rung: Rung, code: int, say: Callable[[str], None]) -> bool:
    """Tell how a rung ended; return whether all is well with it."""
    (result,) = read_results(ladder, [rung])
    if code == 0 and result.loss is not None:
        say(f"{rung.name}: loss {result.loss:.4f}")
        return True
    log = Path(ladder.run_dir) / "logs" / f"{rung.name}.log"
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    last = lines[-1] if lines else "it wrote nothing"
    if code in (Exit.DONE, Exit.STOPPED):
        say(f"{rung.name}: stopped at step {result.step}; the same command goes on with it")
        return False
    write_whole(_failure_of(ladder, rung), f"exit code {code}: {last}\n".encode())
    say(f"{rung.name}: failed with exit code {code}: {last} (all of it: {log})")
    return False


def _failure_of(ladder: LadderConfig, rung: Rung) -> Path:
    return Path(ladder.run_dir) / "logs" / f"{rung.name}.failed"


def missing_start(rung: Rung) -> str | None:
    """Return the checkpoint that a rung starts from and that is not there; None if it can start."""
    if rung.after is None:
        return None
    folder = RunDirectory(Path(rung.after.config.run_dir)).checkpoints
    own = RunDirectory(Path(rung.config.run_dir)).checkpoints
    # A rung with checkpoints of its own goes on with those.
    if rung.start in saved_steps(folder) or saved_steps(own):
        return None
    return str(step_path(folder, rung.start))
