"""Layers shared out among the stages of a pipeline."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maxlm.sharding.stages import EMPTY, lay_out, recorded_layout


def held_by(layout, stages, chunks):
    """Return the (segment, repetition) pairs of each virtual stage, in the order in which it runs
    them.
    """
    parts = [[] for _ in range(stages * chunks)]
    for number, segment in enumerate(layout.segments):
        for place, repetition in enumerate(segment.repetitions):
            stage, rest = divmod(place, chunks * segment.rows)
            if repetition != EMPTY:
                parts[rest // segment.rows * stages + stage].append((number, repetition))
    return parts


def test_even_layers_of_a_stage_lie_together():
    assert lay_out([8], stages=2).segments[0].repetitions == tuple(range(8))
    assert lay_out([8], stages=2, chunks=2).segments[0].repetitions == (0, 1, 4, 5, 2, 3, 6, 7)
    assert lay_out([8], stages=2, chunks=2).imbalance == 1


def test_uneven_layers():
    layout = lay_out([126], stages=16)
    assert sorted(layout.segments[0].counts()) == [7] * 2 + [8] * 14
    assert layout.imbalance == pytest.approx(8 * 16 / 126)
    dense, experts = lay_out([3, 58], [1.0, 1.0], stages=16).segments
    assert dense.counts() == [3] + [0] * 15
    assert max(experts.counts()) == 4
    assert sum(experts.counts()) == 58


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=3).flatmap(
        lambda repeats: st.tuples(
            st.just(repeats), st.lists(st.integers(1, 4), min_size=3, max_size=3)
        )
    ),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(0, 6),
)
def test_every_layer_once_in_order_and_no_better_cut(sizes, stages, chunks, behind):
    repeats, work = sizes[0], list(map(float, sizes[1][: len(sizes[0])]))
    layout = lay_out(repeats, work, stages=stages, chunks=chunks, behind=behind)
    parts = held_by(layout, stages, chunks)
    pieces = [(number, index) for number, repeat in enumerate(repeats) for index in range(repeat)]
    assert list(itertools.chain(*parts)) == pieces
    # against every way to cut the row
    cuts = itertools.combinations_with_replacement(range(len(pieces) + 1), stages * chunks - 1)
    loads = [work[number] for number, _ in pieces]

    def largest(parts):
        """Return the most work of a part; the last has the modules' too."""
        *others, last = map(sum, parts)
        return max(*others, last + behind, 0)

    best = min(
        largest([loads[a:b] for a, b in itertools.pairwise((0, *bounds, len(pieces)))])
        for bounds in cuts
    )
    assert largest([[work[number] for number, _ in part] for part in parts]) == best
    assert layout.imbalance == pytest.approx(best * stages * chunks / (sum(loads) + behind))


def test_rows_that_are_not_skipped_are_work():
    """Every stage does 3 dense layers' and 4 others' work, of 61 on 16 stages, and a module's."""
    layout = lay_out([3, 58], [1.0, 1.0], stages=16, behind=1.0, skipped=False)
    assert max(layout.segments[1].counts()) == 4
    assert layout.imbalance == pytest.approx((3 + 4 + 1) * 16 / 62)


def test_modules_are_the_last_stages():
    """As much work as a layer and more: the last stage has a layer less for it."""
    layout = lay_out([61], [1.0], stages=16, behind=1.1)
    assert layout.segments[0].counts()[-1] == 2
    assert max(layout.segments[0].counts()) == 4
    assert layout.module_rows(61) == (*[EMPTY] * 15, 61)
    # so large that it has a stage for itself, and the others share the layers evenly
    assert lay_out([6], stages=3, behind=100.0).segments[0].counts() == [3, 3, 0]
    assert recorded_layout(layout.record()).record() == layout.record()
