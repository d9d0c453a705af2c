"""Evaluation data in documents, against plain sets of word runs."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet, table

from data_pipeline.dedup.evaluation.items import Item, read_items
from data_pipeline.dedup.evaluation.overlap import MOST_ITEMS, OverlapIndex, Rules
from data_pipeline.dedup.words import hash_words
from data_pipeline.steps.dedup.decontaminate import Decontaminate
from data_pipeline.text.places import MASK, masked_spans
from maxlm.config.errors import UserError
from maxlm.config.pipeline.dedup.decontaminate import DecontaminateConfig
from maxlm.config.pipeline.filters.word_list import MissingFileProblem


def some_words(seed, count):
    return [f"w{number:x}" for number in np.random.default_rng(seed).integers(0, 2**40, count)]


def runs_of(text, size):
    words = re.findall(r"\w+", text.lower())
    return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]


def plain_overlap(item, text, rules):
    """Return whether a text holds a long run of an item, and whether it holds most short ones."""
    exact = False
    for one in item.texts:
        count = len(re.findall(r"\w+", one))
        size = min(count, rules.ngram_words)
        exact |= count >= rules.min_words and bool(
            set(runs_of(one, size)) & set(runs_of(text, size))
        )
    long = [one for one in item.texts if len(re.findall(r"\w+", one)) >= rules.min_words]
    short = {run for one in long for run in runs_of(one, 5)}
    found = len(short & set(runs_of(text, 5)))
    return exact, len(short) >= 4 and found >= rules.near_coverage * len(short)


TEXT = st.lists(st.sampled_from(["a", "B,", "c.", "d\n"]), max_size=24).map(" ".join)


@settings(max_examples=100, deadline=None)
@given(
    items=st.lists(st.lists(TEXT, max_size=2), max_size=5),
    texts=st.lists(TEXT, max_size=6),
    ngram_words=st.integers(8, 11),
    coverage=st.sampled_from([0.5, 0.8]),
)
def test_overlap_is_that_of_plain_sets(items, texts, ngram_words, coverage):
    rules = Rules(ngram_words, 8, coverage)
    items = [Item("b", str(number), tuple(texts)) for number, texts in enumerate(items)]
    index, words = OverlapIndex(items, rules), hash_words(texts)
    exact, near = index.exact(words), index.near(words)
    expected = [
        (t, i, *plain_overlap(item, text, rules))
        for t, text in enumerate(texts)
        for i, item in enumerate(items)
    ]
    assert set(zip(exact.texts, exact.items, strict=True)) == {
        (t, i) for t, i, e, _ in expected if e
    }
    assert set(zip(near.texts, near.items, strict=True)) == {(t, i) for t, i, _, n in expected if n}
    for text, begin, end in zip(exact.texts, exact.begins, exact.ends, strict=True):
        assert 8 <= end - begin <= ngram_words
        assert words.offsets[text] <= begin < end <= words.offsets[text + 1]


def test_phrases_of_a_benchmark_do_not_stand_for_its_items():
    phrase = "which of the following statements about this is the true one"
    items = [
        Item("b", str(i), (f"{phrase} {' '.join(some_words(i, 9))}",))
        for i in range(MOST_ITEMS + 1)
    ]
    words = hash_words(
        [f"{phrase} none", " ".join([*some_words(3, 9)[:5], "x", *some_words(3, 9)[5:]])]
    )
    assert not OverlapIndex(items, Rules(13, 8, 0.3)).near(words).texts.size
    assert OverlapIndex(items[:-1], Rules(13, 8, 0.3)).near(words).texts.size


@pytest.fixture
def benchmarks(tmp_path):
    """Write three benchmarks of two items each, one of them too short to look for."""
    quiz = [
        {"id": "q1", "question": " ".join(some_words(1, 30)), "choices": ["yes", "no"]},
        {"id": "q2", "question": "What is it?", "choices": [" ".join(some_words(2, 9))]},
    ]
    (tmp_path / "quiz.jsonl").write_text("\n".join(map(json.dumps, quiz)) + "\n\n")
    rows = table({"text": [" ".join(some_words(3, 20)), "too short"], "label": [0, 1]})
    parquet.write_table(rows, tmp_path / "table.parquet")
    (tmp_path / "story.txt").write_text(" ".join(some_words(4, 500)))
    (tmp_path / "list.json").write_text(
        json.dumps([{"deep": [{"er": " ".join(some_words(5, 13))}]}])
    )
    return {
        "quiz": (str(tmp_path / "quiz.jsonl"),),
        "table": (str(tmp_path / "table.parquet"),),
        "books": (str(tmp_path / "story.txt"), str(tmp_path / "list.json")),
    }


def test_documents_that_hold_items_go_and_are_counted_by_benchmark(run_step, in_shards, benchmarks):
    filler = [" ".join(some_words(100 + i, 50)) for i in range(4)]
    words, near = some_words(1, 30), some_words(3, 20)
    texts = [
        filler[0],
        f"{filler[1]} {' '.join(words[10:23]).upper()} {filler[2]}",  # 13 words in a row
        f"{filler[1]} {' '.join(words[10:22])} {filler[2]}",  # 12
        " ".join(some_words(2, 9)),  # all of a short text
        " ".join([*near[:10], "but", *near[10:]]),  # 12 of 16 runs of five
        " ".join([*near[:12], "but", *near[12:], *some_words(5, 13)[1:]]),
        " ".join(some_words(4, 500)[200:260]),
        "",
    ]
    config = DecontaminateConfig(benchmarks=benchmarks, near_coverage=0.75)
    assert [Path(path).name for path in config.files()] == [
        "quiz.jsonl",
        "table.parquet",
        "story.txt",
        "list.json",
    ]
    outcome = run_step(Decontaminate(config), in_shards(texts, 3))
    assert [(one.document.id, one.reason, one.detail) for one in outcome.dropped] == [
        ("web/1", "decontaminate/quiz", "holds quiz.jsonl 1"),
        ("web/3", "decontaminate/quiz", "holds quiz.jsonl 2"),
        ("web/4", "decontaminate/table", "holds table.parquet 1"),
        ("web/5", "decontaminate/table", "holds table.parquet 1"),
        ("web/6", "decontaminate/books", "holds story.txt 1"),
    ]
    counts = {
        "items": 2,
        "items_passed_over": 0,
        "items_found_word_for_word": 2,
        "items_found_near": 0,
    }
    assert outcome.report["benchmarks"] == {
        "quiz": counts | {"documents": 2},
        "table": counts
        | {
            "items_passed_over": 1,
            "items_found_word_for_word": 0,
            "items_found_near": 1,
            "documents": 2,
        },
        "books": counts | {"items_found_word_for_word": 1, "items_found_near": 1, "documents": 2},
    }
    strict = Decontaminate(DecontaminateConfig(benchmarks=benchmarks, near_coverage=None))
    gone = {one.document.id for one in run_step(strict, in_shards(texts)).dropped}
    assert gone == {"web/1", "web/3", "web/6"}
    protected = run_step(Decontaminate(config), in_shards(texts, 2), protected=["web"])
    assert not protected.dropped
    assert protected.report == outcome.report


def test_passages_are_cut_out_with_their_margins(run_step, in_shards, benchmarks):
    item = " ".join(some_words(1, 30))
    before, between, after = (" ".join(some_words(seed, 60)) for seed in (50, 51, 52))
    text = f"{before} {item} {between} {item} {after} {item}"
    config = DecontaminateConfig(
        benchmarks=benchmarks, action="cut", margin_characters=20, min_piece_characters=40
    )
    outcome = run_step(Decontaminate(config), in_shards([text, f"short {item}"]))
    begins = [match.start() for match in re.finditer(item, text)]
    edges = [0, *(edge for begin in begins for edge in (begin - 20, begin + len(item) + 20))]
    assert [(one.id, one.text) for one in outcome.kept] == [
        (f"web/0#{number}", text[edges[2 * number] : edges[2 * number + 1]].strip())
        for number in range(3)
    ]
    assert [one.document.id for one in outcome.dropped] == ["web/1"]
    few = config.model_copy(update={"max_pieces": 2})
    assert len(run_step(Decontaminate(few), in_shards([text])).dropped) == 1


def test_passages_are_masked_where_they_stand(run_step, in_shards, benchmarks):
    item = " ".join(some_words(1, 30))
    before, after = (" ".join(some_words(seed, 60)) for seed in (50, 51))
    texts = [f"{before} {item} {after} {item}", before]
    config = DecontaminateConfig(benchmarks=benchmarks, action="mask")
    outcome = run_step(Decontaminate(config), in_shards(texts))
    assert [one.text for one in outcome.kept] == texts
    held, clean = outcome.kept
    assert masked_spans(held.meta) == [match.span() for match in re.finditer(item, texts[0])]
    assert MASK not in clean.meta


def test_files_that_cannot_be_read_are_named_together(tmp_path):
    (tmp_path / "data.csv").write_text("a,b")
    wrong = {"one": (str(tmp_path / "absent.jsonl"),), "two": (str(tmp_path / "data.csv"),)}
    one, two = Decontaminate(DecontaminateConfig(benchmarks=wrong)).problems("steps.0")
    assert (one.path, two.path) == ("steps.0.benchmarks.one", "steps.0.benchmarks.two")
    assert "absent.jsonl is no file" in one.text
    assert "data.csv must end in" in two.text
    assert two.text.count("benchmarks") == 1
    for name, contents in (("bad.jsonl", "{"), ("bad.json", "[" * 10**5), ("bad.parquet", "PAR1")):
        (tmp_path / name).write_text(contents)
        with pytest.raises(UserError, match=f"{name}, of one: .*mend the file"):
            list(read_items({"one": (str(tmp_path / name),)}))


def test_files_that_are_missing_are_said_as_those_of_other_steps(tmp_path):
    files = (str(tmp_path / "absent.jsonl"), str(tmp_path))
    config = DecontaminateConfig(benchmarks={"one": files})
    problems = list(config.problems("data.pipeline.steps.0", None))
    assert all(isinstance(problem, MissingFileProblem) for problem in problems)
    assert [problem.text for problem in problems] == [
        f"data.pipeline.steps.0.benchmarks.one.{number}: {file}: there is no such file; correct or remove it"
        for number, file in enumerate(files)
    ]


def test_a_benchmark_of_which_nothing_could_be_found_is_refused(run_step, in_shards, benchmarks):
    texts = [" ".join(some_words(1, 30))]
    for name, contents in (("blank.txt", ""), ("short.jsonl", '{"question": "What is it?"}')):
        path = Path(benchmarks["quiz"][0]).with_name(name)
        path.write_text(contents)
        config = DecontaminateConfig(benchmarks=benchmarks | {"mine": (str(path),)})
        with pytest.raises(
            UserError, match=f"{name}: no text of at least 8 words, so nothing of mine"
        ):
            run_step(Decontaminate(config), in_shards(texts))


def test_settings_that_cannot_be_are_named():
    section = DecontaminateConfig(benchmarks={"one": ()}, min_words=14)
    paths = [problem.path for problem in section.problems("steps.0", None)]
    assert paths == ["steps.0.benchmarks", "steps.0.min_words"]
