"""Documents and lines in other languages go."""

import pytest

from data_pipeline.documents import Document
from data_pipeline.steps.filters import language as step_module
from data_pipeline.steps.filters.language import Language
from data_pipeline.text.language import language_model
from maxlm.config.errors import UserError
from maxlm.config.pipeline.filters.language import LANGUAGES, LanguageConfig

ENGLISH = "The committee will meet again next week to discuss the remaining questions."
GERMAN = "Der Ausschuss wird sich in der kommenden Woche erneut mit den Fragen befassen."
FRENCH = (
    "Le comit\u00e9 se r\u00e9unira de nouveau la semaine prochaine pour examiner les questions."
)


def config(**settings) -> LanguageConfig:
    return LanguageConfig.model_validate(settings)


def test_languages_and_their_thresholds(verdicts) -> None:
    texts = [ENGLISH, GERMAN, FRENCH, "a x"]
    assert verdicts(Language(config(languages=["en", "fr"])), texts) == [
        ENGLISH,
        "language/other",
        FRENCH,
        "language/other",
    ]
    strict = config(languages={"en": 1.0, "de": 0.5, "fr": None}, threshold=0.5)
    assert verdicts(Language(strict), texts[:3]) == ["language/score", GERMAN, FRENCH]
    assert verdicts(Language(config()), ["12 34", ENGLISH]) == ["language/score", ENGLISH]


def test_a_kept_document_says_its_language() -> None:
    document = Document("a", "s", ENGLISH, {"url": "u"})
    [result] = Language(config())(iter([document]))
    assert result.meta["language"] == "en"
    assert 0.65 < result.meta["language_score"] <= 1
    assert document.meta == {"url": "u"}


def test_lines_in_other_languages_go(verdicts, monkeypatch) -> None:
    monkeypatch.setattr(step_module, "_LINES_AT_ONCE", 3)
    lines = [ENGLISH, GERMAN, "", "Kurz und gut.", ENGLISH + " Indeed.", FRENCH, ENGLISH]
    step = Language(config(languages=["en"], threshold=0.3, lines="drop"))
    [text] = verdicts(step, ["\n".join(lines)])
    assert text.split("\n") == [lines[0], "", "Kurz und gut.", lines[4], lines[6]]


def test_begin_middle_and_end_are_looked_at(verdicts) -> None:
    step = Language(config(languages=["en"], sample_chars=300))
    text = ENGLISH * 20 + "\u4f60" * 50 + ENGLISH * 20
    assert verdicts(step, [text, GERMAN * 5 + ENGLISH * 2 + GERMAN * 5]) == [text, "language/other"]


def test_the_model_s_languages_are_known_before_it_is_loaded() -> None:
    assert sorted(LANGUAGES) == language_model().languages
    (problem,) = config(languages=["en", "qq"]).problems("steps.0", None)
    assert problem.path == "steps.0.languages"
    assert "qq: the model does not know this language; use some of ace, af" in problem.text


def test_a_language_that_the_model_does_not_know() -> None:
    with pytest.raises(
        UserError, match=r"languages: qq: the model does not know.*use some of .*en"
    ):
        list(Language(config(languages=["qq"]))(iter([Document("a", "s", ENGLISH)])))


def test_problems() -> None:
    [problem] = config(lines="drop").problems("steps.0", None)
    assert "steps.0.languages" in problem.text
