"""`maxlm plan RUN.yaml --topology v5p:4x4x4`: compile the training step for a slice that is not
here, and read it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import re
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from rich.console import Console

from maxlm import runtime
from maxlm.config import load_run
from maxlm.config.errors import RunFailedError, UserError, make_possible
from maxlm.config.fitting.elastic import explain, fit_to_devices
from maxlm.config.schema import MeshConfig, RunConfig
from maxlm.devices import peak_flops
from maxlm.models.cost import flops_per_token, parameter_count
from maxlm.plan.estimate import EFFICIENCIES, Timeline, count_work
from maxlm.plan.hlo import parse
from maxlm.plan.network import Network
from maxlm.plan.report import Buffer, Cost, Layout, Memory, Plan, show
from maxlm.plan.topology import Topology, devices_of, parse_topology, places
from maxlm.train.setup import CompiledStep, Program, build_program, compile_step

_UNITS = {
    "B": 1,
    "KiB": 2**10,
    "K": 2**10,
    "MiB": 2**20,
    "M": 2**20,
    "GiB": 2**30,
    "G": 2**30,
    "T": 2**40,
}
_TOO_MUCH = re.compile(
    r"\(([\d.]+)([KMGT])\) exceeds available HBM|Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm"
)
_BUFFER = re.compile(
    r"^\s+[\d.]+\w+\(\s*\d+%\);\s+([\d.]+)(\w+);\s+\d+;\s+\d+; (.*)$", re.MULTILINE
)
_NUM_BUFFERS = 8


def run(arguments: argparse.Namespace) -> int:
    """Plan the run of a YAML file; return 0 if it fits, else 1."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", force=True)
    topology = parse_topology(arguments.topology, arguments.slices)
    config = load_run(arguments.config, arguments.overrides).config
    runtime.start(config.runtime.model_copy(update={"platform": "cpu", "device_count": None}))
    console = Console(markup=False, highlight=False, emoji=False)
    with Console(stderr=True).status(f"compiling for {topology}, some minutes for a large model"):
        answer = make_plan(config, topology, shlex.join([arguments.config, *arguments.overrides]))
    show(answer, console)
    if arguments.json is not None:
        _write(Path(arguments.json), json.dumps(answer.to_json(), indent=1) + "\n")
    return 0 if answer.memory.fits else 1


def make_plan(config: RunConfig, topology: Topology, name: str) -> Plan:
    """Compile the training step of a run for a topology and read what it needs and costs.

    Raises:
      UserError: see `devices_of`, `fit_to_devices` and `build_program`.
    """
    devices = devices_of(topology)
    config, written = fit_to_devices(config, len(devices)), config
    program = build_program(config, devices)
    layout = Layout(
        config=name,
        topology=str(topology),
        num_devices=len(devices),
        mesh=program.mesh_sizes.sizes,
        fitted=explain(written, config),
        num_parameters=parameter_count(config.model),
        tokens_per_step=config.tokens_per_step,
        kernels=program.kernels,
        versions={package: importlib.metadata.version(package) for package in ("jax", "libtpu")},
    )
    available = topology.chip.memory_bytes
    with tempfile.TemporaryDirectory() as folder, _without_cache():
        try:
            compiled = compile_step(config, program, {"xla_dump_to": folder})
        except jax.errors.JaxRuntimeError as error:
            needed = _too_much(str(error))
            if needed is None:
                raise
            return Plan(layout, Memory(needed, available, _largest_buffers(Path(folder))), None)
        memory = Memory(compiled.peak_memory_bytes, available, _largest_buffers(Path(folder)))
    return Plan(layout, memory, _cost(config, topology, program, compiled))


@contextmanager
def _without_cache() -> Iterator[None]:
    """Keep compiled programs out of JAX's cache: those for devices that are not here cannot be read
    back.
    """
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


def _cost(config: RunConfig, topology: Topology, program: Program, compiled: CompiledStep) -> Cost:
    devices = list(program.mesh.devices.flat)
    text = compiled.run.as_text() or ""
    if "estimated_cycles" not in text:
        raise RunFailedError(
            "this version of libtpu states no cycles for its fusions, which the estimate is made of"
        )
    module = parse(
        text, slices=topology.slices, routed_rows=routed_rows(config, program.mesh_sizes)
    )
    work = count_work(module, program.mesh_sizes.sizes)
    peak = peak_flops(devices[0].device_kind, str(program.execution.compute_dtype))
    assert peak is not None, f"no peak for {devices[0].device_kind}"
    where = places(devices)
    tokens, schedule = config.tokens_per_step / len(devices), program.execution.schedule
    return Cost(
        compile_seconds=compiled.compile_seconds,
        model_flops=tokens * flops_per_token(config.model, config.data.sequence_length),
        **work._asdict(),
        seconds={
            name: Timeline(
                module, topology.chip, peak, Network(topology, where, reached.link), reached
            ).seconds()
            for name, reached in EFFICIENCIES.items()
        },
        peak_flops=peak,
        bubble=schedule.bubble,
    )


def routed_rows(config: RunConfig, mesh: MeshConfig) -> int | None:
    """Count the rows that a device's experts get of a microbatch: as many as its tokens send out."""
    copies = max(section.routed_copies for _, section in config.model.sections())
    tokens = config.tokens_per_step // (
        mesh.batch_devices * mesh.context * config.train.microbatches
    )
    return tokens * copies or None


def _too_much(message: str) -> int | None:
    """Read from the compiler's error how much HBM it wanted; None if it failed for another reason."""
    found = _TOO_MUCH.search(message)
    if found is None:
        return None
    size, unit = (part for part in found.groups() if part)
    return int(float(size) * _UNITS[unit])


def _largest_buffers(folder: Path) -> list[Buffer]:
    """Read the compiler's report of what lies in main memory, largest first; buffers of one size
    and shape together.
    """
    reports = list(folder.glob("*memory-usage-report.txt"))
    if not reports:
        return []
    section = (
        reports[0].read_text().partition("Memory Space: default")[2].partition("Memory Space:")[0]
    )
    section = section.partition("The rest")[0]
    counts: dict[tuple[int, str], int] = {}
    for size, unit, shapes in _BUFFER.findall(section):
        bytes_each = int(float(size) * _UNITS[unit])
        largest = max(
            (shape.split("\N{MULTIPLICATION SIGN}")[-1] for shape in shapes.split(", ")),
            key=_elements,
        )
        counts[bytes_each, largest] = counts.get((bytes_each, largest), 0) + 1
    buffers = [Buffer(count, size, shape) for (size, shape), count in counts.items()]
    return sorted(buffers, key=lambda buffer: -buffer.count * buffer.size_bytes)[:_NUM_BUFFERS]


def _elements(shape: str) -> int:
    total = 1
    for size in re.findall(r"\d+", shape.partition("[")[2]):
        total *= int(size)
    return total


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise UserError(
            f"--json {path}: {error.strerror or error}; {make_possible(error)}"
        ) from error
