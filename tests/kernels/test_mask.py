"""Masks as the kernels read them, and the tables of the blocks to visit, against who sees whom pair
by pair.
"""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from maxlm.kernels.mask import (
    Mask,
    Visits,
    block_ranges,
    causal,
    in_chunks,
    least_words,
    windowed,
    with_least,
    words,
)
from tests.kernels.oracle import MASKS, place_mask, seen_fp64

MASK_DRAWS = {
    "seed": st.integers(0, 2**20),
    "lengths": st.sampled_from([(64, 64), (80, 80), (37, 37), (33, 80), (96, 50), (1, 40)]),
    "starts": st.sampled_from([(0, 0), (64, 0), (0, 64), (32, 48)]),
    "blocks": st.sampled_from([(32, 16), (16, 32)]),
}


def part_of(mask, starts, lengths):
    queries, keys = (
        slice(start, start + length) for start, length in zip(starts, lengths, strict=True)
    )
    return Mask.of(mask.queries[:, :, queries], mask.keys[:, :, keys])


def blocks_of(mask, q_block, kv_block):
    """Return bool (B, rows, columns) twice: in which blocks some pair sees each other, and in which
    every pair.
    """
    seen = seen_fp64(mask)
    filled = np.pad(seen, ((0, 0), (0, -seen.shape[1] % q_block), (0, -seen.shape[2] % kv_block)))
    blocks = filled.reshape(len(seen), filled.shape[1] // q_block, q_block, -1, kv_block)
    return blocks.any((2, 4)), blocks.all((2, 4))


def visited(table, count):
    """Return bool (B, rows, columns) twice: the blocks visited with a mask, and without."""
    masked, full = np.zeros((2, *table.shape[:2], count), bool)
    for batch, row in np.ndindex(table.shape[:2]):
        visits = Visits.of(table, batch, row)
        full[batch, row, int(visits.full_first) : int(visits.full_end)] = True
        others = [int(visits.masked_block(number)) for number in range(int(visits.masked))]
        assert len({*others}) == len(others)
        masked[batch, row, others] = True
    return masked, full


def check_tables(mask, blocks):
    """Every pair that sees each other is visited, once, and without a mask only where all do.

    Return what is full.
    """
    some, every = blocks_of(mask, *blocks)
    tables = jax.jit(block_ranges, static_argnums=(1, 2))(mask, *blocks)
    for_queries = visited(np.asarray(tables.of_queries), some.shape[2])
    for_keys = [x.mT for x in visited(np.asarray(tables.of_keys), some.shape[1])]
    for masked, full in (for_queries, for_keys):
        assert not np.any(some & ~(masked | full))
        assert not np.any(masked & full)
        assert not np.any(full & ~every)
    return for_queries[1], for_keys[1], every


@settings(max_examples=20, deadline=None)
@given(**MASK_DRAWS, kind=st.sampled_from(list(MASKS)))
def test_tables_hold_every_pair_that_sees_each_other(seed, lengths, starts, blocks, kind):
    positions = max(start + length for start, length in zip(starts, lengths, strict=True))
    mask = MASKS[kind](np.random.default_rng(seed), (2, positions))
    check_tables(part_of(mask, starts, lengths), blocks)


@settings(max_examples=20, deadline=None)
@given(
    **MASK_DRAWS,
    documents=st.sampled_from([1, 3, 8]),
    causal=st.booleans(),
    window=st.sampled_from([None, 1, 9, 40]),
)
def test_blocks_that_need_no_mask_are_known(
    seed, lengths, starts, blocks, documents, causal, window
):
    # Where a row's documents follow each other.
    positions = max(start + length for start, length in zip(starts, lengths, strict=True))
    segments = np.sort(
        np.random.default_rng(seed).integers(1, documents + 1, (2, positions)), axis=1
    )
    segments[1, -positions // 8 :] = 0
    places = np.arange(positions)
    mask = place_mask(segments, segments, places, places, causal=causal, window=window)
    of_queries, of_keys, every = check_tables(part_of(mask, starts, lengths), blocks)
    np.testing.assert_array_equal(of_queries, every)
    np.testing.assert_array_equal(of_keys, every)


def test_two_comparisons_of_words_tell_who_sees_whom():
    least, greatest = np.iinfo(np.int32).min, np.iinfo(np.int32).max
    numbers = [least, least + 1, -7, -1, 0, 1, 6, greatest - 1, greatest]
    rank, start, end = (x.reshape(1, -1) for x in np.meshgrid(numbers, numbers, numbers))
    rng = np.random.default_rng(0)
    segments = [rng.choice([-1, 0, 1, 2, greatest], rank.shape) for _ in range(2)]
    mask = Mask(*(jnp.asarray(x, jnp.int32) for x in (*segments, rank, start, end)))
    queries, keys = (np.asarray(x) for x in words(mask, 32, 64))
    assert (queries.shape, keys.shape) == ((1, 2, 736), (1, 3, 768))
    (q_segment, q_rank), (kv_segment, kv_from, kv_count) = (
        queries[0, :, :, None],
        keys[0, :, None, :],
    )
    got = (q_segment == kv_segment) & (q_rank - kv_from < kv_count)
    np.testing.assert_array_equal(got[:729, :729], seen_fp64(mask)[0])
    assert not got[729:].any()
    assert not got[:, 729:].any()


def packed(rng, length, *, filling, unseen):
    """Return int32 segments (2, length): documents in order, filling behind and between them, some
    keys of none.
    """
    segments = np.sort(rng.integers(1, rng.integers(2, 9), (2, length)), axis=1)
    if filling:
        segments[0, length - length // 5 :] = 0
        segments[1, length // 3 :] += 1
        segments[1, length // 3 : length // 3 + 4] = 0
    kv_segments = np.where(rng.random(segments.shape) < unseen, 0, segments)
    return jnp.asarray(segments, jnp.int32), jnp.asarray(kv_segments, jnp.int32)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    length=st.sampled_from([1, 37, 64, 90]),
    filling=st.booleans(),
    unseen=st.sampled_from([0, 0.1]),
    windows=st.sampled_from(
        [(None, None), (7, None), (None, 1), (None, 12), (30, 5), (5, 30), (None, 2**40)]
    ),
)
def test_one_comparison_of_least_words_tells_who_sees_whom(seed, length, filling, unseen, windows):
    segments, kv_segments = packed(
        np.random.default_rng(seed), length, filling=filling, unseen=unseen
    )
    place = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), segments.shape)
    mask = causal(segments, place, windows[0], kv_segments_BS=kv_segments)
    short = with_least(mask, segments)
    if windows[1] is not None:  # as a layer narrows it
        mask, short = (windowed(x, place, windows[1]) for x in (mask, short))
    short = Mask.of(short.queries, short.keys, short.reach)
    queries, keys = (np.asarray(x) for x in least_words(short, 32, 16))
    assert (queries.dtype, queries.shape[1], keys.shape[1]) == (np.uint32, 2, 1)
    (least, count), kv_from = queries[:, :, :, None].swapaxes(0, 1), keys[:, 0, None, :]
    got = kv_from - least < count
    np.testing.assert_array_equal(got[:, :length, :length], seen_fp64(mask))
    assert not got[:, :, length:].any()
    assert not got[:, length:].any()


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    length=st.sampled_from([1, 37, 90]),
    chunk=st.sampled_from([1, 3, 16, 60, 2**40]),
    window=st.sampled_from([None, 5]),
)
def test_chunks_start_with_each_document(seed, length, chunk, window):
    segments, _ = packed(np.random.default_rng(seed), length, filling=True, unseen=0)
    place = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), segments.shape)
    rows = np.asarray(segments)
    starts = [[list(row).index(document) for document in row] for row in rows]
    positions = np.arange(length) - np.asarray(starts)
    mask = causal(segments, place, window)
    long, short = (
        in_chunks(x, jnp.asarray(positions, jnp.int32), chunk)
        for x in (mask, with_least(mask, segments))
    )
    before = np.arange(length)[:, None] - np.arange(length)
    want = (rows[:, :, None] == rows[:, None]) & (rows[:, None] > 0) & (before >= 0)
    want &= positions[:, :, None] // chunk == positions[:, None] // chunk
    want &= before < (window or length)
    np.testing.assert_array_equal(seen_fp64(long), want)
    queries, keys = (np.asarray(x) for x in least_words(short, 1, 1))
    (least, count), kv_from = queries[:, :, :, None].swapaxes(0, 1), keys[:, 0, None, :]
    np.testing.assert_array_equal(kv_from - least < count, want)
    # What was promised: nothing that far back, and no mask of causality and window alone.
    assert not np.any(want & (before >= long.reach))
    assert not long.causal


def test_a_part_of_a_row_gets_what_the_row_gets():
    rng = np.random.default_rng(0)
    segments, _ = packed(rng, 64, filling=True, unseen=0)
    place = jnp.broadcast_to(jnp.arange(64, dtype=jnp.int32), segments.shape)
    whole = with_least(causal(segments, place, 9), segments)
    part = np.r_[8:16, 48:56]  # as a device of `context` holds it
    got = with_least(causal(segments[:, part], place[:, part], 9), segments)
    np.testing.assert_array_equal(got.queries, whole.queries[:, :, part])


def test_only_causal_masks_get_least():
    for name in MASKS:
        mask = MASKS[name](np.random.default_rng(0), (2, 16))
        assert with_least(mask, mask.q_segments_BT) is mask


def test_a_window_shortens_the_reach():
    segments = jnp.ones((1, 16), jnp.int32)
    mask = with_least(causal(segments, jnp.arange(16, dtype=jnp.int32)[None], 9), segments)
    assert mask.reach == 9
    assert [windowed(mask, mask.q_rank_BT, window).reach for window in (3, 12)] == [3, 9]
