"""Compiled programs in the run's folder, so that a restart compiles nothing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

AUTO = "auto"
FOLDER = "compiled"
LEAST_SECONDS = 0.1
"""What compiles faster is not kept: reading it would take as long."""

_LEAST = "jax_persistent_cache_min_compile_time_secs"


def folder_of_programs(setting: str | None, run_dir: Path) -> Path | None:
    """Return the folder where compiled programs are kept; None if they are not.

    Several devices of the CPU get none by themselves: there, a program from the cache has been seen
    to wait for ever in a collective that the same program, freshly compiled, passes.

    Args:
      setting: `runtime.compile_cache`.
      run_dir: the run's folder.
    """
    named = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if named:
        return Path(named)
    if setting != AUTO:
        return None if setting is None else Path(setting).expanduser()
    several = jax.default_backend() == "cpu" and jax.device_count() > 1
    return None if several else run_dir / FOLDER


@contextlib.contextmanager
def kept_programs(setting: str | None, run_dir: Path) -> Iterator[None]:
    """Keep the programs that the body compiles.

    A folder that `runtime.compile_cache` or JAX_COMPILATION_CACHE_DIR names is in use already.
    """
    if _LEAST.upper() not in os.environ:
        jax.config.update(_LEAST, LEAST_SECONDS)
    folder = folder_of_programs(setting, run_dir)
    if folder != run_dir / FOLDER:
        yield
        return
    compilation_cache.set_cache_dir(str(folder))
    try:
        yield
    finally:  # another run of this process has another folder
        jax.config.update("jax_compilation_cache_dir", None)
        compilation_cache.reset_cache()
