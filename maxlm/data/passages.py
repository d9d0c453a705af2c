"""What rows of the training data are made of: the documents, where they lie, and what they say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from maxlm.data.dataset import Dataset
from maxlm.data.shards.document_ids import trace


class Passage(NamedTuple):
    """Tokens of one document in a row, its last target included.

    Attributes:
      row: of the run, from 0.
      source: as it is called in the run.
      id: of the document: its source when it was prepared, its file, its place in that file.
      shard: the file of tokens, and `offset` the first token of the passage in it.
      first: tokens of the document before the passage.
      tokens: of the passage.
      text: what they say.
    """

    row: int
    source: str
    id: str
    shard: Path
    offset: int
    first: int
    tokens: int
    text: str


class Batch(NamedTuple):
    """The rows [first, stop) that a step reads, of a data set."""

    dataset: Dataset
    first: int
    stop: int

    def passages(self) -> Iterator[Passage]:
        """Yield what is in the rows, in order.

        Raises:
          UserError: a folder does not say which documents it holds.
        """
        size = self.dataset.sequence_length + 1
        for row in range(self.first, self.stop):
            source, start = self.dataset.origin(row)
            total = self.dataset.shards[source].num_tokens
            # The stream is a ring: after its last token comes its first.
            for begin, count in ((start, min(size, total - start)), (0, size - (total - start))):
                if count > 0:
                    yield from self._stretch(row, source, begin, count)

    def _stretch(self, row: int, source: str, begin: int, count: int) -> Iterator[Passage]:
        shards = self.dataset.shards[source]
        for span in trace(shards, begin, count):
            first, stop = max(begin, span.start), min(begin + count, span.stop)
            shard, offset = shards.place(first)
            text = self.dataset.tokenizer.decode(shards.read(first, stop - first))
            path = shards.folder / shard
            numbers = (first - span.start, stop - first)
            yield Passage(row, source, span.id, path, offset, *numbers, text)
