"""What all tests share: eight fake CPU devices, which must be set before anything starts JAX, and small disks."""

import os
import shutil
import subprocess

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"


@pytest.fixture
def make_disk(tmp_path):
    """make_disk(mebibytes) -> folder with a file system of its own; skip where mounting one is not allowed."""
    made = []

    def make(mebibytes):
        path = tmp_path / f"disk{len(made)}"
        path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(path)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode != 0:
            pytest.skip("needs the right to mount a file system")
        made.append(path)
        return path

    yield make
    for path in made:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
