"""How malloc gets the memory that a training step on the CPU computes with.

XLA allocates all temporaries of a step at once, and frees them after it. What is large malloc asks
the kernel for each time, which fills it with zeros: in pages of 4 KiB a step of 1.3 GB has 330,000
page faults, which took a quarter of its time. So large pages are asked for, and what fits into one
of malloc's heaps stays there: up to 64 MiB in each that has held as much.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

OLDEST = (2, 35)
"""glibc's version that knows the first setting, and takes the second."""
MODES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
HUGE_PAGES = {"glibc.malloc.hugetlb": "1"}
KEEP = {"glibc.malloc.mmap_threshold": str(64 << 20), "glibc.malloc.trim_threshold": str(128 << 20)}
"""A thread's heap has 64 MiB at most. malloc itself raises the first threshold to 32 MiB by what is
freed, and keeps the second at twice the first.
"""


def tune_malloc(modes: Path = MODES) -> None:
    """Begin this process again with these settings, if they can help and are not set yet.

    They are glibc's, which reads them when a process starts, and never again. Huge pages are asked
    for where Linux leaves that to programs (`madvise`). A setting in GLIBC_TUNABLES stays as it is
    (glibc.malloc.hugetlb=0 turns huge pages off), and so does a threshold in the variables that glibc
    reads besides.
    """
    if not sys.platform.startswith("linux") or not sys.orig_argv or _glibc() < OLDEST:
        return
    given = [part for part in os.environ.get("GLIBC_TUNABLES", "").split(":") if part]
    names = {part.partition("=")[0] for part in given}
    asked = modes.exists() and "[madvise]" in modes.read_text()
    own = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & os.environ.keys()
    wanted = {**(HUGE_PAGES if asked else {}), **({} if own else KEEP)}
    missing = [f"{name}={value}" for name, value in wanted.items() if name not in names]
    if missing:
        chosen = ":".join([*given, *missing])
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "GLIBC_TUNABLES": chosen})


def _glibc() -> tuple[int, ...]:
    """Return its version, nothing where there is none."""
    if "CS_GNU_LIBC_VERSION" not in os.confstr_names:
        return ()
    version = (os.confstr("CS_GNU_LIBC_VERSION") or "").removeprefix("glibc ")
    return tuple(int(number) for number in version.split(".") if number.isdecimal())
