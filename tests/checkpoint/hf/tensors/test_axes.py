"""Patterns of axes against loops that follow their meaning, whole and in parts."""

import itertools

import numpy as np
import pytest

from maxlm.checkpoint.hf.tensors.axes import Axes, put, region, take

SIZES = {"n": 4, "h": 6, "d": 5, "f": 8, "e": 3, "k": 2, "r": 7}

# pattern, other rows' share of the bracket before and in all, the tensor's shape, where an element
# of the parameter is in the tensor
CASES = {
    "(n h) d -> d n h": (0, 0, (24, 5), lambda d, n, h: (n * 6 + h, d)),
    "d (n h) -> n h d": (0, 0, (5, 24), lambda n, h, d: (d, n * 6 + h)),
    "(n h) -> n h": (0, 0, (24,), lambda n, h: (n * 6 + h,)),
    "1 d -> d": (0, 0, (1, 5), lambda d: (0, d)),
    "[f] d -> d f": (8, 16, (16, 5), lambda d, f: (8 + f, d)),
    "d [(n h)] -> d n h": (30, 60, (5, 60), lambda d, n, h: (d, 30 + n * 6 + h)),
    "(n [1] h) d -> d n h": (2, 3, (72, 5), lambda d, n, h: (n * 18 + 2 * 6 + h, d)),
    "e d (f [1]) -> e d f": (1, 2, (3, 5, 16), lambda e, d, f: (e, d, 2 * f + 1)),
    "(n [h]) r -> r n h": (3, 10, (40, 7), lambda r, n, h: (n * 10 + 3 + h, r)),
    "f d -> e d f": (0, 0, (8, 5), lambda e, d, f: (f, d)),
}


@pytest.fixture(params=CASES)
def case(request):
    offset, shared, shape, place = CASES[request.param]
    axes = Axes(request.param)
    dims = axes.dims(SIZES, offset=offset, shared=shared)
    return axes, dims, shape, place


def test_parts_of_a_tensor_are_taken_to_their_places(case):
    axes, dims, shape, place = case
    assert tuple(dim.size for dim in dims) == shape
    tensor = np.random.default_rng(0).normal(size=shape)
    letters = [letter for letter in axes.ours if letter not in axes.named]
    # Every letter whole, cut at its first, its last, or in the middle.
    cuts = [
        [range(size), range(1), range(size - 1, size), range(1, size - 1) or range(size)]
        for size in (SIZES[letter] for letter in letters)
    ]
    for chosen in itertools.product(*cuts):
        ranges = dict(zip(letters, chosen, strict=True))
        found = take(tensor[region(dims, ranges)], dims, axes, ranges)
        indices = [ranges.get(letter, range(1)) for letter in axes.ours]
        wanted = [tensor[place(*index)] for index in itertools.product(*indices)]
        np.testing.assert_array_equal(found.reshape(-1), wanted)


def test_what_is_put_is_taken_again(case):
    axes, dims, shape, _ = case
    letters = [letter for letter in axes.ours if letter not in axes.named]
    part = np.random.default_rng(1).normal(size=[SIZES[letter] for letter in letters])
    tensor = np.full(shape, np.nan)
    put(tensor, part, dims, axes)
    assert np.isfinite(tensor).sum() == part.size
    ranges = {letter: range(SIZES[letter]) for letter in letters}
    np.testing.assert_array_equal(take(tensor[region(dims, ranges)], dims, axes, ranges), part)


def test_sizes_of_shared_dimensions():
    assert Axes("[f] d -> d f").shared_size(SIZES) == 8
    assert Axes("d [(n h)] -> d n h").shared_size(SIZES) == 24
    assert Axes("(n [1] h) d -> d n h").shared_size(SIZES) == 1
    assert Axes("(n h) d -> d n h").shared_size(SIZES) == 0
