"""The process around the training: JAX start-up, agreement of processes, stop signals, watchdog,
profiler window.

Nothing here knows about models. `start` must run before any JAX computation.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from maxlm.config.cluster.exit_codes import Exit
from maxlm.config.errors import RunFailedError, UserError, make_possible
from maxlm.config.schema import ProfileConfig, RuntimeConfig

log = logging.getLogger(__name__)
T = TypeVar("T")

# With JAX's default of 100 s, the survivors of a killed process sit in a collective for that long.
HEARTBEAT_SECONDS = 10
# How long a process that is done waits for the others to be done; process 0 may still be writing
# its summary.
SHUTDOWN_SECONDS = 60
GPU_MEMORY_SHARE = "0.92"
# A collective that fails is mostly the echo of another process that ended: that one is to be seen
# first, and named.
ECHO_SECONDS = 1.0


def compute_dtype_of(chosen: str, platform: str) -> jnp.dtype:
    """Resolve `train.compute_dtype`: auto is bfloat16 on accelerators, float32 on the CPU."""
    return jnp.dtype({"auto": "float32" if platform == "cpu" else "bfloat16"}.get(chosen, chosen))


# --- start-up -------------------------------------------------------------------------------------


def start(runtime: RuntimeConfig) -> None:
    """Set up JAX for this process, and connect it to the others where there are others.

    Several processes are recognised by MAXLM_COORDINATOR, MAXLM_NUM_PROCESSES and MAXLM_PROCESS_ID
    (set by `launch/local.py`), or by what Slurm, Open MPI, Kubernetes jobs and TPU slices set.

    Raises:
        UserError: the environment promises several processes but they do not find each other, or
            `runtime.device_count` asks for fake devices on a platform that has real ones, or
            `runtime.compile_cache` cannot be made.
    """
    if runtime.device_count is not None:
        if runtime.platform not in ("auto", "cpu"):
            raise UserError(
                f"runtime.device_count={runtime.device_count} asks for fake CPU devices, but "
                f"runtime.platform={runtime.platform}; remove runtime.device_count or set runtime.platform=cpu"
            )
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", runtime.device_count)
        _give_threads(runtime.device_count)
    elif runtime.platform == "cpu":
        jax.config.update("jax_platforms", "cpu")
    if runtime.compile_cache is not None:
        jax.config.update(
            "jax_compilation_cache_dir", _make_folder(Path(runtime.compile_cache).expanduser())
        )
    # JAX would leave a quarter of a GPU's memory to others; the rest is for NCCL and cuBLAS.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", GPU_MEMORY_SHARE)
    _hush_libraries()
    if "TPU_SKIP_MDS_QUERY" in os.environ:  # jax sets it where it sees no TPU
        hush_libtpu()
    _connect(os.environ)
    _find_devices(runtime.platform)
    if jax.process_index() > 0:
        logging.getLogger().setLevel(logging.ERROR)


def _give_threads(device_count: int) -> None:
    """Let the CPU's backend have a thread for every fake device that waits in a collective.

    It takes as many as there are cores. Where a program leaves collectives without an order, such
    as those of layers side by side, two devices that wait for the others could have them all, and
    the others would wait for a thread for ever.
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


def _connect(environment: Any) -> None:
    """Join the other processes of this job, if there are any."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # JAX's own handler for SIGTERM would hide the signal from StopSignal, which also knows SIGINT
    # and second signals.
    jax.config.update("jax_enable_preemption_service", False)
    arguments: dict[str, Any] = {
        "heartbeat_timeout_seconds": HEARTBEAT_SECONDS,
        "shutdown_timeout_seconds": SHUTDOWN_SECONDS,
    }
    launcher = _launcher(environment)
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


def _launcher(environment: Any) -> str | None:
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


def memory_bytes(device: jax.Device) -> int | None:
    """Return the memory of a device; of a CPU device its share of the machine's.

    None where it is not known.
    """
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()
    statistics = device.memory_stats() or {}
    return statistics.get("bytes_limit")


@contextmanager
def explain_memory(cure: str) -> Iterator[None]:
    """Say what to do when a device has no memory left.

    Raises:
        RunFailedError: in place of JAX's error.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = str(error).strip().splitlines()[0]
        raise RunFailedError(f"a device has too little memory: {reason}\n{cure}") from error


# --- agreement between processes ------------------------------------------------------------------


def on_first_process(work: Callable[[], Any]) -> Any:
    """Run `work` on process 0 alone and give every process its result (anything JSON can hold).

    Raises:
        UserError: on every process, when `work` raises one on process 0.
    """
    if jax.process_count() == 1:
        return work()
    answer: dict[str, Any] = {}
    if jax.process_index() == 0:
        try:
            answer = {"value": work()}
        except UserError as error:
            answer = {"error": str(error)}
    text = json.dumps(answer).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    buffer = np.zeros(size, np.uint8)
    if jax.process_index() == 0:
        buffer[:] = np.frombuffer(text, np.uint8)
    answer = json.loads(
        np.asarray(multihost_utils.broadcast_one_to_all(buffer), np.uint8).tobytes()
    )
    if "error" in answer:
        raise UserError(answer["error"])
    return answer["value"]


def all_true(mine: bool) -> bool:
    """Tell whether `mine` is true on every process; a barrier for all of them."""
    if jax.process_count() == 1:
        return mine
    return bool(np.all(multihost_utils.process_allgather(np.asarray(mine))))


def settle(results: T) -> T:
    """Wait for the results of a program with collectives, on several CPU devices only.

    There nothing orders the collectives of two programs in flight. Between processes (gloo) they
    can meet the wrong partner; between the fake devices of one process they can take up all its
    threads, each waiting for one that gets none. Either way they wait for ever. Accelerators run
    programs in the order of their dispatch.
    """
    if jax.device_count() > 1 and jax.default_backend() == "cpu":
        jax.block_until_ready(results)
    return results


@contextmanager
def fail_together() -> Iterator[None]:
    """End this process at once when the body raises and there are others.

    A Python exit would wait for the others to shut down too, while they wait for this one inside a
    collective. Gone at once, it is missed within seconds and they end as well. With a single
    process the exception just passes.
    """
    try:
        yield
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        here = f"process {jax.process_index()} of {jax.process_count()} on {socket.gethostname()}"
        if isinstance(error, UserError | RunFailedError):
            sys.stderr.write(
                f"maxlm: {error}\n" if jax.process_index() == 0 else f"maxlm: {here}: {error}\n"
            )
        else:
            traceback.print_exc()
            sys.stderr.write(f"{here} failed: {type(error).__name__}: {error}\n")
        sys.stdout.flush()
        sys.stderr.flush()
        if isinstance(error, jax.errors.JaxRuntimeError):
            time.sleep(ECHO_SECONDS)
        os._exit(Exit.MISTAKE if isinstance(error, UserError) else Exit.FAILED)


# --- signals --------------------------------------------------------------------------------------


class StopSignal:
    """Turn the first SIGTERM or SIGINT to any process into a stop of all after the same step; a
    second ends at once.

    Signals are read by a thread through a wake-up pipe: Python's own handlers only run between two
    bytecodes of the main thread, which may sit in a collective for ever, and then the second signal
    would do nothing.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._pending: jax.Array | None = None
        self._announced = False

    def __enter__(self) -> Self:
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._old_descriptor = signal.set_wakeup_fd(
            self._writer.fileno(), warn_on_full_buffer=False
        )
        self._old_handlers = {
            s: signal.signal(s, _leave_to_thread) for s in (signal.SIGTERM, signal.SIGINT)
        }
        self._thread = threading.Thread(target=self._listen, name="stop-signal", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_descriptor)
        self._writer.close()  # ends the thread
        self._thread.join()
        self._reader.close()

    def requested(self, step: int) -> bool:
        """Tell whether to stop after `step`: the same answer on every process that asks for the
        same step.

        With several processes every call starts a small reduction of "was I signalled" and reads
        that of the call before, so that nobody waits for the device: a signal counts one call
        later.
        """
        stop = self._received is not None
        if jax.process_count() > 1:
            before, self._pending = self._pending, _any_process(stop)
            stop = before is not None and bool(before)
        if stop and not self._announced:
            self._announced = True
            log.warning("stopping after step %d, with a checkpoint", step)
        return stop

    def _listen(self) -> None:
        while data := self._reader.recv(1):
            number = data[0]
            if number not in self._old_handlers:  # another signal with a Python handler
                continue
            name = signal.Signals(number).name
            if self._received is not None:
                sys.stderr.write(
                    f"\nsecond signal ({name}): leaving at once, without a checkpoint\n"
                )
                sys.stderr.flush()
                os._exit(128 + number)
            self._received = signal.Signals(number)
            log.warning(
                "%s: finishing this step, then saving and stopping; a second signal leaves at once",
                name,
            )


def _leave_to_thread(number: int, frame: FrameType | None) -> None:
    """Do nothing: StopSignal's thread has read the signal already."""


def _any_process(mine: bool) -> jax.Array:
    """Start a reduction over all processes; the result is a replicated int32 scalar, nonzero if any
    said True.
    """
    mesh = Mesh(np.asarray(jax.devices()), ("device",))
    flags = jax.make_array_from_callback(
        (mesh.size,),
        NamedSharding(mesh, PartitionSpec("device")),
        lambda _: np.full(1, mine, np.int32),
    )
    largest: jax.Array = settle(_largest(flags))
    return largest


@jax.jit
def _largest(flags: jax.Array) -> jax.Array:
    return jnp.max(flags)


# --- watchdog, profiler ---------------------------------------------------------------------------


class Watchdog:
    """End the process with the stacks of all its threads when a step takes longer than `seconds`
    (None: never).

    The only cure for a peer that is alive but asleep: heartbeats still come, and every collective
    waits for ever. For watchers outside, such as a pod's probes, each step also touches the file
    that MAXLM_HEARTBEAT names.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        named = os.environ.get("MAXLM_HEARTBEAT")
        self._heartbeat = Path(named) if named else None

    def arm(self) -> None:
        """Start counting from zero; call once per step."""
        if self._heartbeat is not None:
            self._heartbeat.touch()
        if self._seconds is not None:
            # pytest and notebooks replace sys.stderr by objects without a file descriptor.
            faulthandler.dump_traceback_later(self._seconds, exit=True, file=sys.__stderr__ or 2)

    def disarm(self) -> None:
        """Stop counting."""
        if self._seconds is not None:
            faulthandler.cancel_dump_traceback_later()


class ProfileWindow:
    """Trace the steps of `profile` with JAX's profiler into `directory` (None: no trace)."""

    def __init__(self, profile: ProfileConfig | None, directory: Path) -> None:
        self._profile = profile
        self._directory = directory
        self._tracing = False
        self._told = False

    def update(self, step: int) -> None:
        """Start or end the trace; call before each step with the number of the step to come."""
        if self._profile is None:
            return
        first = self._profile.start_step
        if step > first and not self._tracing and not self._told:
            log.warning(
                "runtime.profile.start_step=%d was before this process began, at step %d: no trace",
                first,
                step,
            )
        self._told = True
        if step == first and not self._tracing:
            jax.profiler.start_trace(str(self._directory))
            self._tracing = True
        elif step >= first + self._profile.num_steps:
            self.close()

    def close(self) -> None:
        """End the trace, if one is running."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
            log.info("profile of this process is in %s", self._directory)
