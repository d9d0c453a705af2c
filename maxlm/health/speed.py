"""How fast devices multiply, and how fast the links between them are."""

from __future__ import annotations

import functools
import socket
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from maxlm.devices import find_device, peak_flops
from maxlm.health.exchange import exchange
from maxlm.health.finding import Finding, Level, median, names

TRIES = 5
# Products after each other in a program, so that its start does not count.
PRODUCTS = 10
SLOW = 0.8
"""Of the median: a device below it is named."""
FAR = 0.5
"""Of what data sheets say: below it something is wrong with all."""


def best_seconds(run: Callable[[], Any], tries: int = TRIES) -> float:
    """Return the shortest time of several; the first call compiles and does not count."""
    jax.block_until_ready(run())
    times = []
    for _ in range(tries):
        began = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - began)
    return min(times)


# --- matrix products ------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="products")
def _multiply(x: jax.Array, products: int) -> jax.Array:
    # Entries stay about as large as they are.
    return lax.fori_loop(0, products, lambda _, y: (y @ x) / x.shape[0] ** 0.5, x)


def matmul_rates() -> list[float]:
    """Return the FLOP/s of each device of this process, one after the other."""
    on_cpu = jax.default_backend() == "cpu"
    size, dtype = (256, jnp.float32) if on_cpu else (8192, jnp.bfloat16)
    rates = []
    for device in jax.local_devices():
        values = np.random.default_rng(0).standard_normal((size, size), np.float32)
        x = jax.device_put(jnp.asarray(values, dtype), device)
        seconds = best_seconds(functools.partial(_multiply, x, PRODUCTS))
        rates.append(2 * size**3 * PRODUCTS / seconds)
    return rates


def check_matmul() -> Finding:
    """Measure all devices, and name those that are slower than the others."""
    devices, host = jax.local_devices(), socket.gethostname()
    rates = zip(devices, matmul_rates(), strict=True)
    mine = [[host, device.id, rate] for device, rate in rates]
    measured = [tuple(one) for process in exchange(mine) for one in process]
    return judge_matmul(measured, devices[0].device_kind, shared=jax.default_backend() == "cpu")


def judge_matmul(
    measured: list[tuple[str, int, float]], kind: str, *, shared: bool = False
) -> Finding:
    """Say which devices are slow.

    Args:
      measured: host, id and FLOP/s of each device.
      kind: of the devices.
      shared: the devices are parts of one processor, and disturb each other.
    """
    rates = [rate for _, _, rate in measured]
    middle, least = median(rates), min(rates)
    peak = peak_flops(kind, "bfloat16")
    text = f"median {middle / 1e12:,.2f} TFLOP/s, slowest {least / 1e12:,.2f}"
    if peak is not None:
        text += f", data sheet {peak / 1e12:,.0f}"
    values = {
        "median_flops": middle,
        "devices": [{"host": host, "id": number, "flops": rate} for host, number, rate in measured],
    }
    limit = FAR if shared else SLOW
    slow = [
        f"device {number} of {host}" for host, number, rate in measured if rate < limit * middle
    ]
    if slow:
        cure = f"a step waits for the slowest: look at {names(slow)} (clock, heat, other jobs), or leave it out"
        return Finding("matmul", Level.WARNING, text, cure, values)
    if peak is not None and middle < FAR * peak:
        cure = "all devices are slow: end other jobs, look at power limits and clocks"
        return Finding("matmul", Level.WARNING, text, cure, values)
    return Finding("matmul", Level.OK, text, values=values)


# --- links ----------------------------------------------------------------------------------------


def check_links(mesh: Mesh) -> list[Finding]:
    """Measure an all-gather along each axis of a mesh that has more than one device."""
    return [
        judge_link(axis, mesh.shape[axis], gather_rate(mesh, axis), nominal_rate(mesh, axis))
        for axis in mesh.axis_names
        if mesh.shape[axis] > 1
    ]


def gather_rate(mesh: Mesh, axis: str) -> float:
    """Return the bytes per second that a device receives in an all-gather along an axis, while all
    groups of the axis do the same.
    """
    count = mesh.shape[axis]
    total = (4 if jax.default_backend() == "cpu" else 256) * 2**20
    part = total // 4 // count
    x = jax.jit(
        lambda: jnp.zeros(part * mesh.size, jnp.float32),
        out_shardings=NamedSharding(mesh, P(mesh.axis_names)),
    )()

    def gather(part: jax.Array) -> jax.Array:
        # What is kept is small, what travels is not.
        return lax.all_gather(part, axis, tiled=True).reshape(count, -1)[:, :1].sum(keepdims=True)

    specs = P(mesh.axis_names)
    program = jax.jit(
        jax.shard_map(gather, mesh=mesh, in_specs=specs, out_specs=P(mesh.axis_names, None))
    )
    seconds = best_seconds(lambda: program(x))
    # The slowest process tells when all are done.
    slowest = max(exchange(seconds))
    return (count - 1) * part * 4 / slowest


def nominal_rate(mesh: Mesh, axis: str) -> float | None:
    """Return the bytes per second that data sheets promise along an axis, None if none does.

    On TPUs two links of a torus dimension, or the network between slices; on GPUs the links within a
    host.
    """
    place = mesh.axis_names.index(axis)
    group = np.moveaxis(mesh.devices, place, -1).reshape(-1, mesh.shape[axis])[0]
    row = find_device(group[0].device_kind)
    if row is None:
        return None
    if row.chip is not None:
        slices = {getattr(device, "slice_index", 0) for device in group}
        return row.chip.network_rate if len(slices) > 1 else 2 * row.chip.link_rate
    within = len({_host_of(device) for device in group}) == 1
    return row.gpu.link_rate if row.gpu is not None and within else None


def _host_of(device: Any) -> int:
    # With a process for each GPU several are on one host, and nothing tells which.
    return int(device.process_index)


def judge_link(axis: str, count: int, rate: float, nominal: float | None) -> Finding:
    """Compare what an axis does with what it should."""
    text = f"mesh.{axis}={count}: a device receives {rate / 1e9:,.2f} GB/s in an all-gather"
    values = {"axis": axis, "bytes_per_second": rate, "nominal_bytes_per_second": nominal}
    if nominal is None:
        return Finding(f"link {axis}", Level.OK, f"{text}, no nominal rate is known", values=values)
    text += f", {rate / nominal:.0%} of nominal {nominal / 1e9:,.0f}"
    if rate < FAR * nominal:
        cure = "look at the order of devices, the network interface (NCCL_DEBUG=INFO) and other traffic"
        return Finding(f"link {axis}", Level.WARNING, text, cure, values)
    return Finding(f"link {axis}", Level.OK, text, values=values)
