"""Train on text with junk in it, and on what the filters leave of it, with equal tokens; compare the
losses on clean text that neither has seen.

    .venv/bin/python scripts/bench_filters.py

Clean text is prose from the docstrings of installed packages and Python's language reference. Junk
is generated, in equal parts of six kinds. Everything is done by `maxlm` itself: a classifier is
trained on other texts of either kind, three folders are prepared, six runs are trained.
"""

from __future__ import annotations

import argparse
import base64
import itertools
import json
import random
import re
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml

from maxlm.metrics.writers.lines import FILE, read_metrics

WORDS = 250  # of a document, about
STEPS: list[dict[str, Any]] = [
    {
        "kind": "heuristics",
        "words": "whitespace",
        "rules": ["gopher_repetition", "gopher_quality", "fineweb"],
    },
    {"kind": "exact_dedup"},
    {"kind": "near_dedup"},
]
Generator = Callable[[random.Random, int], str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mb", type=float, default=1.5, help="of clean text, and of junk")
    parser.add_argument("--steps", type=int, default=450, help="of each run, of 1,024 tokens")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder, round(arguments.mb * 1e6))
        prepare_all(folder)
        say_kept(folder)
        losses = {
            kind: [train(folder, kind, seed, arguments.steps) for seed in range(arguments.seeds)]
            for kind in ("mixed", "filtered")
        }
    for kind, values in losses.items():
        shown = ", ".join(f"{value:.4f}" for value in values)
        print(f"{kind}: loss on clean text {shown}; mean {np.mean(values):.4f}")
    better = [a - b for a, b in zip(losses["mixed"], losses["filtered"], strict=True)]
    print(f"lower by {np.mean(better):.4f} (smallest {min(better):.4f}) nats per token")
    print(f"{time.perf_counter() - began:.0f} s in all")


# --- text -----------------------------------------------------------------------------------------


def write_corpus(folder: Path, size: int) -> None:
    """Write `mixed.jsonl`, clean text and junk 1:1 in a random order; `clean.jsonl`, held out; and
    texts that a classifier learns from, which are in neither.
    """
    rng = random.Random(0)
    documents = list(clean_documents(2 * size))
    rng.shuffle(documents)
    total = sum(map(len, documents))
    cut = [0.2 * total, 0.35 * total]  # labelled, held out; the rest is mixed with junk
    parts: list[list[str]] = [[], [], []]
    seen = 0
    for text in documents:
        parts[(seen >= cut[0]) + (seen >= cut[1])].append(text)
        seen += len(text)
    labelled, held_out, clean = parts
    clean = up_to(clean, size)
    kinds = generators(clean)
    junk = {name: up_to_generated(make, rng, size // len(kinds)) for name, make in kinds.items()}
    each = len(labelled) // len(kinds)
    labelled_junk = [make(rng, WORDS) for make in kinds.values() for _ in range(each)]
    lines = [{"text": text, "kind": "clean"} for text in clean]
    lines += [{"text": text, "kind": kind} for kind, texts in junk.items() for text in texts]
    rng.shuffle(lines)
    write_lines(folder / "mixed.jsonl", lines)
    write_lines(folder / "clean.jsonl", [{"text": text} for text in held_out])
    write_lines(folder / "good.jsonl", [{"text": text} for text in labelled])
    write_lines(folder / "bad.jsonl", [{"text": text} for text in labelled_junk])
    counts = Counter({line["kind"]: 0 for line in lines})
    for line in lines:
        counts[line["kind"]] += len(line["text"])
    print("bytes:", ", ".join(f"{kind} {count:,}" for kind, count in counts.items()))


def clean_documents(size: int) -> Iterator[str]:
    """Yield documents of prose: the language reference, then docstrings of installed packages."""
    written, known = 0, set[str]()
    roots = [sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")]
    files = sorted(
        path for root in roots for path in Path(root).rglob("*.py") if "test" not in str(path)
    )
    random.Random(1).shuffle(files)
    texts = [text for _, text in sorted(topics.items())]
    for text in (*texts, *map(docstrings_of, files)):
        for document in cut_into_documents(text, known):
            yield document
            written += len(document)
        if written >= size:
            return


def docstrings_of(path: Path) -> str:
    """Return what stands in triple quotes in a file, which is mostly documentation."""
    try:
        source = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""
    return "\n\n".join(
        textwrap.dedent(text) for text in re.findall(r'"""(.+?)"""', source, re.DOTALL)
    )


def cut_into_documents(text: str, known: set[str]) -> Iterator[str]:
    """Yield paragraphs of prose, joined to documents; a paragraph that came before is left out."""
    held, words = list[str](), 0
    for paragraph in re.split(r"\n\s*\n", text):
        line = " ".join(paragraph.split())
        if len(line) < 80 or line in known or ">>>" in line or not line[0].isupper():
            continue
        known.add(line)
        held.append(line)
        words += len(line.split())
        if words >= WORDS:
            yield "\n\n".join(held) + "\n"
            held, words = [], 0


def generators(clean: list[str]) -> dict[str, Generator]:
    """Return the kinds of junk, each a function of a random state and a number of words."""
    words = " ".join(clean[:400]).split()
    following: dict[str, list[str]] = {}
    for one, two in itertools.pairwise(words):
        following.setdefault(one, []).append(two)
    names = sorted({word.strip(".,").lower() for word in words if word.isalpha() and len(word) > 4})

    def babble(rng: random.Random, count: int) -> str:
        word, found = rng.choice(words), []
        for _ in range(count):
            word = rng.choice(following.get(word) or words)
            found.append(word)
        return " ".join(found) + ".\n"

    def boilerplate(rng: random.Random, count: int) -> str:
        sentence = (
            "By using this site you agree to our terms of service and privacy policy. "
            "All rights reserved. We use cookies to improve your experience. "
        )
        return f"{rng.choice(names).title()} news. " + sentence * (count // 23) + "\n"

    def shuffled(rng: random.Random, count: int) -> str:
        return " ".join(rng.choice(words) for _ in range(count)) + ".\n"

    def spam(rng: random.Random, count: int) -> str:
        name, place = rng.choice(names), rng.choice(names)
        forms = [
            f"Buy cheap {name} online in {place} today!",
            f"Best {name} {place} discount, order {name} now.",
            f"Cheap {name}, {name} price, {name} {place} free shipping!",
            f"Click here for {name} {place} deals.",
        ]
        return " ".join(rng.choice(forms) for _ in range(count // 7)) + "\n"

    def encoded(rng: random.Random, count: int) -> str:
        data = base64.b64encode(rng.randbytes(count * 4)).decode()
        return "\n".join(data[start : start + 76] for start in range(0, len(data), 76)) + "\n"

    def menu(rng: random.Random, count: int) -> str:
        return (
            "\n".join(f"{rng.choice(names).title()} {rng.choice(names)}" for _ in range(count // 2))
            + "\n"
        )

    made = (babble, boilerplate, shuffled, spam, encoded, menu)
    return {make.__name__: make for make in made}


def up_to(texts: list[str], size: int) -> list[str]:
    kept, total = [], 0
    for text in texts:
        if total >= size:
            break
        kept.append(text)
        total += len(text)
    return kept


def up_to_generated(make: Generator, rng: random.Random, size: int) -> list[str]:
    made, total = [], 0
    while total < size:
        made.append(make(rng, rng.randint(WORDS - 100, WORDS + 100)))
        total += len(made[-1])
    return made


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


# --- commands -------------------------------------------------------------------------------------


def prepare_all(folder: Path) -> None:
    """Prepare the corpus as it is (which trains the tokenizer), what filters leave of it, and the
    clean text.
    """
    model = folder / "quality.classifier"
    maxlm(
        "data", "train-classifier", folder / "good.jsonl", folder / "bad.jsonl", "--output", model
    )
    steps = [*STEPS, {"kind": "classifier", "model": str(model)}]
    for name, raw, own in (
        ("mixed", "mixed", []),
        ("filtered", "mixed", steps),
        ("clean", "clean", []),
    ):
        data = data_of(folder, {name: raw})
        data["pipeline"] = {"steps": own, "shard_mb": 2}
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"data": data}))
        maxlm("prepare", path)


def data_of(folder: Path, raws: dict[str, str | None]) -> dict[str, Any]:
    """Return a data section of sources, with the files that they are made of."""
    sources: dict[str, Any] = {}
    for name, raw in raws.items():
        sources[name] = {"path": str(folder / "shards" / name)}
        if raw is not None:
            files = [str(folder / f"{raw}.jsonl")]
            fraction = 0.9 if name == "clean" else 0.01
            sources[name]["raw"] = {
                "kind": "files",
                "paths": files,
                "meta_keys": ["kind"],
                "validation_fraction": fraction,
            }
    tokenizer = str(folder / "shards/tokenizer.model")
    return {"sources": sources, "tokenizer": tokenizer, "vocab_size": 1024, "sequence_length": 128}


def say_kept(folder: Path) -> None:
    """Print what the filters keep of clean text and of each kind of junk, and by which rule they
    dropped it.
    """
    lines = [json.loads(line) for line in (folder / "mixed.jsonl").open(encoding="utf-8")]
    dropped = pq.read_table(folder / "shards/filtered/dropped.parquet").to_pylist()
    rows = {row["id"]: row["reason"] for row in dropped}
    total, gone = Counter[str](), Counter[str]()
    reasons: dict[str, Counter[str]] = {}
    for number, line in enumerate(lines, start=1):
        kind = line["kind"]
        total[kind] += 1
        reason = next((rows[one] for one in names_of(folder, number) if one in rows), None)
        if reason is not None:
            gone[kind] += 1
            reasons.setdefault(kind, Counter())[reason.partition("/")[0]] += 1
    assert sum(gone.values()) == len(rows), "documents are found by their lines"
    for kind in total:
        why = ", ".join(
            f"{name} {count}" for name, count in reasons.get(kind, Counter()).most_common()
        )
        print(f"{kind}: {total[kind] - gone[kind]:,} of {total[kind]:,} documents kept ({why})")


def names_of(folder: Path, line: int) -> list[str]:
    return [f"filtered/{(folder / 'mixed.jsonl').as_posix()}:{line}"]


def train(folder: Path, kind: str, seed: int, steps: int) -> float:
    """Train on one of the folders and return the loss on the clean text."""
    data = data_of(folder, {kind: None, "clean": None})
    data["stages"] = [{"weights": {kind: 1.0}}]  # the clean text is evaluated only
    block = {
        "mixer": {"kind": "attention", "num_heads": 3, "head_dim": 32},
        "ffn": {"kind": "mlp", "hidden_dim": 256},
    }
    run = {
        "run_dir": str(folder / "runs" / f"{kind}-{seed}"),
        "model": {"vocab_size": 1024, "num_layers": 2, "embed_dim": 96, "block": block},
        "data": data,
        "optimizer": {"learning_rate": 2e-3},
        "schedule": {"warmup_steps": 50},
        "train": {"num_steps": steps, "batch_size": 8, "eval_batches": 64, "log_every": 50},
        "checkpoint": {"every": 0},
        "metrics": {"tensorboard": False},
        "runtime": {"seed": seed, "platform": "cpu", "compile_cache": str(folder / "compiled")},
    }
    path = folder / f"{kind}-{seed}.yaml"
    path.write_text(yaml.safe_dump(run))
    maxlm("train", path)
    records = read_metrics(folder / "runs" / f"{kind}-{seed}" / FILE)
    found = [one["val/clean/loss"] for one in records if "val/clean/loss" in one]
    print(f"{kind}, seed {seed}: {found[-1]:.4f}", flush=True)
    return float(found[-1])


def maxlm(*arguments: object) -> None:
    """Run a command; show what it said if it failed."""
    command = [sys.executable, "-m", "maxlm", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    main()
