from itertools import pairwise
from types import SimpleNamespace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from maxlm.data.examples.next_token import NextTokenExamples
from maxlm.data.examples.packing import NO_TOKEN

BOS, EOS = 1, 2
BYTES = np.array([0, 0, 0, 1, 2, 3, 4, 5], np.int32)


def packed(*rows, depth=0, bos_id=BOS):
    tokenizer = SimpleNamespace(
        bos_id=bos_id, eos_id=EOS, bytes_of=lambda tokens, before: BYTES[tokens]
    )
    examples = NextTokenExamples(None, tokenizer, seed=0, depth=depth)
    batch = examples(np.array(rows, np.int32), range(len(rows)))
    assert {name: values.dtype for name, values in batch.items()} == examples.fields
    assert len(rows[0]) - batch["tokens"].shape[1] == examples.tokens_after
    return batch


def test_a_window_by_hand():
    batch = packed([5, 6, EOS, BOS, 7, EOS, BOS, BOS, 3])
    assert batch["tokens"].tolist() == [[5, 6, EOS, BOS, 7, EOS, BOS, BOS]]
    assert batch["targets"].tolist() == [[6, EOS, BOS, 7, EOS, BOS, BOS, 3]]
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 2, 2, 2, 3, 4]]
    assert batch["positions"].tolist() == [[0, 1, 2, 0, 1, 2, 0, 0]]
    assert batch["weights"].tolist() == [[1, 1, 0, 1, 1, 0, 0, 1]]
    assert batch["target_bytes"].tolist() == [[4, 0, 0, 5, 0, 0, 0, 1]]


def test_window_that_starts_with_a_document_and_one_past_the_end():
    batch = packed([BOS, 4, EOS, NO_TOKEN, NO_TOKEN], [NO_TOKEN] * 5)
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 0], [0, 0, 0, 0]]
    assert batch["weights"].tolist() == [[1, 1, 0, 0], [0, 0, 0, 0]]
    assert batch["target_bytes"].tolist() == [[2, 0, 0, 0], [0, 0, 0, 0]]
    assert batch["tokens"].min() >= 0
    assert batch["targets"].min() >= 0


@settings(max_examples=200, deadline=None)
@given(
    rows=st.integers(1, 20).flatmap(
        lambda n: st.lists(
            st.lists(st.integers(1, 7), min_size=n + 1, max_size=n + 1), min_size=1, max_size=3
        )
    )
)
def test_fields_equal_a_plain_loop(rows):
    batch = packed(*rows)
    for number, row in enumerate(rows):
        segment, position = 1, 0
        for column, (token, target) in enumerate(pairwise(row)):
            if column and token == BOS:
                segment, position = segment + 1, 0
            expected = {
                "tokens": token,
                "targets": target,
                "segment_ids": segment,
                "positions": position,
                "weights": float(target != BOS),
                "target_bytes": BYTES[target] if target != BOS else 0,
            }
            assert {name: values[number, column] for name, values in batch.items()} == expected
            position += 1
    assert {name: values.dtype for name, values in batch.items()} == NextTokenExamples.fields
    assert {name for name, dtype in NextTokenExamples.fields.items() if dtype == np.float32} == {
        "weights"
    }


def test_one_token_that_ends_documents_and_starts_them():
    """It is predicted as the end of the one, and seen as the beginning of the other."""
    both = SimpleNamespace(bos_id=EOS, eos_id=EOS, bytes_of=lambda tokens, before: BYTES[tokens])
    window = np.array([[5, 6, EOS, 7, EOS, EOS, 3]], np.int32)
    batch = NextTokenExamples(None, both, seed=0)(window, range(1))
    assert batch["targets"].tolist() == [[6, EOS, 7, EOS, EOS, 3]]
    assert batch["segment_ids"].tolist() == [[1, 1, 2, 2, 3, 4]]
    assert batch["positions"].tolist() == [[0, 1, 0, 1, 0, 0]]
    assert batch["weights"].tolist() == [[1, 1, 1, 1, 1, 1]]
    assert batch["target_bytes"].tolist() == [[4, 0, 5, 0, 0, 1]]


def test_bytes_are_counted_by_what_stands_before():
    """A space that the encoder puts in front of a document is none of its bytes."""
    first = SimpleNamespace(
        bos_id=BOS, eos_id=EOS, bytes_of=lambda tokens, before: BYTES[tokens] - (before == BOS)
    )
    window = np.array([[6, 6, EOS, BOS, 6, 6]], np.int32)
    batch = NextTokenExamples(None, first, seed=0)(window, range(1))
    assert batch["target_bytes"].tolist() == [[4, 0, 0, 3, 4]]


def test_further_tokens_by_hand():
    batch = packed([5, 6, EOS, BOS, 7, 3, EOS, BOS, 4, NO_TOKEN], depth=2)
    assert batch["tokens"].tolist() == [[5, 6, EOS, BOS, 7, 3, EOS]]
    assert batch["targets"].tolist() == [[6, EOS, BOS, 7, 3, EOS, BOS]]
    assert batch["targets_1"].tolist() == [[EOS, BOS, 7, 3, EOS, BOS, 4]]
    assert batch["targets_2"][:, :-1].tolist() == [[BOS, 7, 3, EOS, BOS, 4]]
    assert batch["weights"].tolist() == [[1, 1, 0, 1, 1, 1, 0]]
    assert batch["weights_1"].tolist() == [[1, 0, 0, 1, 1, 0, 0]]
    assert batch["weights_2"].tolist() == [[0, 0, 0, 1, 0, 0, 0]]


@settings(max_examples=100, deadline=None)
@given(
    row=st.lists(st.integers(1, 4), min_size=5, max_size=20),
    depth=st.integers(1, 3),
    separated=st.booleans(),
    end=st.integers(0, 3),
)
def test_further_tokens_equal_a_plain_loop(row, depth, separated, end):
    """Also where one token stands between documents, and past the end of the text."""
    bos_id = EOS if separated else BOS
    row[len(row) - end :] = [NO_TOKEN] * end
    batch = packed(row, depth=depth, bos_id=bos_id)
    for column in range(batch["tokens"].shape[1]):
        for k in range(1, depth + 1):
            on_the_way, target = row[column + 1 : column + 1 + k], row[column + 1 + k]
            same = target != NO_TOKEN and bos_id not in on_the_way
            same = same and (separated or target != bos_id)
            assert batch[f"weights_{k}"][0, column] == same
            assert target in (batch[f"targets_{k}"][0, column], NO_TOKEN)
