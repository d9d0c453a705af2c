import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxlm.data import token_hash


@pytest.fixture
def batch():
    generator = np.random.default_rng(0)
    return generator.integers(0, 100, (6, 10), dtype=np.int32), generator.integers(
        1, 4, (6, 10), dtype=np.int32
    )


def hashed(tokens, segments, rows=None, columns=None):
    rows = np.arange(tokens.shape[0]) if rows is None else rows
    columns = np.arange(tokens.shape[1]) if columns is None else columns
    return token_hash.batch_hash(tokens, segments, rows=rows, columns=columns)


def test_hash_never_changes():
    """Runs compare hashes across versions, so their values are fixed."""
    batch = (
        np.arange(60, dtype=np.int32).reshape(6, 10) * 7919,
        np.arange(60, dtype=np.int32).reshape(6, 10) // 9,
    )
    running = token_hash.advance(
        token_hash.advance(np.zeros(2, np.uint32), hashed(*batch)), hashed(*batch)
    )
    assert token_hash.hexdigest(hashed(*batch)) == "b35db0af76a1c0a9"
    assert token_hash.hexdigest(running) == "4f6d6fbd5ddd0dc7"


@settings(max_examples=50, deadline=None)
@given(row_cut=st.integers(0, 6), column_cut=st.integers(0, 10))
def test_parts_add_up_to_the_whole(row_cut, column_cut):
    generator = np.random.default_rng(1)
    tokens, segments = generator.integers(0, 2**31, (2, 6, 10), dtype=np.int32)
    total = np.zeros(2, np.uint32)
    for rows in (np.arange(row_cut), np.arange(row_cut, 6)):
        for columns in (np.arange(column_cut), np.arange(column_cut, 10)):
            part = np.ix_(rows, columns)
            total = total + hashed(tokens[part], segments[part], rows, columns)
    np.testing.assert_array_equal(total, hashed(tokens, segments))


def test_numpy_and_jax_agree_also_when_traced(batch):
    expected = hashed(*batch)
    assert expected.dtype == np.uint32
    assert expected.shape == (2,)
    eager = hashed(*map(jnp.asarray, batch), jnp.arange(6), jnp.arange(10))
    traced = jax.jit(hashed)(*batch)
    for result in (eager, traced):
        assert result.dtype == jnp.uint32
        np.testing.assert_array_equal(result, expected)
    running = np.array([5, 7], np.uint32)
    np.testing.assert_array_equal(
        jax.jit(token_hash.advance)(running, expected), token_hash.advance(running, expected)
    )


def test_any_change_shows(batch):
    tokens, segments = batch
    seen = {token_hash.hexdigest(hashed(tokens, segments))}
    variants = []
    for place in np.ndindex(tokens.shape):
        changed = tokens.copy()
        changed[place] += 1
        variants.append((changed, segments))
        changed = segments.copy()
        changed[place] += 1
        variants.append((tokens, changed))
    variants += [
        (tokens[::-1], segments[::-1]),
        (tokens[:, ::-1], segments[:, ::-1]),
        (segments, tokens),
    ]
    seen |= {token_hash.hexdigest(hashed(*variant)) for variant in variants}
    assert len(seen) == len(variants) + 1


def test_order_of_batches_counts():
    one, two = np.array([1, 2], np.uint32), np.array([3, 4], np.uint32)

    def chain(*batches):
        running = np.zeros(2, np.uint32)
        for batch in batches:
            running = token_hash.advance(running, batch)
        return token_hash.hexdigest(running)

    results = [
        chain(one, two),
        chain(two, one),
        chain(one),
        chain(two),
        chain(one, one, two),
        chain(),
    ]
    assert len(set(results)) == len(results)


def test_lanes_are_independent():
    """Each lane changes about half of its bits when one token changes."""
    generator = np.random.default_rng(2)
    flips = []
    for _ in range(200):
        tokens = generator.integers(0, 1000, (2, 3), dtype=np.int32)
        other = tokens.copy()
        other[1, 2] += 1
        flips.append(hashed(tokens, tokens * 0) ^ hashed(other, tokens * 0))
    bits = np.unpackbits(np.array(flips).view(np.uint8).reshape(200, -1), axis=1)
    assert 0.35 < bits.mean(axis=0).min() <= bits.mean(axis=0).max() < 0.65
    assert len({tuple(flip) for flip in flips}) == 200


def test_hexdigest_is_sixteen_digits():
    assert token_hash.hexdigest(np.array([0xDEADBEEF, 7], np.uint32)) == "deadbeef00000007"
