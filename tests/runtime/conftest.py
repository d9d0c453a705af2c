"""Python code in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def start_script():
    """Return a function that starts Python code in a process of its own; what still runs in the end
    is killed.
    """
    processes = []

    def start_one(code, **environment):
        set_here = ("JAX_PLATFORMS", "XLA_FLAGS", "PJRT_NPROC")
        clean = {k: v for k, v in os.environ.items() if k not in set_here}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", code],
                cwd=ROOT,
                env={**clean, **environment},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return processes[-1]

    yield start_one
    for process in processes:
        process.kill()
        process.communicate()
