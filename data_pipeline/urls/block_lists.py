"""Lists of unwanted addresses: hosts, whole addresses, words, parts of words, patterns.

Millions of entries are eight bytes each: their hashes, sorted.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from data_pipeline.urls.canonical import ascii_host, canonical_url, parse_address
from maxlm.config.errors import Problem, UserError
from maxlm.config.pipeline.filters.word_list import WordListConfig
from maxlm.files import open_regular

_NOT_WORDS = re.compile(r"[^a-z0-9]+")


class HashedSet:
    """A set of texts, kept as sorted hashes of 64 bits: of a billion questions, one in 18 for each
    billion entries is answered wrongly.
    """

    def __init__(self, entries: Iterable[str]):
        hashes = b"".join(map(_hash, entries))
        self._hashes = np.unique(np.frombuffer(hashes, np.uint64))

    def __contains__(self, entry: str) -> bool:
        value = np.frombuffer(_hash(entry), np.uint64)[0]
        place = int(np.searchsorted(self._hashes, value))
        return place < self._hashes.size and bool(self._hashes[place] == value)

    def __len__(self) -> int:
        return self._hashes.size


def _hash(entry: str) -> bytes:
    return hashlib.blake2b(entry.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def read_list(config: WordListConfig, normalised: Callable[[str], str]) -> Iterator[str]:
    """Yield the entries of a list and of its files, each normalised; `#` begins a comment.

    Raises:
      UserError: a file cannot be read.
    """
    yield from map(normalised, config.entries)
    for name in config.files:
        yield from filter(None, map(normalised, _lines(name)))


def _lines(name: str) -> Iterator[str]:
    try:
        with open_regular(Path(name)) as file:
            for line in file:
                entry = line.decode("utf-8", "replace").partition("#")[0].strip()
                if entry:
                    yield entry
    except OSError as error:
        raise UserError(f"{name}: cannot be read: {error.strerror}; give another list") from None


def list_problems(config: WordListConfig, path: str) -> Iterator[Problem]:
    """Yield the files of a list that cannot be read, and that it has no entry.

    Args:
      path: where the list's section stands.
    """
    found = bool(config.entries)
    for number, name in enumerate(config.files):
        try:
            found = next(_lines(name), None) is not None or found
        except UserError as error:
            found = True  # there may be entries in it
            yield Problem(f"{path}.files.{number}", f"{path}.files.{number}: {error}")
    if config.files and not found:
        yield Problem(
            f"{path}.files",
            f"{path}.files: {', '.join(config.files)}: no entry, so nothing would be found; fill the "
            "files, or remove the setting",
        )


class Hosts:
    """Hosts and all below them: `example.com` holds `www.example.com`."""

    def __init__(self, config: WordListConfig):
        self._hosts = HashedSet(read_list(config, _host_of_entry))

    def __len__(self) -> int:
        return len(self._hosts)

    def find(self, host: str) -> str | None:
        """Return the entry that holds a host, or None."""
        labels = host.split(".")
        return next(
            (
                name
                for name in (".".join(labels[start:]) for start in range(len(labels)))
                if name in self._hosts
            ),
            None,
        )


def _host_of_entry(entry: str) -> str:
    """Return the host of a line: `example.com`, `*.example.com`, `0.0.0.0 example.com`,
    `||example.com^` of filter lists, or `https://example.com/`. With a path it is none: the list
    would leave out more than it says.
    """
    name = entry.split()[-1] if entry.split() else ""
    name = name.removeprefix("||").partition("^")[0].removeprefix("*.")
    address = parse_address(name) if "/" in name else None
    is_whole = address is not None and (address.path, address.query) == ("/", "")
    return address.host if address is not None and is_whole else ascii_host(name)


class Addresses:
    """Whole addresses, in any spelling."""

    def __init__(self, config: WordListConfig):
        self._keys = HashedSet(read_list(config, canonical_url))

    def find(self, url: str) -> str | None:
        """Return the key of an address if it is in the list."""
        key = canonical_url(url)
        return key if key in self._keys else None


class Words:
    """Words between the signs of an address: `free` is in `free-games.com`, not in `freedom.org`."""

    def __init__(self, config: WordListConfig):
        self._words = frozenset(read_list(config, str.lower))

    def count(self, url: str) -> int:
        """Return how many different words of the list stand in an address."""
        return len(self._words.intersection(_NOT_WORDS.split(url.lower()))) if self._words else 0


class Subwords:
    """Strings anywhere in an address, whatever signs are between their letters."""

    def __init__(self, config: WordListConfig):
        words = {_NOT_WORDS.sub("", word.lower()) for word in read_list(config, str)} - {""}
        self._words = frozenset(words)
        self._lengths = sorted({len(word) for word in words})

    def find(self, url: str) -> str | None:
        """Return the first string of the list in an address, or None."""
        if not self._words:
            return None
        letters = _NOT_WORDS.sub("", url.lower())
        windows = chain.from_iterable(
            (letters[start : start + length] for start in range(len(letters) - length + 1))
            for length in self._lengths
        )
        return next((window for window in windows if window in self._words), None)
