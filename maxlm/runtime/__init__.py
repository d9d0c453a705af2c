"""The process around the training: JAX start-up, agreement of processes, stop signals,
profiler window.

Nothing here knows about models. `start` must run before any JAX computation.
"""

from maxlm.runtime.agreement import all_true, fail_together, on_first_process, settle
from maxlm.runtime.backend import compute_dtype_of, hush_libtpu, several_cpu_devices, start
from maxlm.runtime.memory import explain_memory, memory_bytes
from maxlm.runtime.profile import ProfileWindow
from maxlm.runtime.stop import StopSignal

__all__ = [
    "ProfileWindow",
    "StopSignal",
    "all_true",
    "compute_dtype_of",
    "explain_memory",
    "fail_together",
    "hush_libtpu",
    "memory_bytes",
    "on_first_process",
    "settle",
    "several_cpu_devices",
    "start",
]
