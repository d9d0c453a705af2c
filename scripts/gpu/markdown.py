"""The report of `scripts/gpu_report` as tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

GIB = 2**30


def write_markdown(content: dict[str, Any]) -> str:
    """Return the report, without trailing blanks."""
    lines = [f"# GPU report, {content['date']}", ""]
    if content["scale"] != "whole":
        lines += ["A rehearsal on the CPU: every number here is of tiny stand-ins.", ""]
    for part, names in content["missing"].items():
        lines += [f"{part} was left out: missing {', '.join(names)}.", ""]
    by_part: dict[str, list[dict[str, Any]]] = {}
    for job in content["jobs"]:
        by_part.setdefault(job["part"], []).append(job)
    for part, write in WRITERS.items():
        done = [job for job in by_part.get(part, []) if "found" in job]
        failed = [job for job in by_part.get(part, []) if "failed" in job]
        if done or failed:
            lines += [f"## {part.capitalize()}", "", *write(done), ""]
        for job in failed:
            last = (job["failed"].strip().splitlines() or ["no word"])[-1]
            lines += [f"* {job['name']} failed: {last[:300]}"]
        lines += [""] if failed else []
    return "\n".join(lines).rstrip() + "\n"


def _facts(jobs: list[dict[str, Any]]) -> Iterator[str]:
    for job in jobs:
        found = job["found"]
        yield f"* {found['device']}; " + ", ".join(
            f"{k} {v}" for k, v in found["nvidia-smi"].items()
        )
        yield "* " + ", ".join(f"{k} {v}" for k, v in found["versions"].items())
        for dtype, speed in found["matmul_tflops"].items():
            yield f"* matrix product, 8,192 cubed, {dtype}: {speed:.0f} TFLOP/s"
        yield f"* copy: {found['copy_gb_per_second']:.0f} GB/s, bytes read and written"


def _checks(jobs: list[dict[str, Any]]) -> Iterator[str]:
    yield "Distance from fp64, in distances of the plain computation in the same type; allowed is 1.25."
    yield ""
    names = ("out", "lse", "dq", "dk", "dv")
    yield "| kernel: features | " + " | ".join(names) + " | same bits twice | |"
    yield "|---" * (len(names) + 3) + "|"
    for job in jobs:
        found = job["found"]
        cells = [_ratio(found["results"][name]) for name in names]
        good = "ok" if found["good"] else "**wrong**"
        yield f"| {job['name']} | {' | '.join(cells)} | {'yes' if found['same_bits'] else 'no'} | {good} |"


def _ratio(result: dict[str, Any]) -> str:
    if not result["good"]:
        return f"**{result['error']:.1e} / {result['plain']:.1e}**"
    return f"{result['error'] / result['plain']:.2f}" if result["plain"] > 1e-9 else "exact"


def _attention(jobs: list[dict[str, Any]]) -> Iterator[str]:
    yield "TFLOP/s, of pairs that see each other: forward, forward and backward, and backward as the difference."
    yield ""
    yield "| shape, bf16, 16 heads | implementation | forward | both | backward | forward over cuDNN | backward |"
    yield "|---|---|---|---|---|---|---|"
    for job in jobs:
        speeds = job["found"]["tflops"]
        base = speeds.get("cuDNN")
        for name, speed in speeds.items():
            cells = [f"{speed[key]:.0f}" for key in ("forward", "both", "backward")]
            ratios = [
                f"{speed[key] / base[key]:.2f}" if base else "" for key in ("forward", "backward")
            ]
            yield f"| {job['name']} x {job['found']['batch']} | {name} | {' | '.join(cells + ratios)} |"


def _grouped(jobs: list[dict[str, Any]]) -> Iterator[str]:
    yield "TFLOP/s of experts' products, and the largest distance from fp32 of the three; allowed is 0.01."
    yield ""
    yield "| shape: way, blocks | forward | gradient of the rows | gradient of the matrices | distance | |"
    yield "|---|---|---|---|---|---|"
    for job in jobs:
        found = job["found"]
        cells = [f"{found['tflops'][key]:.0f}" for key in ("forward", "rows", "matrices")]
        good = "ok" if found["good"] else "**wrong**"
        yield f"| {job['name']} | {' | '.join(cells)} | {max(found['errors'].values()):.4f} | {good} |"


def _tuning(jobs: list[dict[str, Any]]) -> Iterator[str]:
    yield "Time with other blocks over the time with the table's, 16,384 tokens, causal; the passes they are of."
    yield ""
    yield "| kernel, head size, blocks | time over the table's | milliseconds |"
    yield "|---|---|---|"
    for job in jobs:
        yield f"| {job['name']} | {job['found']['ratio']:.3f} | {job['found']['milliseconds']:.2f} |"


def _training(jobs: list[dict[str, Any]]) -> Iterator[str]:
    yield "MFU counts causal attention once and no recomputation."
    yield ""
    yield (
        "| model | parameters (active) | tokens | step, ms | tokens/s | MFU | compile, s "
        "| GiB estimated, compiled, used | loss |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for job in jobs:
        found = job["found"]
        memory = [found["memory"][key] for key in ("estimated", "compiled", "used")]
        cells = [
            f"{found['parameters'] / 1e9:.2f} B ({found['active_parameters'] / 1e9:.2f} B)",
            f"{found['tokens_per_step']:,}",
            f"{1e3 * found['step_seconds']:.0f}",
            f"{found['throughput/tokens_per_second']:,.0f}",
            f"{100 * found['throughput/mfu']:.1f} %" if "throughput/mfu" in found else "",
            f"{found['compile_seconds']:.0f}",
            ", ".join(f"{x / GIB:.1f}" if x else "-" for x in memory),
            f"{found['losses'][0]:.3f} to {found['losses'][-1]:.3f}",
        ]
        yield f"| {job['name']} | {' | '.join(cells)} |"
    for job in jobs:
        if job["found"]["profile"]:
            total = 1e3 * job["found"]["step_seconds"]
            yield ""
            yield f"{job['name']}, one step by kernel:"
            yield ""
            yield "| kernel | ms | calls | of the step |"
            yield "|---|---|---|---|"
            for row in job["found"]["profile"]:
                name = row["name"].replace("|", "\\|")[:110]
                share = 100 * row["milliseconds"] / total
                yield f"| {name} | {row['milliseconds']:.1f} | {row['calls']} | {share:.1f} % |"


WRITERS = {
    "facts": _facts,
    "checks": _checks,
    "attention": _attention,
    "grouped": _grouped,
    "tuning": _tuning,
    "training": _training,
}
