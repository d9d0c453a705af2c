"""Goodput of histories made by hand: kills, clocks that go back, resumes from older steps."""

import random

import pytest

from maxlm.metrics.history.goodput import LOSSES, STEPS, Account, Span, goodput_of


def spans_of(start, began, *stretches):
    """Return the spans of one start; each stretch is (step, {cause: seconds})."""
    spans, now = [], began
    for step, spent in stretches:
        now += sum(spent.values())
        spans.append(Span(start, now, step, spent))
    return spans


FIRST = spans_of(
    1,
    1000.0,
    (None, {"start": 3.0}),
    (0, {"compile": 5.0}),
    (10, {"steps": 20.0, "input": 1.0}),
    (10, {"evaluation": 2.0}),
    (10, {"save": 0.5}),
    (20, {"steps": 18.0, "input": 2.0}),
)


def test_one_start():
    found = goodput_of(FIRST)
    expected = {"start": 3, "compile": 5, "steps": 38, "input": 3, "evaluation": 2, "save": 0.5}
    assert found.seconds == {**dict.fromkeys((STEPS, *LOSSES), 0), **expected}
    assert found.total == FIRST[-1].time - 1000.0 == 51.5
    assert found.fraction == 38 / 51.5


def test_a_kill_and_a_resume_from_an_older_step():
    # Killed at step 20, of which 10 is saved; 100 s later the next start has its first line.
    again = spans_of(
        2,
        FIRST[-1].time + 100.0,
        (None, {"start": 4.0}),
        (10, {"restore": 2.0}),
        (10, {"compile": 1.0}),
        (30, {"steps": 40.0}),
    )
    found = goodput_of([*FIRST, *again])
    assert found.seconds["redone"] == 18.0  # steps 11 to 20 of the first start
    assert found.seconds[STEPS] == 20.0 + 40.0
    assert found.seconds["idle"] == 100.0
    assert found.seconds["restore"] == 2.0
    assert found.total == again[-1].time - 1000.0


def test_a_resume_between_two_lines_takes_back_a_share():
    again = spans_of(2, FIRST[-1].time, (None, {"start": 1.0}), (15, {"restore": 1.0}))
    found = goodput_of([*FIRST, *again])
    assert found.seconds["redone"] == 9.0  # half of the stretch from 10 to 20
    # And one from before that, twice: what is taken back already is not taken again.
    older = spans_of(3, again[-1].time, (None, {"start": 1.0}), (5, {"restore": 1.0}))
    found = goodput_of([*FIRST, *again, *older, *spans_of(4, older[-1].time, (5, {"start": 1.0}))])
    assert found.seconds["redone"] == 18.0 + 10.0
    assert found.seconds[STEPS] == 10.0
    assert found.total == older[-1].time + 1.0 - 1000.0


def test_a_resume_from_a_later_step_than_any_line_takes_nothing_back():
    again = spans_of(2, FIRST[-1].time + 5, (None, {"start": 1.0}), (24, {"restore": 1.0}))
    found = goodput_of([*FIRST, *again])
    assert found.seconds["redone"] == 0
    assert found.seconds["idle"] == 5


def test_steps_back_within_a_start_are_done_again_too():
    back = spans_of(1, FIRST[-1].time, (12, {"restore": 1.0}), (20, {"steps": 16.0}))
    found = goodput_of([*FIRST, *back])
    assert found.seconds["redone"] == pytest.approx(18.0 * 0.8)
    assert found.seconds["idle"] == 0


def test_a_roll_back_between_two_lines():
    # From step 20 back to 12 and on to 16, in one line.
    back = spans_of(1, FIRST[-1].time, (16, {"steps": 8.0}), (26, {"steps": 10.0}))
    again = spans_of(2, back[-1].time, (None, {"start": 1.0}), (21, {"restore": 1.0}))
    found = goodput_of([*FIRST, *back, *again])
    assert found.seconds["redone"] == pytest.approx(18.0 * 0.4 + 5.0)
    assert found.seconds[STEPS] == pytest.approx(20.0 + 18.0 * 0.6 + 8.0 + 5.0)


def test_a_clock_that_goes_back_makes_no_time_negative():
    again = spans_of(2, 500.0, (None, {"start": 4.0}), (20, {"restore": 1.0}))
    later = spans_of(3, 510.0, (None, {"start": 1.0}))
    found = goodput_of([*FIRST, *again, *later])
    assert found.seconds["idle"] == 5.0  # between the second and the third start alone
    assert found.total == 51.5 + 5.0 + 5.0 + 1.0
    within = spans_of(1, 900.0, (25, {"steps": 10.0}))
    found = goodput_of([*FIRST, *within])
    assert found.total == 51.5 + 10.0


def test_a_lost_line_is_idle_and_a_drifting_clock_is_not():
    found = goodput_of([*FIRST[:2], *FIRST[3:]])
    assert found.seconds["idle"] == 21.0
    assert found.total == 51.5
    drifted = [span._replace(time=span.time + 0.01 * index) for index, span in enumerate(FIRST)]
    assert goodput_of(drifted).total == 51.5


def test_parts_are_the_whole_for_any_history():
    rng = random.Random(0)
    for _ in range(200):
        spans, now, step = [], 1e9, 0
        for start in range(1, rng.randint(2, 6)):
            now += rng.choice([0.0, 0.25, 64.0])
            step = rng.randint(0, step)
            stretches = [(None, {"start": 0.5}), (step, {"restore": 0.25})]
            for _ in range(rng.randint(0, 5)):
                step += rng.randint(0, 7)
                cause = rng.choice([STEPS, "input", "save", "evaluation", "compile"])
                stretches.append(
                    (step, {STEPS: rng.randint(0, 9) / 8, cause: rng.randint(1, 9) / 8})
                )
            spans += spans_of(start, now, *stretches)
            now = spans[-1].time
        found = goodput_of(spans)
        assert round(found.total * 1e6) == round((now - 1e9) * 1e6) - round(
            (spans[0].time - 0.5 - 1e9) * 1e6
        )
        assert min(found.seconds.values()) >= 0


def test_an_empty_history():
    assert goodput_of([]).total == 0
    assert goodput_of([]).fraction == 0
    assert Account().start == 0


WHOLE = {"start": 1, "time": 5.0, "step": None, "spent": {"start": 1.0}}


@pytest.mark.parametrize(
    "change",
    [
        {"start": "1"},
        {"start": True},
        {"start": -1},
        {"time": None},
        {"time": float("nan")},
        {"time": float("inf")},
        {"time": -1.0},
        {"step": 1.5},
        {"step": 2**70},
        {"spent": None},
        {"spent": [1]},
        {"spent": {"tea": 1.0}},
        {"spent": {"start": -1.0}},
        {"spent": {"start": "1"}},
    ],
    ids=str,
)
def test_damaged_lines_are_no_spans(change):
    assert Span.read(WHOLE) == Span(**WHOLE)
    assert Span.read({**WHOLE, **change}) is None
    for name in change:
        assert Span.read({key: value for key, value in WHOLE.items() if key != name}) in (
            None,
            Span(**WHOLE) if name == "step" else None,
        )
