"""Measure the whole text pipeline on real HTML: workers, memory, and datatrove beside it.

.venv/bin/python scripts/bench_prepare_chain.py workers --html FOLDER --mb 60
.venv/bin/python scripts/bench_prepare_chain.py memory --html FOLDER --sizes 200 2000
.venv/bin/python scripts/bench_prepare_chain.py datatrove --html FOLDER --python OTHER_VENV/bin/python

FOLDER is a tree of .html files, such as a language's documentation. Pages are put into JSON lines,
in an order by a hash of their paths; beyond what there is they come again with the words of each text
between tags in another order, so that copies are neither equal nor near. Figures are CPU seconds of all
processes; wall time stands beside them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
LARGEST_PAGE = 300_000  # bytes; beyond are lists of symbols
# So that enough of an API's documentation is left for the steps that follow.
WEAK_QUALITY = {"kind": "gopher_quality", "min_doc_words": 30, "min_alpha_words_ratio": 0.6}
CHAIN = [
    {"kind": "extract"},
    {"kind": "url"},
    {"kind": "language", "languages": ["en"], "threshold": 0.3},
    {"kind": "heuristics", "rules": ["gopher_repetition", WEAK_QUALITY]},
    {"kind": "pii"},
    {"kind": "exact_dedup"},
    {"kind": "near_dedup"},
    {"kind": "substring_dedup"},
]
# What datatrove has too, with the same rules.
SHARED = [
    {"kind": "extract", "repair": False},
    {"kind": "heuristics", "rules": ["gopher_repetition", WEAK_QUALITY, "fineweb"]},
    {"kind": "near_dedup"},
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["workers", "memory", "datatrove"])
    parser.add_argument("--html", type=Path, required=True, help="a tree of .html files")
    parser.add_argument("--mb", type=int, default=60, help="size of the corpus")
    parser.add_argument("--sizes", type=int, nargs="+", default=[200, 2000], help="MB (memory)")
    parser.add_argument("--memory-mb", type=int, default=1024, help="of a task (memory)")
    parser.add_argument("--rounds", type=int, default=2, help="of one and two workers (workers)")
    parser.add_argument("--python", help="a Python that has datatrove and trafilatura")
    parser.add_argument("--work", type=Path, help="where to work (default: the system's)")
    arguments = parser.parse_args()
    print(f"{date.today()}, load {os.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        {"workers": bench_workers, "memory": bench_memory, "datatrove": bench_datatrove}[
            arguments.what
        ](Path(folder), arguments)


def bench_workers(folder: Path, arguments: argparse.Namespace) -> None:
    corpus = folder / "corpus"
    size = write_corpus(corpus, arguments.html, arguments.mb)
    print(f"{size / 1e6:.0f} MB of HTML\n")
    print("| workers | wall s | CPU s | MB per CPU s | load before |\n|---|---|---|---|---|")
    for number in range(arguments.rounds):
        for workers in (1, 2):
            load = os.getloadavg()[0]
            wall, cpu, _ = prepare(folder / f"{number}-{workers}", corpus, CHAIN, workers=workers)
            row = f"{wall:.1f} | {cpu:.1f} | {size / 1e6 / cpu:.2f} | {load:.1f}"
            print(f"| {workers} | {row} |", flush=True)


def bench_memory(folder: Path, arguments: argparse.Namespace) -> None:
    limit = arguments.memory_mb
    print(f"a task may take {limit} MiB beyond its libraries\n")
    columns = "corpus MB | peak RSS of a task MB | of any process MB | CPU s | wall s | documents in | left"
    print(f"| {columns} |\n|{'---|' * 7}")
    for size in arguments.sizes:
        corpus, out = folder / f"corpus{size}", folder / f"out{size}"
        write_corpus(corpus, arguments.html, size)
        wall, cpu, peak = prepare(out, corpus, CHAIN, workers=2, memory_mb=limit)
        costs = [cost for record in out.glob("work/*/**/*.json") for cost in costs_of(record)]
        manifest = json.loads((out / "web/manifest.json").read_text())
        steps = manifest["steps"]
        row = (size, max(cost["peak_bytes"] for cost in costs) // 1e6, peak // 1e6)
        counts = (steps[0]["documents_out"], steps[-1]["documents_out"])
        figures = (*row, round(cpu), round(wall), *counts)
        print(f"| {' | '.join(f'{one:,.0f}' for one in figures)} |", flush=True)


def costs_of(record: Path) -> Iterator[dict[str, float]]:
    values = json.loads(record.read_bytes())
    if isinstance(values, dict) and "cost" in values:
        yield values["cost"]


def bench_datatrove(folder: Path, arguments: argparse.Namespace) -> None:
    corpus = folder / "corpus"
    size = write_corpus(corpus, arguments.html, arguments.mb)
    wall, cpu, _ = prepare(folder / "ours", corpus, SHARED, workers=1)
    script = Path(__file__).with_name("bench_prepare_chain_datatrove.py")
    command = [arguments.python, str(script), str(corpus), str(folder / "theirs")]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    other_wall = time.perf_counter() - began
    theirs = json.loads(done.stdout.splitlines()[-1])
    steps = json.loads((folder / "ours/web/manifest.json").read_text())["steps"]
    print(f"{size / 1e6:.1f} MB of HTML, {steps[0]['documents_out']} pages\n")
    print("| stage | maxlm CPU s | datatrove CPU s | ratio |\n|---|---|---|---|")
    ours = seconds_of(folder / "ours/work")
    for name, seconds in theirs["seconds"].items():
        row = f"{ours[name]:.2f} | {seconds:.2f} | {seconds / ours[name]:.1f}"
        print(f"| {name} | {row} |")
    both = sum(ours[name] for name in theirs["seconds"]), sum(theirs["seconds"].values())
    print(f"| these | {both[0]:.2f} | {both[1]:.2f} | {both[1] / both[0]:.1f} |")
    print(f"\nof all processes: maxlm {cpu:.1f} CPU s, {wall:.1f} s; with tokenizer and shards")
    print(f"datatrove {other_wall:.1f} s of wall with its start; left {theirs['left']}")
    print(f"left of maxlm {[step['documents_out'] for step in steps]}")


def seconds_of(work: Path) -> dict[str, float]:
    """Return CPU seconds of the tasks of each stage, by the name of its kind."""
    seconds: dict[str, float] = {}
    for record in work.glob("*/**/*.json"):
        for cost in costs_of(record):
            stage = record.relative_to(work).parts[0].partition("-")[2]
            seconds[stage] = seconds.get(stage, 0.0) + cost["cpu_seconds"]
    return seconds


def prepare(
    out: Path, corpus: Path, steps: list, *, workers: int, memory_mb: int = 2048
) -> tuple[float, float, int]:
    """Prepare a corpus in a process of its own; return wall and CPU seconds, and the largest
    resident size of any process.
    """
    out.mkdir()
    pipeline = {
        "engine": {"kind": "local", "workers": workers, "memory_mb": memory_mb},
        "work_dir": str(out / "work"),
        "steps": steps,
    }
    raw = {"kind": "files", "paths": [str(corpus)]}
    run = {
        "run_dir": str(out / "run"),
        "model": yaml.safe_load((ROOT / "configs/model/tiny.yaml").read_text())["model"],
        "data": {
            "sources": {"web": {"path": str(out / "web"), "raw": raw}},
            "tokenizer": str(out / "tokenizer.model"),
            "sequence_length": 128,
            "pipeline": pipeline,
        },
        "train": {"num_steps": 1, "batch_size": 1},
    }
    (out / "run.yaml").write_text(yaml.safe_dump(run))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    command = [sys.executable, "-m", "maxlm", "prepare", str(out / "run.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu, after.ru_maxrss * 1024


def write_corpus(folder: Path, html: Path, megabytes: int) -> int:
    """Write pages as JSON lines, 32 MB a file; return their bytes."""
    folder.mkdir()
    written, number = 0, 0
    file = (folder / "00000.jsonl").open("w")
    for address, page in pages(html):
        file.write(json.dumps({"text": page, "url": f"https://docs.example/{address}"}) + "\n")
        written += len(page.encode())
        if written > (number + 1) * 32 * 10**6:
            file.close()
            number += 1
            file = (folder / f"{number:05}.jsonl").open("w")
        if written > megabytes * 10**6:
            break
    file.close()
    return written


def pages(html: Path) -> Iterator[tuple[str, str]]:
    """Yield (path, page) without end."""
    paths = [path.relative_to(html).as_posix() for path in html.rglob("*.html")]
    paths.sort(key=lambda path: hashlib.sha256(path.encode()).digest())
    for again in range(10**6):
        for path in paths:
            data = (html / path).read_bytes()
            if len(data) <= LARGEST_PAGE:
                page = data.decode(errors="replace")
                yield f"{again}/{path}", shuffled(page, f"{again}/{path}") if again else page


def shuffled(page: str, seed: str) -> str:
    """Return a page with its words between tags in another order, so that it is like no other."""
    generator = random.Random(seed)

    def one(match: re.Match[str]) -> str:
        words = match[0].split(" ")
        generator.shuffle(words)
        return " ".join(words)

    return re.sub(r"(?<=>)[^<>]{20,}(?=<)", one, page)


if __name__ == "__main__":
    main()
