"""Documents are dropped by their address, each for the rule that it breaks."""

import pytest

from data_pipeline.documents import Document, Dropped
from data_pipeline.steps.filters.url import Url
from maxlm.config.pipeline.filters.url import UrlConfig

RULES = {
    "domains": ["bad.com"],
    "urls": ["http://good.com/bad"],
    "words": ["casino"],
    "soft_words": ["free", "game", "win"],
    "subwords": ["b4d"],
    "patterns": [r"/tag/\d+$"],
}
CASES = {
    "http://www.bad.com/x": "url/domain",
    "bad.com/x": "url/domain",
    "https://www.good.com/bad/": "url/url",
    "http://good.com/casino-x": "url/word",
    "http://good.com/free/game": "url/soft_words",
    "http://good.com/free/": None,
    "http://good.com/b-4-d": "url/subword",
    "http://good.com/tag/12": "url/pattern",
    "http://good.com/tag/12/": None,
    "http://closed.com/x": "url/robots",
    "http://closed.com/open?y": None,
    "http://asked.com/find?q=1&a=2": "url/robots",
    "http://asked.com/find?a=2&q=1": None,
    "http://asked.com/x?utm_source=mail": "url/robots",
    "http://asked.com/\u00e4/~x": "url/robots",
    "no address": None,
}


@pytest.fixture
def config(tmp_path) -> UrlConfig:
    path = tmp_path / "robots.txt"
    path.write_text(
        "Host: closed.com\nUser-agent: *\nDisallow: /\nAllow: /open?y$\n"
        "Host: asked.com\nUser-agent: GPTBot/1.2\nDisallow: /find?q=\nDisallow: /*?utm_\nDisallow: /\u00e4/%7E\n",
        encoding="utf-8",
    )
    return UrlConfig.model_validate({"robots_files": [str(path)], **RULES})


def test_each_rule(config: UrlConfig) -> None:
    documents = [Document(url, "web", "text", {"url": url}) for url in CASES]
    results = list(Url(config)(iter(documents)))
    reasons = {
        document.id: result.reason if isinstance(result, Dropped) else None
        for document, result in zip(documents, results, strict=True)
    }
    assert reasons == CASES


def test_a_kept_document_has_its_key_and_the_one_that_came_in_is_untouched() -> None:
    document = Document("a", "web", "text", {"url": "https://www.a.com/x/?utm_source=y", "more": 1})
    [result] = Url(UrlConfig())(iter([document]))
    assert result == Document("a", "web", "text", document.meta | {"url_key": "a.com/x"})
    assert "url_key" not in document.meta


def test_documents_without_an_address(verdicts) -> None:
    assert verdicts(Url(UrlConfig(words={"entries": ("x",)})), ["text"]) == ["text"]
    assert verdicts(Url(UrlConfig(missing="drop")), ["text"]) == ["url/missing"]


@pytest.mark.timeout(60)
def test_an_endless_address_is_cut(verdicts) -> None:
    step = Url(UrlConfig.model_validate(RULES))
    assert verdicts(step, ["text"], url="http://a.com/" + "b/../" * 1_000_000) == ["text"]


def test_problems_name_the_setting_and_the_cure() -> None:
    config = UrlConfig.model_validate({"words": {"files": ["none.txt"]}, "patterns": ["("]})
    problems = list(config.problems("data.pipeline.steps.0", None))
    assert [problem.path for problem in problems] == [
        "data.pipeline.steps.0.words.files.0",
        "data.pipeline.steps.0.patterns.0",
    ]
    assert "there is no such file; correct or remove it" in problems[0].text
    assert "put a backslash" in problems[1].text
