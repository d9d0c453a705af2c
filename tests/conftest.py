"""What all tests share: eight fake CPU devices, which must be set before anything starts JAX, an
audit of what Python does meanwhile, and small disks.
"""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import jax
import pytest

from tests import audit

# Machine code is not optimised, and made in one piece: the programs and their collectives are the
# same, and compile in half the time.
QUICK_COMPILE = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
# Devices that wait for each other longer than this end the process; a loaded machine is slow, not
# stuck.
PATIENCE = "--xla_cpu_collective_call_terminate_timeout_seconds=240"
os.environ["JAX_PLATFORMS"] = "cpu"
# Two threads for each device, as `maxlm.runtime` asks for, however few cores there are.
os.environ["PJRT_NPROC"] = "16"
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {QUICK_COMPILE} {PATIENCE}"
# As `maxlm.runtime.start` does where there are several devices of the CPU; `python -m maxlm` with one,
# which tests start, keeps its programs.
jax.config.update("jax_enable_compilation_cache", False)

# Under nohup it would be ignored, by what tests start as well.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

audit.install()


# The files that take longest. Two processes share the files: begun late, one of these would leave one
# process alone for minutes.
LONG = (
    *("train/test_runs.py", "train/test_meshes.py", "data_pipeline/engine/test_engines.py"),
    *("test_seams.py", "train/test_expert_meshes.py", "train/test_further_tokens.py"),
    *("train/test_faults.py", "decoding/test_generate.py", "layers/test_block.py"),
    *("sharding/test_collectives.py", "train/test_streams.py", "train/test_bfloat16.py"),
    *("train/test_processes.py", "layers/mixers/test_mla.py", "models/test_decoder.py"),
)


def pytest_collection_modifyitems(items):
    """Begin with the files that take longest, else in the order of their names."""
    rank = {str(Path(__file__).parent / name): number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(str(item.path), len(LONG)))


@pytest.fixture(autouse=True)
def nothing_forbidden():
    """Fail a test in which something happened that SECURITY.md says never does."""
    yield
    # libtpu, once loaded, has SIGHUP ignored, and so would be what later tests start.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    found = audit.take()
    assert not found, "\n".join(["SECURITY.md says that this never happens:", *found])


@pytest.fixture
def make_disk(tmp_path):
    """make_disk(mebibytes) -> folder with a file system of its own; skip where mounting one is not
    allowed.
    """
    made = []

    def make(mebibytes):
        path = tmp_path / f"disk{len(made)}"
        path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(path)]
        if (
            shutil.which("mount") is None
            or subprocess.run(command, capture_output=True, check=False).returncode != 0
        ):
            pytest.skip("needs the right to mount a file system")
        made.append(path)
        return path

    yield make
    for path in made:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
