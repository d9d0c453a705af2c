"""Measure the steps of the text pipeline that decide over all documents: MB and documents per CPU
second, wall time, peak memory, next to datatrove on the same corpus; and on one and on two workers.

.venv/bin/python scripts/bench_prepare.py --datatrove OTHER_VENV/bin/python    (extra `bench` there)
.venv/bin/python scripts/bench_prepare.py workers --mb 100 --rounds 2
.venv/bin/python scripts/bench_prepare.py memory --memory-mb 1500

The corpus is text of installed packages in pieces of about 4 kB, with planted near copies; beyond
what there is, it is repeated under other alphabets, which makes new words of all. A step runs in
one process of its own: reading zstd Parquet, its rounds, writing zstd Parquet. With `workers` the
engine runs them, one behind the other, each on what the one before leaves. Figures are CPU seconds,
so a busy machine moves them less than wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import resource
import shutil
import string
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy
from bench_prepare_chain import prepare, stages_of
from scipy.sparse import csr_array

from data_pipeline.dedup.near.sets import distinct_grams
from data_pipeline.dedup.words import hash_words, word_grams
from data_pipeline.documents import Document
from data_pipeline.engine.isolation.watch import peak_bytes
from data_pipeline.steps import STEPS
from data_pipeline.steps.step import Shard
from data_pipeline.storage.arrays import write_arrays
from maxlm.config.pipeline.dedup.decontaminate import DecontaminateConfig
from maxlm.config.pipeline.dedup.exact_dedup import ExactDedupConfig
from maxlm.config.pipeline.dedup.near_dedup import NearDedupConfig
from maxlm.config.pipeline.dedup.substring_dedup import SubstringDedupConfig

PIECE_CHARACTERS = 4000
SHARD_MB = 16
COPIES = 10  # every tenth piece comes again, with a share of its words changed
SIMILARITIES = (0.95, 0.85, 0.75, 0.6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=["speed", "workers", "memory"], default="speed")
    parser.add_argument("--mb", type=int, default=20, help="size of the corpus (speed, workers)")
    parser.add_argument("--rounds", type=int, default=2, help="in turns (workers)")
    parser.add_argument("--datatrove", help="a Python that has datatrove (default: without it)")
    parser.add_argument("--hash", choices=["sha1", "xxhash"], default="sha1", help="datatrove's")
    parser.add_argument("--memory-mb", type=int, default=1500, help="address space (memory)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[200, 2000], help="MB (memory)")
    arguments = parser.parse_args()
    versions = (
        f"Python {platform.python_version()}, numpy {np.__version__}, scipy {scipy.__version__}"
    )
    print(f"{date.today()}, {versions}, load {os.getloadavg()[0]:.1f}")
    what = {"speed": bench_speed, "workers": bench_workers, "memory": bench_memory}
    with tempfile.TemporaryDirectory() as folder:
        what[arguments.what](Path(folder), arguments)


def bench_speed(folder: Path, arguments: argparse.Namespace) -> None:
    corpus = folder / "corpus"
    truth = write_corpus(corpus, arguments.mb, plant=True)
    size = sum(len(document.text.encode()) for document in read(corpus))
    count = sum(1 for _ in read(corpus))
    print(f"{count} documents, {size / 1e6:.1f} MB, {len(truth)} planted near copies\n")
    print("| step | CPU s | MB per CPU s | documents per CPU s | wall s | peak MB | dropped |")
    print(f"|{'---|' * 7}")
    kept = {}
    for name, config in step_configs(folder).items():
        found = run_alone(config, corpus, folder / name)
        report(name, found, size, count)
        kept[name] = found.kept
    if arguments.datatrove:
        found = run_datatrove(corpus, folder / "datatrove", arguments)
        report(f"datatrove ({arguments.hash})", found, size, count)
        kept["datatrove"] = found.kept
    quality(
        list(read(corpus)),
        {name: kept[name] for name in ("near_dedup", "datatrove") if name in kept},
        truth,
    )


def bench_workers(folder: Path, arguments: argparse.Namespace) -> None:
    """Let the engine run all steps, those that take most out of texts last, with one worker and with
    two, in turns.
    """
    corpus = folder / "corpus"
    write_corpus(corpus, arguments.mb, plant=True)
    configs = step_configs(folder)
    order = ["exact_dedup document", "near_dedup", "decontaminate"]
    order += ["substring_dedup", "exact_dedup line"]
    steps = [configs[name].model_dump(mode="json") for name in order]
    stages: dict[int, list[dict]] = {1: [], 2: []}
    for number in range(arguments.rounds):
        for workers, found in stages.items():
            load, out, began = os.getloadavg()[0], folder / f"{number}-{workers}", time.time()
            wall, cpu, _ = prepare(out, corpus, steps, workers=workers)
            print(f"workers={workers}: {wall:.1f} s, {cpu:.1f} CPU s, load before {load:.1f}")
            found.append(stages_of(out / "work", began))
            steps_done = json.loads((out / "web/manifest.json").read_text())["steps"]
            shutil.rmtree(out)
    print("\nThe least of the rounds; of what the step before leaves.\n")
    columns = "CPU s | MB per CPU s | documents per CPU s | peak MB | wall s, 1 worker | 2 workers"
    print(f"| step | {columns} | ratio |\n|{'---|' * 8}")
    for label, step in zip(order, steps_done[1:], strict=True):
        name = step["step"]
        cpu = min(one[name].cpu_seconds for one in stages[1])
        peak = max(one[name].peak_bytes for rounds in stages.values() for one in rounds)
        one, two = (min(one[name].wall_seconds for one in stages[count]) for count in (1, 2))
        row = f"{cpu:.2f} | {step['bytes_in'] / 1e6 / cpu:.1f} | {step['documents_in'] / cpu:,.0f}"
        row += f" | {peak / 1e6:.0f} | {one:.1f} | {two:.1f}"
        print(f"| {label} | {row} | {one / two:.2f} |", flush=True)


def step_configs(folder: Path) -> dict:
    evaluation = folder / "evaluation.jsonl"
    generator = random.Random(1)
    items = [" ".join(generator.choices(string.ascii_letters, k=60)) for _ in range(10_000)]
    evaluation.write_text("\n".join(json.dumps({"question": item}) for item in items))
    return {
        "exact_dedup document": ExactDedupConfig(),
        "exact_dedup line": ExactDedupConfig(unit="line", min_words=3),
        "near_dedup": NearDedupConfig(),
        "substring_dedup": SubstringDedupConfig(),
        "decontaminate": DecontaminateConfig(benchmarks={"letters": (str(evaluation),)}),
    }


class Found(NamedTuple):
    """What a step took and left.

    Attributes:
      seconds: CPU seconds of its rounds.
      wall_seconds: of all of them.
      peak_bytes: most memory that its process held, with libraries.
      kept: the ids that stay.
    """

    seconds: dict[str, float]
    wall_seconds: float
    peak_bytes: int
    kept: list[str]


def report(name: str, found: Found, size: int, count: int) -> None:
    rows = {f"{name}: {part}": value for part, value in found.seconds.items()}
    for row, value in (rows | {name: sum(found.seconds.values())}).items():
        least = max(value, 1e-3)
        figures = f"{value:.2f} | {size / 1e6 / least:.1f} | {count / least:,.0f}"
        more = (
            f"{found.wall_seconds:.1f}",
            f"{found.peak_bytes / 1e6:.0f}",
            count - len(found.kept),
        )
        print(
            f"| {row} | {figures} | {' | '.join(map(str, more)) if row == name else '| |'} |",
            flush=True,
        )


class Work:
    """Runs the rounds of a step in this process, over files."""

    def __init__(self, step, corpus: Path, folder: Path, memory_bytes: int):
        self.step, self.root = step, folder
        self.files = sorted(corpus.glob("*.parquet"))
        self.folder, self.protected, self.memory_bytes = folder / "own", frozenset(), memory_bytes
        self.folder.mkdir(parents=True)
        self.shards = [
            Shard(index, "web", pq.read_metadata(file).num_rows)
            for index, file in enumerate(self.files)
        ]
        self.seconds: dict[str, float] = {}

    def over_shards(self, method: str, *, given=()) -> list[Path]:
        calls = [
            (read_file(file), shard, given)
            for file, shard in zip(self.files, self.shards, strict=True)
        ]
        return self._calls(method, calls)

    def over_parts(self, method: str, count: int, *, given=()) -> list[Path]:
        return self._calls(method, [(part, given) for part in range(count)])

    def _calls(self, method: str, calls: list[tuple]) -> list[Path]:
        start = time.process_time()
        paths = []
        for number, call in enumerate(calls):
            paths.append(self.root / f"{method}-{number}")
            write_arrays(paths[-1], getattr(self.step, method)(*call))
        self.seconds[method] = time.process_time() - start
        return paths


def run_alone(
    config, corpus: Path, folder: Path, *, memory_bytes: int = 2**29, limit_mb: int | None = None
) -> Found:
    """Run a step in a process of its own, whose address space may be limited."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(run, config, corpus, folder, memory_bytes, limit_mb).result()


def run(config, corpus: Path, folder: Path, memory_bytes: int, limit_mb: int | None) -> Found:
    if limit_mb is not None:
        resource.setrlimit(resource.RLIMIT_AS, (limit_mb * 10**6,) * 2)
    # Tables of letters are start-up, as datatrove's word tokenizer is, and not work.
    for exactly in (False, True):
        hash_words(["some words"], exactly=exactly)
    step, began = STEPS[config.kind](config), time.perf_counter()
    work = Work(step, corpus, folder, memory_bytes)
    keys = work.over_shards("keys")
    start, rounds = time.process_time(), sum(work.seconds.values())
    decision = step.reduce(keys, work)
    work.seconds["reduce"] = time.process_time() - start - sum(work.seconds.values()) + rounds
    start, ids = time.process_time(), []
    for file, verdict in zip(work.files, decision.verdicts, strict=True):
        stays = (one for one in step.apply(read_file(file), verdict) if isinstance(one, Document))
        ids += write_file(folder / file.name, stays)
    work.seconds["apply"] = time.process_time() - start
    return Found(work.seconds, time.perf_counter() - began, peak_bytes(), ids)


def run_datatrove(corpus: Path, folder: Path, arguments: argparse.Namespace) -> Found:
    script = Path(__file__).with_name("bench_prepare_datatrove.py")
    command = [arguments.datatrove, str(script), str(corpus), str(folder), arguments.hash]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return Found(**json.loads(done.stdout.splitlines()[-1]))


def quality(documents: list[Document], kept: dict[str, list[str]], truth: dict[str, float]) -> None:
    """Print which planted copies went, and how many removals have nothing like them left."""
    print(
        "\n| | removed | no document of similarity 0.75 left | planted "
        + " | ".join(map(str, SIMILARITIES))
    )
    print("|" + "---|" * (3 + len(SIMILARITIES)))
    place = {document.id: number for number, document in enumerate(documents)}
    sets = distinct_grams(word_grams(hash_words([document.text for document in documents]), 5))
    _, grams = np.unique(sets.grams, return_inverse=True)
    matrix = csr_array((np.ones(grams.size, np.int32), grams, np.concatenate([[0], sets.ends])))
    sizes = np.diff(matrix.indptr)
    for name, ids in kept.items():
        stays = np.zeros(len(documents), bool)
        stays[[place[one] for one in ids]] = True
        best = nearest(matrix, sizes, np.flatnonzero(~stays), np.flatnonzero(stays))
        shares = []
        for target in SIMILARITIES:
            planted = [place[one] for one, similarity in truth.items() if similarity == target]
            shares.append(f"{np.mean(~stays[planted]):.3f} of {len(planted)}")
        print(
            f"| {name} | {best.size} | {np.count_nonzero(best < 0.75)} | "
            + " | ".join(shares)
            + " |"
        )


def nearest(matrix, sizes: np.ndarray, gone: np.ndarray, stays: np.ndarray) -> np.ndarray:
    """Return the Jaccard similarity of each document that went to the most similar that stays."""
    left, best = matrix[stays].T.tocsc(), np.zeros(gone.size)
    for start in range(0, gone.size, 200):
        rows = gone[start : start + 200]
        common = (matrix[rows] @ left).tocoo()
        union = sizes[rows][common.row] + sizes[stays][common.col] - common.data
        np.maximum.at(best, start + common.row, common.data / union)
    return best


def bench_memory(folder: Path, arguments: argparse.Namespace) -> None:
    print(f"address space limited to {arguments.memory_mb} MB\n")
    print(f"| corpus MB | step | peak RSS MB | CPU s | wall s | left |\n|{'---|' * 6}")
    limits = {"memory_bytes": 2**28, "limit_mb": arguments.memory_mb}
    for size in arguments.sizes:
        corpus = folder / str(size) / "corpus"
        write_corpus(corpus, size, plant=False)
        for config in (ExactDedupConfig(), NearDedupConfig(), SubstringDedupConfig()):
            found = run_alone(config, corpus, corpus.parent / config.kind, **limits)
            cost = f"{sum(found.seconds.values()):.1f} | {found.wall_seconds:.1f}"
            row = f"{size} | {config.kind} | {found.peak_bytes / 1e6:.0f} | {cost}"
            print(f"| {row} | {len(found.kept)} |", flush=True)


def write_corpus(folder: Path, megabytes: int, *, plant: bool) -> dict[str, float]:
    """Write the corpus in shards; return the ids of planted copies and their similarity.

    Args:
      plant: copies of known similarity (slow); else all but equal ones.
    """
    folder.mkdir(parents=True)
    truth: dict[str, float] = {}
    generator = random.Random(0)
    shard, size, total, number = [], 0, 0, 0
    for count, text in enumerate(pieces()):
        copies = [text]
        if count % COPIES == 0:
            target = SIMILARITIES[count // COPIES % len(SIMILARITIES)]
            changed = changed_to(text, target, generator) if plant else f"{text} again"
            copies += [] if changed is None else [changed]
        for planted, one in enumerate(copies):
            document = Document(f"web/{count}/{planted}", "web", one)
            truth |= {document.id: target} if planted else {}
            shard.append(document)
            size += len(one)
        if size > SHARD_MB * 10**6 or total + size > megabytes * 10**6:
            write_file(folder / f"{number:05}.parquet", shard)
            shard, total, size, number = [], total + size, 0, number + 1
            if total > megabytes * 10**6:
                return truth
    raise AssertionError("there is always another alphabet")


def changed_to(text: str, target: float, generator: random.Random) -> str | None:
    """Change words until the Jaccard similarity of the 5-grams is that, or up to 0.015 more."""
    words = re.split(r"(\W+)", text)
    places = [place for place, word in enumerate(words) if re.match(r"\w", word)]
    generator.shuffle(places)
    grams = grams_of(text)
    for count, place in enumerate(places):
        words[place] = f"q{generator.getrandbits(40):x}"
        if count % 2 == 0 or len(places) < 200:
            changed = "".join(words)
            other = grams_of(changed)
            similarity = len(grams & other) / len(grams | other)
            if similarity <= target + 0.015:
                return changed if similarity >= target else None
    return None


def grams_of(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return set(zip(*(words[start:] for start in range(5)), strict=False))


def pieces() -> Iterator[str]:
    """Yield texts without end: what is installed, then the same with other letters."""
    root = Path(sysconfig.get_paths()["purelib"])
    files = [file for end in ("py", "md", "rst", "txt") for file in sorted(root.rglob(f"*.{end}"))]
    for alphabet in range(10**6):
        letters = list(string.ascii_lowercase)
        random.Random(alphabet).shuffle(letters)
        table = {} if alphabet == 0 else str.maketrans(string.ascii_lowercase, "".join(letters))
        for file in files:
            text = file.read_text(errors="replace").translate(table)
            begin = 0
            while len(text) - begin > 500:
                most = begin + PIECE_CHARACTERS
                end = text.rfind("\n", begin + 500, most) + 1 or most
                yield text[begin:end]
                begin = end


def write_file(path: Path, documents) -> list[str]:
    """Write documents as zstd Parquet, some at a time; return their ids."""
    schema = pa.schema([("id", pa.string()), ("text", pa.string())])
    ids: list[str] = []
    documents = iter(documents)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while portion := list(islice(documents, 1000)):
            writer.write_table(
                pa.table([[d.id for d in portion], [d.text for d in portion]], schema=schema)
            )
            ids += [document.id for document in portion]
    return ids


def read_file(path: Path) -> Iterator[Document]:
    for batch in pq.ParquetFile(path).iter_batches(1000):
        for name, text in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            yield Document(name, "web", text)


def read(corpus: Path) -> Iterator[Document]:
    for file in sorted(corpus.glob("*.parquet")):
        yield from read_file(file)


if __name__ == "__main__":
    main()
