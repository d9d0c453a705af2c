"""The documents of the highest scores stay, against sorting all of them."""

import math
from decimal import Decimal
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.documents import Document, Dropped
from data_pipeline.steps.filters.top_fraction import TopFraction, sortable
from data_pipeline.steps.step import Shard
from data_pipeline.storage.arrays import write_arrays
from maxlm.config.errors import UserError
from maxlm.config.pipeline.filters.top_fraction import TopFractionConfig

SCORES = st.one_of(
    st.none(), st.sampled_from([0.0, -0.0, 1, 0.5]), st.floats(allow_nan=False), st.text(max_size=1)
)


def decide(folder, shards, sources, **values):
    """Return which documents of each shard stay, and the report."""
    step = TopFraction(TopFractionConfig(score="s", **values))
    documents = [
        [
            Document(f"{number}", "x", "t", {} if score is None else {"s": score})
            for number, score in enumerate(shard)
        ]
        for shard in shards
    ]
    infos = [Shard(number, source, len(shards[number])) for number, source in enumerate(sources)]
    keys = [folder / f"{number}" for number in range(len(shards))]
    for path, shard, info in zip(keys, documents, infos, strict=True):
        write_arrays(path, step.keys(iter(shard), info, ()))
    work = SimpleNamespace(shards=infos, protected=frozenset())
    decision = step.reduce(keys, work)
    results = [
        [not isinstance(result, Dropped) for result in step.apply(iter(shard), verdict)]
        for shard, verdict in zip(documents, decision.verdicts, strict=True)
    ]
    return results, decision.report


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(SCORES, max_size=8), min_size=1, max_size=4), st.floats(0.01, 0.99))
def test_against_sorting(tmp_path_factory, shards, fraction) -> None:
    shards = [[0.25], *shards]  # a score that no document has is refused
    found, _ = decide(
        tmp_path_factory.mktemp("keys"), shards, ["x"] * len(shards), fraction=fraction
    )
    places = [(shard, row) for shard, scores in enumerate(shards) for row in range(len(scores))]

    def rank(place):
        score = shards[place[0]][place[1]]
        return (
            -score if isinstance(score, int | float) else math.inf,
            score is None or isinstance(score, str),
            place,
        )

    kept = set(sorted(places, key=rank)[: math.ceil(len(places) * Decimal(repr(fraction)))])
    assert [
        [(shard, row) in kept for row in range(len(scores))] for shard, scores in enumerate(shards)
    ] == found


def test_a_share_is_what_its_decimals_say(tmp_path) -> None:
    assert math.ceil(100 * 0.07) == 8, "in floats"
    _, report = decide(tmp_path, [[*range(100)]], ["x"], fraction=0.07)
    assert report["kept"] == 7


def test_protected_sources_stay_and_do_not_count(tmp_path) -> None:
    shards, sources = [[0.9, 0.8], [0.1, 0.2, 0.3, 0.4]], ["best", "x"]
    found, report = decide(tmp_path, shards, sources, fraction=0.5, protect=["best"])
    assert found == [[True, True], [False, False, True, True]]
    assert report.items() >= {"documents": 4, "kept": 2, "least": 0.3}.items()
    found, _ = decide(tmp_path, shards, sources, fraction=0.5)
    assert found == [[True, True], [False, False, False, True]]


@pytest.mark.parametrize("seed", range(2))
def test_order_of_numbers(seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=1000) * 10.0 ** np.arange(-500, 500).clip(
        -300, 300
    )
    assert (np.argsort(sortable(values)) == np.argsort(values)).all()
    assert sortable(np.array([np.nan])) < sortable(np.array([-np.inf]))


def test_the_lowest_scores_stay_if_asked(tmp_path) -> None:
    shards = [[2.0, -1.0, None, 3.0], [2.0, 7.5, -4.0]]
    found, report = decide(tmp_path, shards, ["x", "x"], fraction=0.4, keep="lowest")
    assert found == [[True, True, False, False], [False, False, True]]
    counts = {"without_score": 1, "without_score_kept": 0}
    assert report == {"documents": 7, "kept": 3, "least": 2.0} | counts


def test_documents_without_the_score_are_counted_and_named(tmp_path) -> None:
    shards = [[0.5, None, math.nan], ["high", 0.25]]
    found, report = decide(tmp_path, shards, ["x", "x"], fraction=0.6)
    assert found == [[True, True, False], [False, True]]
    assert report == {
        "documents": 5,
        "kept": 3,
        "least": None,
        "without_score": 3,
        "without_score_kept": 1,
    }
    step = TopFraction(TopFractionConfig(score="s", fraction=0.5))
    documents = [Document("a", "x", "t", {"s": 0.5}), Document("b", "x", "t", {"s": "high"})]
    gone = list(step.apply(iter(documents), {"keep": np.zeros(2, bool)}))
    assert [one.reason for one in gone] == ["top_fraction", "top_fraction/no_score"]
    assert [one.detail for one in gone] == ["0.5", "no number as s"]


def test_a_score_that_no_document_has_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="top_fraction.score=s: no document has such a number"):
        decide(tmp_path, [[None, "good"], [], [math.nan]], ["x", "x", "x"], fraction=0.5)
    assert decide(tmp_path, [[], []], ["x", "x"], fraction=0.5)[0] == [[], []]
