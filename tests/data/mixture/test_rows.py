"""Which source a row is of: against grain, and against counting rows one by one."""

from __future__ import annotations

import bisect
import itertools

import grain
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxlm.data.mixture.rows import Mixture, Stage

SHARES = st.dictionaries(st.sampled_from("abcde"), st.integers(1, 300), min_size=1)
STAGES = st.lists(st.tuples(st.integers(1, 60), SHARES), min_size=1, max_size=4)


def mixture_of(lengths_and_shares):
    lengths, shares = zip(*lengths_and_shares, strict=True)
    starts = [0, *itertools.accumulate(lengths[:-1])]
    return Mixture([Stage(start, share) for start, share in zip(starts, shares, strict=True)])


@pytest.mark.parametrize("first", [0, 10**6, 10**12])
@pytest.mark.parametrize("shares", [(100, 250), (300, 100, 133), (700, 700, 700, 100)])
def test_one_stage_is_the_mixture_of_grain(first, shares):
    # Grain scales shares so that the smallest is 100, which these are.
    endless = grain.MapDataset.range(2).repeat()
    parents = [
        endless.map_with_index(lambda index, _, name=name: (name, index))
        for name in range(len(shares))
    ]
    oracle = grain.MapDataset.mix(parents, weights=list(shares))
    mixture = Mixture([Stage(0, dict(enumerate(shares)))])
    for row in range(first, first + 500):
        assert mixture.place(row) == oracle[row]


@settings(deadline=None, max_examples=60)
@given(stages=STAGES, beyond=st.integers(0, 50))
def test_rows_are_counted_one_by_one(stages, beyond):
    """Every source's rows come in their order, none twice, none left out, whatever stage they are
    in; and each stage keeps its shares to one row.
    """
    mixture = mixture_of(stages)
    starts = [stage.start for stage in mixture.stages]
    seen = dict.fromkeys(mixture.sources, 0)
    in_stage: dict[tuple[int, str], int] = {}
    for row in range(starts[-1] + beyond):
        assert mixture.consumed(row) == seen
        name, place = mixture.place(row)
        assert place == seen[name]
        seen[name] += 1
        number = bisect.bisect_right(starts, row) - 1
        shares = mixture.stages[number].shares
        in_stage[number, name] = in_stage.get((number, name), 0) + 1
        done = row + 1 - starts[number]
        for other, share in shares.items():
            exact = done * share / sum(shares.values())
            assert abs(in_stage.get((number, other), 0) - exact) < len(shares)
    assert mixture.consumed(starts[-1] + beyond) == seen


@given(shares=SHARES)
def test_shares_are_exact_after_a_whole_period(shares):
    total = sum(shares.values())
    mixture = Mixture([Stage(0, shares)])
    for periods in (1, 3):
        consumed = mixture.consumed(periods * total)
        assert consumed == {name: periods * share for name, share in sorted(shares.items())}


def test_what_decides_about_rows_that_were_read():
    one = mixture_of([(10, {"a": 2, "b": 4}), (20, {"b": 5}), (1, {"a": 1, "b": 1})])
    assert one.until(0) == []
    assert one.until(10) == [[0, {"a": 1, "b": 2}]]
    assert one.until(11) == [[0, {"a": 1, "b": 2}], [10, {"b": 1}]]
    # The same for ten rows, another mixture for eleven.
    two = mixture_of([(10, {"a": 100, "b": 200}), (20, {"a": 1})])
    assert two.until(10) == one.until(10)
    assert two.until(11) != one.until(11)
    assert [one.place(row) for row in range(10)] == [two.place(row) for row in range(10)]
