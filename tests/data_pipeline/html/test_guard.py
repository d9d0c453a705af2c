"""The guard lets pages through and stops what makes parsers hang, in one pass."""

import html.parser
import random

import pytest

from data_pipeline.html import guard
from data_pipeline.html.guard import HtmlLimits, find_danger

LIMITS = HtmlLimits(max_tag_chars=1000, max_depth=50)
MANY = 20_000

FINE = {
    "siblings": "<p>one" * 1000 + "<ul>" + "<li>x" * 1000 + "</ul>",
    "closed": "<div><b>x</b></div>" * 1000,
    "void": "<br><img src=x><hr/>" * 1000,
    "script": "<script>if (a<b && c=='\"') {" + "x<y;" * 1000 + "}</script>" * 3,
    "comment": '<!-- <div a="  -- <div><div> ' * 20 + "-->",
    "apostrophe": "<p don't>" + "text ' and \" quotes = ' " * 1000,
    "less than": "a < b and c <= d " * 1000,
    "misnested": "<b><i>x</b></i>" * 1000,
    "foreign": "<svg/>" * 1000 + "<svg>" + "<path d='M0'/>" * 1000 + "</svg>",
    "empty comments": "<!--><div></div><!---></div>" * 1000,
    "end tags in scripts": "<script>'</scripts>' <!-- </script><p>" * 1000,
    "cells": "<table>" + "<tr><td>1<td>2" * 1000 + "</table>",
    "empty": "",
}
DANGEROUS = {
    "deep": ("<div>" * 51, "depth"),
    "deep, end tags of nothing": ("<div></x>" * 51, "depth"),
    "deep, behind void ones": ("<div><br></br>" * 51, "depth"),
    "deep in capitals": ("<DIV>" * 51, "depth"),
    "deep formatting, opened again": ("<div><b a=1></div>" * 51, "depth"),
    "deep through cells": ("<table><tr><td>" * 51, "depth"),
    "end tags that do not reach": ("<div><table><td></div></table>" * 51, "depth"),
    "deep behind an empty comment": ("<!-->" + "<div>" * 51, "depth"),
    "deep behind a script": ("<script></scripts><!--</script>" + "<div>" * 51, "depth"),
    "attributes": ("<a " + "x=1 " * 1000 + ">", "tag_chars"),
    "attributes behind a quoted >": ('<a t=">" ' + "x " * 1000 + ">", "tag_chars"),
    "attributes behind an unquoted '": ("<a t=' " + "x " * 1000 + ">", "tag_chars"),
    "attributes of a script": ("<script " + "x " * 1000 + "></script>", "tag_chars"),
    "unclosed": ("<a x=1 " + "y " * 1000, "tag_chars"),
}


@pytest.mark.parametrize("name", FINE)
def test_pages_that_parsers_like_pass(name: str) -> None:
    assert find_danger(FINE[name], LIMITS) is None


@pytest.mark.parametrize("name", DANGEROUS)
def test_dangerous_pages_are_named(name: str) -> None:
    page, danger = DANGEROUS[name]
    assert find_danger(page, LIMITS) == danger


BOMBS = [
    "<a ", "<!--", "<!-- -", "<script>", "<script></", '<a x="', "<a x='\"", "<", "</", "<a x=", "<![CDATA[",
    "<div></div ", "<x y=\"'>", "<textarea><a ", "=\"", "<b></i>", "<table></div>",
]  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("bomb", BOMBS)
def test_the_scan_is_linear(bomb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each position the pattern is tried once, and an end tag looks at no more than is open."""
    page = bomb * MANY
    covered = sum(match.end() - match.start() for match in guard._TAG.finditer(page.lower()))
    assert covered <= len(page)  # matches do not overlap: what was read is not read again
    looked = []
    monkeypatch.setattr(guard, "_close", lambda ends, name: looked.append(len(ends)))
    find_danger(page, LIMITS)
    assert max(looked, default=0) <= LIMITS.max_depth + 1


class Depth(html.parser.HTMLParser):
    """The greatest depth of a page whose tags all match, by Python's own parser."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = self.deepest = 0

    def handle_starttag(self, tag, attrs):
        self.depth += 1
        self.deepest = max(self.deepest, self.depth)

    def handle_endtag(self, tag):
        self.depth -= 1


@pytest.mark.parametrize("seed", range(20))
def test_depth_of_well_formed_pages_is_exact(seed: int) -> None:
    generator = random.Random(seed)
    names = ["div", "span", "ul", "section", "table", "h1", "main"]

    def element(depth: int) -> str:
        name = generator.choice(names)
        inner = "".join(element(depth - 1) for _ in range(generator.randrange(3) if depth else 0))
        attribute = generator.choice(["", " a=1", ' t="a>b"', " x='<div>'", " checked"])
        return f"<{name}{attribute}>text{inner}</{name.upper()} >"

    page = "".join(element(8) for _ in range(5))
    parser = Depth()
    parser.feed(page)
    limits = [HtmlLimits(max_depth=parser.deepest - margin) for margin in (0, 1)]
    assert [find_danger(page, limit) for limit in limits] == [None, "depth"]
