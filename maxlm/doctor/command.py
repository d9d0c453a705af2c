"""`maxlm doctor RUN.yaml`: look at hosts, devices, links and folders before a run.

Exit code: 0 if there are no problems, warnings or not; 2 if there are, for a launcher that would
start it again after anything else; 1 if a check hangs.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from maxlm import runtime
from maxlm.config import load_run
from maxlm.config.cluster.exit_codes import Exit
from maxlm.config.errors import UserError, make_possible
from maxlm.config.fitting.elastic import explain, fit_to_devices
from maxlm.config.schema import MeshConfig, RunConfig, RuntimeConfig
from maxlm.doctor.show import to_json, to_line
from maxlm.files import write_whole
from maxlm.health import folders, hosts, speed
from maxlm.health.exchange import exchange
from maxlm.health.finding import Finding, Level, worst
from maxlm.process.phases import PHASES, Overdue, beat
from maxlm.process.watchdog import Late, watching
from maxlm.sharding.host import HOST_MEMORY
from maxlm.sharding.mesh import build_mesh
from maxlm.train.programs.cache import folder_of_programs
from maxlm.train.setup import Program, build_program

SHARED_BYTES = 32 * 2**20
"""Of the file that each host writes and reads."""

LIMIT_SECONDS = 300.0
"""Of each check: what takes longer hangs."""


def run(arguments: argparse.Namespace) -> int:
    """Look at everything and print it; return the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", force=True)
    config = load_run(arguments.config, arguments.overrides).config if arguments.config else None
    settings = config.runtime if config else RuntimeConfig()
    with runtime.fail_together():
        with watching(settings.timeouts.by_phase()):
            runtime.start(settings)
        checks = _Checks()
        with watching(dict.fromkeys(PHASES, LIMIT_SECONDS), describe=checks.describe):
            findings = []
            for finding in examine(config, begin=checks.begin):
                findings.append(finding)
                if jax.process_index() == 0:
                    sys.stdout.write(to_line(finding))
                    sys.stdout.flush()
            checks.begin("--json")
            if arguments.json:
                runtime.on_first_process(lambda: _write(Path(arguments.json), findings))
    return Exit.MISTAKE if worst(findings) is Level.PROBLEM else Exit.DONE


class _Checks:
    """The check that is going on, for a watchdog: each has the whole limit for itself."""

    def __init__(self) -> None:
        self._name = ""
        count, host = jax.process_count(), socket.gethostname()
        self._process = f"process {jax.process_index()} of {count} on {host}: " if count > 1 else ""

    def begin(self, name: str) -> None:
        """Say that a check begins."""
        self._name = name
        beat()

    def describe(self, late: Overdue) -> Late:
        """Name the check that hangs."""
        return Late(
            f"{self._process}the check of {self._name} has taken longer than {late.limit:g} s",
            "A device, a link between hosts or a folder does not answer: the stacks show in which call",
        )


def _write(path: Path, findings: list[Finding]) -> None:
    try:
        write_whole(path, to_json(findings).encode())
    except OSError as error:
        raise UserError(
            f"--json {path}: {error.strerror or error}; {make_possible(error)}, or name another file"
        ) from error


def examine(config: RunConfig | None, *, begin: Callable[[str], None]) -> Iterator[Finding]:
    """Yield the findings, cheapest first.

    Args:
      config: the run that is to be; without one, its folder and its mesh are left out.
      begin: called with the name of each check before it begins.

    Raises:
      UserError: the mesh does not fit the devices.
    """
    begin("devices and versions")
    processes = exchange(hosts.describe())
    yield hosts.check_devices(processes)
    yield hosts.check_versions(processes)
    begin("clocks")
    clocks = hosts.check_clocks()
    if clocks is not None:
        yield clocks
    if config is not None:
        config, written = fit_to_devices(config, jax.device_count()), config
        changed = explain(written, config)
        if changed:
            yield Finding("mesh", Level.WARNING, changed)
    begin("memory")
    program = build_program(config) if config else None
    yield hosts.check_memory(processes, **_needs(program))
    begin("compile cache")
    yield folders.check_cache(_folder_of_programs(config))
    if config is not None and program is not None:
        begin("folder and space")
        yield from _folder(config, program)
    begin("matmul")
    yield speed.check_matmul()
    begin("links")
    mesh = program.mesh if program else build_mesh(MeshConfig(data=jax.device_count(), fsdp=1))
    yield from speed.check_links(mesh)


def _folder_of_programs(config: RunConfig | None) -> Path | None:
    if config is None:
        return None
    return folder_of_programs(config.runtime.compile_cache, Path(config.run_dir))


def _needs(program: Program | None) -> dict[str, int]:
    """Return the bytes of the train state on a device, and on one process' devices."""
    if program is None:
        return {}
    sizes = [
        (
            leaf.sharding.memory_kind,
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize,
        )
        for leaf in jax.tree.leaves(program.state)
    ]
    on_device = sum(size for kind, size in sizes if kind != HOST_MEMORY)
    saved = sum(size for _, size in sizes) * jax.local_device_count()
    return {"state_bytes": on_device, "host_bytes": saved}


def _folder(config: RunConfig, program: Program) -> Iterator[Finding]:
    """Yield what is found of the run's folder; it is made for that, and goes if it is still empty."""
    path = Path(config.run_dir).absolute()
    with _made(path) as error:
        if error:
            cure = "make it possible, or choose another run_dir"
            yield Finding("folder", Level.PROBLEM, f"run_dir={path}: {error}", cure)
            return
        yield folders.check_folder(path, SHARED_BYTES)
        yield folders.check_space(path, folders.saved_bytes(program.state), config.checkpoint)


@contextlib.contextmanager
def _made(path: Path) -> Iterator[str]:
    """Make a folder on process 0 for a while; gives why it cannot be, or an empty text."""
    made, error = [], ""
    if jax.process_index() == 0:
        made = [folder for folder in (path, *path.parents) if not folder.exists()]
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as failure:
            error = failure.strerror or str(failure)
    try:
        yield exchange(error)[0]
    finally:
        exchange(None)
        with contextlib.suppress(OSError):  # something is in it by now
            for folder in made:
                folder.rmdir()
