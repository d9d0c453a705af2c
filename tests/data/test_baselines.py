import gzip
import math
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest

from maxlm.data import baselines
from maxlm.data.baselines import SMOOTHING, measure_baselines
from maxlm.data.shards import ShardWriter, TokenShards


@pytest.fixture
def write(tokenizer, tmp_path):
    """Return a function that writes texts as shards, and returns these and the documents' tokens."""

    def written(name, *texts):
        documents = [tokenizer.encode(text) for text in texts]
        with ShardWriter(
            tmp_path / name,
            vocab_size=tokenizer.vocab_size,
            bos_id=tokenizer.bos_id,
            eos_id=tokenizer.eos_id,
            tokenizer=tokenizer.fingerprint,
        ) as writer:
            for document in documents:
                writer.write_document(document)
        return TokenShards(tmp_path / name), [
            [tokenizer.bos_id, *document, tokenizer.eos_id] for document in documents
        ]

    return written


VALIDATION = ("def f(a):\n    return a\n", "\u00e9t\u00e9 \U0001f600", "class Point:\n")


@pytest.fixture
def measured(write, tokenizer):
    train, train_documents = write("t", "def add(a, b):\n    return a + b\n", "class Point: x", "")
    validation, documents = write("v", *VALIDATION)
    pairs = [pair for document in documents for pair in pairwise(document)]
    return train_documents, pairs, measure_baselines(train, validation, tokenizer)


def test_uniform(measured, tokenizer):
    _, pairs, baselines = measured
    size = len("".join(VALIDATION).encode())
    assert baselines.targets == len(pairs)
    want = len(pairs) * math.log2(tokenizer.vocab_size) / size
    assert baselines.bits_per_byte["uniform"] == pytest.approx(want, abs=1e-4)


def test_unigram_and_bigram_by_a_plain_loop(measured, tokenizer):
    train, stream, baselines = measured
    size = len("".join(VALIDATION).encode())
    counts, pairs, contexts = {}, {}, {}
    for document in train:
        for a, b in pairwise(document):
            counts[b] = counts.get(b, 0) + 1
            pairs[a, b] = pairs.get((a, b), 0) + 1
            contexts[a] = contexts.get(a, 0) + 1
    total, vocab_size = sum(counts.values()), tokenizer.vocab_size
    unigram = {b: (counts.get(b, 0) + 1) / (total + vocab_size) for b in range(vocab_size)}
    want = -sum(math.log2(unigram[b]) for _, b in stream) / size
    assert baselines.bits_per_byte["unigram"] == pytest.approx(want, abs=1e-4)
    bigram = min(
        -sum(
            math.log2((pairs.get((a, b), 0) + k * unigram[b]) / (contexts.get(a, 0) + k))
            for a, b in stream
        )
        for k in SMOOTHING
    )
    assert baselines.bits_per_byte["bigram"] == pytest.approx(bigram / size, abs=1e-4)


def test_gzip(measured):
    text = "".join(VALIDATION).encode()
    want = 8 * len(gzip.compress(text, 9)) / len(text)
    assert measured[2].bits_per_byte["gzip -9"] == pytest.approx(want, abs=1e-4)


def test_order(measured):
    assert list(measured[2].bits_per_byte) == ["uniform", "unigram", "bigram", "gzip -9"]


@pytest.mark.parametrize("num_batches", [1, 3, 1000])
def test_the_first_tokens_are_what_an_evaluation_of_as_many_batches_predicts(
    make_dataset, num_batches
):
    dataset = make_dataset({"a": 1.0}, split="validation", source="a", batch_size=3, count=50)
    train = make_dataset({"a": 1.0}, count=50)
    rows = [
        dataset.rows(3 * step, 3 * step + 3)
        for step in range(min(num_batches, dataset.num_batches))
    ]
    targets = np.concatenate([row["targets"][row["weights"] > 0] for row in rows])
    num_bytes = sum(int(row["target_bytes"].sum()) for row in rows)
    max_tokens = num_batches * 3 * dataset.sequence_length + 1
    measured = measure_baselines(
        train.shards["a"], dataset.shards["a"], dataset.tokenizer, max_tokens=max_tokens
    )
    assert measured.targets == targets.size
    want = targets.size * math.log2(dataset.tokenizer.vocab_size) / num_bytes
    assert measured.bits_per_byte["uniform"] == pytest.approx(want, abs=1e-4)


def test_a_token_that_ends_documents_and_starts_them_is_predicted(tokenizer, tmp_path):
    settings = {"vocab_size": tokenizer.vocab_size, "bos_id": 2, "eos_id": 2}
    shards = {}
    for name in ("t", "v"):
        with ShardWriter(tmp_path / name, tokenizer=tokenizer.fingerprint, **settings) as writer:
            for text in VALIDATION:
                writer.write_document(tokenizer.encode(text))
        shards[name] = TokenShards(tmp_path / name)
    measured = measure_baselines(shards["t"], shards["v"], tokenizer)
    assert measured.targets == shards["v"].num_targets == shards["v"].num_tokens - 1
    want = measured.targets * math.log2(tokenizer.vocab_size) / len("".join(VALIDATION).encode())
    assert measured.bits_per_byte["uniform"] == pytest.approx(want, abs=1e-4)


def test_tokens_are_counted_in_portions_of_little_memory(tokenizer, tmp_path, monkeypatch):
    """The process that leads a preparation measures: it holds the tokens and little more."""
    generator, folders = np.random.default_rng(0), {}
    for name, count in (("t", 500_000), ("v", 2000)):
        settings = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id}
        settings["vocab_size"] = tokenizer.vocab_size
        with ShardWriter(tmp_path / name, **settings, tokenizer=tokenizer.fingerprint) as writer:
            for _ in range(count // 1000):
                writer.write_document(generator.integers(3, 60, 998))
        folders[name] = TokenShards(tmp_path / name)
    whole = measure_baselines(folders["t"], folders["v"], tokenizer)
    monkeypatch.setattr(baselines, "PORTION", 9973)
    tracemalloc.start()
    assert measure_baselines(folders["t"], folders["v"], tokenizer) == whole
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * 500_000
