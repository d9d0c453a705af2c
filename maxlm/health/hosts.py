"""The hosts beside each other: devices, drivers, versions, memory, clocks."""

from __future__ import annotations

import hashlib
import platform
import socket
import time
from collections import Counter
from collections.abc import Collection
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
from jax.extend import backend

import maxlm
from maxlm.health.exchange import exchange
from maxlm.health.finding import Finding, Level, median, names
from maxlm.runtime import memory_bytes

PACKAGES = (
    *("maxlm", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy"),
    *("tensorstore", "libtpu", "jax-cuda13-plugin"),
)
MOST_SKEW_SECONDS = 1.0
CLOCK_ROUNDS = 3
DRIVER = Path("/proc/driver/nvidia/version")
GIB = 2**30

Process = dict[str, Any]
"""What `describe` returns."""


def describe() -> Process:
    """Return what this process has: its host, devices, versions and memory."""
    devices = jax.local_devices()
    return {
        "host": socket.gethostname(),
        "devices": [device.device_kind for device in devices],
        "versions": versions(),
        "device_memory": [memory_bytes(device) for device in devices],
        "host_memory": available_memory(),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python, packages and the driver here, and the hash of maxlm's source."""
    found = {"python": platform.python_version(), "code of maxlm": code_hash(), "driver": _driver()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


def code_hash() -> str:
    """Return a hash of maxlm's source, which may differ where versions do not."""
    digest = hashlib.sha256()
    root = Path(maxlm.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _driver() -> str:
    """Return the driver of NVIDIA's kernel module, else what the backend says of its runtime."""
    if DRIVER.exists():
        return DRIVER.read_text().split("\n")[0].removeprefix("NVRM version: ")
    return " ".join(backend.get_backend().platform_version.split("\n")[0].split())


def available_memory() -> int | None:
    """Return the bytes of this host that processes can still have, None where nobody says."""
    path = Path("/proc/meminfo")
    if not path.exists():
        return None
    fields = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    return int(fields["MemAvailable"].split()[0]) * 1024


def check_versions(processes: list[Process]) -> Finding:
    """Compare Python, packages, driver and code of all hosts with those of most."""
    keys = processes[0]["versions"]
    common = {
        key: Counter(one["versions"].get(key) for one in processes).most_common(1)[0][0]
        for key in keys
    }
    odd: dict[str, list[str]] = {}
    for process in processes:
        for key, usual in common.items():
            if process["versions"].get(key) != usual:
                text = f"{key} {process['versions'].get(key)} instead of {usual}"
                odd.setdefault(text, []).append(process["host"])
    if odd:
        listed = "; ".join(f"{text} on {names(hosts)}" for text, hosts in odd.items())
        cure = "install the same lock file and the same code on all hosts"
        return Finding("versions", Level.PROBLEM, listed, cure, {"versions": common})
    text = f"maxlm {common['maxlm']}, jax {common['jax']}, Python {common['python']}"
    everywhere = f", the same in {len(processes)} processes" if len(processes) > 1 else ""
    return Finding("versions", Level.OK, text + everywhere, values={"versions": common})


def check_devices(processes: list[Process]) -> Finding:
    """Compare kinds and numbers of devices of all processes."""
    counts = Counter(tuple(sorted(one["devices"])) for one in processes)
    usual = counts.most_common(1)[0][0]
    total = Counter(kind for one in processes for kind in one["devices"])
    found = ", ".join(f"{count} x {kind}" for kind, count in total.items())
    hosts = {one["host"] for one in processes}
    where = f"{_count(processes, 'process')} on {_count(hosts, 'host')}"
    text = f"{found}; {where}; {processes[0]['versions']['driver']}"
    odd = [one for one in processes if tuple(sorted(one["devices"])) != usual]
    values = {"devices": dict(total), "processes": len(processes), "hosts": len(hosts)}
    if not odd:
        return Finding("devices", Level.OK, text, values=values)
    listed = names(f"{one['host']} has {len(one['devices'])}" for one in odd)
    cure = f"{listed}, others have {len(usual)}: mend or leave out these hosts"
    return Finding("devices", Level.PROBLEM, text, cure, values)


def _count(things: Collection[object], name: str) -> str:
    plural = f"{name}es" if name.endswith("s") else f"{name}s"
    return f"{len(things)} {name if len(things) == 1 else plural}"


def check_memory(
    processes: list[Process], state_bytes: int | None = None, host_bytes: int | None = None
) -> Finding:
    """Compare the memory of devices, and that of hosts with what a checkpoint needs there.

    Args:
      processes: of all hosts.
      state_bytes: of the train state on one device.
      host_bytes: of it on one process' devices, which are copied to the host when it is saved.
    """
    of_devices = [bytes_ for one in processes for bytes_ in one["device_memory"] if bytes_]
    of_hosts = [one["host_memory"] for one in processes if one["host_memory"] is not None]
    device, host = min(of_devices, default=0), min(of_hosts, default=0)
    text = f"{device / GIB:,.1f} GiB a device, {host / GIB:,.1f} GiB free on the host with least"
    values = {"device_bytes": device, "host_bytes": host, "state_bytes": state_bytes}
    if state_bytes is not None:
        text += f"; the train state takes {state_bytes / GIB:,.2f} GiB a device"
        if of_devices and state_bytes > device:
            cure = "use more mesh.fsdp or a smaller model"
            return Finding("memory", Level.PROBLEM, text, cure, values)
    if of_devices and device < 0.98 * max(of_devices):
        short = [one["host"] for one in processes if device in one["device_memory"]]
        cure = f"others have {max(of_devices) / GIB:,.1f} GiB: end what else runs on {names(short)}"
        return Finding("memory", Level.WARNING, text, cure, values)
    beside = max(Counter(one["host"] for one in processes).values())
    if host_bytes is not None and of_hosts and host_bytes * beside > host:
        short = [one["host"] for one in processes if one["host_memory"] == host]
        cure = f"saving copies {host_bytes * beside / GIB:,.1f} GiB to the host: free memory on {names(short)}"
        return Finding("memory", Level.WARNING, text, cure, values)
    return Finding("memory", Level.OK, text, values=values)


def check_clocks() -> Finding | None:
    """Compare the clocks of all hosts after barriers; None for a single process.

    A process may come late out of a barrier, never early: of several rounds the smallest difference
    counts.
    """
    if jax.process_count() == 1:
        return None
    rounds = []
    for _ in range(CLOCK_ROUNDS):
        exchange(None)
        rounds.append(exchange([time.time(), socket.gethostname()]))
    return judge_clocks(rounds)


def judge_clocks(rounds: list[list[Any]]) -> Finding:
    """Say how far clocks are from the middle one.

    Args:
      rounds: of each, (seconds, host) of every process.
    """
    offsets: dict[str, float] = {}
    for clocks in rounds:
        middle = median([seconds for seconds, _ in clocks])
        for seconds, host in clocks:
            before = offsets.get(host)
            if before is None or abs(seconds - middle) < abs(before):
                offsets[host] = seconds - middle
    largest = max(abs(offset) for offset in offsets.values())
    text = f"clocks differ by at most {largest:.3f} s"
    values = {"offset_seconds": offsets}
    wrong = [
        f"{host} ({offset:+.1f} s)"
        for host, offset in offsets.items()
        if abs(offset) > MOST_SKEW_SECONDS
    ]
    if wrong:
        cure = f"set the clock (chrony, ntpd) of {names(wrong)}"
        return Finding("clocks", Level.WARNING, text, cure, values)
    return Finding("clocks", Level.OK, text, values=values)
