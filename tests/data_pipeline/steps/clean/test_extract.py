"""Pages become their text; hostile ones never reach a parser."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.documents import Document, Dropped
from data_pipeline.steps.clean.extract import Extract
from maxlm.config.pipeline.clean.extract import ExtractConfig

SENTENCES = [
    f"Sentence number {number} says something of the matter at hand." for number in range(8)
]
PAGE = f"""<!DOCTYPE html><html><head><title>Title</title><style>p {{ color: red }}</style></head><body>
<nav><ul><li><a href="/">Home</a><li><a href="/about">About us</a></ul></nav>
<main><article><h1>Heading</h1>{"".join(f"<p>{sentence}</p>" for sentence in SENTENCES)}</article></main>
<script>var x = "<p>no text</p>";</script><footer>Copyright, all rights reserved</footer></body></html>"""


@pytest.mark.parametrize("extractor", ["resiliparse", "trafilatura"])
def test_the_main_text_of_a_page(extractor: str, verdicts) -> None:
    [text] = verdicts(Extract(ExtractConfig(extractor=extractor)), [PAGE])
    assert [sentence for sentence in SENTENCES if sentence in text] == SENTENCES
    for noise in ("About us", "color", "var x", "rights reserved"):
        assert noise not in text


@pytest.mark.parametrize("extractor", ["resiliparse", "trafilatura"])
def test_all_of_a_page(extractor: str, verdicts) -> None:
    [text] = verdicts(Extract(ExtractConfig(extractor=extractor, main_content=False)), [PAGE])
    assert "About us" in text
    assert "var x" not in text


def test_what_is_html_and_what_is_not(verdicts) -> None:
    step = Extract(ExtractConfig())
    code = "# <html> in a comment\nx = '<p>'"
    assert verdicts(step, [code]) == [code]
    assert verdicts(step, ["<p>a fragment of a page</p>"]) == ["<p>a fragment of a page</p>"]
    assert verdicts(step, ["<p>a fragment</p>"], content_type="text/html; charset=x") == [
        "a fragment"
    ]
    declared = '<?xml version="1.0" encoding="UTF-8"?>\n<!-- of a server -->\n'
    assert verdicts(step, [f"{declared}{PAGE}"]) == verdicts(step, [PAGE])
    feed = f"{declared}<rss><channel><title>x</title></channel></rss>"
    assert verdicts(step, [feed]) == [feed]
    assert verdicts(step, [PAGE], content_type="text/plain") == [PAGE]
    assert verdicts(Extract(ExtractConfig(input="text")), [PAGE]) == [PAGE]
    assert verdicts(Extract(ExtractConfig(input="html")), ["a<br>b"]) == ["a\nb"]


def test_plain_text_is_repaired_and_normalised(verdicts) -> None:
    broken = "caf\u00c3\u00a9 \u00e2\x80\x9cx\u00e2\x80\x9d\r\ncafe\u0301\x00"
    assert verdicts(Extract(ExtractConfig()), [broken]) == ["caf\u00e9 \u201cx\u201d\ncaf\u00e9"]
    kept = Extract(ExtractConfig(repair=False, normal_form="none"))
    assert verdicts(kept, ["caf\u00c3\u00a9 e\u0301"]) == ["caf\u00c3\u00a9 e\u0301"]


HOSTILE = {
    "attributes": ("<html><a " + "x=1 " * 100_000 + ">", "extract/max_tag_chars"),
    "nesting": ("<html>" + "<div>" * 100_000, "extract/max_depth"),
    "formatting": ("<html>" + "<b a=1><p>" * 50_000, "extract/max_depth"),
    "length": ("<html>" + "<p>text " * 1_000_000, "extract/max_chars"),
    "one line": ("x" * 6_000_000, "extract/max_chars"),
    "nothing": ("\x00\u200b \ufeff", None),
    "blank page": ("<html><body><p> </p>", "extract/empty"),
    "zeroes": ("\x00" * 1000, "extract/empty"),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("extractor", ["resiliparse", "trafilatura"])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_documents_never_reach_a_parser(name, extractor, verdicts) -> None:
    page, reason = HOSTILE[name]
    step = Extract(ExtractConfig(extractor=extractor))
    if reason and "max" in reason:
        step.__dict__["_extractor"] = lambda text: pytest.fail("the parser was called")
    assert verdicts(step, [page])[0] == (reason or "\u200b")


TAGS = ["<p>", "</p>", "<b>", "<a x='", '"', ">", "<!--", "-->", "<script>", "</script>", "<table>"]
TAGS += ["</div>", "\x00", "\ud800", "&amp;", "&#0;", "<"]
PIECES = st.lists(
    st.one_of(
        st.sampled_from(TAGS),
        st.text(st.characters(codec=None), max_size=5),
    ),
    max_size=30,
)


@settings(deadline=None)
@given(PIECES)
def test_whatever_comes_valid_text_or_a_reason_goes(pieces: list[str]) -> None:
    document = Document("a", "s", "<html>" + "".join(pieces), {"url": "u"})
    [result] = Extract(ExtractConfig())(iter([document]))
    if isinstance(result, Dropped):
        assert result.reason == "extract/empty"
    else:
        assert result.text.encode().decode() == result.text
        assert unicodedata.is_normalized("NFC", result.text)
        assert (result.id, result.source, result.meta) == ("a", "s", {"url": "u"})
