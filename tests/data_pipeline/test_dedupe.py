import itertools
import random
import time

import numpy as np
import pytest

from data_pipeline import dedupe
from data_pipeline.reading import Document


def documents(*texts):
    return [Document(f"{number:03}", text) for number, text in enumerate(texts)]


def deduplicate(texts, progress=lambda _: None):
    """Remove duplicates from one source."""
    return dedupe.deduplicate({"source": texts}, {"source": "drop"}, progress)["source"]


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
    texts = [
        "a",
        "b",
        "a b",
        "b a",
        "a b c d",
        "x" * 1_000_000,
        "x" * 999_999,
        "\u65e5\u672c" * 1000,
    ]
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


def three_sources(*rules):
    """Return what is left of three sources that share an exact and a near copy, under a rule for
    each.
    """
    shared, near = words(0), with_changes(words(0), 2)
    sources = {
        "a": documents(" ".join(shared), " ".join(words(1))),
        "b": documents("\n".join(shared), " ".join(near), " ".join(words(2))),
        "c": documents(" ".join(near), " ".join(words(2)), " ".join(words(3))),
    }
    left = dedupe.deduplicate(sources, dict(zip("abc", rules, strict=True)))
    counts = {name: (kept.exact_duplicates, kept.near_duplicates) for name, kept in left.items()}
    return {
        name: [document.name for document in kept.documents] for name, kept in left.items()
    }, counts


def test_copies_in_other_sources_are_dropped():
    left, counts = three_sources("drop", "drop", "drop")
    assert left == {"a": ["000", "001"], "b": ["002"], "c": ["002"]}
    assert counts == {"a": (0, 0), "b": (1, 1), "c": (2, 0)}  # in c an exact copy of the near copy


def test_a_source_may_keep_copies_and_is_compared_with_all_the_same():
    left, counts = three_sources("keep", "drop_exact", "drop")
    assert left == {"a": ["000", "001"], "b": ["001", "002"], "c": ["002"]}
    assert counts == {"a": (0, 0), "b": (1, 0), "c": (2, 0)}
    left, counts = three_sources("keep", "keep", "keep")
    assert left == {"a": ["000", "001"], "b": ["000", "001", "002"], "c": ["000", "001", "002"]}
    assert set(counts.values()) == {(0, 0)}


def test_a_near_copy_that_was_kept_is_compared_with_later_sources():
    # Neighbours are alike, the ends are not.
    chain = [with_changes(words(0), changes) for changes in (0, 5, 10)]
    assert jaccard(chain[0], chain[2]) < dedupe.SIMILARITY < min(map(jaccard, chain, chain[1:]))
    sources = {name: documents(" ".join(text)) for name, text in zip("abc", chain, strict=True)}
    left = dedupe.deduplicate(sources, {"a": "drop", "b": "keep", "c": "drop"})
    assert left["c"].near_duplicates == 1


def test_no_pair_of_many_that_is_alike_is_left():
    """All pairs by their exact similarity, against what the bands propose."""
    generator = random.Random(1)
    texts = [
        with_changes(words(number // 4), generator.randrange(12), number) for number in range(120)
    ]
    left = dedupe.deduplicate(
        {
            "even": documents(*map(" ".join, texts[::2])),
            "odd": documents(*map(" ".join, texts[1::2])),
        },
        {"even": "drop", "odd": "drop"},
    )
    kept = [document.text.split() for one in left.values() for document in one.documents]
    assert 30 < len(kept) < 120
    assert (
        max(jaccard(one, two) for one, two in itertools.combinations(kept, 2)) < dedupe.SIMILARITY
    )
