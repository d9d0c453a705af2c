import random
import time

import numpy as np
import pytest

from data_pipeline import dedupe
from data_pipeline.dedupe import deduplicate
from data_pipeline.documents import Document


def documents(*texts):
    return [Document(f"{number:03}", text) for number, text in enumerate(texts)]


def words(seed, count=400):
    generator = random.Random(seed)
    return [f"w{generator.randrange(2000)}" for _ in range(count)]


def with_changes(text, changes, seed=0):
    text = list(text)
    for place in random.Random(seed).sample(range(len(text)), changes):
        text[place] = f"changed{place}"
    return text


def jaccard(one, two):
    one, two = ({tuple(text[i : i + 5]) for i in range(len(text) - 4)} for text in (one, two))
    return len(one & two) / len(one | two)


def test_copies_are_dropped_whatever_their_white_space():
    result = deduplicate(documents("a b c", "x y", "a  b\n c ", "a b", "x y"))
    assert [document.name for document in result.documents] == ["000", "001", "003"]
    assert (result.exact_duplicates, result.near_duplicates) == (2, 0)


@pytest.mark.parametrize("changes", [1, 2, 4, 6, 8, 12, 20, 60])
def test_near_copies_are_dropped_exactly_from_the_threshold_on(changes):
    for seed in range(10):
        original = words(seed)
        other = with_changes(original, changes, seed)
        similarity = jaccard(original, other)
        if abs(similarity - dedupe.SIMILARITY) > 0.01:
            result = deduplicate(documents(" ".join(original), " ".join(other)))
            assert result.near_duplicates == (similarity > dedupe.SIMILARITY)


def test_the_first_of_a_group_is_kept():
    original = words(0)
    group = [" ".join(with_changes(original, 2, seed)) for seed in range(20)]
    result = deduplicate(documents(" ".join(words(1)), *group))
    assert [document.name for document in result.documents] == ["000", "001"]
    assert result.near_duplicates == 19


def test_different_documents_stay():
    texts = [" ".join(words(seed)) for seed in range(300)]
    assert len(deduplicate(documents(*texts)).documents) == 300


def test_short_documents_and_one_endless_word():
    texts = ["a", "b", "a b", "b a", "a b c d", "x" * 1_000_000, "x" * 999_999, "\u65e5\u672c" * 1000]
    assert len(deduplicate(documents(*texts)).documents) == len(texts)


def test_same_boilerplate_everywhere_takes_linear_time():
    boilerplate = words(0, 200)
    texts = [" ".join(boilerplate + words(seed, 120)) for seed in range(1, 1201)]
    began = time.perf_counter()
    first = deduplicate(documents(*texts[:300]))
    middle = time.perf_counter()
    every = deduplicate(documents(*texts))
    assert len(first.documents) == 300
    assert len(every.documents) == 1200
    assert time.perf_counter() - middle < 12 * (middle - began) + 1


def test_signature_estimates_similarity():
    original, other = words(0, 2000), with_changes(words(0, 2000), 100)
    sets = [dedupe._shingles([word.encode() for word in text]) for text in (original, other)]
    estimate = np.mean(dedupe._signature(sets[0]) == dedupe._signature(sets[1]))
    assert estimate == pytest.approx(jaccard(original, other), abs=0.2)
    assert dedupe._similarity(*sets) == pytest.approx(
        jaccard(original, other) if jaccard(original, other) > 0 else 0, abs=0.01
    )


def test_progress_is_told_all_characters():
    told = []
    deduplicate(documents("abc", "abc", "d"), told.append)
    assert told == [3, 3, 1]
