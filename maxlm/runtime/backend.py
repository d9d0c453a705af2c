"""Start JAX for this process: platform, fake devices, compile cache, libraries that are too loud."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from maxlm.config.errors import UserError, make_possible
from maxlm.config.schema import RuntimeConfig
from maxlm.runtime.processes import connect

GPU_MEMORY_SHARE = "0.92"
# XLA's other order for the CPU lets a collective begin while a loop with others still runs. All have
# the same number there, so that devices meet in the wrong one: hangs, and wrong sums.
CROSSING = (
    "--xla_cpu_enable_concurrency_optimized_scheduler=false",
    "--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
)


def compute_dtype_of(chosen: str, platform: str) -> jnp.dtype:
    """Resolve `train.compute_dtype`: auto is bfloat16 on accelerators, float32 on the CPU."""
    return jnp.dtype({"auto": "float32" if platform == "cpu" else "bfloat16"}.get(chosen, chosen))


def start(runtime: RuntimeConfig) -> None:
    """Set up JAX for this process, and connect it to the others where there are others.

    Several processes are recognised by MAXLM_COORDINATOR, MAXLM_NUM_PROCESSES and MAXLM_PROCESS_ID
    (set by `launch/local.py`), or by what Slurm, Open MPI, Kubernetes jobs and TPU slices set.

    Raises:
        UserError: the environment promises several processes wrongly, or `runtime.device_count` asks
            for fake devices on a platform that has real ones, or XLA_FLAGS would mix up their
            collectives, or `runtime.compile_cache` cannot be made.
    """
    if runtime.device_count is not None:
        if runtime.platform not in ("auto", "cpu"):
            raise UserError(
                f"runtime.device_count={runtime.device_count} asks for fake CPU devices, but "
                f"runtime.platform={runtime.platform}; remove runtime.device_count or set runtime.platform=cpu"
            )
        _refuse_crossing(runtime.device_count)
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", runtime.device_count)
        _make_room(runtime.device_count)
    elif runtime.platform == "cpu":
        jax.config.update("jax_platforms", "cpu")
    named = runtime.compile_cache
    if named is not None and named != "auto":  # that one is in a folder of a run
        jax.config.update("jax_compilation_cache_dir", _make_folder(Path(named).expanduser()))
    # JAX would leave a quarter of a GPU's memory to others; the rest is for NCCL and cuBLAS.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", GPU_MEMORY_SHARE)
    _hush_libraries()
    if "TPU_SKIP_MDS_QUERY" in os.environ:  # jax sets it where it sees no TPU
        hush_libtpu()
    connect(os.environ, runtime.timeouts.start_seconds)
    _find_devices(runtime.platform)
    if several_cpu_devices():
        jax.config.update("jax_enable_compilation_cache", False)
    if jax.process_index() > 0:
        logging.getLogger().setLevel(logging.ERROR)


def several_cpu_devices() -> bool:
    """Tell whether JAX has several devices of the CPU, in this process or in several.

    There XLA keeps collectives in order only within a program that this process has compiled: not
    between two programs in flight (`settle`), and not in one that comes from a cache. It does not
    store what their order follows from (jaxlib 0.10.2), so those of different loops begin in any order,
    and devices meet in the wrong ones.
    """
    return jax.default_backend() == "cpu" and jax.device_count() > 1


def _refuse_crossing(device_count: int) -> None:
    """Refuse XLA_FLAGS with which several fake devices compute wrong results."""
    flags = os.environ.get("XLA_FLAGS", "").split()
    if device_count > 1 and (found := [flag for flag in flags if flag in CROSSING]):
        raise UserError(
            f"XLA_FLAGS has {found[0]}, and runtime.device_count={device_count}: with it, fake devices meet in "
            "the wrong collectives and compute wrong losses; remove it from XLA_FLAGS"
        )


def _make_room(device_count: int) -> None:
    """Let fake devices wait for each other in collectives.

    The CPU's backend takes as many threads as there are cores. Where a program leaves collectives
    without an order, such as those of layers side by side, two devices that wait for the others
    could have them all, and the others would wait for a thread for ever.
    """
    threads = max(2 * device_count, os.cpu_count() or 1)
    os.environ.setdefault("PJRT_NPROC", str(threads))


def _make_folder(path: Path) -> str:
    """Make the folder of compiled programs; without it JAX would warn at every program and keep
    none.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"runtime.compile_cache={path} cannot be made: {error.strerror or error}; {make_possible(error)}, "
            "choose another, or set runtime.compile_cache=null"
        ) from error
    return str(path)


def _hush_libraries() -> None:
    """Keep quiet about what libraries do, and about failures of it that `maxlm.checkpoint` explains
    in a line.
    """
    for noisy in ("absl", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    # jax tells of every platform that it looks for and does not find.
    logging.getLogger("jax").setLevel(logging.WARNING)
    others = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        # Writes that fail after the first failed one report to a loop that has ended.
        if str(unraisable.exc_value) != "Event loop is closed":
            others(unraisable)

    sys.unraisablehook = hook


def hush_libtpu() -> None:
    """Tell libtpu that this is no TPU machine, where it is installed to compile for one.

    Otherwise it complains on stderr about what it asks a TPU machine's metadata server for, and a
    second process of this machine dies on its lock file.
    """
    answers = {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5p-8",  # any that exists
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    for name, value in answers.items():
        os.environ.setdefault(name, value)


def _find_devices(platform: str) -> None:
    """Start the backend now, so that a missing accelerator is one clear message."""
    try:
        found = jax.default_backend()
    except RuntimeError as error:
        raise UserError(
            f"runtime.platform={platform}: JAX cannot start: {error}; mend the driver, or set runtime.platform=cpu"
        ) from error
    if platform not in ("auto", found):
        raise UserError(
            f"runtime.platform={platform}: JAX finds no such device, only {found} ({jax.devices()[0].device_kind}); "
            "install maxlm's extra for it (cuda or tpu), unset JAX_PLATFORMS, or set runtime.platform=auto"
        )
