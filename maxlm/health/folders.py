"""The run's folder and the folder of compiled programs: seen by all, fast, with room."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import jax

from maxlm.config.schema import CheckpointConfig
from maxlm.health.exchange import exchange
from maxlm.health.finding import Finding, Level, names

SLOW_BYTES_PER_SECOND = 50e6
GIB = 2**30


def saved_bytes(state: Any) -> int:
    """Return the bytes of a checkpoint of a state, given as arrays or shapes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def check_folder(path: Path, size_bytes: int = 64) -> Finding:
    """Let the first process of each host write a file into the folder and read another host's.

    Args:
      path: a folder that exists on process 0.
      size_bytes: of a file; large ones measure the speed.
    """
    me, host = jax.process_index(), socket.gethostname()
    hosts = exchange(host)
    writers = [hosts.index(name) for name in dict.fromkeys(hosts)]
    token = exchange(os.urandom(8).hex())[0]
    file = {process: path / f".health-{token}-{process}" for process in writers}
    report: dict[str, Any] = {"host": host}
    try:
        if me in writers:
            report |= _write(file[me], size_bytes)
        exchange(None)
        wanted = (
            file[writers[(writers.index(me) + 1) % len(writers)]]
            if me in writers
            else file[writers[0]]
        )
        report |= _read(wanted, size_bytes)
        reports = exchange(report)
    finally:
        if me in writers:
            file[me].unlink(missing_ok=True)
    return judge_folder(path, reports, size_bytes)


def _write(path: Path, size_bytes: int) -> dict[str, Any]:
    began = time.perf_counter()
    try:
        with path.open("wb") as file:
            file.write(os.urandom(size_bytes))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return {"error": f"cannot be written: {error.strerror or error}"}
    return {"write_seconds": time.perf_counter() - began}


def _read(path: Path, size_bytes: int) -> dict[str, Any]:
    """Read another host's file; some file systems show it a moment later."""
    for pause in (0, 1, 2):
        time.sleep(pause)
        began = time.perf_counter()
        with contextlib.suppress(OSError), path.open("rb") as file:
            # Not from this machine's memory, if it was written here.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if len(file.read()) == size_bytes:
                return {"read_seconds": time.perf_counter() - began}
    return {"unseen": True}


def judge_folder(path: Path, reports: list[dict[str, Any]], size_bytes: int) -> Finding:
    """Say whether all hosts see one folder, and how fast it is."""
    errors = {one["host"]: one["error"] for one in reports if "error" in one}
    if errors:
        listed = names(f"on {host} it {text}" for host, text in errors.items())
        cure = "make it writable there, or choose another run_dir"
        return Finding("folder", Level.PROBLEM, f"run_dir={path}: {listed}", cure)
    blind = [one["host"] for one in reports if one.get("unseen")]
    if blind:
        text = f"run_dir={path} is not one folder for all hosts: {names(blind)} do not see what others write"
        cure = "put run_dir on a file server or bucket that is mounted on all, by the same path"
        return Finding("folder", Level.PROBLEM, text, cure, {"unseen_by": blind})
    hosts = len({one["host"] for one in reports})
    seen = (
        f"run_dir={path} is seen by {hosts} hosts"
        if hosts > 1
        else f"run_dir={path} can be written"
    )
    rates = {
        name: min(
            size_bytes / max(one[f"{name}_seconds"], 1e-9)
            for one in reports
            if f"{name}_seconds" in one
        )
        for name in ("write", "read")
    }
    if size_bytes < 2**20:
        return Finding("folder", Level.OK, seen)
    text = f"{seen}; the slowest host writes {rates['write'] / 1e6:,.0f} MB/s and reads {rates['read'] / 1e6:,.0f} MB/s"
    values = {"write_bytes_per_second": rates["write"], "read_bytes_per_second": rates["read"]}
    if min(rates.values()) < SLOW_BYTES_PER_SECOND:
        cure = "checkpoints will take long: use a faster file system, or save less often (checkpoint.every)"
        return Finding("folder", Level.WARNING, text, cure, values)
    return Finding("folder", Level.OK, text, values=values)


def check_space(path: Path, checkpoint_bytes: int, config: CheckpointConfig) -> Finding:
    """Compare the room in a run's folder with what its checkpoints will take, as process 0 sees it."""
    free, there = exchange(_room(path) if jax.process_index() == 0 else None)[0]
    # An old one goes when the new one is whole.
    needed = (config.keep_last + 1) * checkpoint_bytes
    text = (
        f"{free / GIB:,.1f} GiB free; a checkpoint takes {checkpoint_bytes / GIB:,.2f} GiB, "
        f"checkpoint.keep_last={config.keep_last} and the one being written {needed / GIB:,.2f} GiB"
    )
    values = {"free_bytes": free, "checkpoint_bytes": checkpoint_bytes, "there_bytes": there}
    if free + there < needed:
        cure = "make room, choose another run_dir, or keep fewer (checkpoint.keep_last)"
        level = Level.PROBLEM if free + there < 2 * checkpoint_bytes else Level.WARNING
        return Finding("space", level, text, cure, values)
    return Finding("space", Level.OK, text, values=values)


def _room(path: Path) -> tuple[int, int]:
    """Return the bytes that are free, and those of checkpoints that are there."""
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    files = (file for file in (path / "checkpoints").rglob("*") if file.is_file())
    return shutil.disk_usage(existing).free, sum(file.stat().st_size for file in files)


def check_cache(path: Path | None) -> Finding:
    """Look at the folder of compiled programs; None is that there is none."""
    if path is None:
        text = "no folder of compiled programs: every start compiles anew"
        cure = "set runtime.compile_cache to a folder"
        level = Level.OK if jax.default_backend() == "cpu" else Level.WARNING
        return Finding("compile cache", level, text, cure if level else "")
    files = [file for file in path.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    text = f"{path} has {len(files)} files, {size / 2**20:,.1f} MiB; {free / GIB:,.1f} GiB free"
    values = {"files": len(files), "bytes": size, "free_bytes": free}
    if free < GIB:
        return Finding("compile cache", Level.WARNING, text, "make room there", values)
    return Finding("compile cache", Level.OK, text, values=values)
