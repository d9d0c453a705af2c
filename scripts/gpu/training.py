"""The training step on one GPU: speed, memory against the estimate, and where the time goes."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jax

from maxlm.config import load_run
from maxlm.devices import peak_flops
from maxlm.metrics.throughput import rates
from maxlm.models.cost import active_parameter_count, flops_per_token, parameter_count
from maxlm.runtime import start
from maxlm.sharding.mesh import batch_sharding
from maxlm.train.memory import memory_per_device
from maxlm.train.setup import batch_shapes, build_program, compile_step
from maxlm.train.state import create_state

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench_train_maxlm import device_batch

STEPS = 8
WARM_STEPS = 2
LINES_OF_PROFILE = 25


def measure(*, arguments: list[str], tiny: bool) -> dict[str, Any]:
    """Return tokens/s, MFU (causal attention counted once), memory and the top of a profile.

    Args:
      arguments: a run's file and what is changed in it.
      tiny: for a CPU.
    """
    path, *changes = arguments
    if tiny:
        path, changes = (
            "configs/run/quickstart.yaml",
            ["runtime.compile_cache=null", "train.batch_size=2"],
        )
    config = load_run(path, changes).config
    start(config.runtime)
    program = build_program(config)
    shapes = batch_shapes(config, program.mesh)
    estimated = memory_per_device(config, program.state, program.mesh, program.execution, shapes)
    state = create_state(program.state, program.optimizer, program.mesh, seed=0)
    compiled = compile_step(config, program)
    batches = [device_batch(config, index, batch_sharding(program.mesh)) for index in range(2)]
    losses, seconds = [], []
    for step in range(2 if tiny else WARM_STEPS + STEPS):
        began = time.perf_counter()
        state, metrics = compiled.run(state, batches[step % 2])
        losses.append(float(metrics.sums.objective))
        seconds.append(time.perf_counter() - began)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            state, metrics = compiled.run(state, batches[0])
            jax.block_until_ready(metrics)
        profile = read_profile(Path(folder))
    device = jax.devices()[0]
    step_seconds = statistics.median(seconds[-STEPS:])
    speed = rates(
        tokens=config.tokens_per_step, seconds=step_seconds, num_devices=1,
        flops_per_token=flops_per_token(config.model, config.data.sequence_length),
        peak=peak_flops(device.device_kind, "bfloat16"),
    )  # fmt: skip
    return {
        "run": arguments,
        "kernels": program.kernels,
        "parameters": parameter_count(config.model),
        "active_parameters": active_parameter_count(config.model),
        "tokens_per_step": config.tokens_per_step,
        "compile_seconds": compiled.compile_seconds,
        "step_seconds": step_seconds,
        **speed,
        "losses": losses,
        "memory": {
            "estimated": sum(estimated.values()),
            "estimated_parts": estimated,
            "compiled": compiled.peak_memory_bytes,
            "used": (device.memory_stats() or {}).get("peak_bytes_in_use"),
        },
        "profile": profile,
    }


def read_profile(folder: Path) -> list[dict[str, Any]]:
    """Return the kernels that took most of the device's time: name, milliseconds, calls."""
    spent, calls = Counter[str](), Counter[str]()
    for path in folder.rglob("*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            if not plane.name.startswith("/device:GPU"):
                continue
            for line in plane.lines:
                if not line.name.startswith("Stream"):
                    continue
                for event in line.events:
                    spent[event.name] += event.duration_ns / 1e6
                    calls[event.name] += 1
    return [
        {"name": name, "milliseconds": milliseconds, "calls": calls[name]}
        for name, milliseconds in spent.most_common(LINES_OF_PROFILE)
    ]
