"""Slopes and buckets of distances, against published tables and the papers' formulas."""

import math

import numpy as np
import pytest

from maxlm.ops.positions.distances import alibi_slopes, bucket_edges


def test_slopes_of_the_paper():
    # arXiv:2108.12409, section 3: "for 8 heads 1/2, 1/4 ... 1/256", for 16 geometric means between.
    np.testing.assert_allclose(alibi_slopes(8), 0.5 ** np.arange(1, 9), rtol=1e-7)
    np.testing.assert_allclose(alibi_slopes(16), 0.5 ** (0.5 * np.arange(1, 17)), rtol=1e-7)


def test_slopes_of_a_number_of_heads_that_is_no_power_of_two():
    # Of 12 heads: those of 8, then every other one of 16 (transformers 5.24.0, build_alibi_tensor).
    want = [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625]
    want += [0.70710678, 0.35355338, 0.17677669, 0.088388346]
    np.testing.assert_allclose(alibi_slopes(12), want, rtol=1e-7)
    assert len(alibi_slopes(1)) == 1


def bucket(distance, num_buckets, max_distance):
    """Return the bucket by arXiv:1910.10683's formula, in fp64."""
    exact = num_buckets // 2
    if distance < exact:
        return distance
    share = math.log(distance / exact) / math.log(max_distance / exact)
    return min(exact + int(share * (num_buckets - exact)), num_buckets - 1)


@pytest.mark.parametrize("sizes", [(32, 128), (2, 2), (7, 30), (32, 100), (64, 40)])
def test_edges_are_where_the_bucket_changes(sizes):
    edges = bucket_edges(*sizes)
    assert len(edges) == sizes[0] - 1
    distances = np.arange(4 * sizes[1])
    got = np.searchsorted(edges, distances, side="right")
    np.testing.assert_array_equal(got, [bucket(d, *sizes) for d in distances])


def test_edges_of_t5():
    # Where transformers 5.24.0's `_relative_position_bucket` changes, without its fp32 logarithm.
    exact = tuple(range(1, 16))
    grown = (16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113)
    assert bucket_edges(32, 128) == exact + grown


def test_an_edge_that_logarithms_would_miss_is_exact():
    # 3 (81 / 3)^(1 / 3) is 9, and log(9 / 3) / log(81 / 3) * 3 is .9999999999999999 or 1.
    assert bucket_edges(6, 81) == (1, 2, 3, 9, 27)
