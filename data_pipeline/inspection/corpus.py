"""A prepared corpus, read back: its manifest, its report, and its documents from the token shards, a
few at a time.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_pipeline.manifest import MANIFEST_NAME, read_manifest
from data_pipeline.staging import INPUTS_NAME, REPORT_NAME
from data_pipeline.tokens.order import SPLITS
from maxlm.config.errors import UserError
from maxlm.data.shards import TokenShards
from maxlm.data.shards.document_ids import ids_name
from maxlm.data.tokenizers import Tokenizer, open_tokenizer
from maxlm.files import open_regular, read_regular

AT_A_TIME = 2**20  # tokens that are read together
IDS_AT_A_TIME = 2**16
PIECE = r"(#\d+)+$"
"""What is appended to the id of a document when it is cut into pieces."""


class Stored(NamedTuple):
    """Where a document lies, or a piece of one that was cut: tokens [start, start + tokens) of a
    split.
    """

    id: str
    split: str
    start: int
    tokens: int


class MadeFrom(NamedTuple):
    """What a document was written from: the id of another, by which template of a `rewrite` step."""

    origin: str
    template: str


class InputPlace(NamedTuple):
    """Where a document was read: a file, by its line of the list of inputs, and a place in it."""

    file: dict[str, Any]
    place: str


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Raise UserError with the cure where a file of the folder cannot be read as what it is."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, pa.ArrowException) as error:
        raise UserError(
            f"{path}: cannot be read: {error}; run: maxlm prepare RUN.yaml --force"
        ) from None


class Corpus:
    """The folder of a source that `maxlm prepare` has written.

    Attributes:
      folder: its path.
      manifest: what it was made from.
    """

    def __init__(self, folder: Path | str, *, tokenizer: str | None = None):
        self.folder, self._named = Path(folder), tokenizer
        manifest = read_manifest(self.folder)
        if manifest is None:
            raise UserError(
                f"{self.folder}: no prepared corpus ({MANIFEST_NAME} is missing); give a source's folder, its "
                "`path` in data.sources, after: maxlm prepare RUN.yaml"
            )
        self.manifest = manifest

    @cached_property
    def splits(self) -> dict[str, TokenShards]:
        """The token shards of each split."""
        return {split: TokenShards(self.folder / split) for split in SPLITS}

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the tokens.

        Raises:
          UserError: another one is where the manifest or the user says.
        """
        wanted = self.splits["train"].index.tokenizer
        path = Path(self._named or self.folder / self.manifest.get("tokenizer", "tokenizer"))
        cure = "name the tokenizer that made the corpus: --tokenizer PATH"
        try:
            tokenizer = open_tokenizer(path)
        except UserError as error:
            raise UserError(f"{error}; or {cure}") from None
        if tokenizer.fingerprint != wanted:
            raise UserError(
                f"{path}: not the tokenizer of {self.folder} (fingerprint {tokenizer.fingerprint[:12]}, "
                f"not {wanted[:12]}); {cure}"
            )
        return tokenizer

    @cached_property
    def report(self) -> dict[str, Any]:
        """What became of the documents, step by step.

        Raises:
          UserError: it cannot be read.
        """
        path = self.folder / REPORT_NAME
        with damage_named(path):
            found = json.loads(read_regular(path))
            return {"steps": found["steps"], "decisions": found["decisions"]}

    def documents(self, splits: Iterable[str] = SPLITS) -> Iterator[Stored]:
        """Yield all documents in the order in which they lie."""
        for split in splits:
            start = 0
            for ids, tokens in self._tables(split):
                for identity, size in zip(ids.to_pylist(), tokens.to_pylist(), strict=True):
                    yield Stored(identity, split, start, size)
                    start += size

    def find(self, ids: Collection[str]) -> Iterator[Stored]:
        """Yield the documents with some ids, and the pieces of those that were cut."""
        wanted = pa.array(list(ids), pa.string())

        def rows(column: Any) -> np.ndarray:
            whole = pc.replace_substring_regex(column, PIECE, "")
            hit = pc.or_(pc.is_in(column, wanted), pc.is_in(whole, wanted))
            return np.flatnonzero(hit.to_numpy(zero_copy_only=False))

        for split in SPLITS:
            yield from self._at(split, rows)

    def sample(self, count: int, *, seed: int, splits: Iterable[str] = SPLITS) -> list[Stored]:
        """Return documents that a seed chooses, all with the same chance, in the order in which they
        lie.
        """
        chosen = tuple(splits)
        total = sum(self.splits[split].num_documents for split in chosen)
        places = np.sort(random.Random(seed).sample(range(total), min(count, total)))
        passed = 0

        def rows(column: Any) -> np.ndarray:
            nonlocal passed
            begin, passed = passed, passed + len(column)
            return places[(begin <= places) & (places < passed)] - begin

        return [found for split in chosen for found in self._at(split, rows)]

    def texts(self, documents: Iterable[Stored]) -> Iterator[tuple[Stored, str]]:
        """Yield documents with their texts; neighbours are read together."""
        batch: list[Stored] = []
        for document in documents:
            if batch and not _follows(batch, document):
                yield from self._decoded(batch)
                batch = []
            batch.append(document)
        yield from self._decoded(batch)

    def made_from(self, identity: str) -> MadeFrom | None:
        """Return what a document was written from; None if it was read."""
        steps = self.manifest["settings"]["steps"].values()
        templates = {one["name"] for step in steps for one in step.get("templates", ())}
        origin, _, template = re.sub(PIECE, "", identity).rpartition("#")
        return MadeFrom(origin, template) if template in templates else None

    def origin(self, identity: str) -> InputPlace | None:
        """Return the file that a document was read from, and where in it; None if it is not known."""
        name = identity.partition("/")[2]
        best: InputPlace | None = None
        path = self.folder / INPUTS_NAME
        with damage_named(path), open_regular(path) as lines:
            for line in lines:
                file = json.loads(line)
                place = name[len(file["name"]) :]
                fits = name.startswith(file["name"]) and (not place or place[0] in ":#!")
                if fits and (best is None or len(file["name"]) > len(best.file["name"])):
                    best = InputPlace(file, place)
        return best

    def _tables(self, split: str) -> Iterator[tuple[Any, Any]]:
        """Yield the ids and token counts of a split's documents, some at a time."""
        for entry in self.splits[split].index.shards:
            path = self.splits[split].folder / ids_name(entry.file)
            if not path.is_file():
                raise UserError(
                    f"{path}: there is no such file, so tokens cannot be traced to documents; "
                    "run: maxlm prepare RUN.yaml --force"
                )
            with damage_named(path), pq.ParquetFile(path) as file:
                for batch in file.iter_batches(IDS_AT_A_TIME):
                    yield batch.column("id"), batch.column("tokens")

    def _at(self, split: str, choose: Callable[[Any], np.ndarray]) -> Iterator[Stored]:
        """Yield the documents at the rows that `choose` returns for each column of ids."""
        start = 0
        for column, tokens in self._tables(split):
            sizes = tokens.to_numpy().astype(np.int64)
            ends = start + np.cumsum(sizes)
            for row in choose(column).tolist():
                size = int(sizes[row])
                yield Stored(column[row].as_py(), split, int(ends[row]) - size, size)
            start = int(ends[-1])

    def _decoded(self, batch: list[Stored]) -> Iterator[tuple[Stored, str]]:
        if not batch:
            return
        shards, first = self.splits[batch[0].split], batch[0].start
        tokens = shards.read(first, batch[-1].start + batch[-1].tokens - first)
        ends = {shards.index.bos_id, shards.index.eos_id}
        for document in batch:
            ids = tokens[document.start - first :][: document.tokens].tolist()
            begin = 1 if ids and ids[0] in ends else 0
            end = len(ids) - 1 if len(ids) > begin and ids[-1] in ends else len(ids)
            yield document, self.tokenizer.decode(ids[begin:end])


def _follows(batch: list[Stored], document: Stored) -> bool:
    last, size = batch[-1], document.start + document.tokens - batch[0].start
    adjoins = (last.split, last.start + last.tokens) == (document.split, document.start)
    return adjoins and size <= AT_A_TIME
