"""Steps on the CPU get their memory in large pages, and keep what is small enough."""

import os
import subprocess
import sys

import pytest

from maxlm.process import malloc

FAULTS = """
import os, resource, sys, threading
sys.path.insert(0, os.getcwd())
from maxlm.process.malloc import tune_malloc
tune_malloc()
def faults(size, times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        b"x" * size
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
counts = [faults(256 << 20, 1)]
thread = threading.Thread(target=lambda: counts.append(faults(50 << 20, 20)))
thread.start()
thread.join()
print(os.getpid(), sys.argv[1:], *counts)
"""
PAGES = (256 << 20) // os.sysconf("SC_PAGE_SIZE")

needs_choice = pytest.mark.skipif(
    not malloc.MODES.exists() or "[madvise]" not in malloc.MODES.read_text(),
    reason="Linux does not leave it to programs whether they have huge pages",
)


def faults(**environment):
    """Return the page faults of 256 MiB that are written to, and of 20 times 50 MiB in a thread, in
    a process of its own.
    """
    clean = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    process = subprocess.Popen(
        [sys.executable, "-c", FAULTS, "an argument"],
        env={**clean, **environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    pid, *arguments, one, many = process.communicate(timeout=60)[0].split()
    assert int(pid) == process.pid
    assert " ".join(arguments) == "['an argument']"
    return int(one), int(many)


@needs_choice
def test_large_allocations_have_few_page_faults():
    assert faults()[0] < PAGES / 50
    # What else was set stays.
    assert faults(GLIBC_TUNABLES="glibc.malloc.arena_max=2")[0] < PAGES / 50


@needs_choice
def test_huge_pages_can_be_turned_off():
    assert faults(GLIBC_TUNABLES="glibc.malloc.hugetlb=0")[0] > PAGES / 2


def test_what_fits_into_a_heap_is_kept():
    once = (50 << 20) // os.sysconf("SC_PAGE_SIZE")
    small_pages = "glibc.malloc.hugetlb=0"
    assert faults(GLIBC_TUNABLES=small_pages)[1] < 2 * once
    given_back = "glibc.malloc.mmap_threshold=1000000"
    assert faults(GLIBC_TUNABLES=f"{small_pages}:{given_back}")[1] > 15 * once


@pytest.mark.parametrize("modes", ["[always] madvise never", "always madvise [never]", None])
def test_huge_pages_are_asked_for_where_that_is_heard(modes, tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(os, "execve", lambda *given: begun.append(given[2]["GLIBC_TUNABLES"]))
    if modes:
        (tmp_path / "enabled").write_text(modes)
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1")
    malloc.tune_malloc(tmp_path / "enabled")
    both = "glibc.malloc.trim_threshold=1:glibc.malloc.mmap_threshold=67108864"
    assert begun == [both]
    monkeypatch.setenv("GLIBC_TUNABLES", both)
    malloc.tune_malloc(tmp_path / "enabled")
    assert begun == [both]  # not for nothing


@pytest.mark.parametrize("version", ["glibc 2.31", "musl", ""])
def test_other_libraries_are_left_alone(version, monkeypatch):
    monkeypatch.setattr(os, "confstr", lambda name: version)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("begun again"))
    malloc.tune_malloc()


def test_thresholds_of_the_environment_stay(monkeypatch, tmp_path):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("begun again"))
    malloc.tune_malloc(tmp_path / "no huge pages here")
