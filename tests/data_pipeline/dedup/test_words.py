"""Words and their runs, against regular expressions and plain sets."""

import re
import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.dedup.words import BATCH_CHARACTERS, batches, hash_words, word_grams

TEXTS = st.text(
    st.sampled_from(
        "aB1 \n.,_\u00e9\u0130\u0301\u4f60\u597d\u3042\u0e01\ud800\U0001f600\U00020000"
    ),
    max_size=40,
)


def plain_words(text):
    """Return (start, end, word) by a walk over the characters."""
    found = []
    for place, character in enumerate(text):
        if unicodedata.category(character)[0] not in "LNM":
            continue
        alone = bool(
            re.match("[\u0e00-\u109f\u3005-\u30ff\u3400-\u9fff\U00020000-\U0003fffd]", character)
        )
        joins = found and found[-1][1] == place and not alone and not found[-1][3]
        lower = character.lower() if len(character.lower()) == 1 else character
        if joins:
            start, _, word, _ = found.pop()
            found.append((start, place + 1, word + lower, False))
        else:
            found.append((place, place + 1, lower, alone))
    return [(start, end, word) for start, end, word, _ in found]


@settings(max_examples=200, deadline=None)
@given(st.lists(TEXTS, max_size=6))
def test_words_are_those_of_a_walk_over_the_characters(texts):
    words = hash_words(texts)
    named = {}
    for text, begin, end in zip(texts, words.offsets, words.offsets[1:], strict=False):
        plain = plain_words(text)
        assert words.starts[begin:end].tolist() == [start for start, _, _ in plain]
        assert words.ends[begin:end].tolist() == [end for _, end, _ in plain]
        for (_, _, word), value in zip(plain, words.hashes[begin:end].tolist(), strict=True):
            assert named.setdefault(word, value) == value
    assert len(set(named.values())) == len(named)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_grams_are_equal_when_their_words_are(size):
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(list("abc"), length)) for length in range(40)]
    grams = word_grams(hash_words(texts), size)
    named, count = {}, 0
    for number, text in enumerate(texts):
        words = text.split()
        runs = [tuple(words[i : i + size]) for i in range(max(len(words) - size + 1, bool(words)))]
        values = grams.hashes[grams.offsets[number] : grams.offsets[number + 1]].tolist()
        for run, value in zip(runs, values, strict=True):
            assert named.setdefault(run, value) == value
            count += 1
    assert len(set(named.values())) == len(named) < count


def test_a_text_has_the_same_words_alone_and_among_others():
    """Long texts are hashed in pieces: the borders follow from the text, not from its neighbours."""
    generator = np.random.default_rng(1)
    long = " ".join(generator.choice(["alpha", "be", "c" * 50], 30_000))
    unbroken = "x" * 150_000 + " tail"
    together = hash_words(["short one", long, "", unbroken, long[1:]])
    for number, text in enumerate(["short one", long, "", unbroken, long[1:]]):
        alone = hash_words([text])
        mine = slice(together.offsets[number], together.offsets[number + 1])
        for name in ("hashes", "starts", "ends"):
            np.testing.assert_array_equal(getattr(together, name)[mine], getattr(alone, name))
    assert np.unique(hash_words([long]).hashes).size == 3


def test_batches_hold_about_their_size():
    texts = ["a" * 1000] * 1000 + ["b" * (BATCH_CHARACTERS * 2), "c"]
    found = list(batches(iter(texts), len))
    assert [text for batch in found for text in batch] == texts
    sizes = [sum(map(len, batch)) for batch in found]
    assert all(BATCH_CHARACTERS - 1000 < size <= BATCH_CHARACTERS for size in sizes[:3])
    assert [len(batch) for batch in found[-2:]] == [1, 1]


def test_every_code_point_is_read():
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    assert hash_words([everything]).offsets[-1] > 10_000
