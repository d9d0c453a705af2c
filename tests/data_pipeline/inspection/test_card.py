"""The data card of a corpus with hostile texts."""

import json
import re

import numpy as np
import pytest

from data_pipeline.card.charts import _numbers
from data_pipeline.card.tokens import TokenCounts, top_rows, vocabulary_rows
from data_pipeline.inspection.corpus import Corpus
from maxlm import cli
from maxlm.pages import visible
from tests.data_pipeline.inspection.conftest import HOSTILE
from tests.pages.test_page import Acting


@pytest.fixture(scope="module")
def card(corpus, tmp_path_factory):
    path = tmp_path_factory.mktemp("card") / "card.html"
    assert cli.main(["data", "inspect", str(corpus), "--card", str(path)]) == 0
    return path.read_text()


def test_a_card_shows_what_is_there_and_nothing_acts(card, corpus):
    reader = Acting()
    reader.feed(card)
    assert not reader.tags & {"script", "img", "iframe", "object", "embed", "link", "base", "form"}
    assert not {name for name in reader.attributes if name.startswith("on")}
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", card)
    targets = re.findall(r'(?:href|src|url)\s*[=(]\s*"?([^")]*)', card)
    assert all(target.startswith("#") for target in targets)
    shown = "".join(reader.text)
    for text in (
        "CC-BY <4.0>",
        "mit<b> 7",
        visible(HOSTILE),
        "01-heuristics: gopher_quality/min_doc_words, 1 dropped",
        "too few words",
        "Documents by license",
        "Documents by stars.",
        "What is left after each step.",
        "Clusters of near copies",
        f"Data card: {corpus}",
    ):
        assert text in shown, text


def test_a_score_that_is_the_same_everywhere_is_one_bar():
    chart = _numbers("quality", {"0.5": 7})
    (axes,) = chart.figure.axes
    (bar,) = axes.patches
    assert bar.get_width() == 7
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0.5"]
    assert chart.meaning == "Documents by quality."
    assert _numbers("quality", {"(others)": 7}) is None


def test_few_numbers_are_bars_in_their_order():
    chart = _numbers("curriculum_bucket", {"2": 3, "10": 9, "0": 5})
    (axes,) = chart.figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "2", "10"]
    assert [bar.get_width() for bar in axes.patches] == [5, 3, 9]


def test_numbers_of_the_card_are_those_of_the_corpus(card, corpus):
    figures = dict(re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td>", card))
    manifest = json.loads((corpus / "manifest.json").read_text())
    assert figures["00-read"] == "37"
    assert figures["03-near_dedup"] == "34"
    assert figures["01-heuristics: gopher_quality/min_doc_words"] == "1"
    train = manifest["splits"]["train"]
    assert figures["tokens in the training split"] == f"{train['tokens']:,}"
    assert figures["of them counted here"] == f"{train['tokens']:,}"


def test_a_card_has_the_settings_of_the_steps(card):
    settings = card[card.index("<details>") : card.index("</details>")]
    rows = dict(re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td>", settings))
    assert rows["01-heuristics: gopher_quality.min_doc_words"] == "50"
    assert rows["01-heuristics: gopher_quality.min_stop_words"] == "null"
    assert rows["03-near_dedup: min_similarity"] == "0.75"
    assert rows["03-near_dedup: score"] == "null"
    assert rows["03-near_dedup: earlier"] == "none"
    assert not [name for name in rows if name.endswith("kind")]


def test_tokens_are_counted_as_numpy_counts_them(corpus, monkeypatch):
    monkeypatch.setattr("data_pipeline.card.tokens.AT_A_TIME", 100)
    opened = Corpus(corpus)
    found = TokenCounts.of(opened)
    tokens = opened.splits["train"].read(0, opened.splits["train"].num_tokens)
    values, counts = np.unique(tokens, return_counts=True)
    assert found.counts[values].tolist() == counts.tolist()
    assert found.counts.sum() == counts.sum() == found.counted
    top = top_rows(found, opened.tokenizer).rows
    assert [int(row[2].replace(",", "")) for row in top] == sorted(counts.tolist())[::-1][
        : len(top)
    ]
    rows = dict(vocabulary_rows(found, opened.tokenizer, 3.0).rows)
    unused = set(range(found.counts.size)) - set(values.tolist())
    unused -= set(opened.tokenizer.specials.values())
    assert rows["never used"].split()[0] == str(len(unused))


def test_of_a_large_corpus_a_sample_is_counted(corpus, monkeypatch):
    monkeypatch.setattr("data_pipeline.card.tokens.MOST_COUNTED", 150)
    monkeypatch.setattr("data_pipeline.card.tokens.AT_A_TIME", 64)
    opened = Corpus(corpus)
    found, shards = TokenCounts.of(opened), opened.splits["train"]
    assert found.counts.sum() == found.counted == 150 < found.total
    third = shards.num_tokens // 3
    tokens = np.concatenate([shards.read(start, 50) for start in (0, third, 2 * found.total // 3)])
    assert found.counts.tolist() == np.bincount(tokens, minlength=found.counts.size).tolist()
