"""Hashed words and pairs against hashes in Python's integers, word by word."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.classifier.features import grams

MASK = 2**64 - 1
IDEOGRAPH = re.compile(
    "[\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
)


def mixed(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def words_of(text: str) -> list[str]:
    words, current = [], ""
    for sign in text.lower():
        if IDEOGRAPH.match(sign):
            words += [current, sign]
            current = ""
        elif sign.isalnum() or sign == "\u0301":
            current += sign
        else:
            words.append(current)
            current = ""
    return [word for word in [*words, current] if word]


def expected(text: str, bits: int) -> list[int]:
    base = 0x9E3779B97F4A7C15
    hashes = [
        mixed(sum(ord(sign) * pow(base, place, 2**64) for place, sign in enumerate(word)) & MASK)
        for word in words_of(text)
    ]
    pairs = [
        mixed((left * 0xC2B2AE3D27D4EB4F + right) & MASK)
        for left, right in itertools.pairwise(hashes)
    ]
    return [value >> (64 - bits) for value in hashes + pairs]


@settings(deadline=None)
@given(st.text("aB9 ,.\n\u00e9\u0301\u4e2d\u3042\u0e01\U0001f600", max_size=40))
def test_against_integers(text: str) -> None:
    found = grams(text, 20, 100)
    assert found.dtype == np.uint32
    assert found.tolist() == expected(text, 20)


@pytest.mark.parametrize("text", ["", " \n.,", "\U0001f600"])
def test_nothing_in_a_text_without_words(text: str) -> None:
    assert grams(text, 20, 100).size == 0


def test_how_a_text_is_stored_does_not_matter() -> None:
    ascii_only, wide = grams("The cat sat", 20, 100), grams("The cat sat \U0001f600", 20, 100)
    assert ascii_only.tolist() == wide.tolist()
    assert grams("one two" + " three" * 10, 20, 7).tolist() == grams("one two", 20, 100).tolist()
    long = "word " * 60_000  # beyond the first table of powers
    assert set(grams(long, 20, len(long)).tolist()) == set(grams("word word", 20, 100).tolist())


def test_buckets_are_spread_evenly() -> None:
    text = " ".join(f"w{number}" for number in range(100_000))
    words = grams(text, 8, len(text))[:100_000]
    counts = np.bincount(words, minlength=256)
    chi_squared = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    assert 255 - 5 * np.sqrt(2 * 255) < chi_squared < 255 + 5 * np.sqrt(2 * 255)
