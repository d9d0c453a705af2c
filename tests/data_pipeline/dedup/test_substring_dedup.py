"""Repeated passages against brute force and a suffix array, across documents and shards."""

import re

import numpy as np
import pydivsufsort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.dedup.passages import windows_of
from data_pipeline.dedup.words import hash_words
from data_pipeline.steps.dedup.substring_dedup import SubstringDedup
from data_pipeline.text.places import MASK
from maxlm.config.pipeline.dedup.substring_dedup import SubstringDedupConfig

TOKEN = re.compile(r"\w+|[^\w\s]")


def brute_force(texts, length, *, keep="first"):
    """Return each text's characters to go, by a dictionary of all windows."""
    windows = {}
    tokens = [list(TOKEN.finditer(text)) for text in texts]
    for number, mine in enumerate(tokens):
        for start in range(len(mine) - length + 1):
            key = tuple(token.group() for token in mine[start : start + length])
            windows.setdefault(key, []).append((number, start))
    marked = [set() for _ in texts]
    for places in windows.values():
        for number, start in places[keep == "first" :] if len(places) > 1 else ():
            marked[number] |= set(range(start, start + length))
    return [characters_of(mine, marks) for mine, marks in zip(tokens, marked, strict=True)]


def characters_of(tokens, marks):
    """Return the characters of marked tokens, and of the space between two of them."""
    gone = set()
    for place in marks:
        end = tokens[place + 1].start() if place + 1 in marks else tokens[place].end()
        gone |= set(range(tokens[place].start(), end))
    return gone


def left_of(texts, gone):
    left = (
        "".join(c for i, c in enumerate(t) if i not in g) for t, g in zip(texts, gone, strict=True)
    )
    return [text for text, g in zip(left, gone, strict=True) if text.strip() or not g]


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    texts=st.lists(
        st.lists(st.sampled_from(["a", "B", "b", " ", "\n", ".", "x1 "]), max_size=40).map("".join),
        max_size=6,
    ),
    length=st.integers(4, 9),
    keep=st.sampled_from(["first", "none"]),
    shards=st.integers(1, 3),
)
def test_passages_are_those_of_brute_force(texts, length, keep, shards, run_step, in_shards):
    step = SubstringDedup(SubstringDedupConfig(min_tokens=length, keep=keep))
    outcome = run_step(step, in_shards(texts, shards))
    expected = left_of(texts, brute_force(texts, length, keep=keep))
    assert [document.text for document in outcome.kept] == expected


def planted(generator, *, num_texts=40, tokens=1000, repeats=250):
    """Return texts of words that occur once, but for passages copied between them: of 50 to 120
    tokens, and as many of 49.
    """
    texts = [[f"t{i}x{j}" for j in range(tokens)] for i in range(num_texts)]
    for number in range(2 * repeats):
        length = 49 if number % 2 else int(generator.integers(50, 121))
        source, target = generator.integers(0, num_texts, 2)
        begin, end = generator.integers(0, tokens - length, 2)
        texts[target][end : end + length] = list(texts[source][begin : begin + length])
    return [" ".join(text) for text in texts]


@pytest.mark.parametrize(("shards", "memory_bytes"), [(1, 2**30), (7, 2**30), (20, 2**14)])
def test_planted_repeats_are_found_across_shards_and_nothing_else(
    run_step, in_shards, shards, memory_bytes
):
    texts = planted(np.random.default_rng(0))
    gone = brute_force(texts, 50)
    step = SubstringDedup(SubstringDedupConfig(action="mask"))
    outcome = run_step(step, in_shards(texts, shards), memory_bytes=memory_bytes)
    assert [document.text for document in outcome.kept] == texts
    masked = []
    for document in outcome.kept:
        spans = [span.split("-") for span in str(document.meta.get(MASK, "")).split(",") if span]
        masked.append({c for begin, end in spans for c in range(int(begin), int(end))})
    assert masked == gone
    assert sum(map(bool, gone)) > 30
    assert (outcome.rounds["repeats"] > 1) == (memory_bytes == 2**14)
    if shards == 20:
        # What is written down: about one number for 13 tokens, and the windows that may repeat.
        assert outcome.report["minimizers"] < 40 * 1000 / 10


def test_the_suffix_array_finds_the_same(run_step, in_shards):
    """Lee et al.'s way, in one block: neighbours in the suffix array with a long common prefix."""
    generator = np.random.default_rng(3)
    tokens = generator.integers(0, 3, 30_000)
    text = " ".join(map(str, tokens))
    suffixes = pydivsufsort.divsufsort(tokens.astype(np.uint32))
    common = pydivsufsort.kasai(tokens.astype(np.uint32), suffixes)
    starts = set()
    for rank in np.flatnonzero(common >= 12):
        starts |= {int(suffixes[rank]), int(suffixes[rank + 1])}
    gone = {place for start in starts for place in range(start, start + 12)}
    step = SubstringDedup(SubstringDedupConfig(min_tokens=12, keep="none"))
    (document,) = run_step(step, in_shards([text])).kept
    assert document.text.split() == [str(t) for i, t in enumerate(tokens) if i not in gone]
    assert 0 < len(gone) < 30_000


def test_parts_of_the_key_space_hold_equally_many():
    """A part's memory is what was planned for; minimizers as they are would all be in the first."""
    numbers = np.random.default_rng(0).integers(0, 10**9, 50_000)
    sample = windows_of(hash_words([" ".join(map(str, numbers))], exactly=True), 50).sample
    counts, _ = np.histogram(sample.astype(np.float64), bins=8, range=(0, 2.0**64))
    assert sample.size > 2_000
    assert counts.max() < 1.2 * sample.size / 8


def test_no_passage_crosses_documents(run_step, in_shards):
    whole = [f"w{i}" for i in range(60)]
    texts = [" ".join(whole), " ".join(whole[:30]), " ".join(whole[30:])]
    outcome = run_step(SubstringDedup(SubstringDedupConfig()), in_shards(texts))
    assert [document.text for document in outcome.kept] == texts


def test_a_protected_source_loses_nothing_and_comes_first(run_step, in_shards):
    passage = " ".join(f"w{i}" for i in range(55))
    web = in_shards([f"before {passage} after"], source="web")
    books = in_shards([passage, f"{passage} {passage}"], source="books")
    step = SubstringDedup(SubstringDedupConfig())
    outcome = run_step(step, [*web, *books], protected=["books"])
    assert [one.text for one in outcome.kept] == ["before  after", passage, f"{passage} {passage}"]


def test_a_document_of_repeats_alone_goes(run_step, in_shards):
    passage = " ".join(f"w{i}" for i in range(55))
    outcome = run_step(
        SubstringDedup(SubstringDedupConfig()), in_shards([passage, f" {passage}\n"])
    )
    ((document, reason, _),) = outcome.dropped
    assert (document.id, reason) == ("web/1", "substring_dedup")
