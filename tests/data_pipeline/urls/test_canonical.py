"""Spellings of one address have one key; different pages have different ones."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.urls.canonical import canonical_url, parse_address

SAME = [
    "http://www.example.com/a%7Eb/",
    "https://EXAMPLE.com:443/a~b",
    "HTTP://example.com.:80/x/../a%7eb?utm_source=mail#part",
    "http://user:word@example.com/./a~b?gclid=1&fbclid=2",
    " https://example.com/a~b;jsessionid=1F2E \n",
    "example.com/a~b",
    "//www.example.com/a~b/",
    "http://example.com/a~b?sid=0f3c9b6f2b1d4c5e8a7f6d5c4b3a2918",
]
DIFFERENT = [
    "http://example.com/",
    "http://example.com/a~B",
    "http://example.com/a~b?x=1",
    "http://example.com/a~b?x=2",
    "http://example.com:8080/a~b",
    "http://example.org/a~b",
    "http://sub.example.com/a~b",
    "http://example.com/a%2Fb",
    "http://example.com/a/b",
    "http://example.com/a~b?sid=1234",  # the number of an article
    "http://example.com/a~b?sid=12/07/2001/article",
]


def test_spellings_of_one_page() -> None:
    assert {canonical_url(url) for url in SAME} == {"example.com/a~b"}


def test_pages_apart() -> None:
    assert len({canonical_url(url) for url in [SAME[0], *DIFFERENT]}) == 1 + len(DIFFERENT)


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("http://a.com/?b=2&a=1", "a.com/?a=1&b=2"),
        ("http://a.com", "a.com/"),
        ("http://M\u00fcnchen.de/stra\u00dfe?q=\u00e4", "xn--mnchen-3ya.de/stra%C3%9Fe?q=%C3%A4"),
        ("http://a.com/%41%zz%e4", "a.com/A%zz%E4"),
        ("http://a.com/b/..", "a.com/"),
        ("http://a.com/../../b/.", "a.com/b"),
        ("http://www./", "www/"),
        ("http://[::1]:80/x", "::1/x"),
        ("not an address ", "not an address"),
        ("B\u00fccher.example:80/x", "xn--bcher-kva.example:80/x"),
        ("a.b@c.com", "a.b@c.com"),
        ("two words.", "two words."),
        ("two words.org", "two words.org"),
        ("page.html#part", "page.html#part"),
        ("http://a.com:port/", "http://a.com:port/"),
        ("http://[half/", "http://[half/"),
        ("", ""),
    ],
)
def test_examples(url: str, key: str) -> None:
    assert canonical_url(url) == key


@settings(deadline=None)
@given(st.text(st.characters(codec=None), max_size=80))
def test_any_text_has_a_key_in_valid_utf8(text: str) -> None:
    key = canonical_url("http://a.com/" + text.replace("://", ""))
    key.encode()
    address = parse_address("http://" + key)
    assert address is None or canonical_url("http://" + key) == key
