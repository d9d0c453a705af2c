import gzip
import math
from itertools import pairwise

import pytest

from data_pipeline.documents import Document
from data_pipeline.measure_baselines import SMOOTHING, measure_baselines
from maxlm.data.shards import ShardWriter, TokenShards

BOS, EOS = 1, 2


def write(folder, documents):
    with ShardWriter(folder, vocab_size=8, bos_id=BOS, eos_id=EOS, tokenizer="0" * 64) as writer:
        for document in documents:
            writer.write_document(document)
    return TokenShards(folder)


@pytest.fixture
def measured(tmp_path):
    train = [[3, 4, 3, 4, 5], [3, 4], []]
    validation = [[3, 4, 6], [5]]
    texts = [Document("a", "some text"), Document("b", "\u00e9")]
    baselines = measure_baselines(write(tmp_path / "t", train), write(tmp_path / "v", validation), texts)
    return train, validation, len("some text\u00e9".encode()), baselines


def test_uniform(measured):
    _, _, size, baselines = measured
    assert baselines["uniform"] == pytest.approx(6 * 3 / size, abs=1e-4)


def test_unigram_and_bigram_by_a_plain_loop(measured):
    train, validation, size, baselines = measured
    counts, pairs, contexts = {}, {}, {}
    for document in train:
        tokens = [BOS, *document, EOS]
        for a, b in pairwise(tokens):
            counts[b] = counts.get(b, 0) + 1
            pairs[a, b] = pairs.get((a, b), 0) + 1
            contexts[a] = contexts.get(a, 0) + 1
    unigram = {b: (counts.get(b, 0) + 1) / (sum(counts.values()) + 8) for b in range(8)}
    stream = [(a, b) for d in validation for a, b in zip([BOS, *d], [*d, EOS], strict=True)]
    assert baselines["unigram"] == pytest.approx(-sum(math.log2(unigram[b]) for _, b in stream) / size, abs=1e-4)
    bigram = min(
        -sum(math.log2((pairs.get((a, b), 0) + k * unigram[b]) / (contexts.get(a, 0) + k)) for a, b in stream)
        for k in SMOOTHING
    )
    assert baselines["bigram"] == pytest.approx(bigram / size, abs=1e-4)


def test_gzip(measured):
    _, _, size, baselines = measured
    assert baselines["gzip -9"] == pytest.approx(8 * len(gzip.compress("some text\u00e9".encode(), 9)) / size, abs=1e-4)


def test_order(measured):
    assert list(measured[3]) == ["uniform", "unigram", "bigram", "gzip -9"]
