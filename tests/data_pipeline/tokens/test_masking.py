"""Which tokens stand for characters of a span: against decoding prefixes, and by hand."""

import random

import numpy as np
import pytest

from data_pipeline.documents import Document
from data_pipeline.text.places import MASK, cut_spans, masked_spans, with_masked
from data_pipeline.tokens.masking import masked_tokens, token_spans
from maxlm.data.tokenizers import open_tokenizer
from tests.data.tokenizers.kinds import KINDS, all_kinds, byte_level, write_hf

TEXT = "  ember lattice\n\n    return 12345 + value  quartz river " * 3


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    return {name: open_tokenizer(path) for name, path in all_kinds(folder).items()}


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_that_overlap_a_span_are_masked(tokenizers, kind):
    """The oracle decodes ever longer prefixes: what a token adds are its characters."""
    tokenizer, generator = tokenizers[kind], random.Random(0)
    ids = tokenizer.encode(TEXT)
    ends = [len(tokenizer.decode(ids[: number + 1])) for number in range(len(ids))]
    begins = [0, *ends[:-1]]
    dropped = len(TEXT) - len(tokenizer.normalise(TEXT))  # a space in front
    for _ in range(30):
        edges = sorted(generator.sample(range(len(TEXT) + 1), 4))
        spans = [(edges[0], edges[1]), (edges[2], edges[3])]
        found = masked_tokens(tokenizer, TEXT, ids, spans)
        expected = [
            any(begin < b - dropped and end > max(a - dropped, 0) for a, b in spans)
            for begin, end in zip(begins, ends, strict=True)
        ]
        assert found.tolist() == expected
    everything = masked_tokens(tokenizer, TEXT, ids, [(0, len(TEXT))])
    assert everything[np.asarray(ends) > 0].all()


def test_bytes_of_a_character_go_together_and_composed_ones_belong_to_the_span(tmp_path):
    tree = byte_level() | {"normalizer": {"type": "NFC"}}
    tokenizer = open_tokenizer(write_hf(tmp_path / "nfc", tree))
    text = "ember e\u0301\U0001f600 x"
    ids = tokenizer.encode(text)
    bytes_of = [tokenizer.decode([token]) for token in ids]
    place = text.index("\U0001f600")
    found = masked_tokens(tokenizer, text, ids, [(place, place + 1)])
    alone = tokenizer.encode("\U0001f600")
    assert [token for token, bit in zip(ids, found, strict=True) if bit] == alone
    assert len(alone) > 1, "several bytes, each a token"
    accent = text.index("\u0301")
    composed = tokenizer.encode("\u00e9")
    for span in ((accent, accent + 1), (accent - 1, accent)):
        found = masked_tokens(tokenizer, text, ids, [span])
        assert [token for token, bit in zip(ids, found, strict=True) if bit] == composed, bytes_of


def test_runs_of_bits():
    assert token_spans(np.array([1, 1, 0, 1, 0, 0, 1], bool)).tolist() == [[0, 2], [3, 4], [6, 7]]
    assert token_spans(np.zeros(0, bool)).shape == (0, 2)


def test_places_are_joined_cut_and_come_back():
    document = with_masked(Document("a", "b", "x" * 40, {"url": "u"}), [(20, 30), (2, 9)])
    assert document.meta == {"url": "u", MASK: "2-9,20-30"}
    again = with_masked(document, [(5, 12), (30, 31), (35, 35)])
    assert masked_spans(again.meta) == [(2, 12), (20, 31)]
    assert cut_spans(masked_spans(again.meta), 10, 25) == [(0, 2), (10, 15)]
    assert cut_spans(masked_spans(again.meta), 12, 20) == []
    assert MASK not in with_masked(Document("a", "b", "x", {}), []).meta
