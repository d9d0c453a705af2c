"""Write the table of benchmarks/plan.md from what `maxlm plan --json` wrote: scripts/plan_table.py
FILE.json ...
"""

import json
import sys
from pathlib import Path

GIB = 2**30
COLUMNS = (
    "run | topology, mesh | peak GiB | GB received per step, by axes | collectives | step s | MFU % | bubble % | "
    "FLOPs done / model's | compile s"
)


def row(plan):
    layout, memory, cost = plan["layout"], plan["memory"], plan["cost"]
    mesh = ", ".join(f"{axis} {size}" for axis, size in layout["mesh"].items() if size > 1)
    cells = [layout["config"], f"{layout['topology']}: {mesh}"]
    peak = f"{memory['needed_bytes'] / GIB:.1f}"
    if cost is None:
        return [*cells, f"**{peak}, does not fit**", *[""] * 7]
    by_axes, by_kind = {}, {}
    for one in cost["traffic"]:
        axes = " x ".join(one["axes"]) or "none"
        by_axes[axes] = by_axes.get(axes, 0) + one["wire_bytes"] / 1e9
        by_kind[one["kind"]] = by_kind.get(one["kind"], 0) + one["times"]
    together = f"{cost['wire_bytes'] / 1e9:.1f}"
    parts = ", ".join(f"{axes} {size:.1f}" for axes, size in by_axes.items() if size >= 0.05)
    done = (cost["product_flops"] + cost["kernel_flops"]) / cost["model_flops"]
    return [
        *cells,
        peak,
        f"{together}: {parts}",
        ", ".join(f"{times:,.0f} {kind}" for kind, times in by_kind.items()),
        " - ".join(f"{seconds:.3g}" for seconds in cost["step_seconds"].values()),
        " - ".join(f"{100 * mfu:.1f}" for mfu in cost["mfu"].values()),
        f"{100 * cost['bubble']:.1f}" if cost["bubble"] else "",
        f"{done:.2f}",
        f"{cost['compile_seconds']:.0f}",
    ]


def main():
    print(f"| {COLUMNS} |")
    print("|---" * len(COLUMNS.split("|")) + "|")
    for path in sys.argv[1:]:
        print(f"| {' | '.join(row(json.loads(Path(path).read_text())))} |")


if __name__ == "__main__":
    main()
