"""Cleaned text is valid, normal, and bounded in its marks."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.text.cleaning import clean, cut_marks

ANY_TEXT = st.text(st.characters(codec=None), max_size=60)  # lone surrogates too
MARKS = st.text(st.sampled_from("ae\u0301\u0327\u0323\u1100 "), max_size=40)


@settings(deadline=None)
@given(ANY_TEXT)
def test_every_string_becomes_valid_text(text: str) -> None:
    cleaned = clean(text)
    assert cleaned.encode().decode() == cleaned
    assert not {sign for sign in cleaned if unicodedata.category(sign) == "Cc"} - {"\n", "\t"}
    assert clean(cleaned) == cleaned


@settings(deadline=None)
@given(MARKS, st.integers(1, 5))
def test_runs_of_marks_end(text: str, most: int) -> None:
    expected, run = "", 0
    for sign in text:
        run = run + 1 if unicodedata.combining(sign) else 0
        expected += sign if run <= most else ""
    assert cut_marks(text, most) == expected


@pytest.mark.parametrize(
    ("given", "form", "expected"),
    [
        ("a\r\nb\rc\u2028d\x0ce", "NFC", "a\nb\nc\nd\ne"),
        ("x\x00y\x07z\ufeff", "NFC", "xyz"),
        ("e\u0301", "NFC", "\u00e9"),
        ("e\u0301", None, "e\u0301"),
        ("\ufb01 \u2460", "NFKC", "fi 1"),
        ("\ufb01 \u2460", "NFC", "\ufb01 \u2460"),
        ("a\ud800b", "NFC", "a\ufffdb"),
        ("\ud83d\ude00", "NFC", "\U0001f600"),
        ("\u200dkeep\u200c", "NFC", "\u200dkeep\u200c"),
    ],
)
def test_examples(given: str, form, expected: str) -> None:
    assert clean(given, form=form) == expected


@pytest.mark.timeout(60)
def test_a_bomb_of_marks_is_cut_before_it_is_normalised() -> None:
    bomb = "a" + "\u0301\u0323" * 100_000
    assert len(clean(bomb)) <= 31
