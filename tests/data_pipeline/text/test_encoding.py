"""Bytes in the encodings of the web come back as text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.text.encoding import decode

TEXTS = {
    "utf-8": "na\u00efve caf\u00e9 \u4f60\u597d",
    "utf-16": "wide \u4f60",
    "cp1252": "Stra\u00dfe \u2013 caf\u00e9 \u201cquoted\u201d " * 20,
    "cp1251": "\u041f\u0440\u0438\u0432\u0435\u0442, \u043a\u0430\u043a \u0434\u0435\u043b\u0430? "
    * 20,
    "shift_jis": "\u3053\u308c\u306f\u65e5\u672c\u8a9e\u306e\u6587\u7ae0\u3067\u3059\u3002" * 20,
    "gb18030": "\u8fd9\u662f\u4e00\u4e2a\u4e2d\u6587\u53e5\u5b50\u3002" * 20,
    "iso-2022-jp": "\u3053\u308c\u306f\u65e5\u672c\u8a9e\u3067\u3059\u3002" * 20,
}


@pytest.mark.parametrize("encoding", TEXTS)
def test_without_a_word_from_anybody(encoding: str) -> None:
    decoded = decode(TEXTS[encoding].encode(encoding))
    assert decoded.text == TEXTS[encoding]
    assert decoded.replaced == 0


@pytest.mark.parametrize("encoding", ["euc_kr", "iso8859-7", "iso8859-2", "koi8-r"])
def test_what_is_declared_counts_where_bytes_do_not_tell(encoding: str) -> None:
    text = {
        "euc_kr": "\ud55c\uad6d\uc5b4",
        "iso8859-7": "\u03b3\u03b5\u03b9\u03b1",
        "iso8859-2": "\u017alud\u017a",
        "koi8-r": "\u043c\u0438\u0440",
    }[encoding]
    assert decode(text.encode(encoding), declared=encoding).text == text
    page = f'<html><head><meta charset="{encoding.replace("8859", "-8859").replace("_", "-")}">'
    assert decode((page + text).encode(encoding), is_html=True).text == page + text


def test_valid_utf8_is_utf8_whatever_the_header_says() -> None:
    assert decode("caf\u00e9".encode(), declared="iso-8859-1").text == "caf\u00e9"
    assert decode(b"caf\xe9", declared="utf-8").text == "caf\u00e9"


@pytest.mark.parametrize(
    "declared", ["base64", "rot13", "utf-7", "no such", "\0", "unicode_escape"]
)
def test_declarations_that_name_no_encoding_are_ignored(declared: str) -> None:
    assert decode(b"+AGE- \\u0041 caf\xe9", declared=declared).text == "+AGE- \\u0041 caf\u00e9"


@settings(deadline=None)
@given(st.binary(max_size=200), st.sampled_from([None, "utf-16", "euc-jp", "hz", "big5"]))
def test_any_bytes_become_a_text(data: bytes, declared) -> None:
    decoded = decode(data, declared=declared, is_html=True)
    assert isinstance(decoded.text, str)
    assert decoded.replaced <= len(data)
