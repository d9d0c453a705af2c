"""Rows of training data as a pure function of (seed, row number), for any split into batches and
among hosts.

Sources are shuffled, repeated and mixed by index, so there is no iterator state: a step reads the
rows that follow those consumed before it, a run resumes from their number alone, whatever its batch
size then is, and any process can read any rows.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from maxlm.config.errors import UserError
from maxlm.config.schema import DataConfig, SourceConfig
from maxlm.data.examples import DEFAULT_PURPOSE, Examples, Purpose, build_examples
from maxlm.data.examples.packing import NO_TOKEN, split_masked
from maxlm.data.mixture.plan import Reading, plan_mixture
from maxlm.data.mixture.rows import Mixture, Stage
from maxlm.data.mixture.table import readings, stage_lines, table_lines
from maxlm.data.shards import INDEX_NAME, TokenShards
from maxlm.data.tokenizers import Tokenizer, open_tokenizer
from maxlm.data.windows import TrainingWindows, ValidationWindows

if TYPE_CHECKING:
    import grain

log = logging.getLogger(__name__)

Split = Literal["train", "validation"]
Windows = TrainingWindows | ValidationWindows


class Dataset:
    """Sequences addressed by their row number, read `batch_size` at a time; thread-safe.

    Made by `build_dataset`.

    Attributes:
      mixture: the source of each row.
    """

    def __init__(
        self,
        windows: Mapping[str, Windows],
        mixture: Mixture,
        *,
        shards: Mapping[str, TokenShards],
        tokenizer: Tokenizer,
        examples: Examples,
        batch_size: int,
        sequence_length: int,
    ):
        self.batch_size, self.sequence_length = batch_size, sequence_length
        self.tokenizer, self.examples = tokenizer, examples
        self.shards = dict(shards)
        self.mixture = mixture
        self.num_windows = {name: source.num_windows for name, source in windows.items()}
        self._sources = dict(windows)
        endless = any(isinstance(source, TrainingWindows) for source in windows.values())
        self._num_rows = sys.maxsize if endless else sum(self.num_windows.values())

    @cached_property
    def _windows(self) -> dict[str, grain.MapDataset]:
        return {name: source.dataset() for name, source in self._sources.items()}

    @cached_property
    def _starts(self) -> dict[str, grain.MapDataset]:
        return {name: source.starts() for name, source in self._sources.items()}

    @property
    def num_tokens(self) -> int:
        """Tokens in all sources."""
        return sum(shards.num_tokens for shards in self.shards.values())

    @property
    def num_batches(self) -> int:
        """Batches in one pass over every source, the last one possibly filled with rows of weight
        0.
        """
        return -(-sum(self.num_windows.values()) // self.batch_size)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the sources' names and tokens."""
        text = json.dumps(
            sorted((name, shards.fingerprint) for name, shards in self.shards.items())
        )
        return hashlib.sha256(text.encode()).hexdigest()

    def rows(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Return rows [start, stop), counted from the first step's first; see `maxlm.data.examples`
        for the fields.

        Raises:
          UserError: a shard is damaged.
        """
        if not 0 <= start <= stop:
            raise IndexError(f"rows [{start}, {stop})")
        windows = np.full(
            (stop - start, self.sequence_length + self.examples.tokens_after), NO_TOKEN, np.int32
        )
        for row, index in enumerate(range(start, min(stop, self._num_rows))):
            name, place = self.mixture.place(index)
            windows[row] = self._windows[name][place]
        tokens, masked = split_masked(windows)
        return self.examples(tokens, range(start, stop), masked)

    def origin(self, row: int) -> tuple[str, int]:
        """Return the source of a row, and where in that source's stream of tokens it begins."""
        name, place = self.mixture.place(row)
        return name, int(self._starts[name][place])

    def epochs(self, rows: int) -> dict[str, float]:
        """Return how often each source was read through (to a sequence) by a run that consumed rows
        [0, rows).
        """
        return {
            name: count / self.num_windows[name]
            for name, count in self.mixture.consumed(rows).items()
        }

    def reading_lines(self, rows: int) -> list[str]:
        """Return what a run of rows [0, rows) reads of each source, as lines of a table, and of its
        stages, if there are any; nothing of a single source.
        """
        if len(self.num_windows) == 1:
            return []
        size = {"length": self.sequence_length, "rows": rows}
        found = readings(self.mixture, self.num_windows, **size)
        lines = table_lines(found, length=self.sequence_length)
        return lines + list(stage_lines(self.mixture, **size)) * (len(self.mixture.stages) > 1)


def build_dataset(
    data: DataConfig,
    *,
    seed: int,
    batch_size: int,
    split: Split,
    source: str | None = None,
    num_steps: int | None = None,
    vocab_size: int | None = None,
    purpose: Purpose = DEFAULT_PURPOSE,
) -> Dataset:
    """Open the sources of a run, or one of them, and check all that is cheap to check.

    Args:
      seed: order of the training data.
      batch_size: sequences per step over all hosts.
      split: `train` is endless, shuffled and mixed; `validation` is one source once, in its order.
      source: name of the only source to read.
      num_steps: of the run, if how much of the sources it reads follows from its length.
      vocab_size: the model's vocabulary, which the tokenizer must fit in.
      purpose: what the fields of a batch are for.

    Raises:
      UserError: folders, indexes or shards that are missing or damaged, a tokenizer that does not
        match, or sources that are too small for the mixture.
    """
    configs = {source: data.sources[source]} if source else dict(sorted(data.sources.items()))
    assert split == "train" or len(configs) == 1, "validation reads one source at a time"
    tokenizer = open_tokenizer(data.tokenizer)
    if vocab_size is not None and tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"data.tokenizer={data.tokenizer} has {tokenizer.vocab_size} pieces, more than model.vocab_size="
            f"{vocab_size}; use model.vocab_size={tokenizer.vocab_size}, or another tokenizer"
        )
    if split == "train" and not tokenizer.lossless:
        log.warning(
            "data.tokenizer=%s loses text: bits per byte count the bytes of what decoding gives, and are not those of "
            "another tokenizer",
            data.tokenizer,
        )
    shards = _open_all(configs, split, tokenizer)
    length, shuffle = data.sequence_length, data.shuffle == "global"
    examples = build_examples(purpose, tokenizer, seed=seed)
    more: dict[str, int] = {"sequence_length": length, "tokens_after": examples.tokens_after}
    windows: dict[str, Windows] = {}
    for name, opened in shards.items():
        if split == "train":
            windows[name] = TrainingWindows(opened, seed=seed, name=name, shuffle=shuffle, **more)
        else:
            windows[name] = ValidationWindows(opened, **more)
    sizes = {name: opened.num_windows for name, opened in windows.items()}
    if source is not None or split == "validation":
        mixture = Mixture([Stage(0, dict.fromkeys(sizes, 1))])
    else:
        mixture = plan_mixture(data, sizes, Reading(batch_size, num_steps))
    return Dataset(
        windows,
        mixture,
        shards=shards,
        tokenizer=tokenizer,
        examples=examples,
        batch_size=batch_size,
        sequence_length=length,
    )


def validation_sources(data: DataConfig) -> list[str]:
    """Return the names of the sources that have a validation split, sorted."""
    return sorted(
        n
        for n, source in data.sources.items()
        if (Path(source.path) / "validation" / INDEX_NAME).exists()
    )


def _open_all(
    configs: Mapping[str, SourceConfig], split: Split, tokenizer: Tokenizer
) -> dict[str, TokenShards]:
    shards, problems = {}, []
    for name, config in configs.items():
        try:
            shards[name] = _open(name, config, split, tokenizer)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return shards


def _open(name: str, config: SourceConfig, split: Split, tokenizer: Tokenizer) -> TokenShards:
    where = f"data.sources.{name}.path={config.path}"
    if not Path(config.path).is_dir():
        cure = (
            ""
            if config.raw
            else f"name a folder of token shards, or say with data.sources.{name}.raw what to read and "
        )
        raise UserError(f"{where}: there is no such folder; {cure}run: maxlm prepare RUN.yaml")
    shards = TokenShards(Path(config.path) / split)
    if not shards.num_tokens:
        raise UserError(
            f"{where}: its {split} split is empty; add text and run: maxlm prepare RUN.yaml --force"
        )
    index = shards.index
    if index.tokenizer != tokenizer.fingerprint:
        raise UserError(
            f"{where}: the tokens were made with another tokenizer (fingerprint {index.tokenizer[:12]}) than "
            f"{tokenizer.path} ({tokenizer.fingerprint[:12]}); name that one as data.tokenizer=PATH, or run: "
            "maxlm prepare RUN.yaml --force; a run that has checkpoints keeps its tokenizer, so other tokens need "
            "another run_dir"
        )
    if (index.bos_id, index.eos_id, index.vocab_size) != (
        tokenizer.bos_id,
        tokenizer.eos_id,
        tokenizer.vocab_size,
    ):
        raise UserError(
            f"{shards.folder / INDEX_NAME}: bos_id={index.bos_id}, eos_id={index.eos_id}, vocab_size="
            f"{index.vocab_size} are not the tokenizer's {tokenizer.bos_id}, {tokenizer.eos_id}, "
            f"{tokenizer.vocab_size}; restore the file, or run: maxlm prepare RUN.yaml --force"
        )
    return shards
