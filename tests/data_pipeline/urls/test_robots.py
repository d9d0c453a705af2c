"""Opt-outs are read as RFC 9309 says."""

import re
from urllib.robotparser import RobotFileParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.urls.robots import OptOuts, fits

EXAMPLES = [  # RFC 9309, 2.2.2 and 2.2.3, and Google's table of the same rules
    ("/fish", "/fish/salmon.html", True),
    ("/fish", "/Fish", False),
    ("/fish*", "/fishheads", True),
    ("/*.php", "/folder/x.php?a=1", True),
    ("/*.php$", "/x.php", True),
    ("/*.php$", "/x.php?a=1", False),
    ("/fish*.php", "/fishheads/cat.php?x", True),
    ("/fish*.php", "/Fish.PHP", False),
    ("/a*b*c$", "/abbc", True),
    ("/a*b$", "/ab/b", True),
    ("/a*ab$", "/ab", False),
    ("/$", "/", True),
    ("/$", "/x", False),
]


@pytest.mark.parametrize(("pattern", "path", "expected"), EXAMPLES)
def test_patterns(pattern: str, path: str, expected: bool) -> None:
    assert fits(pattern, path) is expected


@settings(deadline=None)
@given(st.text("/ab*$", max_size=6), st.text("/ab$", max_size=8))
def test_patterns_against_regular_expressions(pattern: str, path: str) -> None:
    body = pattern[:-1] if pattern.endswith("$") else pattern
    expression = ".*".join(re.escape(part) for part in body.split("*"))
    expected = re.match(expression + (r"\Z" if pattern.endswith("$") else ""), path)
    assert fits(pattern, path) is (expected is not None)


LIST = """\ufeff# opt-outs
Host: example.com
User-agent: CCBot
User-agent: gptbot
Disallow: /
Allow: /open/
User-agent: *
Disallow: /private
Host: sub.example.com
User-agent: *
Disallow:
Host: other.org
User-Agent: ClaudeBot/1.0
Disallow: /*?session=
Disallow: /stra\u00dfe/%7e
nonsense
"""
PAGES = [
    ("example.com", "/x"),
    ("example.com", "/open/x"),
    ("example.com", "/private/x"),
    ("www.example.com", "/x"),
    ("sub.example.com", "/private"),
    ("other.org", "/a?session=1"),
    ("other.org", "/a"),
    ("unknown.net", "/"),
    ("other.org", "/stra%C3%9Fe/~x"),
]


@pytest.mark.parametrize(
    ("agents", "forbidden"),
    [
        (("CCBot",), [0, 2, 3]),
        (("SomeBot",), [2]),
        (("ClaudeBot",), [2, 5, 8]),
        (("CCBot", "ClaudeBot"), [0, 2, 3, 5, 8]),
        ((), []),
    ],
)
def test_whose_pages_are_not_for_whom(tmp_path, agents, forbidden) -> None:
    path = tmp_path / "list.txt"
    path.write_text(LIST)
    opt_outs = OptOuts([str(path)], agents)
    assert [number for number, page in enumerate(PAGES) if opt_outs.forbids(*page)] == forbidden


def test_one_host_against_the_standard_library(tmp_path) -> None:
    rules = [
        "User-agent: CCBot",
        "Disallow: /a",
        "Disallow: /b/c",
        "",
        "User-agent: *",
        "Disallow: /d",
    ]
    path = tmp_path / "list.txt"
    path.write_text("Host: h.com\n" + "\n".join(rules))
    parser = RobotFileParser()
    parser.parse(rules)
    for agent in ("CCBot", "Other"):
        opt_outs = OptOuts([str(path)], [agent])
        for page in ("/", "/a", "/ab", "/b", "/b/c/d", "/d", "/x/d"):
            assert opt_outs.forbids("h.com", page) is not parser.can_fetch(
                agent, "http://h.com" + page
            )
