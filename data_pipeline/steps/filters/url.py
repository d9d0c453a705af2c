"""Judge documents by their address: block lists, patterns, opt-outs; and give each its key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property, partial
from typing import NamedTuple

from data_pipeline.documents import Document, Dropped
from data_pipeline.steps.step import problem_of
from data_pipeline.urls.block_lists import Addresses, Hosts, Subwords, Words, list_problems
from data_pipeline.urls.canonical import URL_KEY, canonical_url, parse_address
from data_pipeline.urls.robots import OptOuts, check_opt_outs
from maxlm.config.errors import Problem
from maxlm.config.pipeline.filters.url import LISTS, UrlConfig

MAX_URL_CHARS = 8192
"""What is longer is no address: its rest is not looked at."""


class Url:
    """Drops documents whose address is on a list."""

    def __init__(self, config: UrlConfig):
        self._config = config
        self._patterns = [re.compile(pattern) for pattern in config.patterns]

    def __call__(self, documents: Iterator[Document]) -> Iterator[Document | Dropped]:
        """Yield each document with the key of its address, or dropped."""
        for document in documents:
            url = str(document.meta.get("url", ""))[:MAX_URL_CHARS]
            if not url:
                missing = self._config.missing == "drop"
                yield Dropped(document, "url/missing") if missing else document
            elif verdict := self._verdict(url):
                yield Dropped(document, *verdict)
            else:
                meta = document.meta | {URL_KEY: canonical_url(url)}
                yield Document(document.id, document.source, document.text, meta)

    def problems(self, path: str) -> Iterator[Problem]:
        """Yield lists that cannot be read or have no entry, and opt-outs of no host."""
        config = self._config
        for name in LISTS:
            yield from list_problems(getattr(config, name), f"{path}.{name}")
        for number, file in enumerate(config.robots_files):
            where = f"{path}.robots_files.{number}"
            yield from problem_of(where, partial(check_opt_outs, file))

    def _verdict(self, url: str) -> tuple[str, str] | None:
        """Return the rule that an address breaks and what it is about, or None."""
        address = parse_address(url)
        host, target = (address.host, address.target) if address else ("", "")
        if found := self._lists.hosts.find(host):
            return "url/domain", found
        if found := self._lists.addresses.find(url):
            return "url/url", found
        if self._lists.words.count(url):
            return "url/word", url
        if self._lists.soft_words.count(url) >= self._config.soft_word_threshold:
            return "url/soft_words", url
        if found := self._lists.subwords.find(url):
            return "url/subword", found
        for pattern in self._patterns:
            if pattern.search(url):
                return "url/pattern", pattern.pattern
        return ("url/robots", host) if self._lists.opt_outs.forbids(host, target) else None

    @cached_property
    def _lists(self) -> _Lists:
        config = self._config
        return _Lists(
            Hosts(config.domains),
            Addresses(config.urls),
            Words(config.words),
            Words(config.soft_words),
            Subwords(config.subwords),
            OptOuts(config.robots_files, config.robots_agents),
        )


class _Lists(NamedTuple):
    hosts: Hosts
    addresses: Addresses
    words: Words
    soft_words: Words
    subwords: Subwords
    opt_outs: OptOuts
