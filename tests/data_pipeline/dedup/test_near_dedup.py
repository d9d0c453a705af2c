"""Near copies: recall by the LSH formula, decisions against brute force, clusters, keep-rules,
indexes.
"""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from data_pipeline.dedup.near import verify as verification
from data_pipeline.dedup.near.clusters import least_connected
from data_pipeline.documents import Document
from data_pipeline.steps.dedup.near_dedup import NearDedup
from maxlm.config.errors import UserError
from maxlm.config.pipeline.dedup.near_dedup import NearDedupConfig


def grams_of(text, size=5):
    words = text.lower().split()
    return (
        {tuple(words[i : i + size]) for i in range(max(1, len(words) - size + 1))}
        if words
        else set()
    )


def similarity(left, right, size=5):
    left, right = grams_of(left, size), grams_of(right, size)
    return len(left & right) / len(left | right) if left | right else 0.0


def random_words(generator, count):
    return [f"w{number:x}" for number in generator.integers(0, 2**40, count)]


def pairs(generator, count, *, common, grams=100):
    """Return texts of `grams` 5-grams each, of which two and two share `common`."""
    texts = []
    for _ in range(count):
        shared = random_words(generator, common + 4)
        texts += [" ".join(shared + random_words(generator, grams - common)) for _ in range(2)]
    return texts


@pytest.mark.parametrize("target", [0.95, 0.85, 0.75, 0.6])
def test_recall_follows_the_formula(run_step, in_shards, target):
    common = round(200 * target / (1 + target))
    exact = common / (200 - common)
    texts = pairs(np.random.default_rng(7), 4000, common=common)
    assert similarity(texts[0], texts[1]) == pytest.approx(exact)
    assert abs(exact - target) < 0.01
    outcome = run_step(NearDedup(NearDedupConfig(min_similarity=0.5)), in_shards(texts, 2))
    recall = len(outcome.dropped) / 4000
    assert recall == pytest.approx(1 - (1 - exact**8) ** 14, abs=0.02)
    gone = {int(one.document.id.split("/")[1]) for one in outcome.dropped}
    assert all(number % 2 for number in gone)  # the second of a pair, and no one else


def test_what_the_bands_propose_is_not_enough(run_step, in_shards):
    """A third of pairs at 0.65 share a band; none may go at 0.75."""
    texts = pairs(np.random.default_rng(3), 500, common=79)
    outcome = run_step(NearDedup(NearDedupConfig()), in_shards(texts))
    assert outcome.report["linked"] > 200
    assert not outcome.dropped


SMALL = st.lists(st.lists(st.sampled_from("abc"), max_size=9).map(" ".join), max_size=14)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    texts=SMALL,
    least=st.sampled_from([0.3, 0.5, 0.8, 1.0]),
    keep=st.sampled_from(["first", "longest"]),
)
def test_decisions_are_those_of_brute_force(texts, least, keep, run_step, in_shards):
    """With 100 bands of one row all pairs are compared that share as little as a twentieth."""
    config = NearDedupConfig(ngram_words=2, bands=100, rows=1, min_similarity=least, keep=keep)
    outcome = run_step(NearDedup(config), in_shards(texts, 3))
    order = sorted(range(len(texts)), key=lambda i: (-len(texts[i]) * (keep == "longest"), i))
    stays = []
    for number in order:
        if all(similarity(texts[number], texts[other], 2) < least for other in stays):
            stays.append(number)
    assert [document.id for document in outcome.kept] == [f"web/{i}" for i in sorted(stays)]


def test_every_removal_is_like_the_document_that_stays(run_step, in_shards):
    """A chain: each text shares nine tenths with the next, and its ends nothing."""
    words = random_words(np.random.default_rng(0), 3000)
    texts = [" ".join(words[start : start + 200]) for start in range(0, 2800, 10)]
    outcome = run_step(NearDedup(NearDedupConfig()), in_shards(texts, 4))
    kept = {document.id: document.text for document in outcome.kept}
    assert outcome.report["clusters"][0]["members"] == 280
    assert len(kept) > 80
    for one in outcome.dropped:
        value, _, stays = one.detail.partition(" like ")
        exact = similarity(one.document.text, kept[stays])
        assert exact >= 0.75
        assert float(value) == pytest.approx(exact, abs=5e-4)


def test_ten_thousand_identical_documents_are_one_cluster(run_step, in_shards):
    texts = ["the same few words in every one of these documents"] * 10_000
    outcome = run_step(NearDedup(NearDedupConfig()), in_shards(texts, 3))
    assert [document.id for document in outcome.kept] == ["web/0"]
    assert outcome.report["clusters"] == [
        {"from_size": 8192, "clusters": 1, "members": 10_000, "removed": 9_999}
    ]
    assert outcome.report["large_clusters"] == [{"size": 10_000, "removed": 9_999, "best": "web/0"}]
    assert outcome.report["sources"] == {"web": {"documents": 10_000, "removed": 9_999}}


def test_empty_and_tiny_documents(run_step, in_shards):
    """A text of fewer than five words is one n-gram; one without words is like nothing."""
    texts = ["", "", "  \n", "...", "...", "one", "One!", "one two", "two one", "one  two"]
    outcome = run_step(NearDedup(NearDedupConfig()), [*in_shards(texts), [], *in_shards([])])
    assert [one.document.id for one in outcome.dropped] == ["web/6", "web/9"]


def test_the_result_does_not_depend_on_shards_or_memory(run_step, in_shards):
    generator = np.random.default_rng(5)
    texts = pairs(generator, 60, common=92) + pairs(generator, 60, common=80)
    generator.shuffle(texts)
    results = []
    for shards, memory in ((1, 2**30), (3, 2**30), (7, 5000), (40, 2**16)):
        outcome = run_step(
            NearDedup(NearDedupConfig()), in_shards(texts, shards), memory_bytes=memory
        )
        results.append((outcome.kept, outcome.dropped, outcome.report))
        assert (outcome.rounds["links"] > 1) == (memory == 5000)
    assert results[0][1]
    assert all(result == results[0] for result in results)


def test_which_document_stays(run_step, in_shards):
    words = random_words(np.random.default_rng(1), 60)
    texts = [" ".join(words[:58]), " ".join(words), " ".join(words[1:58])]
    (documents,) = in_shards(texts)
    for document, score in zip(documents, (1, float("nan"), 2.5), strict=True):
        document.meta["score"] = score
    for config, stays in (
        ({}, "web/0"),
        ({"keep": "longest"}, "web/1"),
        ({"keep": "score", "score": "score"}, "web/2"),
        ({"keep": "score", "score": "absent"}, "web/0"),
    ):
        outcome = run_step(NearDedup(NearDedupConfig(**config)), [documents])
        assert [document.id for document in outcome.kept] == [stays]
    protected = in_shards([texts[0]], source="books")
    outcome = run_step(NearDedup(NearDedupConfig()), [documents, *protected], protected=["books"])
    assert [document.id for document in outcome.kept] == ["books/0"]


@pytest.mark.parametrize("links", [0, 30, 200, 900])
def test_clusters_are_connected_components(links):
    generator = np.random.default_rng(links)
    for count in (1, 7, 300):
        left, right = generator.integers(0, count, (2, links))
        graph = coo_array((np.ones(links), (left, right)), shape=(count, count))
        _, labels = connected_components(graph, directed=False)
        expected = [np.flatnonzero(labels == label)[0] for label in labels]
        assert least_connected(left, right, count).tolist() == expected
    chain = generator.permutation(5000)  # pointers that lead from one to the next
    assert not least_connected(chain[:-1], chain[1:], 5000).any()


def test_an_index_keeps_later_corpora_from_repeating_earlier_ones(run_step, in_shards, tmp_path):
    first = pairs(np.random.default_rng(2), 20, common=95)
    index = str(tmp_path / "index")
    kept = run_step(NearDedup(NearDedupConfig(index=index)), in_shards([*first, "", "..."], 3)).kept
    assert len(kept) == 22
    fresh = pairs(np.random.default_rng(4), 5, common=10)
    later = [
        Document(f"new/{i}", "new", text)
        for i, text in enumerate([fresh[0], *first, *fresh[1:], first[7] + " and some more words"])
    ]
    config = NearDedupConfig(earlier=(index,), keep="longest", index=str(tmp_path / "second"))
    (listing,) = config.files()
    files = sorted(Path(index).glob("*.safetensors"))
    hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    assert json.loads(Path(listing).read_text())["sha256"] == hashes
    assert len(hashes) == 3
    outcome = run_step(NearDedup(config), [later[:15], later[15:]])
    assert [document.text for document in outcome.kept] == fresh
    assert {one.detail.split(" like ")[1] for one in outcome.dropped} <= {one.id for one in kept}
    # The second index is of what the second run added; a third run sees both.
    both = NearDedupConfig(earlier=(index, str(tmp_path / "second")))
    assert not run_step(NearDedup(both), [later]).kept


def test_an_index_that_does_not_fit_is_named(run_step, in_shards, tmp_path):
    run_step(NearDedup(NearDedupConfig(index=str(tmp_path / "index"))), in_shards(["some text"]))
    folder = str(tmp_path / "index")
    step = NearDedup(NearDedupConfig(earlier=(folder, str(tmp_path / "absent")), bands=20))
    one, two = step.problems("steps.0")
    assert (one.path, two.path) == ("steps.0.earlier.0", "steps.0.earlier.1")
    assert re.search("'bands': 14.*'bands': 20", one.text)
    assert "no index of documents" in two.text
    with pytest.raises(UserError, match="'bands': 14.*'bands': 20"):
        run_step(step, in_shards(["some text"]))
    whole = NearDedup(NearDedupConfig(earlier=(folder,)))
    assert not list(whole.problems("steps.0"))
    (file,) = (tmp_path / "index").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    (problem,) = whole.problems("steps.0")
    assert f"{file}: cannot be read" in problem.text


def test_comparisons_are_bounded_and_those_left_out_counted(run_step, in_shards, monkeypatch):
    """Texts that share an n-gram and nothing else fill the places of their band key."""
    monkeypatch.setattr(verification, "MOST_COMPARED", 3)
    generator = np.random.default_rng(9)
    texts = [" ".join(["a", "b", *random_words(generator, 3)]) for _ in range(40)]
    config = NearDedupConfig(ngram_words=1, bands=60, rows=1, min_similarity=0.9)
    outcome = run_step(NearDedup(config), in_shards(texts))
    assert len(outcome.kept) == 40
    assert 30 <= outcome.report["not_fully_compared"] <= 38


@pytest.mark.parametrize("change", [{"keep": "score"}, {"score": "quality"}])
def test_a_score_and_its_rule_go_together(change):
    section = NearDedupConfig(**change)
    (problem,) = section.problems("data.pipeline.steps.0", None)
    assert problem.path == "data.pipeline.steps.0.score"


def test_an_index_does_not_replace_one_that_it_is_compared_with(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    section = NearDedupConfig(earlier=(f"{tmp_path}/one",), index=f"{tmp_path}/link/one")
    (problem,) = section.problems("data.pipeline.steps.0", None)
    assert problem.path == "data.pipeline.steps.0.index"
    assert "would lose; give a new folder" in problem.text
    section = NearDedupConfig(earlier=(f"{tmp_path}/one",), index=f"{tmp_path}/two")
    assert not list(section.problems("data.pipeline.steps.0", None))
