"""Steps on the CPU get their memory in large pages."""

import os
import subprocess
import sys

import pytest

from maxlm.process import huge_pages

FAULTS = """
import os, resource, sys
sys.path.insert(0, os.getcwd())
from maxlm.process.huge_pages import use_huge_pages
use_huge_pages()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
b"x" * (256 << 20)
print(os.getpid(), sys.argv[1:], resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = (256 << 20) // os.sysconf("SC_PAGE_SIZE")

needs_choice = pytest.mark.skipif(
    not huge_pages.MODES.exists() or "[madvise]" not in huge_pages.MODES.read_text(),
    reason="Linux does not leave it to programs whether they have huge pages",
)


def faults(**environment):
    """Return the page faults of 256 MiB that are written to, in a process of its own."""
    clean = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    process = subprocess.Popen(
        [sys.executable, "-c", FAULTS, "an argument"],
        env={**clean, **environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    pid, *arguments, count = process.communicate(timeout=60)[0].split()
    assert int(pid) == process.pid
    assert " ".join(arguments) == "['an argument']"
    return int(count)


@needs_choice
def test_large_allocations_have_few_page_faults():
    assert faults() < PAGES / 50
    # What else was set stays.
    assert faults(GLIBC_TUNABLES="glibc.malloc.arena_max=2") < PAGES / 50


@needs_choice
def test_they_can_be_turned_off():
    assert faults(GLIBC_TUNABLES="glibc.malloc.hugetlb=0") > PAGES / 2


@pytest.mark.parametrize("modes", ["[always] madvise never", "always madvise [never]", None])
def test_a_process_is_not_begun_again_for_nothing(modes, tmp_path, monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("begun again"))
    if modes:
        (tmp_path / "enabled").write_text(modes)
    huge_pages.use_huge_pages(tmp_path / "enabled")
