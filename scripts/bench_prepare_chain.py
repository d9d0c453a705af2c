"""Measure the whole text pipeline on real HTML: workers, each step, memory, extraction beside the bare
library, and datatrove.

.venv/bin/python scripts/bench_prepare_chain.py workers --html FOLDER --mb 60
.venv/bin/python scripts/bench_prepare_chain.py extract --html FOLDER --mb 20
.venv/bin/python scripts/bench_prepare_chain.py memory --html FOLDER --sizes 200 2000
.venv/bin/python scripts/bench_prepare_chain.py datatrove --html FOLDER --python OTHER_VENV/bin/python

FOLDER is a tree of .html files, such as a language's documentation. Pages are put into JSON lines,
in an order by a hash of their paths; beyond what there is they come again with the words of each text
between tags in another order, so that copies are neither equal nor near. Figures are CPU seconds of all
processes; wall time stands beside them.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import NamedTuple

import yaml
from resiliparse.extract.html2text import extract_plain_text

from data_pipeline.documents import Document
from data_pipeline.html.guard import HtmlLimits, find_danger
from data_pipeline.steps import STEPS
from data_pipeline.steps.clean.extract import Extract
from maxlm.config.pipeline.clean.extract import ExtractConfig

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
    parser.add_argument("what", choices=["workers", "extract", "memory", "datatrove"])
    parser.add_argument("--html", type=Path, required=True, help="a tree of .html files")
    parser.add_argument("--mb", type=int, default=60, help="size of the corpus")
    parser.add_argument("--sizes", type=int, nargs="+", default=[200, 2000], help="MB (memory)")
    parser.add_argument("--memory-mb", type=int, default=1024, help="of a task (memory)")
    parser.add_argument(
        "--rounds", type=int, default=2, help="in turns (workers, extract, datatrove)"
    )
    parser.add_argument("--python", help="a Python that has datatrove and trafilatura")
    parser.add_argument("--work", type=Path, help="where to work (default: the system's)")
    arguments = parser.parse_args()
    print(f"{date.today()}, load {os.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        what = {
            "workers": bench_workers,
            "extract": bench_extract,
            "memory": bench_memory,
            "datatrove": bench_datatrove,
        }
        what[arguments.what](Path(folder), arguments)


def bench_workers(folder: Path, arguments: argparse.Namespace) -> None:
    corpus = folder / "corpus"
    size = write_corpus(corpus, arguments.html, arguments.mb)
    print(f"{size / 1e6:.0f} MB of HTML\n")
    print("| workers | wall s | CPU s | MB per CPU s | load before |\n|---|---|---|---|---|")
    stages: dict[int, list[dict[str, Stage]]] = {1: [], 2: []}
    for number in range(arguments.rounds):
        for workers in stages:
            load, out, began = os.getloadavg()[0], folder / f"{number}-{workers}", time.time()
            wall, cpu, _ = prepare(out, corpus, CHAIN, workers=workers)
            row = f"{wall:.1f} | {cpu:.1f} | {size / 1e6 / cpu:.2f} | {load:.1f}"
            print(f"| {workers} | {row} |", flush=True)
            stages[workers].append(stages_of(out / "work", began))
            shutil.rmtree(out)
    print("\nThe least of the rounds; MB of HTML, and the most memory of a task.\n")
    print("| stage | CPU s | MB per CPU s | peak MB | wall s, 1 worker | 2 workers | ratio |")
    print("|---|---|---|---|---|---|---|")
    for name in stages[1][0]:
        cpu = min(one[name].cpu_seconds for one in stages[1])
        peak = max(one[name].peak_bytes for rounds in stages.values() for one in rounds)
        one, two = (min(one[name].wall_seconds for one in stages[count]) for count in (1, 2))
        row = f"{cpu:.2f} | {size / 1e6 / max(cpu, 1e-2):.1f} | {peak / 1e6:.0f}"
        print(f"| {name} | {row} | {one:.1f} | {two:.1f} | {one / two:.2f} |")


def bench_extract(folder: Path, arguments: argparse.Namespace) -> None:
    """Compare the step, on documents in memory, with nothing but the library's call for each page."""
    corpus = folder / "corpus"
    size = write_corpus(corpus, arguments.html, arguments.mb)
    pages = [json.loads(line)["text"] for path in corpus.glob("*.jsonl") for line in path.open()]
    steps = {
        "step": STEPS["extract"](ExtractConfig()),
        "step without repair": STEPS["extract"](ExtractConfig(repair=False)),
    }

    def bare() -> None:
        for page in pages:
            extract_plain_text(
                page,
                main_content=True,
                comments=False,
                list_bullets=False,
                alt_texts=False,
                links=False,
            )

    def whole(step: Extract) -> None:
        assert sum(1 for _ in step(Document("", "", page) for page in pages)) == len(pages)

    limits = HtmlLimits()
    actions = {
        "bare resiliparse": bare,
        **{name: functools.partial(whole, step) for name, step in steps.items()},
        "the guard alone": lambda: [find_danger(page, limits) for page in pages],
    }
    least = dict.fromkeys(actions, float("inf"))
    for _ in range(arguments.rounds):
        for name, action in actions.items():
            began = time.process_time()
            action()
            least[name] = min(least[name], time.process_time() - began)
    print(f"{size / 1e6:.1f} MB of HTML in {len(pages)} pages; the least of {arguments.rounds}\n")
    print("| | CPU s | MB per CPU s | of bare resiliparse's speed |\n|---|---|---|---|")
    for name, seconds in least.items():
        share = least["bare resiliparse"] / seconds
        print(f"| {name} | {seconds:.2f} | {size / 1e6 / seconds:.1f} | {share:.2f} |")


class Stage(NamedTuple):
    """What a stage took: its tasks' CPU seconds and most memory, and the time until its last file."""

    cpu_seconds: float
    peak_bytes: float
    wall_seconds: float


def stages_of(work: Path, began: float) -> dict[str, Stage]:
    """Return what each stage took, in their order, by its name.

    A stage begins where the one before it ended. What the process that leads does in between counts
    for the next: starting, for the first; training the tokenizer, for `tokenize`.
    """
    found: dict[str, list[tuple[float, dict[str, float]]]] = {}
    for record in work.glob("*/**/*.json"):
        name = record.relative_to(work).parts[0]
        costs = [(record.stat().st_mtime, cost) for cost in costs_of(record)]
        found.setdefault(name, []).extend(costs)
    stages = {}
    for name, costs in sorted(found.items(), key=lambda item: max(item[1], default=(0.0, {}))[0]):
        if costs:
            ended = max(time for time, _ in costs)
            cpu = sum(cost["cpu_seconds"] for _, cost in costs)
            stages[name] = Stage(cpu, max(cost["peak_bytes"] for _, cost in costs), ended - began)
            began = ended
    return stages


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
    script = Path(__file__).with_name("bench_prepare_chain_datatrove.py")
    ours: dict[str, float] = {}
    theirs: dict[str, float] = {}
    for number in range(arguments.rounds):
        out, began = folder / f"ours{number}", time.time()
        wall, cpu, _ = prepare(out, corpus, SHARED, workers=1)
        for name, stage in stages_of(out / "work", began).items():
            name = name.partition("-")[2] or name
            ours[name] = min(ours.get(name, float("inf")), stage.cpu_seconds)
        work = folder / f"theirs{number}"
        command = [arguments.python, str(script), str(corpus), str(work)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        result = json.loads(done.stdout.splitlines()[-1])
        for name, seconds in result["seconds"].items():
            theirs[name] = min(theirs.get(name, float("inf")), seconds)
        print(
            f"round {number + 1}: maxlm {cpu:.1f} CPU s, {wall:.1f} s, all of it; datatrove",
            end=" ",
        )
        print(f"{sum(result['seconds'].values()):.1f} CPU s", flush=True)
    steps = json.loads((out / "web/manifest.json").read_text())["steps"]
    print(
        f"\n{size / 1e6:.1f} MB of HTML, {steps[0]['documents_out']} pages; the least of the rounds\n"
    )
    print("| stage | maxlm CPU s | datatrove CPU s | ratio |\n|---|---|---|---|")
    for name, seconds in theirs.items():
        print(f"| {name} | {ours[name]:.2f} | {seconds:.2f} | {seconds / ours[name]:.1f} |")
    both = sum(ours[name] for name in theirs), sum(theirs.values())
    print(f"| these | {both[0]:.2f} | {both[1]:.2f} | {both[1] / both[0]:.1f} |")
    print(
        f"\nleft of maxlm {[step['documents_out'] for step in steps]}, of datatrove {result['left']}"
    )


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
