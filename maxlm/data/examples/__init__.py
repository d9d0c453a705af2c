"""From windows of tokens to the fields of a batch: a file for each objective."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from maxlm.config.objectives import DEFAULT_OBJECTIVE, Objective
from maxlm.data.examples.further import further_fields
from maxlm.data.examples.next_token import NextTokenExamples
from maxlm.data.tokenizers import Tokenizer


class Examples(Protocol):
    """What an objective sees of the text; every field is (B, T), and a pure function of (seed,
    row).

    Attributes:
      fields: names and types of the fields; `tokens`, `segment_ids` (from 1 in each row, 0 for
        filling) and `positions` are always among them.
      tokens_after: tokens that a window has besides those of the sequence.
    """

    fields: Mapping[str, np.dtype]
    tokens_after: int

    def __call__(
        self, windows: np.ndarray, rows: range, masked: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """Return the fields of windows, which are these rows of the training data; tokens that are
        `masked` are not learned.
        """


class Purpose(NamedTuple):
    """What the fields of a batch are for.

    Attributes:
      objective: what is learned.
      depth: how many further tokens the model has modules for.
    """

    objective: Objective = DEFAULT_OBJECTIVE
    depth: int = 0


DEFAULT_PURPOSE = Purpose()

EXAMPLES: dict[str, Any] = {
    "next_token": NextTokenExamples,
}


def build_examples(purpose: Purpose, tokenizer: Tokenizer, *, seed: int) -> Examples:
    """Build what turns windows into the fields of an objective; with a depth, into those of so many
    further tokens too.
    """
    objective, depth = purpose
    more = {"depth": depth} if depth else {}
    built: Examples = EXAMPLES[objective.kind](objective, tokenizer, seed=seed, **more)
    return built


def fields_of(objective: Objective, depth: int = 0) -> dict[str, np.dtype]:
    """Return the names and types of an objective's fields, with those of so many further tokens."""
    return {**EXAMPLES[objective.kind].fields, **further_fields(depth)}
