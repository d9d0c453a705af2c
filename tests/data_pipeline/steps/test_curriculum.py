"""Buckets by score, against sorting; and the order in which a prepared source is read."""

import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.documents import Document
from data_pipeline.steps.curriculum import Curriculum
from data_pipeline.steps.step import Shard
from data_pipeline.storage.arrays import write_arrays
from data_pipeline.tokens.order import ORDERS, order_place, training_place
from maxlm.config.checks import find_problems
from maxlm.config.errors import UserError
from maxlm.config.pipeline.curriculum import CurriculumConfig
from maxlm.data.shards import TokenShards
from maxlm.data.tokenizers import open_tokenizer

SCORES = st.one_of(st.none(), st.sampled_from([0.0, 1, 0.5]), st.floats(-1e9, 1e9))


def buckets_of(folder, shards, sources, **values):
    """Return the bucket of each document of each shard; None where it has none."""
    step = Curriculum(CurriculumConfig(score="s", **values))
    documents = [
        [Document(f"{n}", "x", "t", {} if score is None else {"s": score}) for n, score in enumerate(shard)]
        for shard in shards
    ]  # fmt: skip
    infos = [Shard(number, source, len(shards[number])) for number, source in enumerate(sources)]
    keys = [folder / f"{number}" for number in range(len(shards))]
    for path, shard, info in zip(keys, documents, infos, strict=True):
        write_arrays(path, step.keys(iter(shard), info, ()))
    decision = step.reduce(keys, SimpleNamespace(shards=infos, protected=frozenset({"old"})))
    return [
        [result.meta.get("curriculum_bucket") for result in step.apply(iter(shard), verdict)]
        for shard, verdict in zip(documents, decision.verdicts, strict=True)
    ]


@settings(deadline=None, max_examples=60)
@given(
    shards=st.lists(st.lists(SCORES, max_size=8), min_size=1, max_size=4),
    buckets=st.integers(2, 6),
    descending=st.booleans(),
)
def test_against_sorting(tmp_path_factory, shards, buckets, descending):
    order = "descending" if descending else "ascending"
    folder = tmp_path_factory.mktemp("keys")
    shards = [[0.25], *shards]  # a score that no document has is refused
    found = buckets_of(folder, shards, ["x"] * len(shards), buckets=buckets, order=order)
    places = [(shard, row) for shard, scores in enumerate(shards) for row in range(len(scores))]

    def rank(place):
        score = shards[place[0]][place[1]]
        return (score is None, 0 if score is None else -score, place)

    best_first = sorted(places, key=rank)
    for position, (shard, row) in enumerate(best_first):
        # The number of limits between buckets that it is above.
        above = sum(position < len(places) * n // buckets for n in range(1, buckets))
        assert found[shard][row] == (buckets - 1 - above if descending else above)


def test_a_score_that_no_document_has_is_refused(tmp_path):
    with pytest.raises(UserError, match="curriculum.score=s: no document has such a number"):
        buckets_of(tmp_path, [[None], [1.0]], ["a", "old"], buckets=2)


def test_each_source_has_buckets_of_its_own_and_published_ones_none(tmp_path):
    shards = [[1.0, 2.0], [30.0, 10.0], [0.5, 0.1], [20.0, 40.0]]
    sources = ["a", "b", "old", "b"]
    found = buckets_of(tmp_path, shards, sources, buckets=2)
    assert found == [[0, 1], [1, 0], [None, None], [0, 1]]


@given(identity=st.text(max_size=9), buckets=st.integers(2, 1024), data=st.data())
def test_a_place_is_in_the_range_of_its_bucket(identity, buckets, data):
    bucket = data.draw(st.integers(0, buckets - 1))
    meta = {"curriculum_bucket": bucket, "curriculum_buckets": buckets}
    assert training_place(identity, meta) * buckets // ORDERS in (bucket, bucket - 1)
    assert ORDERS * bucket // buckets <= training_place(identity, meta)
    assert training_place(identity, meta) < ORDERS * (bucket + 1) // buckets
    assert training_place(identity, {}) == order_place(identity)


def test_a_prepared_source_is_read_in_the_order_of_the_score(run_config, do, raw, tmp_path):
    """Numbers at the start of the texts are their scores: they come in ascending buckets."""
    numbers = list(range(60))
    random.Random(0).shuffle(numbers)
    for path in raw.iterdir():
        path.unlink()
    lines = [json.dumps({"text": f"{n:02} " + "word " * (n % 7 + 9), "level": n}) for n in numbers]
    (raw / "texts.jsonl").write_text("\n".join(lines) + "\n")
    steps = [{"kind": "curriculum", "score": "level", "buckets": 5}]
    config = run_config(meta_keys=["level"], pipeline={"steps": steps}, vocab_size=300)
    problems = find_problems({"data": config.data})
    assert [problem.path for problem in problems] == ["data.shuffle"]
    do(config)
    tokenizer = open_tokenizer(config.data.tokenizer)
    read = {}
    for split in ("train", "validation"):
        shards = TokenShards(tmp_path / "out/text" / split)
        tokens = shards.read(0, shards.num_tokens)
        documents = np.split(tokens, np.flatnonzero(tokens == tokenizer.bos_id))[1:]
        read[split] = [int(tokenizer.decode(document)[:2]) for document in documents]
    buckets = [number // 12 for number in read["train"]]
    assert buckets == sorted(buckets)
    assert len(set(buckets)) == 5
    assert read["train"] != sorted(read["train"])  # at random within a bucket
    held_out = [number // 12 for number in read["validation"]]
    assert held_out != sorted(held_out)
    assert sorted(read["train"] + read["validation"]) == list(range(60))


@pytest.mark.parametrize("shuffle", ["global", "none"])
def test_a_shuffle_that_undoes_the_order_is_refused(run_config, shuffle):
    data = run_config(pipeline={"steps": [{"kind": "curriculum"}]}).data
    problems = find_problems({"data": data.model_copy(update={"shuffle": shuffle})})
    assert [problem.path for problem in problems] == ["data.shuffle"] * (shuffle == "global")
