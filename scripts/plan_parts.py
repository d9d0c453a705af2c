"""Where the estimated time of a compiled training step goes, in ms by layer and pass: the tables of
benchmarks/plan.md.

    .venv/bin/python scripts/plan_parts.py configs/run/llama3_8b_v5p64.yaml v5p:4x4x4 [key=value ...]

*Floor* is what the products' FLOPs take at the chip's peak. Communication that is waited for is left
out: `maxlm plan` has it.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict

import jax

from maxlm import runtime
from maxlm.config import load_run
from maxlm.devices import peak_flops
from maxlm.plan.command import routed_rows
from maxlm.plan.estimate import EFFICIENCIES, Timeline
from maxlm.plan.hlo import Module, parse, product_flops
from maxlm.plan.network import Network
from maxlm.plan.topology import devices_of, parse_topology, places
from maxlm.train.setup import build_program, compile_step

COLUMNS = ("products", "floor", "kernels", "other")
PLACES = {"mixer": r"[/(]mixer[/)]", "ffn": r"[/(]ffn[/)]", "loss": r"[/(]loss[/)]"}


def main() -> None:
    config = load_run(sys.argv[1], sys.argv[3:]).config
    topology = parse_topology(sys.argv[2])
    runtime.start(config.runtime.model_copy(update={"platform": "cpu", "device_count": None}))
    jax.config.update("jax_enable_compilation_cache", False)
    devices = devices_of(topology)
    program = build_program(config, devices)
    compiled = compile_step(config, program)
    peak = peak_flops(devices[0].device_kind, str(program.execution.compute_dtype))
    reached = EFFICIENCIES["nominal"]
    network = Network(topology, places(devices), reached.link)
    module = parse(
        compiled.run.as_text() or "",
        slices=topology.slices,
        routed_rows=routed_rows(config, program.mesh_sizes),
    )
    timeline = Timeline(module, topology.chip, peak, network, reached)
    show(parts(timeline, module, peak))
    together = timeline.seconds()
    print(
        f"step {1e3 * sum(together.values()):,.0f} ms, peak {compiled.peak_memory_bytes / 2**30:.1f} GiB"
    )


def parts(
    timeline: Timeline, module: Module, peak: float
) -> dict[tuple[str, str], dict[str, float]]:
    """Add up milliseconds by layer and pass, and by column."""
    total: dict[tuple[str, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    homes = {name: home for home in module.computations.values() for name in home}
    for instruction, times, seconds in timeline.instructions():
        row = total[place_of(instruction.attribute(r'op_name="([^"]*)') or "")]
        for kind, spent in seconds.items():
            row[kind] += 1e3 * spent
        flops = product_flops(module, instruction, homes[instruction.name])
        row["floor"] += 1e3 * times * flops / peak
    return total


def place_of(scope: str) -> tuple[str, str]:
    """Return the layer and the pass that an operation's scope names."""
    place = next((name for name, pattern in PLACES.items() if re.search(pattern, scope)), "rest")
    if "rematted_computation" in scope:
        return place, "again"
    return place, "backward" if "transpose(" in scope else "forward"


def show(rows: dict[tuple[str, str], dict[str, float]]) -> None:
    print(f"| layer, pass | {' | '.join(COLUMNS)} |\n{'|---' * (1 + len(COLUMNS))}|")
    for (place, direction), row in sorted(rows.items()):
        print(f"| {place}, {direction} | {' | '.join(f'{row[name]:.0f}' for name in COLUMNS)} |")
    sums = [sum(row[name] for row in rows.values()) for name in COLUMNS]
    print(f"| together | {' | '.join(f'{one:.0f}' for one in sums)} |")


if __name__ == "__main__":
    main()
