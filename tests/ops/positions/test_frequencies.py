"""Rotary frequencies for long contexts, against the papers' formulas in fp64 and another library."""

import math

import numpy as np
import pytest

from maxlm.config.positions.rope import RopePosition
from maxlm.config.positions.scaling import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongropeScaling,
    NtkScaling,
    YarnScaling,
)
from maxlm.ops.positions.frequencies import attention_factor, frequencies

DIM = 16
SHORT = (1.0, 1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5)
LONG = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0)
YARN = {"factor": 40.0, "original_length": 4096}
LONGROPE = LongropeScaling(short_factor=SHORT, long_factor=LONG, original_length=4096, factor=32.0)
DYNAMIC = DynamicScaling(factor=2.0, original_length=4096)
CASES = {
    "linear": (1e4, LinearScaling(factor=4.0), 1),
    "dynamic_4096": (1e4, DYNAMIC, 4096),
    "dynamic_16384": (1e4, DYNAMIC, 16384),
    "yarn": (1e4, YarnScaling(**YARN), 1),
    "yarn_mscale": (1e4, YarnScaling(**YARN, mscale=0.707, mscale_all_dim=1.3), 1),
    "yarn_whole": (1.5e5, YarnScaling(factor=32.0, original_length=4096, truncate=False), 1),
    # as Kimi K2 has it: kept or divided, none between
    "yarn_step": (5e4, YarnScaling(factor=32.0, original_length=4096, beta_fast=1.0), 1),
    "llama3": (5e5, Llama3Scaling(factor=8.0), 1),
    "longrope_4096": (1e4, LONGROPE, 4096),
    "longrope_4097": (1e4, LONGROPE, 4097),
}
PUBLISHED = {
    "linear": (
        1,
        (
            2.5000000e-01,
            7.9056941e-02,
            2.5000000e-02,
            7.9056947e-03,
            2.4999999e-03,
            7.9056947e-04,
            2.5000001e-04,
            7.9056947e-05,
        ),
    ),
    "dynamic_4096": (
        1,
        (
            1.0000000e00,
            3.1622776e-01,
            1.0000000e-01,
            3.1622779e-02,
            9.9999998e-03,
            3.1622779e-03,
            1.0000000e-03,
            3.1622779e-04,
        ),
    ),
    "dynamic_16384": (
        1,
        (
            1.0000000e00,
            2.3948137e-01,
            5.7351321e-02,
            1.3734572e-02,
            3.2891738e-03,
            7.8769587e-04,
            1.8863847e-04,
            4.5175395e-05,
        ),
    ),
    "yarn": (
        1.3688879,
        (
            1.0000000e00,
            3.1622776e-01,
            1.0000000e-01,
            2.3914725e-02,
            5.1249997e-03,
            8.4986218e-04,
            2.4999999e-05,
            7.9056945e-06,
        ),
    ),
    "yarn_mscale": (
        0.85215105,
        (
            1.0000000e00,
            3.1622776e-01,
            1.0000000e-01,
            2.3914725e-02,
            5.1249997e-03,
            8.4986218e-04,
            2.4999999e-05,
            7.9056945e-06,
        ),
    ),
    "yarn_whole": (
        1.3465736,
        (
            1.0000000e00,
            2.2541800e-01,
            5.0813273e-02,
            6.7949593e-03,
            4.5648392e-04,
            1.8188337e-05,
            4.0999785e-06,
            9.2420896e-07,
        ),
    ),
    "yarn_step": (
        1.3465736,
        (
            1.0000000e00,
            2.5860015e-01,
            6.6874035e-02,
            1.7293634e-02,
            4.4721360e-03,
            3.6140467e-05,
            9.3459303e-06,
            2.4168587e-06,
        ),
    ),
    "llama3": (
        1,
        (
            1.0000000e00,
            1.9392276e-01,
            3.7606031e-02,
            7.2926651e-03,
            5.2484602e-04,
            3.4281024e-05,
            6.6478697e-06,
            1.2891732e-06,
        ),
    ),
    "longrope_4096": (
        1.1902381,
        (
            1.0000000e00,
            3.1622776e-01,
            7.9999998e-02,
            2.1081850e-02,
            5.7142857e-03,
            1.5811389e-03,
            4.4444445e-04,
            1.2649111e-04,
        ),
    ),
    "longrope_4097": (
        1.1902381,
        (
            1.0000000e00,
            2.1081850e-01,
            5.0000001e-02,
            1.0540925e-02,
            2.0000001e-03,
            3.9528473e-04,
            7.6923076e-05,
            1.5058466e-05,
        ),
    ),
}


"""What transformers 5.24.0 computes (`ROPE_INIT_FUNCTIONS`, in fp32): attention factor, frequencies."""


@pytest.mark.parametrize("name", CASES)
def test_equals_another_library(name):
    theta, scaling, length = CASES[name]
    position = RopePosition(theta=theta, scaling=scaling)
    factor, values = PUBLISHED[name]
    # fp32 powers there are good to a few units in the last place.
    np.testing.assert_allclose(frequencies(position, DIM, length), values, rtol=1e-6)
    assert attention_factor(position) == pytest.approx(factor, rel=1e-7)


def test_numbers_that_are_not_turned_have_no_frequency():
    part = frequencies(RopePosition(rotary_dim=8), 16, 1)
    np.testing.assert_array_equal(part, frequencies(RopePosition(), 8, 1))


def test_ntk_keeps_the_first_frequency_and_divides_the_last_by_the_factor():
    plain = frequencies(RopePosition(theta=500.0), DIM, 1)
    scaled = frequencies(RopePosition(theta=500.0, scaling=NtkScaling(factor=6.0)), DIM, 1)
    ratio = plain / scaled
    np.testing.assert_allclose([ratio[0], ratio[-1]], [1, 6], rtol=1e-12)
    # One base for all: the logarithms of the ratios lie on a line.
    np.testing.assert_allclose(np.diff(np.log(ratio)), math.log(6) / (DIM / 2 - 1), rtol=1e-9)


def test_dynamic_is_ntk_by_how_much_longer_the_sequence_is():
    scaling = DynamicScaling(factor=3.0, original_length=100)
    at = lambda length: frequencies(RopePosition(scaling=scaling), DIM, length)  # noqa: E731
    np.testing.assert_array_equal(at(1), frequencies(RopePosition(), DIM, 1))
    np.testing.assert_array_equal(at(1), at(100))
    want = frequencies(RopePosition(scaling=NtkScaling(factor=3 * 2.5 - 2)), DIM, 1)
    np.testing.assert_allclose(at(250), want, rtol=1e-12)


@pytest.mark.parametrize("truncate", [True, False])
def test_yarn_by_turns(truncate):
    """Pairs that make 32 turns or more are kept, those with less than one are divided by the factor
    (arXiv:2309.00071, eq. 13), but for pairs that rounding moves the border over.
    """
    dim, length, factor = 128, 4096, 16.0
    scaling = YarnScaling(factor=factor, original_length=length, truncate=truncate)
    plain = 1e4 ** (-np.arange(0, dim, 2) / dim)
    got = frequencies(RopePosition(scaling=scaling), dim, 1)
    turns = length * plain / (2 * np.pi)
    kept, divided = np.flatnonzero(turns >= 32), np.flatnonzero(turns <= 1)
    margin = int(truncate)
    np.testing.assert_allclose(got[kept[: len(kept) - margin]], plain[kept[: len(kept) - margin]])
    np.testing.assert_allclose(got[divided[margin:]], plain[divided[margin:]] / factor)
    between = (got < plain * (1 - 1e-9)) & (got > plain / factor * (1 + 1e-9))
    # A line from one to the other: the share that is divided rises by the same from pair to pair.
    share = (1 - got / plain) / (1 - 1 / factor)
    steps = np.diff(share[np.flatnonzero(between)])
    assert len(steps) > 5
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)


def test_lowest_frequencies_of_long_contexts_by_hand():
    """Llama 3.1's: below one turn in 8,192 tokens divided by 8, above four kept, in between
    (turns - 1) / 3 of each.
    """
    theta, dim = 5e5, 128
    plain = theta ** (-np.arange(0, dim, 2) / dim)
    turns = 8192 * plain / (2 * np.pi)
    got = frequencies(RopePosition(theta=theta, scaling=Llama3Scaling()), dim, 1)
    for frequency, own, value in zip(plain, turns, got, strict=True):
        share = min(max((own - 1) / 3, 0), 1)
        assert value == pytest.approx(frequency * (share + (1 - share) / 8), rel=1e-12)
    assert ((turns > 1) & (turns < 4)).any()
