"""Personal data is found where it is, and little else is taken for it."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.pii.scan import FINDERS, find_all, replace_all
from tests.data_pipeline.pii.labelled import MAKERS, labelled_documents, lookalike

ALL = tuple(FINDERS)


@pytest.fixture(scope="module")
def counts():
    """Right, missed and false ones of each type; one counts as right if it is found exactly."""
    right, missed, false = Counter(), Counter(), Counter()
    for text, spans in labelled_documents(500):
        found = {tuple(span) for span in find_all(text, ALL)}
        for span in spans:
            (right if span in found else missed)[span[2]] += 1
        for span in found - set(spans):
            false[span[2]] += 1
    return right, missed, false


@pytest.mark.parametrize("kind", MAKERS)
def test_recall_and_precision_by_type(kind: str, counts) -> None:
    right, missed, false = (count[kind] for count in counts)
    assert right > 300
    assert right / (right + missed) >= 0.97, f"{missed} of {right + missed} missed"
    assert right / (right + false) >= 0.97, f"{false} false ones beside {right} right ones"


EXAMPLES = {
    "a value that is given to a name": ('db_password = "kJ8#mQ2vXz!p"', "kJ8#mQ2vXz!p"),
    "the password of an address": ("postgres://admin:q9XwzT7rLk@db.host.io/x", "q9XwzT7rLk"),
    "a header": ("Authorization: Bearer 9f8A7bQzRt6yUv5WxKm3", "9f8A7bQzRt6yUv5WxKm3"),
    "a codice fiscale": ("CF RSSMRA85T10A562S", "RSSMRA85T10A562S"),
    "an NIE": ("NIE X1234567L", "X1234567L"),
    "an Aadhaar": ("2341 2341 2346", "2341 2341 2346"),
    "an address of small numbers with its name": ("IP address 8.8.8.8.", "8.8.8.8"),
    "a phone number with its name": ("Telefon: 2345 6789", "2345 6789"),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(name: str) -> None:
    text, value = EXAMPLES[name]
    assert [text[span.start : span.end] for span in find_all(text, ALL)] == [value]


NOTHING = [
    "changed in 3.4.5.6",
    "Verse 1 2 3 4 5 6 7 8",
    'secret = "your-secret-here"',
    'password = "********"',
    "0069 0307 0301",
    "252.227-7014",
    "RSSMRA85T10A562T",
    "12345678A",
    "2341 2341 2347",
    "10.0.0.1 and fe80::1:2:3",
    "-" * 200,
    "foo.bar@baz",
]


@pytest.mark.parametrize("text", NOTHING)
def test_what_is_not_personal(text: str) -> None:
    assert find_all(text, ALL) == []


def test_types_that_are_not_asked_for_stay() -> None:
    text = "jane@mail.com 212-555-0123"
    assert [span.kind for span in find_all(text, ("phone",))] == ["phone"]
    assert find_all(text, ()) == []


def test_replacing() -> None:
    text = "Mail jane@mail.com or call 212-555-0123, jane@mail.com!"
    spans = find_all(text, ALL)
    assert replace_all(text, spans, "[{type}]") == "Mail [EMAIL] or call [PHONE], [EMAIL]!"
    assert replace_all(text, spans, "") == "Mail  or call , !"


PIECES = st.lists(
    st.one_of(
        st.text(max_size=4),
        st.randoms(use_true_random=False).map(lambda generator: lookalike(generator)),
        st.randoms(use_true_random=False).map(lambda generator: MAKERS["card"](generator)),
        st.sampled_from(["+", "(", ") ", "-", ".", "@", ":", "::", " ", "0", "00", "12"]),
    ),
    max_size=20,
)


@settings(deadline=None)
@given(PIECES)
def test_spans_are_in_order_apart_and_whole(pieces: list[str]) -> None:
    text = "".join(pieces)
    spans = find_all(text, ALL)
    places = [place for span in spans for place in (span.start, span.end)]
    assert places == sorted(places)
    assert all(0 <= span.start < span.end <= len(text) for span in spans)
    # The parts that numbers are looked for in lose none: the same is found with text around.
    far = "x" * 50
    moved = find_all(f"{far}\n{text}\n{far}", ALL)
    assert [(span.start - 51, span.end - 51, span.kind) for span in moved] == [
        tuple(span) for span in spans
    ]


BOMBS = [
    "1", "1 ", "1-", "1.", "+1", "(1)", "1.1.1.1.", "a@", "@a.", "a.", "AA11", "AA11 1111 ", "1:", ":", "a:b:", "://a:",
    "password", "password = '", "eyJa", "eyJaaaaaaaaaaa.", "-----BEGIN PRIVATE KEY-----", "sk-", "tel ", "A", "AB12",
    "4111 1111 1111 1111 ", "authorization: bearer ",
]  # fmt: skip


@pytest.mark.timeout(120)
@pytest.mark.parametrize("bomb", BOMBS)
def test_hostile_texts_end(bomb: str) -> None:
    """Linear: patterns are bounded. A pattern that is quadratic takes hours on one of these."""
    text = bomb * (300_000 // len(bomb))
    assert len(find_all(text, ALL)) <= len(text)
