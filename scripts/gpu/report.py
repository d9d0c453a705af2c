"""`scripts/gpu_report`: share jobs among processes, and write what they find to JSON and Markdown after each.

A run that is cut off keeps what it had.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib.util
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from scripts.gpu.jobs import PARTS, Job, all_jobs, first_of_each
from scripts.gpu.markdown import write_markdown

ROOT = Path(__file__).parents[2]
NEEDED = {
    "facts": ("jax", "numpy"),
    "checks": ("jax", "numpy"),
    "attention": ("jax", "numpy"),
    "grouped": ("jax", "numpy"),
    "tuning": ("jax", "numpy"),
    "training": (
        "jax", "flax", "optax", "pydantic", "yaml", "grain", "orbax", "sentencepiece", "rich", "zstandard",
        "tokenizers", "tiktoken",
    ),
}  # fmt: skip
"""Packages by part."""
MOST_PROCESSES = 10
LAST_WORDS = 2000
"""Characters of what a process said before it ended."""


class Report:
    """What is known so far, on disk after each job."""

    def __init__(self, folder: Path, *, facts: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._lock = folder, threading.Lock()
        self.content: dict[str, Any] = {**facts, "jobs": []}

    def add(self, job: Job, *, began: float, **outcome: Any) -> None:
        """Keep a job's outcome: `found`, or `failed` with the reason."""
        seconds = round(time.monotonic() - began, 1)
        with self._lock:
            self.content["jobs"].append(
                {
                    "part": job.part,
                    "name": job.name,
                    "given": job.given,
                    "seconds": seconds,
                    **outcome,
                }
            )
            self.write()
        good = "failed" not in outcome and outcome["found"].get("good", True)
        print(f"{'ok  ' if good else 'FAIL'} {job.part}: {job.name} ({seconds} s)", flush=True)
        if not good:
            print(f"     {outcome.get('failed', '')[-300:] or outcome['found']}", flush=True)

    def write(self) -> None:
        """Replace both files; a reader never meets half of one."""
        for name, text in (
            ("gpu_report.json", json.dumps(self.content, indent=1) + "\n"),
            ("gpu_report.md", write_markdown(self.content)),
        ):
            part = self._folder / f"{name}.part"
            part.write_text(text)
            part.replace(self._folder / name)


class Process:
    """A worker, started again after a job that ended it."""

    def __init__(self, lock: Path, scale: str, environment: dict[str, str]) -> None:
        self._command = [sys.executable, "-m", "scripts.gpu.worker", str(lock), scale]
        self._environment = environment
        self._process: subprocess.Popen[str] | None = None
        self._errors: IO[str] | None = None

    def do(self, job: Job, seconds: float) -> dict[str, Any]:
        """Return the outcome of a job: `found` or `failed`."""
        if self._process is None:
            self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, env=self._environment, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
            )  # fmt: skip
        process = self._process
        assert process.stdin
        assert process.stdout
        assert self._errors
        watchdog = threading.Timer(seconds, process.kill)
        watchdog.start()
        try:
            process.stdin.write(json.dumps({"part": job.part, "given": job.given}) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        in_time = watchdog.is_alive()
        watchdog.cancel()
        if line:
            return {"found": json.loads(line)}
        process.wait()
        self._errors.seek(0)
        words = self._errors.read()[-LAST_WORDS:]
        self._process = None
        return {"failed": words if in_time else f"took longer than {seconds:.0f} s\n{words}"}

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def run(
    jobs: Sequence[Job],
    report: Report,
    *,
    processes: int,
    end: float,
    scale: str,
    lock: Path,
    memory: str,
) -> None:
    """Do all jobs, several at a time; those that no time is left for are said to be left out."""
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)
    environment = {
        **os.environ,
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": memory,
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }

    def work() -> None:
        process = Process(lock, scale, environment)
        while True:
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                break
            began = time.monotonic()
            left = end - began
            outcome = (
                process.do(job, min(job.seconds, left))
                if left > 5
                else {"failed": "no time was left"}
            )
            report.add(job, began=began, **outcome)
        process.stop()

    threads = [threading.Thread(target=work) for _ in range(min(processes, len(jobs)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def cannot_import(module: str) -> str | None:
    """Return why a module does not load in this Python, or None."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", f"import {module}"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    return done.stderr.strip().splitlines()[-1] if done.returncode else None


def main() -> int:
    """Make the report; return 1 if a check failed, 2 if nothing could be done."""
    parser = argparse.ArgumentParser(prog="scripts/gpu_report", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("runs/gpu_report"), help="folder of the report"
    )
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="after which nothing more begins"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--only", default="", help="jobs whose name contains this")
    parser.add_argument("--rehearse", action="store_true", help="tiny, on the CPU")
    parser.add_argument(
        "--processes", type=int, help="default: as many as there are cores, up to 10"
    )
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    missing = {
        part: [name for name in NEEDED[part] if importlib.util.find_spec(name) is None]
        for part in arguments.parts
    }
    for part, names in missing.items():
        if names:
            print(
                f"{part} is left out: this Python ({sys.executable}) lacks {', '.join(names)}; install wheels of them",
                flush=True,
            )
    parts = tuple(part for part in arguments.parts if not missing[part])
    if "training" in parts and (why := cannot_import("scripts.gpu.training")):
        print(f"training is left out: {why}", flush=True)
        parts, missing["training"] = tuple(x for x in parts if x != "training"), [why]
    jobs = [job for job in all_jobs(parts) if arguments.only in job.name]
    if not jobs:
        print("scripts/gpu_report: nothing is left to do")
        return 2
    if arguments.rehearse:
        jobs = first_of_each(jobs)
        os.environ["JAX_PLATFORMS"] = "cpu"
    scale = "tiny" if arguments.rehearse else "whole"
    facts = {
        "date": str(dt.date.today()),
        "scale": scale,
        "missing": {k: v for k, v in missing.items() if v},
    }
    report = Report(arguments.out, facts=facts)
    processes = arguments.processes or min(MOST_PROCESSES, os.cpu_count() or 1)
    early = [job for job in jobs if job.part != "training"]
    with tempfile.TemporaryDirectory() as folder:
        lock = Path(folder) / "gpu"
        for group, count, memory in (
            ([job for job in early if job.part == "facts"], 1, "0.5"),
            ([job for job in early if job.part != "facts"], processes, "0.5"),
            ([job for job in jobs if job.part == "training"], 1, "0.95"),
        ):
            if group:
                run(group, report, processes=count, end=end, scale=scale, lock=lock, memory=memory)
    print(f"report: {arguments.out / 'gpu_report.md'}")
    outcomes = report.content["jobs"]
    return int(any("failed" in x or not x["found"].get("good", True) for x in outcomes))


if __name__ == "__main__":
    sys.exit(main())
