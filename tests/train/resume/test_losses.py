"""Losses before and after a resume: 10,000 of them and no false alarm; what jumps is found."""

import logging
import math
from types import SimpleNamespace

import numpy as np
import pytest

from maxlm.config.errors import RunFailedError
from maxlm.data.mixture.rows import Mixture, Stage
from maxlm.train.resume.losses import (
    FEWEST,
    FIRST,
    KEPT,
    LossCheck,
    course_of,
    enters_stage,
    median,
)

SIZE = KEPT + FIRST
EACH = 1000  # resumes of a kind


def noise(rng, scale):
    return scale * rng.standard_normal((EACH, SIZE))


def scales(rng):
    """Return one for each run: standard deviations of batches from 0.001 to 0.5 nats."""
    return 10 ** rng.uniform(-3, -0.3, (EACH, 1))


def steps(rng, latest):
    return rng.integers(0, latest, (EACH, 1)) + np.arange(SIZE)


def power_law(rng):
    fall = (1 + steps(rng, 3000) / rng.uniform(5, 200, (EACH, 1))) ** -rng.uniform(
        0.3, 1.5, (EACH, 1)
    )
    return 2 + 9 * fall + noise(rng, scales(rng))


def steep_start(rng):
    return (
        2 + 9 * np.exp(-steps(rng, 100) / rng.uniform(10, 100, (EACH, 1))) + noise(rng, scales(rng))
    )


def heavy_tails(rng):
    return 3 + scales(rng) * rng.standard_t(2, (EACH, SIZE))


def spikes(rng):
    rare = (rng.random((EACH, SIZE)) < 0.05) * rng.exponential(3, (EACH, SIZE))
    return 3 + noise(rng, scales(rng)) + rare


def slow_swings(rng):
    """AR(1), rho 0.9: neighbouring batches are alike."""
    out = rng.standard_normal((EACH, SIZE))
    for at in range(1, SIZE):
        out[:, at] = 0.9 * out[:, at - 1] + math.sqrt(1 - 0.81) * out[:, at]
    return 3 + scales(rng) * out


def walk(rng):
    return 3 + np.cumsum(noise(rng, scales(rng) / 20), axis=1)


def two_sources(rng):
    """Batches of one sequence each, from text and from code."""
    share = rng.uniform(0.02, 0.5, (EACH, 1))
    return np.where(rng.random((EACH, SIZE)) < share, 4.0, 1.0) + noise(rng, scales(rng))


def periodic(rng):
    period = rng.integers(2, 64, (EACH, 1))
    wave = np.sin(2 * np.pi * (np.arange(SIZE) / period + rng.uniform(0, 1, (EACH, 1))))
    return 3 + rng.uniform(0, 1, (EACH, 1)) * wave + noise(rng, scales(rng))


def rate_warms_up(rng):
    hump = 0.3 * np.sin(steps(rng, 300) / rng.uniform(10, 50, (EACH, 1)))
    fall = 8 * np.exp(-((steps(rng, 300) / rng.uniform(50, 300, (EACH, 1))) ** 2))
    return 3 + fall + hump + noise(rng, scales(rng))


def rate_warms_up_again(rng):
    """It rises by up to 0.5 in 100 steps and more, from the resume or any step before it."""
    since = np.maximum(np.arange(SIZE) - rng.integers(0, KEPT + 1, (EACH, 1)), 0)
    rise = np.minimum(since / rng.uniform(100, 500, (EACH, 1)), 1) * rng.uniform(0, 0.5, (EACH, 1))
    return 3 + rise + noise(rng, scales(rng))


KINDS = [
    *[power_law, steep_start, heavy_tails, spikes, slow_swings, walk, two_sources, periodic],
    *[rate_warms_up, rate_warms_up_again],
]


@pytest.mark.parametrize("kind", KINDS)
def test_no_false_alarm_in_a_thousand_resumes_of_each_kind(kind):
    losses = kind(np.random.default_rng(0))
    for first in (FIRST, 4):
        course = course_of(losses[:, :KEPT], first)
        found = median(losses[:, KEPT : KEPT + first])
        assert not np.flatnonzero(found > course.high).size


def test_a_window_that_is_not_full_gives_no_false_alarm_either():
    rng = np.random.default_rng(1)
    for kind in (power_law, steep_start, slow_swings):
        losses = kind(rng)
        course = course_of(losses[:, KEPT - FEWEST : KEPT])
        assert not np.flatnonzero(median(losses[:, KEPT:]) > course.high).size


def test_jumps_of_eight_standard_deviations_are_found():
    """Of independent losses: the bound is 5 to 6.5 of them and 2 %, and a median has its own noise."""
    rng = np.random.default_rng(2)
    scale = scales(rng)
    losses = 3 + noise(rng, scale)
    course = course_of(losses[:, :KEPT])
    allowed = (course.high - course.level - 0.02 * (1 + course.level)) / scale[:, 0]
    assert 4.5 < np.median(allowed) < 5.5
    jump = 8 * scale + 0.02 * (1 + 3 + 4 * scale)
    assert (median(losses[:, KEPT:] + jump) > course.high).all()


def test_random_weights_are_found_also_in_steep_early_training():
    """ln(50,000) = 10.8 where the loss has come down to some value below 9."""
    losses = steep_start(np.random.default_rng(3))
    course = course_of(losses[:, :KEPT])
    assert (course.high[course.level < 5] < 10.8).all()
    assert np.count_nonzero(course.level < 5) > 500


def feed(check, losses, start=101):
    for step, loss in enumerate(losses, start):
        check.add(step, loss)


@pytest.fixture
def before():
    return (3 + 0.05 * np.random.default_rng(0).standard_normal(KEPT)).tolist()


def events(caplog):
    return [one.maxlm_event for one in caplog.records if hasattr(one, "maxlm_event")]


def test_a_jump_stops_the_run_with_the_evidence(before, caplog):
    check = LossCheck(before, step=100, action="stop")
    feed(check, [3.6] * 7)
    with pytest.raises(RunFailedError) as stopped:
        feed(check, [3.6], start=108)
    for expected in (
        *("first 8 losses after the resume from step 100 is 3.6000", "128 recorded losses"),
        *(
            "checkpoint of step 100 is as it was",
            "checkpoint.resume_from",
            "checkpoint.loss_jump=warn",
        ),
    ):
        assert expected in str(stopped.value)
    (jump,) = events(caplog)
    assert (jump.kind, jump.step) == ("loss_jump", 108)
    assert jump.values["losses"] == [3.6] * 8
    assert len(jump.values["before"]) == 32


def test_ways_on(before, caplog):
    caplog.set_level(logging.INFO)
    feed(LossCheck(before, step=100, action="warn"), [3.6] * 20)
    feed(LossCheck(before, step=100, action="off"), [3.6] * 20)
    feed(LossCheck(before[: FEWEST - 1], step=100, action="stop"), [3.6] * 20)
    assert "only 95 losses were recorded" in caplog.text
    feed(LossCheck(before, step=100, action="stop"), [2.0] * 20)
    feed(LossCheck(before, step=100, action="stop"), [3.01] * 20)
    kinds = [one.kind for one in events(caplog)]
    assert kinds == ["loss_jump", "loss_fall", "resume_confirmed"]


def test_losses_are_judged_before_they_are_saved(before):
    check = LossCheck(before, step=100, action="stop")
    feed(check, [3.9] * 3)
    check.before_save(103)  # too few to say anything
    feed(check, [3.9], start=104)
    with pytest.raises(RunFailedError, match="first 4 losses"):
        check.before_save(104)
    check = LossCheck(before, step=100, action="stop")
    feed(check, [3.0] * 5)
    check.before_save(105)
    feed(check, [9.0] * 20, start=106)  # it was judged: later ones are not a matter of the resume


def test_what_is_kept_is_small_and_goes_on_over_resumes(before):
    check = LossCheck(before, step=100, action="stop")
    feed(check, [3.0123456789, math.nan, math.inf, 3.1])
    assert check.kept[-2:] == [3.01235, 3.1]
    assert len(check.kept) == KEPT
    assert check.kept[:-2] == [float(f"{loss:.6g}") for loss in before[2:]]
    assert len(str(check.kept)) < 1500
    new = LossCheck()
    feed(new, [5.0, 4.0])
    assert new.kept == [5.0, 4.0]


@pytest.mark.parametrize(
    ("start", "expected"),
    [(0, False), (679, False), (681, True), (1000, True), (1079, True), (1081, False)],
)
def test_a_stage_that_begins_there_is_known(start, expected):
    """Ten rows a step: the losses that are compared are of rows [680, 1080)."""
    consumption = SimpleNamespace(at=lambda step: SimpleNamespace(rows=10 * step))
    stages = [Stage(0, {"a": 1}), *([Stage(start, {"b": 1})] if start else [])]
    assert enters_stage(Mixture(stages), consumption, 100) == expected
