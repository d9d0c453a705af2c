"""Documents with words of the user's lists go, by number or share; words are whole words."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.classifier.features import grams
from data_pipeline.classifier.model import Classifier, Header
from data_pipeline.documents import Document
from data_pipeline.steps.filters.toxicity import Toxicity
from data_pipeline.text.lexicon import Lexicon
from maxlm.config.errors import UserError
from maxlm.config.pipeline.filters.toxicity import ToxicityConfig


def config(**values) -> ToxicityConfig:
    return ToxicityConfig.model_validate(values)


def test_number_and_share(verdicts) -> None:
    texts = ["a fine day", "Darn it, darn!", "darn " + "word " * 19]
    assert verdicts(Toxicity(config(lexicon=["darn"])), texts) == [
        texts[0],
        *["toxicity/max_count"] * 2,
    ]
    assert verdicts(Toxicity(config(lexicon=["darn"], max_count=1)), texts)[1:] == [
        "toxicity/max_count",
        texts[2],
    ]
    share = config(lexicon=["darn"], max_count=None, max_ratio=0.05)
    assert verdicts(Toxicity(share), texts) == [texts[0], "toxicity/max_ratio", texts[2]]


def test_a_kept_document_says_how_many() -> None:
    document = Document("a", "s", "Darn.", {"url": "u"})
    [result] = Toxicity(config(lexicon=["darn"], max_count=3))(iter([document]))
    assert result.meta == {"url": "u", "toxicity_hits": 1}
    assert document.meta == {"url": "u"}


@pytest.mark.parametrize(
    ("entries", "text", "count"),
    [
        (["ass"], "A class of grass; ASS, ass's", 2),
        (["very bad", "bad", "very bad day"], "a Very, BAD day, very\nbad, bad", 3),
        (["stra\u00dfe"], "STRASSE", 1),
        (["\u3070\u304b"], "\u304a\u3070\u304b\u3055\u3093\u3070\u304b", 2),
        (["\U0001f595", "#!"], "x\U0001f595\U0001f595y #!", 3),
        (["", "  "], "nothing", 0),
        (["bad"], "", 0),
    ],
)
def test_what_counts_as_found(entries: list[str], text: str, count: int) -> None:
    assert Lexicon(entries).find(text).entries == count


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "c"]), max_size=12), st.sets(st.sampled_from("abc")))
def test_words_are_those_of_a_regular_expression(words: list[str], entries: set[str]) -> None:
    text = ", ".join(words)
    expected = len(re.findall(rf"\b(?:{'|'.join(entries)})\b", text)) if entries else 0
    assert Lexicon(entries).find(text)[::2] == (expected, len(words))


def test_files(tmp_path, verdicts) -> None:
    path = tmp_path / "words.txt"
    path.write_text("# unwanted\ndarn  # mild\n\n")
    step = Toxicity(config(lexicon={"files": [str(path)]}))
    assert verdicts(step, ["darn", "unwanted"]) == ["toxicity/max_count", "unwanted"]
    path.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        verdicts(Toxicity(config(lexicon={"files": [str(path)]})), ["x"])


def test_a_classifier_of_the_users_labels(tmp_path) -> None:
    weights = np.zeros(2**8, np.float32)
    weights[grams("darn", 8, 100)] = 3.0
    path = str(tmp_path / "model")
    Classifier(Header(bits=8, bias=-2.0), weights).save(tmp_path / "model")
    # Of one word the probability is sigmoid(3 - 2), of none sigmoid(-2).
    words = [Document("a", "s", "Darn"), Document("b", "s", "...")]
    dropped, kept = Toxicity(config(model=path))(iter(words))
    assert (dropped.reason, dropped.detail) == ("toxicity/score", "0.7311")
    assert kept.meta == {"toxicity_score": 0.119203}
    mild = config(model=path, threshold=0.74, lexicon=["darn"])
    assert [result.reason for result in Toxicity(mild)(iter(words[:1]))] == ["toxicity/max_count"]
    [kept] = Toxicity(config(model=path, threshold=0.74))(iter(words[:1]))
    assert kept.meta == {"toxicity_score": 0.731059}


def test_problems() -> None:
    [problem] = config().problems("steps.0", None)
    assert problem.text.startswith("steps.0 judges by nothing")
    [problem] = config(model="nowhere").problems("steps.0", None)
    assert problem.text.startswith("steps.0.model: nowhere: there is no such file")
    [problem] = config(lexicon={"files": ["nowhere.txt"]}).problems("steps.0", None)
    assert "nowhere.txt: there is no such file" in problem.text


def test_files_without_a_word_are_refused(verdicts, tmp_path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("# nothing yet\n")
    step = Toxicity(config(lexicon={"files": [str(path)]}))
    with pytest.raises(UserError, match=re.escape(f"{path}: no words, so nothing would be found")):
        verdicts(step, ["a text"])
