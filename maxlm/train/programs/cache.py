"""Compiled programs in the run's folder, so that a restart compiles nothing."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import jax
import zstandard
from jax.experimental.compilation_cache import compilation_cache

from maxlm.runtime import several_cpu_devices

log = logging.getLogger(__name__)

AUTO = "auto"
FOLDER = "compiled"
LEAST_SECONDS = 0.1
"""What compiles faster is not kept: reading it would take as long."""
TORN_SECONDS = 60.0
"""Of what was written in this time before the last program, all may have been torn by a kill."""

_LEAST = "jax_persistent_cache_min_compile_time_secs"
_ZSTD = b"\x28\xb5\x2f\xfd"


def folder_of_programs(setting: str | None, run_dir: Path) -> Path | None:
    """Return the folder where compiled programs are kept; None if they are not.

    Several devices of the CPU get none, whatever is set (`maxlm.runtime.several_cpu_devices`).

    Args:
      setting: `runtime.compile_cache`.
      run_dir: the run's folder.
    """
    if several_cpu_devices():
        return None
    named = _named()
    if named:
        return Path(named)
    if setting != AUTO:
        return None if setting is None else Path(setting).expanduser()
    return run_dir / FOLDER / (f"cpu-{_processor()}" if jax.default_backend() == "cpu" else "")


def _named() -> str | None:
    return jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]


@contextlib.contextmanager
def kept_programs(setting: str | None, run_dir: Path) -> Iterator[None]:
    """Keep the programs that the body compiles.

    A folder that `runtime.compile_cache` or JAX_COMPILATION_CACHE_DIR names is in use already.
    """
    if _LEAST.upper() not in os.environ:
        jax.config.update(_LEAST, LEAST_SECONDS)
    if several_cpu_devices() and (named := _named()):
        log.info("%s is not used: several devices of the CPU need programs compiled anew", named)
    folder = folder_of_programs(setting, run_dir)
    if folder is None or not folder.is_relative_to(run_dir / FOLDER):
        yield
        return
    if jax.process_index() == 0:
        drop_torn(folder)
    compilation_cache.reset_cache()  # what has run before may have begun another
    compilation_cache.set_cache_dir(str(folder))
    try:
        yield
    finally:  # another run of this process has another folder
        jax.config.update("jax_compilation_cache_dir", None)
        compilation_cache.reset_cache()


def drop_torn(folder: Path) -> None:
    """Delete programs that a kill has left half written: JAX would compile them anew at every start,
    and never replace them.
    """
    written = {path: path.stat().st_mtime for path in folder.glob("*-cache")}
    newest = max(written.values(), default=0.0)
    for path, seconds in written.items():
        if seconds >= newest - TORN_SECONDS and not _is_whole(path.read_bytes()):
            log.info("deleted %s: a kill has left it half written", path)
            path.unlink()


def _is_whole(data: bytes) -> bool:
    """Tell whether data are to be unpacked; JAX packs by zstandard, or by zlib where that is not."""
    try:
        if data.startswith(_ZSTD):
            zstandard.ZstdDecompressor().decompress(data)
        else:
            zlib.decompress(data)
    except (zstandard.ZstdError, zlib.error):
        return False
    return True


def _processor() -> str:
    """Return a hash of this machine's instructions.

    JAX knows programs of the CPU by the library's version, not by the processor: one that was
    compiled for another processor may end the process by an illegal instruction.
    """
    known = [os.uname().machine]
    path = Path("/proc/cpuinfo")
    if path.exists():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        named = ("flags", "Features", "model name")  # of x86, of ARM
        known += [next((line for line in lines if line.startswith(name)), "") for name in named]
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:12]
