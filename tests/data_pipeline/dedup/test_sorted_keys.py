"""Equal keys over many files and parts, against a dictionary."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from data_pipeline.dedup.sorted_keys import (
    KeyFile,
    Part,
    find_copies,
    row_names,
    rows_of,
    shards_of,
    sorted_table,
)

# Few different keys, at the borders of the parts among them.
KEYS = st.sampled_from([0, 1, 2**63 - 1, 2**63, 2**64 // 3, 2**64 // 3 + 1, 2**64 - 1])
SHARDS = st.lists(st.lists(st.tuples(KEYS, st.sampled_from([0, 7]))), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(shards=SHARDS, parts=st.integers(1, 4), wide=st.booleans(), seed=st.integers(0, 99))
def test_copies_are_those_of_a_dictionary(shards, parts, wide, seed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    files = []
    for shard, keys in enumerate(shards):
        high, low = np.array(keys, np.uint64).reshape(-1, 2).T
        # Rows need not be all there: those without a key are left out.
        table = sorted_table("t", np.arange(len(keys)) * 2, high, low if wide else None)
        save_file(table, folder / str(shard))
        files.append(KeyFile(shard, folder / str(shard)))
    np.random.default_rng(seed).shuffle(files)
    first, copies = {}, {}
    for file in files:
        for row, key in enumerate(shards[file.shard]):
            name = (file.shard, 2 * row)
            held = first.setdefault(key if wide else key[0], name)
            if held != name:
                copies[name] = held
    found = {}
    for number in range(parts):
        rows, firsts = find_copies(files, "t", Part(number, parts))
        assert (rows[1:] > rows[:-1]).all()
        for row, held in zip(rows, firsts, strict=True):
            assert named(row) not in found
            found[named(row)] = named(held)
    assert found == copies


def named(row):
    row = np.array([row])
    return int(shards_of(row)[0]), int(rows_of(row)[0])


@pytest.mark.parametrize("count", [1, 3, 7, 64])
def test_parts_cover_the_keys_once(count):
    parts = [Part(number, count) for number in range(count)]
    assert parts[0].first == 0
    assert parts[-1].last == 2**64 - 1
    assert all(left.last + 1 == right.first for left, right in pairwise(parts))


def test_names_of_rows_sort_by_shard_and_row():
    names = np.concatenate([row_names(shard, np.array([0, 2**32 - 1])) for shard in (0, 1, 2**31)])
    assert (np.diff(names.astype(object)) > 0).all()
    assert shards_of(names).tolist() == [0, 0, 1, 1, 2**31, 2**31]
    assert rows_of(names).tolist() == [0, 2**32 - 1] * 3
