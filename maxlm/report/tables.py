"""A run's tables: facts, goodput, evaluations, checkpoints, starts and where they ran."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from maxlm.metrics.history.goodput import LOSSES, STEPS
from maxlm.metrics.terminal import duration
from maxlm.pages import Rows
from maxlm.report.record import BEGINNINGS, ENDS, RunRecord

MOST_EVALUATIONS = 40


def facts_of(run: RunRecord) -> dict[str, str]:
    """Return what is to be known first, by its name."""
    last = run.metrics[-1] if run.metrics else {}
    newest = {name: value for record in run.metrics for name, value in record.items()}
    begun = [event for event in run.events if event.kind in BEGINNINGS]
    facts = {"state": _state(run), "steps done": f"{run.step:,}"}
    if isinstance(last.get("data/tokens"), int):
        facts["tokens"] = f"{last['data/tokens']:,}"
    for name, value in newest.items():
        if name.endswith("/loss") and isinstance(value, float):
            facts[name] = f"{value:.4f}"
    if run.spans:
        goodput = run.goodput
        facts["goodput"] = f"{goodput.fraction:.1%} of {length(goodput.total)}"
    if begun:
        facts["first start"] = moment(begun[0].time)
    if run.last_seconds is not None:
        facts["last line"] = moment(run.last_seconds)
    if run.damaged:
        counts = ", ".join(f"{name} {count}" for name, count in run.damaged.items())
        facts["damaged lines"] = f"{counts}; they are left out here"
    return facts


def _state(run: RunRecord) -> str:
    end = run.last_end
    if end is not None:
        return f"failed: {end.text}" if end.kind == "failed" else end.text
    if run.last_seconds is None:
        return "not known: there are no events"
    ago = length(max(time.time() - run.last_seconds, 0))
    return f"going on, or ended without a word: the last line is {ago} old"


def goodput_rows(run: RunRecord) -> Rows:
    """Return what the time went into, most first."""
    goodput = run.goodput
    meanings = {STEPS: "steps that count", **LOSSES}
    causes = [STEPS, *sorted(LOSSES, key=lambda cause: -goodput.seconds[cause])]
    rows = [
        (
            cause if cause == STEPS else f"lost: {cause}",
            length(goodput.seconds[cause]),
            f"{goodput.seconds[cause] / goodput.total:.2%}" if goodput.total else "-",
            meanings[cause],
        )
        for cause in causes
    ]
    total = ("since the run was created", length(goodput.total), "100 %", "")
    return Rows("Goodput", ("time", "", "share", "what it is"), (*rows, total))


def evaluation_rows(run: RunRecord) -> Rows:
    """Return the last evaluations, newest first."""
    names = run.names(r"val/.*/(loss|bits_per_byte)")
    evaluated = [record for record in run.metrics if any(name in record for name in names)]
    rows = [
        (
            f"{record['step']:,}",
            *(_figure(record[name]) if name in record else "" for name in names),
        )
        for record in reversed(evaluated[-MOST_EVALUATIONS:])
    ]
    left = len(evaluated) - len(rows)
    title = f"Evaluations ({left} before these)" if left > 0 else "Evaluations"
    return Rows(title, ("step", *(name.removeprefix("val/") for name in names)), tuple(rows))


def checkpoint_rows(run: RunRecord) -> Rows:
    """Return the checkpoints that are there, newest first."""
    rows = []
    for saved in reversed(run.checkpoints):
        consumed = saved.record.get("consumed")
        tokens = consumed.get("tokens") if isinstance(consumed, dict) else None
        shown = f"{tokens:,}" if isinstance(tokens, int) else "its record cannot be read"
        hashed = str(saved.record.get("token_hash", ""))
        size = f"{saved.num_bytes / 1e6:,.1f} MB"
        rows.append((saved.name, moment(saved.seconds), size, shown, hashed))
    columns = ("checkpoint", "written", "size", "tokens", "hash of the tokens")
    return Rows("Checkpoints", columns, tuple(rows))


def start_rows(run: RunRecord) -> Rows:
    """Return every start: when, from which step, where, and how it ended."""
    rows: list[tuple[str, ...]] = []
    for event in run.events:
        if event.kind in BEGINNINGS:
            hosts = event.values.get("hosts")
            names = ", ".join(map(str, hosts)) if isinstance(hosts, list) else ""
            devices = event.values.get("devices")
            kinds = _counts(devices) if isinstance(devices, dict) else ""
            step = "?" if event.step is None else f"{event.step:,}"
            rows.append((moment(event.time), step, kinds, names, "no word"))
        elif event.kind in ENDS and rows:
            after = "" if event.step is None else f" after step {event.step:,}"
            word = str(event.values.get("state", "failed"))
            rows[-1] = (*rows[-1][:-1], f"{word}{after}")
    if rows and run.last_end is None:
        rows[-1] = (*rows[-1][:-1], "goes on, or no word")
    return Rows("Starts", ("start", "from step", "devices", "hosts", "end"), tuple(rows))


def environment_rows(run: RunRecord) -> Rows:
    """Return the newest start's mesh, kernels and versions, and what they were in the start
    before where that differs.
    """
    begun = [_environment(event.values) for event in run.events if event.kind in BEGINNINGS]
    if not begun:
        return Rows("Environment", ("", "", ""), ())
    newest, before = begun[-1], begun[-2] if len(begun) > 1 else begun[-1]
    rows = [
        (name, value, f"was {before.get(name, '')}" if before.get(name) != value else "")
        for name, value in newest.items()
    ]
    return Rows("Environment", ("of the last start", "", ""), tuple(rows))


def _environment(values: Mapping[str, Any]) -> dict[str, str]:
    found = {
        name: str(values[name])
        for name in ("num_hosts", "num_processes", "parameters")
        if name in values
    }
    for name in ("devices", "mesh", "kernels", "versions"):
        inner = values.get(name)
        if isinstance(inner, dict):
            found |= {f"{name}: {key}": str(value) for key, value in inner.items()}
    return found


def _counts(devices: Mapping[str, Any]) -> str:
    return ", ".join(f"{number} x {kind}" for kind, number in devices.items())


def _figure(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else "not finite"


def moment(seconds: float) -> str:
    """Return a time of day, in UTC."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return "?"


def length(seconds: float) -> str:
    """Return a length of time: 4.2 s, 12:30, 2d 03:04:05."""
    return f"{seconds:.1f} s" if seconds < 60 else duration(seconds)
