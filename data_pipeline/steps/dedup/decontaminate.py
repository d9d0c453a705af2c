"""Keep evaluation data out of the corpus: drop the documents that hold some, cut it out, or keep it
out of the loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from data_pipeline.dedup.evaluation.items import Item, check_files, read_items
from data_pipeline.dedup.evaluation.overlap import Matches, OverlapIndex, Rules
from data_pipeline.dedup.words import Words, batches, hash_words
from data_pipeline.documents import Document, Dropped
from data_pipeline.steps.step import Arrays, Decision, Shard, Work, problem_of
from data_pipeline.storage.arrays import read_arrays
from data_pipeline.text.places import with_masked
from maxlm.config.errors import Problem, UserError
from maxlm.config.pipeline.dedup.decontaminate import DecontaminateConfig

_KEYS = {
    "rows": np.int64,
    "items": np.int64,
    "begins": np.int64,
    "ends": np.int64,
    "near": np.bool_,
}


class Decontaminate:
    """Compares documents with the items of benchmarks."""

    def __init__(self, config: DecontaminateConfig):
        self._config = config

    def problems(self, path: str) -> Iterator[Problem]:
        """Yield evaluation files that are none, are damaged, or hold no text to compare with."""
        for name, files in self._config.benchmarks.items():
            yield from problem_of(f"{path}.benchmarks.{name}", partial(self._check, {name: files}))

    def _check(self, benchmarks: Mapping[str, Sequence[str]]) -> None:
        check_files(benchmarks)
        self._index_of(list(read_items(benchmarks)), benchmarks)

    @cached_property
    def _items(self) -> list[Item]:
        return list(read_items(self._config.benchmarks))

    @cached_property
    def _index(self) -> OverlapIndex:
        return self._index_of(self._items, self._config.benchmarks)

    def _index_of(self, items: list[Item], benchmarks: Mapping[str, Sequence[str]]) -> OverlapIndex:
        config = self._config
        rules = Rules(config.ngram_words, config.min_words, config.near_coverage)
        index = OverlapIndex(items, rules)
        compared = {
            item.benchmark
            for item, passed_over in zip(items, index.passed_over, strict=True)
            if not passed_over
        }
        for name, paths in benchmarks.items():
            if name not in compared:
                raise UserError(
                    f"{', '.join(paths)}: no text of at least {config.min_words} words, so nothing "
                    f"of {name} would be found; give other files, or a smaller min_words"
                )
        return index

    def keys(self, documents: Iterator[Document], shard: Shard, given: Sequence[Path]) -> Arrays:
        """Return the passages, in characters, that the shard's documents share with items."""
        del shard, given
        found, first = [_nothing()], 0
        for portion in batches(documents, lambda document: len(document.text)):
            words = hash_words([document.text for document in portion])
            found.append(_passages(words, self._index.exact(words), first=first, near=False))
            found.append(_passages(words, self._index.near(words), first=first, near=True))
            first += len(portion)
        arrays = {name: np.concatenate([one[name] for one in found]) for name in _KEYS}
        order = np.lexsort((arrays["items"], arrays["ends"], arrays["begins"], arrays["rows"]))
        return {name: array[order] for name, array in arrays.items()}

    def reduce(self, keys: Sequence[Path], work: Work) -> Decision:
        """Count what was found of each benchmark; a shard's own passages are its verdict."""
        verdicts = (
            _nothing() if shard.source in work.protected else read_arrays(path)
            for shard, path in zip(work.shards, keys, strict=True)
        )
        return Decision(verdicts, {"benchmarks": self._report(read_arrays(path) for path in keys)})

    def _report(self, shards: Iterator[Arrays]) -> dict[str, dict[str, int]]:
        names = list(self._config.benchmarks)
        benchmark = np.array([names.index(item.benchmark) for item in self._items], np.int64)
        exact, near = np.zeros((2, benchmark.size), bool)
        documents = np.zeros(len(names), np.int64)
        for found in shards:
            exact[found["items"][~found["near"]]] = True
            near[found["items"][found["near"]]] = True
            pairs = np.stack([found["rows"], benchmark[found["items"]]])
            documents += np.bincount(np.unique(pairs, axis=1)[1], minlength=len(names))
        counts = {
            "items": np.ones_like(exact),
            "items_passed_over": self._index.passed_over,
            "items_found_word_for_word": exact,
            "items_found_near": near & ~exact,
        }
        return {
            name: {what: int(mask[benchmark == number].sum()) for what, mask in counts.items()}
            | {"documents": int(documents[number])}
            for number, name in enumerate(names)
        }

    def apply(self, documents: Iterator[Document], verdict: Arrays) -> Iterator[Document | Dropped]:
        """Yield the documents without items, and of the others what `action` leaves."""
        rows = verdict["rows"]
        for row, document in enumerate(documents):
            first, end = np.searchsorted(rows, (row, row + 1))
            if first == end:
                yield document
                continue
            item = self._items[int(verdict["items"][first])]
            begins, ends = verdict["begins"][first:end], verdict["ends"][first:end]
            if self._config.action == "mask":
                spans = zip(begins.tolist(), ends.tolist(), strict=True)
                yield with_masked(document, spans)
                continue
            yield from self._pieces(document, begins, ends) or (
                Dropped(document, f"decontaminate/{item.benchmark}", f"holds {item.place}"),
            )

    def _pieces(
        self, document: Document, begins: np.ndarray, ends: np.ndarray
    ) -> tuple[Document, ...]:
        """Return what is left without some passages, in the order of their beginnings; nothing, if
        the document goes.
        """
        if self._config.action == "drop":
            return ()
        margin = self._config.margin_characters
        after = [0, *(np.maximum.accumulate(ends) + margin).tolist()]
        before = [*(begins - margin).clip(min=0).tolist(), len(document.text)]
        texts = [document.text[a:b].strip() for a, b in zip(after, before, strict=True)]
        texts = [text for text in texts if len(text) >= self._config.min_piece_characters]
        if len(texts) > self._config.max_pieces:
            return ()
        return tuple(
            replace(document, id=f"{document.id}#{number}", text=text)
            for number, text in enumerate(texts)
        )


def _nothing() -> dict[str, np.ndarray]:
    return {name: np.empty(0, kind) for name, kind in _KEYS.items()}


def _passages(words: Words, matches: Matches, *, first: int, near: bool) -> dict[str, np.ndarray]:
    return {
        "rows": first + matches.texts,
        "items": matches.items,
        "begins": words.starts[matches.begins],
        "ends": words.ends[matches.ends - 1],
        "near": np.full(matches.texts.size, near),
    }
