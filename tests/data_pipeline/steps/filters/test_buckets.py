"""Head, middle and tail of all documents, against numpy's order of their scores."""

import io

import numpy as np
import pytest
from rich.console import Console

from data_pipeline.documents import Document
from data_pipeline.report import Report
from data_pipeline.stages.plan import compares, plan_stages
from data_pipeline.stages.shards import Workshop
from data_pipeline.steps.filters.buckets import Buckets
from maxlm.config.errors import UserError
from maxlm.config.pipeline.filters.buckets import BucketsConfig
from maxlm.config.pipeline.filters.perplexity import PerplexityConfig
from tests.data_pipeline.dedup.conftest import Outcome, Work


def decide(folder, shards, *, protected=(), **settings):
    """Return what becomes of documents of such scores, one list for each source."""
    documents = [
        [
            Document(f"{source}/{n}", source, "t", {} if s is None else {"s": s})
            for n, s in enumerate(scores)
        ]
        for source, scores in shards.items()
    ]
    step = Buckets(BucketsConfig(score="s", **settings))
    folder.mkdir()
    work = Work(step, documents, folder, protected=protected)
    return Outcome(step, work, files=work.over_shards("keys"))


@pytest.mark.parametrize("best", ["lowest", "highest"])
def test_buckets_are_shares_of_the_scores(tmp_path, best) -> None:
    scores = np.random.default_rng(0).permutation(np.arange(-50.0, 50.0)).tolist()
    shards = {"a": [*scores[:70], None, float("nan")], "b": [*scores[70:], "high"]}
    found = decide(tmp_path / "work", shards, best=best, keep=("head", "middle", "tail"))
    buckets = {one.id: one.meta["bucket"] for one in found.kept}
    sign = 1 if best == "lowest" else -1
    order = sorted(scores, key=lambda score: sign * score)
    rank = {score: place for place, score in enumerate(order)}
    for source, own in shards.items():
        for number, score in enumerate(own):
            place = rank.get(score, 99)
            wanted = "head" if place < 30 else "middle" if place < 60 else "tail"
            assert buckets[f"{source}/{number}"] == wanted, score
    bounds = {"head": order[29], "middle": order[59]}
    assert found.report == {"documents": 103, "without_score": 3, "up_to": bounds}
    found = decide(tmp_path / "again", shards, best=best)
    assert [one.id for one in found.kept] == [name for name, b in buckets.items() if b != "tail"]
    assert {one.reason for one in found.dropped} == {"buckets/tail"}


def test_equal_scores_protected_sources_and_scores_of_nobody(tmp_path) -> None:
    shards = {"a": [1.0, 1.0, 1.0, 2.0], "good": [9.0, 0.5]}
    found = decide(
        tmp_path / "ties", shards, protected=["good"], head=0.25, middle=0.5, keep=("head",)
    )
    assert [one.id for one in found.kept] == ["a/0", "a/1", "a/2", "good/0", "good/1"]
    assert [one.meta["bucket"] for one in found.kept] == ["head", "head", "head", "tail", "head"]
    assert found.report["up_to"] == {"head": 1.0, "middle": 1.0}
    with pytest.raises(UserError, match="buckets.score=s: no document has such a number"):
        decide(tmp_path / "none", {"a": [None]})
    found = decide(tmp_path / "no head", {"a": [1.0, 2.0]}, head=0.0, middle=0.5, keep=("middle",))
    assert [one.id for one in found.kept] == ["a/0"]
    (problem,) = BucketsConfig(head=0.7).problems("steps.1", None)
    assert "steps.1.head=0.7 is above steps.1.middle=0.6; lower it" in problem.text


def test_they_come_behind_a_checkpoint_without_bounds(tmp_path) -> None:
    workshop = Workshop(
        tmp_path, None, Report(Console(file=io.StringIO())), 2**30, 10**6, False, 2**28
    )
    model = {"path": str(tmp_path)}
    shares = {"head": 0.2, "middle": 0.5, "keep": ("head",)}
    free = PerplexityConfig(checkpoint=model, **shares)
    bound = PerplexityConfig(checkpoint=model, max_head=1.0, max_middle=2.0)
    words = PerplexityConfig(model=str(tmp_path / "ngrams"))
    assert [list(step.behind()) for step in (bound, words)] == [[], []]
    stages = plan_stages([free, bound], {}, {}, workshop, published=["old"])
    names = ["00-read", "01-perplexity", "01-buckets", "02-perplexity"]
    assert [stage.name for stage in stages] == names
    assert stages[2].protected == {"old"}
    (behind,) = free.behind()
    expected = {"score": "bits_per_byte", "name": "perplexity_bucket", "best": "lowest"}
    assert behind.model_dump().items() >= (expected | shares).items()
    assert compares([free], ["a"])
    assert not compares([bound, words], ["a"])
