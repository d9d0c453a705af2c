"""Compare vocabularies: how many bytes of held-out text a token stands for, by source and language."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.documents import Document
from data_pipeline.tokenizers import train_tokenizer
from maxlm.config.pipeline.tokenizer import TrainedTokenizerSection
from maxlm.data.tokenizers import Tokenizer, open_tokenizer


@dataclass(frozen=True)
class Group:
    """What a tokenizer makes of some texts.

    Attributes:
      documents: how many, or pieces of such.
      bytes: of their UTF-8.
      tokens: without those that start and end documents.
    """

    documents: int
    bytes: int
    tokens: int

    @property
    def bytes_per_token(self) -> float:
        """Bytes that a token stands for; 0 if there is none."""
        return self.bytes / max(self.tokens, 1)


@dataclass(frozen=True)
class Result:
    """A vocabulary and what it makes of held-out texts.

    Attributes:
      kind: of tokenizer.
      asked: pieces that were asked for.
      pieces: pieces that there are.
      groups: by source, and by source and language where documents have one.
      mixed: bytes per token of the run's mixture: sources by their weights, which are shares of
        tokens.
      never_used: share of the pieces that no held-out text has.
    """

    kind: str
    asked: int
    pieces: int
    groups: Mapping[str, Group]
    mixed: float
    never_used: float

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        groups = {
            name: {**asdict(group), "bytes_per_token": group.bytes_per_token}
            for name, group in self.groups.items()
        }
        return {**asdict(self), "groups": groups}


@dataclass(frozen=True)
class Texts:
    """What vocabularies are learned from and compared on.

    Attributes:
      learned: texts of each source that are learned from, in a random order.
      held_out: pieces of documents that are not.
      weights: of each source.
    """

    learned: Mapping[str, Sequence[str]]
    held_out: Mapping[str, Sequence[Document]]
    weights: Mapping[str, float]


def try_vocabulary(
    texts: Texts, section: TrainedTokenizerSection, vocab_size: int, folder: Path
) -> Result:
    """Train a tokenizer into a folder and return what it makes of the held-out texts.

    Raises:
      UserError: the vocabulary is too small.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = train_tokenizer(section, texts.learned, texts.weights, vocab_size)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    tokenizer = open_tokenizer(folder)
    used = np.zeros(tokenizer.vocab_size, bool)
    groups: dict[str, Group] = {}
    for source, documents in texts.held_out.items():
        languages = sorted({_language(document) for document in documents} - {""})
        groups[source] = _measure(tokenizer, documents, used)
        for language in languages:
            own = [document for document in documents if _language(document) == language]
            groups[f"{source}/{language}"] = _measure(tokenizer, own, used)
    specials = list(tokenizer.specials.values())
    never = 1 - used.sum() / max(tokenizer.vocab_size - len(specials), 1)
    mixed = _mixed(groups, texts.weights)
    return Result(
        section.kind, vocab_size, tokenizer.vocab_size, groups, mixed, round(float(never), 4)
    )


def _language(document: Document) -> str:
    return str(document.meta.get("language", ""))


def _measure(tokenizer: Tokenizer, documents: Iterable[Document], used: np.ndarray) -> Group:
    texts = [document.text for document in documents]
    tokens = 0
    for ids in tokenizer.encode_all(texts):
        used[ids] = True
        tokens += len(ids)
    return Group(len(texts), sum(len(text.encode()) for text in texts), tokens)


def _mixed(groups: Mapping[str, Group], weights: Mapping[str, float]) -> float:
    total = sum(weights.values())
    return sum(weight / total * groups[name].bytes_per_token for name, weight in weights.items())
