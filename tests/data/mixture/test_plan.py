"""From settings to a run's mixture: weights, temperature, caps, stages, and plans that cannot be."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from maxlm.config.errors import UserError
from maxlm.config.schema import DataConfig
from maxlm.data.mixture.plan import Reading, mixture_shares, plan_mixture, share_out
from maxlm.data.mixture.table import readings, stage_lines, table_lines

LENGTH = 10


def data(sources, **more):
    """Return settings of sources given as {name: weight} or {name: settings}."""
    full = {
        name: {"path": f"data/{name}", **(one if isinstance(one, dict) else {"weight": one})}
        for name, one in sources.items()
    }
    settings = {"sources": full, "tokenizer": "x", "sequence_length": LENGTH, **more}
    return DataConfig.model_validate(settings)


def read(config, windows, *, rows):
    mixture = plan_mixture(config, windows, Reading(batch_size=1, num_steps=rows))
    return mixture.consumed(rows)


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=8))
def test_integer_shares_are_close_to_the_weights(weights):
    shares = mixture_shares(dict(enumerate(weights)))
    assert min(shares.values()) == 100
    for name, weight in enumerate(weights):
        assert shares[name] / 100 == pytest.approx(weight / min(weights), rel=5.1e-3)


@pytest.mark.parametrize(("temperature", "power"), [(1, 1.0), (1 / 0.3, 0.3), (1e6, 0.0)])
def test_temperature_is_a_power_of_the_sizes(temperature, power):
    windows = {"big": 100_000, "middle": 4000, "small": 50}
    config = data(dict.fromkeys(windows, 1.0), mix={"temperature": temperature})
    found = read(config, windows, rows=10**6)
    total = sum(count**power for count in windows.values())
    for name, count in windows.items():
        assert found[name] / 10**6 == pytest.approx(count**power / total, rel=6e-3, abs=2e-6)


def test_weights_come_on_top_of_a_temperature():
    config = data({"a": 3.0, "b": 1.0}, mix={"temperature": 1})
    found = read(config, {"a": 100, "b": 200}, rows=5000)
    assert found == {"a": 3000, "b": 2000}


@settings(deadline=None)
@given(
    rows=st.integers(1, 10_000),
    sources=st.lists(
        st.tuples(st.floats(0.01, 100), st.one_of(st.none(), st.integers(0, 5000))),
        min_size=1,
        max_size=6,
    ),
)
def test_sharing_out_is_a_water_level(rows, sources):
    """Each gets min(its most, level x weight), where the level makes the sum: found by bisection."""
    weights = {str(number): weight for number, (weight, _) in enumerate(sources)}
    most = {
        str(number): math.inf if cap is None else cap for number, (_, cap) in enumerate(sources)
    }
    assume(sum(most.values()) >= rows)
    low, high = 0.0, 1e9
    for _ in range(200):
        level = (low + high) / 2
        poured = sum(min(most[name], level * weight) for name, weight in weights.items())
        low, high = (level, high) if poured < rows else (low, level)
    counts = share_out(rows, weights, most)
    assert sum(counts.values()) == rows
    for name, weight in weights.items():
        assert counts[name] <= most[name]
        assert abs(counts[name] - min(most[name], high * weight)) <= 1.001


def test_what_a_cap_leaves_goes_to_the_others_by_their_weights():
    windows = {"books": 100, "code": 1000, "web": 100_000}
    config = data({"books": 8.0, "code": 1.0, "web": 1.0}, mix={"max_epochs": 4})
    assert read(config, windows, rows=10_000) == {"books": 400, "code": 4000, "web": 5600}
    own = data({"books": {"weight": 8.0, "max_epochs": 1}, "code": 1.0, "web": 1.0})
    assert read(own, windows, rows=10_000) == {"books": 100, "code": 4950, "web": 4950}
    # Caps that do not bind leave the plain shares, so that a longer run goes on with them.
    plain = data({"books": 8.0, "code": 1.0, "web": 1.0})
    few = Reading(batch_size=4, num_steps=100)
    assert plan_mixture(config, windows, few).stages == plan_mixture(plain, windows, few).stages


def test_tokens_of_a_source_are_read_exactly():
    windows = {"a": 500, "b": 500, "c": 500}
    sources = {"a": {"tokens": 3330.0}, "b": {"weight": 3.0}, "c": {"weight": 1.0}}
    assert read(data(sources), windows, rows=1000) == {"a": 333, "b": 500, "c": 167}


def test_stages_have_their_own_mixtures_and_go_on_where_a_source_was():
    stages = [
        {"until_tokens": 6000},
        {"until_share": 0.8, "weights": {"web": 1}},
        {"weights": {"books": 3, "web": 1}},
    ]
    config = data({"books": 1.0, "web": 1.0}, stages=stages)
    mixture = plan_mixture(config, {"books": 50, "web": 5000}, Reading(10, 100))
    assert [stage.start for stage in mixture.stages] == [0, 600, 800]
    assert mixture.consumed(600) == {"books": 300, "web": 300}
    assert mixture.consumed(800) == {"books": 300, "web": 500}
    assert mixture.consumed(1000) == {"books": 450, "web": 550}
    assert mixture.place(600) == ("web", 300)
    # A cap counts all stages: at most 8 passes over 50 windows.
    capped = config.model_copy(update={"mix": config.mix.model_copy(update={"max_epochs": 8.0})})
    assert plan_mixture(capped, {"books": 50, "web": 5000}, Reading(10, 100)).consumed(1000) == {
        "books": 400,
        "web": 600,
    }


def test_without_the_length_of_a_run_stages_by_tokens_are_known():
    config = data({"a": 1.0, "b": 1.0}, stages=[{"until_tokens": 95}, {"weights": {"b": 1}}])
    mixture = plan_mixture(config, {"a": 5, "b": 5}, Reading(batch_size=2))
    assert [stage.start for stage in mixture.stages] == [0, 10]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            data({"a": 1.0, "b": 1.0}, mix={"max_epochs": 2}),
            r"the run reads 10,000 tokens of sources that may give 4,000 under their max_epochs "
            r"\(a 1,000 tokens, 2,000 left to read, b .*use max_epochs of 5, train\.num_steps=40, or more text",
        ),
        (
            data({"a": 1.0, "b": 1.0}, mix={"max_epochs": 3}, stages=[{"until_share": 0.5}, {"weights": {"a": 1}}]),
            r"data\.stages\.1 reads 5,000 tokens of sources that may give 500 .*max_epochs of 7\.5",
        ),
        (
            data({"a": {"tokens": 6000}, "b": {"tokens": 5000}}),
            r"a 6,000 \+ b 5,000 = 11,000 tokens in whole rows, more than the 10,000 .*; use train\.num_steps=110",
        ),
        (
            data({"a": {"tokens": 3000}, "b": {"tokens": 5000}}),
            r"8,000 tokens in whole rows, less than the 10,000 .*train\.num_steps=80.*or leave one source without",
        ),
        (
            data({"a": {"tokens": 3000, "max_epochs": 2}, "b": 1.0}),
            r"data\.sources\.a\.tokens=3,000, in whole rows 3,000, is 3\.00 times what it has.*use tokens: 2000",
        ),
        (
            data({"a": {"tokens": 4}, "b": 1.0}),
            r"data\.sources\.a\.tokens=4 is no row of data\.sequence_length=10.*use tokens: 10 or more",
        ),
        (
            data({"a": 1.0, "b": 1.0}, stages=[{"until_tokens": 9000}, {"until_share": 0.5}, {}]),
            r"data\.stages\.1 ends at row 500 of 10 tokens, and begins at row 900",
        ),
    ],
)  # fmt: skip
def test_plans_that_cannot_be_are_refused_with_the_cure(config, expected):
    with pytest.raises(UserError, match=expected):
        plan_mixture(config, {"a": 100, "b": 100}, Reading(batch_size=10, num_steps=100))


def test_the_table_says_what_is_read_again_and_what_not():
    config = data(
        {"books": 1.0, "web": 3.0}, stages=[{"until_tokens": 8000}, {"weights": {"books": 1}}]
    )
    windows = {"books": 100, "web": 9000}
    mixture = plan_mixture(config, windows, Reading(10, 100))
    lines = table_lines(readings(mixture, windows, length=LENGTH, rows=1000), length=LENGTH)
    assert lines[1].split() == ["books", "1,000", "4,000", "40.0%", "4.00", "3,000", "0"]
    assert lines[2].split() == ["web", "90,000", "6,000", "60.0%", "0.07", "0", "84,000"]
    assert lines[3] == f"(tokens in whole rows of {LENGTH})"
    assert list(stage_lines(mixture, length=LENGTH, rows=1000)) == [
        "stage 0: tokens 0 to 8,000: books 25.0%, web 75.0%",
        "stage 1: tokens 8,000 to 10,000: books 100.0%",
    ]
    assert list(stage_lines(mixture, length=LENGTH, rows=500))[1] == (
        "stage 1: from token 8,000, which the run does not reach"
    )
